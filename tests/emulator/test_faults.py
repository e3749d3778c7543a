"""What the emulator is for: a kernel with a bug does not pass. Each bug is planted in a kernel that is right."""

import emulator
import numpy as np
import pytest
from emulator import KernelFault, Module

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

RIGHT = """
#line 1 "right.cu"
// y = sums of three neighbours, 64 a block, through shared memory; and the total of all by shuffles.
extern "C" __global__ void __launch_bounds__(64) k(const float* x, float* __restrict__ y, float* total, int n) {
  __shared__ float tile[66];
  __shared__ float part[2];
  const int t = threadIdx.x, i = blockIdx.x * 64 + t;
  tile[t + 1] = i < n ? x[i] : 0.f;
  if (t == 0) tile[0] = i > 0 ? x[i - 1] : 0.f;
  if (t == 63) tile[65] = i + 1 < n ? x[i + 1] : 0.f;
  __syncthreads();
  const float sum = tile[t] + tile[t + 1] + tile[t + 2];
  if (i < n) y[i] = sum;
  float all = i < n ? sum : 0.f;
  for (int o = 16; o > 0; o /= 2) all += __shfl_down_sync(0xffffffffu, all, o);
  if (t % 32 == 0) part[t / 32] = all;
  __syncthreads();
  if (t == 0) atomicAdd(total, part[0] + part[1]);
}
"""


def three(text=RIGHT, n=150, block=64, **how):
    """(y and total, what they must be)"""
    x, y, total = np.arange(n, dtype=np.float32), np.full(n, -1, np.float32), np.zeros(1, np.float32)
    Module(text, **how).launch("k", -(-n // 64), block, (x, y, total, np.int32(n)))
    around = np.pad(x, 1)
    expected = around[:-2] + around[1:-1] + around[2:]
    return np.append(y, total), np.append(expected, expected.sum())


def planted(old, new, text=RIGHT):
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.mark.parametrize("how", [{}, {"check": True}, {"ubsan": True}, {"check": True, "ubsan": True}], ids=str)
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_the_right_kernel_is_right(how, order):
    result, expected = three(order=order, **how)
    np.testing.assert_array_equal(result, expected)


BUGS = {
    "a missing barrier": (
        "__syncthreads();\n  const float sum",
        "const float sum",
        r"right\.cu:9: .*(race on byte|no thread of the block has written)",
    ),
    "a missing barrier before the second use": (
        "__syncthreads();\n  if (t == 0) atomicAdd",
        "if (t == 0) atomicAdd",
        r"right\.cu:1[3-5]: .*(race on byte .* of shared part|no thread of the block has written)",
    ),
    "a read one past the end": (
        "i < n ? x[i] : 0.f;\n  if (t == 0)",
        "i <= n ? x[i] : 0.f;\n  if (t == 0)",
        r"right\.cu:6: .*read of 4 bytes out of bounds, 0 bytes past the end of argument 0 \(600 bytes\)",
    ),
    "a read one before the beginning": (
        "i > 0 ? x[i - 1]",
        "i >= 0 ? x[i - 1]",
        r"right\.cu:7: .*read of 4 bytes out of bounds, 4 bytes before argument 0",
    ),
    "a write one past the end": (
        "if (i < n) y[i]",
        "if (i <= n) y[i]",
        r"right\.cu:11: .*write of 4 bytes out of bounds, 0 bytes past the end of argument 1",
    ),
    "a write far past the end": (
        "if (i < n) y[i]",
        "if (i < n) y[i * 5000]",
        r"right\.cu:11: .*write of 4 bytes out of bounds",
    ),
    "shared memory one too short": (
        "tile[66]",
        "tile[65]",
        r"right\.cu:\d+: .*(index 65 out of bounds of 'float \[65\]'|at byte 260 of shared tile \(260 bytes\))",
    ),
    "a race in shared memory": (
        "part[t / 32] = all",
        "part[0] = all",
        r"right\.cu:1[46]: .*(race on byte 0 of shared part|byte 4 of shared part \(8 bytes\), which no thread)",
    ),
    "a race between threads in global memory": (
        "if (i < n) y[i] = sum;",
        "if (i < n) y[i / 2] = sum;",
        r"right\.cu:11: .*race on byte \d+ of argument 1: written here and written by thread \d+, with nothing",
    ),
    "a race between blocks": (
        "atomicAdd(total, part[0] + part[1])",
        "*total += part[0] + part[1]",
        r"right\.cu:16: .*race on byte 0 of argument 2: read here and written by thread 0 of another block",
    ),
    "shared memory that nobody writes": (
        "if (t == 63) tile",
        "if (t == 64) tile",
        r"right\.cu:10: .*read of byte 260 of shared tile \(264 bytes\), which no thread of the block has written",
    ),
    "a barrier that some do not reach": (
        "__syncthreads();\n  const float sum",
        "if (t < 40) __syncthreads();\n  const float sum",
        r"threads diverged: the barrier is reached here while|race on byte|no thread of the block has written",
    ),
    "two barriers for one": (
        "__syncthreads();\n  const float sum",
        "if (t < 40) __syncthreads(); else\n __syncthreads();\n  const float sum",
        r"right\.cu:(9|10): .*threads diverged: the barrier is reached here while others wait at that of right",
    ),
    "a misaligned vector": (
        "if (i < n) y[i] = sum;",
        "if (i % 4 == 1 && i + 3 < n) *(float4*)(y + i) = make_float4(sum, sum, sum, sum);",
        r"right\.cu:11: .*misaligned access to .*float4.*: it needs a multiple of 16 bytes, and is 4 off",
    ),
    "a shuffle under a condition": (
        "all += __shfl_down_sync(0xffffffffu, all, o)",
        "if (t % 32 < 20) all += __shfl_down_sync(0xffffffffu, all, o)",
        r"(right\.cu:1[35]: )?.*(exits while others wait|deadlock|warp diverged)",
    ),
    "a mask that leaves out who shuffles": (
        "__shfl_down_sync(0xffffffffu",
        "__shfl_down_sync(0xffffu",
        r"right\.cu:13: .*lane 1[6-9]|lane [23]\d is not in its own mask 0000ffff",
    ),
    "an index out of a local array": (
        "float all = i < n ? sum : 0.f;",
        "float last[3] = {sum, sum, sum}; float all = i < n ? last[t % 4] : 0.f;",
        r"right\.cu:12: .*index 3 out of bounds of 'float \[3\]'",
    ),
    "a division by zero": (
        "float all = i < n ? sum : 0.f;",
        "float all = i < n ? sum + n / (t / 64) : 0.f;",
        r"right\.cu:12: .*division by zero",
    ),
    "a null pointer": (
        "if (i < n) y[i] = sum;",
        "if (i < n) ((float*)nullptr)[i] = sum;",
        r"right\.cu:11: .*write of 4 bytes out of bounds, at address .*: a null pointer",
    ),
    "a pointer to another thread's past": (
        "atomicAdd(total,",
        "atomicAdd((float*)((char*)total + 2),",
        r"right\.cu:16: .*misaligned atomic",
    ),
    "too much shared memory": (
        "float tile[66]",
        "float tile[12300]",
        "more than 49152 bytes of static shared memory",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_a_bug_is_a_fault(bug, order):
    old, new, message = BUGS[bug]
    with pytest.raises(KernelFault, match=message):
        three(planted(old, new), check=True, order=order)


# What needs no instruments: page protection, poison, the order of threads.
SEEN_UNCHECKED = {
    "a missing barrier": "wrong",
    "a read one past the end": "wrong",
    "a write one past the end": "write out of bounds, 0 bytes past the end of argument 1",
    "a write far past the end": r"right\.cu:11: .*write out of bounds, ",
    "shared memory one too short": "write out of bounds, 0 bytes past the end of shared memory tile",
    "a race between threads in global memory": "wrong",
    "shared memory that nobody writes": "wrong",
    "a barrier that some do not reach": "threads diverged|deadlock",
    "two barriers for one": "threads diverged",
    "a misaligned vector": "misaligned",
    "a shuffle under a condition": "exits while others wait|deadlock|diverged",
    "a mask that leaves out who shuffles": "not in its own mask",
    "a division by zero": "division by zero",
    "a null pointer": "a null pointer",
    "too much shared memory": "more than 49152 bytes",
}


@pytest.mark.parametrize(("order", "first"), [("up", 63), ("down", 128)])
def test_the_first_write_far_past_the_end_is_the_last(order, first):
    """The next one would hurt this very process. Who comes to a barrier last goes on first."""
    with pytest.raises(KernelFault, match=rf": write out of bounds, {first * 20_000 - 600} bytes past the end"):
        three(planted("if (i < n) y[i]", "if (i < n) y[i * 5000]"), order=order)


@pytest.mark.parametrize("bug", SEEN_UNCHECKED)
def test_what_is_seen_without_checks(bug):
    old, new, _ = BUGS[bug]
    outcome = SEEN_UNCHECKED[bug]
    if outcome == "wrong":
        result, expected = three(planted(old, new))
        assert not np.array_equal(result, expected)
        return
    with pytest.raises(KernelFault, match=outcome):
        three(planted(old, new))


def test_the_message_says_kernel_file_line_block_and_thread():
    old, new, _ = BUGS["a write one past the end"]
    with pytest.raises(KernelFault) as caught:
        three(planted(old, new), check=True)
    assert str(caught.value) == (
        "k: right.cu:11: block (2,0,0) thread (22,0,0): write of 4 bytes out of bounds, "
        "0 bytes past the end of argument 1 (600 bytes)"
    )


def test_a_fault_in_an_included_file_names_that_file():
    text = '#line 40 "helper.cuh"\n__device__ void put(int* x, int i) { x[i] = 1; }\n#line 7 "main.cu"\n'
    text += 'extern "C" __global__ void k(int* x) {\n  put(x, threadIdx.x);\n}'
    with pytest.raises(KernelFault, match=r"k: helper\.cuh:40: block \(0,0,0\) thread \(3,0,0\)"):
        Module(text, check=True).launch("k", 1, 4, (np.zeros(3, np.int32),))


def test_a_block_larger_than_the_launch_bounds():
    with pytest.raises(KernelFault, match=r"block \(128, 1, 1\) has 128 threads, its __launch_bounds__ allow 64"):
        three(block=128)
    text = RIGHT.replace("__launch_bounds__(64)", "__launch_bounds__(HALF * 2, 4)").replace(
        "#line", "#define HALF 20\n#line"
    )
    with pytest.raises(KernelFault, match="its __launch_bounds__ allow 40"):
        three(text)


def test_a_read_only_array_is_not_written():
    x = np.zeros(4, np.int32)
    x.flags.writeable = False
    with pytest.raises(KernelFault, match="write to argument 0, an array that is read-only"):
        Module('extern "C" __global__ void k(int* x) { x[threadIdx.x] = 1; }').launch("k", 1, 4, (x,))
    assert not x.any()


# -------------------------------------------------------------------------------------------- undefined behaviour


@pytest.mark.parametrize(
    ("expression", "a", "b", "message"),
    [
        ("a * b", 65536, 65536, r"overflow of 'int': 65536 \* 65536"),
        ("a + b", 2**31 - 1, 1, r"overflow of 'int': 2147483647 \+ 1"),
        ("a - b", -(2**31), 1, "overflow of 'int': -2147483648 - 1"),
        ("-a", -(2**31), 0, r"overflow of 'int': -\(-2147483648\)"),
        ("a / b", -(2**31), -1, "overflow of 'int': -2147483648 / -1"),
        ("a / b", 1, 0, "overflow of 'int': 1 / 0"),
        ("a << b", 1, 32, "shift of 'int' out of range: 1 by 32"),
        ("(int)(a * 1e9f)", 5, 0, "a float that does not fit the integer"),
        ("(long long)a * b > 0 ? 1 : 0", 65536, 65536, None),
        ("(int)((unsigned)a + (unsigned)b)", 2**31 - 1, 1, None),
    ],
)
def test_undefined_arithmetic(expression, a, b, message):
    text = f'#line 1 "a.cu"\nextern "C" __global__ void k(int* x, int a, int b) {{\n  *x = {expression};\n}}'
    args = (np.zeros(1, np.int32), np.int32(a), np.int32(b))
    if message is None:
        Module(text, ubsan=True).launch("k", 1, 1, args)
        return
    with pytest.raises(KernelFault, match=r"k: a\.cu:2: block \(0,0,0\) thread \(0,0,0\): " + message):
        Module(text, ubsan=True).launch("k", 1, 1, args)


def test_an_index_that_overflows_needs_no_large_array():
    text = """extern "C" __global__ void k(const float* x, float* y, int h, int w, int c) {
      y[0] = x[((h - 1) * w + w - 1) * c < 0 ? 1 : 0];
    }"""
    args = (np.zeros(2, np.float32), np.zeros(1, np.float32), np.int32(40_000), np.int32(40_000), np.int32(3))
    with pytest.raises(KernelFault, match="overflow of 'int'"):
        Module(text, ubsan=True).launch("k", 1, 1, args)


# ------------------------------------------------------------------------------------------ what the checker lets pass


PASSES = {
    "a write, a barrier, a read": "s[t] = t; __syncthreads(); y[t] = s[63 - t];",
    "a read, a barrier, a write": "y[t] = 0; s[t] = t; __syncthreads(); int v = s[63 - t]; __syncthreads(); s[t] = v;",
    "a warp that synchronises itself": "s[t] = t; __syncwarp(); y[t] = s[t ^ 1];",
    "one's own": "s[t] = t; y[t] = s[t]; s[t] = 1; y[t] += s[t];",
    "atomics of all": "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(s, 1); __syncthreads(); y[t] = s[0];",
    "many readers": "s[t] = t; __syncthreads(); y[t] = s[0] + s[1];",
}
FAILS = {
    "a write, a read": "s[t] = t; y[t] = s[63 - t];",
    "a read, a write": "s[t] = t; __syncthreads(); y[t] = s[63 - t]; s[t] = 0;",
    "a warp that synchronises not with another": "s[t] = t; __syncwarp(); y[t] = s[t ^ 32];",
    "two writes": "s[t / 2] = t;",
    "an atomic and a write": "if (t == 0) s[0] = 0; else atomicAdd(s, 1);",
    "readers of a warp, one of them writes": "s[t] = t; __syncthreads(); y[t] = s[0]; if (t == 31) s[0] = 1;",
    "many readers, the last of them writes": "s[t] = t; __syncthreads(); y[t] = s[0]; if (t % 32 == 31) s[t / 32] = 1;",
    "a shuffle, which orders nothing": "s[t] = t; __shfl_sync(0xffffffffu, t, 0); y[t] = s[t ^ 1];",
}


def race(body, order):
    """Two blocks of 64 threads, each with shared memory and a part of the array of its own."""
    text = f"""extern "C" __global__ void k(int* out) {{
      __shared__ int s[64];
      const int t = threadIdx.x;
      int* y = out + blockIdx.x * 64;
      {body}
    }}"""
    Module(text, check=True, order=order).launch("k", 2, 64, (np.zeros(128, np.int32),))


@pytest.mark.parametrize("order", ["up", "down", "random"])
@pytest.mark.parametrize("case", PASSES)
def test_ordered_accesses_are_no_race(case, order):
    race(PASSES[case], order)


@pytest.mark.parametrize("order", ["up", "down", "random"])
@pytest.mark.parametrize("case", FAILS)
def test_accesses_that_nothing_orders_are_a_race(case, order):
    with pytest.raises(KernelFault, match=r"race on byte|no thread of the block has written"):
        race(FAILS[case], order)
