"""`gpuconv.torch` against PyTorch's own convolutions, their gradients, and the gradients of those.

On a GPU nothing but the way to CuPy differs; it is tested on the double, with stand-ins for tensors.
"""

import copy
import doctest
import itertools
import pickle
from functools import partial

import numpy as np
import pytest
from array_modules import array_module
from cases import integers

torch = pytest.importorskip("torch")
forward_ad = pytest.importorskip("torch.autograd.forward_ad")
checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint
FakeTensorMode = pytest.importorskip("torch._subclasses.fake_tensor").FakeTensorMode

import gpuconv  # noqa: E402
import gpuconv.torch as ours  # noqa: E402
from gpuconv import AlgorithmError, DeviceError, DTypeError, GeometryError  # noqa: E402
from gpuconv.functions.call import Call  # noqa: E402

GRADCHECK = {"check_batched_grad": False, "fast_mode": True}
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


# PyTorch warns of itself: forward mode imports what it deprecates, and Dynamo looks at the gradient of any tensor.
of_pytorch_itself = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning", r"ignore:The \.grad attribute of a Tensor:UserWarning"
)


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


@of_pytorch_itself
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_gradients_of_gradients_and_tangents(kind, ndim, dtype):
    """With every stride, dilation, number of groups and padding mode; forward mode too, but not for each of these."""
    transposed = kind == "conv_transpose"
    modes = {} if transposed else {mode: {"padding": 1, "pad_mode": mode} for mode in PAD_MODES}
    for kwargs in [*(TRANSPOSED if transposed else CONVOLUTIONS).values(), *modes.values()]:
        kwargs = of_ndim(kwargs, ndim)
        tensors = arguments(ndim, kwargs, dtype, transposed)

        def run(*tensors, kwargs=kwargs):
            return getattr(ours, f"{kind}{ndim}d")(*tensors, **kwargs)

        is_plain = "pad_mode" not in kwargs
        assert torch.autograd.gradcheck(run, tensors, check_forward_ad=is_plain, **GRADCHECK)
        assert torch.autograd.gradgradcheck(run, tensors, check_fwd_over_rev=is_plain, **GRADCHECK)


def of_both(transform, *functions):
    """What a transform makes of convolutions, ours and PyTorch's own: they must agree."""
    for name, *arguments in functions:
        found, wanted = (transform(getattr(module, name), *arguments) for module in (ours, torch.nn.functional))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@of_pytorch_itself
def test_a_tangent_is_not_lost_where_nothing_requires_a_gradient():
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float64))
    tx, tw, tb = (made(t.shape, t.dtype, 5) for t in (x, w, b))

    def tangents(convolve, w, tw):
        with forward_ad.dual_level():
            for dx, dw, db in ((tx, None, None), (None, tw, None), (None, None, tb), (tx, tw, tb)):
                given = [t if dt is None else forward_ad.make_dual(t, dt) for t, dt in ((x, dx), (w, dw), (b, db))]
                yield forward_ad.unpack_dual(convolve(*given)).tangent

    v = made((4, 6, 2, 3), torch.float64, 3)
    of_both(lambda f, w, tw: list(tangents(f, w, tw)), ("conv2d", w, tw), ("conv_transpose2d", v, -v))


@of_pytorch_itself
def test_transforms_of_torch_func():
    """Gradients, products with Jacobians, and axes of vmap: along samples, weights, both, and in a gradient."""
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float64))
    v = made((4, 6, 2, 3), torch.float64, 3)
    more_x, more_w, more_b = torch.stack([x, 2 * x, -x], 1), torch.stack([w, -w, w + 1]), torch.stack([b, b, -b], 1)
    more_v = torch.stack([v, -v, v + 1], -1)
    func, both = torch.func, [("conv2d", w, more_w, 0), ("conv_transpose2d", v, more_v, -1)]

    def loss(convolve):
        return lambda x, w, b: convolve(x, w, b).square().sum()

    of_both(lambda f, w, *_: func.grad(loss(f), (0, 1, 2))(x, w, b), *both)
    of_both(lambda f, w, *_: func.jvp(lambda x, b: f(x, w, b), (x, b), (2 * x, b)), *both)
    of_both(lambda f, w, *_: func.vmap(lambda x: f(x, w, b), 1)(more_x), *both)
    of_both(lambda f, w, *_: func.vmap(lambda x: f(x, w, b))(x), *both)  # (C, H, W)
    of_both(lambda f, w, more_w, axis: func.vmap(lambda w: f(x, w, b), axis)(more_w), *both)
    of_both(lambda f, w, more_w, axis: func.vmap(f, (1, axis, 1))(more_x, more_w, more_b), *both)
    of_both(lambda f, w, *_: func.vmap(func.grad(loss(f), (0, 1, 2)), (0, None, None))(x, w, b), *both)
    of_both(lambda f, w, *_: func.vmap(func.vmap(lambda x: f(x, w), 1), 0)(more_x[:, :, None]), *both)
    of_both(lambda f, w, *_: func.hessian(lambda k: loss(f)(x, w * k, b))(torch.ones(1, dtype=x.dtype)), *both)


def test_what_else_pytorch_does_with_a_function():
    """Modes without gradients, hooks, recomputation, tensors that change, and modules that are copied."""
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float64))
    weight = w.clone().requires_grad_()
    wanted = torch.nn.functional.conv2d(x, w, b)
    with torch.no_grad():
        assert not ours.conv2d(x, weight).requires_grad
    with torch.inference_mode():
        assert ours.conv2d(x, weight).is_inference()

    def gradient(y):
        (found,) = torch.autograd.grad(y.sum(), weight)
        return found

    expected = gradient(torch.nn.functional.conv2d(x, weight, b))
    seen = []
    y = ours.conv2d(x, weight, b)
    y.register_hook(seen.append)
    handle = weight.register_hook(lambda g: 2 * g)
    torch.testing.assert_close(gradient(y), 2 * expected, rtol=0, atol=0)
    assert len(seen) == 1
    handle.remove()
    with torch.autograd.graph.save_on_cpu():
        y = ours.conv2d(x, weight, b)
    torch.testing.assert_close(gradient(y), expected, rtol=0, atol=0)
    y = checkpoint(ours.conv2d, x, weight, b, use_reentrant=False)
    torch.testing.assert_close(gradient(y), expected, rtol=0, atol=0)
    changed = x.clone()
    y = ours.conv2d(changed, weight, b)
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(y)

    module = Module(w, b)
    other = Module(torch.zeros_like(w), torch.zeros_like(b))
    other.load_state_dict(module.state_dict())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        torch.testing.assert_close(copied(x), wanted, rtol=0, atol=0)
    found = torch.func.functional_call(module, {"bias": 0 * b}, (x,))
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, w), rtol=0, atol=0)
    of_input = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(module(of_input).square().sum(), of_input, create_graph=True)
    g.square().sum().backward()
    found = module.weight.grad
    (g,) = torch.autograd.grad(
        torch.nn.functional.conv2d(of_input, weight, b).square().sum(), of_input, create_graph=True
    )
    torch.testing.assert_close(found, gradient(g.square()), rtol=0, atol=0)


class Module(torch.nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())

    def forward(self, x):
        return ours.conv2d(x, self.weight, self.bias)


@of_pytorch_itself
def test_compiled_functions_break_their_graph_at_a_call():
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float64))
    kernels = {"conv2d": w, "conv_transpose2d": made((4, 6, 2, 3), torch.float64, 3)}
    for name, w in kernels.items():

        def run(convolve, x, w, b):
            return (convolve(2 * x, w, b) + 1).relu().sum()

        graphs = []

        def count(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph.forward

        weights = [w.clone().requires_grad_() for _ in "12"]
        compiled = torch.compile(partial(run, getattr(ours, name)), backend=count)(x, weights[0], b)
        eager = run(getattr(torch.nn.functional, name), x, weights[1], b)
        compiled.backward()
        eager.backward()
        torch.testing.assert_close((compiled, weights[0].grad), (eager, weights[1].grad), rtol=0, atol=0)
        assert len(graphs) == 2  # before and after
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"disable"):
            torch.compile(partial(run, getattr(ours, name)), backend="eager", fullgraph=True)(x, w, b)


def test_tensors_without_values_are_refused():
    """Those that stand for others where PyTorch traces a program."""
    x, w, b = (t.detach() for t in arguments(2, {}, torch.float64))
    with FakeTensorMode() as fake, pytest.raises(TypeError, match=r"conv2d: .* FakeTensor has no memory"):
        ours.conv2d(*(fake.from_tensor(t) for t in (x, w, b)))
    y = ours.conv2d(x.clone().requires_grad_(), (weight := w.clone().requires_grad_()), b)
    with pytest.raises(
        TypeError, match=r"is_grads_batched=True\). Call conv2d outside of these, or use torch\.func\.vmap"
    ):
        torch.autograd.grad(y, weight, torch.stack([y.detach(), y.detach()]), is_grads_batched=True)


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
