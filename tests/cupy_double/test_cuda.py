"""The double of CuPy's devices: streams, memory, kernels and cuBLAS; every rule is seen to be held up."""

import gc
import threading

import cupy_double
import ml_dtypes
import numpy as np
import pytest
from cupy_double import Hazard, machine
from nvrtc_here import needs_nvrtc


@pytest.fixture
def cupy(double):
    return double


@pytest.fixture
def x(cupy):
    return cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.fixture
def stream(cupy):
    return cupy.cuda.Stream(non_blocking=True)


class TestStreams:
    def test_a_forgotten_stream_is_seen(self, cupy, x, stream):
        with stream, pytest.raises(Hazard, match=r"on stream 0x\w+ touches 24 bytes that the null stream .* wrote"):
            x + 1

    def test_so_is_reading_too_early(self, cupy, x, stream):
        cupy.cuda.Stream.null.synchronize()
        with stream:
            y = x + 1
        with pytest.raises(Hazard, match="get on the null stream"):
            y.get()
        stream.synchronize()
        assert y.get()[0, 0] == 1

    def test_and_writing_what_another_still_reads(self, cupy, x, stream):
        cupy.cuda.Stream.null.synchronize()
        with stream:
            y = x + 1
        with pytest.raises(Hazard, match="reads"):
            x[...] = 0
        stream.synchronize()
        x[...] = 0
        del y

    def test_an_event_orders(self, cupy, x, stream):
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            y = x * 2
        cupy.cuda.Stream.null.wait_event(stream.record())
        assert y.get()[1, 2] == 10

    def test_a_blocking_stream_waits_for_the_null_stream_by_itself(self, cupy, x):
        with cupy.cuda.Stream():
            y = x + 1
        assert (y + 1).get()[0, 0] == 2

    def test_two_may_read_the_same(self, cupy, x, stream):
        cupy.cuda.Stream.null.synchronize()
        other = cupy.cuda.Stream(non_blocking=True)
        made = []
        for one in (stream, other):
            with one:
                made.append(x + 1)
        stream.synchronize()
        other.synchronize()

    def test_memory_freed_while_another_stream_uses_it(self, cupy, x, stream):
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            y = x + 1
        del x, y
        machine.faults.clear()  # the fixture holds x; a temporary does not
        t = cupy.ones(3)
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            z = t + 1
        del t
        gc.collect()
        with pytest.raises(Hazard, match="freed while stream"):
            cupy.ones(3)
        stream.synchronize()
        del z

    def test_a_stream_belongs_to_its_device(self, cupy, stream):
        with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match with the current device"):
            stream.__enter__()

    def test_each_thread_has_its_own(self, cupy, stream):
        seen = []
        with stream, cupy.cuda.Device(0):
            thread = threading.Thread(target=lambda: seen.append(cupy.cuda.get_current_stream()))
            thread.start()
            thread.join()
            assert cupy.cuda.get_current_stream() == stream
        assert seen == [cupy.cuda.Stream.null]


class TestGraphs:
    def test_what_is_captured_is_done_at_each_launch_and_not_before(self, cupy, x, stream):
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            y = cupy.zeros_like(x)
            stream.begin_capture()
            assert stream.is_capturing()
            z = x + 1
            z *= 2
            high = cupy.maximum(z, 5)
            total = high.sum(axis=0)
            y[...] = total
            graph = stream.end_capture()
            assert not stream.is_capturing()
            assert not y.get().any()
            for factor in (1, 2):
                x *= factor
                graph.launch()
                assert np.array_equal(y.get(), np.maximum(2 * (x.get() + 1), 5).sum(axis=0) + np.zeros((2, 3)))

    @pytest.mark.parametrize("is_kept", [False, True])
    def test_memory_given_back_since_then_is_anyones(self, cupy, x, stream, is_kept):
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            stream.begin_capture()
            temporary = x + 1
            x[...] = temporary
            graph = stream.end_capture()
            if is_kept:
                graph.launch(stream)
            del temporary
            with pytest.raises(Hazard, match="a graph replays add on memory that was given back to the pool"):
                graph.launch(stream)
        stream.synchronize()

    def test_an_allocator_of_a_thread_may_keep_it(self, cupy, x, stream):
        kept, pool = [], cupy.cuda.get_allocator()

        def keeping(size):
            kept.append(pool(size))
            return kept[-1]

        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream, cupy.cuda.using_allocator(keeping):
            assert cupy.cuda.get_allocator() is keeping
            stream.begin_capture()
            x[...] = x + 1
            graph = stream.end_capture()
        assert cupy.cuda.get_allocator() is pool
        graph.launch(stream)
        assert len(kept) == 1
        stream.synchronize()
        assert x.get()[0, 0] == 1

    def test_what_a_capture_refuses(self, cupy, x, stream):
        a = cupy.ones((2, 2), np.float32)
        stream.wait_event(cupy.cuda.Stream.null.record())
        with pytest.raises(RuntimeError, match="cannot capture on the default"):
            cupy.cuda.Stream.null.begin_capture()
        with stream:
            stream.begin_capture()
            for call in (lambda: cupy.matmul(a, a), lambda: cupy.dot(a, a), lambda: cupy.einsum("ij,jk", a, a)):
                with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture"):
                    call()
            with pytest.raises(NotImplementedError, match="cuFFT API during stream capture"):
                cupy.fft.fft(a)
            for call in (x.get, x.item, lambda: bool(x[0, 0])):
                with pytest.raises(RuntimeError, match="so D2H transfers are disallowed"):
                    call()
            for call in (lambda: cupy.asarray(np.ones(2)), lambda: a.set(np.ones((2, 2), np.float32))):
                with pytest.raises(RuntimeError, match="so H2D transfers are disallowed"):
                    call()
            for call in (stream.synchronize, cupy.cuda.Device().synchronize):
                with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnsupported"):
                    call()
            stream.end_capture()

    def test_the_null_stream_would_wait_for_a_blocking_stream(self, cupy, x):
        stream, error = cupy.cuda.Stream(), cupy.cuda.runtime.CUDARuntimeError
        stream.begin_capture()
        with pytest.raises(error, match="StreamCaptureImplicit"):
            x + 1
        with pytest.raises(error, match="StreamCaptureImplicit"):
            cupy.cuda.Stream.null.is_capturing()
        stream.end_capture()
        assert not cupy.cuda.Stream.null.is_capturing()


class TestTime:
    """A model: the host spends 5 us to ask for an operation, and a device so much on each as it is told."""

    @pytest.fixture
    def took(self, cupy, x):
        def took(seconds):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            with machine.pace.at(asking=5e-6, costs={"add": seconds}):
                start.record()
                for _ in range(10):
                    x + x
                end.record()
                end.synchronize()
            return cupy.cuda.get_elapsed_time(start, end)

        return took

    def test_events_measure_the_slower_of_host_and_device(self, cupy, took):
        cupy.cuda.Stream.null.synchronize()
        assert took(20e-6) == pytest.approx(0.205)
        assert took(1e-6) == pytest.approx(0.051)  # ten times 5 us, and the last operation

    def test_behind_other_work_they_measure_the_device(self, cupy, x, took):
        with machine.pace.at(costs={"fill": 1.0}):
            x.fill(0)
        assert took(1e-6) == pytest.approx(0.01)

    def test_an_event_happens_when_the_work_before_it_is_done(self, cupy, x):
        event = cupy.cuda.Event()
        assert event.done
        with machine.pace.at(costs={"fill": 1e-3}):
            x.fill(0)
        event.record()
        assert not event.done
        machine.pace.spend(2e-3)
        assert event.done

    def test_streams_overlap_but_for_what_they_wait_for(self, cupy, x, stream):
        start, middle, end = (cupy.cuda.Event() for _ in range(3))
        start.record()
        with machine.pace.at(asking=0.0, costs={"fill": 1e-3, "multiply": 2e-3}):
            x.fill(1)
            middle.record()
            stream.wait_event(middle)
            with stream:
                y = x * x
                end.record()
        end.synchronize()
        assert cupy.cuda.get_elapsed_time(start, end) == pytest.approx(3)
        assert cupy.cuda.get_elapsed_time(start, middle) == pytest.approx(1)
        del y

    def test_a_graph_is_asked_for_once(self, cupy, x, stream):
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream, machine.pace.at(asking=5e-6, costs={"add": 1e-6}):
            y = cupy.empty_like(x)
            stream.begin_capture()
            for _ in range(10):
                cupy.add(x, x, y)
            graph = stream.end_capture()
            stream.synchronize()
            before = machine.pace.now
            graph.launch()
            assert machine.pace.now - before == pytest.approx(5e-6)
            stream.synchronize()
            assert machine.pace.now - before == pytest.approx(15e-6)

    def test_what_did_not_happen_yet_has_no_time(self, cupy, x):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        error = cupy.cuda.runtime.CUDARuntimeError
        with pytest.raises(error, match="invalid resource handle"):
            cupy.cuda.get_elapsed_time(start, end)
        start.record()
        x.fill(0)
        end.record()
        with pytest.raises(error, match="NotReady"):
            cupy.cuda.get_elapsed_time(start, end)
        end.synchronize()
        assert cupy.cuda.get_elapsed_time(start, end) > 0
        untimed = cupy.cuda.Event(disable_timing=True)
        untimed.record()
        with pytest.raises(error, match="invalid resource handle"):
            cupy.cuda.get_elapsed_time(start, untimed)


class TestDevices:
    def test_arrays_stay_where_they_were_made(self, cupy, x):
        with cupy.cuda.Device(1) as second:
            with pytest.raises(ValueError, match=r"resides \(0\) is different from the current device \(1\)"):
                x + 1
            y = cupy.asarray(x)
            assert y.device == second
        assert y.get().tolist() == x.get().tolist()
        with pytest.raises(ValueError, match="Peer access is unavailable"):
            x + y

    def test_there_are_two(self, cupy):
        assert cupy.cuda.runtime.getDeviceCount() == 2
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device"):
            cupy.cuda.Device(2).use()


class TestMemory:
    def test_the_pool_counts_and_is_limited(self, cupy):
        pool = cupy.get_default_memory_pool()
        before = pool.used_bytes()
        held = cupy.zeros(1000, np.float32)
        assert pool.used_bytes() - before == 4096
        pool.set_limit(pool.used_bytes() + 512)
        try:
            with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"Out of memory allocating 1,024 bytes"):
                cupy.zeros(200, np.float32)
            cupy.zeros(100, np.float32)
        finally:
            pool.set_limit(0)
        del held
        assert pool.used_bytes() == before

    def test_the_device_is_not_endless(self, cupy):
        with pytest.raises(MemoryError, match="Out of memory allocating 8,796,093,022,208 bytes"):
            cupy.empty(2**40)

    def test_hooks_see_every_allocation(self, cupy):
        seen = []

        class Hook(cupy.cuda.MemoryHook):
            def malloc_postprocess(self, **kwargs):
                seen.append(kwargs["mem_size"])

            def free_postprocess(self, **kwargs):
                seen.append(-kwargs["mem_size"])

        with Hook():
            a = cupy.empty(200, np.float32)
            del a
        assert seen == [1024, -1024]

    def test_transforms_take_what_cufft_takes(self, cupy):
        """A copy of what is not contiguous, a work area, the result."""
        pool, a = cupy.get_default_memory_pool(), cupy.ones((64, 64), np.complex64)
        arena = pool._arenas[0]
        arena.peak = before = pool.used_bytes()
        cupy.fft.fft(a, axis=0)
        assert arena.peak - before == 3 * a.nbytes


KERNEL = """#line 1 "twice.cu"
extern "C" __global__ void twice(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}
"""

OWN_SHARED = """
extern "C" __global__ void own_shared(float* y, int at) {
  __shared__ float kept[1000];
  kept[at] = 0;
  __syncthreads();
  y[0] = kept[at];
}
"""

NULL = """
extern "C" __global__ void is_null(const int* x, int* y) { y[0] = x == nullptr; }
"""

STRUCT = """
struct Two { int n; float x; };
extern "C" __global__ void sum(const Two two, float* y) { y[0] = two.n + two.x; }
"""


@pytest.mark.emulated
class TestKernels:
    @pytest.fixture
    def run(self, cupy, emulated):
        kernel = cupy.RawModule(code=KERNEL, options=("-std=c++17",)).get_function("twice")

        def run(x, y, n):
            kernel((2,), (8,), (x, y, n))
            return y

        return run

    @pytest.mark.parametrize("order", ["up", "down", "random"])
    @pytest.mark.parametrize("check", [False, True])
    def test_they_run(self, cupy, run, order, check):
        x = cupy.arange(10, dtype=np.float32)
        with cupy_double.emulation(order=order, check=check):
            assert run(x, cupy.empty_like(x), np.int32(10)).get().tolist() == list(range(0, 20, 2))

    def test_a_python_number_is_refused(self, cupy, run):
        """CuPy would pass 8 bytes for it, and the kernel read 4 of them."""
        x = cupy.arange(10, dtype=np.float32)
        with pytest.raises(TypeError, match="argument 2 is a int"):
            run(x, x.copy(), 10)
        with pytest.raises(TypeError, match=r"You are trying to pass a numpy\.ndarray of shape \(10,\)"):
            run(np.ones(10, np.float32), x, np.int32(10))

    def test_the_checked_tier_sees_what_lies_beyond(self, cupy, run):
        x = cupy.arange(10, dtype=np.float32)
        with cupy_double.emulation(check=True), pytest.raises(Exception, match="twice"):
            run(x, x.copy(), np.int32(11))

    def test_a_graph_replays_them(self, cupy, run, stream):
        x = cupy.arange(10, dtype=np.float32)
        y, count = cupy.zeros_like(x), len(cupy_double.launches)
        stream.wait_event(cupy.cuda.Stream.null.record())
        with stream:
            stream.begin_capture()
            run(x, y, np.int32(10))
            graph = stream.end_capture()
            assert len(cupy_double.launches) == count
            x += 1
            graph.launch()
            assert y.get().tolist() == list(range(2, 22, 2))

    def test_streams_and_devices_count_for_kernels_too(self, cupy, run, stream):
        x = cupy.arange(10, dtype=np.float32)
        y = x.copy()
        with stream, pytest.raises(Hazard, match="twice on stream"):
            run(x, y, np.int32(10))
        with cupy.cuda.Device(1), pytest.raises(ValueError, match="lies on another device"):
            run(x, y, np.int32(10))

    def test_const_arguments_are_only_read(self, cupy, run, stream):
        x = cupy.arange(10, dtype=np.float32)
        other = cupy.cuda.Stream(non_blocking=True)
        ys = [x.copy(), x.copy()]
        cupy.cuda.Stream.null.synchronize()
        for one, y in zip((stream, other), ys, strict=True):
            with one:
                run(x, y, np.int32(10))
        with stream, pytest.raises(Hazard):
            run(x, ys[1], np.int32(10))
        stream.synchronize()
        other.synchronize()

    @pytest.mark.parametrize("tier", ["source", pytest.param("ptx", marks=needs_nvrtc)])
    def test_shared_memory_must_be_asked_for(self, cupy, emulated, tier):
        """Of 48 KB that need no asking, and of all that may be asked for, the kernel's own 4000 bytes are a part."""
        y, zero = cupy.ones(1, np.float32), np.int32(0)
        with cupy_double.emulation(tier=tier):
            kernel = cupy.RawModule(code=OWN_SHARED, options=("-std=c++17",)).get_function("own_shared")
            kernel((2,), (1,), (y, zero), shared_mem=48 * 1024 - 4000)
            for more in (48 * 1024 - 3999, 48 * 1024, 50_000):
                with pytest.raises(Exception, match="INVALID_VALUE"):
                    kernel((2,), (1,), (y, zero), shared_mem=more)
            kernel.max_dynamic_shared_size_bytes = 50_000
            kernel((2,), (1,), (y, zero), shared_mem=50_000)
            with pytest.raises(Exception, match="INVALID_VALUE"):
                kernel((2,), (1,), (y, zero), shared_mem=50_001)
            with pytest.raises(Exception, match="INVALID_VALUE"):
                kernel.max_dynamic_shared_size_bytes = 163 * 1024 + 1
            kernel.max_dynamic_shared_size_bytes = 163 * 1024 - 4000
            kernel((2,), (1,), (y, zero), shared_mem=50_000)
            kernel.max_dynamic_shared_size_bytes = 163 * 1024 - 3999
            with pytest.raises(Exception, match="4000 bytes of static and 0 of dynamic shared memory"):
                kernel((2,), (1,), (y, zero))
            assert y.get() == 0

    def test_none_is_no_null_pointer(self, cupy, emulated):
        """CuPy 13.6 hands over something else for it. An address is handed over as it is."""
        kernel = cupy.RawModule(code=NULL).get_function("is_null")
        y = cupy.full(1, -1, np.int32)
        for pointer, is_null in ((None, 0), (np.uintp(0), 1), (y, 0), (cupy.empty(0, np.int32), 1)):
            kernel((1,), (1,), (pointer, y))
            assert y.get() == is_null

    def test_structs_are_bytes(self, cupy, emulated):
        """The fields tell CuPy nothing, and cost it time."""
        kernel = cupy.RawModule(code=STRUCT).get_function("sum")
        y, struct = cupy.zeros(1, np.float32), np.array((3, 0.5), [("n", "i4"), ("x", "f4")])
        for given in (struct, struct.view("V8"), struct.reshape(1), np.array([3, 0x3F000000], "i4").view("V8")):
            kernel((1,), (1,), (given, y))
            assert y.get() == 3.5
        with pytest.raises(TypeError, match="is a struct of 4 bytes"):
            kernel((1,), (1,), (np.zeros((), "V4"), y))
        with pytest.raises(TypeError, match="is a float64 scalar"):
            kernel((1,), (1,), (np.float64(0), y))

    def test_what_does_not_compile_says_so(self, cupy, emulated):
        with pytest.raises(cupy.cuda.compiler.CompileException, match="nonsense"):
            cupy.RawModule(code='extern "C" __global__ void k() { nonsense; }').get_function("k")
        with pytest.raises(Exception, match="NOT_FOUND"):
            cupy.RawModule(code=KERNEL).get_function("thrice")


class TestProducts:
    """gemmEx against NumPy; matrices are column-major, a row apart by the leading dimension."""

    def gemm(self, cupy, a, b, c, compute, transposes=(0, 0), alpha=1, beta=0, lead=None):
        cublas = cupy.cuda.cublas
        codes = {"float32": 0, "float64": 1, "float16": 2, "complex64": 4, "complex128": 5, "bfloat16": 14}
        (m, k), n = (a.shape if not transposes[0] else a.shape[::-1]), c.shape[1]
        scale = np.result_type(c.dtype if c.dtype.itemsize > 2 else np.float32, np.float32)
        factors = [np.array(value, scale) for value in (alpha, beta)]
        cublas.gemmEx(
            cupy.cuda.Device().cublas_handle, *transposes, m, n, k,
            factors[0].ctypes.data, a.data.ptr, codes[a.dtype.name], lead or a.strides[1] // a.itemsize,
            b.data.ptr, codes[b.dtype.name], b.strides[1] // b.itemsize,
            factors[1].ctypes.data, c.data.ptr, codes[c.dtype.name], c.strides[1] // c.itemsize,
            getattr(cublas, f"CUBLAS_COMPUTE_{compute}"), cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def matrix(self, cupy, values, dtype, room=2):
        """Column-major, with a few rows to spare."""
        values = np.asarray(values)
        held = cupy.zeros((values.shape[1], values.shape[0] + room), dtype)
        view = held.T[: values.shape[0]]
        view[...] = cupy.asarray(values.astype(dtype))
        return view

    @pytest.mark.parametrize("transposes", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)])
    @pytest.mark.parametrize(
        ("dtype", "result", "compute"),
        [
            ("float32", "float32", "32F"), ("float64", "float64", "64F"), ("complex64", "complex64", "32F"),
            ("complex128", "complex128", "64F"), ("float16", "float16", "32F"), ("float16", "float32", "32F"),
            ("bfloat16", "float32", "32F"), ("bfloat16", "bfloat16", "32F"),
        ],
    )  # fmt: skip
    def test_is_numpys(self, cupy, rng, transposes, dtype, result, compute):
        a, b, c = (rng.integers(-3, 4, shape).astype(float) for shape in ((4, 5), (5, 3), (4, 3)))
        if dtype.startswith("complex"):
            a = a + 1j * rng.integers(-3, 4, a.shape)
        turned = [{0: lambda z: z, 1: lambda z: z.T, 2: lambda z: z.conj().T}[t] for t in transposes]
        types = [ml_dtypes.bfloat16 if name == "bfloat16" else name for name in (dtype, dtype, result)]
        x, y, z = (self.matrix(cupy, v, t) for v, t in zip((turned[0](a), turned[1](b), c), types, strict=True))
        self.gemm(cupy, x, y, z, compute, transposes, alpha=2, beta=-1)
        assert np.array_equal(z.get().astype(complex), 2 * (a @ b) - c)
        assert cupy_double.products[-1].compute == f"COMPUTE_{compute}"

    def test_beta_0_reads_nothing(self, cupy):
        a, c = self.matrix(cupy, np.eye(3), np.float32), cupy.empty((3, 3), np.float32).T
        self.gemm(cupy, a, a, c, "32F")
        assert np.array_equal(c.get(), np.eye(3))

    def test_tf32_is_seen_in_the_numbers(self, cupy):
        """1 + 2**-12 has more bits than TF32 keeps; strict products must not lose them."""
        a = self.matrix(cupy, np.full((2, 2), 1 + 2.0**-12), np.float32)
        eye, c = self.matrix(cupy, np.eye(2), np.float32), self.matrix(cupy, np.zeros((2, 2)), np.float32)
        self.gemm(cupy, a, eye, c, "32F")
        assert (c.get() == np.float32(1 + 2.0**-12)).all()
        self.gemm(cupy, a, eye, c, "32F_FAST_TF32")
        assert (c.get() == 1).all()

    def test_tf32_rounds_to_nearest(self):
        to_tf32 = cupy_double.cublas.to_tf32
        values = np.array([1 + 2.0**-11, 1 + 2.0**-12, -(1 + 2.0**-11), np.inf, np.nan], np.float32)
        rounded = np.array([1 + 2.0**-10, 1, -(1 + 2.0**-10), np.inf, np.nan], np.float32)
        assert np.array_equal(to_tf32(values), rounded, equal_nan=True)

    def test_what_cublas_does_not_serve(self, cupy):
        a, c = self.matrix(cupy, np.eye(3), np.float16), self.matrix(cupy, np.eye(3), np.float32)
        error = cupy.cuda.cublas.CUBLASError
        with pytest.raises(error, match="NOT_SUPPORTED"):
            self.gemm(cupy, c, c, a, "32F")
        with pytest.raises(error, match="NOT_SUPPORTED"):
            self.gemm(cupy, a, a, c, "32F_FAST_TF32")
        with pytest.raises(error, match="INVALID_VALUE"):
            self.gemm(cupy, c, c, c.copy("F"), "32F", lead=2)

    def test_none_while_a_stream_is_captured(self, cupy, stream):
        a = self.matrix(cupy, np.eye(3), np.float32)
        stream.begin_capture()
        with stream, pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture"):
            self.gemm(cupy, a, a, a.copy(), "32F")
        stream.end_capture()

    def test_bounds_overlap_and_streams(self, cupy, stream):
        a = self.matrix(cupy, np.eye(3), np.float32)
        c = cupy.empty((3, 3), np.float32).T
        with pytest.raises(ValueError, match="reaches past the end"):
            self.gemm(cupy, a, a, c, "32F", lead=9)
        with pytest.raises(ValueError, match="overlaps a factor"):
            self.gemm(cupy, a, c, c, "32F")
        with stream, pytest.raises(Hazard, match="gemmEx on stream"):
            self.gemm(cupy, a, a, c, "32F")
        with cupy.cuda.Device(1), pytest.raises(ValueError, match="another device"):
            self.gemm(cupy, a, a, c, "32F")
