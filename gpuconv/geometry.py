"""The geometry of a convolution: every check, every size formula, FLOPs and bytes. Ints in, a frozen dataclass out.

One alphabet, here and everywhere else in gpuconv:

    n          samples                       x   (n, d, h, w, c)             input
    d h w      input, one letter per axis    w   (t, r, s, c // groups, k)   weights
    c  k       input and output channels     y   (n, o, p, q, k)             output
    t r s      kernel, one letter per axis
    o p q      output, one letter per axis   2-D drops the first letter of each triple, 1-D the first two.

Along one axis the window of output p covers ``kernel`` taps of the padded input:

    padded input    lo  lo  0   1   2   3   4   5   hi      in = 6, pad = (2, 1)
    p = 0           r0  .   r1  .   r2                      kernel 3, dilation 2: a span of 5
    p = 1                       r0  .   r1  .   r2          stride 3: out = 2

so tap r of output p reads input  ``p * stride + r * dilation - lo``,  and there are

    out = floor((in + lo + hi - dilation * (kernel - 1) - 1) / stride) + 1

outputs (Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016, eq. 6 with dilation).
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex, TypeVar, get_args

import numpy as np

from gpuconv.errors import GeometryError
from gpuconv.support.argument_checks import LARGEST, as_int, as_ints, flag, is_int, is_one_of, is_scalar, shown
from gpuconv.support.hashing import CachedHash
from gpuconv.typing import Array, Direction, Ints, IntsLike, Layout, PadLike, PadMode, Pads, Pair

PAD_MODES: tuple[str, ...] = get_args(PadMode)
LAYOUTS: tuple[str, ...] = get_args(Layout)
NAMED_PADS = ("same", "same_lower", "valid", "full", "causal")
SAME = ("same", "same_lower")
PADS_BY_KERNEL = (*SAME, "full", "causal")

SPATIAL_LETTERS = {1: "w", 2: "hw", 3: "dhw"}
KERNEL_LETTERS = {1: "s", 2: "rs", 3: "trs"}

MIRRORS = {"reflect": 0, "symmetric": 1}
"""Pad modes that turn round at both ends of the input, and how often they repeat an end there."""

MAX_PROBLEM = 1000
"""The most characters of a problem string. A real one has some 50; Python reads no integer of thousands of digits."""

MAX_ELEMENTS = (LARGEST + 1) // 16
"""The most elements whose bytes 64 bits can count, whatever the dtype: an element of complex128 has 16."""

Make = TypeVar("Make", bound=Callable[..., Any])


def remembered(make: Make) -> Make:
    """A cache for a function of ints, strings and tuples of them: a training loop passes the same ones every time.

    Values that equal an int without being one (True, 2.0) bypass the cache, and so do lists, which have no hash.
    """
    memory = lru_cache(maxsize=4096)(make)

    @wraps(make)
    def remembering(*args: Any, **keywords: Any) -> Any:
        return (memory if are_exact(args) and are_exact(keywords.values()) else make)(*args, **keywords)

    return remembering  # type: ignore[return-value]


def are_exact(values: Collection[object]) -> bool:
    """Whether values are ints, strings, None, types and tuples of them: none of these equals another that is not."""
    if _EXACT.issuperset(map(type, values)):
        return True
    for value in values:
        if type(value) is tuple:
            if not (_EXACT.issuperset(map(type, value)) or are_exact(value)):
                return False
        elif type(value) not in _EXACT:
            return False
    return True


_EXACT = {int, str, type, type(None)}
_EXACT_INTS = {int}


class SourceRun(NamedTuple):
    """`length` padded positions from `at` hold input positions `first`, `first` + `step`, ...; step is -1, 0 or 1."""

    at: int
    length: int
    first: int
    step: int

    @property
    def target(self) -> slice:
        return slice(self.at, self.at + self.length)

    @property
    def source(self) -> slice:
        """The input positions; one that broadcasts where the step is 0."""
        if self.step == 0:
            return slice(self.first, self.first + 1, 1)
        end = self.first + self.step * self.length
        return slice(self.first, end if end >= 0 else None, self.step)


@dataclass(frozen=True)
class ConvGeometry(CachedHash):
    """One convolution in numbers: an immutable, hashable description that every algorithm works from.

    Make one with `create` (numbers), `from_shapes` (array shapes), `transposed` or `parse` (a problem string). These
    check their arguments; the bare constructor does not.

    Parameters
    ----------
    n, c, k : int
        Samples, input channels, output channels. Any may be 0.
    spatial, kernel, stride, dilation : tuple of int
        One number per spatial axis, of which there are 1 to 3. `spatial` is the input size.
    pad : tuple of (int, int)
        Low and high pad per axis.
    groups : int
        Channel groups: the output channels of a group depend only on the c // groups input channels of that group.
    pad_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}
        The values of the padding.
    banks : bool
        Whether each sample has weights of its own: w has a leading axis n.

    Examples
    --------
    >>> g = ConvGeometry.create(n=8, spatial=(56, 56), c=64, k=64, kernel=(3, 3), pad="same")
    >>> g.out, g.pad, f"{g.flops:.3g}"
    ((56, 56), ((1, 1), (1, 1)), '1.85e+09')
    >>> str(g)
    'n8_h56w56_c64_k64_r3s3_p1'
    >>> ConvGeometry.parse(str(g)) == g
    True
    """

    n: int
    spatial: Ints
    c: int
    k: int
    kernel: Ints
    stride: Ints
    dilation: Ints
    pad: Pads
    groups: int = 1
    pad_mode: str = "zeros"
    banks: bool = False

    __hash__ = CachedHash.__hash__

    # ---------------------------------------------------------------------------------------------- making one

    @classmethod
    @remembered
    def create(
        cls,
        n: int,
        spatial: IntsLike,
        c: int,
        k: int,
        kernel: IntsLike,
        stride: IntsLike = 1,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        groups: int = 1,
        pad_mode: str = "zeros",
        banks: bool = False,
        *,
        ceil_mode: bool = False,
        caller: str = "ConvGeometry",
    ) -> ConvGeometry:
        """Check and normalise: `kernel` fixes the number of axes, every other argument may be one int for all axes.

        With `ceil_mode` output sizes are rounded up, but no window begins in the high pad, as when ONNX and PyTorch
        pool. The high pad becomes what that takes.

        >>> ConvGeometry.create(1, 6, 1, 1, 3, stride=2, ceil_mode=True).pad
        ((0, 1),)

        Raises
        ------
        GeometryError
            For any argument that breaks a rule; the message starts with `caller`.
        """
        ndim = 1 if is_scalar(kernel) else len(kernel)  # type: ignore[arg-type]
        if ndim not in SPATIAL_LETTERS:
            raise GeometryError(f"{caller}: kernel={shown(kernel)} has {ndim} axes, but a convolution has 1 to 3.")
        sizes = as_ints(spatial, ndim, "spatial", caller, least=0)
        taps = as_ints(kernel, ndim, "kernel", caller)
        steps = as_ints(stride, ndim, "stride", caller)
        holes = as_ints(dilation, ndim, "dilation", caller)
        spans = tuple(map(kernel_span, taps, holes))
        if not is_one_of(pad_mode, PAD_MODES):
            raise GeometryError(f"{caller}: pad_mode={pad_mode!r} is none of {', '.join(map(repr, PAD_MODES))}.")
        pads = resolve_pad(pad, sizes, spans, steps, caller)
        if ceil_mode:
            pads = tuple(map(ceiled_pad, sizes, pads, spans, steps))
        return _checked(
            caller,
            as_int(n, "n", caller, least=0),
            sizes,
            as_int(c, "c", caller, least=0),
            as_int(k, "k", caller, least=0),
            taps,
            steps,
            holes,
            pads,
            as_int(groups, "groups", caller),
            pad_mode,
            flag(banks, "banks", caller),
        )

    @classmethod
    @remembered
    def from_shapes(
        cls,
        x_shape: Sequence[SupportsIndex],
        w_shape: Sequence[SupportsIndex],
        stride: IntsLike = 1,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        groups: int = 1,
        pad_mode: str = "zeros",
        *,
        layout: str = "channels_last",
        ndim: int | None = None,
        caller: str = "ConvGeometry",
        x_name: str = "x.shape",
    ) -> ConvGeometry:
        """The convolution of an x and a w of these shapes, both in `layout`.

        >>> ConvGeometry.from_shapes((1, 3, 32, 32), (8, 3, 5, 5), layout="channels_first").out
        (28, 28)
        """
        ndim = len(w_shape) - 2 if ndim is None else ndim
        n, spatial, c = split_x_shape(x_shape, ndim, layout, caller, x_name)
        kernel, c_group, k = split_w_shape(w_shape, ndim, layout, caller)
        groups = as_int(groups, "groups", caller)
        if c_group * groups != c:
            axis_w, axis_x = (ndim, ndim + 1) if layout == "channels_last" else (1, 1)
            raise GeometryError(
                f"{caller}: w expects {c_group} input channels per group, but x has {c} (groups={groups}). "
                f"w.shape={tuple(w_shape)} needs w.shape[{axis_w}] == {x_name}[{axis_x}] // groups."
            )
        return cls.create(n, spatial, c, k, kernel, stride, pad, dilation, groups, pad_mode, caller=caller)

    @classmethod
    def transposed(
        cls,
        x_shape: Sequence[SupportsIndex],
        w_shape: Sequence[SupportsIndex],
        stride: IntsLike = 1,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        groups: int = 1,
        output_pad: IntsLike = 0,
        output_shape: IntsLike | None = None,
        *,
        layout: str = "channels_last",
        ndim: int | None = None,
        caller: str = "ConvGeometry.transposed",
    ) -> ConvGeometry:
        """The convolution whose input gradient is the transposed convolution of an x and a w of these shapes.

        Its `y_shape` is the shape of x, and its `x_shape` that of the transposed convolution's result:

            out = (in - 1) * stride + dilation * (kernel - 1) + 1 - lo - hi + output_pad

        `output_pad` is less than the larger of stride and dilation. Below stride it picks one of the sizes that a
        convolution of this stride maps to `in`. From stride on it takes from the high pad, and what is more than that
        lies beyond every tap: it belongs to the result (`transposed_shape`), but not to the `x_shape` of this geometry.
        `output_shape` names the size instead. With "same" and "same_lower", out = in * stride.

        >>> g = ConvGeometry.transposed((1, 7, 7, 16), (3, 3, 8, 16), stride=2, pad=1, output_pad=1)
        >>> g.x_shape, g.y_shape
        ((1, 14, 14, 8), (1, 7, 7, 16))
        """
        return _transposed(
            x_shape, w_shape, stride, pad, dilation, groups, output_pad, output_shape,
            layout=layout, ndim=ndim, caller=caller,
        )[0]  # fmt: skip

    @classmethod
    def transposed_shape(
        cls,
        x_shape: Sequence[SupportsIndex],
        w_shape: Sequence[SupportsIndex],
        stride: IntsLike = 1,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        groups: int = 1,
        output_pad: IntsLike = 0,
        output_shape: IntsLike | None = None,
        *,
        layout: str = "channels_last",
        ndim: int | None = None,
        caller: str = "ConvGeometry.transposed_shape",
    ) -> Ints:
        """The shape of a transposed convolution's result, channels last; `transposed` takes the same arguments.

        >>> ConvGeometry.transposed_shape((1, 7, 16), (3, 8, 16), dilation=4, output_pad=3)
        (1, 18, 8)
        """
        return _transposed(
            x_shape, w_shape, stride, pad, dilation, groups, output_pad, output_shape,
            layout=layout, ndim=ndim, caller=caller,
        )[1]  # fmt: skip

    # ---------------------------------------------------------------------------------------------- sizes

    @property
    def ndim(self) -> int:
        """Spatial axes: 1 to 3."""
        return len(self.kernel)

    @cached_property
    def span(self) -> Ints:
        """Input positions from the first tap to the last, per axis."""
        return tuple(map(kernel_span, self.kernel, self.dilation))

    @cached_property
    def padded(self) -> Ints:
        """Input size with its pads, per axis."""
        return tuple(i + lo + hi for i, (lo, hi) in zip(self.spatial, self.pad, strict=True))

    @cached_property
    def out(self) -> Ints:
        """Output size, per axis."""
        sizes = zip(self.spatial, self.pad, self.span, self.stride, strict=True)
        return tuple(max(0, output_size(i, p, span, s)) for i, p, span, s in sizes)

    @property
    def c_group(self) -> int:
        """Input channels per group."""
        return self.c // self.groups

    @property
    def k_group(self) -> int:
        """Output channels per group."""
        return self.k // self.groups

    @property
    def x_shape(self) -> Ints:
        """Input, channels last."""
        return (self.n, *self.spatial, self.c)

    @property
    def w_shape(self) -> Ints:
        """Weights, channels last."""
        shape = (*self.kernel, self.c_group, self.k)
        return (self.n, *shape) if self.banks else shape

    @cached_property
    def sample(self) -> ConvGeometry:
        """The convolution of one sample, by weights without an axis of samples."""
        return interned(replace(self, n=1, banks=False))

    @property
    def y_shape(self) -> Ints:
        """Output, channels last."""
        return (self.n, *self.out, self.k)

    def result_shape(self, direction: Direction) -> Ints:
        """The shape of what a pass in this direction computes."""
        return {"forward": self.y_shape, "input_grad": self.x_shape, "weight_grad": self.w_shape}[direction]

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of each of the three passes, counting those on zero padding as the field does."""
        return math.prod((self.n, *self.out, *self.kernel, self.c_group, self.k))

    @property
    def flops(self) -> int:
        """Floating-point operations of each pass: two per multiply-add."""
        return 2 * self.macs

    def bytes(self, itemsize: int) -> int:
        """Bytes of x, w and y, each moved once: no algorithm can move less."""
        return itemsize * (math.prod(self.x_shape) + math.prod(self.w_shape) + math.prod(self.y_shape))

    # ---------------------------------------------------------------------------------------------- positions

    @cached_property
    def is_padded(self) -> bool:
        return any(lo or hi for lo, hi in self.pad)

    def source_index(self, axis: int, xp: ModuleType = np, positions: Pair | None = None) -> Array:
        """The input position that each position of the padded axis repeats, and -1 where the padding is a zero.

        `positions` are the start and the end of a part of the axis, counted from the first position of the input.

        >>> g = ConvGeometry.create(1, 4, 1, 1, 3, pad=((2, 1),), pad_mode="reflect")
        >>> g.source_index(0)
        array([2, 1, 0, 1, 2, 3, 2])
        """
        size, (lo, hi) = self.spatial[axis], self.pad[axis]
        at: Array = xp.arange(*((-lo, size + hi) if positions is None else positions))
        if self.pad_mode == "replicate":
            at = at.clip(0, size - 1)
        elif self.pad_mode == "circular":
            at = at % max(size, 1)
        elif self.pad_mode in MIRRORS:
            at %= self._period(axis)
            at = xp.where(at < size, at, self._turn(axis) - at)
        else:
            at = xp.where((at >= 0) & (at < size), at, -1)
        return at

    def source(self, axis: int, at: int) -> int:
        """`source_index` at one position."""
        size = self.spatial[axis]
        if 0 <= at < size:
            return at
        if self.pad_mode == "replicate":
            return min(max(at, 0), size - 1)
        repeat = self.repeat(axis)
        if repeat is None:
            return -1
        at %= repeat
        return at if at < size else self._turn(axis) - at

    def source_runs(self, axis: int, positions: Pair) -> list[SourceRun]:
        """`source_index` as runs, in order, of a part without zeros; if it repeats more than twice, one period of it.

        >>> g = ConvGeometry.create(1, 4, 1, 1, 3, pad=((2, 1),), pad_mode="reflect")
        >>> [(run.at, run.source, run.length) for run in g.source_runs(0, (-2, 5))]
        [(0, slice(2, 0, -1), 2), (2, slice(0, 4, 1), 4), (6, slice(2, 1, -1), 1)]
        """
        size, (start, stop) = self.spatial[axis], positions
        repeat = self.repeat(axis)
        if repeat is not None and stop - start > 2 * repeat:
            stop = start + repeat
        runs = []
        at = start
        while at < stop:
            if repeat is None:
                first, step = min(max(at, 0), size - 1), int(0 <= at < size)
                until = min(stop, 0 if at < 0 else size if step else stop)
            else:
                place = at % repeat
                first, step = (place, 1) if place < size else (self._turn(axis) - place, -1)
                until = min(stop, at - place + (size if step == 1 else repeat))
            runs.append(SourceRun(at - start, until - at, first, step))
            at = until
        return runs

    def repeat(self, axis: int) -> int | None:
        """The period of the padded axis in positions; None where it has none."""
        if self.pad_mode == "circular":
            return max(self.spatial[axis], 1)
        return self._period(axis) if self.pad_mode in MIRRORS else None

    def _period(self, axis: int) -> int:
        """The number of positions from one end of a mirrored axis to the other and back."""
        return max(self._turn(axis) + MIRRORS[self.pad_mode], 1)

    def _turn(self, axis: int) -> int:
        """The sum of a position beyond the high end of a mirrored axis and the position that it repeats."""
        return 2 * self.spatial[axis] - 2 + MIRRORS[self.pad_mode]

    def taps(self) -> Iterator[Ints]:
        """Every kernel position, in row order."""
        return itertools.product(*map(range, self.kernel))

    def tap_slices(self, tap: Ints) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where tap `tap` meets the input itself rather than padding: slices of the input axes and of the output axes.

        ``x[:, *ins]`` and ``y[:, *outs]`` correspond position by position.

        >>> g = ConvGeometry.create(1, 5, 1, 1, 3, stride=2, pad=1)
        >>> g.tap_slices((0,))
        ((slice(1, 4, 2),), (slice(1, 3, 1),))
        """
        along = [self.tap_slices_along(axis, r, slice(0, self.spatial[axis])) for axis, r in enumerate(tap)]
        return tuple(ins for _, ins, _ in along), tuple(outs for _, _, outs in along)

    def tap_slices_along(self, axis: int, r: int, part: slice) -> tuple[int, slice, slice]:
        """Tap number r of an axis, and where it meets a part of the input: slices of the part and of the output."""
        (lo, _), size = self.pad[axis], part.stop - part.start
        first = r * self.dilation[axis] - lo - part.start
        return (r, *meeting(first, self.stride[axis], size, 0, self.out[axis]))

    # ---------------------------------------------------------------------------------------------- problem string

    def __str__(self) -> str:
        """The problem string, e.g. ``n8_h56w56_c64_k64_r3s3_p1``; `parse` reads it back."""

        def per_axis(letters: str, sizes: Ints) -> str:
            return "".join(f"{letter}{size}" for letter, size in zip(letters, sizes, strict=True))

        def compact(key: str, values: Sequence[str], default: str) -> str:
            text = values[0] if len(set(values)) == 1 else "x".join(values)
            return "" if text == default else f"_{key}{text}"

        pads = [str(lo) if lo == hi else f"{lo}-{hi}" for lo, hi in self.pad]
        return (
            f"n{self.n}_{per_axis(SPATIAL_LETTERS[self.ndim], self.spatial)}_c{self.c}_k{self.k}"
            f"_{per_axis(KERNEL_LETTERS[self.ndim], self.kernel)}"
            + compact("p", pads, "0")
            + compact("st", [str(s) for s in self.stride], "1")
            + compact("dl", [str(d) for d in self.dilation], "1")
            + compact("g", [str(self.groups)], "1")
            + ("" if self.pad_mode == "zeros" else f"_{self.pad_mode}")
            + ("_banks" if self.banks else "")
        )

    @classmethod
    def parse(cls, problem: str) -> ConvGeometry:
        """Read a problem string.

            n8_h56w56_c64_k64_r3s3_p1        8 samples of 56 x 56 x 64, 64 output channels, 3 x 3 kernel, pad 1
            n1_w100_c4_k4_s5_p4-0            1-D, causal: 4 on the low side, 0 on the high
            n1_d8h9w9_c2_k2_t3r3s3_p1x0x0    3-D, one pad per axis
            ..._st2_dl2_g4_reflect           stride, dilation, groups, pad mode (each omitted at its default)
            n8_h9w9_c4_k4_r3s3_banks         weights of its own for each sample
            max_pool2d_n8_h9w9_c4_r3s3_st2   a pooling, see `PoolGeometry`

        Raises
        ------
        GeometryError
            If the text is not a problem string, or the problem breaks a rule.
        """
        if not isinstance(problem, str):
            raise GeometryError(f"parse: problem={problem!r} is not a string such as n8_h56w56_c64_k64_r3s3_p1.")
        if len(problem) > MAX_PROBLEM:
            raise GeometryError(
                f"parse: {problem[:40]!r}... has {len(problem)} characters, but at most {MAX_PROBLEM} are read."
            )
        if (pooling := _POOLING.fullmatch(problem)) is not None:
            return PoolGeometry.of_match(pooling)
        match = _PROBLEM.fullmatch(problem)
        if match is None:
            raise GeometryError(
                f"parse: {problem!r} is not a problem string. It reads like n8_h56w56_c64_k64_r3s3_p1, "
                "then _st<stride>, _dl<dilation>, _g<groups> and a pad mode where they are not 1 and zeros, and _banks "
                "where each sample has weights of its own. That of a pooling begins with the function: "
                "max_pool2d_n8_h112w112_c64_r3s3_p1_st2."
            )
        part = match.groupdict()
        letters = re.sub(r"\d", "", part["spatial"]), re.sub(r"\d", "", part["kernel"])
        if letters not in zip(SPATIAL_LETTERS.values(), KERNEL_LETTERS.values(), strict=True):
            raise GeometryError(
                f"parse: {problem!r} names input axes {letters[0]!r} and kernel axes {letters[1]!r}. "
                "They are 'w' and 's' in 1-D, 'hw' and 'rs' in 2-D, 'dhw' and 'trs' in 3-D."
            )
        ndim = len(letters[0])

        def spread(key: str, default: str) -> list[str]:
            values = (part[key] or default).split("x")
            return values * ndim if len(values) == 1 else values

        pads = [tuple(map(int, p.split("-"))) for p in spread("pad", "0")]
        return cls.create(
            int(part["n"]),
            tuple(map(int, re.findall(r"\d+", part["spatial"]))),
            int(part["c"]),
            int(part["k"]),
            tuple(map(int, re.findall(r"\d+", part["kernel"]))),
            tuple(map(int, spread("stride", "1"))),
            tuple((p[0], p[-1]) for p in pads),
            tuple(map(int, spread("dilation", "1"))),
            int(part["groups"] or 1),
            part["mode"] or "zeros",
            part["banks"] is not None,
            caller="parse",
        )


_PROBLEM = re.compile(
    r"n(?P<n>\d+)_(?P<spatial>(?:[dhw]\d+)+)_c(?P<c>\d+)_k(?P<k>\d+)_(?P<kernel>(?:[trs]\d+)+)"
    r"(?:_p(?P<pad>\d+(?:-\d+)?(?:x\d+(?:-\d+)?)*))?"
    r"(?:_st(?P<stride>\d+(?:x\d+)*))?"
    r"(?:_dl(?P<dilation>\d+(?:x\d+)*))?"
    r"(?:_g(?P<groups>\d+))?"
    rf"(?:_(?P<mode>{'|'.join(PAD_MODES)}))?"
    r"(?:_(?P<banks>banks))?"
)


@dataclass(frozen=True)
class PoolGeometry(ConvGeometry):
    """One max or average pooling in numbers: windows that read one channel each, and no weights.

    Make one with `of` (numbers) or `parse` (a problem string, which begins with the name of the function). `k` is `c`,
    and `groups` as well. `pad` holds what `ceil_mode` adds, so that sizes are those of a convolution.

    Parameters
    ----------
    kind : {"max", "avg"}
    asked : tuple of (int, int)
        Low and high pad per axis, without what `ceil_mode` adds.
    include_pad : bool
        Whether a mean counts the pads, see `avg_pool2d`.

    Examples
    --------
    >>> g = PoolGeometry.of("max", 8, (112, 112), 64, 3, stride=2, pad=1)
    >>> g.out, str(g)
    ((56, 56), 'max_pool2d_n8_h112w112_c64_r3s3_p1_st2')
    >>> str(PoolGeometry.of("avg", 1, (8, 8), 16, 3, stride=2, ceil_mode=True))
    'avg_pool2d_n1_h8w8_c16_r3s3_st2_ceil'
    >>> ConvGeometry.parse(str(g)) == g
    True
    """

    kind: str = "max"
    asked: Pads = ()
    include_pad: bool = False

    __hash__ = CachedHash.__hash__

    @classmethod
    def of(
        cls,
        kind: str,
        n: int,
        spatial: IntsLike,
        c: int,
        kernel: IntsLike,
        stride: IntsLike | None = None,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        *,
        ceil_mode: bool = False,
        include_pad: bool = False,
        caller: str = "PoolGeometry",
    ) -> PoolGeometry:
        """Check and normalise: `spatial` fixes the number of axes, and the stride is the kernel unless it is given.

        Raises
        ------
        GeometryError
            For any argument that breaks a rule; the message starts with `caller`.
        """
        if not is_one_of(kind, POOLINGS):
            raise GeometryError(f"{caller}: kind={kind!r} is none of {', '.join(map(repr, POOLINGS))}.")
        counts = flag(include_pad, "include_pad", caller)
        if counts and kind == "max":
            raise GeometryError(f"{caller}: include_pad=True, but no pad is counted by a maximum. Use kind='avg'.")
        ndim = 1 if is_scalar(spatial) else len(spatial)  # type: ignore[arg-type]
        kernel = as_ints(kernel, ndim, "kernel", caller)
        ceils = flag(ceil_mode, "ceil_mode", caller)
        asked, g = (
            ConvGeometry.create(
                n, spatial, c, c, kernel, kernel if stride is None else stride, pad, dilation, max(1, c),
                ceil_mode=ceil, caller=caller,
            )
            for ceil in (False, ceils)
        )  # fmt: skip
        sizes = g.n, g.spatial, g.c, g.k, g.kernel, g.stride, g.dilation, g.pad, g.groups
        return cls(*sizes, kind=kind, asked=asked.pad, include_pad=counts)

    @classmethod
    def of_match(cls, found: re.Match[str]) -> PoolGeometry:
        """The pooling that a problem string describes: that of a convolution with as many channels out as in."""
        text = f"{found['head']}_k{found['c']}{found['rest']}"
        inner = ConvGeometry.parse(text) if _PROBLEM.fullmatch(text) else None
        if (
            inner is None
            or inner.groups > 1
            or inner.pad_mode != "zeros"
            or inner.banks
            or inner.ndim != int(found["ndim"])
        ):
            raise GeometryError(
                f"parse: {found[0]!r} is not the problem string of a pooling. It reads like "
                "max_pool2d_n8_h112w112_c64_r3s3_p1_st2, with as many axes as its name says and without groups, pad "
                "mode and weights, then _ceil if output sizes are rounded up, and _includepad if means count pads."
            )
        return cls.of(
            found["kind"], inner.n, inner.spatial, inner.c, inner.kernel, inner.stride, inner.pad, inner.dilation,
            ceil_mode=found["ceil"] is not None, include_pad=found["include"] is not None, caller="parse",
        )  # fmt: skip

    @property
    def ceil_mode(self) -> bool:
        """Whether some output size is rounded up."""
        return self.pad != self.asked

    @property
    def flops(self) -> int:
        """Comparisons or additions of each pass: one per tap of a window, those over padding included."""
        return self.macs

    def bytes(self, itemsize: int) -> int:
        """Bytes of x and y, each moved once."""
        return itemsize * (math.prod(self.x_shape) + math.prod(self.y_shape))

    def __str__(self) -> str:
        """The problem string; `parse` reads it back."""
        windows = ConvGeometry(
            self.n, self.spatial, self.c, self.k, self.kernel, self.stride, self.dilation, self.asked
        )
        return (
            f"{self.kind}_pool{self.ndim}d_{str(windows).replace(f'_k{self.k}_', '_', 1)}"
            + ("_ceil" if self.ceil_mode else "")
            + ("_includepad" if self.include_pad else "")
        )


POOLINGS = ("max", "avg")

_POOLING = re.compile(
    r"(?P<kind>max|avg)_pool(?P<ndim>[123])d_(?P<head>n\d+_(?:[dhw]\d+)+_c(?P<c>\d+))(?P<rest>_.*?)"
    r"(?P<ceil>_ceil)?(?P<include>_includepad)?"
)


# -------------------------------------------------------------------------------------------------- the formulas


def meeting(first: int, stride: int, size: int, begin: int, end: int) -> tuple[slice, slice]:
    """Where a tap meets an axis of `size` positions: slices of the positions, and of the outputs from `begin` to `end`.

    Output p meets position first + p * stride, if the axis has that one.

    >>> meeting(-1, 2, 5, 0, 3)
    (slice(1, 4, 2), slice(1, 3, 1))
    """
    p0 = max(begin, -(first // stride))
    p1 = max(p0, min(end, (size - 1 - first) // stride + 1))
    start = first + p0 * stride
    return slice(start, start + (p1 - p0 - 1) * stride + 1 if p1 > p0 else start, stride), slice(p0, p1, 1)


def kernel_span(kernel: int, dilation: int) -> int:
    """Input positions from the first tap to the last."""
    return dilation * (kernel - 1) + 1


def output_size(size: int, pad: Pair, span: int, stride: int) -> int:
    """Outputs along one axis; zero or a negative number where the kernel does not fit."""
    return (size + sum(pad) - span) // stride + 1


def ceiled_pad(size: int, pad: Pair, span: int, stride: int) -> Pair:
    """The pad with which the output size is what it would be if it were rounded up and no window began in `pad`.

    >>> ceiled_pad(4, (1, 1), 1, 2), output_size(4, (1, 0), 1, 2)
    ((1, 0), 3)
    """
    lo, hi = pad
    begun = output_size(size, (lo, 0), 1, stride)  # windows that begin before the high pad
    out = min(begun, output_size(size, (lo, hi + stride - 1), span, stride))
    return (lo, max(0, (out - 1) * stride + span - size - lo)) if out > 0 else pad


def resolve_pad(pad: PadLike, spatial: Ints, span: Ints, stride: Ints, caller: str) -> Pads:
    """Any form of `pad` as one (lo, hi) per axis.

    Accepted: an int; one int per axis; one (lo, hi) per axis; the flat (lo, hi, lo, hi, ...), which in 2-D is
    (top, bottom, left, right); and the names

        "valid"       no pad
        "same"        out = ceil(in / stride), the odd one on the high side (TensorFlow, JAX, ONNX SAME_UPPER)
        "same_lower"  the same with the odd one on the low side (ONNX SAME_LOWER)
        "full"        every position where kernel and input overlap: span - 1 on both sides
        "causal"      1-D: span - 1 on the low side, so that no output depends on a later input
    """
    ndim = len(spatial)
    if isinstance(pad, str):
        if pad == "causal" and ndim > 1:
            raise GeometryError(
                f"{caller}: pad='causal' is for 1 axis, but this convolution has {ndim}. Pad with numbers."
            )
        if pad == "valid":
            return ((0, 0),) * ndim
        if pad == "full":
            return tuple((s - 1, s - 1) for s in span)
        if pad == "causal":
            return ((span[0] - 1, 0),)
        if pad in SAME:
            total = [max(0, (-(-i // st) - 1) * st + sp - i) for i, sp, st in zip(spatial, span, stride, strict=True)]
            pairs = tuple((t // 2, t - t // 2) for t in total)
            return pairs if pad == "same" else tuple((hi, lo) for lo, hi in pairs)
        names = ", ".join(map(repr, NAMED_PADS))
        raise GeometryError(f"{caller}: pad={pad!r} is none of {names}. Use one, or numbers.")
    flat: list[Any]
    if is_scalar(pad):
        flat = [pad] * (2 * ndim)
    else:
        entries: list[Any] = list(pad)  # type: ignore[arg-type]
        if entries and not any(is_int(e) for e in entries):
            if len(entries) != ndim or any(not hasattr(e, "__len__") or len(e) != 2 for e in entries):
                raise GeometryError(f"{caller}: pad={shown(pad)} needs one (lo, hi) per axis, {ndim} in all.")
            flat = [side for pair in entries for side in pair]
        elif len(entries) == ndim:
            flat = [side for side in entries for _ in range(2)]
        elif len(entries) == 2 * ndim:
            flat = entries
        else:
            raise GeometryError(
                f"{caller}: pad={shown(pad)} has {len(entries)} entries; {ndim} axes take 1, {ndim} or {2 * ndim}."
            )
    sides = [as_int(side, "pad", caller, least=0) for side in flat]
    return tuple(zip(sides[::2], sides[1::2], strict=True))


@lru_cache(maxsize=4096)
def _checked(caller: str, *fields: Any) -> ConvGeometry:
    """The geometry, if its normalised fields fit each other. Cached: a training loop passes the same few every time."""
    g = ConvGeometry(*fields)
    for name, channels in (("input", g.c), ("output", g.k)):
        if channels % g.groups:
            raise GeometryError(f"{caller}: groups={g.groups} does not divide the {channels} {name} channels.")
    for axis, letter in enumerate(SPATIAL_LETTERS[g.ndim]):
        size, (lo, hi), span = g.spatial[axis], g.pad[axis], g.span[axis]
        if size == 0 and (lo or hi) and g.pad_mode != "zeros":
            raise GeometryError(
                f"{caller}: pad ({lo}, {hi}) along {letter} has nothing to {g.pad_mode}: the input has size 0. "
                "Use pad_mode='zeros'."
            )
        if size and span > size + lo + hi:
            raise GeometryError(
                f"{caller}: the kernel spans {span} along {letter} (kernel {g.kernel[axis]}, dilation "
                f"{g.dilation[axis]}), but the padded input has only {size + lo + hi} (input {size}, "
                f"pad ({lo}, {hi})). "
                f"Pad by {span - size - lo - hi} more, or use a smaller kernel or dilation."
            )
    arrays = {"input": g.x_shape, "padded input": (g.n, *g.padded, g.c), "weights": g.w_shape, "output": g.y_shape}
    for name, shape in arrays.items():
        elements = math.prod(max(size, 1) for size in shape)  # as NumPy counts, for which 0 makes no array small
        if elements > MAX_ELEMENTS:
            raise GeometryError(
                f"{caller}: the {name} of {g} would have the shape {shape} and {elements} elements. An array "
                f"has at most {MAX_ELEMENTS}. Choose smaller sizes, pads or strides."
            )
    return _within_reach(g)


def _within_reach(g: ConvGeometry) -> ConvGeometry:
    """`g` with steps whose bytes fit 64 bits.

    A step beyond the end of the input has no effect, whatever its size, but its bytes may overflow. It becomes the
    padded size, which leaves the input just the same.
    """
    strides, dilations = list(g.stride), list(g.dilation)
    row = max(g.c, g.k, 1)
    for axis in reversed(range(g.ndim)):
        size = max(g.padded[axis], 1)
        for steps in (strides, dilations):
            if steps[axis] > size and steps[axis] * row > MAX_ELEMENTS:
                steps[axis] = size
        row *= max(size, g.out[axis])
    if (*strides, *dilations) != (*g.stride, *g.dilation):
        g = replace(g, stride=tuple(strides), dilation=tuple(dilations))
    return interned(g)


@lru_cache(maxsize=4096)
def interned(g: ConvGeometry) -> ConvGeometry:
    """One object for all equal geometries, so that caches find it by identity and compare no fields."""
    return g


@remembered
def _transposed(
    x_shape: Sequence[SupportsIndex],
    w_shape: Sequence[SupportsIndex],
    stride: IntsLike,
    pad: PadLike,
    dilation: IntsLike,
    groups: int,
    output_pad: IntsLike,
    output_shape: IntsLike | None,
    *,
    layout: str,
    ndim: int | None,
    caller: str,
) -> tuple[ConvGeometry, Ints]:
    """The convolution whose input gradient a transposed convolution is, and the shape of the latter's result."""
    ndim = len(w_shape) - 2 if ndim is None else ndim
    n, small, in_ch = split_x_shape(x_shape, ndim, layout, caller)
    kernel, out_group, k = split_w_shape(w_shape, ndim, layout, caller)
    if k != in_ch:
        axis_w, axis_x = (ndim + 1, ndim + 1) if layout == "channels_last" else (0, 1)
        raise GeometryError(
            f"{caller}: w expects {k} input channels, but x has {in_ch}. w.shape={tuple(w_shape)} needs "
            f"w.shape[{axis_w}] == x.shape[{axis_x}] (a transposed convolution's w is that of its adjoint conv)."
        )
    steps = as_ints(stride, ndim, "stride", caller)
    holes = as_ints(dilation, ndim, "dilation", caller)
    extra = as_ints(output_pad, ndim, "output_pad", caller, least=0)
    spans = tuple(map(kernel_span, kernel, holes))
    if output_shape is not None:
        if any(extra):
            raise GeometryError(
                f"{caller}: output_pad={output_pad!r} and output_shape={output_shape!r} are both given. "
                "Pass one of them."
            )
        large = as_ints(output_shape, ndim, "output_shape", caller, least=0)
        pads = resolve_pad(pad, large, spans, steps, caller)
    elif is_one_of(pad, SAME):
        large = tuple(i * s + e for i, s, e in zip(small, steps, extra, strict=True))
        pads = resolve_pad(pad, tuple(i * s for i, s in zip(small, steps, strict=True)), spans, steps, caller)
    else:
        pads = resolve_pad(pad, small, spans, steps, caller)
        large = tuple(
            (i - 1) * s + span - lo - hi + e if i else 0
            for i, s, span, (lo, hi), e in zip(small, steps, spans, pads, extra, strict=True)
        )
    seen, used = [], []
    for letter, i, o, s, d, span, (lo, hi) in zip(
        SPATIAL_LETTERS[ndim], small, large, steps, holes, spans, pads, strict=True
    ):
        least, room = (i - 1) * s + span - lo - hi, max(s, d)
        if i and not least <= o < least + room:
            raise GeometryError(
                f"{caller}: output size {o} along {letter} is out of reach: input {i}, stride {s}, dilation {d}, span "
                f"{span} and pad ({lo}, {hi}) allow {least} to {least + room - 1} (output_pad 0 to {room - 1}, less "
                "than the larger of stride and dilation)."
            )
        if o < 0:
            raise GeometryError(
                f"{caller}: pad ({lo}, {hi}) along {letter} crops the output to {o}; "
                f"input {i}, stride {s} and span {span} give {least + lo + hi} before cropping. Pad less."
            )
        beyond = max(0, o - least - s + 1) if i else 0  # more than a convolution of this stride leaves unread
        uncropped = min(hi, beyond)
        size = o - (beyond - uncropped)
        used.append((lo + min(0, size), hi - uncropped))
        seen.append(max(0, size))
    g = ConvGeometry.create(
        n, tuple(seen), out_group * groups, k, kernel, steps, tuple(used), holes, groups, caller=caller
    )
    return g, (n, *large, g.c)


# -------------------------------------------------------------------------------------------------- shapes and layouts


def check_layout(layout: str, caller: str) -> None:
    if not is_one_of(layout, LAYOUTS):
        raise GeometryError(f"{caller}: layout={layout!r} is none of {', '.join(map(repr, LAYOUTS))}.")


def split_x_shape(
    shape: Sequence[SupportsIndex], ndim: int, layout: str, caller: str, name: str = "x.shape"
) -> tuple[int, Ints, int]:
    """(n, spatial, channels) of an input or an output of shape `shape`."""
    shape = _of_length(shape, ndim, caller, name, "(N, *spatial, C)", "(N, C, *spatial)", layout)
    if layout == "channels_last":
        return shape[0], shape[1:-1], shape[-1]
    return shape[0], shape[2:], shape[1]


def split_w_shape(shape: Sequence[SupportsIndex], ndim: int, layout: str, caller: str) -> tuple[Ints, int, int]:
    """(kernel, input channels per group, output channels) of weights of shape `shape`."""
    shape = _of_length(shape, ndim, caller, "w.shape", "(*kernel, C // groups, F)", "(F, C // groups, *kernel)", layout)
    if layout == "channels_last":
        return shape[:-2], shape[-2], shape[-1]
    return shape[2:], shape[1], shape[0]


def _of_length(
    shape: Sequence[SupportsIndex], ndim: int, caller: str, name: str, last: str, first: str, layout: str
) -> Ints:
    check_layout(layout, caller)
    if type(shape) is tuple and len(shape) == ndim + 2 and _EXACT_INTS.issuperset(map(type, shape)):
        return shape  # an array has this one
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise GeometryError(f"{caller}: {name}={shown(shape)} is not a shape. It needs {ndim + 2} integers.") from None
    if len(sizes) != ndim + 2:
        raise GeometryError(
            f"{caller}: {name}={shown(sizes)} has {len(sizes)} axes, but {ndim}-D convolution needs {ndim + 2}: "
            f"{last if layout == 'channels_last' else first} with layout={layout!r}."
        )
    return sizes
