"""kernels/ptx.cuh, function by function: the instructions in it by the PTX tier, their stand-ins by the source tier."""

import numpy as np
import pytest
from cases import DTYPES
from emulator import Module
from ptx_calls import needs_ptx

from gpuconv.cuda import loader

TEXT = (
    '#line 1 "ptx.cuh"\n'
    + (loader.folder() / "ptx.cuh").read_text(encoding="utf-8").replace("#pragma once", "")
    + """
#line 1 "functions.cu"
extern "C" __global__ void round_16(const float* x, u16* half, u16* brain, float* of_half, float* of_brain, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half[i] = f32_to_f16(x[i]);
  brain[i] = f32_to_bf16(x[i]);
  of_half[i] = f16_to_f32(half[i]);
  of_brain[i] = bf16_to_f32(brain[i]);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void round_tf32(const float* x, u32* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = f32_to_tf32(x[i]);
}

extern "C" __global__ void copy(const int* x, const int* bytes_16, const int* bytes_8, const int* bytes_4, int* first,
                                int* second, int* third) {
  __shared__ __align__(16) int shared[3][128];
  const int t = threadIdx.x;
  shared[1][4 * t + 1] = shared[1][4 * t + 2] = shared[1][4 * t + 3] = 7;
  shared[2][4 * t + 2] = shared[2][4 * t + 3] = 7;
  cp_async_16(smem_u32(&shared[0][4 * t]), x + 4 * t, bytes_16[t]);
  cp_async_commit();
  cp_async_4(smem_u32(&shared[1][4 * t]), x + 4 * t, bytes_4[t]);
  cp_async_8(smem_u32(&shared[2][4 * t]), bytes_8[t] ? x + 4 * t : nullptr, bytes_8[t]);
  cp_async_commit();
  cp_async_wait<1>();
  for (int i = 0; i < 4; i++) first[4 * t + i] = shared[0][4 * t + i];
  cp_async_wait<0>();
  for (int i = 0; i < 4; i++) second[4 * t + i] = shared[1][4 * t + i], third[4 * t + i] = shared[2][4 * t + i];
}

extern "C" __global__ void matrices(const u16* x, u32* straight, u32* transposed) {
  __shared__ __align__(16) u16 shared[32 * 8];
  const int t = threadIdx.x;
  for (int i = 0; i < 8; i++) shared[8 * t + i] = x[8 * t + i];
  __syncthreads();
  u32 r[4];
  ldmatrix_x4(r, smem_u32(shared + 8 * t));
  for (int i = 0; i < 4; i++) straight[4 * t + i] = r[i];
  ldmatrix_x4_trans(r, smem_u32(shared + 8 * t));
  for (int i = 0; i < 4; i++) transposed[4 * t + i] = r[i];
}

extern "C" __global__ void multiply(const u32* a, const u32* b, float* d, int kind) {
  const int t = threadIdx.x;
  const u32 own_a[4] = {a[4 * t], a[4 * t + 1], a[4 * t + 2], a[4 * t + 3]}, own_b[2] = {b[2 * t], b[2 * t + 1]};
  float own_d[4] = {d[4 * t], d[4 * t + 1], d[4 * t + 2], d[4 * t + 3]};
  if (kind == 0) mma_16816_f16(own_d, own_a, own_b);
  if (kind == 1) mma_16816_bf16(own_d, own_a, own_b);
  if (kind == 2) mma_1688_tf32(own_d, own_a, own_b);
  for (int i = 0; i < 4; i++) d[4 * t + i] = own_d[i];
}
#endif
"""
)
LANES = np.arange(32)
G, T = LANES // 4, LANES % 4  # lane = 4 * g + t

every_tier = pytest.mark.parametrize("tier", ["source", pytest.param("ptx", marks=needs_ptx)])

pytestmark = [pytest.mark.emulated, pytest.mark.usefixtures("emulated")]


def launch(tier, name, threads, *args, arch=80):
    module = Module(TEXT, options=("-std=c++17",), tier=tier, arch=arch, check=True)
    module.launch(name, (-(-threads // 128),), (min(threads, 128),), args)


def floats():
    """Of all sizes, halfway between two numbers of every dtype and beside that, and what is no number."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 3000, np.uint32)
    middles = [rng.integers(0, 2**32, 300, np.uint32) >> cut << cut | 1 << (cut - 1) for cut in (13, 16)]
    sides = [middle + np.uint32(side) for middle in middles for side in (1, 2**32 - 1)]
    halves = (1 + np.arange(4000) / 4096).astype(np.float32).view(np.uint32)
    small = (np.arange(-300, 300) * 2.0**-26).astype(np.float32).view(np.uint32)
    ends = np.array([0, -0.0, 65504, 65519.996, 65520, np.inf, -np.inf, np.nan, 3.4028235e38], np.float32)
    signals = np.array([0x7F800001, 0xFFFFFFFF], np.uint32)
    return np.concatenate([bits, *middles, *sides, halves, small, ends.view(np.uint32), signals]).astype(np.uint32)


def same_numbers(got, want):
    """Bit by bit; any NaN for a NaN."""
    nan = np.isnan(want.astype(np.float32))
    word = f"u{want.dtype.itemsize}"
    assert np.isnan(got.astype(np.float32)[nan]).all()
    assert np.array_equal(got.view(word)[~nan], want.view(word)[~nan])


@pytest.mark.parametrize("arch", [75, 80])
@every_tier
def test_16_bit_floats_are_the_nearest(tier, arch):
    x = floats().view(np.float32)
    half, brain = (np.zeros(x.size, np.uint16) for _ in range(2))
    of_half, of_brain = (np.zeros(x.size, np.float32) for _ in range(2))
    launch(tier, "round_16", x.size, x, half, brain, of_half, of_brain, np.int32(x.size), arch=arch)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = {name: x.astype(DTYPES[name]) for name in ("float16", "bfloat16")}
    for name, got, back in (("float16", half, of_half), ("bfloat16", brain, of_brain)):
        same_numbers(got.view(DTYPES[name]), wanted[name])
        same_numbers(back, wanted[name].astype(np.float32))


@pytest.mark.parametrize("arch", [80, 90])
@every_tier
def test_tf32_is_the_nearest_and_ties_go_away_from_zero_or_to_even(tier, arch):
    """To even from sm_90 on, where the stand-in of the source tier does not follow. NaN and infinities stay."""
    x = floats().view(np.float32)
    y = np.zeros(x.size, np.uint32)
    launch(tier, "round_tf32", x.size, x, y, np.int32(x.size), arch=arch)
    finite = np.isfinite(x)
    bits = x[finite].view(np.uint32)
    half = 0xFFF + (bits >> 13 & 1) if (tier, arch) == ("ptx", 90) else 0x1000
    assert np.array_equal(y[finite] & 0xFFFFE000, bits + half & 0xFFFFE000)
    seen = (y[~finite] & 0xFFFFE000).view(np.float32)  # by tensor cores
    assert np.array_equal(seen, x[~finite], equal_nan=True)


@every_tier
def test_copies_bring_what_there_is_and_zeros(tier):
    x = np.arange(1, 129, dtype=np.int32)
    bytes_16, bytes_8, bytes_4 = (
        (LANES % n // (n - 1) * size).astype(np.int32) for n, size in ((2, 16), (5, 8), (3, 4))
    )
    first, second, third = (np.zeros((32, 4), np.int32) for _ in range(3))
    launch(tier, "copy", 32, x, bytes_16, bytes_8, bytes_4, first, second, third)
    assert np.array_equal(first, np.where(bytes_16[:, None] > 0, x.reshape(32, 4), 0))
    assert np.array_equal(second[:, 0], np.where(bytes_4 > 0, x.reshape(32, 4)[:, 0], 0))
    assert (second[:, 1:] == 7).all()
    assert np.array_equal(third[:, :2], np.where(bytes_8[:, None] > 0, x.reshape(32, 4)[:, :2], 0))
    assert (third[:, 2:] == 7).all()


@every_tier
def test_matrices_come_as_fragments(tier):
    x = np.arange(1, 257, dtype=np.uint16)
    straight, transposed = np.zeros((32, 4), np.uint32), np.zeros((32, 4), np.uint32)
    launch(tier, "matrices", 32, x, straight, transposed)
    x = x.reshape(4, 8, 8).astype(np.uint32)
    assert np.array_equal(straight, (x[:, G, 2 * T] | x[:, G, 2 * T + 1] << 16).T)
    assert np.array_equal(transposed, (x[:, 2 * T, G] | x[:, 2 * T + 1, G] << 16).T)


@pytest.mark.parametrize(("kind", "dtype"), [(0, "float16"), (1, "bfloat16"), (2, "float32")])
@every_tier
def test_products_of_fragments(tier, kind, dtype):
    rng = np.random.default_rng(0)
    depth = 32 // DTYPES[dtype].itemsize
    a, b = (rng.integers(-8, 9, shape).astype(DTYPES[dtype]) for shape in ((16, depth), (depth, 8)))
    before = rng.integers(-99, 99, (16, 8)).astype(np.float32)
    # 32 bits hold one number, or two that are neighbours along k: words (16, 8) of a and (8 along k, 8) of b
    words_a, words_b = a.view(np.uint32), np.ascontiguousarray(b.T).view(np.uint32).T
    own_a = np.stack([words_a[G + 8 * (i % 2), T + 4 * (i // 2)] for i in range(4)], 1)
    own_b = np.stack([words_b[T + 4 * i, G] for i in range(2)], 1)
    rows, columns = np.stack([G, G, G + 8, G + 8], 1), np.stack([2 * T, 2 * T + 1] * 2, 1)
    d = before[rows, columns]
    launch(tier, "multiply", 32, own_a, own_b, d, np.int32(kind))
    assert np.array_equal(d, (before + a.astype(np.float32) @ b.astype(np.float32))[rows, columns])
