"""The PTX tier: memory, calls, warps, matrices, asynchronous copies; bugs in inline asm that only this tier can see."""

import ml_dtypes
import numpy as np
import pytest
from emulator import KernelFault, Module
from ptx_calls import module, needs_ptx

pytestmark = needs_ptx

LANES = np.arange(32, dtype=np.int32)


def kernel(parameters, body, before="", bounds=""):
    return f'#line 1 "k.cu"\n{before}\nextern "C" __global__ void {bounds} k({parameters}) {{\n{body}\n}}\n'


def run(text, *args, grid=1, block=32, shared_bytes=0, **how):
    module(text, **how).launch("k", grid, block, args, shared_bytes)


CHECKED = pytest.mark.parametrize("check", [False, True])


# -------------------------------------------------------------------------------------------- memory


@CHECKED
def test_vectors_structs_constants_and_local_arrays(check):
    before = """
    struct Box { int a; long long b; short c[5]; unsigned char d; };
    __constant__ float table[4] = {1, 2, 3, 4};
    __device__ const double far[2] = {0.5, -0.25};
    __device__ Box fixed = {7, -8, {1, 2, 3, 4, 5}, 9};
    __device__ Box* there = &fixed;
    __device__ __noinline__ double chosen(const double* x, int i) { return i & 1 ? x[i % 2] : -x[0]; }
    """
    body = """
    const int t = threadIdx.x;
    const float4 v = x[t];
    float mine[8];
    for (int i = 0; i < 8; i++) mine[i] = v.x * i;
    y[t] = mine[box.c[t % 5]] + v.y + v.z * table[t % 4] + v.w;
    z[t] = chosen(far, t) + box.b + there->b * box.d + there->c[t % 5];
    """
    box = np.zeros((), np.dtype([("a", "i4"), ("b", "i8"), ("c", "i2", 5), ("d", "u1")], align=True))
    box["b"], box["c"], box["d"] = 1 << 40, (7, 0, 3, 2, 5), 200
    x = np.arange(128, dtype=np.float32)
    y, z = np.zeros(32, np.float32), np.zeros(32)
    run(kernel("const float4* x, float* y, double* z, const Box box", body, before), x, y, z, box, check=check)
    v = x.reshape(32, 4)
    c = box["c"][LANES % 5]
    assert np.array_equal(y, v[:, 0] * c + v[:, 1] + v[:, 2] * (LANES % 4 + 1) + v[:, 3])
    far = np.where(LANES & 1, -0.25, -0.5)
    assert np.array_equal(z, far + float(1 << 40) - 8 * 200 + (LANES % 5 + 1))


@CHECKED
def test_shared_memory_static_dynamic_and_by_generic_pointers(check):
    before = """
    __device__ __noinline__ float sum(const float* p, int n) {
      float s = 0;
      for (int i = 0; i < n; i++) s += p[i];
      return s;
    }
    """
    body = """
    __shared__ float a[64];
    __shared__ double b;
    extern __shared__ float c[];
    const int t = threadIdx.x;
    a[t] = t; c[63 - t] = 2 * t;
    if (t == 5) b = 0.5;
    __syncthreads();
    y[t] = a[63 - t] + c[t ^ 1] + (float)b + (t < 2 ? sum(t ? a : c, 64) : 0.f);
    """
    y = np.zeros(64, np.float32)
    run(kernel("float* y", body, before), y, block=64, shared_bytes=256, check=check)
    t = np.arange(64)
    expected = (63 - t) + 2 * (63 - (t ^ 1)) + 0.5
    expected[:2] += [2 * 2016, 2016]
    assert np.array_equal(y, expected)


def test_faults_name_the_line_of_the_caller():
    before = '#line 1 "ptx.cuh"\n__device__ __forceinline__ int take(const int* p) { return *p; }\n#line 2 "k.cu"'
    text = kernel("const int* x, int* y", "\n  y[threadIdx.x] = take(x + threadIdx.x);", before)
    with pytest.raises(KernelFault, match=r"ptx\.cuh:1 in k\.cu:4: .*thread \(30,0,0\): .*past the end of"):
        run(text, np.zeros(30, np.int32), np.zeros(32, np.int32), check=True, order="up")
    shifted = kernel("const char* x, int* y", "y[threadIdx.x] = *(const int*)(x + 2 + 4 * threadIdx.x);")
    with pytest.raises(KernelFault, match=r"misaligned read of 4 bytes"):
        run(shifted, np.zeros(256, np.int8), np.zeros(32, np.int32))


def test_races_and_unwritten_reads_are_seen():
    body = "__shared__ int s[64]; const int t = threadIdx.x; s[t] = t; {} y[t] = s[63 - t];"
    y = np.zeros(64, np.int32)
    run(kernel("int* y", body.format("__syncthreads();")), y, block=64, check=True)
    with pytest.raises(KernelFault, match=r"race|shared s .*written"):
        run(kernel("int* y", body.format("")), y, block=64, check=True)
    with pytest.raises(KernelFault, match="race"):
        run(kernel("int* y", body.format("__syncthreads();") + " s[t] = 0;"), y, block=64, check=True)


def test_a_register_that_was_never_written_shows():
    text = kernel(
        "unsigned* y",
        'unsigned d; asm volatile("{ .reg .b32 q; add.u32 %0, q, 1; }" : "=r"(d)); y[threadIdx.x] = d - 1;',
    )
    y = np.zeros(32, np.uint32)
    run(text, y)
    assert np.all(y == 2**32 - 1)


@CHECKED
def test_atomics(check):
    body = """
    const int t = threadIdx.x;
    __shared__ int count;
    if (t == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, t);
    atomicAdd(f, 0.5f); atomicAdd(d, 0.25); atomicMax(i, t); atomicMin(i + 1, -t);
    atomicOr((unsigned*)i + 2, 1u << t % 32);
    atomicInc((unsigned*)i + 3, 9); atomicExch(i + 4, 3); atomicCAS(i + 5, 0, 7);
    atomicXor(i + 6, t); atomicAnd(i + 7, ~t);
    unsigned long long* l = (unsigned long long*)(i + 8);
    atomicAdd(l, 1ull << 40);
    __syncthreads();
    if (t == 0) i[10] = count;
    """
    f, d, i = np.zeros(1, np.float32), np.zeros(1), np.zeros(12, np.int32)
    i[7] = -1
    run(kernel("float* f, double* d, int* i", body), f, d, i, block=64, check=check)
    assert (f[0], d[0]) == (32, 16)
    assert i[:8].tolist() == [63, -63, -1, 64 % 10, 3, 7, 0, ~63]
    assert i[8:10].view(np.int64)[0] == 64 << 40
    assert i[10] == 2016


def test_packed_halves_are_added_atomically():
    asm = 'asm volatile("red.global.add.noftz.f16x2 [%0], %1;" :: "l"(p), "r"(0x40003C00u) : "memory");'
    pair = np.zeros(2, np.float16)
    run(kernel("unsigned* p", asm), pair.view(np.uint32))
    assert pair.tolist() == [32, 64]


# -------------------------------------------------------------------------------------------- warps


def shuffled(kind, value, operand, width):
    """The manual's table, in indices."""
    segment = LANES // width * width
    source = {
        "up": LANES - operand, "down": LANES + operand, "xor": LANES ^ operand, "idx": segment + operand % width
    }[kind]  # fmt: skip
    inside = {"up": source >= segment, "down": source < segment + width, "xor": source < segment + width}
    return np.where(inside.get(kind, True), value[np.clip(source, 0, 31)], value)


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("kind", ["up", "down", "xor", "idx"])
def test_shuffles(kind, width):
    name = {"idx": ""}.get(kind, f"_{kind}")
    body = f"""
    y[threadIdx.x] = __shfl{name}_sync(~0u, x[threadIdx.x], 5, {width});
    z[threadIdx.x] = __shfl{name}_sync(~0u, z[threadIdx.x], 3, {width});
    """
    x, y, z = LANES * 3 + 1, np.zeros(32, np.int32), LANES / 7
    expected = shuffled(kind, z, 3, width)
    run(kernel("const int* x, int* y, double* z", body), x, y, z, check=True)
    assert np.array_equal(y, shuffled(kind, x, 5, width))
    assert np.array_equal(z, expected)


def test_votes_reductions_and_barriers_that_count():
    body = """
    const int t = threadIdx.x, v = x[t];
    int* out = y + t * 12;
    out[0] = __ballot_sync(~0u, v > 3); out[1] = __any_sync(~0u, v > 90); out[2] = __all_sync(~0u, v >= 0);
    out[3] = __reduce_add_sync(~0u, v); out[4] = __reduce_min_sync(~0u, v - 20);
    out[5] = __reduce_max_sync(~0u, (unsigned)v);
    out[6] = __reduce_xor_sync(~0u, (unsigned)v); out[7] = __match_any_sync(~0u, v / 8);
    out[8] = __syncthreads_count(v > 3); out[9] = __syncthreads_or(v == 99); out[10] = __syncthreads_and(v >= 0);
    if (t < 16) out[11] = __activemask() != 0;
    __syncwarp();
    """
    x = (LANES * 7 % 23).astype(np.int32)
    y = np.zeros((32, 12), np.int32)
    run(kernel("const int* x, int* y", body), x, y, check=True)
    ballot = sum(1 << i for i in range(32) if x[i] > 3)
    expected = [
        ballot - (1 << 32 if ballot >> 31 else 0),
        0,
        1,
        x.sum(),
        x.min() - 20,
        x.max(),
        np.bitwise_xor.reduce(x),
    ]
    assert np.array_equal(y[:, :7], np.tile(expected, (32, 1)))
    same = [sum(1 << j for j in range(32) if x[j] // 8 == x[i] // 8) for i in range(32)]
    assert np.array_equal(y[:, 7].view(np.uint32), np.array(same, np.uint32))
    assert np.array_equal(y[:, 8:11], np.tile([(x > 3).sum(), 0, 1], (32, 1)))


def test_a_shuffle_that_some_lanes_miss_is_a_fault():
    text = kernel("int* y", "if (threadIdx.x < 20) y[threadIdx.x] = __shfl_down_sync(~0u, y[threadIdx.x], 1);")
    with pytest.raises(KernelFault):
        run(text, np.zeros(32, np.int32), check=True)


# -------------------------------------------------------------------------------------------- matrices

MMA = """
asm volatile("mma.sync.aligned.{shape}.row.col.f32.{t}.{t}.f32 {{%0,%1,%2,%3}}, {{{a}}}, {{{b}}}, {{%0,%1,%2,%3}};"
  : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
"""


def fragments(width):
    """Rows and columns of A, B and D that the registers of each lane hold, as the PTX manual draws them."""
    group, in_group = LANES // 4, LANES % 4
    per = 4 // width  # values in a register
    a = [(group + 8 * (r % 2), in_group * per + i + 4 * per * (r // 2)) for r in range(4) for i in range(per)]
    b = [(in_group * per + i + 4 * per * r, group) for r in range(2) for i in range(per)]
    d = [(group + 8 * (r // 2), in_group * 2 + r % 2) for r in range(4)]
    return a, b, d


def product(kind, order_a="%4,%5,%6,%7", order_b="%8,%9"):
    """What mma makes of random matrices, and what it should."""
    shape, dtype, k, width = {
        "f16": ("m16n8k16", np.float16, 16, 2),
        "bf16": ("m16n8k16", ml_dtypes.bfloat16, 16, 2),
        "tf32": ("m16n8k8", np.float32, 8, 4),
    }[kind]
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 8, s).astype(np.float32) for s in ((16, k), (k, 8), (16, 8)))
    of_a, of_b, of_d = fragments(width)
    registers_a = np.stack([a.astype(dtype)[i, j] for i, j in of_a], 1).view(np.uint32)
    registers_b = np.stack([b.astype(dtype)[i, j] for i, j in of_b], 1).view(np.uint32)
    registers_d = np.stack([c[i, j] for i, j in of_d], 1).copy()
    body = "const int t = threadIdx.x; const unsigned *a = ra + t * 4, *b = rb + t * 2; float* d = rd + t * 4;\n"
    body += MMA.format(shape=shape, t=kind, a=order_a, b=order_b)
    text = kernel("const unsigned* ra, const unsigned* rb, float* rd", body)
    run(text, np.ascontiguousarray(registers_a), np.ascontiguousarray(registers_b), registers_d)
    expected = a.astype(np.float64) @ b + c
    return registers_d, np.stack([expected[i, j] for i, j in of_d], 1)


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_mma_multiplies_matrices(kind):
    got, expected = product(kind)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(("order_a", "order_b"), [("%4,%6,%5,%7", "%8,%9"), ("%4,%5,%6,%7", "%9,%8")])
def test_a_wrong_order_of_mma_operands_is_seen(order_a, order_b):
    got, expected = product("f16", order_a, order_b)
    assert not np.array_equal(got, expected)


LDMATRIX = """
__shared__ __align__(16) unsigned short s[32 * 8];
const int t = threadIdx.x;
for (int i = t; i < 256; i += 32) s[i] = x[i];
__syncthreads();
unsigned at = (unsigned)__cvta_generic_to_shared(s + t * 8), r[4];
asm volatile("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0,%1,%2,%3}}, [%4];"
  : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
for (int i = 0; i < 4; i++) y[t * 4 + i] = r[i];
"""


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_rows_or_columns(transposed):
    x = np.arange(256, dtype=np.uint16)
    y = np.zeros((32, 4), np.uint32)
    text = kernel("const unsigned short* x, unsigned* y", LDMATRIX.format(trans=".trans" if transposed else ""))
    run(text, x, y, check=True)
    matrices = x.reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(4, 32)  # row lane / 4, columns lane % 4 * 2 and next
    assert np.array_equal(y, pairs.T)


# -------------------------------------------------------------------------------------------- asynchronous copies

COPY = """
__shared__ __align__(16) float s[2][128];
const int t = threadIdx.x;
const unsigned at = (unsigned)__cvta_generic_to_shared(&s[0][t * 4]);
asm volatile("cp.async.cg.shared.global [%0], [%1], 16{fill};"
  :: "r"(at), "l"(x + t * 4), "r"(t < 20 ? 16 : t < 25 ? 8 : 0) : "memory");
asm volatile("cp.async.commit_group;" ::: "memory");
const unsigned single = (unsigned)__cvta_generic_to_shared(&s[1][t]);
asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(single), "l"(x + t) : "memory");
asm volatile("cp.async.commit_group;" ::: "memory");
{wait}
__syncthreads();
for (int i = 0; i < 4; i++) y[t * 4 + i] = s[0][t * 4 + i];
asm volatile("cp.async.wait_all;" ::: "memory");
z[t] = s[1][t];
"""
WAIT_1, WAIT_2 = (f'asm volatile("cp.async.wait_group {n};" ::: "memory");' for n in (1, 2))


def copied(fill=", %2", wait=WAIT_1, **how):
    x = np.arange(1, 129, dtype=np.float32)
    y, z = np.zeros(128, np.float32), np.zeros(32, np.float32)
    run(kernel("const float* x, float* y, float* z", COPY.format(fill=fill, wait=wait)), x, y, z, **how)
    given = np.where(LANES < 20, 4, np.where(LANES < 25, 2, 0))[:, None]
    expected = np.where(np.arange(4) < given, x.reshape(32, 4), 0).reshape(-1)
    return np.array_equal(y, expected) and np.array_equal(z, x[:32])


@pytest.mark.parametrize("async_copies", ["issue", "late", "random"])
@CHECKED
def test_asynchronous_copies_arrive_and_fill_with_zeros(async_copies, check):
    assert copied(async_copies=async_copies, check=check)


def test_a_copy_that_is_not_waited_for_is_seen():
    assert not copied(wait="")
    assert not copied(wait=WAIT_2)
    with pytest.raises(KernelFault):
        copied(wait=WAIT_2, check=True)


def test_a_copy_that_forgets_its_source_size_is_seen():
    assert not copied(fill="")


def test_mbarriers_order_bulk_copies():
    body = """
    __shared__ __align__(16) float s[256];
    __shared__ __align__(8) unsigned long long bar;
    const unsigned at = (unsigned)__cvta_generic_to_shared(s), b = (unsigned)__cvta_generic_to_shared(&bar);
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" :: "r"(b) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
                   :: "r"(at), "l"(x), "r"(b) : "memory");
    }
    asm volatile("{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra WAIT; }"
                 :: "r"(b) : "memory");
    for (int i = threadIdx.x; i < 256; i += 32) y[i] = s[i] + 1;
    """
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    run(kernel("const float* x, float* y", body), x, y, arch=90, check=True)
    assert np.array_equal(y, x + 1)


# -------------------------------------------------------------------------------------------- launches


def test_options_reach_the_compiler_and_bounds_hold():
    made = Module(kernel("int* y", "y[threadIdx.x] = N;", bounds="__launch_bounds__(64)"), ("-DN=5",), tier="ptx")
    y = np.zeros(128, np.int32)
    made.launch("k", 1, 64, (y,))
    assert y[:64].tolist() == [5] * 64
    with pytest.raises(KernelFault, match="__launch_bounds__"):
        made.launch("k", 1, 128, (y,))
    with pytest.raises(TypeError):
        made.launch("k", 1, 64, (np.float32(1),))


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_loops_with_lanes_that_go_their_own_ways(order):
    body = """
    const int t = threadIdx.x;
    long long n = x[t]; int steps = 0;
    while (n != 1) { n = n & 1 ? 3 * n + 1 : n / 2; if (++steps > 500) break; }
    y[t] = steps;
    """
    x = np.arange(1, 65, dtype=np.int32)
    y = np.zeros(64, np.int32)
    run(kernel("const int* x, int* y", body), x, y, block=64, order=order)

    def steps(n):
        count = 0
        while n != 1:
            n, count = (3 * n + 1 if n & 1 else n // 2), count + 1
        return count

    assert y.tolist() == [steps(int(n)) for n in x]
