"""What tensor cores round, in the worst way that is known of one: an A100's, which cuts sums off. Or in Hopper's way.

The rule is that of tests/core/test_precision.py: at most twice the error of one plain NumPy product.
"""

import numpy as np
import pytest
from calls import convolve
from cases import Case, reals
from cupy_double import emulation
from on_gpu import forget, is_double, sent
from tolerances import FLOOR, assert_close, assert_within

import gpuconv
from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.algorithms.cuda.implicit_gemm_tiles import SMALL
from gpuconv.cuda import loader

ONE, NONE = (1, 1), ((0, 0), (0, 0))


def positive(rng, shape, dtype):
    return rng.random(shape, np.float32).astype(dtype)


every_fill = pytest.mark.parametrize("fill", [reals, positive], ids=["normal", "positive"])


def square(size, c, k, kernel, n=1):
    pad = kernel // 2
    return Case(n, (size, size), c, k, (kernel, kernel), ONE, ONE, ((pad, pad), (pad, pad)))


# The direction, and a convolution whose sums there are of so many products.
SUMS = {
    8: ("forward", square(30, 8, 40, 1)),
    16: ("forward", square(30, 16, 40, 1)),
    24: ("input_grad", square(30, 40, 24, 1)),
    36: ("forward", square(16, 4, 16, 3)),
    49: ("weight_grad", square(7, 8, 8, 3)),
    64: ("forward", square(12, 64, 40, 1)),
    576: ("input_grad", square(8, 8, 64, 3)),
    4608: ("forward", square(5, 512, 8, 3)),
    16384: ("weight_grad", square(64, 8, 8, 1, 4)),
    100000: ("forward", square(3, 100000, 8, 1)),
}


@pytest.fixture(autouse=True)
def _fresh():
    """No launch that is ready from another test, of another text or tile."""
    forget(implicit_gemm)
    yield
    forget(implicit_gemm)


@pytest.fixture
def errs(gpu, monkeypatch):
    """Runs a pass with the fewest blocks, in one split, on tensor cores that cut off."""
    monkeypatch.setattr(implicit_gemm, "_TILES", {2: (SMALL,), 4: (SMALL,)})

    def run(direction, case, fill, dtype="float32", rounding="zero", **more):
        arrays = case.arrays(fill, dtype)
        with emulation(mma_rounding=rounding):
            on_gpu = sent(gpu, dict(zip("xwd", arrays, strict=True))).values()
            got = convolve(direction, case, *on_gpu, algorithm="implicit_gemm", max_workspace=0, **more).get()
        return got, case.want(direction, *arrays), case.numpy_result(direction, *arrays)

    return run


@every_fill
@pytest.mark.parametrize("products", SUMS)
def test_float32_errs_at_most_twice_as_much_as_a_plain_product(errs, products, fill):
    got, want, by_numpy = errs(*SUMS[products], fill)
    assert_close(got, want, "float32", numpy_result=by_numpy)


@pytest.mark.emulated
@every_fill
@pytest.mark.parametrize("products", [16, 36, 64, 4608])
def test_sums_cut_off_as_hopper_does(errs, gpu, products, fill):
    if not is_double(gpu):
        pytest.skip("a device rounds as it does")
    got, want, by_numpy = errs(*SUMS[products], fill, rounding="hopper")
    assert_close(got, want, "float32", numpy_result=by_numpy)


@pytest.mark.parametrize(
    ("old", "new", "products", "fill"),
    [
        ("    keep(sums, part);", "    if (step == steps - 1) keep(sums, part);", 4608, reals),
        ("    keep(sums, part);", "    if (step % 4 == 3 || step == steps - 1) keep(sums, part);", 64, positive),
        ("part[i][j][v] -= sum - sums[i][j][v]", "part[i][j][v] = 0.0f", 16384, positive),
        ("mma(sums[i][j], a_small[i], b[step][j]);", "", 64, reals),
        ("mma(sums[i][j], a[step][i], b_small[j]);", "", 64, reals),
        ("big[i] = f32_to_tf32(whole)", "big[i] &= 0xffffe000u", 16, reals),
    ],
    ids=["never", "every 64", "nothing carried on", "a's small part", "b's small part", "cut off"],
)
def test_what_that_takes(errs, gpu, monkeypatch, old, new, products, fill):
    """Without any of it the rule is broken."""
    if not is_double(gpu):
        pytest.skip("a device need not round like an A100")
    flatten = loader.flatten
    assert flatten("implicit_gemm.cu").count(old) == 1
    with monkeypatch.context() as patch:
        patch.setattr(loader, "flatten", lambda file: flatten(file).replace(old, new))
        patch.setattr(loader, "_ready", {})
        patch.setattr(loader, "_modules", {})
        got, want, by_numpy = errs(*SUMS[products], fill)
    with pytest.raises(AssertionError, match="error"):
        assert_close(got, want, "float32", numpy_result=by_numpy)


@every_fill
@pytest.mark.parametrize("products", [36, 576, 4608, 16384])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_floats_are_rounded_once(errs, dtype, products, fill):
    """... where their sums do not overflow."""
    direction, case = SUMS[products]
    got, want, by_numpy = errs(direction, case, fill, dtype)
    assert_close(got, want, dtype, numpy_result=by_numpy)


@every_fill
@pytest.mark.parametrize("products", [36, 4608])
def test_fast_float32_has_the_bits_of_tf32(errs, products, fill):
    """As many as float16 has."""
    got, want, _ = errs(*SUMS[products], fill, precision="fast")
    assert_within(got, want, "float32", FLOOR["float16"])


def test_the_largest_and_the_smallest_numbers(gpu):
    """Up to 3.402e38; below 2e-31 the small part of a number may be flushed to zero, which leaves TF32."""
    x = np.array([3.4e38, -3.4e38, 1e30, 1e-30, 0, 1 + 2**-23], np.float32).reshape(1, 1, 6, 1)
    for factor in (1.0, 0.1, -1e-3):
        w = np.full((1, 1, 1, 1), factor, np.float32)
        got = gpuconv.conv2d(gpu.asarray(x), gpu.asarray(w), algorithm="implicit_gemm").get()
        np.testing.assert_allclose(got, x * w, rtol=2**-21)
