"""Convolutions of chunked Dask arrays, for images that fit neither one memory nor one machine.

    >>> import dask.array as da
    >>> import numpy as np
    >>> import gpuconv.dask
    >>> x = da.ones((1, 1000, 1000, 3), chunks=(1, 250, 250, 3))
    >>> y = gpuconv.dask.conv2d(x, np.ones((5, 5, 3, 8)), pad="same")
    >>> y.shape, y.numblocks
    ((1, 1000, 1000, 8), (1, 4, 4, 1))
    >>> float(y[0, 500, 500, 0].compute())
    75.0

Nothing is computed before Dask is asked to. Chunks hold NumPy or CuPy arrays, and every chunk of a result is one call
of gpuconv on the part of the input that it reads: geometry says which part that is, for any stride, dilation, padding
and padding mode.

**Chunks** divide the batch and space. The channels of an input in several chunks are gathered into one by Dask's
`rechunk`, so memory is then bounded by chunks that hold all channels; weights and bias are one chunk each. An output
is computed with the chunk that holds the middle of its window, so the chunks of a "same" convolution of stride 1 are
those of its input, while others follow from stride and padding. A chunk that no output belongs to has no counterpart.

**Memory.** A chunk is computed from a copy of what it reads, its neighbours' margins among it. The margins are copied
out of the neighbours, which thus need not stay for them. Dask decides the order; a recent one holds some rows of
chunks at a time. `max_workspace` holds for each chunk, and a scheduler of several threads computes as many at a time.
The chunks of a NumPy array, which `dask.array.from_array` cuts into views, are read in place, margins and all.

**Threads.** Several threads of a scheduler share the cores that gpuconv may use: each chunk is computed by as many as
are left to it. `compute` puts the result together with all of them.

**Bits.** The algorithms "direct" and "loops" sum each output in the same order wherever it lies. "auto" chooses for
each chunk by the chunk's size. Name an algorithm if results must not depend on how an image is divided.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import dask.array as da
import numpy as np
from dask.array.core import finalize, slices_from_chunks
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from numpy.lib.stride_tricks import as_strided

from gpuconv import backend, cpu
from gpuconv.cpu.allocator import raise_mmap_threshold
from gpuconv.errors import GeometryError
from gpuconv.functions import by_sample
from gpuconv.functions.call import Call
from gpuconv.geometry import ConvGeometry
from gpuconv.typing import (
    ActivationName,
    AlgorithmName,
    Array,
    Ints,
    IntsLike,
    Layout,
    PadLike,
    PadMode,
    Pair,
    Precision,
)

__all__ = ["conv1d", "conv2d", "conv3d"]


def conv1d(
    x: da.Array,
    w: Array | da.Array,
    bias: Array | da.Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> da.Array:
    """Convolve a batch of signals: x (N, W, C), w (KW, C // groups, F) -> (N, OW, F).

    Everything else is as in `conv2d`, with one spatial axis; pad="causal" is for this one.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import gpuconv.dask
    >>> x = da.arange(6.0, chunks=2).reshape(1, 6, 1)
    >>> gpuconv.dask.conv1d(x, np.ones((3, 1, 1)), pad=1, pad_mode="circular").compute().ravel()
    array([ 6.,  3.,  6.,  9., 12.,  9.])
    """
    call = Call.of(
        "conv1d", 1, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, x, w, bias, activation)


def conv2d(
    x: da.Array,
    w: Array | da.Array,
    bias: Array | da.Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> da.Array:
    """Convolve a batch of images, as `gpuconv.conv2d` does.

    Parameters
    ----------
    x : dask.array.Array (N, H, W, C)
        Of NumPy or CuPy arrays, in chunks of known sizes along any axis; see above for those of channels.
    w : array (KH, KW, C // groups, F), or (N, KH, KW, C // groups, F)
        Of the library that the chunks of x are of, or a Dask array of it.
    bias : array (F,) or (N, F), optional
        As w.
    stride, pad, dilation, groups, pad_mode, activation, layout, algorithm, precision
        As in `gpuconv.conv2d`.
    max_workspace : int, optional
        As in `gpuconv.conv2d`, for each chunk.

    Returns
    -------
    dask.array.Array (N, OH, OW, F)
        Not computed yet. Its shape, dtype, chunks and meta are known.

    Raises
    ------
    GeometryError, TypeError, DTypeError, AlgorithmError, WorkspaceError
        As `gpuconv.conv2d`, before anything is computed; or if the sizes of the chunks of x are not known.
    OverflowError, DeviceError
        As `gpuconv.conv2d`, when a chunk is computed: only then are its values and its device known.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import gpuconv.dask
    >>> x = da.ones((1, 6, 6, 1), chunks=(1, 4, 3, 1))
    >>> y = gpuconv.dask.conv2d(x, np.ones((3, 3, 1, 1)), pad=1, stride=2)
    >>> y.chunks
    ((1,), (2, 1), (2, 1), (1,))
    >>> y[0, :, :, 0].compute()
    array([[4., 6., 6.],
           [6., 9., 9.],
           [6., 9., 9.]])
    """
    call = Call.of(
        "conv2d", 2, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, x, w, bias, activation)


def conv3d(
    x: da.Array,
    w: Array | da.Array,
    bias: Array | da.Array | None = None,
    *,
    stride: IntsLike = 1,
    pad: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    activation: ActivationName | None = None,
    layout: Layout = "channels_last",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> da.Array:
    """Convolve a batch of volumes: x (N, D, H, W, C), w (KD, KH, KW, C // groups, F) -> (N, OD, OH, OW, F).

    Everything else is as in `conv2d`, with three spatial axes.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import gpuconv.dask
    >>> x = da.ones((1, 8, 8, 8, 2), chunks=4)
    >>> gpuconv.dask.conv3d(x, np.ones((3, 3, 3, 2, 1)), pad="same").chunks
    ((1,), (4, 4), (4, 4), (4, 4), (1,))
    """
    call = Call.of(
        "conv3d", 3, stride=stride, pad=pad, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout=layout, algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, x, w, bias, activation)


WORTH_A_THREAD = 2**20
"""Minimum bytes of a result that several threads put together."""


# -------------------------------------------------------------------------------------------------- along one axis


class _Piece(NamedTuple):
    """Positions from `start` to `stop` of chunk number `chunk`, which has `size`."""

    chunk: int
    start: int
    stop: int
    size: int


class _Run(NamedTuple):
    """`length` positions of a part from `at` on: those of piece `piece` from `first`, in steps of -1, 0 or 1."""

    at: int
    length: int
    piece: int
    first: int
    step: int

    @property
    def target(self) -> slice:
        return slice(self.at, self.at + self.length)

    def source(self, start: int) -> slice:
        """The positions in an array that begins at `start` of the chunk; one that broadcasts where the step is 0."""
        first = self.first - start
        if self.step == 0:
            return slice(first, first + 1)
        stop = first + self.step * self.length
        return slice(first, stop if stop >= 0 else None, self.step)


class _Part(NamedTuple):
    """What a chunk of the result reads along one axis: runs of pieces, with zeros on both sides."""

    outputs: int
    size: int
    pieces: tuple[_Piece, ...]
    runs: tuple[_Run, ...]
    pad: Pair


def _parts(g: ConvGeometry, axis: int, chunks: Ints) -> list[_Part]:
    """The chunks of the result along an axis, whose input has these chunks."""
    size, stride, span, (lo, _) = g.spatial[axis], g.stride[axis], g.span[axis], g.pad[axis]
    starts = [0, *itertools.accumulate(chunks)]
    middle = (span - 1) // 2 - lo  # of the window of output 0
    inner = (min(max(-((middle - start) // stride), 0), g.out[axis]) for start in starts[1:-1])
    bounds = [0, *inner, g.out[axis]]
    parts = []
    for first, stop in itertools.pairwise(bounds):
        if first == stop and g.out[axis]:
            continue
        start = first * stride - lo
        end = start + (stop - first - 1) * stride + span if first < stop else start
        if g.pad_mode == "zeros":
            a, b = (min(max(at, 0), size) for at in (start, end))
            sources, pad = np.arange(a, b), (a - start, end - b) if a < b else (end - start, 0)
        else:
            sources, pad = g.source_index(axis, positions=(start, end)), (0, 0)
        parts.append(_part(stop - first, sources, pad, starts))
        if not g.out[axis]:
            break
    return parts


def _part(outputs: int, sources: Array, pad: Pair, starts: list[int]) -> _Part:
    """The part that repeats these positions of the input, of chunks that begin at `starts`."""
    homes = np.searchsorted(starts, sources, "right") - 1
    steps = np.diff(sources)
    joined = (homes[1:] == homes[:-1]) & (abs(steps) <= 1)
    pieces = []
    for chunk in np.unique(homes).tolist():
        inside = sources[homes == chunk] - starts[chunk]
        pieces.append(_Piece(chunk, int(inside.min()), int(inside.max()) + 1, starts[chunk + 1] - starts[chunk]))
    number = {piece.chunk: i for i, piece in enumerate(pieces)}
    runs, at = [], 0
    while at < len(sources):
        step = int(steps[at]) if at < len(steps) and joined[at] else 1
        differs = np.flatnonzero(~(joined[at:] & (steps[at:] == step)))
        length = 1 + (int(differs[0]) if differs.size else len(steps) - at)
        chunk = int(homes[at])
        runs.append(_Run(at, length, number[chunk], int(sources[at]) - starts[chunk], step))
        at += length
    if not pieces:  # of zeros alone
        pieces, runs = [_Piece(0, 0, 0, starts[1])], [_Run(0, 0, 0, 0, 1)]
    return _Part(outputs, len(sources), tuple(pieces), tuple(runs), pad)


# -------------------------------------------------------------------------------------------------- the graph


class _Source(NamedTuple):
    """Where a block finds an array: its argument number `argument`, or item number `item` of it.

    The array begins at `start` of its chunk.
    """

    argument: int
    item: int | None
    start: Ints


@dataclass(frozen=True)
class _Block:
    """One chunk of the result: what Dask calls with what it reads, which lies in `sources`, piece by piece."""

    call: Call
    activation: ActivationName | None
    parts: tuple[_Part, ...]
    sources: tuple[_Source, ...]

    def __call__(self, arguments: list[Any], w: Array, bias: Array | None) -> Array:
        raise_mmap_threshold()
        with backend.on_device_of(w), cpu.sharing_cores:
            return self.call.forward(self.gathered(arguments), w, bias, self.activation, None)

    def gathered(self, arguments: list[Any]) -> Array:
        """The part of the input that is read; of one array it is a view."""
        if not self.sources:
            whole: Array = arguments[0]
            is_gray = self.call.channels_last(whole).shape[-1] == 1  # "direct" reads rows of pixels that are adjacent
            return np.ascontiguousarray(whole) if is_gray else whole
        places = itertools.product(*(range(len(part.pieces)) for part in self.parts))
        arrays = [
            arguments[source.argument] if source.item is None else arguments[source.argument][source.item]
            for source in self.sources
        ]
        origins = (source.start for source in self.sources)
        pieces = dict(zip(places, zip(arrays, origins, strict=True), strict=True))
        runs = list(itertools.product(*(part.runs for part in self.parts)))
        if len(runs) == 1 and all(along.step == 1 for along in runs[0]):
            return self.read(pieces, runs[0])
        n, *_, c = self.call.channels_last(arrays[0]).shape
        xp = backend.array_module(arrays[0])
        whole = xp.empty(self.call.in_layout((n, *(part.size for part in self.parts), c)), arrays[0].dtype)
        for run in runs:
            whole[_part_of_space(self.call, [along.target for along in run])] = self.read(pieces, run)
        return whole

    def read(self, pieces: dict[Ints, tuple[Array, Ints]], run: tuple[_Run, ...]) -> Array:
        array, origin = pieces[tuple(along.piece for along in run)]
        sources = [along.source(start) for along, start in zip(run, origin, strict=True)]
        return array[_part_of_space(self.call, sources)]


Key: TypeAlias = "tuple[str | int, ...]"


class _Margins:
    """What the blocks read of chunks: the chunks themselves, or copies of their margins.

    One task copies all margins of a chunk, so that Dask has few tasks.
    """

    def __init__(self, name: str, name_of_x: str) -> None:
        self._name, self._name_of_x = name, name_of_x
        self._parts: dict[Ints, dict[tuple[Pair, ...], int]] = {}

    def read(self, pieces: list[tuple[Ints, tuple[_Piece, ...]]]) -> tuple[list[Key], tuple[_Source, ...]]:
        """The keys of what a block reads, given its pieces and the places of their chunks, and where each piece is."""
        arguments: dict[Key, int] = {}
        sources = []
        for place, piece in pieces:
            key: Key = (self._name_of_x, *place)
            item, start = None, (0,) * len(piece)
            if 2 * math.prod(p.stop - p.start for p in piece) <= math.prod(p.size for p in piece):
                parts = self._parts.setdefault(place, {})
                key, start = (self._name, *place), tuple([p.start for p in piece])
                item = parts.setdefault(tuple([(p.start, p.stop) for p in piece]), len(parts))
            sources.append(_Source(arguments.setdefault(key, len(arguments)), item, start))
        return list(arguments), tuple(sources)

    def graph(self, call: Call) -> dict[Key, Any]:
        """The tasks that copy margins."""
        return {
            (self._name, *place): (
                partial(_copied, [_part_of_space(call, [slice(*bounds) for bounds in part]) for part in parts]),
                (self._name_of_x, *place),
            )
            for place, parts in self._parts.items()
        }


def _copied(parts: list[tuple[slice, ...]], chunk: Array) -> tuple[Array, ...]:
    """Copies of parts of a chunk, for which the chunk need not stay in memory."""
    with backend.on_device_of(chunk):
        return tuple([chunk[part].copy() for part in parts])


def _in_memory(x: da.Array) -> dict[Ints, Array]:
    """The chunks that lie in the graph as NumPy arrays, as those of a NumPy array do: by their places."""
    layer = x.dask.layers.get(x.name)
    if not isinstance(layer, MaterializedLayer):
        return {}
    values = {key[1:]: getattr(task, "value", task) for key, task in layer.mapping.items() if isinstance(key, tuple)}
    return {place: value for place, value in values.items() if type(value) is np.ndarray}


def _joined(call: Call, parts: tuple[_Part, ...], chunks: list[Array | None]) -> Array | None:
    """The part of the input that a block reads, as a view of the one array that all its pieces are views of.

    None if there is no such array, or if the part is not a rectangle of it.
    """
    if any(len(part.runs) != len(part.pieces) or any(run.step != 1 for run in part.runs) for part in parts):
        return None
    first, start = None, 0
    for run, chunk in zip(itertools.product(*(part.runs for part in parts)), chunks, strict=True):
        if chunk is None:
            return None
        piece = chunk[_part_of_space(call, [along.source(0) for along in run])]
        if first is None:
            first, start = piece, piece.ctypes.data
        at = _part_of_space(call, [slice(along.at, None) for along in run])
        offset = sum((s.start or 0) * stride for s, stride in zip(at, piece.strides, strict=True))
        if _owner(piece) is not _owner(first) or piece.strides != first.strides or piece.ctypes.data != start + offset:
            return None
    if first is None:
        return None
    shape = call.in_layout(
        (call.channels_last(first).shape[0], *(part.size for part in parts), call.channels_last(first).shape[-1])
    )
    return as_strided(first, shape, first.strides)


def _owner(array: Array) -> Array:
    """The array whose memory a view is of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _part_of_space(call: Call, slices: list[slice]) -> tuple[slice, ...]:
    """Slices of all axes, given those of the spatial ones."""
    entries: tuple[Any, ...] = (slice(None), *slices, slice(None))
    return call.in_layout(entries)  # type: ignore[return-value]


def _conv(
    call: Call, x: da.Array, w: Array | da.Array, bias: Array | da.Array | None, activation: ActivationName | None
) -> da.Array:
    has_banks = _check_arrays(call, x, w, bias)
    g = call.geometry(x.shape, w.shape[has_banks:])
    x = x.rechunk({1 if call.layout == "channels_first" else x.ndim - 1: -1})
    n_chunks, *spatial_chunks = x.chunks[:-1] if call.layout == "channels_last" else (x.chunks[0], *x.chunks[2:])
    w = _in_chunks(w, n_chunks if has_banks else -1)
    if bias is not None:
        bias = _in_chunks(bias, n_chunks if has_banks and bias.ndim == 2 else -1)
    parts = [_parts(g, axis, chunks) for axis, chunks in enumerate(spatial_chunks)]
    call = call._replace(stride=g.stride, dilation=g.dilation, pad_mode="zeros")
    meta = _meta(call, g, parts, x, w, bias, activation, has_banks)

    name = f"{call.caller}-{tokenize(x, w, bias, g, activation, tuple(call))}"
    graph: dict[Any, Any] = {}
    in_memory, margins = _in_memory(x), _Margins(f"margins-{name}", x.name)
    for n, *places in itertools.product(range(len(n_chunks)), *(range(len(along)) for along in parts)):
        of_block = tuple(along[i] for along, i in zip(parts, places, strict=True))
        pieces = [
            (call.in_layout((n, *(piece.chunk for piece in along), 0)), along)
            for along in itertools.product(*(part.pieces for part in of_block))
        ]
        view = _joined(call, of_block, [in_memory.get(place) for place, _ in pieces])
        arguments: list[Any]
        arguments, sources = margins.read(pieces) if view is None else ([view], ())
        block = _Block(call._replace(pad=tuple(part.pad for part in of_block)), activation, of_block, sources)
        its_bias = None if bias is None else _key(bias, n)
        graph[(name, *call.in_layout((n, *places, 0)))] = (block, arguments, _key(w, n), its_bias)
    graph |= margins.graph(call)
    outputs = (tuple(part.outputs for part in along) for along in parts)
    entries: tuple[Any, ...] = (n_chunks, *outputs, (g.k,))
    dependencies = [x, w] if bias is None else [x, w, bias]
    return _Result(HighLevelGraph.from_collections(name, graph, dependencies), name, call.in_layout(entries), meta=meta)


class _Result(da.Array):  # type: ignore[misc]
    """A Dask array whose chunks are put together by several threads; Dask's own way is to copy them with one."""

    __slots__ = ()

    def __dask_postcompute__(self) -> tuple[Any, ...]:
        return _put_together, (self.chunks,)


def _put_together(chunks: list[Any], sizes: tuple[Ints, ...]) -> Array:
    """The array that consists of these chunks, given their sizes along each axis."""
    blocks = list(flatten(chunks))
    if len(blocks) == 1 or any(type(block) is not np.ndarray for block in blocks):
        whole: Array = finalize(chunks)
        return whole
    whole = np.empty(tuple(map(sum, sizes)), blocks[0].dtype)

    def copy(task: tuple[tuple[slice, ...], Array]) -> None:
        where, block = task
        whole[where] = block

    threads = min(len(blocks), cpu.workers()) if whole.nbytes > WORTH_A_THREAD else 1
    cpu.parallel_for(
        zip(slices_from_chunks(sizes), blocks, strict=True), lambda: copy, threads, single_thread_blas=False
    )
    return whole


def _check_arrays(call: Call, x: da.Array, w: Array | da.Array, bias: Array | da.Array | None) -> bool:
    """Check what a geometry cannot; whether each sample has weights of its own."""
    if not isinstance(x, da.Array):
        raise TypeError(
            f"{call.caller}: x is {type(x).__name__}, where a dask.array.Array is needed. Make one with "
            f"dask.array.from_array, or call gpuconv.{call.caller}."
        )
    arrays = {"x": x, "w": w, "bias": bias}
    metas = {name: meta_from_array(a) if isinstance(a, da.Array) else a for name, a in arrays.items()}
    backend.common_module(call.caller, **metas)
    for name, a in arrays.items():
        if a is not None and any(math.isnan(size) for size in a.shape):
            raise GeometryError(
                f"{call.caller}: {name}.shape is {a.shape}: the sizes of its chunks are not known, which its geometry "
                f"needs. Call {name}.compute_chunk_sizes() first."
            )
    has_banks = bool(w.ndim == call.ndim + 3)
    if has_banks:
        by_sample.check_banks(call, "x", x.shape, w)
        if bias is not None and bias.ndim == 2 and bias.shape[0] != x.shape[0]:
            raise GeometryError(
                f"{call.caller}: bias.shape is {bias.shape}, but x has {x.shape[0]} samples. Pass one bias per sample, "
                "or bias (F,) for all of them."
            )
    return has_banks


def _in_chunks(a: Array | da.Array, first: Ints | int) -> da.Array:
    """A Dask array in chunks along its first axis only."""
    chunks = (first, *(-1,) * (a.ndim - 1))[: a.ndim]
    return a.rechunk(chunks) if isinstance(a, da.Array) else da.from_array(a, chunks, asarray=False)


def _key(a: da.Array, n: int) -> tuple[Any, ...]:
    """The key of the chunk of weights or bias for chunk number n of the batch."""
    return (a.name, n if a.numblocks[0] > 1 else 0, *(0,) * (a.ndim - 1))


def _meta(
    call: Call,
    g: ConvGeometry,
    parts: list[list[_Part]],
    x: da.Array,
    w: da.Array,
    bias: da.Array | None,
    activation: ActivationName | None,
    has_banks: bool,
) -> Array:
    """An empty array of the result's library and dtype: of the largest chunk for no samples, which checks the call."""
    xp = backend.array_module(meta_from_array(x))
    largest = [max(along, key=lambda part: part.size + sum(part.pad)) for along in parts]
    samples = xp.empty(call.in_layout((0, *(part.size for part in largest), g.c)), x.dtype)
    weights = xp.zeros((0, *w.shape[1:]) if has_banks else w.shape, w.dtype)
    if bias is not None:
        bias = xp.zeros((0, *bias.shape[1:]) if has_banks and bias.ndim == 2 else bias.shape, bias.dtype)
    call = call._replace(pad=tuple(part.pad for part in largest))
    result = call.forward(samples, weights, bias, activation, None)
    return result[(slice(0),) * result.ndim]
