"""Optimizers and schedulers against their papers' formulas, written down again for one number at a time."""

import math
from fractions import Fraction

import cupy_double
import numpy as np
import pytest
from tolerances import assert_near, to_numpy

import gpuconv
from gpuconv import optimizers, schedulers
from gpuconv.cuda import clipping

STEPS = 6
SIZE = optimizers.CHUNK + 5  # more than one piece on the CPU


def sgd(p, grads, lr=0.1, momentum=0.0, nesterov=False):
    v = 0.0
    for g in grads:
        v = momentum * v - lr * g
        p += momentum * v - lr * g if nesterov else v
    return p


def adagrad(p, grads, lr=0.1, eps=1e-7):
    h = 0.0
    for g in grads:
        h += g * g
        p -= lr * g / (math.sqrt(h) + eps)
    return p


def rmsprop(p, grads, lr=0.1, decay=0.8, eps=1e-7):
    h = 0.0
    for g in grads:
        h = decay * h + (1 - decay) * g * g
        p -= lr * g / (math.sqrt(h) + eps)
    return p


def adam(p, grads, lr=0.1, decay1=0.8, decay2=0.95, eps=1e-3, weight_decay=0.0):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m = decay1 * m + (1 - decay1) * g
        v = decay2 * v + (1 - decay2) * g * g
        m_hat, v_hat = m / (1 - decay1**t), v / (1 - decay2**t)
        p = p - lr * m_hat / (math.sqrt(v_hat) + eps) - lr * weight_decay * p
    return p


FORMULAS = {
    "SGD(lr=0.1)": sgd,
    "SGD(lr=0.1, momentum=0.9)": lambda p, g: sgd(p, g, momentum=0.9),
    "SGD(lr=0.1, momentum=0.9, nesterov=True)": lambda p, g: sgd(p, g, momentum=0.9, nesterov=True),
    "AdaGrad(lr=0.1)": adagrad,
    "RMSProp(lr=0.1, decay=0.8)": rmsprop,
    "Adam(lr=0.1, decay1=0.8, decay2=0.95, eps=0.001)": adam,
    "AdamW(lr=0.1, decay1=0.8, decay2=0.95, eps=0.001, weight_decay=0.3)": lambda p, g: adam(p, g, weight_decay=0.3),
}
every_optimizer = pytest.mark.parametrize(("spelling", "formula"), FORMULAS.items(), ids=FORMULAS)


def run(xp, optimizer, params, grads, cache=None):
    cache = {} if cache is None else cache
    for g in grads:
        optimizer.update(params, {name: xp.asarray(g) for name in params}, cache)
    return cache


def test_all_are_tested():
    assert {optimizers.parse(spelling).name for spelling in FORMULAS} == set(optimizers.OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_formula(xp, spelling, formula, dtype, rng):
    p, grads = rng.standard_normal(7).astype(dtype), rng.standard_normal((STEPS, 7)).astype(dtype)
    want = np.array([formula(float(a), map(float, g)) for a, g in zip(p, grads.T, strict=True)])
    params = {"W": xp.asarray(p)}
    cache = run(xp, optimizers.parse(spelling), params, grads)
    assert_near(params["W"], want, dtype, units=32)
    assert cache["step"] == STEPS
    assert {str(a.dtype) for a in cache["W"].values()} <= {dtype}


@every_optimizer
def test_large_arrays_go_in_pieces_and_come_out_the_same(spelling, formula, rng):
    p, grads = rng.standard_normal(SIZE), rng.standard_normal((2, SIZE))
    whole, ends = {"W": p.copy().reshape(5, -1) if SIZE % 5 == 0 else p.copy()}, {"W": p[[0, -1]].copy()}
    run(np, optimizers.parse(spelling), whole, grads)
    run(np, optimizers.parse(spelling), ends, grads[:, [0, -1]])
    assert whole["W"].ravel()[[0, -1]].tobytes() == ends["W"].tobytes()


@every_optimizer
def test_in_place_and_the_gradient_is_left_alone(xp, spelling, formula, rng):
    p, g = xp.asarray(rng.standard_normal((3, 4))), rng.standard_normal((3, 4))
    params, gradients = {"W": p}, {"W": xp.asarray(g)}
    cache = {}
    optimizers.parse(spelling).update(params, gradients, cache)
    slots = dict(cache.get("W", {}))
    optimizers.parse(spelling).update(params, gradients, cache)
    assert params["W"] is p
    assert all(cache["W"][name] is a for name, a in slots.items())
    assert (to_numpy(gradients["W"]) == g).all()


@every_optimizer
def test_the_string_reads_back(spelling, formula):
    optimizer = optimizers.parse(spelling)
    assert optimizers.parse(str(optimizer)) == optimizer
    assert optimizers.parse(repr(optimizer)) == optimizer
    assert optimizers.from_hyperparams({"name": optimizer.name, **optimizer.hyperparams}) == optimizer


@every_optimizer
def test_one_optimizer_serves_two_layers(spelling, formula, rng):
    """Turn by turn, with two caches, as if each had one of its own."""
    grads = rng.standard_normal((2, 3, 4))
    shared, together, apart = optimizers.parse(spelling), [{"W": np.ones(4)}, {"W": np.ones(4)}], []
    caches = [{}, {}]
    for t in range(3):
        for i in (0, 1):
            run(np, shared, together[i], grads[i][t : t + 1], caches[i])
    for i in (0, 1):
        apart.append({"W": np.ones(4)})
        run(np, optimizers.parse(spelling), apart[i], grads[i])
    assert all(a["W"].tobytes() == b["W"].tobytes() for a, b in zip(together, apart, strict=True))


# ---------------------------------------------------------------------------------------------- one kernel a group


SHAPES = {"W": (3, 4), "b": (1,), "empty": (0, 2), "long": (1300,), "last": (7,)}


def arrays_of(rng, dtype, shapes=SHAPES):
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def states(cache):
    return {name: {slot: to_numpy(a) for slot, a in held.items()} for name, held in cache.items() if name != "step"}


@every_optimizer
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gpu_gives_the_bits_of_numpy(gpu, spelling, formula, dtype, rng, monkeypatch):
    monkeypatch.setattr("gpuconv.cuda.arguments.MOST_BLOCKS", 2)  # so that threads go round
    optimizer, ours, theirs = optimizers.parse(spelling), {}, {}
    params = arrays_of(rng, dtype)
    on_gpu = {name: gpu.asarray(p) for name, p in params.items()}
    for _ in range(STEPS):
        gradients = arrays_of(rng, dtype)
        optimizer.update(params, gradients, theirs)
        optimizer.update(on_gpu, {name: gpu.asarray(g) for name, g in gradients.items()}, ours)
    assert {name: to_numpy(p).tobytes() for name, p in on_gpu.items()} == {n: p.tobytes() for n, p in params.items()}
    want, got = states(theirs), states(ours)
    assert {(n, k): a.tobytes() for n, held in got.items() for k, a in held.items()} == {
        (n, k): a.tobytes() for n, held in want.items() for k, a in held.items()
    }


@every_optimizer
def test_a_layer_takes_one_launch(double, emulated, spelling, formula, rng):
    """Nothing else runs on the device: what its stream was given is counted."""
    queue, optimizer, cache = cupy_double.machine.null[0], optimizers.parse(spelling), {}
    params, gradients = ({n: double.asarray(a) for n, a in arrays_of(rng, "float32").items()} for _ in range(2))
    for names, launches in ((("W", "b"), 1), (("W",), 1), (SHAPES, 2)):
        some = {name: gradients[name] for name in names}
        optimizer.update(params, some, cache)  # which makes the state
        before, count = queue.time, len(cupy_double.launches)
        optimizer.update(params, some, cache)
        assert [launch[0] for launch in cupy_double.launches[count:]] == ["optimizer_step"] * launches
        assert queue.time - before == launches


def test_parameters_of_two_dtypes_take_two_launches(double, emulated, rng):
    params = {"a": double.ones(3, "float32"), "b": double.ones(3, "float64"), "c": double.ones(3, "float32")}
    count = len(cupy_double.launches)
    optimizers.SGD(1.0).update(params, {name: p.copy() for name, p in params.items()}, {})
    assert len(cupy_double.launches) - count == 2
    assert not any(to_numpy(p).any() for p in params.values())


@every_optimizer
def test_what_two_parameters_share_is_updated_twice(xp, spelling, formula, rng):
    """In turn, as if each were alone; in one launch they would race."""
    start, gradients = rng.standard_normal(9), arrays_of(rng, "float64", {"a": (6,), "b": (6,)})
    found = []
    for module in (np, xp):
        whole, cache = module.array(start), {}
        params = {"a": whole[:6], "b": whole[3:]}
        optimizers.parse(spelling).update(params, {n: module.asarray(g) for n, g in gradients.items()}, cache)
        found.append(to_numpy(whole).tobytes())
    assert found[0] == found[1]


@every_optimizer
def test_a_gradient_that_reaches_into_another_parameter_is_read_in_turn(xp, spelling, formula, rng):
    """It begins before it, with a stride, and is as long as what lies between."""
    start, gradient = rng.standard_normal(12), rng.standard_normal(6)
    found = []
    for module in (np, xp):
        whole, other = module.array(start), module.ones(6)
        gradients = {"a": module.asarray(gradient), "b": whole[::2]}
        optimizers.parse(spelling).update({"a": whole[6:], "b": other}, gradients, {})
        found.append(to_numpy(other).tobytes())
    assert found[0] == found[1]


def test_one_gradient_may_serve_two_parameters(double, emulated):
    g = double.ones(3)
    params = {"a": double.ones(3), "b": double.full(3, 2.0)}
    count = len(cupy_double.launches)
    optimizers.SGD(0.5).update(params, {"a": g, "b": g}, {})
    assert [to_numpy(p).tolist() for p in params.values()] == [[0.5] * 3, [1.5] * 3]
    assert len(cupy_double.launches) - count == 1


def test_a_gradient_in_any_layout(xp, rng):
    p, g = rng.standard_normal((3, 4)), rng.standard_normal((4, 3))
    params = {"W": xp.array(p)}
    optimizers.SGD(0.5).update(params, {"W": xp.asarray(g).T}, {})
    assert_near(params["W"], p - 0.5 * g.T, "float64", units=4)


def test_a_step_of_ones_own_is_what_runs(xp):
    class Backwards(optimizers.Adam):
        def step(self, xp, t, lr, p, g, *slots):
            p += g

    params = {"W": xp.zeros(3)}
    Backwards().update(params, {"W": xp.ones(3)}, {})
    assert to_numpy(params["W"]).tolist() == [1, 1, 1]


def test_state_of_another_dtype_goes_without_the_kernel(xp):
    """Somebody may have put it there; NumPy's rules serve it."""
    params, cache = {"W": xp.ones(3, "float32")}, {"step": 1, "W": {"velocity": xp.ones(3, "float64")}}
    optimizers.SGD(1.0, momentum=0.5).update(params, {"W": xp.ones(3, "float32")}, cache)
    assert to_numpy(params["W"]).tolist() == [0.5] * 3


@pytest.mark.parametrize("most", [0.5, 100.0, 0.0])
def test_clipping_by_the_norm_of_all(xp, most, rng):
    arrays = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    norm = math.sqrt(sum((a**2).sum() for a in arrays))
    given = [xp.array(a) for a in arrays]
    optimizers.clip(given, most)
    for got, a in zip(given, arrays, strict=True):
        assert_near(got, a * min(1.0, most / norm), "float64", units=8)


def test_clipping_zeros(xp):
    zeros = xp.zeros(3, np.float32)
    optimizers.clip([zeros], 1.0)
    assert (to_numpy(zeros) == 0).all()


def test_an_optimizer_clips_its_layer(xp):
    params, gradients = {"W": xp.zeros(2)}, {"W": xp.asarray(np.array([3.0, 4.0]))}
    optimizers.parse("SGD(lr=1, clip_norm=1)").update(params, gradients, {})
    assert_near(params["W"], np.array([-0.6, -0.8]), "float64", units=4)


SCHEDULES = {
    "constant(lr=0.3)": lambda t: 0.3,
    "exponential(initial_lr=0.5, stage_length=4, decay=0.1)": lambda t: 0.5 * 0.1 ** ((t - 1) / 4),
    "exponential(initial_lr=0.5, stage_length=4, staircase=True, decay=0.1)": lambda t: 0.5 * 0.1 ** ((t - 1) // 4),
    "cosine(initial_lr=0.5, steps=11, final_lr=0.1)": lambda t: (
        0.1 + 0.2 * (1 + math.cos(math.pi * min(t - 1, 10) / 10))
    ),
    "cosine(initial_lr=0.5, steps=14, warmup=3)": lambda t: (
        0.5 * t / 3 if t <= 3 else 0.25 * (1 + math.cos(math.pi * min(t - 4, 10) / 10))
    ),
    "noam(model_dim=64, scale_factor=2, warmup_steps=5)": lambda t: 2 / 8 * min(t**-0.5, t * 5**-1.5),
}


@pytest.mark.parametrize(("spelling", "formula"), SCHEDULES.items(), ids=SCHEDULES)
class TestSchedules:
    def test_the_formula(self, spelling, formula):
        scheduler = schedulers.parse(spelling)
        for t in range(1, 20):
            assert math.isclose(scheduler(t), formula(t), rel_tol=1e-12, abs_tol=1e-15)

    def test_the_string_reads_back(self, spelling, formula):
        scheduler = schedulers.parse(spelling)
        assert schedulers.parse(str(scheduler)) == scheduler
        assert schedulers.parse(repr(scheduler)) == scheduler

    def test_an_optimizer_follows_it(self, spelling, formula):
        optimizer = optimizers.SGD(lr=99.0, scheduler=spelling)
        params = {"W": np.zeros(1)}
        run(np, optimizer, params, np.ones((7, 1)))
        assert math.isclose(-params["W"][0], sum(map(formula, range(1, 8))), rel_tol=1e-12)
        assert optimizers.parse(str(optimizer)) == optimizer


def test_all_schedules_are_tested():
    assert {schedulers.parse(spelling).name for spelling in SCHEDULES} == set(schedulers.SCHEDULERS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("adamax", "optimizer='adamax' is none of SGD, AdaGrad, RMSProp, Adam, AdamW"),
        ("SGD(lr=-1)", r"SGD: lr=-1, but must be finite and at least 0"),
        ("SGD(momentum=1)", r"momentum=1, but must be from 0 to below 1"),
        ("SGD(nesterov=True)", "nesterov=True needs momentum > 0"),
        ("Adam(lr='fast')", "lr='fast' is not a number"),
        ("Adam(scheduler='linear')", "scheduler='linear' is none of constant"),
        ("Adam(scheduler='cosine(steps=0)')", "steps=0 is less than 1"),
    ],
)
def test_what_is_no_optimizer(given, message):
    with pytest.raises(ValueError, match=message):
        optimizers.parse(given)


# ------------------------------------------------------------------------------------------------ clipping on a GPU


def clipped(xp, arrays, most):
    given = [xp.array(a) for a in arrays]
    optimizers.clip(given, most)
    return [to_numpy(g) for g in given]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_clipping_is_two_launches(double, emulated, rng, dtype):
    """Of more arrays than one launch takes, of several blocks, empty ones among them; every sum counts once."""
    arrays = [rng.integers(-2, 3, 3 if number else 5000).astype(dtype) for number in range(20)]
    arrays.insert(3, np.zeros((0, 4), dtype))
    square = sum((a.astype(float) ** 2).sum() for a in arrays)
    for some, count in ((arrays[:16], 2), (arrays, 4)):
        del cupy_double.launches[:]
        clipped(double, some, 1.0)
        assert len(cupy_double.launches) == count
    got = clipped(double, arrays, math.sqrt(square) / 4)
    for one, a in zip(got, arrays, strict=True):
        assert_near(one, a / 4, dtype, units=2)
    assert all(map(np.array_equal, clipped(double, arrays, math.sqrt(square) * 1.01), arrays))


def test_clipping_adds_up_the_sums_of_many_blocks(double, emulated, monkeypatch):
    monkeypatch.setattr(clipping, "ELEMENTS", 1)
    ones = np.ones(256 * 300, "float32")
    (got,) = clipped(double, [ones], math.sqrt(ones.size) / 2)
    assert (got == 0.5).all()


NORMS = {
    "large": ([2.0**1000, 2.0**1001], 2.0**1000),
    "large and ordinary": ([3 * 2.0**500, 4 * 2.0**480], 2.0**500),
    "small": ([2.0**-800, -(2.0**-801)], 2.0**-802),
    "small and ordinary": ([2.0**-512, 1.5 * 2.0**-511], 2.0**-513),
    "tiny": ([3 * 2.0**-1000, 4 * 2.0**-1000], 2.0**-1000),
    "far apart": ([2.0**-600, 2.0**10, 2.0**600], 2.0**599),
    "below the limit": ([2.0**-600, 2.0**-601], 1.0),
    "all": ([2.0**600, 2.0**1023, 2.0**1023], 2.0**1023),
    "zeros": ([0.0, -0.0], 0.0),
    "none": ([3.0, 4.0], 0.0),
}


@pytest.mark.parametrize(("values", "most"), NORMS.values(), ids=NORMS)
def test_no_norm_overflows_or_vanishes(xp, values, most):
    """As integers of any size say; every element may be the one that counts."""
    ratios = [Fraction(v) for v in values]
    square = sum(v * v for v in ratios)
    factor = 1.0
    if square > Fraction(most) ** 2:
        scale = max(map(abs, ratios))
        factor = float(Fraction(most) / scale) / math.sqrt(square / scale**2)
    (got,) = clipped(xp, [np.array(values)], most)
    want = np.array(values) * factor
    largest = np.abs(values).max() * factor
    assert np.abs(got / 2 - want / 2).max() <= 4 * np.finfo(float).eps * largest


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_of_what_is_not_finite(xp, dtype):
    nan, inf = np.array([1.0, np.nan], dtype), np.array([[1.0], [np.inf]], dtype)
    assert all(np.isnan(g).all() for g in clipped(xp, [nan, inf, np.ones(2, dtype)], 1.0))
    got, ones = clipped(xp, [inf, np.ones(2, dtype)], 1.0)
    assert (got[0], np.isnan(got[1]), ones.tolist()) == (0, True, [0, 0])


def test_what_the_kernels_do_not_take_is_clipped_as_well(double, emulated):
    room = double.asarray(np.full((2, 6), 2.0))
    for arrays, want in (
        ([room[:, ::2], double.zeros(1)], 2 / math.sqrt(24)),
        ([double.ones(2, "float32"), double.ones(2)], 0.5),
    ):
        optimizers.clip(arrays, 1.0)
        assert_near(arrays[0], np.full(arrays[0].shape, want), str(arrays[0].dtype), units=8)
    twice = double.asarray(np.array([3.0, 4.0]))
    optimizers.clip([twice, twice], 1.0)  # each time it is met
    assert_near(twice, np.array([3.0, 4.0]) / 50, "float64", units=8)


def test_a_captured_clip_needs_somebody_who_keeps_its_sums(double):
    x = double.ones(3)
    with double.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(gpuconv.WorkspaceError, match=r"clip: a CUDA graph is being captured"):
            optimizers.clip([x], 1.0)
        stream.end_capture()
