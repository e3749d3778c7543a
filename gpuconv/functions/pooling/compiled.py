"""Pooling by the compiled loops of simd/pooling.py, and its gradients, those of maxima from the argmax computed again.

The loops give the bits that maxima.py and averages.py give. They take no workspace but for copies of arrays whose
channels are not adjacent. A call of theirs can be repeated.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from gpuconv import cpu
from gpuconv.algorithms.cpu.compiled import Computation, told, written
from gpuconv.cpu.copies import with_adjacent_channels
from gpuconv.cpu.parallel_loops import Job, Made
from gpuconv.functions.pooling.averages import Divisor
from gpuconv.functions.pooling.windows import windows_disjoint, windows_of
from gpuconv.geometry import ConvGeometry
from gpuconv.simd.host import LONGEST_VECTOR, address, has_adjacent_channels, numba_is_there, tasks_for, try_numba
from gpuconv.simd.lines import OTHER, OUT, READ
from gpuconv.typing import Array, Ints

LEAST_ELEMENTS = 2**16
"""Minimum elements of x for which a call waits until Numba has been imported: NumPy takes about 50 us for fewer."""

MOST_TAPS = 64
"""The most taps of a window of maxima, unless windows overlap little: with more taps, halves (large.py) are faster."""

MOST_READS = 16
"""The most reads per position, on average, by windows of more taps. On an Intel Xeon with AVX-512 (one core,
2026-11-30) the loops took 0.6 of the time of halves at 1 read, and 2.5 times as long at 64."""

MOST_COUNTED = 2**24
"""Taps that a float32 can count."""

BOX_BYTES = 2**18
"""Bytes of a box of dx, so that it is still in cache when the last window that reaches into it adds its share."""

MACS_PER_TAP = 4
"""Multiply-adds of a dense convolution that take as long as a tap of a window."""

MACS_PER_ELEMENT = 16
"""The same for an element of x, which comes from memory."""

WORTH_THREADS = 2**20
"""Such multiply-adds from which threads pay. Two took 0.83 to 1.13 of the speed of one at 0.25 and 0.6 million, 1.1 to
1.2 at 1.0, and 1.5 to 2.7 from 4 million on (Intel Sapphire Rapids, 2026-12-01)."""

ALL = 2**60
"""A position beyond every input: all taps count."""

LETTERS = {"x": "dhw", "y": "opq", "dx": "dhw"}
"""The axes of the arrays, by which the loops name steps."""

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


TOO_MANY_TAPS = "its windows have so many taps that it is faster to put them together from halves"


def supports_max_pool(g: ConvGeometry, limit: int, *arrays: Array) -> bool:
    """Whether the loops take these arrays, all of one dtype, and are expected to be faster.

    Copies of arrays may take up to `limit` bytes.
    """
    return refusal_of_max_pool(g, limit, *arrays) is None


def refusal_of_max_pool(g: ConvGeometry, limit: int, *arrays: Array) -> str | None:
    """The reason why they do not, in words."""
    if math.prod(g.kernel) > max(MOST_TAPS, MOST_READS * math.prod(g.stride)):
        return TOO_MANY_TAPS
    return refusal(g, limit, *arrays)


def supports_max_pool_grad(g: ConvGeometry, limit: int, *arrays: Array) -> bool:
    return refusal_of_max_pool_grad(g, limit, *arrays) is None


def refusal_of_max_pool_grad(g: ConvGeometry, limit: int, *arrays: Array) -> str | None:
    if math.prod(g.kernel) > MOST_TAPS and not windows_disjoint(g):
        return TOO_MANY_TAPS
    return refusal_of_max_pool(g, limit, *arrays)


def supports(g: ConvGeometry, limit: int, *arrays: Array) -> bool:
    """The same for averages, whose windows have few enough taps to be read one after the other."""
    return refusal(g, limit, *arrays) is None


def refusal(g: ConvGeometry, limit: int, *arrays: Array) -> str | None:
    if not all(array.dtype in DTYPES for array in arrays):
        return "takes float32 and float64"
    if g.c * arrays[0].itemsize < LONGEST_VECTOR:
        return f"takes channels that fill {LONGEST_VECTOR} bytes"
    copied = sum(array.nbytes for array in arrays if not has_adjacent_channels(array))
    if copied > limit:
        return f"needs {copied} bytes for copies with adjacent channels, but settings.max_workspace is {limit}"
    if math.prod(g.kernel) > MOST_COUNTED:
        return TOO_MANY_TAPS
    if math.prod(g.x_shape) >= LEAST_ELEMENTS:
        try_numba()
    elif "numba" not in sys.modules:
        return "needs Numba, for which no call as small as this waits until it is imported"
    return None if numba_is_there() else "needs Numba"


def max_pool(x: Array, g: ConvGeometry, y: Array) -> Computation:
    """Fill y with the largest value of each window: of equal values, such as zeros of both signs, the first."""
    return _pooling("max_pool", g, x, y)


def max_pool_grad(dy: Array, x: Array, g: ConvGeometry, dx: Array) -> Computation:
    """Fill dx: each dy goes to the first tap, in row order, that has the largest value of its window."""
    return _gradient("max_pool_grad", g, x, dy, dx)


def avg_pool(x: Array, g: ConvGeometry, y: Array, divisor: Divisor) -> Computation:
    """Fill y with the mean of each window, whose taps are summed in row order."""
    return _pooling("avg_pool", g, x, y, divisor)


def avg_pool_grad(dy: Array, g: ConvGeometry, dx: Array, divisor: Divisor) -> Computation:
    """Fill dx: each dy is distributed over its window."""
    return _gradient("avg_pool_grad", g, None, dy, dx, divisor)


def _pooling(loop: str, g: ConvGeometry, x: Array, y: Array, divisor: Divisor | None = None) -> Computation:
    threads = _threads(g)
    rows = math.prod(y.shape[:-2])
    block = -(-rows // tasks_for(threads, sums=False))
    return _computation(loop, g, threads, -(-rows // block), {"x": x, "y": y}, divisor, block=block)


def _gradient(
    loop: str, g: ConvGeometry, x: Array | None, dy: Array, dx: Array, divisor: Divisor | None = None
) -> Computation:
    threads = _threads(g)
    disjoint = windows_disjoint(g)
    clears = not disjoint
    if disjoint:
        seen = [int(window.counts(slice(0, window.out)).sum()) for window in windows_of(g)]
        clears = math.prod(seen) < math.prod(g.spatial)
    planes, lines = _box(g, dx, tasks_for(threads, sums=False))
    depth, height, _ = _axes(g.spatial)
    tasks = g.n * -(-depth // planes) * -(-height // lines)
    more = {"planes": planes, "lines": lines, "clears": int(clears), "adds": int(not disjoint)}
    others = {} if x is None else {"x": x}
    return _computation(loop, g, threads, tasks, {"y": dy, **others, "dx": dx}, divisor, **more)


def _box(g: ConvGeometry, dx: Array, tasks: int) -> tuple[int, int]:
    """Planes and rows of a box of dx: as many tasks as that, or more, and few windows that reach into two boxes."""
    (depth, height, _), (stride_d, stride_h, _) = _axes(g.spatial), _axes(g.stride)
    row = max(1, dx.nbytes // max(1, g.n * depth * height))
    if depth > 1:
        return _part(depth, stride_d, row * height, -(-tasks // g.n)), height
    return 1, _part(height, stride_h, row, -(-tasks // g.n))


def _part(size: int, stride: int, each: int, parts: int) -> int:
    """Positions of a box along an axis, of `each` bytes: a multiple of the stride."""
    fitting = max(1, min(-(-size // parts), BOX_BYTES // each))
    return min(size, -(-fitting // (4 * stride)) * 4 * stride)


def _computation(
    loop: str,
    g: ConvGeometry,
    threads: int,
    tasks: int,
    arrays: dict[str, Array],
    divisor: Divisor | None,
    **more: int,
) -> Computation:
    """The computation by a loop; `arrays` are those that it reads, as a call passes them, and the result."""
    from gpuconv.simd import pooling

    (first, read), *others, (last, out) = arrays.items()
    target, result = written(out, is_fit=has_adjacent_channels(out))
    given = read, others[0][1] if others else read, target, None
    made, roles = list[Made](), {last: OUT}
    seen = {last: target, first: told(first, READ, _first_readable, given, made, roles)}
    if others:
        seen[others[0][0]] = told(others[0][0], OTHER, _second_readable, given, made, roles)
    fields = dict.fromkeys(pooling.Pooling._fields, 0)
    for name, array in seen.items():
        steps = _axes(array.strides[1:-1], 0)
        fields |= {name: address(array), f"{name}_n": array.strides[0]}
        fields |= {f"{name}_{letter}": step for letter, step in zip(LETTERS[name], steps, strict=True)}
    sizes = [("dhw", g.spatial), ("opq", g.out), ("trs", g.kernel)]
    fields |= {letter: size for letters, each in sizes for letter, size in zip(letters, _axes(each), strict=True)}
    low, high = _counted(g, divisor)
    first_pads = tuple(lo for lo, _ in g.pad)
    for name, each, filler in (
        ("stride", g.stride, 1), ("dilation", g.dilation, 1), ("pad", first_pads, 0), ("low", low, 0), ("high", high, 1)
    ):  # fmt: skip
        fields |= {f"{name}_{letter}": size for letter, size in zip("dhw", _axes(each, filler), strict=True)}
    fields |= {"pixel": g.c * read.itemsize, "rows": math.prod((g.n, *g.out[:-1])), **more}
    size = (0,) * pooling.vectors_of(fields["pixel"])
    job = Job(
        getattr(pooling, loop), pooling.Pooling(**fields), tasks, np.empty(0, read.dtype), size,
        keeps=seen, roles=roles, made=made,
    )  # fmt: skip
    return Computation(threads if tasks > 1 else 1, [job], _macs(g), given, result=result)


def _first_readable(read: Array, *_: object) -> Array:
    return with_adjacent_channels(read)


def _second_readable(_: object, other: Array, *__: object) -> Array:
    return with_adjacent_channels(other)


def _counted(g: ConvGeometry, divisor: Divisor | None) -> tuple[Ints, Ints]:
    """The positions that count in means, along each axis: the first, and one past the last."""
    if divisor is None or divisor.counted is None:
        return (-ALL,) * g.ndim, (ALL,) * g.ndim
    if divisor.counted == windows_of(g):
        return (0,) * g.ndim, g.spatial
    low = tuple(-lo for lo, _ in g.pad)
    return low, tuple(window.size + first for window, first in zip(divisor.counted, low, strict=True))


def _axes(sizes: Ints, filler: int = 1) -> Ints:
    """Three numbers, one per axis, of which there are two or three."""
    return (filler,) * (3 - len(sizes)) + tuple(sizes)


def _threads(g: ConvGeometry) -> int:
    return cpu.workers() if _macs(g) > WORTH_THREADS else 1


def _macs(g: ConvGeometry) -> int:
    """The multiply-adds of a dense convolution that takes as long."""
    return MACS_PER_TAP * math.prod(g.y_shape) * math.prod(g.kernel) + MACS_PER_ELEMENT * math.prod(g.x_shape)
