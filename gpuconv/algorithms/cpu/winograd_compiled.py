"""Winograd's filtering on the CPU by loops that Numba compiles: the arguments that simd/winograd.py takes.

    forward       All threads transform the weights. Then each takes one block of tiles after another, transforms it
                  into a buffer in its second-level cache, multiplies, and transforms back. Where weights are many and
                  tiles few, the roles change, and the buffer holds the weights of a panel of channels.
    input_grad    The same, with dy and the flipped and transposed weights, see adjoint.py.
    weight_grad   Rounds of tiles: all threads transform those of a round, then each sums over them for some elements.

Where the split into tasks could change a sum, it does not depend on the number of threads, so neither do the bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.adjoint import adjoint_classes, adjoint_parts
from gpuconv.algorithms.base import Cost, Problem
from gpuconv.algorithms.cpu.compiled import (
    LOOP_STEPS,
    ONE_VECTOR,
    PANEL,
    Arrays,
    Computation,
    Step,
    Views,
    as_they_are,
    bias_size,
    budget,
    copied_bytes,
    cost_of_copies,
    is_native,
    of_all,
    of_part,
    padded_bias,
    readable_weights,
    told,
    written,
    zeros_for,
)
from gpuconv.algorithms.cpu.winograd import SUM_CHANNELS, Winograd, tile_count
from gpuconv.algorithms.epilogue import fill, finish
from gpuconv.algorithms.groups import weights_by_group
from gpuconv.cpu.copies import with_adjacent_channels
from gpuconv.cpu.parallel_loops import Each, Job, Made, run
from gpuconv.cpu.threads import affordable_threads
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, address, has_adjacent_channels, native, tasks_for
from gpuconv.simd.lines import OTHER, OUT, READ
from gpuconv.simd.transforms import Transforms
from gpuconv.typing import Array, Ints

LINE = 64
"""Bytes of a cache line."""

ROWS = 8
"""Rows of the largest tile of a product. Buffers include the rows that it has beyond the last."""

ROUND = 96
"""Tiles over which a weight gradient sums at a time where sums are few, so that transformed tiles stay in a near
cache."""

LONG_ROUND = 256
"""The same where sums are many, since each round reads and writes all of them, or where one such round is enough. It is
also the number of products that are summed in registers: longer sums have a larger error."""

MANY_SUMS = 2**23
"""Bytes above which the sums of a weight gradient are many."""

LEAST_TILES = 8
"""Minimum tiles per block, where memory is short."""

MOST_TILES = 48
"""Maximum tiles of a block that fits into the second-level cache. More make products no faster."""

LEAST_IN_CACHE = 24
"""Minimum tiles of a block that fits into the cache. With fewer, loading weights takes longer than the cache saves."""

TILES_OUTSIDE = 96
"""Tiles of a block where fewer than LEAST_IN_CACHE would fit."""

MOST_SHARED = 2**22
"""Maximum bytes of all transformed tiles for a blocking by panels, each of which reads them all."""

# Costs relative to the rates of heuristics.py, by outputs along a side of a tile. Fitted on 2026-11-23 to 30 layers in
# all three directions, on one core of an AMD EPYC (Zen 5).
PRODUCTS = {2: 1.0, 4: 1.2}
TRANSFORMS = {2: 0.22, 4: 0.34}
WEIGHTS, WEIGHT_SUMS = 0.4, 0.9


@dataclass(frozen=True)
class WinogradBlocking:
    """How a correlation, or a weight gradient, of geometry `g` is split into tasks.

    The tasks of a correlation are blocks of `block` tiles by `pieces` of the panels, or with `by_panel` panels of all
    tiles. A weight gradient is computed in rounds of `block` tiles, each of them in tasks for some elements and
    `pieces` of the panels. `depth` is the number of products that are summed in registers. Sizes of buffers and strides
    are in bytes.
    """

    g: ConvGeometry
    f: Transforms
    dtype: np.dtype[Any]
    is_w: bool
    by_panel: bool
    block: int
    pieces: int
    depth: int
    threads: int

    @cached_property
    def tiles(self) -> int:
        return tile_count(self.g, self.f)

    @cached_property
    def u(self) -> int:
        """Bytes of the transformed weights (if `by_panel`, of a part of a panel), or of the sums of their gradient."""
        if self.by_panel or self.is_w:
            return self.f.n**2 * self.u_plane
        return self.g.groups * self.u_group

    @cached_property
    def u_group(self) -> int:
        g, bytes_k = self.g, self.g.k_group * self.dtype.itemsize
        if self.is_w:
            return _rounded(bytes_k, PANEL) * _rounded(g.c_group, ROWS)
        return _rounded(bytes_k, LONGEST_VECTOR) * g.c_group * self.f.n**2

    @cached_property
    def u_plane(self) -> int:
        return self.u_group * self.g.groups if self.is_w else _plane(self.depth * PANEL)

    @cached_property
    def row(self) -> int:
        """Bytes of the channels per group of a transformed tile."""
        return _rounded(self.g.c_group * self.dtype.itemsize, LINE)

    @cached_property
    def v_group(self) -> int:
        return (self.block + (0 if self.is_w else ROWS - 1)) * self.row

    @cached_property
    def v_plane(self) -> int:
        return _plane(self.g.groups * self.v_group)

    @cached_property
    def v(self) -> int:
        """Bytes of the transformed tiles."""
        return self.f.n**2 * self.v_plane

    @cached_property
    def d_plane(self) -> int:
        return _plane(self.block * _panels(self.g, self.dtype) * PANEL)

    @cached_property
    def sum_plane(self) -> int:
        return _plane((self.block + ROWS - 1) * PANEL)

    @cached_property
    def sums(self) -> int:
        return self.f.n**2 * self.sum_plane

    @cached_property
    def table(self) -> int:
        """Elements of the table of addresses."""
        return max(self.f.n**2 + (0 if self.is_w else self.block * self.f.m**2), 18)

    @cached_property
    def spare(self) -> int:
        """Bytes of a spare buffer, for a pixel of y that is never read, and for the taps of some channels."""
        return max(self.g.k * self.dtype.itemsize + PANEL, 9 * LONGEST_VECTOR**2 // self.dtype.itemsize)

    @cached_property
    def zeros(self) -> int:
        """Bytes of zeros, for a pixel of x or of dy."""
        return max(self.g.c, self.g.k) * self.dtype.itemsize

    @cached_property
    def shared_bytes(self) -> int:
        shared = self.zeros + bias_size(self.g, self.dtype) * self.dtype.itemsize
        if self.is_w:
            return shared + self.u + self.v + self.f.n**2 * self.d_plane + 3 * LINE
        return shared + (self.v if self.by_panel else self.u) + LINE

    @cached_property
    def worker_bytes(self) -> int:
        if self.is_w:
            return 8 * self.table
        return 8 * self.table + (self.u if self.by_panel else self.v) + self.sums + self.spare + 3 * LINE


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _plane(size: int) -> int:
    """At least this many bytes, as an odd number of cache lines, so that planes begin in different sets of a cache."""
    return (-(-size // LINE) | 1) * LINE


def _panels(g: ConvGeometry, dtype: np.dtype[Any]) -> int:
    """The number of panels of all groups, for the longest vectors."""
    return g.groups * -(-g.k_group * dtype.itemsize // PANEL)


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """An array of this many bytes, aligned to a cache line, so that no vector crosses from one line to the next."""
    room = np.empty(size + LINE, np.uint8)
    start = -address(room) % LINE
    aligned: Array = room[start : start + size].view(dtype)
    return aligned


@lru_cache(maxsize=1024)
def _choose_blocking(problem: Problem, g: ConvGeometry, f: Transforms, threads: int) -> WinogradBlocking:
    if problem.direction == "weight_grad":
        return _block_by_rounds(problem, g, f, threads)
    if tile_count(g, f) < g.k_group:  # transformed tiles take less room than transformed weights
        blocking = _block_by_panel(problem, g, f, threads)
        if blocking.v <= MOST_SHARED and blocking.worker_bytes <= budget(problem, blocking.shared_bytes):
            return blocking
    return _block_by_tiles(problem, g, f, threads)


def _block_by_panel(problem: Problem, g: ConvGeometry, f: Transforms, threads: int) -> WinogradBlocking:
    panels = _panels(g, problem.dtype)
    blocking = WinogradBlocking(g, f, problem.dtype, False, True, tile_count(g, f), panels, _depth(g, problem.dtype), 1)
    return _with_threads(blocking, problem, panels, threads)


@lru_cache(maxsize=1024)
def _block_by_tiles(problem: Problem, g: ConvGeometry, f: Transforms, threads: int) -> WinogradBlocking:
    dtype, tiles = problem.dtype, tile_count(g, f)
    blocking = WinogradBlocking(g, f, dtype, False, False, 1, 1, _depth(g, dtype), 1)
    most = cpu.cache_bytes() // 2 // (f.n**2 * g.groups * blocking.row)
    most = min(most, MOST_TILES) if most >= LEAST_IN_CACHE else TILES_OUTSIDE
    blocking = _shrunk(replace(blocking, block=min(tiles, _rounded(_parts(tiles, most), ROWS))), problem)
    blocks = -(-tiles // blocking.block)
    blocking = replace(blocking, pieces=min(_panels(g, dtype), -(-tasks_for(threads, sums=False) // blocks)))
    return _with_threads(blocking, problem, blocks * blocking.pieces, threads)


def _block_by_rounds(problem: Problem, g: ConvGeometry, f: Transforms, threads: int) -> WinogradBlocking:
    dtype, tiles, xis = problem.dtype, tile_count(g, f), f.n**2
    has_many = xis * g.c_group * g.k * dtype.itemsize > MANY_SUMS
    most = LONG_ROUND if has_many or tiles <= LONG_ROUND else ROUND
    blocking = _shrunk(WinogradBlocking(g, f, dtype, True, False, _parts(tiles, most), 1, 1, 1), problem)
    blocking = replace(blocking, pieces=min(_panels(g, dtype), -(-tasks_for(threads, sums=False) // xis)))
    return _with_threads(blocking, problem, xis * blocking.pieces, threads)


def _shrunk(blocking: WinogradBlocking, problem: Problem) -> WinogradBlocking:
    """The blocking with blocks halved until a thread's buffers fit beside the shared ones."""
    while blocking.block > LEAST_TILES and blocking.worker_bytes > budget(problem, blocking.shared_bytes):
        blocking = replace(blocking, block=max(LEAST_TILES, blocking.block // 2))
    return blocking


def _with_threads(blocking: WinogradBlocking, problem: Problem, tasks: int, threads: int) -> WinogradBlocking:
    room = budget(problem, blocking.shared_bytes)
    return replace(blocking, threads=affordable_threads(tasks, room, blocking.worker_bytes, threads))


def _depth(g: ConvGeometry, dtype: np.dtype[Any]) -> int:
    """The number of input channels that are summed in registers: whole cache lines of them."""
    return _rounded(_parts(g.c_group, SUM_CHANNELS), LINE // dtype.itemsize)


def _parts(count: int, most: int) -> int:
    """The size of the parts of `count`, which are as few and as equal as possible, none larger than `most`."""
    return -(-count // -(-count // most))


class CompiledWinograd:
    """F(m x m, 3 x 3) in float32 and float64. It refuses the same problems as the algorithm on NumPy."""

    def __init__(self, plain: Winograd) -> None:
        self.name, self.exact = plain.name, plain.exact
        self._plain, self._f = plain, plain.transforms

    def refusal(self, problem: Problem) -> str | None:
        return self._plain.refusal(problem)

    def why_not_auto(self, problem: Problem) -> str | None:
        return self._plain.why_not_auto(problem)

    def workspace_bytes(self, problem: Problem) -> int:
        buffers = (
            blocking.shared_bytes + blocking.threads * blocking.worker_bytes for blocking in self._blockings(problem)
        )
        return max((copied_bytes(problem) + taken for taken in buffers), default=0)

    def cost(self, problem: Problem) -> Cost:
        return sum((_cost(blocking) for blocking in self._blockings(problem)), cost_of_copies(problem))

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return problem.direction != "weight_grad"  # a tile is summed by itself, in an order set by its channels

    def _blockings(self, problem: Problem) -> list[WinogradBlocking]:
        if problem.geometry.macs == 0:
            return []
        if problem.direction != "input_grad":
            return [self._choose_blocking(problem, problem.geometry)]
        return [
            self._choose_blocking(problem, g) for g, _ in adjoint_classes(problem.geometry)
        ]  # one, the stride being 1

    def _choose_blocking(self, problem: Problem, g: ConvGeometry) -> WinogradBlocking:
        return _choose_blocking(problem, g, self._f, cpu.workers())

    # ------------------------------------------------------------------------------------------ the passes

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        self._computation(problem, (native(x), native(w), out, bias), activation, is_packed=False).run()

    def prepack(self, problem: Problem, w: Array) -> Array:
        blocking = _block_by_tiles(problem, problem.geometry, self._f, cpu.workers())
        packed = _aligned(blocking.u, blocking.dtype)
        by_group = weights_by_group(native(w), problem.geometry)
        bias_row = padded_bias(blocking.g, blocking.dtype, None)
        run(
            blocking.threads,
            [_job(blocking, (None, by_group, packed, None, bias_row), None, [], relu=False)],
        )
        return packed

    def forward_prepacked(
        self, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self._computation(problem, (native(x), packed, out, bias), activation, is_packed=True).run()

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self.forward(problem, dy, w, out, bias, activation)

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        self._computation(problem, (native(x), native(dy), out, None), "", is_packed=False).run()

    def computation(self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool) -> Computation | None:
        """As `Repeating` describes it."""
        return self._computation(problem, arrays, activation, is_packed=is_packed) if is_native(arrays) else None

    def _computation(self, problem: Problem, arrays: Arrays, activation: str, *, is_packed: bool) -> Computation:
        g = problem.geometry
        if problem.direction == "weight_grad":
            return _weight_gradient(self._choose_blocking(problem, g), arrays)
        if is_packed:
            blocking = _block_by_tiles(problem, g, self._f, cpu.workers())
            return _correlation(blocking, as_they_are, arrays, activation, is_packed=True)
        if problem.direction == "forward":
            views: Views = partial(of_all, g)
            return _correlation(self._choose_blocking(problem, g), views, arrays, activation, is_packed=False)
        before: tuple[Step, ...] = ()
        found = Computation(1, (), g.macs, arrays)
        for part in adjoint_parts(g):  # one, the stride being 1
            if part.geometry is None:
                before = (lambda arrays, _: fill(np, arrays[2], arrays[3], activation),)
                continue
            blocking = self._choose_blocking(problem, part.geometry)
            found = _correlation(blocking, partial(of_part, part, g), arrays, activation, is_packed=False)
        return found._replace(before=before)


def _correlation(
    blocking: WinogradBlocking, views: Views, arrays: Arrays, activation: str, *, is_packed: bool
) -> Computation:
    """The computation of out = activation(correlation of x + bias).

    `views` gives x, the weights (3, 3, groups, c // groups, k // groups), or packed ones, out and bias.
    """
    target, result = written(arrays[2], is_fit=has_adjacent_channels(arrays[2]))
    arrays = *arrays[:2], target, arrays[3]
    _, weights, out, bias = views(*arrays)
    roles, made, dtype = {"y": OUT}, list[Made](), blocking.dtype
    w, packed = (None, weights) if is_packed else (weights, None)
    if is_packed:
        roles["u"] = OTHER
    else:
        w = told("w", OTHER, lambda *arrays: readable_weights(views(*arrays)[1]), arrays, made, roles)
        if not blocking.by_panel:
            packed = _aligned(blocking.u, dtype)
            made.append(Made(("u",), lambda *_: _aligned(blocking.u, dtype), packed))
    x = told("x", READ, lambda *arrays: with_adjacent_channels(views(*arrays)[0]), arrays, made, roles)
    bias_row = padded_bias(blocking.g, dtype, bias)
    if bias is not None:
        made.append(Made((2,), lambda *arrays: padded_bias(blocking.g, dtype, views(*arrays)[3]), bias_row))
    after = list[Step]()
    job = _job(blocking, (x, w, packed, out, bias_row), roles, made, relu=activation == "relu")
    if activation not in ("identity", "relu"):
        after.append(lambda arrays, _: finish(np, views(*arrays)[2], None, activation))
    return Computation(blocking.threads, [job], blocking.g.macs, arrays, after=tuple(after), result=result)


def _job(
    blocking: WinogradBlocking,
    arrays: tuple[Array | None, Array | None, Array | None, Array | None, Array],
    roles: dict[str, int] | None,
    made: list[Made],
    *,
    relu: bool,
) -> Job:
    """The loop that computes y from x and w, or from x and packed weights, or without x transforms w into `packed`.

    `arrays` are x, w, the packed weights, y and the bias as the loop reads it.
    """
    from gpuconv.simd import winograd
    from gpuconv.simd.tile import ROWS as TILE_ROWS
    from gpuconv.simd.tile import VECTOR_BYTES

    x, w, packed, y, bias_row = arrays
    g, dtype, by_m, by_panel = blocking.g, blocking.dtype, _sides(blocking.f), blocking.by_panel
    zeros, kept = zeros_for(blocking.zeros, made, "zeros")
    v = _aligned(blocking.v, dtype) if by_panel else None
    if v is not None:
        made.append(Made(("v",), lambda *_: _aligned(blocking.v, dtype), v))
    panels = g.groups * -(-g.k_group * dtype.itemsize // (2 * VECTOR_BYTES))
    if by_panel:
        firsts, others = -(-blocking.tiles // winograd.TILES_AT_ONCE), panels
    else:
        firsts = 0 if w is None else panels * -(-g.c_group // winograd.PACKED_AT_ONCE)
        others = 0 if x is None else -(-blocking.tiles // blocking.block) * blocking.pieces
    tasks = firsts + others
    filtering = winograd.Filtering(
        **_array_fields(blocking, x, w, y, zeros),
        u=0 if packed is None else address(packed),
        u_group=blocking.u_group,
        u_plane=blocking.u_plane,
        v=0 if v is None else address(v),
        v_rows=TILE_ROWS,
        v_some=TILE_ROWS * blocking.row,
        v_group=blocking.v_group,
        v_plane=blocking.v_plane,
        sum_plane=blocking.sum_plane,
        relu=int(relu),
        by_panel=int(by_panel),
        depth=blocking.depth,
    )
    record = winograd.record(filtering)
    sizes = blocking.u if by_panel else blocking.v, blocking.sums, blocking.spare
    buffers = (Each([_aligned(size, dtype) for _ in range(blocking.threads)]) for size in sizes)
    return Job(
        *(winograd.correlate, record, by_m, bias_row, firsts, tasks, _tables(blocking), *buffers),
        keeps=(x, w, packed, v, y, kept),
        roles=roles,
        made=made,
    )


def _weight_gradient(blocking: WinogradBlocking, arrays: Arrays) -> Computation:
    """The computation of out = the gradient of w."""
    from gpuconv.simd import winograd
    from gpuconv.simd.tile import VECTOR_BYTES

    out, result = written(arrays[2], is_fit=has_adjacent_channels(arrays[2]))
    arrays = *arrays[:2], out, None
    g, dtype, by_m = blocking.g, blocking.dtype, _sides(blocking.f)
    made, roles = list[Made](), {"w": OUT}
    x = told("x", READ, lambda *arrays: with_adjacent_channels(arrays[0]), arrays, made, roles)
    dy = told("y", OTHER, lambda *arrays: with_adjacent_channels(arrays[1]), arrays, made, roles)
    zeros, kept = zeros_for(blocking.zeros, made, "zeros")
    sizes = {"u": blocking.u, "v": blocking.v, "d": blocking.f.n**2 * blocking.d_plane}
    u, v, d = (_aligned(size, dtype) for size in sizes.values())
    for (name, size), array in zip(sizes.items(), (u, v, d), strict=True):
        names = (name, 3) if name == "u" else (name,)
        made.append(Made(names, lambda *_, size=size: _aligned(size, dtype), array))
    filtering = winograd.Filtering(
        **_array_fields(blocking, x, weights_by_group(out, g), dy, zeros),
        u=address(u),
        u_group=blocking.u_group,
        u_panel=_rounded(g.c_group, ROWS) * 2 * VECTOR_BYTES,
        u_plane=blocking.u_plane,
        v=address(v),
        v_rows=blocking.block,
        v_group=blocking.v_group,
        v_plane=blocking.v_plane,
        d=address(d),
        d_panel=blocking.block * 2 * VECTOR_BYTES,
        d_group=blocking.block * _panels(g, dtype) // g.groups * PANEL,
        d_plane=blocking.d_plane,
    )
    record = winograd.record(filtering)
    job = Job(
        *(winograd.weight_gradient, record, by_m, _tables(blocking), u),
        keeps=(x, dy, out, v, d, kept),
        roles=roles,
        made=made,
    )
    return Computation(blocking.threads, [job], g.macs, arrays, result=result)


def _tables(blocking: WinogradBlocking) -> Each:
    """The table of addresses of each thread."""
    return Each([np.empty(blocking.table, np.int64) for _ in range(blocking.threads)])


def _array_fields(
    blocking: WinogradBlocking, x: Array | None, w: Array | None, y: Array | None, zeros: int
) -> dict[str, int]:
    """The addresses and strides of arrays, and sizes. w is (3, 3, groups, c // groups, k // groups)."""
    g, m = blocking.g, blocking.f.m
    tiles_h, tiles_w = (-(-size // m) for size in g.out)
    fields = {"zeros": zeros, "tiles_h": tiles_h, "tiles_w": tiles_w, "tiles": blocking.tiles}
    fields.update(zip(("height", "width", "p", "q"), (*g.spatial, *g.out), strict=True))
    fields.update(pad_h=g.pad[0][0], pad_w=g.pad[1][0], pixel=g.c * blocking.dtype.itemsize)
    fields.update(c=g.c_group, k=g.k_group, groups=g.groups, block=blocking.block, pieces=blocking.pieces)
    for name, array, axes in (("x", x, "nhw"), ("w", w, "rsgck"), ("y", y, "npq")):
        if array is not None:
            fields[name] = address(array)
            fields.update({f"{name}_{axis}": stride for axis, stride in zip(axes, array.strides, strict=False)})
    return fields


def _sides(f: Transforms) -> tuple[Ints, Ints]:
    """The sizes m and n of the transforms as simd/winograd.py takes them, as the lengths of tuples."""
    return (0,) * f.m, (0,) * f.n


def _cost(blocking: WinogradBlocking) -> Cost:
    """The multiply-adds of whole vectors of channels, and the elements of transformed tiles and weights."""
    g, m, xis, lanes = blocking.g, blocking.f.m, blocking.f.n**2, cpu.vector_bytes() // blocking.dtype.itemsize
    c, k = (g.groups * _rounded(channels, lanes) for channels in (g.c_group, g.k_group))
    kernel_macs = PRODUCTS[m] * blocking.tiles * xis * (c if blocking.is_w else g.c) * k / g.groups
    if g.k_group <= lanes:
        kernel_macs *= ONE_VECTOR
    if blocking.is_w and g.c_group <= lanes:  # these fill the rows of a gradient's tile
        kernel_macs *= ONE_VECTOR
    tiles = TRANSFORMS[m] * blocking.tiles * xis * (c + k)
    weights = (WEIGHT_SUMS if blocking.is_w else WEIGHTS) * math.prod(g.w_shape) * xis / 9
    return Cost(kernel_macs=kernel_macs, elements=tiles + weights, steps=(5 if blocking.is_w else 3) * LOOP_STEPS)
