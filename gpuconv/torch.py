"""Convolutions of PyTorch tensors, with the signatures of `torch.nn.functional` and the keywords of `gpuconv.conv2d`.

    >>> import torch
    >>> import gpuconv.torch
    >>> x = torch.ones(1, 3, 8, 8, requires_grad=True)
    >>> y = gpuconv.torch.conv2d(x, torch.ones(4, 3, 3, 3), padding=1)
    >>> y.sum().backward()
    >>> x.grad.shape
    torch.Size([1, 3, 8, 8])

What they add to PyTorch's own: float32 that means float32 on every GPU, bits that do not depend on the run, complex
numbers, and the padding modes and algorithms of gpuconv. They are differentiable as often as one likes, because each
gradient is again one of the three operations of a convolution.

**Memory.** Tensors on the CPU are used as NumPy arrays, tensors on a GPU as CuPy arrays, in place. A result has the
memory format of `input`. The loops of the CPU read any strides, while the kernels of a GPU copy what is not channels
last (`memory_format=torch.channels_last`), which counts toward `max_workspace`. A conjugated or negated view of PyTorch
is made real by a copy first.

**Streams.** On a GPU everything runs on PyTorch's current stream, in order with PyTorch's own work there.

**Automatic mixed precision.** Under `torch.autocast`, 16-bit and float32 arguments are cast to its dtype, as those of
PyTorch's own convolutions are.

**Compilation.** `torch.compile` does not look inside: the graph breaks at a call of these functions. `fullgraph=True`,
`torch.export` and fake tensors are refused.

**Transforms.** Forward mode (`torch.autograd.forward_ad`) and the transforms of `torch.func` (`grad`, `vjp`, `jvp`,
`jacrev`, `jacfwd`, `hessian`, `vmap`) work, one inside the other too. Where `vmap` gives each element a weight of its
own, or asks for a weight gradient of each, there is a call for each element. `is_grads_batched=True` of
`torch.autograd.grad` is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gpuconv import backend
from gpuconv.errors import DeviceError, GeometryError
from gpuconv.functions.call import Call
from gpuconv.geometry import remembered
from gpuconv.typing import AlgorithmName, Array, Ints, IntsLike, PadLike, PadMode, Precision

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def conv1d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    pad_mode: PadMode = "zeros",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Convolve signals: input (N, C, W) or (C, W), weight (F, C // groups, KW) -> (N, F, OW) or (F, OW).

    Everything else is as in `conv2d`, with one spatial axis.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> gpuconv.torch.conv1d(torch.arange(5.0).reshape(1, 5), torch.ones(1, 1, 2), padding="causal")
    tensor([[0., 1., 3., 5., 7.]])
    """
    call = Call.of(
        "conv1d", 1, stride=stride, pad=padding, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, input, weight, bias)


def conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    pad_mode: PadMode = "zeros",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Convolve images, as `torch.nn.functional.conv2d` does.

    Parameters
    ----------
    input : Tensor (N, C, H, W) or (C, H, W)
        On the CPU or a GPU, of float16, bfloat16, float32, float64, complex64 or complex128; of any strides.
    weight : Tensor (F, C // groups, KH, KW)
        Of the same device and dtype, as all tensors of a call.
    bias : Tensor (F,), optional
    stride, dilation : int or one int per axis
    padding : int, one int per axis, or anything that `pad` of `gpuconv.conv2d` may be
        "same" and "valid" are PyTorch's; with gpuconv "same" may have a stride.
    groups : int
    pad_mode, algorithm, precision, max_workspace
        As in `gpuconv.conv2d`.

    Returns
    -------
    Tensor (N, F, OH, OW) or (F, OH, OW)
        In the memory format of `input`. Differentiable with respect to all tensors, any number of times.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As `gpuconv.conv2d`, where x is `input` and w is `weight`.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> x = torch.ones(1, 1, 3, 3)
    >>> gpuconv.torch.conv2d(x, torch.ones(1, 1, 3, 3), padding=1)[0, 0]
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """
    call = Call.of(
        "conv2d", 2, stride=stride, pad=padding, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, input, weight, bias)


def conv3d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    pad_mode: PadMode = "zeros",
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Convolve volumes: input (N, C, D, H, W), weight (F, C // groups, KD, KH, KW) -> (N, F, OD, OH, OW).

    Everything else is as in `conv2d`, with three spatial axes.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> gpuconv.torch.conv3d(torch.ones(1, 2, 4, 4, 4), torch.ones(8, 2, 2, 2, 2), stride=2).shape
    torch.Size([1, 8, 2, 2, 2])
    """
    call = Call.of(
        "conv3d", 3, stride=stride, pad=padding, dilation=dilation, groups=groups, pad_mode=pad_mode,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv(call, input, weight, bias)


def conv_transpose1d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    output_padding: IntsLike = 0,
    groups: int = 1,
    dilation: IntsLike = 1,
    *,
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Transposed convolution of signals: input (N, C, W), weight (C, F // groups, KW) -> (N, F, OW).

    Everything else is as in `conv_transpose2d`, with one spatial axis.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> gpuconv.torch.conv_transpose1d(torch.ones(1, 4, 3), torch.ones(4, 8, 2), stride=2).shape
    torch.Size([1, 8, 6])
    """
    call = Call.of(
        "conv_transpose1d", 1, stride=stride, pad=padding, dilation=dilation, groups=groups,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv_transpose(call, input, weight, bias, output_padding)


def conv_transpose2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    output_padding: IntsLike = 0,
    groups: int = 1,
    dilation: IntsLike = 1,
    *,
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Transposed convolution of images, as `torch.nn.functional.conv_transpose2d` has it.

    Like PyTorch's, and unlike `gpuconv.conv_transpose2d`, it does not conjugate a complex weight.

    Parameters
    ----------
    input : Tensor (N, C, H, W) or (C, H, W)
    weight : Tensor (C, F // groups, KH, KW)
    bias : Tensor (F,), optional
    stride, padding, dilation, groups, algorithm, precision, max_workspace
        As in `conv2d`; `padding` is that of the convolution of which this is the transpose.
    output_padding : int or one int per axis
        Added to the size of the result on the high side; less than the larger of stride and dilation.

    Returns
    -------
    Tensor (N, F, OH, OW) or (F, OH, OW)
        OH = (H - 1) * stride + dilation * (KH - 1) + 1 - top - bottom + output_padding, OW alike.

    Raises
    ------
    GeometryError, TypeError, DTypeError, DeviceError, AlgorithmError, WorkspaceError
        As `gpuconv.conv_transpose2d`, where x is `input` and w is `weight`.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> gpuconv.torch.conv_transpose2d(x, torch.ones(1, 1, 2, 2), stride=2)[0, 0]
    tensor([[1., 1., 2., 2.],
            [1., 1., 2., 2.]])
    """
    call = Call.of(
        "conv_transpose2d", 2, stride=stride, pad=padding, dilation=dilation, groups=groups,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv_transpose(call, input, weight, bias, output_padding)


def conv_transpose3d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntsLike = 1,
    padding: PadLike = 0,
    output_padding: IntsLike = 0,
    groups: int = 1,
    dilation: IntsLike = 1,
    *,
    algorithm: AlgorithmName = "auto",
    precision: Precision = "strict",
    max_workspace: int | None = None,
) -> Tensor:
    """Transposed convolution of volumes: input (N, C, D, H, W), weight (C, F // groups, KD, KH, KW).

    Everything else is as in `conv_transpose2d`, with three spatial axes.

    Examples
    --------
    >>> import torch
    >>> import gpuconv.torch
    >>> gpuconv.torch.conv_transpose3d(torch.ones(1, 4, 2, 2, 2), torch.ones(4, 8, 2, 2, 2), stride=2).shape
    torch.Size([1, 8, 4, 4, 4])
    """
    call = Call.of(
        "conv_transpose3d", 3, stride=stride, pad=padding, dilation=dilation, groups=groups,
        layout="channels_first", algorithm=algorithm, precision=precision, max_workspace=max_workspace,
    )  # fmt: skip
    return _conv_transpose(call, input, weight, bias, output_padding)


# -------------------------------------------------------------------------------------------------- the operations
#
# The adjoints that gpuconv computes conjugate what they take the place of: with dy for the gradient of y = conv(x, w),
#
#     input_grad(dy, w)  = sum of dy * conj(w)      weight_grad(x, dy) = sum of conj(x) * dy
#
# So the gradient of each of the three operations with respect to each of its arguments is one of the three, in complex
# numbers too, where PyTorch's gradient of a real L is the conjugate of dL/dz ("Autograd for complex numbers").


class _Convolution(torch.autograd.Function):
    """y = conv(x, w) + bias."""

    @staticmethod
    def forward(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return _forward(call, x, w, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        _save(ctx, *inputs[:3])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        _, needs_x, needs_w, needs_bias = ctx.needs_input_grad
        return (
            None,
            _watched_input_grad(ctx.call, dy, w, None, _shape(x)) if needs_x else None,
            _watched_weight_grad(ctx.call, x, dy, _shape(w)) if needs_w else None,
            _sum_over_positions(dy) if needs_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, tx: Tensor, tw: Tensor, tbias: Tensor | None) -> Tensor:
        x, w = ctx.saved_tensors
        return _watched_forward(ctx.call, tx, w, tbias) + _watched_forward(ctx.call, x, tw, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        call, x, w, bias = arguments
        if in_dims[1] is not None and in_dims[2] is None and in_dims[3] is None:
            return _unfolded(_watched_forward(call, _folded(x, in_dims[1]), w, bias), info)
        return _one_by_one(_watched_forward, info, in_dims, arguments)


class _InputGrad(torch.autograd.Function):
    """dx = input_grad(dy, w) + bias, for an x of a shape. Transposed convolutions have the bias."""

    @staticmethod
    def forward(call: Call, dy: Tensor, w: Tensor, bias: Tensor | None, shape: Ints) -> Tensor:
        return _input_grad(call, dy, w, bias, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        _save(ctx, *inputs[:3])
        ctx.shape = inputs[4]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        _, needs_dy, needs_w, needs_bias, _ = ctx.needs_input_grad
        return (
            None,
            _watched_forward(ctx.call, g, w, None) if needs_dy else None,
            _watched_weight_grad(ctx.call, g, dy, _shape(w)) if needs_w else None,
            _sum_over_positions(g) if needs_bias else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, tdy: Tensor, tw: Tensor, tbias: Tensor | None, __: None) -> Tensor:
        dy, w = ctx.saved_tensors
        of_w = _watched_input_grad(ctx.call, dy, tw, None, ctx.shape)
        return _watched_input_grad(ctx.call, tdy, w, tbias, ctx.shape) + of_w

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        call, dy, w, bias, shape = arguments
        if in_dims[1] is not None and in_dims[2] is None and in_dims[3] is None:
            folded = _folded(dy, in_dims[1])
            return _unfolded(_watched_input_grad(call, folded, w, bias, (folded.shape[0], *shape[1:])), info)
        return _one_by_one(_watched_input_grad, info, in_dims, arguments)


class _WeightGrad(torch.autograd.Function):
    """dw = weight_grad(x, dy), for a w of a shape."""

    @staticmethod
    def forward(call: Call, x: Tensor, dy: Tensor, shape: Ints) -> Tensor:
        return _weight_grad(call, x, dy, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        _save(ctx, *inputs[:3])
        ctx.shape = inputs[3]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        _, needs_x, needs_dy, _ = ctx.needs_input_grad
        return (
            None,
            _watched_input_grad(ctx.call, dy, g, None, _shape(x)) if needs_x else None,
            _watched_forward(ctx.call, x, g, None) if needs_dy else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, tx: Tensor, tdy: Tensor, __: None) -> Tensor:
        x, dy = ctx.saved_tensors
        of_dy = _watched_weight_grad(ctx.call, x, tdy, ctx.shape)
        return _watched_weight_grad(ctx.call, tx, dy, ctx.shape) + of_dy

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _one_by_one(_watched_weight_grad, info, in_dims, arguments)


def _save(ctx: Any, call: Call, first: Tensor, second: Tensor) -> None:
    ctx.call = call
    ctx.save_for_backward(first, second)
    if forward_ad._current_level >= 0:  # noqa: SLF001
        ctx.save_for_forward(first, second)


# An axis of torch.func.vmap along samples makes a larger batch. Where weights differ, there is a call for each.


def _folded(t: Tensor, axis: int) -> Tensor:
    """The samples of all elements along an axis of vmap, as one batch."""
    return t.movedim(axis, 0).flatten(0, 1)


def _unfolded(t: Tensor, info: Any) -> tuple[Tensor, int]:
    return t.unflatten(0, (info.batch_size, -1)), 0


def _one_by_one(
    run: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """The results of one call for each element along an axis of vmap, which has its place in some of the arguments."""

    def element(i: int) -> Tensor:
        pairs = zip(arguments, in_dims, strict=True)
        return run(*[a.select(axis, i) if isinstance(axis, int) else a for a, axis in pairs])

    return torch.stack([element(i) for i in range(info.batch_size)]), 0


# Autograd's part costs as much as all the rest of a small call. So an operation without a gradient does not ask for it,
# and others do without Python's part of `Function.apply`, which only the transforms of torch.func need.


def _watched_forward(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if not _is_watched(x, w, bias):
        return _forward(call, x, w, bias)
    return (_Convolution.apply if _is_transformed() else _apply_convolution)(call, x, w, bias)


def _watched_input_grad(call: Call, dy: Tensor, w: Tensor, bias: Tensor | None, shape: Ints) -> Tensor:
    if not _is_watched(dy, w, bias):
        return _input_grad(call, dy, w, bias, shape)
    return (_InputGrad.apply if _is_transformed() else _apply_input_grad)(call, dy, w, bias, shape)


def _watched_weight_grad(call: Call, x: Tensor, dy: Tensor, shape: Ints) -> Tensor:
    if not _is_watched(x, dy, None):
        return _weight_grad(call, x, dy, shape)
    return (_WeightGrad.apply if _is_transformed() else _apply_weight_grad)(call, x, dy, shape)


_apply_convolution, _apply_input_grad, _apply_weight_grad = (
    super(torch.autograd.Function, function).apply for function in (_Convolution, _InputGrad, _WeightGrad)
)

_is_transformed = torch._C._are_functorch_transforms_active  # noqa: SLF001


def _is_watched(read: Tensor, other: Tensor, bias: Tensor | None) -> bool:
    """Whether PyTorch has to know of an operation on these tensors: for a gradient, a tangent or a transform."""
    is_on_tape = read.requires_grad or other.requires_grad or (bias is not None and bias.requires_grad)
    return bool(
        (is_on_tape and torch.is_grad_enabled()) or forward_ad._current_level >= 0 or _is_transformed()  # noqa: SLF001
    )


def _sum_over_positions(dy: Tensor) -> Tensor:
    """The gradient with respect to the bias: the sum over all samples and positions."""
    return dy.sum((0, *range(2, dy.ndim)))


def _conv(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        return _uncompiled(_conv, call, x, w, bias)
    x, w, bias, is_batch = _checked(call, x, w, bias)
    y = _watched_forward(call, x, w, bias)
    return y if is_batch else y[0]


@torch.compiler.disable
def _uncompiled(run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A call out of a compiled function, whose graph breaks here. As a decorator of all calls, `disable` takes 1 us."""
    return run(*arguments)


def _conv_transpose(call: Call, x: Tensor, w: Tensor, bias: Tensor | None, output_padding: IntsLike) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        return _uncompiled(_conv_transpose, call, x, w, bias, output_padding)
    x, w, bias, is_batch = _checked(call, x, w, bias)
    call, shape, beyond = _transposed(_shape(x), _shape(w), output_padding, *call)
    y = _watched_input_grad(call, x, w.conj() if w.is_complex() else w, None if beyond else bias, shape)
    if beyond:
        y = torch.nn.functional.pad(y, beyond)
        y = y if bias is None else y + bias.reshape(-1, *[1] * call.ndim)
    return y if is_batch else y[0]


@remembered
def _transposed(x_shape: Ints, w_shape: Ints, output_padding: IntsLike, *words: Any) -> tuple[Call, Ints, Ints]:
    """The convolution whose input gradient a transposed convolution is, given the words of the latter's `Call`.

    With it come the shape of that gradient, which reaches to the last tap, and what `output_padding` adds beyond it, as
    `torch.nn.functional.pad` takes it, or () if that is nothing.
    """
    call = Call(*words)
    g, whole = call.transposed(x_shape, w_shape, output_padding)
    sizes = zip(g.x_shape[-2:0:-1], whole[-2:0:-1], strict=True)
    beyond = tuple(more for size, all_of_it in sizes for more in (0, all_of_it - size))
    return call._replace(pad=g.pad), call.in_layout(g.x_shape), beyond if any(beyond) else ()


# -------------------------------------------------------------------------------------------------- tensors as arrays


def _forward(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty_strided(*_result(call, x.shape, w.shape, _order(x)))
    _on_arrays(call, lambda x, w, bias, y: call.forward(x, w, bias, None, y), x, w, bias, y)
    return y


def _input_grad(call: Call, dy: Tensor, w: Tensor, bias: Tensor | None, shape: Ints) -> Tensor:
    dx = dy.new_empty_strided(shape, _strides(shape, _order(dy)))
    if bias is None:
        _on_arrays(call, lambda dy, w, dx: call.input_grad(dy, w, shape, dx), dy, w, dx)
    else:
        _on_arrays(call, lambda x, w, bias, y: call.transpose(x, w, bias, 0, shape[2:], None, y), dy, w, bias, dx)
    return dx


def _weight_grad(call: Call, x: Tensor, dy: Tensor, shape: Ints) -> Tensor:
    dw = x.new_empty_strided(shape, _strides(shape, _order(x)))
    _on_arrays(call, lambda x, dy, dw: call.weight_grad(x, dy, shape[2:], dw), x, dy, dw)
    return dw


def _shape(t: Tensor) -> Ints:
    """The shape as a plain tuple: what is remembered of calls is found by those only, and a torch.Size is none."""
    return tuple(t.shape)


def _result(call: Call, x_shape: Ints, w_shape: Ints, order: str) -> tuple[Ints, Ints]:
    """The shape and the strides of a convolution's result."""
    try:
        return _remembered_result(call, x_shape, w_shape, order)
    except TypeError:  # a list among the keywords has no hash
        pass
    return _remembered_result.__wrapped__(call, x_shape, w_shape, order)


@lru_cache(maxsize=4096)
def _remembered_result(call: Call, x_shape: Ints, w_shape: Ints, order: str) -> tuple[Ints, Ints]:
    """`_result`. Keywords that equal those of another call (True, 2.0) may find its result: the call refuses them."""
    shape = call.in_layout(call.geometry(tuple(x_shape), tuple(w_shape)).y_shape)
    return shape, _strides(shape, order)


def _order(t: Tensor) -> str:
    """The order of the axes in memory, as far as a result has that of its input."""
    return "channels_first" if t.stride(1) != 1 or t.is_contiguous() else "channels_last"


@lru_cache(maxsize=4096)
def _strides(shape: Ints, order: str) -> Ints:
    """The strides of a new tensor of a shape."""
    spatial = range(2, len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed((0, 1, *spatial) if order == "channels_first" else (0, *spatial, 1)):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _on_arrays(call: Call, run: Callable[..., Array], first: Tensor, *rest: Tensor | None) -> None:
    """Call a function with the arrays that tensors are, on a GPU on PyTorch's current stream."""
    if not first.is_cuda:
        run(*[None if t is None else _as_numpy(t, call.caller) for t in (first, *rest)])
        return
    cupy, device = backend.module_for(f"cuda:{first.device.index}"), first.device
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
    with ExitStack() as stack:
        stack.enter_context(cupy.cuda.Device(device.index))
        stack.enter_context(stream)
        run(*[None if t is None else cupy.from_dlpack(_plain(t)) for t in (first, *rest)])


def _plain(t: Tensor) -> Tensor:
    """A tensor without a history, whose memory holds its values as they are."""
    return t.detach().resolve_conj().resolve_neg()


def _as_numpy(t: Tensor, caller: str) -> Array:
    if t.dtype is _BFLOAT16:  # which NumPy knows by ml_dtypes only
        return _as_numpy(_plain(t).view(torch.int16), caller).view(backend.as_dtype("bfloat16", caller))
    try:
        array: Array = t.numpy(force=True)  # a view without a history, or a copy if its memory does not hold its values
    except RuntimeError as error:
        raise TypeError(
            f"{caller}: a tensor of type {type(t).__name__} has no memory that NumPy can read ({error}). Such tensors "
            "stand for others in torch.export, FakeTensorMode and torch.autograd.grad(is_grads_batched=True). Call "
            f"{caller} outside of these, or use torch.func.vmap, which it supports."
        ) from error
    return array


def _checked(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """The arguments as a batch, cast as autocast asks for, and whether they were a batch."""
    _check_tensor(call, "input", x, x)
    _check_tensor(call, "weight", w, x)
    if bias is not None:
        _check_tensor(call, "bias", bias, x)
    missing = call.ndim + 2 - x.ndim
    if missing not in (0, 1):
        raise GeometryError(
            f"{call.caller}: input.shape={tuple(x.shape)} has {x.ndim} axes. {call.caller} takes (N, C, *spatial) or "
            f"(C, *spatial), which is {call.ndim + 2} or {call.ndim + 1}."
        )
    kind = "cuda" if x.is_cuda else "cpu"
    if torch.is_autocast_enabled(kind):
        target = torch.get_autocast_dtype(kind)
        x, w, bias = (None if t is None else t.to(target) if t.dtype in _CAST else t for t in (x, w, bias))
    return x[None] if missing else x, w, bias, not missing


def _check_tensor(call: Call, name: str, t: Tensor, x: Tensor) -> None:
    if isinstance(t, Tensor) and t.is_cpu and x.is_cpu and t.layout is _STRIDED:
        return
    if not isinstance(t, Tensor):
        raise TypeError(
            f"{call.caller}: {name} is {type(t).__name__}, where a torch.Tensor is needed. Convert it with "
            "torch.as_tensor, or call the function of gpuconv itself, which takes NumPy and CuPy arrays."
        )
    if t.layout is not _STRIDED or not (t.is_cpu or t.is_cuda):
        raise DeviceError(
            f"{call.caller}: {name} is a tensor of layout {t.layout} on {t.device}. gpuconv takes strided tensors "
            f"on cpu and cuda. Convert it: {name}.to_dense(), or {name}.to('cpu')."
        )
    if t.device != x.device:
        raise DeviceError(
            f"{call.caller}: the tensors must live on one device, but input is on {x.device} and {name} on "
            f"{t.device}. Move one with {name}.to(input.device)."
        )


_CAST = (torch.float16, torch.bfloat16, torch.float32)
"""The dtypes that autocast changes. float64 and complex numbers stay, as in PyTorch."""

_BFLOAT16, _STRIDED = torch.bfloat16, torch.strided
