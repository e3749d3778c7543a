"""The whole library on CuPy arrays: right, on the stream and device they are on, without a wait, in the bytes promised.

Each test runs on the double of CuPy, whose kernels the emulator runs, and on CuPy where there is a device.
"""

import cupy_double
import numpy as np
import pytest
from calls import CALLS, channels_first, convolve, problem
from cases import CASES, DIRECTIONS, Case, integers
from on_gpu import ROUNDED, is_double, no_waits, own_stream, peak, room_for, same_bits, second_device, sent
from tolerances import assert_close, to_numpy

import gpuconv
from gpuconv.algorithms import ALGORITHMS

KIB, MIB = 2**10, 2**20
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
mixed_call = pytest.mark.parametrize(
    "call", [call for call in CALLS.values() if len(call.shapes) > 1], ids=lambda call: call.function
)


def ways(case, device, direction="forward", dtype="float32", precision="strict"):
    """The algorithms that serve a case on a device."""
    plan = gpuconv.plan(problem(case), dtype, device, direction=direction, precision=precision)
    return [one.name for one in plan.candidates if one.status != "refused"]


class TestResults:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
    @every_call
    def test_are_those_of_numpy(self, gpu, call, dtype):
        """Integers, so that no order of additions matters."""
        if call.function.startswith("max") and dtype.startswith("complex"):
            return  # complex numbers have no order
        arrays = call.arrays(dtype=dtype)
        want = call(arrays)
        got = call(sent(gpu, arrays))
        assert type(got) is gpu.ndarray
        assert got.flags.c_contiguous
        assert got.dtype == want.dtype
        if call.function.startswith("avg"):  # dividing is not exact
            assert_close(got, want.astype(complex), want.dtype, numpy_result=want)
        else:
            assert np.array_equal(to_numpy(got).astype(complex), want.astype(complex))

    @pytest.mark.parametrize("call", [call for call in CALLS.values() if call.has_layout], ids=lambda c: c.function)
    def test_channels_first_into_out(self, gpu, call):
        plain = call.arrays()
        turned = {}
        for name, a in plain.items():
            turned[name] = np.ascontiguousarray(channels_first(a, name))
        want = call(turned, layout="channels_first")
        out = gpu.empty(want.shape[::-1], want.dtype).T
        assert call(sent(gpu, turned), layout="channels_first", out=out) is out
        assert np.array_equal(to_numpy(out), want)

    @pytest.mark.parametrize("method", ["gather", "scatter"])
    def test_col2im_by_both_methods(self, gpu, method):
        call = CALLS["col2im"]
        arrays = call.arrays()
        assert np.array_equal(to_numpy(call(sent(gpu, arrays), method=method)), call(arrays))

    @every_call
    def test_the_same_bits_each_time(self, gpu, call):
        arrays = sent(gpu, call.arrays(lambda rng, shape, dtype: rng.standard_normal(shape).astype(dtype)))
        once = call(arrays)
        assert same_bits(once, call(arrays))
        if is_double(gpu):
            for order, seed in (("up", 0), ("down", 0), ("random", 1)):
                with cupy_double.emulation(order=order, seed=seed):
                    assert same_bits(once, call(arrays))

    @every_call
    def test_no_kernel_reads_or_writes_amiss(self, double, emulated, call):
        """In the checked tier: bounds, races, shared memory that nobody wrote."""
        arrays = call.arrays()
        with cupy_double.emulation(check=True, order="down"):
            assert np.array_equal(to_numpy(call(sent(double, arrays))), call(arrays))


class TestWhere:
    @every_call
    def test_nothing_crosses_the_bus_and_nobody_waits(self, gpu, call):
        arrays = sent(gpu, call.arrays())
        call(arrays)  # compiles
        with no_waits(gpu):
            call(arrays)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("case", ["2d-depthwise", "2d-reflect", "2d-1x1", "3d-everything"])
    def test_nor_in_any_algorithm(self, gpu, case, direction):
        case = CASES[case]
        arrays = sent(gpu, dict(zip("xwd", case.arrays(), strict=True))).values()
        for name in ways(case, "cuda:0", direction):
            convolve(direction, case, *arrays, algorithm=name)
            with no_waits(gpu):
                convolve(direction, case, *arrays, algorithm=name)

    @every_call
    def test_on_the_current_stream(self, gpu, call):
        """The double sees an operation on any other: nobody waits there for what this stream wrote."""
        with own_stream(gpu):
            got = call(sent(gpu, call.arrays()))
        assert np.array_equal(to_numpy(got), call(call.arrays()))

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_on_the_current_stream_in_every_algorithm(self, gpu, direction):
        case = CASES["2d-depthwise"]
        want = case.want(direction, *case.arrays())
        for name in ways(case, "cuda:0", direction):
            with own_stream(gpu):
                arrays = sent(gpu, dict(zip("xwd", case.arrays(), strict=True))).values()
                got = convolve(direction, case, *arrays, algorithm=name)
            assert np.allclose(to_numpy(got), want, atol=1e-4)

    @every_call
    def test_on_the_device_of_the_arrays(self, gpu, call):
        with second_device(gpu) as second:
            arrays = sent(gpu, call.arrays())
            second.synchronize()
        got = call(arrays)
        assert got.device == second
        assert gpu.cuda.Device().id == 0
        assert np.array_equal(to_numpy(got), call(call.arrays()))

    def test_a_stream_of_that_device(self, gpu):
        call = CALLS["conv2d"]
        with second_device(gpu):
            arrays = sent(gpu, call.arrays())
            with own_stream(gpu):
                got = call(arrays)
        assert np.array_equal(to_numpy(got), call(call.arrays()))


class TestMixing:
    @mixed_call
    def test_libraries(self, gpu, call):
        arrays = call.arrays()
        for moved in arrays:
            mixed = {name: gpu.asarray(a) if name == moved else a for name, a in arrays.items()}
            with pytest.raises(TypeError, match=rf"^{call.function}: .*{moved} in CuPy"), no_waits(gpu):
                call(mixed)

    @mixed_call
    def test_devices(self, gpu, call):
        arrays = sent(gpu, call.arrays())
        with second_device(gpu):
            moved = next(reversed(arrays))
            arrays[moved] = gpu.asarray(call.arrays()[moved])
        with pytest.raises(gpuconv.DeviceError, match=rf"^{call.function}: .*{moved} on cuda:1"):
            call(arrays)

    def test_out(self, gpu):
        call = CALLS["conv2d"]
        arrays = call.arrays()
        out = call(arrays)
        with pytest.raises(TypeError, match="out in NumPy"):
            call(sent(gpu, arrays), out=out)
        with pytest.raises(TypeError, match="out in CuPy"):
            call(arrays, out=gpu.asarray(out))


LARGE = {
    "2d": Case(2, (24, 22), 16, 12, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "2d-strided": Case(2, (20, 19), 8, 16, (5, 4), (2, 2), (1, 1), ((2, 2), (1, 2))),
    "2d-reflect": Case(2, (12, 11), 8, 8, (3, 3), (1, 1), (2, 2), ((2, 2), (2, 2)), 1, "reflect"),
    "2d-groups": Case(2, (20, 20), 16, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 4),
    "2d-depthwise": Case(2, (22, 22), 16, 16, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 16),
    "2d-1x1": Case(2, (24, 24), 24, 8, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "1d": Case(2, (1200,), 4, 8, (9,), (1,), (1,), ((8, 0),)),
    "3d": Case(1, (10, 9, 8), 6, 8, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
}


class TestMemory:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("cap", [48 * KIB, 2 * MIB])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
    def test_the_peak_is_that_of_the_plan(self, gpu, case, direction, cap, dtype):
        """Of every algorithm: what the pool hands out beside the result."""
        arrays = sent(gpu, dict(zip("xwd", case.arrays(integers, dtype), strict=True))).values()
        for name in ways(case, "cuda:0", direction, dtype):
            most_allowed = max(cap, 192 * KIB) if name == "fft" else cap  # under less in thousands of tiles
            keywords = {"algorithm": name, "max_workspace": most_allowed}
            try:
                plan = gpuconv.plan(problem(case), dtype, "cuda:0", direction=direction, **keywords)
            except gpuconv.WorkspaceError:
                continue  # as it may
            convolve(direction, case, *arrays, **keywords)  # compiles
            _, most, blocks = peak(gpu, lambda keywords=keywords: convolve(direction, case, *arrays, **keywords))
            assert most <= plan.workspace + ROUNDED * min(blocks, 32), f"{name}: {most} of {plan.workspace}"
            assert plan.workspace <= most_allowed

    @pytest.mark.parametrize("kind", ["x", "w", "out"])
    @pytest.mark.parametrize("algorithm", ["auto", "gemm"])
    def test_copies_of_strided_arrays_count(self, gpu, kind, algorithm):
        case = LARGE["2d"]
        x, w, _ = case.arrays()
        arrays = {"x": gpu.asarray(x), "w": gpu.asarray(w), "out": gpu.empty(case.y_shape, np.float32)}
        wide = gpu.zeros((*arrays[kind].shape[:-1], 2 * arrays[kind].shape[-1]), np.float32)
        wide[..., ::2] = arrays[kind]
        arrays[kind] = wide[..., ::2]
        keywords = {**case.keywords, "algorithm": algorithm, "max_workspace": MIB}

        def run():
            return gpuconv.conv2d(arrays["x"], arrays["w"], out=arrays["out"], **keywords)

        run()
        _, most, blocks = peak(gpu, run)
        most += -(-arrays["out"].nbytes // ROUNDED) * ROUNDED  # `out` was there before
        assert most <= MIB + ROUNDED * blocks
        assert np.array_equal(to_numpy(arrays["out"]), case.want("forward", x, w, None))

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_running_out_names_bytes_and_remedy_and_passes(self, gpu, direction):
        case = LARGE["2d"]
        arrays = sent(gpu, dict(zip("xwd", case.arrays(), strict=True))).values()
        want = to_numpy(convolve(direction, case, *arrays))
        before = gpu.get_default_memory_pool().used_bytes()
        shape = {"forward": case.y_shape, "input_grad": case.x_shape, "weight_grad": case.w_shape}[direction]
        size = 4 * int(np.prod(shape))
        says = rf"out of memory on cuda:0: Out of memory allocating .*\b{size} bytes.*max_workspace"
        with room_for(gpu, size // 2), pytest.raises(gpuconv.WorkspaceError, match=says):
            convolve(direction, case, *arrays)
        assert gpu.get_default_memory_pool().used_bytes() == before
        assert np.array_equal(to_numpy(convolve(direction, case, *arrays)), want)

    def test_running_out_under_the_workspace(self, gpu):
        case = LARGE["2d"]
        arrays = sent(gpu, dict(zip("xwd", case.arrays(), strict=True))).values()
        plan = gpuconv.plan(problem(case), device="cuda:0", algorithm="gemm")
        y = 4 * int(np.prod(case.y_shape))
        with room_for(gpu, y + plan.workspace // 2), pytest.raises(gpuconv.WorkspaceError, match="max_workspace"):
            convolve("forward", case, *arrays, algorithm="gemm")
        with room_for(gpu, y + 64 * KIB):
            convolve("forward", case, *arrays, algorithm="gemm", max_workspace=48 * KIB)

    def test_nothing_is_kept(self, gpu):
        arrays = [sent(gpu, call.arrays()) for call in CALLS.values()]
        pool = gpu.get_default_memory_pool()
        for call, given in zip(CALLS.values(), arrays, strict=True):
            call(given)
        before = pool.used_bytes()
        for call, given in zip(CALLS.values(), arrays, strict=True):
            call(given)
        assert pool.used_bytes() == before


class TestPlans:
    def test_explain_names_the_device(self, gpu):
        case = CASES["2d"]
        x, w, _ = case.arrays()
        plan = gpuconv.explain(gpu.asarray(x), gpu.asarray(w), **case.keywords)
        assert plan.device == "cuda:0"
        assert "cuda:0 " in str(plan)
        assert {one.name for one in plan.candidates} == {algorithm.name for algorithm in ALGORITHMS}
        assert plan.chosen in ways(case, "cuda:0")
        refusals = {one.name: one.note for one in plan.candidates if one.status == "refused"}
        assert "runs on the CPU only" in refusals["winograd"]

    def test_plan_needs_no_arrays_and_no_transfer(self, gpu):
        gpuconv.plan("n2_h9w9_c8_k8_r3s3_p1", device="cuda:0")
        with no_waits(gpu):
            assert gpuconv.plan("n2_h8w9_c8_k8_r3s3_p1", device="cuda:0").workspace >= 0

    def test_warmup(self, gpu):
        name = "n2_h8w8_c4_k4_r3s3_p1"
        plans = gpuconv.warmup(name, device="cuda:0")
        assert [plan.device for plan in plans] == ["cuda:0"] * 3
        x, w = gpu.ones((2, 8, 8, 4), np.float32), gpu.ones((3, 3, 4, 4), np.float32)
        with no_waits(gpu):
            gpuconv.conv2d(x, w, pad=1)

    @pytest.mark.parametrize("case", ["2d", "2d-depthwise", "3d-everything", "1d-causal-dilated"])
    def test_prepare(self, gpu, case):
        case = CASES[case]
        x, w, _ = case.arrays()
        bias = np.arange(case.k, dtype=np.float32)
        x_, w_, bias_ = (gpu.asarray(a) for a in (x, w, bias))
        for name in ["auto", *ways(case, "cuda:0")]:
            prepared = gpuconv.prepare(w_, x.shape, bias_, **case.keywords, algorithm=name)
            want = getattr(gpuconv, f"conv{case.ndim}d")(x_, w_, bias_, **case.keywords, algorithm=name)
            assert same_bits(prepared(x_), want)
            with no_waits(gpu):
                prepared(x_)
            with pytest.raises(TypeError, match="x in NumPy"):
                prepared(x)

    def test_autotune_waits_for_the_device(self, gpu, monkeypatch):
        monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**16)  # the double's fills take real time
        monkeypatch.setattr(gpuconv.settings, "autotune_budget", 0.1)
        plans = gpuconv.warmup("n1_h6w6_c4_k4_r3s3", device="cuda:0", directions="forward", tune=True)
        assert plans[0].chosen in ways(Case(1, (6, 6), 4, 4, (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))), "cuda:0")


class TestMovedByName:
    def test_to_device_and_back(self, gpu):
        a = np.arange(6.0).reshape(2, 3)[:, ::-1]
        moved = gpuconv.to_device(a, "cuda:0")
        assert type(moved) is gpu.ndarray
        assert gpuconv.to_device(moved, "cuda") is moved
        assert np.array_equal(gpuconv.to_numpy(moved), a)

    def test_to_another_device(self, gpu):
        second_device(gpu)
        a = gpu.arange(6.0)
        moved = gpuconv.to_device(a, "cuda:1")
        assert moved.device.id == 1
        assert np.array_equal(gpuconv.to_numpy(moved), np.arange(6.0))
        with pytest.raises(gpuconv.DeviceError, match=r"cuda:\d+' does not exist: CuPy sees"):
            gpuconv.to_device(a, f"cuda:{gpu.cuda.runtime.getDeviceCount()}")
