"""`gpuconv.torch` against PyTorch's own convolutions, their gradients, and the gradients of those.

On a GPU nothing but the way to CuPy differs; it is tested on the double, with stand-ins for tensors.
"""

import doctest
import itertools

import numpy as np
import pytest
from array_modules import array_module
from cases import integers

torch = pytest.importorskip("torch")

import gpuconv  # noqa: E402
import gpuconv.torch as ours  # noqa: E402
from gpuconv import AlgorithmError, DeviceError, DTypeError, GeometryError  # noqa: E402
from gpuconv.functions.call import Call  # noqa: E402

GRADCHECK = {"check_undefined_grad": False, "check_batched_grad": False, "fast_mode": True}
SPATIAL, KERNEL = (4, 3, 3), (2, 3, 1)

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1, "groups": 2},
    "dilated": {"dilation": 2, "padding": (2, 1, 0)},
}
TRANSPOSED = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1, "groups": 2, "output_padding": 1},
    "beyond every tap": {"dilation": 3, "output_padding": 2},
}
PAD_MODES = ("reflect", "replicate", "circular", "symmetric")


def made(shape, dtype, seed=0):
    """Small integers, of which sums are exact."""
    return torch.from_numpy(
        integers(np.random.default_rng(seed), shape, "complex128" if dtype.is_complex else "float64")
    ).to(dtype)


def of_ndim(kwargs, ndim):
    return {name: value[:ndim] if isinstance(value, tuple) else value for name, value in kwargs.items()}


def arguments(ndim, kwargs, dtype, transposed=False):
    groups = kwargs.get("groups", 1)
    w_shape = (4, 6 // groups) if transposed else (6, 4 // groups)
    return [
        made(shape, dtype, seed).requires_grad_()
        for seed, shape in enumerate(((2, 4, *SPATIAL[:ndim]), (*w_shape, *KERNEL[:ndim]), (6,)))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "case"), [*itertools.product(["conv"], CONVOLUTIONS), *itertools.product(["conv_transpose"], TRANSPOSED)]
)
def test_results_and_gradients_are_those_of_pytorch(kind, case, ndim, dtype):
    transposed = kind == "conv_transpose"
    kwargs = of_ndim((TRANSPOSED if transposed else CONVOLUTIONS)[case], ndim)
    tensors = arguments(ndim, kwargs, dtype, transposed)
    found, wanted = (getattr(module, f"{kind}{ndim}d")(*tensors, **kwargs) for module in (ours, torch.nn.functional))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    dy = made(wanted.shape, dtype, 7)
    torch.testing.assert_close(
        torch.autograd.grad(found, tensors, dy), torch.autograd.grad(wanted, tensors, dy), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_gradients_of_gradients(kind, ndim, dtype):
    transposed = kind == "conv_transpose"
    for kwargs in (TRANSPOSED if transposed else CONVOLUTIONS).values():
        kwargs = of_ndim(kwargs, ndim)
        tensors = arguments(ndim, kwargs, dtype, transposed)
        run = getattr(ours, f"{kind}{ndim}d")
        assert torch.autograd.gradcheck(lambda *t: run(*t, **kwargs), tensors, **GRADCHECK)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda *t: run(*t, **kwargs), tensors, **GRADCHECK)  # noqa: B023


@pytest.mark.parametrize("mode", PAD_MODES)
def test_gradients_of_gradients_through_padding_modes(mode):
    tensors = arguments(2, {}, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: ours.conv2d(*t, padding=1, pad_mode=mode), tensors, **GRADCHECK)
    assert torch.autograd.gradgradcheck(lambda *t: ours.conv2d(*t, padding=1, pad_mode=mode), tensors, **GRADCHECK)


def test_memory_is_shared_and_the_format_kept(monkeypatch):
    seen = []
    forward = Call.forward
    monkeypatch.setattr(Call, "forward", lambda self, *arrays: seen.append(arrays) or forward(self, *arrays))
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float32))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = x.contiguous(memory_format=memory_format)
        y = ours.conv2d(x, w, b)
        assert y.is_contiguous(memory_format=memory_format)
        arrays = seen.pop()
        addresses = [a.ctypes.data for a in arrays if isinstance(a, np.ndarray)]
        assert addresses == [t.data_ptr() for t in (x, w, b, y)]
    assert y.grad_fn is None


def test_what_pytorch_itself_takes_and_gives():
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float32))
    own = torch.nn.functional
    odd = w[:, :, :1]
    torch.testing.assert_close(ours.conv2d(x[0], odd, b, padding="same"), own.conv2d(x[0], odd, b, padding="same"))
    torch.testing.assert_close(ours.conv_transpose2d(x[0], w.mT[:4], None), own.conv_transpose2d(x[0], w.mT[:4], None))
    z = torch.complex(x, x.flip(0)).conj()  # a view that PyTorch conjugates when it is read
    v = torch.complex(w, w)
    torch.testing.assert_close(ours.conv2d(z, v), own.conv2d(z, v))
    torch.testing.assert_close(ours.conv2d(z.imag, w), own.conv2d(z.imag, w))  # negated when it is read
    half = ours.conv2d(x.bfloat16(), w.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, own.conv2d(x, w).bfloat16(), rtol=0, atol=0)


def test_autocast_casts_as_it_does_for_pytorch():
    tensors = arguments(2, {}, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours.conv2d(*tensors)
        assert y.dtype == torch.nn.functional.conv2d(*tensors).dtype == torch.bfloat16
        assert ours.conv2d(*(t.double() for t in tensors)).dtype == torch.float64
    y.sum().backward()
    assert {t.grad.dtype for t in tensors} == {torch.float32}


def test_modules_train_as_with_pytorch():
    def losses(conv2d):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.nn.Linear(8, 3)]
        optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], 0.1)
        x, labels = torch.randn(16, 1, 10, 10), torch.arange(16) % 3
        for _ in range(8):
            y = torch.relu(conv2d(x, layers[0].weight, layers[0].bias))
            y = torch.relu(conv2d(y, layers[1].weight, layers[1].bias, stride=2, padding=1))
            loss = torch.nn.functional.cross_entropy(layers[2](y.mean((2, 3))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield float(loss.detach())

    assert list(losses(ours.conv2d)) == pytest.approx(list(losses(torch.nn.functional.conv2d)), rel=1e-5)


def test_what_does_not_fit_is_refused():
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float32))
    with pytest.raises(TypeError, match=r"conv2d: weight is ndarray, where a torch\.Tensor is needed"):
        ours.conv2d(x, w.numpy())
    with pytest.raises(DeviceError, match=r"conv2d: input is a tensor of layout torch\.sparse_coo on cpu"):
        ours.conv2d(x.to_sparse(), w)
    with pytest.raises(DeviceError, match=r"weight is a tensor of layout torch\.strided on meta"):
        ours.conv2d(x, w.to("meta"))
    with pytest.raises(GeometryError, match=r"input.shape=\(4, 3\) has 2 axes. conv2d takes .* which is 4 or 3"):
        ours.conv2d(x[0, 0], w)
    with pytest.raises(GeometryError, match=r"w.shape=\(6, 4, 2, 3\) needs w.shape\[1\]"):
        ours.conv2d(x[:, :3], w)
    with pytest.raises(DTypeError, match="float64"):
        ours.conv2d(x, w.double(), b)
    with pytest.raises(AlgorithmError, match="winograd"):
        ours.conv2d(x, w, algorithm="winograd")


def test_what_an_earlier_call_left_behind_hides_no_mistake():
    """Shapes are remembered by keywords, and True and 1.0 equal 1."""
    x, w, _ = (t.detach() for t in arguments(2, {}, torch.float32))
    wanted = ours.conv2d(x, w), ours.conv_transpose2d(x, w[:4], output_padding=1, stride=2)
    for wrong in (True, 1.0):
        for name in ("stride", "dilation", "groups"):
            with pytest.raises((GeometryError, TypeError), match=name):
                ours.conv2d(x, w, **{name: wrong})
        for name in ("output_padding", "padding", "dilation"):
            ours.conv_transpose2d(x, w[:4], **{"stride": 2, name: 1})
            with pytest.raises((GeometryError, TypeError), match=r"pad|dilation"):
                ours.conv_transpose2d(x, w[:4], **{"stride": 2, name: wrong})
    lists = ours.conv2d(x, w, stride=[1, 1]), ours.conv_transpose2d(x, w[:4], output_padding=[1, 1], stride=[2, 2])
    torch.testing.assert_close(lists, wanted, rtol=0, atol=0)


def test_the_examples_run():
    assert doctest.testmod(ours).failed == 0


# On a GPU, with the double of CuPy


class OnGpu:
    """What `gpuconv.torch` asks of a tensor on a GPU, around an array of the double."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, array):
        self.array = array
        self.shape, self.ndim = array.shape, array.ndim

    def is_contiguous(self):
        return bool(self.array.flags.c_contiguous)

    def stride(self, axis):
        return self.array.strides[axis] // self.array.itemsize

    def new_empty_strided(self, shape, strides):
        order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
        memory = type(self.array)(tuple(shape[axis] for axis in order), self.array.dtype)
        return OnGpu(memory.transpose(*(order.index(axis) for axis in range(len(shape)))))

    def detach(self):
        return self

    resolve_conj = detach

    def resolve_neg(self):
        return self.array


@pytest.mark.emulated
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_gpu_computes_on_pytorchs_stream(monkeypatch, channels_last):
    """The double raises if an operation does not wait for what another stream has written."""
    with array_module("double") as gpu:
        check_on_pytorchs_stream(gpu, monkeypatch, channels_last)


def check_on_pytorchs_stream(gpu, monkeypatch, channels_last):
    theirs = gpu.cuda.Stream(non_blocking=True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": theirs.ptr}))
    x, w, dy = (made(shape, torch.float32).numpy() for shape in ((2, 4, 5, 5), (6, 4, 3, 3), (2, 6, 3, 3)))
    with theirs:
        order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        back = np.argsort(order)
        on_gpu = [OnGpu(gpu.asarray(np.ascontiguousarray(a.transpose(order))).transpose(*back)) for a in (x, w, dy)]
    call = Call.of("conv2d", 2, layout="channels_first")
    results = [
        ours._forward(call, *on_gpu[:2], None),
        ours._input_grad(call, on_gpu[2], on_gpu[1], None, x.shape),
        ours._weight_grad(call, on_gpu[0], on_gpu[2], w.shape),
    ]
    wanted = [
        gpuconv.conv2d(x, w, layout="channels_first"),
        gpuconv.conv2d_input_grad(dy, w, x.shape, layout="channels_first"),
        gpuconv.conv2d_weight_grad(x, dy, (3, 3), layout="channels_first"),
    ]
    del on_gpu  # PyTorch gives memory back to its own stream, on which everything has been asked for by now
    for result, expected in zip(results, wanted, strict=True):
        assert result.stride(1) == 1 if channels_last else result.is_contiguous()
        with theirs:
            np.testing.assert_array_equal(result.array.get(), expected)
    assert gpu.cuda.get_current_stream() == gpu.cuda.Stream.null
