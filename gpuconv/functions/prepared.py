"""Work done before the calls: plans made, kernels compiled, problems tuned, weights prepacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np

from gpuconv import autotune, backend
from gpuconv.cuda import graphs
from gpuconv.errors import GeometryError, WorkspaceError
from gpuconv.functions import by_sample, repeats
from gpuconv.functions.call import Call, checked_array
from gpuconv.functions.computing import PrepackedWeights, stand_in
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import (
    DIRECTIONS,
    ConvPlan,
    as_computed,
    choose,
    goes_by_sample,
    of_a_sample,
    plan_of,
    problem_of,
    workspace_limit,
)
from gpuconv.support.argument_checks import as_ints
from gpuconv.support.numbers import si
from gpuconv.typing import (
    ActivationName,
    AlgorithmName,
    Array,
    Direction,
    DTypeLike,
    IntsLike,
    Layout,
    PadLike,
    PadMode,
    Precision,
)


def warmup(
    problems: ConvGeometry | str | Iterable[ConvGeometry | str],
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    *,
    directions: Direction | Iterable[Direction] = DIRECTIONS,
    precision: Precision = "strict",
    max_workspace: int | None = None,
    tune: bool = False,
) -> list[ConvPlan]:
    """Make the first calls of some problems as quick as the later ones.

    Each problem runs once in each direction, on arrays made for it. That makes the plan and loads BLAS and its threads;
    on a GPU it compiles the kernels and fills the memory pool.

    Parameters
    ----------
    problems : str, ConvGeometry, or several
        Problems of C-contiguous, channels-last arrays; a problem string is parsed.
    dtype : dtype or str
    device : str
        "cpu", "cuda" or "cuda:<number>".
    directions : {"forward", "input_grad", "weight_grad"}, or several
    precision, max_workspace
        As in the calls that will follow.
    tune : bool
        Time the algorithms that support each problem, unless that was done before on this machine, and use the
        fastest from now on. It takes up to `settings.autotune_budget` seconds per plan, see `gpuconv.autotune`.

    Returns
    -------
    list of ConvPlan
        The plans of calls with ``algorithm="auto"``, direction by direction for each problem.

    Raises
    ------
    GeometryError, DTypeError, DeviceError, WorkspaceError, ValueError
        As the calls themselves would.

    Examples
    --------
    >>> import gpuconv
    >>> gpuconv.warmup("n1_h8w8_c4_k4_r1s1", "complex64", directions="forward")
    [<ConvPlan n1_h8w8_c4_k4_r1s1 complex64 forward on cpu: gemm, no workspace>]
    """
    several = [problems] if isinstance(problems, (str, ConvGeometry)) else list(problems)
    ways = [directions] if isinstance(directions, str) else list(directions)
    posed = [
        problem_of(geometry, dtype, device, direction, precision, max_workspace, "warmup")
        for geometry in several
        for direction in ways
    ]
    plans = []
    for problem in posed:
        computed = as_computed(problem)
        if tune:
            autotune.apply_to(computed)
        algorithm = choose(problem, "auto", "warmup")
        if problem.geometry.macs:
            try:
                autotune.run(algorithm, computed, autotune.operands(computed))
            except MemoryError as error:
                needed = problem.geometry.bytes(problem.dtype.itemsize)
                raise WorkspaceError(
                    f"warmup: out of memory on {problem.device}: {error}. The arrays of {problem.geometry} take "
                    f"{needed} bytes, and workspace up to {problem.max_workspace} more. Warm up with fewer samples."
                ) from error
        plans.append(plan_of(problem, "auto", "warmup"))
    return plans


def prepare(
    w: Array,
    x_shape: Sequence[SupportsIndex],
    bias: Array | None = None,
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
) -> PreparedConv:
    """A convolution whose weights stay the same: the plan is made and the weights are packed once, for many inputs.

    Winograd transforms its weights, 16-bit floats are widened, depthwise reorders: with this, not at each call.

    Parameters
    ----------
    w, bias : array
        As for `conv1d`, `conv2d` or `conv3d`: the number of axes of x tells which. w may have a filter bank for each
        sample. They are copied; what is written to them later has no effect.
    x_shape : sequence of int
        The shape of x in `layout`.
    stride, pad, dilation, groups, pad_mode, activation, layout, algorithm, precision, max_workspace
        As in `conv2d`.

    Returns
    -------
    PreparedConv
        Call it with x.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As the convolution itself would.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv import conv2d, prepare
    >>> rng = np.random.default_rng(0)
    >>> w = rng.standard_normal((3, 3, 64, 64), np.float32)
    >>> blur = prepare(w, (1, 56, 56, 64), pad="same", algorithm="winograd")
    >>> blur
    <PreparedConv n1_h56w56_c64_k64_r3s3_p1 float32 on cpu: winograd, 410 kB kept>
    >>> x = rng.standard_normal((1, 56, 56, 64), np.float32)
    >>> np.array_equal(blur(x), conv2d(x, w, pad="same", algorithm="winograd"))
    True
    """
    axes = len(x_shape) if hasattr(x_shape, "__len__") else 0
    backend.common_module("prepare", w=w)
    has_banks = 3 <= axes <= 5 and w.ndim == axes + 1
    if has_banks and w.shape[0] != x_shape[0]:
        raise GeometryError(
            f"prepare: x_shape={tuple(x_shape)} has {axes} axes, but w.shape={w.shape} needs {axes + 1}, or as weights "
            f"of its own for each sample {w.shape[0]} samples, where x_shape has {x_shape[0]}."
        )
    ndim = axes - 2 if has_banks else checked_array(w, "w", "prepare", "(*kernel, C // groups, F)")[1]
    limit = workspace_limit(max_workspace, "prepare")
    call = Call.of(
        "prepare", ndim, stride=stride, pad=pad, dilation=dilation, groups=groups, layout=layout, algorithm=algorithm,
        precision=precision, max_workspace=limit, pad_mode=pad_mode,
    )  # fmt: skip
    return (PreparedBanks if has_banks else PreparedConv)(call, w, x_shape, bias, activation)


class PreparedConv:
    """The result of `prepare`: ``prepared(x, out=None)`` equals ``conv(x, w, bias, ...)``, bit for bit.

    The bits are those of `conv2d` with a C-contiguous w, by the algorithm that the plan names. An x or out that is
    not C-contiguous, or an out that overlaps x, works as well, without the prepacked weights.

    A call may be captured in a CUDA graph, without `graph_memory`: what it allocates then, the result included, is kept
    until this object is gone. Keep it for as long as the graph. If the plan names `gemm` or `fft`, which cannot be
    captured, and that was the choice of "auto", "auto" chooses anew.

    Attributes
    ----------
    plan : ConvPlan
        The plan is made once: tuning the problem later does not change it.
    nbytes : int
        Bytes kept: copies of w and bias, the prepacked weights, and what captured graphs work in.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> x, w = np.ones((1, 8, 8, 4), "float32"), np.ones((3, 3, 4, 2), "float32")
    >>> prepared = gpuconv.prepare(w, x.shape, pad=1)
    >>> np.array_equal(prepared(x), gpuconv.conv2d(x, w, pad=1))
    True
    """

    def __init__(
        self, call: Call, w: Array, x_shape: Sequence[SupportsIndex], bias: Array | None, activation: str | None
    ) -> None:
        xp = backend.common_module(call.caller, w=w, bias=bias)
        dtype = backend.common_dtype(call.caller, w=w, bias=bias)
        g = call.geometry(x_shape, w.shape, "x_shape")
        posed = of_a_sample(g) if goes_by_sample("forward") else g
        self._activation = call.check_activation(activation, dtype)
        call.check_bias(bias, g.k)
        device = backend.device_of(w)
        stand_ins = [
            call.channels_last(stand_in(call.in_layout(shape), dtype)) for shape in (posed.x_shape, posed.y_shape)
        ]
        with backend.on_device_of(w), call.out_of_memory(device, w.shape, dtype):
            if xp is not np and graphs.is_captured(xp):
                raise WorkspaceError(
                    f"{call.caller}: a CUDA graph is being captured, so that nothing is computed now and w cannot be "
                    "packed. Prepare before the capture begins."
                )
            self._w = w.astype(dtype, order="C")
            self._bias = None if bias is None else bias.astype(dtype)
            w_last = call.channels_last(self._w, is_w=True)
            problem = call.problem("forward", posed, dtype, device, [w_last], *stand_ins)
            chosen = choose(problem, call.algorithm, call.caller)
            if problem.copied:
                w_last = xp.ascontiguousarray(w_last)
            self._packed = PrepackedWeights(problem, chosen, chosen.prepack(problem, w_last)) if g.macs else None
        whole = replace(problem, geometry=g)
        self.plan = plan_of(whole, call.algorithm, call.caller)
        self._kept = self._w.nbytes + (0 if self._bias is None else self._bias.nbytes)
        if self._packed is not None and not backend.may_overlap(xp)(self._packed.weights, self._w):
            self._kept += self._packed.weights.nbytes
        self._graph_memory = graphs.GraphMemory()
        self._places: dict[tuple[Any, ...], repeats.Place] = {}
        self._call = call._replace(caller="prepared")

    @property
    def nbytes(self) -> int:
        return self._kept + self._graph_memory.nbytes

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """The convolution of x, of the shape, dtype and device that were prepared for.

        Raises
        ------
        GeometryError, TypeError, DTypeError, DeviceError
            If x or out is of another shape, library, dtype or device.
        """
        call, g = self._call, self.plan.geometry
        packed = self._packed
        place = None if packed is None else repeats.place_among(self._places, x, out)
        if place is not None and packed is not None and (known := place.known) is not None:
            return call.repeat(known, x, packed.weights, out, self._bias)
        xp = backend.common_module(call.caller, x=x, w=self._w, out=out)
        dtype = backend.common_dtype(call.caller, x=x, w=self._w)
        call.check_shape("x", x, g.x_shape, "the convolution", g)
        arrays = {"x": x, "w": self._w}
        with nullcontext() if xp is np else graphs.keeping(self._graph_memory, xp):
            return call.run(
                xp, "forward", g, dtype, arrays, out, g.y_shape, self._bias, self._activation, packed, place
            )

    def __repr__(self) -> str:
        plan = self.plan
        return f"<PreparedConv {plan.geometry} {plan.dtype} on {plan.device}: {plan.chosen}, {si(self.nbytes)}B kept>"


class PreparedBanks(PreparedConv):
    """The same with a filter bank for each sample, which are laid out once as kernels and loops read them.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> x, w = np.ones((2, 8, 8, 4), "float32"), np.ones((2, 3, 3, 4, 2), "float32")
    >>> prepared = gpuconv.prepare(w, x.shape, pad=1)
    >>> prepared
    <PreparedBanks n2_h8w8_c4_k2_r3s3_p1_banks float32 on cpu: direct, 576 B kept>
    >>> np.array_equal(prepared(x), gpuconv.conv2d(x, w, pad=1))
    True
    """

    def __init__(
        self, call: Call, w: Array, x_shape: Sequence[SupportsIndex], bias: Array | None, activation: str | None
    ) -> None:
        xp = backend.common_module(call.caller, w=w, bias=bias)
        dtype = backend.common_dtype(call.caller, w=w, bias=bias)
        shape = as_ints(x_shape, call.ndim + 2, "x_shape", call.caller, least=0)
        by_sample.check_banks(call, "x", shape, w)
        g = by_sample.with_banks(call.geometry(shape, w.shape[1:], "x_shape"))
        self._activation = call.check_activation(activation, dtype)
        by_sample.check_bias(call, bias, g.n, g.k)
        device = backend.device_of(w)
        with backend.on_device_of(w), call.out_of_memory(device, w.shape, dtype):
            if xp is not np and graphs.is_captured(xp):
                raise WorkspaceError(
                    f"{call.caller}: a CUDA graph is being captured, so that nothing is computed now and w cannot be "
                    "laid out. Prepare before the capture begins."
                )
            banks = call.banks_last(w).astype(dtype, order="C")
            self._w = banks if call.layout == "channels_last" else banks.transpose(0, -1, -2, *range(1, call.ndim + 1))
            self._bias = None if bias is None else bias.astype(dtype, order="C")
            x = call.channels_last(stand_in(call.in_layout(g.x_shape), dtype))
            y = call.channels_last(stand_in(call.in_layout(g.y_shape), dtype))
            looked_at = slice(1 if device == "cpu" or goes_by_sample("forward") else None)
            posed = of_a_sample(g) if goes_by_sample("forward") and device != "cpu" else g
            problem = call.problem("forward", posed, dtype, device, [banks[looked_at]], x[looked_at], y[looked_at])
        self.plan = plan_of(replace(problem, geometry=g), call.algorithm, call.caller)
        self._kept = self._w.nbytes + (0 if self._bias is None else self._bias.nbytes)
        self._graph_memory = graphs.GraphMemory()
        self._call = call._replace(caller="prepared")

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """The convolution of x, as that of `PreparedConv`."""
        g = self.plan.geometry
        xp = backend.common_module(self._call.caller, x=x, w=self._w, out=out)
        dtype = backend.common_dtype(self._call.caller, x=x, w=self._w)
        self._call.check_shape("x", x, g.x_shape, "the convolution", g)
        is_planned = xp is np or not graphs.is_captured(xp)  # what cannot be captured, "auto" replaces
        call = self._call._replace(algorithm=self.plan.chosen) if is_planned else self._call
        arrays = {"x": x, "w": self._w}
        with nullcontext() if xp is np else graphs.keeping(self._graph_memory, xp):
            return by_sample.run(
                call, xp, "forward", g, dtype, arrays, out, g.y_shape[1:], self._bias, self._activation
            )

    def __repr__(self) -> str:
        return super().__repr__().replace("PreparedConv", "PreparedBanks", 1)
