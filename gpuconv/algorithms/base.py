"""The problem that an algorithm is given, and the protocol that it implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gpuconv import backend
from gpuconv.geometry import ConvGeometry
from gpuconv.support.hashing import CachedHash
from gpuconv.typing import Array, Direction, Precision


@dataclass(frozen=True)
class Problem(CachedHash):
    """All that the choice of an algorithm may depend on, except the arrays.

    `geometry` describes the convolution x -> y in all three directions. `dtype` is native. `contiguous` says that the
    arrays are C-contiguous in channels-last order, native and aligned, so that an algorithm may view them as matrices.
    On a GPU they always are: kernels take no strides, so other arrays are copied first. `copied` is the bytes of these
    copies, and of a result that is made elsewhere because `out` overlaps an argument. `max_workspace` is the rest.
    `captured` says that the stream is being captured in a CUDA graph, where not everything can run. `weights` is the
    dtype of w where it is another than that of x, as integers of 8 bits may be mixed; such a problem, as any of
    integers, has a result of another dtype than x.
    """

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    device: str = "cpu"
    direction: Direction = "forward"
    precision: Precision = "strict"
    max_workspace: int = 0
    contiguous: bool = True
    copied: int = 0
    captured: bool = False
    weights: np.dtype[Any] | None = None

    __hash__ = CachedHash.__hash__

    @cached_property
    def xp(self) -> ModuleType:
        """The module of the arrays of this problem, NumPy or CuPy."""
        return backend.module_for(self.device)

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Cost:
    """The operations that an algorithm has to do, which the heuristics turn into seconds.

    `blas_macs` are multiply-adds in matrix products of BLAS, `kernel_macs` those in kernels of this package. `elements`
    are read or written outside of these, by copies and additions. `steps` are operations called one by one from Python.
    `seconds` is the estimate of an algorithm's own model of the device, and `model` that model in words, for `explain`.
    """

    blas_macs: float = 0
    elements: float = 0
    steps: float = 0
    kernel_macs: float = 0
    seconds: float = 0
    model: str = ""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.blas_macs + other.blas_macs,
            self.elements + other.elements,
            self.steps + other.steps,
            self.kernel_macs + other.kernel_macs,
            self.seconds + other.seconds,
            self.model or other.model,
        )

    def __mul__(self, count: int) -> Cost:
        """The cost of doing the same this many times."""
        macs, elements, steps, kernel_macs, seconds = (
            count * number for number in (self.blas_macs, self.elements, self.steps, self.kernel_macs, self.seconds)
        )
        return Cost(macs, elements, steps, kernel_macs, seconds, self.model)


class Algorithm(Protocol):
    """One way to compute all three passes. Arrays are channels last, of any strides; the results go into `out`.

    The caller has checked shapes, dtypes and devices, `out` overlaps no other array, and no size is 0.
    """

    name: str

    exact: bool
    """Whether arrays of small integers, whose sums the dtype holds, are computed without any rounding."""

    def refusal(self, problem: Problem) -> str | None:
        """The reason why this problem is not supported, in words; None if it is. This allocates nothing."""

    def why_not_auto(self, problem: Problem) -> str | None:
        """The reason why "auto" skips this algorithm, which may still be named, in words; None if it does not."""

    def workspace_bytes(self, problem: Problem) -> int:
        """Bytes taken beside arguments and result: at most ``problem.max_workspace``, or else the least possible."""

    def cost(self, problem: Problem) -> Cost:
        """The cost of a problem that is not refused."""

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        """Whether each sample of a batch gets the same bits as in the problem `sample`, alone; False if unsure."""

    def forward(self, problem: Problem, x: Array, w: Array, out: Array, bias: Array | None, activation: str) -> None:
        """out = activation(conv(x, w) + bias)"""

    def input_grad(
        self, problem: Problem, dy: Array, w: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """out = activation(adjoint of x -> conv(x, w), applied to dy, + bias); gradients have no bias or activation."""

    def weight_grad(self, problem: Problem, x: Array, dy: Array, out: Array) -> None:
        """out = adjoint of w -> conv(x, w), applied to dy"""

    def prepack(self, problem: Problem, w: Array) -> Array:
        """w as `forward_prepacked` takes it, made once for many calls; w itself if there is nothing to gain."""

    def forward_prepacked(
        self, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """As `forward`, and with the same bits, from the weights that `prepack` returned."""


class ComputesBanks(ABC):
    """An algorithm that computes samples with weights of their own at once, each with the bits that it has alone.

    `sample` is the problem of one sample. The arrays have a leading axis of samples, the weights as well, and are
    C-contiguous; bias has one where it is not the same for all.
    """

    @abstractmethod
    def bank_bytes(self, sample: Problem) -> int | None:
        """The bytes of workspace per sample; None where each sample has to be computed by itself."""

    @abstractmethod
    def compute_banks(
        self, sample: Problem, read: Array, other: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        """Compute a pass in the direction of `sample`."""


class PlainWeights:
    """The base of algorithms that do not prepack w."""

    def is_the_same_for(self, problem: Problem, sample: Problem) -> bool:
        return False

    def prepack(self, problem: Problem, w: Array) -> Array:
        return w

    def forward_prepacked(
        self: Algorithm, problem: Problem, x: Array, packed: Array, out: Array, bias: Array | None, activation: str
    ) -> None:
        self.forward(problem, x, packed, out, bias, activation)
