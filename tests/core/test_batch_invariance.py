"""settings.batch_invariant: the result of a sample has the same bits in a batch of any size, whatever computes it."""

import itertools

import numpy as np
import pytest
from calls import ALGORITHM_NAMES, WAYS, Way, channels_first, function, problem, same, supporting, try_each, willing
from cases import DTYPES, Case, reals
from tolerances import to_numpy

import gpuconv
from gpuconv import autotune
from gpuconv.algorithms.cuda.direct import CudaDirect
from gpuconv.simd.host import numba_is_there

BATCHES = (1, 2, 3, 5, 8, 17)
MOST = max(BATCHES)

ONES, SQUARE = (1, 1), ((1, 1), (1, 1))
SHAPES = {
    "2d": Case(MOST, (9, 8), 8, 12, (3, 3), ONES, ONES, SQUARE),
    "few channels": Case(MOST, (13, 11), 3, 5, (5, 4), (2, 1), ONES, SQUARE),
    "more weights than tiles": Case(MOST, (5, 5), 16, 40, (3, 3), ONES, ONES, SQUARE),
    "1x1": Case(MOST, (7, 5), 13, 9, (1, 1), ONES, ONES, ((0, 0), (0, 0))),
    "whole image": Case(MOST, (4, 4), 7, 10, (4, 4), ONES, ONES, ((0, 0), (0, 0))),
    "groups": Case(MOST, (9, 9), 8, 12, (3, 3), (2, 1), (1, 2), SQUARE, 4, "circular"),
    "depthwise": Case(MOST, (8, 9), 6, 6, (3, 3), ONES, ONES, SQUARE, 6),
    "reflected": Case(MOST, (8, 7), 4, 6, (3, 3), ONES, ONES, SQUARE, 1, "reflect"),
    "1d": Case(MOST, (33,), 5, 7, (4,), (2,), (2,), ((3, 1),)),
    "3d": Case(MOST, (4, 5, 4), 4, 4, (2, 3, 2), (1, 2, 1), ONES + (1,), ((1, 0), (1, 1), (0, 1))),
}
needs_numba = pytest.mark.skipif(not numba_is_there(), reason="needs compiled loops")
PASSES = ("forward", "input_grad", "transposed")
every_pass = pytest.mark.parametrize("direction", PASSES)
every_algorithm = pytest.mark.parametrize("name", ["auto", *ALGORITHM_NAMES])


@pytest.fixture(autouse=True)
def _asked_for(monkeypatch):
    monkeypatch.setattr(gpuconv.settings, "batch_invariant", True)


def arrays_of(case, direction, dtype="float32", xp=np):
    """What a pass reads: a batch, and the weights."""
    x, w, dy = map(xp.asarray, case.arrays(reals, dtype))
    return (x if direction == "forward" else dy), w


def call(case, direction, batch, w, **more):
    keywords = {**case.keywords, **more}
    if direction == "forward":
        return function(case, "")(batch, w, **keywords)
    if direction == "input_grad":
        shape = (len(batch), *case.x_shape[1:])
        if keywords.get("layout") == "channels_first":
            shape = (shape[0], shape[-1], *shape[1:-1])
        return function(case, "_input_grad")(batch, w, shape, **keywords)
    keywords.pop("pad_mode")
    return getattr(gpuconv, f"conv_transpose{case.ndim}d")(batch, w, **keywords)


def differing(compute, batch, batches=BATCHES):
    """In which batches, and at which place there, the result of a sample differs from what it is alone.

    Each sample alone is a copy, which begins where memory of its own does.
    """
    batch = batch[-max(batches) :]
    alone = [to_numpy(compute(batch[n : n + 1].copy())).tobytes() for n in range(len(batch))]
    found = []
    for count in batches:
        made = to_numpy(compute(batch[-count:]))
        found += [(count, n) for n in range(count) if made[n : n + 1].tobytes() != alone[len(batch) - count + n]]
    return found


def tries(name, case, direction, dtype, precision="strict", device="cpu"):
    """Skip what is refused with the setting and without it."""
    way = "forward" if direction == "forward" else "input_grad"
    if name != "auto" and name not in willing(case, way, dtype, device, precision=precision):
        pytest.skip(f"{name} refuses")


@pytest.mark.parametrize("dtype", DTYPES)
@every_pass
@pytest.mark.parametrize("shape", SHAPES)
def test_every_algorithm_keeps_it(shape, direction, dtype):
    """At both precisions, if it knows them apart."""
    case = SHAPES[shape]
    if direction == "transposed" and case.mode != "zeros":
        pytest.skip("transposed convolutions pad with zeros")
    batch, w = arrays_of(case, direction, dtype)

    def check(way):
        batches = BATCHES if way.algorithm != "loops" else (3,)
        assert not differing(lambda some: call(case, direction, some, w, **way.keywords), batch, batches)

    served = supporting(WAYS, case, "forward" if direction == "forward" else "input_grad", dtype)
    try_each([Way("auto"), Way("auto", "fast"), *served], check)


@pytest.mark.parametrize("threads", [1, 2, 5])
@every_pass
@every_algorithm
def test_of_samples_that_threads_share(monkeypatch, name, direction, threads):
    """Alone on one thread, in a batch on several."""
    case = Case(5, (40, 37), 20, 24, (3, 3), ONES, ONES, SQUARE)
    if name == "depthwise":
        case = Case(5, (40, 37), 24, 24, (3, 3), ONES, ONES, SQUARE, 24)
    if name == "loops":
        pytest.skip("one thread computes it")
    tries(name, case, direction, "float32", "fast")
    batch, w = arrays_of(case, direction)

    def compute(some):
        monkeypatch.setattr(gpuconv.settings, "threads", 1 if len(some) == 1 else threads)
        return call(case, direction, some, w, algorithm=name, precision="fast", max_workspace=2**19)

    assert not differing(compute, batch, (2, 5))


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@every_pass
@every_algorithm
@pytest.mark.parametrize("shape", ["2d", "few channels", "1x1", "depthwise"])
def test_on_a_gpu(gpu, shape, name, direction, dtype):
    """Samples of an odd number of bytes begin at places from which kernels cannot load several elements at once."""
    case = SHAPES[shape]
    tries(name, case, direction, dtype, "fast", "cuda:0")
    batch, w = arrays_of(case, direction, dtype, gpu)
    keywords = {"algorithm": name, "precision": "fast"}
    assert not differing(lambda some: call(case, direction, some, w, **keywords), batch[:4], (2, 3, 4))


def seen_backwards(batch):
    return batch[::-1].copy()[::-1]


def spread_out(batch):
    wide = np.empty((2 * len(batch), *batch.shape[1:]), batch.dtype)
    wide[::2] = batch
    return wide[::2]


def flipped(batch):
    return batch[:, ::-1].copy()[:, ::-1]


def swapped(batch):
    return batch.astype(batch.dtype.newbyteorder(">"))


@pytest.mark.parametrize("view", [seen_backwards, spread_out, flipped, swapped, np.asfortranarray])
@every_pass
@every_algorithm
def test_of_arrays_in_any_order(name, direction, view):
    """A copy of each sample alone lies in another order in memory, but for what is the same order for one sample."""
    case = SHAPES["depthwise" if name == "depthwise" else "2d"]
    tries(name, case, direction, "float32", "fast")
    batch, w = arrays_of(case, direction)
    batch = view(batch)

    def compute(some):
        return call(case, direction, some, w, algorithm=name, precision="fast")

    whole = compute(batch)
    pieces = np.concatenate([compute(batch[first:stop]) for first, stop in itertools.pairwise((0, 1, 6, 8, MOST))])
    assert whole.tobytes() == pieces.tobytes()


@every_pass
@every_algorithm
def test_of_channels_first(name, direction):
    case = SHAPES["depthwise" if name == "depthwise" else "2d"]
    tries(name, case, direction, "float32", "fast")
    batch, w = arrays_of(case, direction)
    batch, w = np.ascontiguousarray(channels_first(batch, "x")), np.ascontiguousarray(channels_first(w, "w"))
    keywords = {"algorithm": name, "precision": "fast", "layout": "channels_first"}
    assert not differing(lambda some: call(case, direction, some, w, **keywords), batch)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@every_algorithm
def test_with_bias_activation_and_out(name, activation):
    case = SHAPES["depthwise" if name == "depthwise" else "2d"]
    tries(name, case, "forward", "float32", "fast")
    batch, w = arrays_of(case, "forward")
    bias = reals(np.random.default_rng(1), (case.k,))

    def compute(some):
        out = np.full((len(some), *case.y_shape[1:]), np.nan, np.float32)
        keywords = {"algorithm": name, "precision": "fast", "activation": activation, "out": out}
        assert call(case, "forward", some, w, bias=bias, **keywords) is out
        return out

    assert not differing(compute, batch)


def test_out_may_overlap_the_batch():
    case = SHAPES["2d"]
    x, w = arrays_of(case, "forward")
    w = w[..., :8].copy()
    want = call(case, "forward", x, w)
    assert same(call(case, "forward", x, w, out=x), want)
    assert same(x, want)


@pytest.mark.parametrize("max_workspace", [0, 2_000, 20_000])
@every_pass
def test_under_any_cap(direction, max_workspace):
    case = SHAPES["2d"]
    batch, w = arrays_of(case, direction)
    assert not differing(lambda some: call(case, direction, some, w, max_workspace=max_workspace), batch)


@pytest.mark.parametrize("shape", SHAPES)
def test_prepared(shape):
    case = SHAPES[shape]
    x, w = arrays_of(case, "forward")

    def compute(some):
        prepared = gpuconv.prepare(w, some.shape, **case.keywords)
        assert prepared.plan == gpuconv.explain(some, w, **case.keywords)
        return prepared(some)

    assert not differing(compute, x)
    assert same(compute(x), call(case, "forward", x, w))


def test_what_is_prepared_goes_by_the_setting_of_its_calls(monkeypatch):
    case = SHAPES["more weights than tiles"]
    x, w = arrays_of(case, "forward")
    want = {}
    for asked in (True, False):
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", asked)
        want[asked] = call(case, "forward", x, w, algorithm="fft", precision="fast")
    assert not same(want[True], want[False])  # the bits tell which it was
    for at_first in (True, False):
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", at_first)
        prepared = gpuconv.prepare(w, x.shape, algorithm="fft", precision="fast", **case.keywords)
        for asked in (True, False):
            monkeypatch.setattr(gpuconv.settings, "batch_invariant", asked)
            assert same(prepared(x), want[asked])


def test_a_change_of_the_setting_shows_in_the_next_call(monkeypatch):
    case = SHAPES["more weights than tiles"]
    x, w = arrays_of(case, "forward")
    bits = []
    for asked in (False, True, False, True):
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", asked)
        bits.append(call(case, "forward", x, w, algorithm="fft", precision="fast").tobytes())
        assert gpuconv.explain(x, w, algorithm="fft", **case.keywords).by_sample is asked
    assert bits[0] == bits[2] != bits[1] == bits[3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_auto_chooses_by_the_sample(monkeypatch, shape, direction):
    plans = []
    for count, threads in itertools.product(BATCHES, (1, 2, 8)):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        g = gpuconv.ConvGeometry.parse(str(problem(SHAPES[shape])).replace(f"n{MOST}_", f"n{count}_"))
        plan = gpuconv.plan(g, direction=direction)
        assert plan.geometry.n == count
        plans.append(plan.chosen)
    assert len(set(plans)) == 1


def test_the_plan_says_so():
    plan = gpuconv.plan("n8_h9w9_c4_k4_r3s3_p1", direction="input_grad", algorithm="gemm")
    alone = gpuconv.plan("n1_h9w9_c4_k4_r3s3_p1", direction="input_grad", algorithm="gemm")
    assert "  sample by sample" in str(plan).splitlines()[0]
    assert str(plan).splitlines()[1:] == str(alone).splitlines()[1:]
    assert plan.workspace == alone.workspace


@needs_numba
@pytest.mark.parametrize("name", ["direct", "winograd"])
def test_a_batch_is_computed_at_once_where_that_comes_to_the_same(monkeypatch, name):
    plans = []
    for asked in (True, False):
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", asked)
        plans.append(gpuconv.plan("n8_h9w9_c4_k4_r3s3_p1", algorithm=name))
    assert (plans[0].by_sample, plans[0].workspace) == (False, plans[1].workspace)


@needs_numba
@pytest.mark.parametrize("max_workspace", [40_000, 80_000, 2**28])
def test_direct_merges_taps_of_all_batches_or_of_none(max_workspace):
    """Which it does decides where a long sum is cut, and there may be memory for the padded copy of one sample only."""
    case = Case(MOST, (14, 15), 3, 8, (11, 11), ONES, ONES, ((5, 5), (5, 5)))
    batch, w = arrays_of(case, "forward")
    keywords = {"algorithm": "direct", "max_workspace": max_workspace}
    assert not differing(lambda some: call(case, "forward", some, w, **keywords), batch)


def test_a_weight_gradient_is_computed_as_ever(monkeypatch):
    case = SHAPES["2d"]
    x, _, dy = case.arrays(reals)
    results = []
    for asked in (True, False):
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", asked)
        results.append(gpuconv.conv2d_weight_grad(x, dy, case.kernel, **case.keywords))
        assert not gpuconv.plan(problem(case), direction="weight_grad").by_sample
    assert same(*results)


@pytest.fixture
def _own_table(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path))
    autotune.clear()
    yield
    autotune.clear()


@pytest.mark.usefixtures("_own_table")
@pytest.mark.parametrize("ahead", [False, True])
def test_what_was_tuned_serves_batches_of_all_sizes(monkeypatch, ahead):
    """Whichever is found to be the fastest: the first to be asked decides."""
    case = SHAPES["2d"]
    x, w = arrays_of(case, "forward")
    if ahead:
        gpuconv.warmup(problem(case), directions="forward", tune=True)
    else:
        monkeypatch.setattr(gpuconv.settings, "autotune", True)
    assert not differing(lambda some: call(case, "forward", some, w), x)
    assert len(autotune.entries()) == 1


def test_a_batch_of_none():
    case = SHAPES["2d"]
    x, w = arrays_of(case, "forward")
    assert call(case, "forward", x[:0], w).shape == (0, *case.y_shape[1:])
    assert gpuconv.prepare(w, x[:0].shape, **case.keywords)(x[:0]).shape == (0, *case.y_shape[1:])


def test_layers_of_products():
    layer = gpuconv.layers.Dense(33, acti_fn="tanh", rng=0)
    X, dY = (reals(np.random.default_rng(seed), (MOST, size)) for seed, size in ((0, 300), (1, 33)))
    layer.forward(X, retain_derived=False)
    assert not differing(lambda some: layer.forward(some, retain_derived=False), X)

    def input_grad(some):
        layer.flush_gradients()
        layer.forward(X[-len(some) :])
        return layer.backward(some)

    whole = input_grad(dY)
    assert all(same(input_grad(dY[-count:]), whole[-count:]) for count in BATCHES)


def test_a_network():
    layers = gpuconv.layers
    model = gpuconv.models.Sequential([
        layers.Conv2D(8, 3, "same", acti_fn="relu", rng=0),
        layers.BatchNorm2D(),
        layers.MaxPool2D(2),
        layers.DepthwiseConv2D(3, "same", acti_fn="tanh", rng=0),
        layers.ConvTranspose2D(5, 3, 1, 2, rng=0),
        layers.AvgPool2D(2),
        layers.Flatten(),
        layers.Dense(10, acti_fn="sigmoid", rng=0),
    ])  # fmt: skip
    X = reals(np.random.default_rng(0), (MOST, 12, 10, 3))
    model.predict(X)
    assert not differing(model.predict, X)


def test_layers_of_products_on_a_gpu(gpu):
    layer = gpuconv.layers.Dense(7, rng=0)
    X = gpu.asarray(reals(np.random.default_rng(0), (5, 30)))
    layer.forward(X, retain_derived=False)
    assert not differing(lambda some: layer.forward(some, retain_derived=False), X, (2, 5))


@pytest.mark.parametrize("c", [4, 3])
def test_kernels_find_every_sample_where_they_can_load_several_elements_at_once(gpu, monkeypatch, c):
    """They cut sums another way where they cannot, and samples of 5 x 5 x 3 elements begin anywhere."""
    seen = []
    forward = CudaDirect.forward

    def spy(self, problem, x, w, out, *more):
        seen.append((x.data.ptr % 16, out.data.ptr % 16, problem.copied))
        forward(self, problem, x, w, out, *more)

    monkeypatch.setattr(CudaDirect, "forward", spy)
    x, w = gpu.ones((4, 5, 5, c), "float32"), gpu.ones((1, 1, c, 5), "float32")
    for some in (x, x[1:], x[2:3]):
        y = gpuconv.conv2d(some, w, algorithm="direct")
        assert to_numpy(y).tolist() == np.full((len(some), 5, 5, 5), c).tolist()
    copied = 5 * 5 * 5 * 4 + (5 * 5 * c * 4 if c == 3 else 0)
    assert seen == [(0, 0, copied)] * 8
