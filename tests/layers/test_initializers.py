"""Initializers: bounds and variances against the papers' formulas, fans counted by walking over weights."""

import numpy as np
import pytest

from gpuconv import initializers
from gpuconv.errors import GeometryError

SHAPE = (3, 3, 40, 50)
FAN_IN, FAN_OUT = 360, 450
VARIANCE = {
    "glorot_uniform": 2 / (FAN_IN + FAN_OUT),
    "glorot_normal": 2 / (FAN_IN + FAN_OUT),
    "he_uniform": 2 / FAN_IN,
    "he_normal": 2 / FAN_IN,
    "lecun_uniform": 1 / FAN_IN,
    "lecun_normal": 1 / FAN_IN,
    "std_normal": 1.0,
    "trunc_normal": 0.7737413,  # of a standard normal between -2 and 2: 1 - 4 pdf(2) / (2 cdf(2) - 1)
    "zeros": 0.0,
}


def fans_by_hand(in_ch, out_ch, kernel, groups, transposed=False):
    """Connect channels as the groups say, count what meets in one channel."""
    group_of_in, group_of_out = np.arange(in_ch) // (in_ch // groups), np.arange(out_ch) // (out_ch // groups)
    wires = group_of_in[:, None] == group_of_out
    taps = int(np.prod(kernel))
    return taps * int(wires[:, 0].sum()), taps * int(wires[0].sum())


def test_all_are_tested():
    assert set(VARIANCE) == set(initializers.INITIALIZERS)


@pytest.mark.parametrize("name", VARIANCE)
class TestEach:
    def test_mean_and_variance(self, name):
        values = initializers.parse(name)(SHAPE, rng=1, dtype="float64")
        n = values.size
        assert abs(values.mean()) <= 5 * np.sqrt(VARIANCE[name] / n)
        assert abs(values.var() - VARIANCE[name]) <= 5 * VARIANCE[name] * np.sqrt(2 / n)

    def test_bounds(self, name):
        values = initializers.parse(name)(SHAPE, rng=1, dtype="float64")
        bound = {"uniform": np.sqrt(3 * VARIANCE[name]), "trunc_normal": 2.0}.get(name.split("_")[-1])
        bound = 2.0 if name == "trunc_normal" else bound
        if bound is not None:
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.99 * bound

    def test_the_same_seed_gives_the_same_bits(self, name):
        init = initializers.parse(name)
        assert init(SHAPE, rng=3).tobytes() == init(SHAPE, rng=np.random.default_rng(3)).tobytes()
        assert name == "zeros" or init(SHAPE, rng=3).tobytes() != init(SHAPE, rng=4).tobytes()

    def test_a_generator_goes_on(self, name):
        rng, init = np.random.default_rng(0), initializers.parse(name)
        assert name == "zeros" or init((5, 5), rng).tobytes() != init((5, 5), rng).tobytes()

    def test_global_state_is_left_alone(self, name):
        before = np.random.get_state()[1].tobytes()  # noqa: NPY002
        initializers.parse(name)((9, 9))
        assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_dtype_and_shape(self, name, dtype):
        values = initializers.parse(name)((2, 3, 4), rng=0, dtype=dtype)
        assert (values.shape, values.dtype) == ((2, 3, 4), dtype)

    def test_the_string_reads_back(self, name):
        init = initializers.parse(name)
        for text in (str(init), repr(init)):
            assert initializers.parse(text)(SHAPE, rng=0).tobytes() == init(SHAPE, rng=0).tobytes()


def test_gain_scales():
    plain, scaled = (
        initializers.parse(text)((4, 4), rng=0, dtype="float64") for text in ("he_normal", "he_normal(gain=2)")
    )
    assert np.array_equal(scaled, 2 * plain)


def test_parameters_of_the_truncated_normal():
    values = initializers.parse("trunc_normal(mean=3, std=0.5)")((1000,) * 2, rng=0)
    assert 2 <= values.min() < 2.01 < 3.99 < values.max() <= 4


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(5,), (3, 2), (2, 2, 3)])
def test_fans(kernel, groups):
    in_ch, out_ch = 8, 12
    want = fans_by_hand(in_ch, out_ch, kernel, groups)
    assert initializers.fans_of((*kernel, in_ch // groups, out_ch), groups) == want
    assert initializers.fans_of((*kernel, out_ch // groups, in_ch), groups, transposed=True) == want


def test_fans_of_a_vector():
    with pytest.raises(GeometryError, match="1 axes, but weights have at least 2"):
        initializers.fans_of((3,))


@pytest.mark.parametrize("given", ["xavier", "he_normal(gain=-1)", "trunc_normal(std='x')"])
def test_what_is_no_initializer(given):
    with pytest.raises(ValueError, match=r"init_w=|gain=-1|std='x'"):
        initializers.parse(given)
