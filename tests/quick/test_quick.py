"""Whether the library works at all, within a minute: `pytest tests/quick`. All of this is tested in full elsewhere."""

import subprocess
import sys

import numpy as np
import oracle
import pytest
from calls import EXACT_NAMES, case_of, convolve, same, transpose, willing
from cases import CASES, DIRECTIONS, integers, remainder
from layer_cases import ACTIVE, every_layer, fill_with_integers, make
from peaks import cpu_seconds
from tolerances import assert_exact, to_numpy
from training import images, network

import gpuconv
from gpuconv.cuda import loader

SECONDS = 60
"""The most seconds of processors that the tests of this folder take: on two cores, a minute has room for the start."""

taken = []
"""The seconds of processors that each test took, of this process and those it started."""


@pytest.fixture(autouse=True)
def _timed():
    before = cpu_seconds()
    yield
    taken.append(cpu_seconds() - before)


SMALL = ("1d-causal-dilated", "2d", "2d-groups-strided", "2d-depthwise", "2d-reflect", "2d-batch-0", "3d-everything")
LARGE = {  # what compiled loops, strips and threads tell apart
    "dense": "n2_h33w31_c20_k40_r3s3_p1",
    "strided": "n2_h20w21_c3_k24_r5s5_p2_st2",
    "depthwise": "n2_h19w21_c40_k40_r3s3_p1_g40",
    "one tap": "n2_h17w17_c33_k65_r1s1",
}
PROBLEMS = {**{name: CASES[name] for name in SMALL}, **{name: case_of(text) for name, text in LARGE.items()}}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", PROBLEMS.values(), ids=PROBLEMS)
def test_every_algorithm_computes_what_the_oracle_does(case, direction):
    arrays = case.arrays()
    want = case.want(direction, *arrays)
    for name in ["auto", *(name for name in EXACT_NAMES if name in willing(case, direction))]:
        if name != "loops" or case.n * want.size < 20_000:
            assert_exact(convolve(direction, case, *arrays, algorithm=name), want, "float32")


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_other_dtypes(direction, dtype):
    case = CASES["2d-groups-strided"]
    arrays = case.arrays(integers, dtype)
    assert_exact(convolve(direction, case, *arrays), case.want(direction, *arrays), dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_on_the_double_of_cupy(gpu, direction):
    """By kernels in the emulator, if g++ is there."""
    case = CASES["2d-four-pads"]
    x, w, dy = case.arrays()
    got = convolve(direction, case, gpu.asarray(x), gpu.asarray(w), gpu.asarray(dy))
    assert_exact(to_numpy(got), case.want(direction, x, w, dy), "float32")


def test_a_bias_and_an_activation():
    case = PROBLEMS["dense"]
    x, w, _ = case.arrays()
    bias = np.arange(case.k, dtype=np.float32) - 20
    want = np.maximum(oracle.conv(x, w, bias, **case.oracle), 0)
    assert_exact(gpuconv.conv2d(x, w, bias, activation="relu", **case.keywords), want, "float32")


def test_transposed():
    case = CASES["2d-stride"]
    _, w, dy = case.arrays()
    want = oracle.conv_transpose(dy, w, **case.steps, output_pad=remainder(case))
    assert_exact(transpose(case, dy, w, output_pad=remainder(case)), want, "float32")


def test_columns():
    steps = {"stride": (2, 1), "dilation": (1, 2)}
    x = integers(np.random.default_rng(0), (2, 8, 9, 3))
    want = oracle.im2col(x, (3, 2), pads=((1, 1), (1, 1)), **steps)
    assert_exact(gpuconv.im2col(x, (3, 2), pad=1, **steps), want, "float32")


def test_pooling():
    x = integers(np.random.default_rng(0), (2, 8, 9, 5))
    steps, pads = {"stride": (2, 1), "pad": 1}, {"stride": (2, 1), "pads": ((1, 1), (1, 1))}
    y = gpuconv.max_pool2d(x, (3, 2), **steps)
    assert_exact(y, oracle.max_pool(x, (3, 2), dilation=(1, 1), **pads), "float32")
    dy = integers(np.random.default_rng(1), y.shape)
    want = oracle.max_pool_grad(dy, x, (3, 2), dilation=(1, 1), **pads)
    assert_exact(gpuconv.max_pool2d_grad(dy, x, (3, 2), **steps), want, "float32")
    assert_exact(gpuconv.avg_pool2d(x, (2, 2), **steps), oracle.avg_pool(x, (2, 2), **pads), "float32")
    dy = integers(np.random.default_rng(2), gpuconv.avg_pool2d(x, (2, 2), **steps).shape)
    want = oracle.avg_pool_grad(dy, x.shape[1:3], (2, 2), **pads)
    assert_exact(gpuconv.avg_pool2d_grad(dy, x.shape, (2, 2), **steps), want, "float32")


@every_layer
def test_the_gradients_of_a_layer_are_those_of_what_it_computes(rng, name):
    """<f(X + D) - f(X), dLda> = <D, dX>, exactly, where f is linear and all numbers are small integers."""
    layer, shape = make(name)
    x, dLda = fill_with_integers(np, layer, shape, "float64", rng)
    y = layer.forward(x)
    assert y.shape == layer.output_shape(shape)
    dX = layer.backward(dLda)
    assert dX.shape == x.shape
    if not name.startswith(("max", "batchnorm", "dropout", "activation", "residual")) and name != "global-avg":
        step = integers(rng, shape, "float64")
        change = layer.forward(x + step, retain_derived=False) - y
        assert np.vdot(change, dLda) == np.vdot(step, dX)
    if name in ACTIVE:
        params = {key: value.copy() for key, value in layer.params.items()}
        for key, value in params.items():
            step = integers(rng, value.shape, "float64")
            layer.set_params({**params, key: value + step})
            change = layer.forward(x, retain_derived=False) - y
            assert np.vdot(change, dLda) == np.vdot(step, layer.gradients[key]), key


def test_a_network_learns():
    model, (X, y) = network(), images()
    losses = model.fit(X, y, epochs=6, batch_size=20).loss
    assert losses[-1] < 0.9 * losses[0]
    assert same(model.predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["info"], gpuconv.__version__), (["explain", "n1_h56w56_c64_k64_r3s3_p1"], "direct")],
    ids=["info", "explain"],
)
def test_the_command_line_starts(words, shown):
    done = subprocess.run([sys.executable, "-m", "gpuconv", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_the_kernels_are_where_they_are_looked_for():
    assert "im2col(" in loader.flatten("im2col.cu")


def test_that_all_of_this_was_quick():
    """Other tests and other processes, which may run between these, are not counted."""
    assert sum(taken) < SECONDS
