"""CUDA graphs: what was captured is right at every replay, whatever is allocated in between, or it is refused."""

import cupy_double
import numpy as np
import pytest
from calls import ALGORITHM_NAMES, CALLS, case_of, channels_first, convolve, problem, same
from cases import DIRECTIONS, integers
from on_gpu import cupy_with_a_device, is_double, own_stream, sent

import gpuconv
from gpuconv import autotune, heuristics, layers
from gpuconv.cuda import graphs
from gpuconv.models import Sequential

SPLIT = {  # problems whose sums are so long that several blocks share each of them
    "forward": "n1_h2w2_c512_k8_r1s1",
    "input_grad": "n1_h2w2_c8_k512_r1s1",
    "weight_grad": "n1_h32w32_c4_k4_r1s1",
}
NEED_A_LIBRARY = {"gemm": "no cuBLAS", "fft": "cuFFT works in memory of CuPy's cache"}


def arrays_of(gpu, case, dtype="float32", seed=0):
    return [*sent(gpu, dict(zip("xwd", case.arrays(integers, dtype, seed), strict=True))).values()]


def captured(stream, step, *, kept=True):
    """What `step` returns and its graph, with the memory that keeps both going."""
    step()  # compiles, and fills the pool of the stream
    stream.begin_capture()
    try:
        if kept:
            with gpuconv.graph_memory() as memory:
                result = step()
        else:
            result, memory = step(), None
    finally:
        graph = stream.end_capture()
    return result, graph, memory


def squat(gpu):
    """Take what is free in the pool and might still be written to; the numbers are looked at afterwards."""
    return [gpu.full(count, 7, np.float32) for count in (1, 128, 512, 2048, 2**13, 2**16) for _ in range(4)]


def assert_replays(gpu, stream, step, inputs, others, *, kept=True):
    """Replays with other numbers in the inputs give what a call gives for those."""
    result, graph, memory = captured(stream, step, kept=kept)
    squatters = squat(gpu)
    for _ in range(2):
        for target, source in zip(inputs, others, strict=True):
            target[...] = source
        graph.launch(stream)
        got = result.copy()
        assert same(got, step())
    assert all(bool((one == 7).all()) for one in squatters)
    return memory


class TestReplays:
    @pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_every_function(self, gpu, call, layout):
        """Channels first everything is copied on its way."""
        if layout == "channels_first" and not call.has_layout:
            return
        more = {"layout": layout} if call.has_layout else {}
        if call.has_algorithm:
            more["algorithm"] = "direct"
        first, second = ([*sent(gpu, call.arrays(seed=seed)).values()] for seed in range(2))
        if layout == "channels_first":
            first, second = (
                [gpu.ascontiguousarray(channels_first(a, name)) for a, name in zip(some, call.shapes, strict=True)]
                for some in (first, second)
            )
        with own_stream(gpu) as stream:
            arrays = dict(zip(call.shapes, first, strict=True))
            assert_replays(gpu, stream, lambda: call(arrays, **more), first, second)

    @pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_every_algorithm(self, gpu, direction, algorithm):
        case = case_of(SPLIT[direction] if algorithm != "depthwise" else "n1_h9w8_c4_k4_r3s3_p1_g4")
        inputs, others = (arrays_of(gpu, case, seed=seed) for seed in range(2))
        with own_stream(gpu) as stream:

            def step():
                return convolve(direction, case, *inputs, algorithm=algorithm)

            try:
                step()
            except gpuconv.AlgorithmError:
                return  # nor outside of a graph
            if algorithm in NEED_A_LIBRARY:
                with pytest.raises(gpuconv.AlgorithmError) as raised:
                    captured(stream, step)
                assert f"algorithm='{algorithm}' does not support" in str(raised.value)
                assert NEED_A_LIBRARY[algorithm] in str(raised.value)
                assert "Choose another, or 'auto'." in str(raised.value)
                return
            memory = assert_replays(gpu, stream, step, inputs, others)
            if algorithm != "depthwise":
                plan = gpuconv.plan(str(problem(case)), device="cuda", direction=direction, algorithm=algorithm)
                assert 0 < plan.workspace < memory.nbytes

    def test_the_gradient_of_reflected_padding(self, gpu):
        case = case_of("n2_h5w6_c4_k4_r3s3_p1_reflect")
        inputs, others = (arrays_of(gpu, case, seed=seed) for seed in range(2))
        with own_stream(gpu) as stream:
            assert_replays(gpu, stream, lambda: convolve("input_grad", case, *inputs), inputs, others)

    def test_an_out_that_overlaps(self, gpu):
        x, w, _ = arrays_of(gpu, case_of("n2_h4w4_c4_k4_r3s3_p1"))
        with own_stream(gpu) as stream:
            room = gpu.concatenate([x, x])

            def step():
                return gpuconv.conv2d(room[:2], w, pad=1, algorithm="direct", out=room[1:3])

            *_, graph, memory = captured(stream, step)
            squatters = squat(gpu)
            room[...] = want = gpu.concatenate([x, x])
            graph.launch(stream)
            want[1:3] = gpuconv.conv2d(x, w, pad=1, algorithm="direct")
            assert same(room, want)
            assert squatters
            assert memory.nbytes >= x.nbytes

    def test_layers_that_predict(self, gpu):
        model = Sequential(
            [
                layers.Conv2D(4, 3, pad="same", acti_fn="relu"),
                layers.BatchNorm2D(),
                layers.MaxPool2D(2),
                layers.DepthwiseConv2D(3, pad="same", acti_fn="tanh"),
                layers.AvgPool2D(2),
                layers.Flatten(),
                layers.Dense(3),
            ],
            rng=0,
        )
        x, other = (gpu.asarray(np.random.default_rng(seed).random((2, 8, 8, 2), np.float32)) for seed in range(2))
        with own_stream(gpu) as stream:
            # Dense is a product of cuBLAS outside of a capture, so its last bits may differ.
            result, graph, memory = captured(stream, lambda: model.predict(x))
            squatters = squat(gpu)
            x[...] = other
            graph.launch(stream)
            assert gpu.allclose(result, model.predict(x), rtol=1e-5, atol=1e-6)
            assert all(bool((one == 7).all()) for one in squatters)
            assert memory.nbytes


class TestNobodyKeepsIt:
    def test_what_takes_no_memory_needs_no_keeper(self, gpu):
        x, w, dy = arrays_of(gpu, case := case_of("n2_h4w4_c4_k4_r3s3_p1"))
        inputs, others = (x, w), arrays_of(gpu, case, seed=1)[:2]
        out = gpu.empty_like(dy)
        with own_stream(gpu) as stream:

            def step():
                return gpuconv.conv2d(x, w, pad=1, algorithm="direct", out=out)

            assert assert_replays(gpu, stream, step, inputs, others, kept=False) is None

    def test_no_workspace_is_a_way_out(self, gpu):
        case = case_of(SPLIT["forward"])
        x, w, _ = arrays_of(gpu, case)
        with own_stream(gpu) as stream:

            def step(**more):
                return gpuconv.conv2d(x, w, algorithm="direct", **more)

            assert_replays(
                gpu, stream, lambda: step(max_workspace=0), (x, w), arrays_of(gpu, case, seed=1)[:2], kept=False
            )
            with pytest.raises(
                gpuconv.WorkspaceError, match=r"conv2d: a CUDA graph is being .* direct takes \d+ bytes"
            ):
                captured(stream, step, kept=False)

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("max_pool2d_grad", "pooling takes 36 bytes per image"),
            ("col2im", "arrays are made on the way"),
            ("im2col", "arrays are made on the way"),
            ("pad", "arrays are made on the way"),
            ("a copy", r"direct takes \d+ bytes"),
            ("bias", r"direct takes \d+ bytes"),
            ("no products", r"takes \d+ bytes"),
            ("out", "out overlaps an argument"),
            ("a large window", "windows as large as these"),
            ("a loss", "squared_error: .* arrays are made"),
            ("a layer", "MaxPool2D: .* arrays are made"),
            ("an activation", "relu: .* arrays are made"),
        ],
    )
    def test_what_takes_memory_says_so(self, gpu, name, what):
        x = gpu.asarray(np.random.default_rng(0).random((2, 8, 8, 1), np.float32))
        w, cols = gpu.ones((3, 3, 1, 4), np.float32), gpuconv.im2col(x, 3).T.copy().T
        dy = gpuconv.max_pool2d(x, 3, stride=1)
        bias, wide = gpu.ones(8, np.float32), gpu.ones((1, 33, 33, 1), np.float32)
        steps = {
            "max_pool2d_grad": lambda: gpuconv.max_pool2d_grad(dy, x, 3, stride=1),
            "col2im": lambda: gpuconv.col2im(cols, x.shape, 3),
            "im2col": lambda: gpuconv.im2col(x[:, ::-1], 3),
            "pad": lambda: gpuconv.pad(x[:, ::-1], 1)[0],
            "bias": lambda: gpuconv.conv2d(x, w, bias[::2], algorithm="direct"),
            "no products": lambda: gpuconv.conv2d(x[..., :0], w[:, :, :0], bias[::2]),
            "out": lambda: gpuconv.max_pool2d(x, 3, stride=1, pad=1, out=x),
            "a large window": lambda: gpuconv.max_pool2d(wide, 33),
            "a loss": lambda: gpuconv.losses.parse("squared_error")(dy, dy),
            "a copy": lambda: gpuconv.conv2d(x[:, ::-1], w, algorithm="direct"),
            "a layer": lambda: layers.MaxPool2D(2).forward(x, retain_derived=False),
            "an activation": lambda: gpuconv.activations.parse("relu", "test")(x),
        }
        with own_stream(gpu) as stream:
            with pytest.raises(gpuconv.WorkspaceError, match=f"{what}.*with gpuconv.graph_memory\\(\\) as memory"):
                captured(stream, steps[name], kept=False)
            if name != "a loss":  # which multiplies by cuBLAS
                captured(stream, steps[name])

    def test_nor_an_allocator_of_the_callers(self, gpu):
        """It may keep what it hands out, but nobody can tell."""
        x, w, _ = arrays_of(gpu, case_of(SPLIT["forward"]))
        pool = gpu.get_default_memory_pool()
        with own_stream(gpu) as stream, gpuconv.graph_memory(), gpu.cuda.using_allocator(pool.malloc):  # noqa: SIM117
            with pytest.raises(gpuconv.WorkspaceError, match="graph_memory"):
                captured(stream, lambda: gpuconv.conv2d(x, w, algorithm="direct"), kept=False)

    def test_training_is_refused(self, gpu):
        model = Sequential([layers.Conv2D(2, 3)], optimizer="sgd", rng=0)
        x = gpu.ones((1, 4, 4, 2), np.float32)
        with own_stream(gpu) as stream:
            y = model.forward(x)
            model.backward(y)
            for step in (lambda: model.forward(x), lambda: model.backward(y), model.update):
                stream.begin_capture()
                with gpuconv.graph_memory(), pytest.raises(RuntimeError, match=r"training counts its steps .* predict"):
                    step()
                stream.end_capture()


class TestMemory:
    def test_only_what_is_captured_is_kept(self, gpu):
        x, w, dy = arrays_of(gpu, case_of(SPLIT["weight_grad"]))
        with own_stream(gpu) as stream:
            with gpuconv.graph_memory() as memory:
                gpuconv.conv2d_weight_grad(x, dy, 1)
                assert memory.nbytes == 0
                stream.begin_capture()
                gpuconv.conv2d_weight_grad(x, dy, 1, algorithm="direct")
                stream.end_capture()
            assert memory.nbytes >= w.nbytes
            assert repr(memory).startswith("<GraphMemory ")
            gpu.ones(3)
            assert not isinstance(gpu.cuda.get_allocator(), graphs._Keeping)

    def test_the_double_sees_it_go(self, gpu):
        if not is_double(gpu):
            return  # there it would be numbers of someone else
        x, w, dy = arrays_of(gpu, case_of(SPLIT["weight_grad"]))
        with own_stream(gpu) as stream:
            _, graph, memory = captured(stream, lambda: gpuconv.conv2d_weight_grad(x, dy, 1, algorithm="direct", out=w))
            graph.launch(stream)
            del memory
            with pytest.raises(cupy_double.Hazard, match="given back to the pool"):
                graph.launch(stream)

    @pytest.mark.skipif(cupy_with_a_device()[0] is not None, reason="there is a device")
    def test_there_must_be_a_device(self):
        with pytest.raises(gpuconv.DeviceError, match="graph_memory: device='cuda"), gpuconv.graph_memory():
            pass


class TestAuto:
    PROBLEM = "n1_h14w14_c256_k256_r3s3_p1"

    def test_passes_over_what_cannot_be_captured(self, gpu):
        x, w, _ = arrays_of(gpu, case_of(self.PROBLEM))
        with own_stream(gpu) as stream:
            outside = gpuconv.explain(x, w, pad=1)
            stream.begin_capture()
            inside = gpuconv.explain(x, w, pad=1)
            stream.end_capture()
        assert inside.captured
        assert not outside.captured
        assert "captured in a graph" in str(inside).splitlines()[0]
        assert inside.chosen not in NEED_A_LIBRARY
        refused = {one.name: one.note for one in inside.candidates if one.status == "refused"}
        for name, says in NEED_A_LIBRARY.items():
            assert says in refused[name]
            assert says not in str(outside)

    def test_goes_by_what_was_timed_outside(self, gpu, monkeypatch):
        x, w, _ = arrays_of(gpu, case_of("n2_h4w4_c4_k4_r3s3_p1"))
        times = {"gemm": 1e-6, "direct": 2e-6, "implicit_gemm": 3e-6}
        monkeypatch.setattr(
            autotune,
            "tune",
            lambda problem, candidates: autotune.Tuned("2026-01-01", {c.name: times.get(c.name) for c in candidates}),
        )
        monkeypatch.setattr(gpuconv.settings, "autotune", True)
        with own_stream(gpu) as stream:
            gpuconv.conv2d(x, w, pad=1)
            assert gpuconv.explain(x, w, pad=1).chosen == "gemm"
            monkeypatch.setattr(autotune, "tune", None)
            for seconds, chosen in ((2e-6, "direct"),):
                stream.begin_capture()
                plan = gpuconv.explain(x, w, pad=1)
                stream.end_capture()
                assert (plan.chosen, plan.seconds) == (chosen, seconds)
        autotune.clear()


class TestPrepared:
    def test_keeps_what_its_graphs_work_in(self, gpu):
        case = case_of(SPLIT["forward"])
        x, w, _ = arrays_of(gpu, case)
        other = arrays_of(gpu, case, seed=1)[0]
        prepared = gpuconv.prepare(w, x.shape, algorithm="implicit_gemm")
        before = prepared.nbytes
        with own_stream(gpu) as stream:
            result, graph, _ = captured(stream, lambda: prepared(x), kept=False)
            squatters = squat(gpu)
            x[...] = other
            graph.launch(stream)
            assert same(result, prepared(x))
            assert prepared.nbytes >= before + prepared.plan.workspace > before
            assert all(bool((one == 7).all()) for one in squatters)
            if is_double(gpu):
                del prepared
                with pytest.raises(cupy_double.Hazard, match="given back to the pool"):
                    graph.launch(stream)

    def test_a_plan_of_gemm_gives_way(self, gpu, monkeypatch):
        monkeypatch.setattr(
            heuristics, "rank", lambda problem, found: sorted(found, key=lambda one: one.name != "gemm")
        )
        case = case_of("n2_h4w5_c2_k4_r1s1")  # no other test plans it
        x, w, _ = arrays_of(gpu, case, "float64")
        prepared = gpuconv.prepare(w, x.shape)
        assert prepared.plan.chosen == "gemm"
        with own_stream(gpu) as stream:
            result, graph, _ = captured(stream, lambda: prepared(x), kept=False)
            graph.launch(stream)
            assert same(result, prepared(x))
            by_name = gpuconv.prepare(w, x.shape, algorithm="gemm")
            with pytest.raises(
                gpuconv.AlgorithmError, match=r"prepared: algorithm='gemm' does not support .* no cuBLAS"
            ):
                captured(stream, lambda: by_name(x), kept=False)

    def test_not_while_a_graph_is_captured(self, gpu):
        _, w, _ = arrays_of(gpu, case_of("n2_h4w4_c2_k4_r1s1"))
        with own_stream(gpu) as stream:
            stream.begin_capture()
            with pytest.raises(gpuconv.WorkspaceError, match=r"prepare: .* Prepare before the capture begins"):
                gpuconv.prepare(w, (2, 4, 4, 2))
            stream.end_capture()
