"""Asynchronous copies, mbarriers, mma.sync and ldmatrix in the emulator."""

import itertools
import re
from pathlib import Path

import emulator
import ml_dtypes
import numpy as np
import pytest
from emulator import KernelFault, Module

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

ROOT = Path(__file__).parents[2]
WAYS = pytest.mark.parametrize("check", [False, True], ids=["fast", "checked"])
DELIVERY = pytest.mark.parametrize("async_copies", ["issue", "late", "random"])


def launch(text, grid, block, *args, shared_bytes=0, **how):
    Module(text, **how).launch("k", grid, block, args, shared_bytes)


def test_every_function_of_ptx_cuh_has_a_stand_in():
    name = re.compile(r"^(?:template *<[^>]*>\s*)?(?:__device__|inline)[^(\n]*?(\w+)\(", re.MULTILINE)
    stand_ins = set(name.findall((ROOT / "tests/emulator/ptx_stand_in.h").read_text()))
    assert set(name.findall((ROOT / "kernels/ptx.cuh").read_text())) <= stand_ins
    assert {"f16_to_f32", "smem_u32"} <= stand_ins


# A reversal of rows of 64 floats through shared memory, three rows under way at a time; the last row is not whole, and
# filled up with zeros.
PIPELINE = """
#line 1 "pipeline.cu"
extern "C" __global__ void k(const float* x, float* y, int rows, int floats) {
  extern __shared__ __align__(16) float stage[];
  const int t = threadIdx.x;
  auto load = [&](int row) {
    const int left = rows * 64 - floats;
    const bool whole = row < rows - 1 || t * 4 + 4 <= 64 - left;
    const u32 to = smem_u32(stage + row % 4 * 64 + t * 4);
    if (t < 16) cp_async_16(to, x + row * 64 + t * 4, whole ? 16 : 16 - left % 4 * 4);
  };
  for (int row = 0; row < 3; row++) {
    if (row < rows) load(row);
    cp_async_commit();
  }
  for (int row = 0; row < rows; row++) {
    cp_async_wait<2>();
    __syncthreads();
    y[row * 64 + t] = stage[row % 4 * 64 + 63 - t];
    if (row + 3 < rows) load(row + 3);
    cp_async_commit();
  }
}
"""


def pipeline(text=PIPELINE, **how):
    x, y = np.arange(7 * 64 - 3, dtype=np.float32), np.full(7 * 64, -1, np.float32)
    launch(text, 1, 64, x, y, np.int32(7), np.int32(x.size), shared_bytes=4 * 64 * 4, **how)
    expected = np.append(x, np.zeros(3, np.float32)).reshape(7, 64)[:, ::-1].ravel()
    return y, expected


@WAYS
@DELIVERY
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_a_pipeline_of_asynchronous_copies(check, async_copies, order):
    y, expected = pipeline(check=check, async_copies=async_copies, order=order)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cp_async_wait<2>();", "cp_async_wait<3>();", "read of byte .* of dynamic shared memory .* is under way"),
        ("cp_async_wait<2>();", "", "while cp.async of thread .* is under way: a wait is missing"),
        ("__syncthreads();", "", "of dynamic shared memory .*no thread of the block has written|race on byte"),
        ("row % 4 * 64 + t * 4);", "row % 2 * 64 + t * 4);", "cp.async of thread|race on byte"),
        ("whole ? 16 : 16 - left % 4 * 4", "16", r"from byte 1776 of argument 0 \(1780 bytes\) over its end"),
        ("whole ? 16 : 16 - left % 4 * 4", "20", "cp.async: 20 bytes of the source for a copy of 16"),
        (
            "x + row * 64 + t * 4",
            "x + row * 64 + t * 3",
            "pipeline.cu:8: .*cp.async of 16 bytes from a misaligned address",
        ),
    ],
)
def test_bugs_of_asynchronous_copies_are_seen(old, new, message):
    assert old in PIPELINE
    for async_copies in ("issue", "late"):
        with pytest.raises(KernelFault, match=message):
            pipeline(PIPELINE.replace(old, new), check=True, async_copies=async_copies)


def test_a_missing_wait_gives_nan_where_nothing_is_checked():
    y, expected = pipeline(PIPELINE.replace("cp_async_wait<2>();", "cp_async_wait<3>();"))
    assert np.isnan(y).any()
    y, expected = pipeline(PIPELINE.replace("cp_async_wait<2>();", "cp_async_wait<3>();"), async_copies="issue")
    np.testing.assert_array_equal(y, expected)


MBARRIER = """
extern "C" __global__ void k(const float* x, float* y, int rounds) {
  __shared__ __align__(16) float stage[64];
  __shared__ __align__(8) unsigned long long full;
  const u32 barrier = smem_u32(&full);
  const int t = threadIdx.x;
  if (t == 0) mbarrier_init(barrier, 1);
  __syncthreads();
  for (int i = 0; i < rounds; i++) {
    if (t == 0) {
      mbarrier_arrive_expect(barrier, 256);
      bulk_copy(smem_u32(stage), x + i * 64, 256, barrier);
    }
    while (!mbarrier_try_wait(barrier, i & 1)) {}
    y[i * 64 + t] = stage[63 - t];
    __syncthreads();
  }
}
"""


@WAYS
@DELIVERY
def test_bulk_copies_and_mbarriers(check, async_copies):
    x, y = np.arange(5 * 64, dtype=np.float32), np.zeros(5 * 64, np.float32)
    launch(MBARRIER, 1, 64, x, y, np.int32(5), check=check, async_copies=async_copies)
    np.testing.assert_array_equal(y.reshape(5, 64), x.reshape(5, 64)[:, ::-1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("barrier, 256);\n", "barrier, 260);\n", "waits for ever for phase 0 of the mbarrier"),
        ("if (t == 0) mbarrier_init(barrier, 1);", "", "the mbarrier at shared address .* was not initialised"),
        ("if (t == 0) {", "{", "more arrivals at the mbarrier"),
    ],
)
def test_bugs_of_mbarriers_are_seen(old, new, message):
    assert old in MBARRIER
    x, y = np.arange(5 * 64, dtype=np.float32), np.zeros(5 * 64, np.float32)
    with pytest.raises(KernelFault, match=message):
        launch(MBARRIER.replace(old, new), 1, 64, x, y, np.int32(5))


# A ring of two stages between the warps 0 and 1, which read, and 2 and 3, which copy: 64 floats a step.
RING = """
#line 1 "ring.cu"
extern "C" __global__ void k(const float* x, float* y, int steps) {
  __shared__ __align__(16) float stage[2][64];
  __shared__ __align__(8) unsigned long long full[2], empty[2];
  const int t = threadIdx.x, own = t % 64;
  if (t == 0)
    for (int s = 0; s < 2; s++) {
      mbarrier_init(smem_u32(&full[s]), 64);
      mbarrier_init(smem_u32(&empty[s]), 2);
    }
  __syncthreads();
  for (int i = 0; i < steps; i++) {
    const int s = i % 2, parity = i / 2 % 2;
    if (t >= 64) {
      while (!mbarrier_try_wait(smem_u32(&empty[s]), parity ^ 1)) {}
      cp_async_4(smem_u32(&stage[s][own]), x + i * 64 + own, 4);
      cp_async_arrive(smem_u32(&full[s]));
    } else {
      while (!mbarrier_try_wait(smem_u32(&full[s]), parity)) {}
      y[i * 64 + t] = stage[s][63 - t];
      __syncwarp();
      if (t % 32 == 0) mbarrier_arrive(smem_u32(&empty[s]));
    }
  }
}
"""


def ring(text=RING, **how):
    x, y = np.arange(7 * 64, dtype=np.float32), np.zeros(7 * 64, np.float32)
    launch(text, 1, 128, x, y, np.int32(7), **how)
    return y.reshape(7, 64), x.reshape(7, 64)[:, ::-1]


@DELIVERY
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_a_ring_of_copies_that_arrive_by_themselves(async_copies, order):
    np.testing.assert_array_equal(*ring(async_copies=async_copies, order=order, check=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "while (!mbarrier_try_wait(smem_u32(&full[s]), parity)) {}",
            "",
            "under way|race on byte|no thread of the block",
        ),
        ("&full[s]), 64)", "&full[s]), 63)", "under way|race on byte|no thread of the block|more arrivals"),
        ("&full[s]), 64)", "&full[s]), 65)", "waits for ever for phase 0"),
        (
            "while (!mbarrier_try_wait(smem_u32(&empty[s]), parity ^ 1)) {}",
            "",
            "race on byte|under way|more arrivals|waits for ever",
        ),
        ("&empty[s]), 2)", "&empty[s]), 1)", "race on byte|under way|more arrivals|waits for ever"),
        ("      __syncwarp();\n", "", "race on byte"),
        ("cp_async_arrive(", "mbarrier_arrive(", "under way|no thread of the block"),
    ],
)
def test_bugs_of_rings_are_seen(old, new, message):
    """In one order or another: what one order lets pass, or takes for another fault, another one shows."""
    assert RING.count(old) == 1
    found = []
    for order, async_copies in itertools.product(("up", "down", "random"), ("issue", "late")):
        try:
            ring(RING.replace(old, new), order=order, async_copies=async_copies, check=True)
        except KernelFault as fault:
            found.append(re.search(message, str(fault)))
    assert any(found)


# Warps 0 and 1 hand numbers over to each other by a barrier of their own, while 2 and 3 are elsewhere.
SOME = """
extern "C" __global__ void k(float* y, int steps) {
  __shared__ float shared[2][64];
  const int t = threadIdx.x;
  if (t < 64) {
    float sum = t;
    for (int i = 0; i < steps; i++) {
      shared[i % 2][t] = sum;
      barrier_of(1, 64);
      sum += shared[i % 2][63 - t] + shared[i % 2][t];
    }
    y[t] = sum;
  }
}
"""


@WAYS
def test_a_barrier_of_some_threads_orders_what_they_do(check):
    y, wanted = np.zeros(64, np.float32), np.arange(64, dtype=np.float32)
    launch(SOME, 1, 128, y, np.int32(5), check=check)
    for _ in range(5):
        wanted = wanted + wanted[::-1] + wanted
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize(("old", "new"), [("barrier_of(1, 64);", ""), ("[2][64]", "[1][64]")])
def test_bugs_of_such_barriers_are_seen(old, new):
    text = SOME.replace(old, new)
    text = text.replace("i % 2", "0") if "[1][64]" in text else text
    with pytest.raises(KernelFault, match=r"race on byte|no thread of the block"):
        launch(text, 1, 128, np.zeros(64, np.float32), np.int32(5), check=True)


# --------------------------------------------------------------------------------------------------------- matrices

# d = a b + c for one tile, by the layouts of the PTX ISA: a row-major, b stored by columns.
MMA_16 = """
extern "C" __global__ void k(const u16* a, const u16* b, const float* c, float* d) {
  const int group = threadIdx.x / 4, t = threadIdx.x % 4;
  auto pair = [](const u16* p) { return p[0] | (u32)p[1] << 16; };
  u32 ra[4], rb[2];
  for (int i = 0; i < 4; i++) ra[i] = pair(a + (group + i % 2 * 8) * 16 + t * 2 + i / 2 * 8);
  for (int i = 0; i < 2; i++) rb[i] = pair(b + group * 16 + t * 2 + i * 8);
  float sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[(group + i / 2 * 8) * 8 + t * 2 + i % 2];
  MMA(sum, ra, rb);
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}
"""
MMA_32 = """
extern "C" __global__ void k(const float* a, const float* b, const float* c, float* d) {
  const int group = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 ra[4], rb[2];
  for (int i = 0; i < 4; i++) ra[i] = f32_to_tf32(a[(group + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; i++) rb[i] = f32_to_tf32(b[group * 8 + t + i * 4]);
  float sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[(group + i / 2 * 8) * 8 + t * 2 + i % 2];
  mma_1688_tf32(sum, ra, rb);
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}
"""


@WAYS
@pytest.mark.parametrize(("name", "dtype"), [("mma_16816_f16", np.float16), ("mma_16816_bf16", ml_dtypes.bfloat16)])
def test_mma_of_16_bit_floats(check, name, dtype, rng):
    a, b = (rng.integers(-8, 9, shape).astype(dtype) for shape in ((16, 16), (8, 16)))
    c, d = rng.integers(-8, 9, (16, 8)).astype(np.float32), np.zeros((16, 8), np.float32)
    launch(MMA_16, 1, 32, a, b, c, d, options=(f"-DMMA={name}",), check=check)
    np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32).T + c)


@WAYS
def test_mma_of_tf32_sees_ten_bits_of_fraction(check, rng):
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    d = np.zeros((16, 8), np.float32)
    launch(MMA_32, 1, 32, a, b, c, d, check=check)

    def tf32(x):
        return (((x.view(np.uint32) + 0x1000) >> 13) << 13).view(np.float32).astype(np.float64)

    np.testing.assert_allclose(d, tf32(a) @ tf32(b).T + c, rtol=1e-6, atol=1e-6)
    assert np.abs(d - (a.astype(np.float64) @ b.T + c)).max() > 1e-5


def tile_of(name, a, b, c, **how):
    """d[0, 0] of a tile whose first row of a, column of b, and sum are given."""
    dtype, width = {"f16": (np.float16, 16), "bf16": (ml_dtypes.bfloat16, 16), "tf32": (np.float32, 8)}[name]
    rows, columns = np.zeros((16, width), dtype), np.zeros((8, width), dtype)
    rows[0, : len(a)], columns[0, : len(b)] = a, b
    sums, d = np.zeros((16, 8), np.float32), np.zeros((16, 8), np.float32)
    sums[0, 0] = c
    text, options = (MMA_32, ()) if name == "tf32" else (MMA_16, (f"-DMMA=mma_16816_{name}",))
    launch(text, 1, 32, rows, columns, sums, d, options=options, **how)
    return d[0, 0]


HALF = 2.0**-12  # of 2**-24, half a unit in the last place of 1


@pytest.mark.parametrize(
    ("name", "products", "c", "nearest", "zero", "hopper"),
    [
        ("tf32", [1.5], 1, 1 + 2**-23, 1, 1),
        ("tf32", [-1.5], -1, -1 - 2**-23, -1, -1),
        ("tf32", [-3], 2, 2 - 2**-22, 2 - 2**-23, 2 - 2**-22),
        ("tf32", [1, 1], 1, 1 + 2**-23, 1 + 2**-23, 1 + 2**-23),  # of a block: a bit is kept below the last place
        ("tf32", [0.5] * 4, 1, 1 + 2**-23, 1, 1 + 2**-23),  # ... and no other, or two
        ("tf32", [0.25] * 8, 1, 1 + 2**-23, 1, 1),
        ("tf32", [1, 0, 0, 0, 1], 1, 1 + 2**-23, 1, 1 + 2**-23),  # of two blocks, or one
        ("f16", [1, 0, 0, 0, 1], 1, 1 + 2**-23, 1 + 2**-23, 1 + 2**-23),
        ("f16", [1] + 7 * [0] + [1], 1, 1 + 2**-23, 1, 1 + 2**-23),
        ("bf16", [1] + 7 * [0] + [1], 1, 1 + 2**-23, 1, 1 + 2**-23),
        ("bf16", [1, 0, 0, 0, 1], 1, 1 + 2**-23, 1 + 2**-23, 1 + 2**-23),
        ("tf32", [0] * 8, 0, 0, 0, 0),
        ("tf32", [1], np.inf, np.inf, np.inf, np.inf),
    ],
)
def test_mma_rounds_to_the_nearest_or_towards_zero(name, products, c, nearest, zero, hopper):
    a, b = np.array(products) * HALF, np.full(len(products), HALF)
    assert tile_of(name, a, b, c) == np.float32(nearest)
    assert tile_of(name, a, b, c, mma_rounding="zero") == np.float32(zero)
    assert tile_of(name, a, b, c, mma_rounding="hopper") == np.float32(hopper)


@pytest.mark.parametrize("rounding", ["nearest", "zero"])
@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_mma_takes_and_gives_denormal_numbers(name, rounding):
    """Whatever -ftz=true does to the rest of the kernel."""
    tiny, great = 2.0**-130, 2.0**100
    assert tile_of(name, [tiny], [great], 0, mma_rounding=rounding) == np.float32(tiny * great)
    assert tile_of(name, [2.0**-65], [2.0**-65], 0, mma_rounding=rounding) == np.float32(tiny)
    assert tile_of(name, [0], [1], tiny, mma_rounding=rounding) == np.float32(tiny)


@pytest.mark.parametrize("name", ["f16", "bf16", "tf32"])
def test_mma_that_rounds_towards_zero_is_exact_where_nothing_is_lost(name, rng):
    for exponent, rounding in itertools.product((-9, 0, 9), ("zero", "hopper")):
        a, b = (rng.integers(-8, 9, 8) * 2.0**exponent for _ in range(2))
        c = float(rng.integers(-99, 99)) * 4.0**exponent
        assert tile_of(name, a, b, c, mma_rounding=rounding) == a @ b + c
    assert np.isnan(tile_of(name, [np.nan], [1], 1, mma_rounding="zero"))


@WAYS
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix(check, transposed, count):
    text = f"""
    extern "C" __global__ void k(const u16* x, u16* y) {{
      __shared__ __align__(16) u16 rows[{count} * 8][8];
      for (int i = threadIdx.x; i < {count} * 64; i += 32) rows[i / 8][i % 8] = x[i];
      __syncthreads();
      u32 r[{count}];
      ldmatrix_x{count}{"_trans" if transposed else ""}(r, smem_u32(rows[threadIdx.x % ({count} * 8)]));
      for (int i = 0; i < {count}; i++) {{
        y[(i * 32 + threadIdx.x) * 2] = (u16)r[i];
        y[(i * 32 + threadIdx.x) * 2 + 1] = (u16)(r[i] >> 16);
      }}
    }}"""
    x = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    y = np.zeros_like(x)
    launch(text, 1, 32, x, y, check=check)
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1) if transposed else x)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("MMA(sum, ra, rb);", "if (t) MMA(sum, ra, rb);", "lane .+ exits while others wait|deadlock"),
        ("MMA(sum, ra, rb);", "if (t == 0) {\nMMA(sum, ra, rb);\n} else {\nMMA(sum, rb2, rb); }", "the warp diverged"),
    ],
)
def test_a_diverged_warp_is_seen(old, new, message, rng):
    text = MMA_16.replace(old, new).replace("rb2", "ra")
    zero = np.zeros((16, 16), np.float16)
    with pytest.raises(KernelFault, match=message):
        launch(text, 1, 32, zero, zero, zero.view(np.float32), zero.view(np.float32), options=("-DMMA=mma_16816_f16",))
