"""The convolutions that the tests run: a dataclass, a list by hand for each number of axes, and a Hypothesis strategy.

Nothing here asks gpuconv for a size: shapes come from the oracle, which counts windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import oracle
from hypothesis import strategies as st
from tolerances import plain_gemm

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}

# Fills are drawn from [-REACH, REACH], so that every sum over a case below is an integer the dtype holds.
REACH = {"float16": 2, "bfloat16": 1}


def integers(rng, shape, dtype="float32"):
    """Small integers in `dtype`; complex ones have both parts."""
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    reach = REACH.get(dtype.name, 4)
    a = rng.integers(-reach, reach + 1, shape)
    if dtype.kind == "c":
        a = a + 1j * rng.integers(-reach, reach + 1, shape)
    return a.astype(dtype)


def reals(rng, shape, dtype="float32"):
    """Normal deviates, rounded to `dtype`."""
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    a = rng.standard_normal(shape)
    if dtype.kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a.astype(dtype)


@dataclass(frozen=True)
class Case:
    n: int
    spatial: tuple[int, ...]
    c: int
    k: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int = 1
    mode: str = "zeros"

    @property
    def ndim(self):
        return len(self.spatial)

    @property
    def out(self):
        return oracle.out_shape(self.spatial, self.kernel, self.stride, self.dilation, self.pads)

    @property
    def x_shape(self):
        return (self.n, *self.spatial, self.c)

    @property
    def w_shape(self):
        return (*self.kernel, self.c // self.groups, self.k)

    @property
    def y_shape(self):
        return (self.n, *self.out, self.k)

    @property
    def steps(self):
        """The keywords of the oracle's walk over one image."""
        return {"stride": self.stride, "dilation": self.dilation, "pads": self.pads}

    @property
    def oracle(self):
        """The keywords of the oracle's convolutions."""
        return {**self.steps, "groups": self.groups, "mode": self.mode}

    @property
    def keywords(self):
        """The same in gpuconv's words."""
        return {
            "stride": self.stride,
            "dilation": self.dilation,
            "pad": self.pads,
            "groups": self.groups,
            "pad_mode": self.mode,
        }

    def arrays(self, fill=integers, dtype="float32", seed=0):
        """x, w and dy of this case."""
        rng = np.random.default_rng(seed)
        return tuple(fill(rng, shape, dtype) for shape in (self.x_shape, self.w_shape, self.y_shape))

    def want(self, direction, x, w, dy):
        """What the oracle says."""
        if direction == "forward":
            return oracle.conv(x, w, **self.oracle)
        if direction == "input_grad":
            return oracle.input_grad(dy, w, self.spatial, **self.oracle)
        return oracle.weight_grad(x, dy, self.kernel, **self.oracle)

    def numpy_result(self, direction, x, w, dy):
        """What one plain NumPy GEMM gives at the dtype of the arrays, rounding and all; groups are blocks in it.

        16-bit arrays are multiplied in float32 and rounded once: that is what is promised for them.
        """
        stored, work = x.dtype, np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype
        x, w, dy = (a.astype(work) for a in (x, w, dy))
        if direction == "input_grad":
            w_tck = np.flip(self._dense(w), 0).conj()
            result = self._spread(dy, w_tck.swapaxes(1, 2).reshape(-1, self.c))
        else:
            cols_mj = oracle.im2col(x, self.kernel, **self.steps, mode=self.mode)
            if direction == "forward":
                result = plain_gemm(cols_mj, self._dense(w).reshape(-1, self.k)).reshape(self.y_shape)
            else:
                dw_jk = plain_gemm(cols_mj.conj().T, dy.reshape(-1, self.k))
                result = self._blocks(dw_jk.reshape(-1, self.c, self.k))
        return result.astype(stored)

    def _dense(self, w):
        """(*kernel, c // groups, k) -> (taps, c, k), zero where an output channel does not see an input channel."""
        w_tgak = w.reshape(-1, 1, self.c // self.groups, self.k) * self._sees().astype(w.dtype)
        return w_tgak.reshape(-1, self.c, self.k)

    def _blocks(self, w_tck):
        """The part of a dense (taps, c, k) that grouped weights hold."""
        w_tgak = w_tck.reshape(-1, self.groups, self.c // self.groups, self.k)
        return (w_tgak * self._sees()).sum(1, dtype=w_tck.dtype).reshape(self.w_shape)

    def _sees(self):
        """Whether group g of the inputs is that of output channel k: (groups, 1, k)."""
        return (np.arange(self.groups)[:, None] == np.repeat(np.arange(self.groups), self.k // self.groups))[:, None]

    def _spread(self, dy, w_jc):
        """dy, its pixels a stride apart among zeros, times the flipped weights: the padded input's gradient, folded."""
        room = oracle.sources(self.spatial, self.pads, self.mode).shape
        apart = [(p - 1) * s + 1 for p, s in zip(self.out, self.stride, strict=True)]
        among_zeros = np.zeros((self.n, *apart, self.k), dy.dtype)
        among_zeros[(slice(None), *(slice(None, None, s) for s in self.stride))] = dy
        spans = [d * (t - 1) for d, t in zip(self.dilation, self.kernel, strict=True)]
        pads = [(span, r - a) for span, r, a in zip(spans, room, apart, strict=True)]
        one = (1,) * self.ndim
        cols_mj = oracle.im2col(among_zeros, self.kernel, stride=one, dilation=self.dilation, pads=pads)
        padded = plain_gemm(cols_mj, w_jc).reshape(self.n, *room, self.c)
        return oracle.unpad(padded, self.spatial, self.pads, self.mode)


@dataclass(frozen=True)
class Posed:
    """One direction of a case, with its arrays, for every way to compute it. Nobody writes to them."""

    case: Case
    direction: str
    fill: Callable[..., Any]
    dtype: str
    factor: int = 1

    @cached_property
    def arrays(self):
        """x, w and dy."""
        return tuple(_fixed(self.factor * a) for a in self.case.arrays(self.fill, self.dtype))

    @cached_property
    def want(self):
        return _fixed(self.case.want(self.direction, *self.arrays))

    @cached_property
    def largest(self):
        """The largest sum of absolute products."""
        return np.max(self.case.want(self.direction, *map(np.abs, self.arrays)), initial=0)

    @cached_property
    def numpy_result(self):
        return _fixed(self.case.numpy_result(self.direction, *self.arrays))


posed = lru_cache(maxsize=64)(Posed)
"""The oracle takes longer than what is tested: it is asked once for all ways to compute a case."""


def _fixed(a):
    a.flags.writeable = False
    return a


DIRECTIONS = ("forward", "input_grad", "weight_grad")

PLAIN = {
    1: Case(2, (9,), 3, 4, (3,), (1,), (1,), ((0, 0),)),
    2: Case(2, (6, 5), 3, 4, (3, 2), (1, 1), (1, 1), ((0, 0), (0, 0))),
    3: Case(1, (4, 3, 5), 2, 3, (2, 1, 3), (1, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
}

# What makes each case worth running is its name; every one is run in every direction, dtype and algorithm.
CASES = {
    "1d": PLAIN[1],
    "1d-causal-dilated": replace(PLAIN[1], dilation=(2,), pads=((4, 0),)),
    "1d-stride-over-kernel": replace(PLAIN[1], spatial=(11,), kernel=(2,), stride=(5,), pads=((1, 3),)),
    "1d-huge-pads": replace(PLAIN[1], spatial=(3,), stride=(7,), pads=((200, 151),)),
    "1d-circular": replace(PLAIN[1], pads=((4, 2),), mode="circular"),
    "2d": PLAIN[2],
    "2d-1x1": replace(PLAIN[2], kernel=(1, 1)),
    "2d-1x1-strided": replace(PLAIN[2], kernel=(1, 1), stride=(2, 3)),
    "2d-1x1-padded": replace(PLAIN[2], kernel=(1, 1), pads=((1, 0), (0, 2))),
    "2d-full-size-kernel": replace(PLAIN[2], kernel=(6, 5)),
    "2d-kernel-over-input": replace(PLAIN[2], spatial=(2, 3), kernel=(4, 5), pads=((1, 2), (3, 0))),
    "2d-four-pads": replace(PLAIN[2], kernel=(3, 3), pads=((0, 2), (3, 1))),
    "2d-stride": replace(PLAIN[2], kernel=(3, 3), stride=(2, 3), pads=((1, 1), (1, 1))),
    "2d-dilation-and-stride": replace(PLAIN[2], stride=(2, 1), dilation=(2, 3), pads=((2, 1), (0, 3))),
    "2d-groups": replace(PLAIN[2], c=6, k=4, groups=2, pads=((1, 1), (1, 1))),
    "2d-groups-strided": replace(PLAIN[2], c=4, k=8, groups=4, stride=(2, 2), dilation=(1, 2), pads=((1, 1), (1, 1))),
    "2d-depthwise": replace(PLAIN[2], c=5, k=5, groups=5, pads=((1, 1), (0, 1))),
    "2d-depthwise-multiplied": replace(
        PLAIN[2], c=3, k=6, groups=3, kernel=(3, 3), stride=(2, 1), pads=((1, 2), (1, 1))
    ),
    "2d-one-group-one-channel": replace(PLAIN[2], c=1, k=1),
    "2d-reflect": replace(PLAIN[2], kernel=(3, 3), pads=((1, 1), (2, 0)), mode="reflect"),
    "2d-reflect-beyond-the-input": replace(
        PLAIN[2], spatial=(3, 2), kernel=(3, 3), pads=((7, 5), (2, 4)), mode="reflect"
    ),
    "2d-replicate-strided": replace(PLAIN[2], stride=(2, 2), pads=((3, 1), (1, 2)), mode="replicate"),
    "2d-circular-groups": replace(PLAIN[2], c=4, k=4, groups=2, pads=((7, 0), (1, 6)), mode="circular"),
    "2d-size-1-axes": replace(PLAIN[2], n=1, spatial=(1, 1), kernel=(3, 3), pads=((1, 1), (1, 1))),
    "2d-batch-0": replace(PLAIN[2], n=0),
    "2d-channels-0": replace(PLAIN[2], c=0),
    "2d-outputs-0": replace(PLAIN[2], k=0),
    "2d-input-0": replace(PLAIN[2], spatial=(0, 5)),
    "2d-input-0-padded": replace(PLAIN[2], spatial=(0, 5), pads=((2, 2), (0, 0))),
    "3d": PLAIN[3],
    "3d-everything": Case(1, (5, 4, 3), 4, 2, (2, 3, 2), (2, 1, 3), (1, 2, 1), ((1, 0), (2, 2), (3, 1)), groups=2),
    "3d-depthwise": replace(PLAIN[3], c=2, k=2, groups=2, pads=((1, 0), (0, 0), (1, 1))),
    "3d-reflect": replace(PLAIN[3], pads=((3, 1), (1, 0), (0, 6)), mode="reflect"),
}


@st.composite
def cases(draw, ndim, modes=tuple(oracle.PAD_MODES)):
    """Any small legal convolution: kernels over the input, strides over the kernel, holes, lopsided and huge pads."""

    def each(strategy):
        return tuple(draw(st.tuples(*[strategy] * ndim)))

    mode = draw(st.sampled_from(modes))
    largest = {1: 9, 2: 6, 3: 4}[ndim]
    spatial = each(st.integers(0 if mode == "zeros" else 1, largest))
    kernel, stride, dilation = each(st.integers(1, 4)), each(st.integers(1, 5)), each(st.integers(1, 3))
    side = st.one_of(st.integers(0, 3), st.integers(0, 4 * largest // ndim))
    pads = []
    for size, t, d, (low, high) in zip(spatial, kernel, dilation, each(st.tuples(side, side)), strict=True):
        missing = max(0, (t - 1) * d + 1 - size - low - high)  # a kernel over its padded input is an error
        pads.append((low, high + missing) if draw(st.booleans()) else (low + missing, high))
    groups = draw(st.integers(1, 3))
    c, k = groups * draw(st.integers(0, 2)), groups * draw(st.integers(0, 2))
    return Case(draw(st.integers(0, 2)), spatial, c, k, kernel, stride, dilation, tuple(pads), groups, mode)


ZEROS = {name: case for name, case in CASES.items() if case.mode == "zeros" and 0 not in case.out}


def remainder(case):
    """The rows at the end of the input that no window of the convolution reaches: what output_pad has to restore."""
    return tuple(
        size + low + high - ((p - 1) * s + (t - 1) * d + 1)
        for size, (low, high), p, s, t, d in zip(
            case.spatial, case.pads, case.out, case.stride, case.kernel, case.dilation, strict=True
        )
    )
