"""Launches in the emulator: device arrays, limits, arguments, threads and processes, endless loops."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulator import KernelFault, Module
from small_kernels import int32, kernel, launch

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))


def test_views_of_one_array_are_one_array_on_the_device():
    text = kernel("if (threadIdx.x < 4) a[threadIdx.x] = 1; b[0] += 10;", "int* a, int* b")
    base = np.zeros(8, np.int32)
    launch(text, 1, 1, base[:4], base[0:])
    assert base.tolist() == [11, 0, 0, 0, 0, 0, 0, 0]


def test_arrays_start_and_end_at_odd_places():
    text = kernel("const int i = threadIdx.x; y[i] = x[i] + 1;", "const unsigned char* x, unsigned char* y")
    base = np.arange(100, dtype=np.uint8)
    for slide in ("begin", "end"):
        y = np.zeros(50, np.uint8)
        launch(text, 1, 37, base[13:50], y[7:44], slide=slide)
        assert y.tolist() == [0] * 7 + [i + 1 for i in range(13, 50)] + [0] * 6


def test_a_failed_launch_changes_nothing():
    text = kernel("x[threadIdx.x] = 1; __syncthreads(); x[(1 << 20) * threadIdx.x] = 2;", "int* x")
    x = np.zeros(64, np.int32)
    with pytest.raises(KernelFault):
        launch(text, 1, 64, x)
    assert not x.any()
    launch(kernel("x[threadIdx.x] = 1;", "int* x"), 1, 64, x)
    assert x.all()


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [
        ((0,), (1,), 0, "grid .* x must be 1 to 2147483647, not 0"),
        ((1, 65536), (1,), 0, "grid .* y must be 1 to 65535"),
        ((1,), (1025,), 0, "block .* x must be 1 to 1024"),
        ((1,), (1, 1, 65), 0, "block .* z must be 1 to 64"),
        ((1,), (64, 32), 0, "2048 threads, CUDA takes up to 1024"),
        ((1,), (1, 1, 1, 1), 0, "4 sizes"),
        ((1,), (1,), 300_000, "300000 bytes of dynamic shared memory"),
    ],
)
def test_limits_of_cuda(grid, block, shared_bytes, message):
    with pytest.raises(ValueError, match=message):
        launch(kernel("", "int* x"), grid, block, np.zeros(1, np.int32), shared_bytes=shared_bytes)


@pytest.mark.parametrize(
    ("parameter", "given", "message"),
    [
        ("int n", 3, r"argument 0 is a int \(not a numpy scalar"),
        ("float n", 3.0, "argument 0 is a float"),
        ("int n", np.int64(3), "a int64 scalar where the kernel takes 32-bit int"),
        ("unsigned n", np.int32(3), "a int32 scalar where the kernel takes 32-bit unsigned int"),
        ("long long n", np.int32(3), "where the kernel takes 64-bit int"),
        ("float n", np.float64(3), "where the kernel takes 32-bit float"),
        ("float n", np.zeros(3, np.float32), "an array of float32 where the kernel takes 32-bit float"),
        ("float* n", np.float32(3), "a float32 scalar where the kernel takes a pointer to 32-bit float"),
        ("const float* n", np.zeros(3), "an array of float64 where the kernel takes a pointer to const 32-bit float"),
        ("int n", None, "is None where"),
        ("S n", np.zeros((), [("a", "i4")]), "a struct of 4 bytes where the kernel takes a struct of 8 bytes"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(parameter, given, message):
    with pytest.raises(TypeError, match=message):
        launch(kernel("", parameter, before="struct S { int a, b; };"), 1, 1, given)


def test_the_number_of_arguments_is_checked():
    with pytest.raises(TypeError, match="k takes 1 arguments, 2 were given"):
        launch(kernel("", "int n"), 1, 1, int32(1), int32(2))


def test_a_text_that_does_not_compile_is_reported_with_its_file_and_line():
    with pytest.raises(emulator.BuildError, match=r"deep\.cu:71:\d+: error: .*missing"):
        Module('#line 70 "deep.cu"\n' + kernel("missing = 1;", "int n").lstrip("\n"))


def test_modules_of_one_text_share_a_library():
    text = kernel("*x = 1;", "int* x")
    assert Module(text).library is Module(text, order="up", seed=5).library
    assert Module(text).library is not Module(text, check=True).library


def test_launches_from_several_threads():
    module = Module(
        kernel(
            """
            __shared__ int s[64];
            s[threadIdx.x] = n + threadIdx.x;
            __syncthreads();
            y[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];
            """,
            "int* y, int n",
        )
    )
    results = {}

    def work(n):
        for _ in range(20):
            y = np.zeros(256, np.int32)
            module.launch("k", 4, 64, (y, int32(n)))
            results.setdefault(n, []).append(y)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for n in range(4):
        assert len(results[n]) == 20
        assert all((y.reshape(4, 64) == n + 63 - np.arange(64)).all() for y in results[n])


def test_the_order_is_that_of_the_seed():
    module = kernel("const int n = atomicAdd(count, 1); out[n] = threadIdx.x;", "int* out, int* count")

    def order_of(**how):
        out, count = np.zeros(64, np.int32), np.zeros(1, np.int32)
        launch(module, 1, 64, out, count, **how)
        return out.tolist()

    assert order_of(order="up") == list(range(64))
    assert order_of(order="down") == list(range(63, -1, -1))
    assert order_of(seed=1) == order_of(seed=1) != order_of(seed=2)


def in_another_process(code, **environment):
    begin = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from emulator import Module, KernelFault\n"
    )
    command = [sys.executable, "-c", begin + textwrap.dedent(code), str(Path(__file__).parents[1])]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


TWO_BARRIERS = """
text = '''extern "C" __global__ void k(int* y) {
  __shared__ int s[96];
  const int t = threadIdx.x;
  if (t >= 90) return;
  s[t] = t;
  __syncthreads();
  const int v = s[89 - t];
  __syncthreads();
  s[t] = __shfl_xor_sync(__activemask(), v, 1) + v;
  __syncthreads();
  y[blockIdx.x * 96 + t] = s[t];
}'''
y = np.zeros((3, 96), np.int32)
for check in (False, True):
    Module(text, check=check).launch("k", 3, 96, (y,))
    t = np.arange(90)
    assert (y[:, :90] == 89 - t + 89 - (t ^ 1)).all(), y
try:
    Module(text.replace("89 - t", "t * 1000000"), check=True).launch("k", 3, 96, (y,))
except KernelFault as fault:
    print(fault)
"""


def test_several_processes_may_build_the_same(tmp_path):
    workers = [in_another_process(TWO_BARRIERS, GPUCONV_EMULATOR_CACHE=str(tmp_path)) for _ in range(3)]
    for worker in workers:
        output, _ = worker.communicate()
        assert worker.returncode == 0, output
        assert "out of bounds" in output
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".so"] * 4


def test_where_the_switch_of_threads_is_the_c_librarys(tmp_path):
    flags = {"GPUCONV_EMULATOR_CACHE": str(tmp_path), "GPUCONV_EMULATOR_RUNTIME_FLAGS": "-DEMULATOR_UCONTEXT"}
    worker = in_another_process(TWO_BARRIERS, **flags)
    output, _ = worker.communicate()
    assert worker.returncode == 0, output
    assert "out of bounds" in output


@pytest.mark.parametrize("body", ["while (*(volatile int*)x == 0) {}", "while (atomicAdd(x, 0) == 0) __syncthreads();"])
def test_a_kernel_that_never_ends(body, monkeypatch):
    monkeypatch.setenv("GPUCONV_EMULATOR_SECONDS", "1")
    for way in ({}, {"check": True}):
        with pytest.raises(KernelFault, match=r"computes for more than 1 s .* a loop without end"):
            launch(kernel(body, "int* x"), 1, 64, np.zeros(1, np.int32), **way)


def test_a_machine_without_the_compiler_is_told_so(monkeypatch):
    monkeypatch.setenv("GPUCONV_EMULATOR_CXX", "no-such-compiler")
    emulator.build.compiler.cache_clear()
    try:
        assert "the emulator needs g++" in emulator.unavailable()
        with pytest.raises(RuntimeError, match=r"needs g\+\+, and there is none on the PATH"):
            Module(kernel("*x = 12345;", "int* x"))
    finally:
        monkeypatch.undo()
        emulator.build.compiler.cache_clear()
