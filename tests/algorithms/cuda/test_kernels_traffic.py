"""Kernels bound by memory ask for few sectors more than they need: at most a tenth, on shapes that are aligned."""

from contextlib import contextmanager

import numpy as np
import pytest
from calls import problem
from cases import DIRECTIONS, DTYPES, Case, integers
from cupy_double import emulation
from emulator import Module
from on_gpu import forget
from ptx_calls import needs_ptx

import gpuconv
from gpuconv.algorithms.base import Problem
from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.algorithms.cuda.depthwise import CudaDepthwise
from gpuconv.algorithms.cuda.direct import CudaDirect
from gpuconv.algorithms.cuda.implicit_gemm import ImplicitGemm
from gpuconv.algorithms.cuda.implicit_gemm_tiles import TINY

pytestmark = needs_ptx

BUDGET = 1.1
WIDE = pytest.mark.parametrize(("dtype", "c"), [("float32", 32), ("float16", 64), ("float32", 8), ("complex64", 16)])


@contextmanager
def counted(monkeypatch):
    """The traffic of each launch inside, by kernel: `read` and `write` are sectors over needed sectors."""
    launches, plain = [], Module.launch

    def launch(self, name, *args, **keywords):
        plain(self, name, *args, **keywords)
        launches.append((name, self.traffic))

    with monkeypatch.context() as patch:
        patch.setattr(Module, "launch", launch)
        # arrays begin where cudaMalloc would put them
        with emulation(tier="ptx", count_traffic=True, slide="begin"):
            yield launches


def assert_within_budget(launches, kernels, accesses=("read", "write")):
    assert {name for name, _ in launches} >= set(kernels)
    for name, traffic in launches:
        assert traffic.sectors > 0
        for access in accesses if name in kernels else ():
            assert traffic.ratio("global", access) <= BUDGET, f"{name}\n{traffic}"


def array(gpu, shape, dtype):
    return gpu.asarray(integers(np.random.default_rng(0), shape, dtype))


@WIDE
def test_columns(double, monkeypatch, dtype, c):
    x = array(double, (1, 8, 16, c), dtype)
    with counted(monkeypatch) as launches:
        cols = gpuconv.im2col(x, 3, pad=1)
        gpuconv.col2im(cols, x.shape, 3, pad=1)
    assert_within_budget(launches, ["im2col", "col2im_gather"])


@WIDE
def test_pooling(double, monkeypatch, dtype, c):
    x = array(double, (1, 8, 16, c), dtype)
    kernels = ["avg_pool", "avg_pool_grad"]
    with counted(monkeypatch) as launches:
        y = gpuconv.avg_pool2d(x, 2, stride=2)
        gpuconv.avg_pool2d_grad(y, x.shape, 2, stride=2)
        if dtype != "complex64":
            gpuconv.max_pool2d_grad(gpuconv.max_pool2d(x, 2, stride=2), x, 2, stride=2)
            kernels += ["max_pool", "max_pool_argmax", "max_pool_grad"]
    assert_within_budget(launches, kernels)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize(("dtype", "c"), [("float32", 64), ("float16", 64)])
def test_depthwise(double, monkeypatch, dtype, c, direction, stride):
    case = Case(1, (8, 16), c, c, (3, 3), (stride, stride), (1, 1), ((1, 1), (1, 1)), c)
    launches = passed(double, monkeypatch, CudaDepthwise(), case, dtype, direction)
    assert_within_budget(launches, [f"depthwise_{direction}"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("algorithm", [CudaDirect(), ImplicitGemm()], ids=lambda algorithm: algorithm.name)
def test_products(double, monkeypatch, algorithm, dtype, direction):
    case = Case(1, (8, 16), 32, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    launches = passed(double, monkeypatch, algorithm, case, dtype, direction)
    assert_within_budget(launches, [f"{algorithm.name}_{direction}"])
    if algorithm.name == "implicit_gemm":
        assert not sum(traffic.bank_conflicts for _, traffic in launches)


@pytest.mark.parametrize(("dtype", "direction"), [("float16", "weight_grad"), ("float32", "forward")])
def test_the_tile_for_small_products_has_no_bank_conflicts(double, monkeypatch, dtype, direction):
    monkeypatch.setattr(implicit_gemm, "_TILES", {2: (TINY,), 4: (TINY,)})
    forget(implicit_gemm)
    case = Case(1, (8, 16), 32, 64, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    launches = passed(double, monkeypatch, ImplicitGemm(), case, dtype, direction)
    forget(implicit_gemm)
    assert not sum(traffic.bank_conflicts for _, traffic in launches)


def passed(gpu, monkeypatch, algorithm, case, dtype, direction):
    """The launches of one pass."""
    x, w, dy = map(gpu.asarray, case.arrays(integers, dtype))
    g = problem(case)
    posed = Problem(g, DTYPES[dtype], "cuda:0", direction, "strict", 2**28)
    inputs, shape = {
        "forward": ((x, w), g.y_shape), "input_grad": ((dy, w), g.x_shape), "weight_grad": ((x, dy), g.w_shape)
    }[direction]  # fmt: skip
    out = gpu.empty(shape, DTYPES[dtype])
    with counted(monkeypatch) as launches:
        epilogue = () if direction == "weight_grad" else (None, "identity")
        getattr(algorithm, direction)(posed, *inputs, out, *epilogue)
    return launches


def test_a_kernel_over_the_budget_is_told(double, monkeypatch):
    text = 'extern "C" __global__ void spread(float* y) { y[threadIdx.x * 2] = 1; }'
    with counted(monkeypatch) as launches:
        y = double.zeros(64, np.float32)
        double.RawModule(code=text, options=("-std=c++17",)).get_function("spread")((1,), (32,), (y,))
    assert_within_budget(launches, [])
    with pytest.raises(AssertionError, match="spread"):
        assert_within_budget(launches, ["spread"])
    with pytest.raises(AssertionError):
        assert_within_budget(launches, ["another"])
