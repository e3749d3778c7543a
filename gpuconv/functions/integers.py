"""Convolutions of integers: exact, by the algorithms for floats, strip by strip.

A float32 holds every integer up to 2**24, a float64 every one up to 2**53. Where no sum of products can be larger, not
even a part of one, the convolution of floats makes no error. Small arrays are widened as they are, and the convolution
is called with floats; of large ones x is widened a strip at a time, together with its padding. The results are narrowed
again. Where sums are larger, both arrays are taken apart into pieces of fewer bits,

    x = x0 + 2**a x1 + ...      w = w0 + 2**b w1 + ...      y = sum over i, j of  2**(a i + b j)  conv(xi, wj)

such that each of these convolutions is exact in float64. They are added modulo 2**64, which is exact as y itself fits.

The compiled loops of `direct` on the CPU get by with less: they add up a few products as floats, and these sums as
integers, which they store in the result. So float32 serves wherever it holds the sum of a few products, and the result
fits in 32 bits. x is widened by all threads at the beginning of a call (algorithms/cpu/integers.py).

How large a sum can be is found before anything is computed, from the data: each element of x may be anything from the
least one to the greatest one, or 0, as padding is. A call that repeats an earlier one, and whose result is a new array,
widens x and finds its extremes in one go; if they are too large, what it has computed is dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from gpuconv import backend, cpu, heuristics, planning
from gpuconv.algorithms import ALGORITHMS, Algorithm, Problem
from gpuconv.algorithms.cpu import integers as compiled
from gpuconv.algorithms.epilogue import fill
from gpuconv.algorithms.strips import Strip, Strips, extents_of, gather, tile_elements
from gpuconv.algorithms.wrappers import unwrapped
from gpuconv.cuda import graphs
from gpuconv.errors import AlgorithmError, DTypeError, GeometryError, WorkspaceError
from gpuconv.functions import integers_on_gpu, repeats
from gpuconv.functions.keywords import Keywords
from gpuconv.geometry import ConvGeometry, interned
from gpuconv.simd.host import numba_is_there, try_numba
from gpuconv.support.numbers import si
from gpuconv.typing import Array, DTypeLike, Ints

if TYPE_CHECKING:
    from gpuconv.algorithms.cpu.direct import Direct

DTYPES = ("int8", "uint8", "int16", "int32", "int64")
NARROW = ("int8", "uint8")

SHORT_SUMS = 2**31 - 1
"""The largest sum that is made in integers of 32 bits, of sums in float32."""

FEW_WEIGHTS = 2**14
"""Weights that are added up to find a smaller bound of the sums, where that may allow float32."""

DIRECT = "direct"
"""The algorithm whose loops add up integers."""

EXACT = ("depthwise", DIRECT, "gemm", "loops")
"""Algorithms that add the products themselves, in any order, so that no rounding occurs where every sum is held."""

WEIGHTS_AT_ONCE = 2**13
"""Weights that are added up at a time on the CPU: their copies count for nothing. A GPU takes as many as in a strip,
for each step is several launches there."""

NARROWED_AT_ONCE = 2**13
"""Elements of a result that are narrowed where they lie, by way of a copy that stays in the first cache."""

MOST_AT_ONCE = 2**24
"""The most elements of x that are widened at once for loops that store integers."""

STRIP_ELEMENTS = 2**20
"""Elements of x and y that are widened at a time: enough for all threads, and few enough to stay in cache."""


def is_integer(array: Array) -> bool:
    return array.dtype.kind in "iu"


def result_dtype(caller: str, x: Array, w: Array) -> np.dtype[Any]:
    """The dtype of the convolution: int32 for arrays of 8 bits, int64 for the others.

    Raises
    ------
    DTypeError
        If one of the arrays holds no integers of `DTYPES`, or they differ and are not both of 8 bits.
    """
    return _result_dtype(caller, x.dtype, w.dtype)


@lru_cache(maxsize=256)
def _result_dtype(caller: str, of_x: np.dtype[Any], of_w: np.dtype[Any]) -> np.dtype[Any]:
    found = {"x": backend.native(of_x).name, "w": backend.native(of_w).name}
    words = ", ".join(f"{name} is {dtype}" for name, dtype in found.items())
    if not set(found.values()) <= set(DTYPES):
        raise DTypeError(
            f"{caller}: {words}, but convolutions of integers take {', '.join(DTYPES)}. Cast with .astype."
        )
    if set(found.values()) <= set(NARROW):
        return np.dtype(np.int32)
    if found["x"] != found["w"]:
        raise DTypeError(
            f"{caller}: the arrays must share one dtype, but for int8 with uint8: {words}. Cast some with .astype."
        )
    return np.dtype(np.int64)


class Reach(NamedTuple):
    """How far a convolution of integers may reach: x, w, and all sums of products together with the bias."""

    x: int
    w: int
    sums: int
    least: int
    most: int


def reach_of(
    xp: ModuleType, x: Array, w: Array, bias: Array | None, is_enough: Callable[[Reach], bool] | None = None
) -> Reach:
    """The least and the greatest that a result may be, from the extremes of x and the weights; w is channels last.

    Where a coarser answer `is_enough`, that is the answer: from the extremes of both arrays, or even of their dtypes.
    """
    if x.size == 0 or w.size == 0:
        low, high = (0, 0) if bias is None or bias.size == 0 else (int(bias.min()), int(bias.max()))
        return Reach(0, 0, 0, min(low, 0), max(high, 0))
    coarse = _coarse(w, bias)
    is_enough = is_enough or (lambda reach: -reach.least <= 2**24 >= reach.most)

    if x.dtype.itemsize == 1 and is_enough(reach := coarse(*(255 if a.dtype.kind == "u" else 128 for a in (x, w)))):
        return reach
    w_min, w_max = _extremes(xp, w)
    w_most = max(-w_min, w_max)
    x_min, x_max = _extremes(xp, x)
    x_most = max(-x_min, x_max)
    if is_enough(reach := coarse(x_most, w_most)):
        return reach
    above, below = _column_sums(xp, w, positive=True), _column_sums(xp, w, positive=False)
    most, least = above * x_max + below * x_min, above * x_min + below * x_max
    sums = max(int(most.max()), -int(least.min()))
    if bias is not None:
        offset = backend.to_numpy(bias).astype(object)
        most, least = most + np.maximum(offset, 0), least + np.minimum(offset, 0)
    return Reach(x_most, w_most, sums, int(least.min()), int(most.max()))


def _coarse(w: Array, bias: Array | None) -> Callable[[int, int], Reach]:
    """How far a convolution reaches at the most, from the largest sizes of elements of x and of w."""
    terms = math.prod(w.shape[:-1])
    least, most = (0, 0) if bias is None else (min(int(bias.min()), 0), max(int(bias.max()), 0))

    def coarse(x_most: int, w_most: int) -> Reach:
        sums = x_most * w_most * terms
        return Reach(x_most, w_most, sums, least - sums, most + sums)

    return coarse


def _extremes(xp: ModuleType, array: Array) -> tuple[int, int]:
    """The least and the greatest of the elements and 0."""
    least, greatest = compiled.extremes(array) if xp is np else (int(array.min()), int(array.max()))
    return min(least, 0), max(greatest, 0)


def _column_sums(xp: ModuleType, w: Array, *, positive: bool) -> Array:
    """The sums of the positive or of the negative weights per output channel, as Python's integers."""
    pick = xp.maximum if positive else xp.minimum
    high, low = xp.zeros(w.shape[-1], np.int64), xp.zeros(w.shape[-1], np.int64)
    step = max(1, (WEIGHTS_AT_ONCE if xp is np else STRIP_ELEMENTS) // w.shape[-1])
    for tap in np.ndindex(*w.shape[:-2]):
        for first in range(0, w.shape[-2], step):
            some = pick(w[(*tap, slice(first, first + step))], 0)
            if some.dtype.itemsize == 8:  # some = its upper half * 2**32 + its lower half, which is not negative
                high += (some >> 32).sum(axis=0)
                some &= 0xFFFFFFFF
            low += some.sum(axis=0, dtype=np.int64)
    return backend.to_numpy(high).astype(object) * 2**32 + backend.to_numpy(low).astype(object)  # type: ignore[no-any-return]


def check_reach(caller: str, reach: Reach, dtype: np.dtype[Any], g: ConvGeometry) -> None:
    """Raise an OverflowError if a result might not fit."""
    limits = np.iinfo(dtype)
    if reach.least < limits.min or reach.most > limits.max:
        terms = math.prod(g.kernel) * g.c_group
        remedy = "Cast x and w to int16" if dtype == np.int32 else "Scale x or w down, or cast both to float64"
        raise OverflowError(
            f"{caller}: sums of {terms} products may reach from {reach.least} to {reach.most}, as far as the weights "
            f"and the least and the greatest element of x can tell, but the result is {dtype}, which holds "
            f"{limits.min} to {limits.max}. {remedy}."
        )


# -------------------------------------------------------------------------------------------------- pieces


class Piece(NamedTuple):
    """Some bits of the elements of an array: `bits` from number `first` on, and the sign with the last ones."""

    first: int
    bits: int
    is_last: bool

    def of(self, array: Array) -> Array:
        if self.first:
            array = array >> self.first
        return array if self.is_last else array & ((1 << self.bits) - 1)


def _pieces(most: int, bits: int) -> tuple[Piece, ...]:
    length = max(most.bit_length(), 1)
    return tuple(Piece(first, bits, first + bits >= length) for first in range(0, length, bits))


WHOLE = (Piece(0, 64, is_last=True),)
"""An array in one piece."""


def dtype_of_loops(reach: Reach, g: ConvGeometry) -> np.dtype[Any] | None:
    """The dtype in which compiled loops make sums of a few products, which they add up as integers; None if in neither.

    What is added up may wrap around on the way: the result alone has to fit.
    """
    most = reach.x * reach.w * compiled.products_at_once(g)
    if most <= 2**24 and reach.least >= -SHORT_SUMS and reach.most <= SHORT_SUMS:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if most <= 2**53 else None


def pieces_of(reach: Reach, g: ConvGeometry) -> tuple[np.dtype[Any], tuple[Piece, ...], tuple[Piece, ...]]:
    """The dtype to compute in, and the pieces of x and of w."""
    whole = WHOLE
    if reach.sums <= 2**24:
        return np.dtype(np.float32), whole, whole
    if reach.sums <= 2**53:
        return np.dtype(np.float64), whole, whole
    room = 53 - (math.prod(g.kernel) * g.c_group - 1).bit_length()
    of_x, of_w = max(reach.x.bit_length(), 1), max(reach.w.bit_length(), 1)
    bits_x = min(of_x, max(room // 2, room - of_w))
    return np.dtype(np.float64), _pieces(reach.x, bits_x), _pieces(reach.w, min(of_w, room - bits_x))


# -------------------------------------------------------------------------------------------------- plans


class Plan(NamedTuple):
    """The strips of a convolution, the first and largest as a problem of floats, and who computes that one."""

    strips: Strips
    problem: Problem
    algorithm: Algorithm
    bytes: int
    of_x: tuple[Piece, ...]
    of_w: tuple[Piece, ...]
    is_whole: bool = False
    """Whether x is widened at once and without padding, for a convolution of floats as a user would call it."""
    in_loops: bool = False
    """Whether compiled loops add up the sums as integers, and store them in the result."""

    @property
    def has_pieces(self) -> bool:
        return len(self.of_x) * len(self.of_w) > 1


def plan_of(
    reach: Reach, g: ConvGeometry, device: str, limit: int, algorithm: str, caller: str, *, contiguous: bool = False
) -> Plan:
    """Strips that stay under `limit` bytes, together with what the algorithm takes beside them.

    `contiguous`: all arrays are, channels last.
    """
    workers = cpu.workers()
    if may_use_loops(device, algorithm):
        dtype = dtype_of_loops(reach, g)
        plan = None if dtype is None else _plan_in_loops(dtype, g, limit, contiguous, caller, workers)
        if plan is not None:
            return plan
    return _plan_of(*pieces_of(reach, g), g, device, limit, algorithm, caller, workers, numba_is_there())


def may_use_loops(device: str, algorithm: str) -> bool:
    """Whether compiled loops may add up integers."""
    if device != "cpu" or algorithm not in ("auto", DIRECT):
        return False
    try_numba()
    return numba_is_there()


@lru_cache(maxsize=1024)
def _plan_in_loops(
    dtype: np.dtype[Any], g: ConvGeometry, limit: int, contiguous: bool, caller: str, *_: object
) -> Plan | None:
    """A plan by which compiled loops store integers; None if they do not fit into `limit`."""
    size_x = math.prod(g.x_shape)
    widened = (size_x + math.prod(g.w_shape)) * dtype.itemsize
    inner = Problem(g, dtype, "cpu", max_workspace=max(0, limit - widened), contiguous=contiguous)
    chosen = _choose(inner, DIRECT, caller)
    needed = widened + chosen.workspace_bytes(inner)
    if needed <= limit and size_x <= MOST_AT_ONCE:
        whole = Strips((g.n, *g.out), g.n * math.prod(g.out))
        return Plan(whole, inner, chosen, needed, WHOLE, WHOLE, is_whole=True, in_loops=True)
    try:
        return _plan_of_strips(dtype, WHOLE, WHOLE, g, "cpu", limit, DIRECT, caller, in_loops=True)
    except WorkspaceError:
        return None


@lru_cache(maxsize=1024)
def _plan_of(
    dtype: np.dtype[Any],
    of_x: tuple[Piece, ...],
    of_w: tuple[Piece, ...],
    g: ConvGeometry,
    device: str,
    limit: int,
    algorithm: str,
    caller: str,
    *_: object,
) -> Plan:
    in_one_piece = len(of_x) * len(of_w) == 1
    if in_one_piece and math.prod(g.x_shape) + math.prod(g.y_shape) <= 4 * STRIP_ELEMENTS:
        widened = g.bytes(dtype.itemsize)
        inner = Problem(g, dtype, device, max_workspace=max(0, limit - widened))
        chosen = _choose(inner, algorithm, caller)
        needed = widened + chosen.workspace_bytes(inner)
        if needed <= limit:
            return Plan(Strips((g.n, *g.out), g.n * math.prod(g.out)), inner, chosen, needed, of_x, of_w, is_whole=True)
    return _plan_of_strips(dtype, of_x, of_w, g, device, limit, algorithm, caller)


def _plan_of_strips(
    dtype: np.dtype[Any],
    of_x: tuple[Piece, ...],
    of_w: tuple[Piece, ...],
    g: ConvGeometry,
    device: str,
    limit: int,
    algorithm: str,
    caller: str,
    *,
    in_loops: bool = False,
) -> Plan:
    # Of each element of w, x and y: floats; and with pieces, integers before they are floats and after.
    in_one_piece = len(of_x) * len(of_w) == 1
    bytes_w, bytes_x, bytes_y = (dtype.itemsize,) * 3 if in_one_piece else (16, 24, 32)
    if in_loops:
        bytes_y = 0
    rows = STRIP_ELEMENTS // max(1, g.k)
    while True:
        strips = Strips((g.n, *g.out), max(1, rows))
        extents = extents_of(strips[0])
        elements = tile_elements(g, extents), math.prod(extents) * g.k
        widened = math.prod(g.w_shape) * bytes_w + elements[0] * bytes_x + elements[1] * bytes_y
        inner = Problem(interned(_strip_geometry(g, extents)), dtype, device, max_workspace=max(0, limit - widened))
        chosen = _choose(inner, algorithm, caller)
        needed = widened + chosen.workspace_bytes(inner)
        if needed <= limit and (sum(elements) <= 4 * STRIP_ELEMENTS or rows <= 1):
            return Plan(strips, inner, chosen, needed, of_x, of_w, in_loops=in_loops)
        if rows <= 1:
            raise WorkspaceError(
                f"{caller}: integers are widened to {dtype} strip by strip, which takes {needed} bytes for {g} by "
                f"{chosen.name!r}, but max_workspace is {limit}. Raise it."
            )
        rows = max(1, min(rows, math.prod(extents)) // 2)


def _strip_geometry(g: ConvGeometry, extents: Ints) -> ConvGeometry:
    """The convolution of a strip of these extents, whose input has its padding already."""
    sizes = ((e - 1) * s + span for e, s, span in zip(extents[1:], g.stride, g.span, strict=True))
    return replace(g, n=extents[0], spatial=tuple(sizes), pad=((0, 0),) * g.ndim, pad_mode="zeros")


def _choose(problem: Problem, algorithm: str, caller: str) -> Algorithm:
    if algorithm not in ("auto", *EXACT):
        raise AlgorithmError(
            f"{caller}: algorithm={algorithm!r} is not for integers. Choose 'auto' or one of "
            f"{', '.join(map(repr, EXACT))}, which are exact."
        )
    named = [a for a in ALGORITHMS if a.name == algorithm or (algorithm == "auto" and a.name in EXACT)]
    willing = [a for a in named if a.refusal(problem) is None and (algorithm != "auto" or not a.why_not_auto(problem))]
    if not willing:
        raise AlgorithmError(
            f"{caller}: algorithm={algorithm!r} does not support {problem.geometry} in {problem.dtype}: "
            f"{named[0].refusal(problem)}. Choose another, or 'auto'."
        )
    fitting = [a for a in willing if a.workspace_bytes(problem) <= problem.max_workspace]
    if not fitting:
        return min(willing, key=lambda a: a.workspace_bytes(problem))
    return heuristics.rank(problem, fitting)[0]


# -------------------------------------------------------------------------------------------------- computation


def convolve(
    xp: ModuleType, plan: Plan, g: ConvGeometry, x: Array, w: Array, out: Array, bias: Array | None, *, relu: bool
) -> None:
    """out = conv(x, w) + bias, with 0 in the place of negative results if `relu`; arrays are channels last."""
    largest = extents_of(plan.strips[0])
    tiles, ys = (
        xp.empty(tile_elements(g, largest), plan.problem.dtype),
        xp.empty(0 if plan.in_loops else math.prod(largest) * g.k, plan.problem.dtype),
    )
    compute = _in_pieces if plan.has_pieces else _at_once
    if not plan.has_pieces:
        w = w.astype(plan.problem.dtype, order="C")
    for strip in plan.strips:
        extents = extents_of(strip)
        problem = replace(plan.problem, geometry=interned(_strip_geometry(g, extents)))
        if plan.in_loops:
            tile = gather(xp, x, g, strip, tiles, copies=True)
            plan.algorithm.forward(problem, tile, w, out[strip], bias, "relu" if relu else "identity")
            continue
        y, target = ys[: math.prod(extents) * g.k].reshape(*extents, g.k), out[strip]
        compute(xp, plan, problem, g, strip, x, w, tiles, y, target)
        _finish(xp, target, bias, relu=relu)


@dataclass(frozen=True)
class _Again:
    """How a call of integers that repeats an earlier one is computed, if its integers are no larger.

    A call whose result nobody has yet `looks_after` it has computed: then x is read only once.
    """

    call: Keywords
    g: ConvGeometry
    is_enough: Callable[[Reach], bool]
    correlation: compiled.Correlation
    activation: str | None
    looks_after: bool
    place: repeats.Place

    def __call__(self, x: Array, w: Array, out: Array, bias: Array | None = None) -> None:
        call = self.call
        x_last, w_last, target = call.channels_last(x), call.channels_last(w, is_w=True), call.channels_last(out)
        if self.looks_after:
            w_min, w_max = _extremes(np, w_last)
            found = self.correlation(x_last, w_last, target, bias)
            x_most = 0 if found is None else max(-int(found.min()), int(found.max()))
            if self.serves(_coarse(w_last, bias)(x_most, max(-w_min, w_max)), out):
                return
        elif self.serves(reach_of(np, x_last, w_last, bias, self.is_enough), out):
            self.correlation(x_last, w_last, target, bias)
            return
        forward(call, np, x, w, bias, self.activation, out, place=self.place)

    def serves(self, reach: Reach, out: Array) -> bool:
        """Whether the loops are exact for a convolution that reaches so far."""
        limit = 2 ** (8 * out.itemsize - 1)
        fits = -limit <= reach.least and reach.most < limit
        return fits and dtype_of_loops(reach, self.g) in (np.float32, self.correlation.dtype)


class _Convolves(Protocol):
    """The keywords of a call with what they are for."""

    def forward(self, x: Array, w: Array, bias: Array | None, activation: str | None, out: Array | None) -> Array: ...


def _as_floats(call: Keywords, plan: Plan, x: Array, w: Array, out: Array, bias: Array | None, *, relu: bool) -> None:
    """`convolve` by a call with floats, which finds at once what it chose in an earlier one."""
    xp, dtype = plan.problem.xp, plan.problem.dtype
    floats = call._replace(
        layout="channels_last", algorithm=plan.algorithm.name, precision="strict",
        max_workspace=plan.problem.max_workspace,
    )  # fmt: skip
    in_place = xp is np and out.dtype.itemsize == dtype.itemsize and out.flags.c_contiguous
    y: Array = out.view(dtype) if in_place else xp.empty(out.shape, dtype)
    cast("_Convolves", floats).forward(x.astype(dtype, order="C"), w.astype(dtype, order="C"), None, None, y)
    if in_place:  # memory that is new to the process costs more than to narrow it
        integers, values = out.reshape(-1), y.reshape(-1)
        for first in range(0, out.size, NARROWED_AT_ONCE):
            some = slice(first, first + NARROWED_AT_ONCE)
            integers[some] = values[some].astype(out.dtype)
    else:
        xp.copyto(out, y, casting="unsafe")
    _finish(xp, out, bias, relu=relu)


def _finish(xp: ModuleType, target: Array, bias: Array | None, *, relu: bool) -> None:
    if bias is not None:
        target += bias
    if relu:
        xp.maximum(target, 0, out=target)


def _at_once(
    xp: ModuleType,
    plan: Plan,
    problem: Problem,
    g: ConvGeometry,
    strip: Strip,
    x: Array,
    w: Array,
    tiles: Array,
    y: Array,
    target: Array,
) -> None:
    tile = gather(xp, x, g, strip, tiles, copies=True)
    plan.algorithm.forward(problem, tile, w, y, None, "identity")
    xp.copyto(target, y, casting="unsafe")


def _in_pieces(
    xp: ModuleType,
    plan: Plan,
    problem: Problem,
    g: ConvGeometry,
    strip: Strip,
    x: Array,
    w: Array,
    tiles: Array,
    y: Array,
    target: Array,
) -> None:
    whole = gather(xp, x, g, strip, xp.empty(len(tiles), backend.native(x.dtype)), copies=True)
    tile = tiles[: whole.size].reshape(whole.shape)
    total = xp.zeros(y.shape, np.uint64)
    for a, b in itertools.product(plan.of_x, plan.of_w):
        if a.first + b.first < 64:  # beyond that it adds multiples of 2**64
            xp.copyto(tile, a.of(whole), casting="unsafe")
            plan.algorithm.forward(problem, tile, b.of(w).astype(problem.dtype, order="C"), y, None, "identity")
            total += y.astype(np.int64).view(np.uint64) << np.uint64(a.first + b.first)
    xp.copyto(target, total.view(np.int64), casting="unsafe")


# -------------------------------------------------------------------------------------------------- calls


def forward(
    call: Keywords,
    xp: ModuleType,
    x: Array,
    w: Array,
    bias: Array | None,
    activation: str | None,
    out: Array | None,
    *,
    wraps: bool = False,
    place: repeats.Place | None = None,
) -> Array:
    """`forward` of integers, which have a result of another dtype than x, and no algorithm of their own.

    `wraps`: a sum that may not fit in an int64 is right modulo 2**64, where otherwise it is refused. Calls that repeat
    this one find in `place` what it learns, on a GPU its launches, if they need not look at the data.
    """
    dtype = result_dtype(call.caller, x, w)
    if bias is not None and bias.dtype != dtype:
        raise DTypeError(f"{call.caller}: bias is {bias.dtype}, but the result is {dtype}. Give bias that dtype.")
    g = call.geometry(x.shape, w.shape)
    asked, activation = activation, call.check_activation(activation, dtype)
    planning.check_precision(call.precision, call.caller)
    call.check_bias(bias, g.k)
    call.check_out(out, g, g.y_shape, dtype)
    device = backend.device_of(x)
    with backend.on_device_of(x), call.out_of_memory(device, g.y_shape, dtype):
        x_last, w_last = call.channels_last(x), call.channels_last(w, is_w=True)
        wraps = wraps and dtype == np.int64
        by_kernel = integers_on_gpu.serve(device, call.algorithm, g, x_last.dtype)
        is_enough = _is_enough(call.algorithm, g, device, dtype)
        if by_kernel and (wraps or (bias is None and integers_on_gpu.always_fit(g, x.dtype, w.dtype, dtype))):
            reach = None
        else:
            graphs.check_if_captured(xp, f"{call.caller} of integers, which looks at the extremes of x first")
            reach = reach_of(xp, x_last, w_last, bias, is_enough)
            if not wraps:
                check_reach(call.caller, reach, dtype, g)
        result = call.result(xp, out, (x, w, bias), g.y_shape, dtype)
        target = call.channels_last(result)
        elsewhere = 0 if out is None or result is out else result.nbytes
        if reach is None or by_kernel:
            place = place if reach is None and elsewhere == 0 and call.layout == "channels_last" else None
            integers_on_gpu.convolve(call, xp, g, x_last, w_last, target, bias, activation, elsewhere, place)
            return call.deliver(result, out)
        limit = call.limit_beside(elsewhere)
        contiguous = all(array.flags.c_contiguous for array in (x_last, w_last, target))
        plan = plan_of(reach, g, device, limit, call.algorithm, call.caller, contiguous=contiguous)
        if g.macs == 0:
            fill(xp, target, bias, activation)
        elif plan.is_whole and plan.in_loops:
            direct = unwrapped(plan.algorithm, plan.problem)
            arrays = x_last, w_last, target, bias
            correlation = compiled.correlate(cast("Direct", direct), plan.problem, *arrays, activation)
            if place is not None and correlation is not None and is_enough is not None:
                is_coarse = reach == _coarse(w_last, bias)(reach.x, reach.w)
                looks_after = out is None and x.itemsize > 1 and correlation.widens and is_coarse
                again = _Again(call, g, is_enough, correlation, asked, looks_after, place)
                place.leave_on_cpu(result.shape, dtype, again)
        elif plan.is_whole:
            _as_floats(call, plan, x_last, w_last, target, bias, relu=activation == "relu")
        else:
            convolve(xp, plan, g, x_last, w_last, target, bias, relu=activation == "relu")
        return call.deliver(result, out)


def _is_enough(algorithm: str, g: ConvGeometry, device: str, dtype: np.dtype[Any]) -> Callable[[Reach], bool] | None:
    """Whether a coarse reach tells how compiled loops compute, as well as a fine one would."""
    if not may_use_loops(device, algorithm):
        return None
    limits, weights = np.iinfo(dtype), math.prod(g.w_shape)
    least, most = int(limits.min), int(limits.max)

    def is_enough(reach: Reach) -> bool:
        found = dtype_of_loops(reach, g)
        fits = least <= reach.least and reach.most <= most
        return fits and found is not None and (found == np.float32 or weights > FEW_WEIGHTS)

    return is_enough


def explain(call: Keywords, xp: ModuleType, x: Array, w: Array) -> planning.ConvPlan:
    """The plan of a convolution of these arrays."""
    dtype, g = result_dtype(call.caller, x, w), call.geometry(x.shape, w.shape)
    x, w = call.channels_last(x), call.channels_last(w, is_w=True)
    with backend.on_device_of(x):
        reach = reach_of(xp, x, w, None, _is_enough(call.algorithm, g, backend.device_of(x), dtype))
        check_reach(call.caller, reach, dtype, g)
        of_both = backend.native(x.dtype), backend.native(w.dtype)
        return _explained(reach, g, *of_both, backend.device_of(x), call.limit_beside(0), call.algorithm, call.caller)


def plan(
    g: ConvGeometry, dtype: DTypeLike, device: str, algorithm: str, max_workspace: int | None, caller: str
) -> planning.ConvPlan:
    """The plan of a convolution of data that are as large as they may be; `dtype` is that of x and w."""
    number = backend.as_number(dtype, caller)
    if g.banks:
        raise GeometryError(f"{caller}: {g} has weights for each sample, but those of integers are for all samples.")
    limits = np.iinfo(result_dtype(caller, np.empty(0, number), np.empty(0, number)))
    most = integers_on_gpu.most_of(number)
    sums = min(math.prod(g.kernel) * g.c_group * most * most, limits.max)  # larger ones are refused
    device, limit = backend.check_device(device, caller), planning.workspace_limit(max_workspace, caller)
    algorithm = planning.check_algorithm(algorithm, caller)
    return _explained(Reach(most, most, sums, -sums, sums), g, number, number, device, limit, algorithm, caller)


def are_integers(dtype: DTypeLike) -> bool:
    """Whether a dtype is one of integers; what is none is nobody's fault yet."""
    try:
        return np.dtype(dtype).kind in "iu"
    except (SyntaxError, TypeError, ValueError):
        return False


def _explained(
    reach: Reach, g: ConvGeometry, x: np.dtype[Any], w: np.dtype[Any], device: str, limit: int, algorithm: str,
    caller: str,
) -> planning.ConvPlan:  # fmt: skip
    """The plan of the floats that a strip is computed with, under the dtypes of the integers; or that of their kernel.

    Of what else might serve it has the workspace for a strip.
    """
    by_kernel = integers_on_gpu.serve(device, algorithm, g, x)
    plan = plan_of(reach, g, device, limit, "auto" if by_kernel else algorithm, caller)
    of_floats = planning.plan_of(plan.problem, plan.algorithm.name, caller)
    candidates = [
        one if one.name in EXACT else replace(one, status="refused", note="rounds", workspace=None)
        for one in of_floats.candidates
    ]
    candidates[0] = replace(
        candidates[0], workspace=plan.bytes, note=f"{si(plan.bytes)}B workspace, widened strips included"
    )
    words = f"{x} by {w} in {len(plan.of_x) * len(plan.of_w)} x {plan.problem.dtype}"
    if by_kernel:
        words = f"{x} by {w}"
        needed = integers_on_gpu.KERNELS.workspace_bytes(Problem(g, x, device, max_workspace=limit))
        note = f"{si(needed)}B workspace" if needed else "no workspace"
        others = [
            replace(one, status="possible") if one.status == "chosen" else one
            for one in candidates
            if one.name != integers_on_gpu.KERNELS.name
        ]
        candidates = [planning.Candidate("direct", "chosen", f"{note}; a kernel of integers", needed), *others]
    return replace(of_floats, geometry=g, dtype=words, candidates=tuple(sorted(candidates, key=_rank)))


def _rank(candidate: planning.Candidate) -> int:
    return ("chosen", "possible", "refused").index(candidate.status)
