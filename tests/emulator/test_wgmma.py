"""wgmma in the emulator, against the words of the PTX ISA and not against the tiles of our kernels."""

import emulator
import ml_dtypes
import numpy as np
import pytest
from emulator import KernelFault, Module
from nvrtc_here import needs_nvrtc

from gpuconv.cuda import loader

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

PTX_CUH = loader.flatten("ptx.cuh")

# ------------------------------------------------------------------------------------------------ one product

# One warpgroup: d = c + a b, with 64 x 16 numbers of a and 16 x n of b in shared memory as `image` has them.
PRODUCT = """
#line 1 "product.cu"
extern "C" __global__ void __launch_bounds__(128) k(const u16* image, int numbers, u64 a, u64 b, int majors,
                                                   const float* c, float* out) {
  extern __shared__ __align__(16) char dynamic[];
  u16* const shared = (u16*)(dynamic + (0u - smem_u32(dynamic) & 1023u));
  const u64 base = smem_u32(shared) >> 4;
  const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
  for (int i = t; i < numbers; i += 128) shared[i] = image[i];
  fence_proxy_async();
  __syncthreads();
  float d[COLUMNS / 2];
  for (int i = 0; i < COLUMNS / 2; i++) d[i] = c[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + t % 4 * 2 + i % 2];
  touched(d);
  wgmma_fence();
  if (majors == 0) wgmma_FORMAT<0, 0>(d, a + base, b + base);
  if (majors == 1) wgmma_FORMAT<0, 1>(d, a + base, b + base);
  if (majors == 2) wgmma_FORMAT<1, 0>(d, a + base, b + base);
  if (majors == 3) wgmma_FORMAT<1, 1>(d, a + base, b + base);
  wgmma_commit();
  wgmma_wait<0>();
  touched(d);
  for (int i = 0; i < COLUMNS / 2; i++) out[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
}
"""
FORMATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
MODES = {"none": (0, 0), "128 B": (1, 3), "64 B": (2, 2), "32 B": (3, 1)}
"""The number of a swizzle in a descriptor, and B of CuTe's Swizzle<B, 4, 3>."""


def walk(layout, *coordinate):
    """CuTe: the offset of a coordinate, by ((shape, ...), (stride, ...)) for each number, the first running fastest."""
    offset = 0
    for place, (shape, stride) in zip(coordinate, layout, strict=True):
        for size, step in zip(shape, stride, strict=True):
            offset += place % size * step
            place //= size
        assert place == 0
    return offset


def canonical(mode, *, mn_major, leading, stride, rows):
    """The canonical layout of 16-bit numbers in bytes, coordinate (mn, k): PTX ISA, "Strides", and CuTe's own words."""
    t, wide = 16, 1 << MODES[mode][1]
    if not mn_major and mode == "none":
        return ((8, rows // 8), (t, stride)), ((8, 2), (2, leading))
    if not mn_major:
        return ((8, rows // 8), (wide * t, stride)), ((8, 2), (2, t))
    if mode == "none":
        return ((8, rows // 8), (2, stride)), ((8, 2), (t, leading))
    return ((8, wide, rows // 8 // wide), (2, t, leading)), ((8, 2), (wide * t, stride))


def swizzled(mode, address):
    """CuTe's Swizzle<B, 4, 3>."""
    bits = MODES[mode][1]
    return address ^ (address >> 3 & ((1 << bits) - 1) << 4)


def strides(mode, *, mn_major, rows):
    """Some strides without overlap: (leading, stride) in bytes."""
    wide = 1 << MODES[mode][1]
    if not mn_major:
        return (rows * 16, 128) if mode == "none" else (16, 128 * wide)
    if mode == "none":
        return rows // 8 * 128, 128
    return 2 * 128 * wide, 128 * wide


def laid_out(numbers, mode, *, mn_major, at):
    """The bytes that a matrix (mn, k) takes from byte `at` on, with their descriptor."""
    rows = len(numbers)
    leading, stride = strides(mode, mn_major=mn_major, rows=rows)
    layout = canonical(mode, mn_major=mn_major, leading=leading, stride=stride, rows=rows)
    image = {}
    for (mn, k), number in np.ndenumerate(numbers.view(np.uint16)):
        image[swizzled(mode, at + walk(layout, mn, k)) // 2] = number
    descriptor = at >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | MODES[mode][0] << 62
    return image, descriptor


def product(a_mode, b_mode, a_mn, b_mn, columns=64, kind="bf16", text=PRODUCT, edit=lambda a, b: (a, b), **how):
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-4, 5, shape).astype(FORMATS[kind]) for shape in ((64, 16), (columns, 16)))
    c = rng.integers(-9, 10, (64, columns)).astype(np.float32)
    first, of_a = laid_out(a, a_mode, mn_major=a_mn, at=0)
    second, of_b = laid_out(b, b_mode, mn_major=b_mn, at=8192)
    image = np.full(max(second) + 1, 0x7FFF, np.uint16)
    for place, number in (first | second).items():
        image[place] = number
    assert len(first) + len(second) == a.size + b.size
    out = np.full_like(c, np.nan)
    options = ("-arch=sm_90a", f"-DCOLUMNS={columns}")
    module = Module(PTX_CUH + text.replace("FORMAT", kind), options, arch=90, **how)
    of_a, of_b = edit(of_a, of_b)
    arguments = (image, np.int32(image.size), np.uint64(of_a), np.uint64(of_b), np.int32(2 * a_mn + b_mn), c, out)
    module.launch("k", 1, 128, arguments, shared_bytes=2 * image.size + 1024)
    return out, c + a.astype(np.float32) @ b.astype(np.float32).T


@pytest.mark.parametrize("mode", MODES)
def test_every_layout_is_the_canonical_one(mode):
    """Both majors on both sides, for numbers of columns as the widest row needs them."""
    for a_mn, b_mn in ((False, False), (False, True), (True, False), (True, True)):
        for columns in (64, 192) if mode == "128 B" else (64,):
            result, wanted = product(mode, mode, a_mn, b_mn, columns, check=True)
            np.testing.assert_array_equal(result, wanted)


def test_sides_differ_in_mode_and_numbers_in_format():
    for kind in FORMATS:
        np.testing.assert_array_equal(*product("32 B", "128 B", False, True, 128, kind))
    np.testing.assert_array_equal(*product("none", "64 B", True, False, 256))


GOLDEN = [  # Byte offsets by the chunk tables of the PTX ISA, "Swizzling Modes": row (of chunks) and chunk -> chunk
    ("128 B", 8, lambda row, chunk: chunk ^ row % 8),
    ("64 B", 4, lambda row, chunk: chunk ^ row // 2 % 4),
    ("32 B", 2, lambda row, chunk: chunk ^ row // 4 % 2),
]


@pytest.mark.parametrize(("mode", "wide", "table"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_swizzles_are_those_of_the_tables(mode, wide, table):
    for row in range(16):
        for chunk in range(wide):
            assert swizzled(mode, 16 * (row * wide + chunk)) == 16 * (row * wide + table(row, chunk))


@needs_nvrtc
def test_the_compiler_keeps_the_sums_where_they_are():
    """In the PTX the registers of the sums are the same before and after, and they are NaN until the wait."""
    for a_mn, b_mn in ((False, True), (True, False)):
        np.testing.assert_array_equal(*product("128 B", "128 B", a_mn, b_mn, tier="ptx", check=True))


BUGS = {
    "no proxy fence": ("  fence_proxy_async();\n", "", r"thread \d+ has written, with no fence.proxy.async in between"),
    "a fence before the write": (
        "  for (int i = t; i < numbers; i += 128) shared[i] = image[i];\n  fence_proxy_async();\n",
        "  fence_proxy_async();\n  for (int i = t; i < numbers; i += 128) shared[i] = image[i];\n",
        "with no fence.proxy.async in between",
    ),
    "no barrier": (
        "  __syncthreads();\n",
        "",
        "race on byte .*: read by wgmma here|no thread of the block has written",
    ),
    "no fence of the sums": ("  wgmma_fence();\n", "", "wgmma without wgmma.fence since its sums were accessed"),
    "no commit": ("  wgmma_commit();\n", "", "the kernel ends with this wgmma under way: a wait is missing"),
    "no wait": ("  wgmma_wait<0>();\n", "", "the kernel ends with this wgmma under way: a wait is missing"),
    "one warp of the warpgroup": (
        "if (majors == 3)",
        "if (t >= 32 && majors == 3)",
        "does not take part in that of its warpgroup",
    ),
    "lanes that do not agree": (
        "<1, 1>(d, a + base",
        "<1, 1>(d, a + base + (t & 1)",
        "the descriptors of lanes 0 and 1 differ",
    ),
    "an operand that changes": (
        "  wgmma_commit();\n",
        "  wgmma_commit();\n  shared[t] = 1;\n",
        "race on byte .*: written here and read by wgmma of warp",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_seen(bug):
    old, new, message = BUGS[bug]
    assert PRODUCT.count(old) == 1
    with pytest.raises(KernelFault, match=message):
        product("128 B", "128 B", True, True, text=PRODUCT.replace(old, new), check=True)


# What reads the sums before the wait.
EARLY = PRODUCT.replace("  wgmma_wait<0>();\n", "").replace(
    "  for (int i = 0; i < COLUMNS / 2; i++) out",
    """  float early[COLUMNS / 2];
  for (int i = 0; i < COLUMNS / 2; i++) early[i] = d[i];
  wgmma_wait<0>();
  for (int i = 0; i < COLUMNS / 2; i++) out""",
)


def test_sums_are_nan_until_the_wait_and_operands_may_not_change_unchecked():
    early = EARLY.replace("% 2] = d[i];\n}", "% 2] = early[i];\n}")
    assert np.isnan(product("128 B", "128 B", True, True, text=early)[0]).all()
    changes = PRODUCT.replace("  wgmma_commit();\n", "  wgmma_commit();\n  shared[t] = 1;\n")
    with pytest.raises(KernelFault, match="an operand of wgmma changes while it is under way"):
        product("128 B", "128 B", True, True, text=changes)


def test_descriptors_are_checked():
    for bits, message in ((1 << 14, "has reserved bits"), (1 << 52, "has reserved bits"), (1 << 49, "base offset")):
        with pytest.raises(KernelFault, match=message):
            product("128 B", "128 B", True, True, edit=lambda a, b, bits=bits: (a | bits, b))


def test_leading_and_stride_swapped_give_another_product():
    def swap(a, b):
        return a, b & ~(0x3FFF << 16 | 0x3FFF << 32) | (b >> 16 & 0x3FFF) << 32 | (b >> 32 & 0x3FFF) << 16

    result, wanted = product("128 B", "128 B", True, True, 192, edit=swap)
    assert (result != wanted).any()
