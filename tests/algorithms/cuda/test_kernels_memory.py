"""The kernels that move memory: im2col, col2im, pooling; in words, packs and blocks of every width."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from calls import same
from cases import DTYPES, Case, integers
from cupy_double import emulation
from emulator import FAR_AWAY, KernelFault, Module
from tolerances import assert_close, assert_exact, to_numpy

import gpuconv
from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.algorithms.cuda import epilogue as epilogue_cuda
from gpuconv.cuda import Unit, loader
from gpuconv.cuda import arguments as kernel_args
from gpuconv.cuda.arguments import FAST_DIV, conv_struct, fast_div
from gpuconv.functions.pooling import cuda as pooling_cuda
from gpuconv.geometry import ConvGeometry

INTEGERS = ["int8", "uint8", "int16", "int32", "uint32", "int64"]
REAL_DTYPES = [name for name, dtype in DTYPES.items() if dtype.kind != "c"]
PLAIN = Case(2, (5, 4), 3, 3, (3, 2), (2, 1), (1, 2), ((2, 1), (0, 3)))
CASES = {
    "2d": PLAIN,
    "tap-beyond-the-input": replace(PLAIN, spatial=(2, 1), kernel=(3, 4), dilation=(3, 1), pads=((6, 4), (3, 5))),
    "holes-wider-than-the-stride": replace(PLAIN, stride=(4, 3), dilation=(3, 2), pads=((3, 3), (2, 2))),
    "size-1-axes": replace(PLAIN, n=1, spatial=(1, 1), kernel=(1, 1), stride=(1, 1), pads=((0, 0), (0, 0))),
    "1d": Case(3, (37,), 3, 3, (5,), (3,), (2,), ((1, 4),)),
    "3d": Case(1, (3, 4, 2), 3, 3, (2, 1, 2), (1, 2, 1), (2, 1, 1), ((1, 0), (0, 2), (1, 1))),
}
WIDTHS = [1, 3, 4, 8, 24]  # channels: no pack of any dtype, packs of some, packs of all
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def keywords(case):
    return {"stride": case.stride, "dilation": case.dilation, "pad": case.pads}


def columns_of(case, dtype):
    shape = (case.n * int(np.prod(case.out)), int(np.prod(case.kernel)) * case.c)
    return integers(np.random.default_rng(1), shape, dtype)


def pool_case(c):
    return Case(2, (7, 6), c, c, (3, 2), (2, 3), (1, 1), ((1, 1), (1, 1)))


def results(gpu, dtype, c):
    """Everything that the kernels of these files do, on small integers, with what it should be."""
    case, dtype = replace(PLAIN, c=c), np.dtype(DTYPES[dtype])
    x, cols = integers(np.random.default_rng(0), case.x_shape, dtype), columns_of(case, dtype)
    yield (
        gpuconv.im2col(gpu.asarray(x), case.kernel, **keywords(case)),
        oracle.im2col(oracle.wide(x), case.kernel, **case.steps),
    )
    want = oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps)
    for method in ("gather", "scatter"):
        yield gpuconv.col2im(gpu.asarray(cols), case.x_shape, case.kernel, method=method, **keywords(case)), want
    pool = pool_case(c)
    for case in (pool, replace(pool, dilation=(1, 3))) if dtype.kind != "c" else ():
        x, _, dy = case.arrays(integers, dtype)
        steps = {"stride": case.stride, "pad": case.pads, "dilation": case.dilation}
        yield gpuconv.max_pool2d(gpu.asarray(x), case.kernel, **steps), oracle.max_pool(x, case.kernel, **case.steps)
        got = gpuconv.max_pool2d_grad(gpu.asarray(dy), gpu.asarray(x), case.kernel, **steps)
        yield got, oracle.max_pool_grad(dy, x, case.kernel, **case.steps)
    x, _, dy = (6 * a for a in pool.arrays(integers, dtype))  # windows of 1, 2, 3, 4 and 6
    for count_pads in (True, False):
        steps = {"stride": pool.stride, "pad": pool.pads, "count_include_pad": count_pads}
        held = {"stride": pool.stride, "pads": pool.pads, "count_pads": count_pads}
        got = gpuconv.avg_pool2d(gpu.asarray(x), pool.kernel, **steps)
        yield got, oracle.avg_pool(x, pool.kernel, **held)
        got = gpuconv.avg_pool2d_grad(gpu.asarray(dy), x.shape, pool.kernel, **steps)
        yield got, oracle.avg_pool_grad(dy, pool.spatial, pool.kernel, **held)


# -------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("dtype", [*INTEGERS, *DTYPES])
@pytest.mark.parametrize("c", WIDTHS)
def test_im2col_moves_words_of_every_width(gpu, c, dtype):
    case = replace(PLAIN, c=c)
    x = integers(np.random.default_rng(0), case.x_shape, DTYPES.get(dtype, np.dtype(dtype)))
    got = gpuconv.im2col(gpu.asarray(x), case.kernel, **keywords(case))
    want = oracle.im2col(x, case.kernel, **case.steps)
    assert to_numpy(got).dtype == x.dtype
    assert to_numpy(got).tobytes() == want.tobytes()


@each_case
def test_im2col_of_every_geometry(gpu, case):
    x = integers(np.random.default_rng(0), case.x_shape)
    got = gpuconv.im2col(gpu.asarray(x), case.kernel, **keywords(case))
    assert_exact(got, oracle.im2col(oracle.wide(x), case.kernel, **case.steps), "float32")


@pytest.mark.parametrize("method", ["gather", "scatter"])
@each_case
def test_col2im_of_every_geometry(gpu, case, method):
    cols = columns_of(case, "float32")
    got = gpuconv.col2im(gpu.asarray(cols), case.x_shape, case.kernel, method=method, **keywords(case))
    assert_exact(got, oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps), "float32")


@pytest.mark.parametrize("method", ["gather", "scatter"])
@pytest.mark.parametrize("c", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_col2im_in_packs_of_every_width(gpu, dtype, c, method):
    case = replace(PLAIN, c=c)
    cols = columns_of(case, dtype)
    got = gpuconv.col2im(gpu.asarray(cols), case.x_shape, case.kernel, method=method, **keywords(case))
    assert_exact(got, oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps), DTYPES[dtype])


@pytest.mark.parametrize("method", ["gather", "scatter"])
def test_col2im_of_integers(gpu, method):
    cols = columns_of(PLAIN, np.dtype("int32"))
    got = gpuconv.col2im(gpu.asarray(cols), PLAIN.x_shape, PLAIN.kernel, method=method, **keywords(PLAIN))
    assert_exact(got, oracle.col2im(cols, PLAIN.x_shape, PLAIN.kernel, **PLAIN.steps), "int32")


@pytest.mark.parametrize("method", ["gather", "scatter"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_col2im_rounds_16_bit_sums_once(gpu, dtype, method):
    """1024 and eight halves: in 16 bits each half would be lost."""
    cols = np.full((9, 9), 0.5, DTYPES[dtype])
    cols[0, 8] = 1024 if dtype == "float16" else 128
    got = gpuconv.col2im(gpu.asarray(cols), (1, 5, 5, 1), 3, method=method)
    assert float(to_numpy(got)[0, 2, 2, 0]) == float(cols[0, 8]) + 4


@pytest.mark.parametrize("method", ["gather", "scatter"])
@pytest.mark.parametrize(("dtype", "most"), [("float16", 2000), ("bfloat16", 250)])
def test_16_bit_sums_are_rounded_to_the_nearest(gpu, dtype, most, method):
    """Integers that the dtype holds, while it does not hold their sums."""
    case = replace(PLAIN, c=8, stride=(1, 1))
    cols = np.random.default_rng(0).integers(-most, most + 1, columns_of(case, dtype).shape).astype(DTYPES[dtype])
    want = oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps)
    rounded = want.astype(DTYPES[dtype])
    assert (want != rounded).any(), "the test is at fault: nothing to round"
    got = gpuconv.col2im(gpu.asarray(cols), case.x_shape, case.kernel, method=method, **keywords(case))
    assert same(got, rounded)


def test_a_bit_pattern_is_moved_as_it_is(gpu):
    """Words are not numbers: a signalling NaN stays one, a subnormal is not flushed."""
    bits = np.array([0x7F800001, 1, 0x80000001, 0xFFFFFFFF, 0x80000000, 0x7FC12345], np.uint32)
    x = bits.view(np.float32).reshape(1, 6, 1)
    got = to_numpy(gpuconv.im2col(gpu.asarray(x), 1))
    assert got.tobytes() == bits.tobytes()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("mode", list(oracle.PAD_MODES))
def test_positions_beyond_the_input(gpu, mode, size):
    """Three times around on either side."""
    x = integers(np.random.default_rng(0), (2, size, 3, 4))
    pads = ((3 * size, 3 * size + 1), (7, 0))
    got, _ = gpuconv.pad(gpu.asarray(x), pads, mode=mode)
    assert_exact(got, oracle.pad(oracle.wide(x), pads, mode), "float32")


# -------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_an_address_that_allows_narrow_words_only(gpu, shift):
    """Arrays that begin inside an allocation: contiguous, not at a multiple of 16 bytes."""
    case = replace(PLAIN, c=8)
    x, cols = integers(np.random.default_rng(0), case.x_shape, "float16"), columns_of(case, "float16")
    shifted = []
    for a in (x, cols):
        room = gpu.empty(a.size + shift, a.dtype)
        room[shift:] = gpu.asarray(a.ravel())
        shifted.append(room[shift:].reshape(a.shape))
    with emulation(ubsan=True):  # which looks at alignment too
        got = gpuconv.im2col(shifted[0], case.kernel, **keywords(case))
        assert_exact(got, oracle.im2col(oracle.wide(x), case.kernel, **case.steps), "float16")
        got = gpuconv.col2im(shifted[1], case.x_shape, case.kernel, **keywords(case))
        assert_exact(got, oracle.col2im(oracle.wide(cols), case.x_shape, case.kernel, **case.steps), "float16")


def test_strided_arrays_are_copied(gpu):
    x = integers(np.random.default_rng(0), (2, 5, 4, 6))
    got = gpuconv.im2col(gpu.asarray(x)[:, ::-1, ::2, 1::2], 2)
    assert_exact(got, oracle.wide(gpuconv.im2col(x[:, ::-1, ::2, 1::2], 2)), "float32")
    first = gpu.asarray(x.transpose(0, 3, 1, 2).copy())
    out = gpu.empty((2, 6, 2, 2), np.float32)
    assert gpuconv.max_pool2d(first, 2, layout="channels_first", out=out) is out
    want = oracle.max_pool(x, (2, 2), stride=(2, 2), dilation=(1, 1), pads=((0, 0), (0, 0)))
    assert_exact(out, want.transpose(0, 3, 1, 2), "float32")


# -------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("c", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pools_in_packs_of_every_width(gpu, dtype, c):
    for got, want in list(results(gpu, dtype, c))[3:]:
        assert_close(got, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))


@pytest.mark.parametrize("c", [1, 8])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_the_first_nan_wins(gpu, dtype, c):
    one = np.array([1, np.nan, 3, 2, 5, np.nan, np.nan, 0]).reshape(1, 2, 4, 1)
    x = np.repeat(one, c, axis=3).astype(DTYPES[dtype])
    assert np.isnan(to_numpy(gpuconv.max_pool2d(gpu.asarray(x), 2)).astype(float)).all()
    dx = gpuconv.max_pool2d_grad(gpu.ones((1, 1, 2, c), DTYPES[dtype]), gpu.asarray(x), 2)
    assert to_numpy(dx)[..., -1].astype(float).ravel().tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


# -------------------------------------------------------------------------------------------------- launches


@pytest.mark.parametrize("order", ["up", "down", "random"])
@pytest.mark.parametrize(("threads", "most"), [(32, 1), (96, 3), (256, 1), (256, 2**18)])
def test_the_launch_changes_no_result(double, monkeypatch, threads, most, order):
    for module in (kernel_args, columns_cuda, epilogue_cuda, pooling_cuda):
        monkeypatch.setattr(module, "THREADS", threads)
    monkeypatch.setattr(kernel_args, "MOST_BLOCKS", most)
    monkeypatch.setattr(columns_cuda, "MOST_BLOCKS", most)
    with emulation(order=order, seed=threads):
        for got, want in results(double, "float32", 4):
            assert_close(got, want, np.float32, numpy_result=want)


@pytest.mark.parametrize("c", [3, 8])
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@pytest.mark.parametrize("knobs", [{"check": True}, {"ubsan": True}], ids=["checked", "ubsan"])
def test_nothing_is_out_of_bounds_raced_for_or_undefined(double, knobs, dtype, c):
    with emulation(**knobs):
        for got, want in results(double, dtype, c):
            assert_close(got, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_indices_of_64_bits(gpu, monkeypatch, dtype):
    monkeypatch.setattr(kernel_args, "INDEX_LIMIT", 0)
    for c in (3, 8):
        for got, want in results(gpu, dtype, c):
            assert_close(got, want, DTYPES[dtype], numpy_result=want.astype(DTYPES[dtype]))


FAR = 2**30
DOWN = ConvGeometry.create(
    1, (FAR + 8, 5), 5, 5, (2, 1), dilation=(FAR, 1)
)  # the second tap of output 0 lies far down x
UP = ConvGeometry.create(
    1, (8, 5), 5, 5, (1, 1), pad=((FAR, 0), (0, 0))
)  # position 0 of x is seen by an output far down y


@pytest.mark.parametrize(
    "name",
    [
        "im2col",
        "col2im_gather",
        "col2im_scatter",
        "max_pool",
        "max_pool_indices",
        "max_pool_grad",
        "avg_pool",
        "avg_pool_grad",
    ],
)
def test_an_offset_beyond_32_bits_is_reached_without_overflow(emulated, name):
    """One thread, and huge arrays that are not there: it must come as far as touching what lies beyond."""
    a, b, one = np.zeros(64, np.float32), np.zeros(64, np.float32), np.int64(1)
    down, up, by_c = conv_struct(DOWN), conv_struct(UP), fast_div(DOWN.c)
    box = columns_cuda._box_struct(columns_cuda.whole_box(UP))
    all_taps = np.array((1, (0,) * 3, (0,) * 3), pooling_cuda.COUNTED)
    args = {
        "im2col": (a.view(np.uint8), b.view(np.uint8), down, np.int64(0), one),
        "col2im_gather": (a, None, b, up, box, by_c, np.int64(0), one, np.int32(0), np.int32(0)),
        "col2im_scatter": (a, b, down, one),
        "max_pool": (a, b, down, by_c, one),
        "max_pool_indices": (a, b, np.zeros(64, np.int64), down, by_c, one),
        "max_pool_grad": (a, np.zeros(64, np.uint8), b, up, by_c, one),
        "avg_pool": (a, b, down, by_c, one, all_taps),
        "avg_pool_grad": (a, b, up, by_c, one, all_taps),
    }[name]
    file = "pool.cu" if "pool" in name else f"{name[:6]}.cu"
    macros = {"im2col.cu": (("BYTES", 4),), "col2im.cu": (("WIDE", 0),), "pool.cu": (("WIDE", 0), ("ARGMAX_BYTES", 4))}
    unit = Unit(file, a.dtype, (*macros[file], ("INDEX64", 1)))
    module = Module(loader.flatten(file), loader.options(unit), ubsan=True)
    with pytest.raises(KernelFault, match=FAR_AWAY):
        module.launch(name, 1, 1, args)


@pytest.mark.parametrize("c", [3, 8])
@pytest.mark.parametrize("kernel", [(15, 17), (16, 16)])
def test_a_window_with_more_taps_than_a_byte_counts(gpu, kernel, c):
    """255 of them, and 256: the last one wins."""
    x = np.zeros((1, 16, 17, c), np.float32)
    x[0, kernel[0] - 1, kernel[1] - 1] = 1
    dx = gpuconv.max_pool2d_grad(gpu.ones((1, 1, 1, c), np.float32), gpu.asarray(x), kernel, stride=20)
    assert_exact(dx, x, "float32")


# -------------------------------------------------------------------------------------------------- what they are given


def test_fast_division():
    rng = np.random.default_rng(0)
    numbers = [1, 2, 3, 5, 7, 2**16 - 1, 2**16 + 1, 2**30 + 1, 2**31 - 1, *map(int, rng.integers(1, 2**31, 200))]
    for by in numbers:
        d = {name: int(fast_div(by)[name]) for name in FAST_DIV.names}
        for bits, mul in ((32, d["mul"]), (64, d["mul64_high"] << 32 | d["mul64_low"])):
            assert 0 <= mul < 2**bits
            some = [0, 1, by - 1, by, by + 1, 2 * by - 1, 2 ** (bits - 1) - 1, *map(int, rng.integers(2**31, size=20))]
            for n in (n for n in some if n < 2 ** (bits - 1)):
                summed = (n * mul >> bits) + n
                assert summed < 2**bits
                assert summed >> d["shift"] == n // by, (n, by, bits)


def test_steps_that_no_int_holds_are_taken_by_axes_that_need_none(gpu):
    """Stride and dilation of 2**40 change nothing where there is one output, or one tap."""
    x = integers(np.random.default_rng(0), (1, 4, 4, 3))
    huge = {"stride": 2**40, "dilation": 2**40}
    got = gpuconv.im2col(gpu.asarray(x), 1, **huge)
    assert_exact(got, oracle.wide(x[:, :1, :1].reshape(1, 3)), "float32")
