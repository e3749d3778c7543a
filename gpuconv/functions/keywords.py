"""The keywords that all convolution functions share, and what follows from them alone: checks, layouts, results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex, TypeVar

import numpy as np

from gpuconv import backend
from gpuconv.algorithms import Algorithm, Problem
from gpuconv.algorithms.epilogue import ACTIVATIONS
from gpuconv.cuda import graphs
from gpuconv.errors import DTypeError, GeometryError, WorkspaceError
from gpuconv.functions.computing import is_served
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import check_precision, goes_by_sample, workspace_limit
from gpuconv.support.argument_checks import is_one_of
from gpuconv.typing import Array, Direction, Ints, IntsLike, Layout, PadLike, PadMode, Precision

Kind = TypeVar("Kind", bound="Keywords")


class Keywords(NamedTuple):
    """The keywords of a call, and who was called."""

    caller: str
    ndim: int
    stride: IntsLike
    pad: PadLike
    dilation: IntsLike
    groups: int
    layout: Layout
    algorithm: str
    precision: Precision
    max_workspace: int | None
    pad_mode: PadMode

    @classmethod
    def of(  # noqa: PYI019  # typing.Self is there from Python 3.11 on
        cls: type[Kind],
        caller: str,
        ndim: int,
        *,
        stride: IntsLike = 1,
        pad: PadLike = 0,
        dilation: IntsLike = 1,
        groups: int = 1,
        layout: Layout = "channels_last",
        algorithm: str = "auto",
        precision: Precision = "strict",
        max_workspace: int | None = None,
        pad_mode: PadMode = "zeros",
    ) -> Kind:
        """The same by keyword: 0.3 us sooner than by the class, for which Python makes a dictionary of the keywords."""
        fields = caller, ndim, stride, pad, dilation, groups, layout, algorithm, precision, max_workspace, pad_mode
        return tuple.__new__(cls, fields)

    # ---------------------------------------------------------------------------------------------- problems

    def geometry(self, x_shape: Sequence[SupportsIndex], w_shape: Ints, x_name: str = "x.shape") -> ConvGeometry:
        return ConvGeometry.from_shapes(
            x_shape, w_shape, self.stride, self.pad, self.dilation, self.groups, self.pad_mode,
            layout=self.layout, ndim=self.ndim, caller=self.caller, x_name=x_name,
        )  # fmt: skip

    def transposed(
        self, x_shape: Ints, w_shape: Ints, output_pad: IntsLike, output_shape: IntsLike | None = None
    ) -> tuple[ConvGeometry, Ints]:
        """The convolution whose input gradient a transposed convolution is, and the latter's (channels-last) shape."""
        sizes = (x_shape, w_shape, self.stride, self.pad, self.dilation, self.groups, output_pad, output_shape)
        kind: dict[str, Any] = {"layout": self.layout, "ndim": self.ndim, "caller": self.caller}
        return ConvGeometry.transposed(*sizes, **kind), ConvGeometry.transposed_shape(*sizes, **kind)

    def problem(
        self,
        direction: Direction,
        g: ConvGeometry,
        dtype: np.dtype[Any],
        device: str,
        weights: list[Array],
        *arrays: Array,
        elsewhere: int = 0,
        captured: bool = False,
    ) -> Problem:
        """The problem that these arrays pose, all that the algorithm will read and write, channels last.

        `arrays` are batches, or their first samples where samples are computed one by one. `elsewhere` counts the
        bytes of a result that is made elsewhere because `out` overlaps an argument. `captured`: in a CUDA graph.
        """
        precision = check_precision(self.precision, self.caller)
        limit = self.limit_beside(elsewhere) + elsewhere
        contiguous = True
        if device == "cpu":
            for array in (*weights, *arrays):
                flags = array.flags
                contiguous = contiguous and flags.c_contiguous and flags.aligned and array.dtype == dtype
        copied = elsewhere
        if device != "cpu":
            anywhere = not goes_by_sample(direction)
            copies = [w for w in weights if not is_served(w)] + [a for a in arrays if not is_served(a, anywhere)]
            copied += sum(array.nbytes for array in copies)
        if not copied:
            return _problem(g, dtype, device, direction, precision, limit, contiguous, 0, captured)
        if copied > limit:
            raise WorkspaceError(
                f"{self.caller}: kernels take C-contiguous, channels-last arrays. Copies of those that are not take "
                f"{copied} bytes, but max_workspace is {limit}. Raise it, or pass such arrays."
            )
        return Problem(g, dtype, device, direction, precision, limit - copied, contiguous, copied, captured)

    def limit_beside(self, elsewhere: int) -> int:
        """The bytes that are left to a call whose result is made elsewhere, in `elsewhere` bytes."""
        limit = workspace_limit(self.max_workspace, self.caller)
        if elsewhere > limit:
            raise WorkspaceError(
                f"{self.caller}: out overlaps an argument, so the result is made elsewhere first, which takes "
                f"{elsewhere} bytes, but max_workspace is {limit}. Raise it, or pass an out that overlaps nothing."
            )
        return limit - elsewhere

    # ---------------------------------------------------------------------------------------------- results

    def result(
        self,
        xp: ModuleType,
        out: Array | None,
        inputs: Iterable[Array | None],
        shape: Ints,
        dtype: np.dtype[Any],
        is_w: bool = False,
    ) -> Array:
        """The array to write into: `out`, or a new one if there is none or it overlaps an input."""
        if out is not None and self.is_apart(xp, out, inputs):
            return out
        fresh: Array = xp.empty(self.in_layout(shape, is_w), dtype)
        return fresh

    def is_apart(self, xp: ModuleType, out: Array, inputs: Iterable[Array | None]) -> bool:
        """Whether `out` overlaps none of the inputs."""
        may_overlap = backend.may_overlap(xp)
        return not any(may_overlap(out, x) for x in inputs if x is not None)

    def deliver(self, result: Array, out: Array | None) -> Array:
        """`result`, copied into `out` if there is one; the inputs that `out` may overlap have been read by now."""
        if out is None or out is result:
            return result
        out[...] = result
        return out

    def out_of_memory(self, device: str, shape: Ints, dtype: np.dtype[Any]) -> _OutOfMemory:
        """A context that turns a MemoryError of NumPy or CuPy into a WorkspaceError with the bytes and a remedy."""
        return _OutOfMemory(self, device, shape, dtype)

    # ---------------------------------------------------------------------------------------------- layouts

    def channels_last(self, array: Array, is_w: bool = False) -> Array:
        """A channels-last view of an array in the layout of this call."""
        if self.layout == "channels_last":
            return array
        return array.transpose(channels_last_axes(array.ndim, is_w))

    def banks_last(self, array: Array) -> Array:
        """A channels-last view of the weights of all samples."""
        if self.layout == "channels_last":
            return array
        return array.transpose(0, *range(3, array.ndim), 2, 1)

    def in_layout(self, shape: Ints, is_w: bool = False) -> Ints:
        """A channels-last shape in the layout of this call."""
        if self.layout == "channels_last":
            return shape
        return (shape[-1], shape[-2], *shape[:-2]) if is_w else (shape[0], shape[-1], *shape[1:-1])

    # ---------------------------------------------------------------------------------------------- checks

    def check_bias(self, bias: Array | None, channels: int) -> None:
        if bias is not None and bias.shape != (channels,):
            raise GeometryError(
                f"{self.caller}: bias.shape is {bias.shape}, but {channels} output channels need "
                f"bias.shape=({channels},)."
            )

    def check_out(
        self, out: Array | None, g: ConvGeometry, shape: Ints, dtype: np.dtype[Any], is_w: bool = False
    ) -> None:
        self.check_out_is(out, self.in_layout(shape, is_w), g, dtype)

    def check_out_is(self, out: Array | None, wanted: Ints, g: ConvGeometry, dtype: np.dtype[Any]) -> None:
        if out is None:
            return
        self.check_shape_is("out", out, wanted, "the result of", g)
        if out.dtype != dtype:
            raise DTypeError(f"{self.caller}: out is {out.dtype}, but the result is {dtype}. Give out that dtype.")
        if not getattr(out.flags, "writeable", True):  # CuPy arrays always are
            raise GeometryError(f"{self.caller}: out is read-only. Pass an array that may be written.")

    def check_shape(self, name: str, array: Array, shape: Ints, what: str, g: ConvGeometry, is_w: bool = False) -> None:
        """Raise unless `array` has the (channels-last) `shape`, which `what` of `g` needs, as the message says."""
        self.check_shape_is(name, array, self.in_layout(shape, is_w), what, g)

    def check_shape_is(self, name: str, array: Array, wanted: Ints, what: str, g: ConvGeometry) -> None:
        if array.shape != wanted:
            raise GeometryError(
                f"{self.caller}: {name}.shape is {array.shape}, but {what} {g} needs {name}.shape={wanted}."
            )

    def check_activation(self, activation: str | None, dtype: np.dtype[Any]) -> str:
        if activation is None:
            return "identity"
        if not is_one_of(activation, ACTIVATIONS):
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{self.caller}: activation={activation!r} is none of {names}.")
        if dtype.kind == "i" and activation not in ("identity", "relu"):
            raise DTypeError(
                f"{self.caller}: activation={activation!r} takes floating-point numbers, but the arrays hold integers. "
                "Use 'relu', or cast x and w with .astype."
            )
        if backend.is_complex(dtype) and activation != "identity":
            raise DTypeError(
                f"{self.caller}: activation={activation!r} takes real numbers, but the arrays are {dtype}."
            )
        return activation

    def check_kept(self, problem: Problem, algorithm: Algorithm, bias: Array | None, *, is_filled: bool) -> None:
        """Raise if a call that is captured in a graph takes memory that nobody keeps for the replays."""
        needed = problem.copied + algorithm.workspace_bytes(problem)
        if is_filled or problem.geometry.macs == 0 or not (bias is None or bias.flags.c_contiguous):
            needed += math.prod(problem.geometry.y_shape[-1:]) * problem.dtype.itemsize  # one row, or the bias
        if needed:
            graphs.check_kept(problem.xp, self.caller, f"{algorithm.name} takes {needed} bytes beside its arrays")


def channels_last_axes(ndim: int, is_w: bool) -> Ints:
    """The axes of a channels-first array in the order of a channels-last one."""
    kernel_or_spatial = range(2, ndim)
    return (*kernel_or_spatial, 1, 0) if is_w else (0, *kernel_or_spatial, 1)


class _OutOfMemory(NamedTuple):
    call: Keywords
    device: str
    shape: Ints
    dtype: np.dtype[Any]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, MemoryError) or isinstance(error, WorkspaceError):
            return
        caller, limit = self.call.caller, workspace_limit(self.call.max_workspace, self.call.caller)
        result_bytes = math.prod(self.shape) * self.dtype.itemsize
        raise WorkspaceError(
            f"{caller}: out of memory on {self.device}: {error}. The result takes {result_bytes} bytes, and workspace "
            f"up to {limit} more. Pass a smaller max_workspace, or fewer samples at a time."
        ) from error


@lru_cache(maxsize=4096)
def _problem(*fields: Any) -> Problem:
    """One object for the same fields, so that caches find it by identity and compare no fields."""
    return Problem(*fields)
