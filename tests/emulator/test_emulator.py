"""The emulator does what a GPU does: the language, the arithmetic, warps, shared memory, launches."""

import emulator
import ml_dtypes
import numpy as np
import pytest
from emulator import Module
from small_kernels import ORDERS, WAYS, int32, kernel, launch

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

# -------------------------------------------------------------------------------------------- threads and blocks


@WAYS
@ORDERS
def test_every_thread_of_every_block_runs_once(way, order):
    text = kernel(
        """
        const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        seen[block * blockDim.x * blockDim.y * blockDim.z + t] += 1 + block * 1000 + t;
        """,
        "int* seen",
    )
    seen = np.zeros((24, 30), np.int32)
    launch(text, (2, 3, 4), (5, 3, 2), seen, order=order, **way)
    assert (seen == 1 + 1000 * np.arange(24)[:, None] + np.arange(30)).all()


@WAYS
def test_arguments_of_every_kind_arrive(way):
    text = kernel(
        """
        out[0] = g.a; out[1] = g.b[1]; out[2] = g.c; out[3] = i; out[4] = u; out[5] = l; out[6] = f; out[7] = d;
        out[8] = b; out[9] = half; out[10] = nothing == nullptr;
        """,
        "double* __restrict__ out, const Mixed g, int i, unsigned u, long long l, float f, double d, bool b, u16 half, "
        "const float* nothing",
        before="typedef unsigned short u16; struct Mixed { char a; int b[2]; double c; };",
    )
    mixed = np.zeros((), np.dtype([("a", "i1"), ("b", "i4", 2), ("c", "f8")], align=True))
    mixed["a"], mixed["b"], mixed["c"] = -3, (1, -(2**31)), 0.1
    out = np.zeros(11)
    values = (int32(-7), np.uint32(2**32 - 1), np.int64(-(2**53)), np.float32(0.5), np.float64(1e300), np.bool_(True))
    launch(text, 1, 1, out, mixed, *values, np.float16(1), None, **way)
    assert out.tolist() == [-3, -(2**31), 0.1, -7, 2**32 - 1, -(2**53), 0.5, 1e300, 1, 0x3C00, 1]


def test_macros_come_from_the_options():
    text = kernel("*out = N + __CUDA_ARCH__;", "int* out")
    for n in (1, 2):
        out = np.zeros(1, np.int32)
        launch(text, 1, 1, out, options=("-std=c++17", f"-DN={n}"), arch=90)
        assert out[0] == n + 900


@WAYS
def test_templates_lambdas_constants_and_structs(way):
    text = kernel(
        """
        float sums[N] = {};
        auto step = [&](int i) { sums[i % N] += table[i]; };
        #pragma unroll
        for (int i = 0; i < 6; i++) step(i);
        Pack<float, 2> both = {{sums[0], sums[1]}};
        *reinterpret_cast<Pack<float, 2>*>(out) = both;
        reinterpret_cast<float4*>(out)[1] = make_float4(1.f, 2.f, 3.f, square(4.f));
        """,
        "float* out",
        before="""
        __constant__ float table[6] = {1, 2, 3, 4, 5, 6};
        template <class T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };
        constexpr int N = 2;
        template <class T> __device__ __forceinline__ T square(T x) { return x * x; }
        """,
    )
    out = np.zeros(8, np.float32)
    launch(text, 1, 1, out, **way)
    assert out.tolist() == [9, 12, 0, 0, 1, 2, 3, 16]


def test_two_kernels_of_one_module_share_a_text():
    text = kernel("*out += 1;", "int* out") + 'extern "C" __global__ void other(int* out) { *out += 10; }'
    module = Module(text)
    out = np.zeros(1, np.int32)
    module.launch("k", 1, 1, (out,))
    module.launch("other", 1, 1, (out,))
    assert out[0] == 11
    assert module.signature("other") == ("Pi4",)
    with pytest.raises(ValueError, match="no kernel 'third'"):
        module.launch("third", 1, 1, (out,))


# ------------------------------------------------------------------------------------------------------ arithmetic


def every_half():
    return np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_floats_are_read_as_numpy_reads_them(name, dtype):
    text = '#line 1 "ptx.cuh"\n#error is replaced\n#line 1 "a.cu"\n'
    text += kernel(
        f"const int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = {name}_to_f32(x[i]);", "const u16* x, float* y"
    )
    y = np.zeros(2**16, np.float32)
    launch(text, 64, 1024, every_half(), y)
    np.testing.assert_array_equal(y, every_half().view(dtype).astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_floats_are_rounded_as_numpy_rounds_them(name, dtype, rng):
    text = kernel(
        f"const int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = f32_to_{name}(x[i]);", "const float* x, u16* y"
    )
    values = every_half().view(dtype).astype(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        middles = (values + np.nextafter(values, np.float32(np.inf))) / 2
    anything = rng.integers(0, 2**32, 2**15, dtype=np.uint32).view(np.float32)
    x = np.concatenate([values, values * np.float32(1 + 2**-11), values * np.float32(1 + 2**-8), middles, anything])
    x = np.ascontiguousarray(x[: x.size // 1024 * 1024])
    y = np.zeros(x.size, np.uint16)
    launch(text, x.size // 1024, 1024, x, y.view(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    nan = np.isnan(x)
    np.testing.assert_array_equal(y[~nan], expected.view(np.uint16)[~nan])
    assert (y[nan] == 0x7FFF).all()


@WAYS
def test_intrinsics(way):
    checks = [
        "__umulhi(0x80000000u, 6u) == 3u", "__popc(0xf0f0u) == 8", "__clz(1) == 31", "__clz(0) == 32",
        "__ffs(8) == 4", "__float_as_uint(1.0f) == 0x3f800000u", "__uint_as_float(0x40000000u) == 2.0f",
        "min(-1, 2) == -1", "max(1.0f, nanf()) == 1.0f", "min(3ll, 4ll) == 3", "abs(-2.5f) == 2.5f", "abs(-3) == 3",
        "fmaf(2.f, 3.f, 4.f) == 10.f", "fma(2., 3., 4.) == 10.", "tanhf(0.f) == 0.f", "exp(0.0) == 1.0",
        "sqrt(4.f) == 2.f", "__brev(1u) == 0x80000000u",
        "__byte_perm(0x33221100u, 0x77665544u, 0x7520u) == 0x77552200u", "__float2int_rn(2.5f) == 2", "isnan(nanf())",
        "__float2int_rz(3e9f) == 2147483647", "__float2int_rn(nanf()) == 0",
        "__funnelshift_r(1u, 1u, 4) == 0x10000000u", "__mulhi(-1, 1) == -1", "rsqrtf(4.f) == 0.5f",
        "__ldg(one) == 1.0f", "__umul64hi(1ull << 63, 4ull) == 2ull",
    ]  # fmt: skip
    body = "\n".join(f"ok[{i}] = {check};" for i, check in enumerate(checks))
    text = kernel(
        body, "bool* ok, const float* one", before="inline float nanf() { return __uint_as_float(0x7fc00000u); }"
    )
    ok = np.zeros(len(checks), bool)
    launch(text, 1, 1, ok, np.ones(1, np.float32), **way)
    assert [check for check, is_ok in zip(checks, ok, strict=True) if not is_ok] == []


@WAYS
@ORDERS
def test_atomics_of_every_type(way, order):
    text = kernel(
        """
        atomicAdd(i, 1); atomicAdd(u, 2u); atomicAdd(ull, 3ull); atomicAdd(f, 0.5f); atomicAdd(d, 0.25);
        atomicMax(i + 1, (int)threadIdx.x); atomicMin(i + 2, -(int)threadIdx.x);
        atomicXor(u + 1, 1u << threadIdx.x % 32);
        unsigned seen = atomicAdd(u + 2, 0u), assumed;
        do { assumed = seen; seen = atomicCAS(u + 2, assumed, assumed + 5); } while (seen != assumed);
        unsigned short a, b = atomicCAS(h, 0, 0);
        do { a = b; b = atomicCAS(h, a, (unsigned short)(a + 1)); } while (a != b);
        unsigned long long q = atomicAdd(ull + 1, 0ull), p;
        do { p = q; q = atomicCAS(ull + 1, p, p + (1ull << 40)); } while (p != q);
        """,
        "int* i, unsigned* u, unsigned long long* ull, float* f, double* d, unsigned short* h",
    )
    i, u, ull = np.zeros(3, np.int32), np.zeros(3, np.uint32), np.zeros(2, np.uint64)
    f, d, h = np.zeros(1, np.float32), np.zeros(1), np.zeros(1, np.uint16)
    launch(text, 3, 64, i, u, ull, f, d, h, order=order, **way)
    assert (i.tolist(), u.tolist(), ull.tolist()) == ([192, 63, -63], [384, 0, 960], [576, 192 << 40])
    assert (f[0], d[0], h[0]) == (96, 48, 192)


# ------------------------------------------------------------------------------------------------ shared memory, warps


@WAYS
@ORDERS
def test_shared_memory_static_dynamic_and_in_templates(way, order):
    text = kernel(
        """
        extern __shared__ __align__(16) unsigned char bytes[];
        __shared__ float tile[4][N + 1], row[N];
        __shared__ __align__(16) Pair<int, 2> pairs[8];
        float* tail = reinterpret_cast<float*>(bytes) + 4;
        const int t = threadIdx.x;
        tile[t / 8][t % 8] = x[t];
        if (t < N) row[t] = t;
        if (t < 8) pairs[t].at[0] = pairs[t].at[1] = t;
        tail[t] = x[t];
        __syncthreads();
        y[t] = tile[3 - t / 8][7 - t % 8] + row[t % N] + pairs[t / 4].at[1] + tail[31 - t];
        __syncthreads();
        auto by_value = [=](int i) { return tile[i][0]; };   // refers to the variable itself
        if (t == 0) tile[1][0] = 100;
        __syncthreads();
        y[t] += by_value(1) + swap<float>(t) + swap<int>(t);
        """,
        "const float* x, float* y",
        before="""
        constexpr int N = 8;
        template <class T, int M> struct Pair { T at[M]; };
        template <class T> __device__ T swap(int t) {
          __shared__ T buffer[32];
          buffer[t] = (T)t;
          __syncthreads();
          return buffer[t ^ 1];
        }
        """,
    )
    x, y, t = np.arange(32, dtype=np.float32), np.zeros(32, np.float32), np.arange(32)
    launch(text, 1, 32, x, y, shared_bytes=16 + 128, order=order, **way)
    assert (y == 2 * x[::-1] + t % 8 + t // 4 + 100 + 2 * (t ^ 1)).all()


def test_dynamic_shared_memory_declared_outside_of_a_function():
    text = "extern __shared__ float all[];\n" + kernel(
        "all[threadIdx.x] = threadIdx.x; __syncthreads(); y[threadIdx.x] = all[threadIdx.x ^ 1];", "float* y"
    )
    y = np.zeros(32, np.float32)
    launch(text, 1, 32, y, shared_bytes=128, check=True)
    assert (y == (np.arange(32) ^ 1)).all()


LANE = np.arange(64) % 32
COLLECTIVES = [
    ("__shfl_sync(all, lane, 5)", 5),
    ("__shfl_up_sync(all, lane, 3)", np.where(LANE < 3, LANE, LANE - 3)),
    ("__shfl_down_sync(all, lane, 4)", np.where(LANE > 27, LANE, LANE + 4)),
    ("__shfl_xor_sync(all, lane, 16)", LANE ^ 16),
    ("__shfl_sync(all, lane, 1, 8)", LANE // 8 * 8 + 1),
    ("__shfl_down_sync(all, lane, 4, 8)", np.where(LANE % 8 > 3, LANE, LANE + 4)),
    ("__shfl_sync(all, (double)lane, 7)", 7),
    ("__shfl_sync(all, (long long)lane << 40, 9) >> 40", 9),
    ("lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2)", LANE ^ 1 + (LANE > 15)),
    ("__ballot_sync(all, lane % 3 == 0)", sum(1 << i for i in range(0, 32, 3))),
    ("__any_sync(all, lane == 31)", 1),
    ("__all_sync(all, lane < 31)", 0),
    ("__reduce_add_sync(all, (unsigned)lane)", 496),
    ("__reduce_max_sync(all, -lane)", 0),
    ("__match_any_sync(all, lane / 16)", np.where(LANE < 16, 0xFFFF, 0xFFFF0000)),
    ("__syncthreads_count(lane < 10)", 20),
    ("__syncthreads_or(lane == 3)", 1),
    ("__syncthreads_and(lane < 31)", 0),
]


@WAYS
@ORDERS
def test_shuffles_and_votes(way, order):
    body = "".join(f"o[{i}] = {expression};\n" for i, (expression, _) in enumerate(COLLECTIVES))
    text = kernel(
        f"""
        const int lane = threadIdx.x % 32;
        const unsigned all = 0xffffffffu;
        long long* const o = out + threadIdx.x * {len(COLLECTIVES)};
        {body}
        """,
        "long long* out",
    )
    out = np.zeros((64, len(COLLECTIVES)), np.int64)
    launch(text, 1, 64, out, order=order, **way)
    for got, (expression, expected) in zip(out.T, COLLECTIVES, strict=True):
        np.testing.assert_array_equal(got, expected, err_msg=expression)


def test_what_a_shuffle_gets_from_a_lane_outside_its_mask_is_poison():
    text = kernel(
        "if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffffu, 1.0f, 8);",
        "float* y",
    )
    y = np.zeros(16, np.float32)
    launch(text, 1, 32, y)
    assert (y[:8] == 1).all()
    assert np.isnan(y[8:]).all()


@ORDERS
def test_a_last_warp_of_few_threads(order):
    text = kernel(
        """
        __shared__ int s[40];
        s[threadIdx.x] = threadIdx.x;
        __syncwarp();
        out[threadIdx.x] = s[threadIdx.x ^ 1];
        """,
        "int* out",
    )
    out = np.zeros(40, np.int32)
    launch(text, 1, 40, out, order=order, check=True)
    assert (out == (np.arange(40) ^ 1)).all()


@ORDERS
def test_threads_may_leave_before_a_barrier_of_the_others(order):
    text = kernel(
        """
        __shared__ int s[64];
        if (threadIdx.x >= 48) return;
        s[threadIdx.x] = threadIdx.x;
        __syncthreads();
        out[threadIdx.x] = s[47 - threadIdx.x];
        """,
        "int* out",
    )
    out = np.full(64, -1, np.int32)
    launch(text, 2, 64, out, order=order)
    assert out.tolist() == [*range(47, -1, -1), *[-1] * 16]
