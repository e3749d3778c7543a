"""Every kernel as NVRTC compiles it, inline PTX included, through the PTX tier with all checks on; integers, exact."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from calls import problem
from cases import DIRECTIONS, DTYPES, Case, integers
from cupy_double import emulation
from emulator import ptx
from emulator.ptx_translate import translate
from ptx_calls import needs_ptx
from tolerances import assert_exact

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda.depthwise import CudaDepthwise
from gpuconv.algorithms.cuda.direct import CudaDirect
from gpuconv.algorithms.cuda.gemm import CudaGemm
from gpuconv.algorithms.cuda.implicit_gemm import ImplicitGemm
from gpuconv.cuda import loader
from gpuconv.tools import kernel_report

pytestmark = needs_ptx

PLAIN = Case(2, (9, 7), 8, 8, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
CASES = {
    "direct": (CudaDirect(), PLAIN),
    "direct-3d-groups": (
        CudaDirect(),
        Case(1, (4, 5, 6), 6, 9, (2, 3, 2), (1, 2, 1), (2, 1, 1), ((1, 0), (0, 2), (1, 1)), 3),
    ),
    "direct-wide": (CudaDirect(), replace(PLAIN, c=32, k=64, spatial=(6, 6), stride=(2, 1))),
    "depthwise": (CudaDepthwise(), replace(PLAIN, groups=8)),
    "depthwise-strided": (CudaDepthwise(), replace(PLAIN, groups=8, k=16, stride=(2, 2), kernel=(3, 3))),
    "depthwise-odd": (CudaDepthwise(), Case(2, (9, 8), 5, 5, (4, 2), (1, 3), (2, 1), ((2, 1), (1, 0)), 5)),
    "tensor-cores": (ImplicitGemm(), replace(PLAIN, c=32, k=40)),
    "tensor-cores-odd": (ImplicitGemm(), Case(2, (8, 7), 6, 14, (3, 2), (2, 1), (1, 2), ((1, 0), (2, 1)), 2)),
    "gemm": (CudaGemm(), PLAIN),
    "gemm-groups": (CudaGemm(), Case(2, (7, 6), 16, 8, (3, 3), (2, 1), (1, 1), ((1, 1), (1, 1)), 2)),
}
# The passes and dtypes of a kernel differ by few lines: not each of all of them.
FEW = ["float16", "float32", "complex64"]
EVERY = [(name, dtype, "forward") for name in ("direct", "depthwise") for dtype in DTYPES]
EVERY += [(name, dtype, back) for name in ("direct", "depthwise") for dtype in FEW for back in DIRECTIONS[1:]]
EVERY += [(name, "float32", d) for name in CASES if name not in {"direct", "depthwise"} for d in DIRECTIONS]
EVERY += [("tensor-cores", "float16", d) for d in DIRECTIONS] + [("tensor-cores", "bfloat16", "forward")]
EVERY += [("direct-wide", "float16", "forward"), ("depthwise-strided", "bfloat16", "forward")]


def sampled():
    """Of each file the first and the last unit with 64-bit indices."""
    units = [unit for unit in kernel_report.units() if dict(unit.macros).get("INDEX64", 1)]
    by_file = {unit.file: [other for other in units if other.file == unit.file] for unit in units}
    return [unit for same in by_file.values() for unit in dict.fromkeys((same[0], same[-1]))]


@pytest.fixture
def gpu(double):
    with emulation(tier="ptx", check=True):
        yield double


@pytest.mark.parametrize("unit", sampled(), ids=str)
def test_every_kernel_is_made_of_known_instructions(unit):
    assert translate(ptx.ptx_of(loader.flatten(unit.file), loader.options(unit), 80)).count("EMULATOR_KERNEL_RECORD")


@pytest.mark.parametrize(("name", "dtype", "direction"), EVERY)
def test_convolutions(gpu, name, dtype, direction):
    algorithm, case = CASES[name]
    arrays = case.arrays(integers, dtype)
    x, w, dy = map(gpu.asarray, arrays)
    g = problem(case)
    posed = Problem(g, DTYPES[dtype], "cuda:0", direction, "strict", 2**28)
    assert algorithm.refusal(posed) is None
    inputs, shape = {
        "forward": ((x, w), g.y_shape), "input_grad": ((dy, w), g.x_shape), "weight_grad": ((x, dy), g.w_shape)
    }[direction]  # fmt: skip
    out = gpu.empty(shape, DTYPES[dtype])
    getattr(algorithm, direction)(posed, *inputs, out, *(() if direction == "weight_grad" else (None, "identity")))
    assert_exact(out, case.want(direction, *arrays), DTYPES[dtype])


@pytest.mark.parametrize(("of_x", "of_w"), [("uint8", "int8"), ("int32", "int32")])
def test_integers(gpu, rng, of_x, of_w):
    """Bytes with and without a sign, and products of 64 bits."""
    least = {"int8": -128, "int32": -(2**25)}
    x = rng.integers(least.get(of_x, 0), 2 ** (8 if of_x == "uint8" else 25), PLAIN.x_shape, of_x)
    w = rng.integers(least[of_w], -least[of_w], PLAIN.w_shape, of_w)
    got = gpuconv.conv2d(gpu.asarray(x), gpu.asarray(w), algorithm="direct", **PLAIN.keywords)
    high, low = (
        PLAIN.want("forward", x.astype("float64"), part.astype("float64"), None)
        for part in (w.astype(int) >> 8, w.astype(int) & 0xFF)
    )
    assert np.array_equal(gpu.asnumpy(got), high.astype(np.int64) * 256 + low.astype(np.int64))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", ["direct", "depthwise", "gemm"])
def test_bias_and_activation(gpu, name, dtype):
    algorithm, case = CASES[name]
    x, w, _ = arrays = case.arrays(integers, dtype)
    bias = integers(np.random.default_rng(2), (case.k,), dtype)
    g = problem(case)
    out = gpu.empty(g.y_shape, DTYPES[dtype])
    posed = Problem(g, DTYPES[dtype], "cuda:0", "forward", "strict", 2**28)
    algorithm.forward(posed, *map(gpu.asarray, (x, w)), out, gpu.asarray(bias), "relu")
    assert_exact(out, np.maximum(case.want("forward", *arrays) + oracle.wide(bias), 0), DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex128"])
@pytest.mark.parametrize("c", [3, 8])
def test_columns(gpu, c, dtype):
    case = Case(2, (5, 6), c, c, (3, 2), (2, 1), (1, 2), ((2, 1), (0, 3)))
    keywords = {"stride": case.stride, "dilation": case.dilation, "pad": case.pads}
    x = integers(np.random.default_rng(0), case.x_shape, dtype)
    got = gpuconv.im2col(gpu.asarray(x), case.kernel, **keywords)
    assert_exact(got, oracle.im2col(oracle.wide(x), case.kernel, **case.steps), DTYPES[dtype])
    cols = integers(np.random.default_rng(1), got.shape, dtype)
    want = oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps)
    for method in ("gather", "scatter"):
        got = gpuconv.col2im(gpu.asarray(cols), case.x_shape, case.kernel, method=method, **keywords)
        assert_exact(got, want, DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_pooling(gpu, dtype):
    case = Case(2, (8, 6), 8, 8, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)))
    x, _, dy = (4 * a for a in case.arrays(integers, dtype))
    steps, held = {"stride": 2}, {"stride": (2, 2), "pads": case.pads}
    on_gpu, dy_on_gpu = gpu.asarray(x), gpu.asarray(dy)
    pairs = [
        (gpuconv.max_pool2d(on_gpu, 2, **steps), oracle.max_pool(x, (2, 2), **case.steps)),
        (gpuconv.max_pool2d_grad(dy_on_gpu, on_gpu, 2, **steps), oracle.max_pool_grad(dy, x, (2, 2), **case.steps)),
        (gpuconv.avg_pool2d(on_gpu, 2, **steps), oracle.avg_pool(x, (2, 2), **held)),
        (gpuconv.avg_pool2d_grad(dy_on_gpu, x.shape, 2, **steps), oracle.avg_pool_grad(dy, (8, 6), (2, 2), **held)),
    ]
    for got, want in pairs:
        assert_exact(got, want, DTYPES[dtype])
