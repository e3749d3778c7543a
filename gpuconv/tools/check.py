"""The check of an installation: every algorithm on every device against a reference that shares nothing with them.

The arrays hold small integers, so no sum rounds and results are compared at tolerance 0. The forward reference is the
definition, one window after the other. The gradients are held to the identities that define them: with y = conv(x, w),

    <y, dy> == <x, input_grad(dy, w)> == <w, weight_grad(x, dy)>.

Algorithms that round even integers say so (`Algorithm.exact`). They run with ``precision="fast"`` and may be off by
`ROUNDING` units in the last place of the sum of absolute products, while a wrong element is off by at least one.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv.algorithms import ALGORITHMS
from gpuconv.backend import DTYPES, accumulator, to_numpy
from gpuconv.errors import AlgorithmError, DTypeError
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import DIRECTIONS
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array, Direction, Ints, Precision

PROBLEMS = (
    "n2_w9_c4_k6_s1",
    "n2_w17_c4_k6_s3_p1",
    "n1_w16_c3_k4_s4_p0-2_st3_dl2",
    "n2_w11_c6_k6_s3_p2-0_g6",
    "n2_h7w6_c3_k4_r1s1",
    "n2_h7w6_c4_k5_r3s3_p1",
    "n1_h9w8_c4_k6_r3s2_p0-1x2-1_st2x1_dl1x2_g2",
    "n2_h8w7_c6_k6_r3s3_p1_g6",
    "n1_h9w9_c4_k8_r5s5_p2_st2_g4",
    "n1_h6w7_c3_k4_r3s3_p2x3_reflect",
    "n1_h6w7_c3_k4_r3s3_p1_st2_replicate",
    "n1_h5w6_c4_k4_r3s3_p2_g2_circular",
    "n1_h4w5_c3_k4_r3s3_p6x2_symmetric",
    "n1_h4w4_c3_k5_r4s4",
    "n1_h2w3_c2_k3_r5s5_p4",
    "n1_d4h5w4_c2_k4_t2r3s3_p1",
    "n2_d5h4w5_c4_k4_t3r3s2_p0-1x1x1_st2x1x2_dl1x1x2_g2",
    "n1_d4h4w4_c3_k3_t3r3s3_p1_g3",
    "n3_h6w5_c4_k6_r3s3_p1_g2_banks",
)

NUMPY_PAD_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one algorithm on one case. `failure` is empty if it passes, or refuses the case."""

    device: str
    algorithm: str
    dtype: str
    problem: str
    direction: Direction
    refused: bool = False
    failure: str = ""


ROUNDING = 64


def outcomes(devices: Sequence[str], dtypes: Sequence[str]) -> Iterator[Outcome]:
    """Run all cases: `count` of them, in the order device, dtype, problem, algorithm, direction."""
    for device, dtype, problem in itertools.product(devices, dtypes, PROBLEMS):
        try:
            work = Workload.integers(ConvGeometry.parse(problem), dtype, device)
        except DTypeError:  # a CuPy without bfloat16
            for algorithm, direction in itertools.product(ALGORITHMS, DIRECTIONS):
                yield Outcome(device, algorithm.name, dtype, problem, direction, refused=True)
            continue
        x, w, dy = (_exact(array) for array in (work.x, work.w, work.dy))
        y, largest = reference(x, w, work.geometry), reference(abs(x), abs(w), work.geometry)
        for algorithm, direction in itertools.product(ALGORITHMS, DIRECTIONS):
            case = (device, algorithm.name, dtype, problem, direction)
            precision: Precision = "strict" if algorithm.exact else "fast"
            tolerance = 0.0 if algorithm.exact else ROUNDING * float(np.finfo(accumulator(work.x.dtype)).eps)
            try:
                got = _exact(work.run(direction, algorithm=algorithm.name, precision=precision))
            except AlgorithmError:
                yield Outcome(*case, refused=True)
            except Exception as error:  # whatever the error, the other cases still run
                yield Outcome(*case, failure=f"{type(error).__name__}: {error}")
            else:
                yield Outcome(*case, failure=_difference(direction, got, x, w, y, dy, tolerance * largest))


def count(devices: Sequence[str], dtypes: Sequence[str]) -> int:
    """The number of outcomes that there will be."""
    return len(devices) * len(dtypes) * len(PROBLEMS) * len(ALGORITHMS) * len(DIRECTIONS)


def available_dtypes() -> list[str]:
    """All dtypes of gpuconv; bfloat16 only where ml_dtypes is installed."""
    return [name for name in DTYPES if name != "bfloat16" or importlib.util.find_spec("ml_dtypes")]


def reference(x: Array, w: Array, g: ConvGeometry) -> Array:
    """The forward convolution by its definition: pad, then move the window until it would leave the padded input."""
    if g.banks:
        return np.concatenate([reference(x[n : n + 1], w[n], g.sample) for n in range(g.n)])
    padded = pad(x, g)
    starts = [
        range(0, size - dilation * (taps - 1), stride)
        for size, taps, stride, dilation in zip(padded.shape[1:-1], g.kernel, g.stride, g.dilation, strict=True)
    ]
    y = [window_sum(padded, w, g, start) for start in itertools.product(*starts)]
    return np.stack(y, axis=1).reshape(g.n, *map(len, starts), g.k)


def pad(x: Array, g: ConvGeometry) -> Array:
    """`x` with its padding, by NumPy."""
    return np.pad(x, ((0, 0), *g.pad, (0, 0)), NUMPY_PAD_MODES[g.pad_mode])  # type: ignore[call-overload, no-any-return]


def window_sum(padded: Array, w: Array, g: ConvGeometry, start: Ints) -> Array:
    """The outputs (n, k) of the one window that begins at `start`."""
    taps = (slice(i, i + d * (r - 1) + 1, d) for i, r, d in zip(start, g.kernel, g.dilation, strict=True))
    window = padded[(slice(None), *taps)]
    c, k = g.c // g.groups, g.k // g.groups
    return np.concatenate(
        [
            np.tensordot(window[..., i * c : (i + 1) * c], w[..., i * k : (i + 1) * k], g.ndim + 1)
            for i in range(g.groups)
        ],
        axis=-1,
    )


def _difference(direction: Direction, got: Array, x: Array, w: Array, y: Array, dy: Array, tolerance: Array) -> str:
    """The fault of `got` in words, empty if there is none. NaN is wrong. `tolerance` is that of each element of y."""
    if direction == "forward":
        if got.shape != y.shape:
            return f"the shape is {got.shape}, not {y.shape}"
        wrong = int(np.count_nonzero(~(abs(got - y) <= tolerance.max(initial=0))))
        return f"{wrong} of {y.size} outputs differ" if wrong else ""
    to = x if direction == "input_grad" else w
    if got.shape != to.shape:
        return f"the shape is {got.shape}, not {to.shape}"
    left, right = complex(np.vdot(y, dy)), complex(np.vdot(to, got))
    if abs(left - right) <= float(np.vdot(tolerance, abs(dy))):
        return ""
    return f"<y, dy> is {left:g}, but its adjoint is {right:g}"


def _exact(array: Array) -> Array:
    """The array as complex128, which holds the integers of every dtype."""
    return to_numpy(array).astype(np.complex128)
