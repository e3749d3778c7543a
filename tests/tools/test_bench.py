"""The benchmark without its clock: layers, turns, validation, peers, summaries. Nothing depends on a time taken."""

import dataclasses
import errno
import io
import itertools
import json
import os
import random
import sys
import threading
import time
import types
from contextlib import nullcontext
from importlib import import_module

import cupy_double
import numpy as np
import pytest
import rich.console
from on_gpu import no_waits
from typer.testing import CliRunner

import gpuconv
from gpuconv import backend, cpu, layers, models
from gpuconv.bench import case, limits, peers, plots, quiet, record, runner, suites, summary, tables, timer, training
from gpuconv.bench.limits import Limits
from gpuconv.bench.peers.base import Contestant
from gpuconv.bench.training import Result
from gpuconv.cli import app
from gpuconv.cuda import stopwatch
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import DIRECTIONS
from gpuconv.support import disk
from gpuconv.tools.workload import Numbers, Workload

SMALL = "n1_h8w8_c4_k4_r3s3_p1"
INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


def make_case(problem=SMALL, direction="forward", **options):
    (layer,) = suites.choose(None, [problem])
    return case.Case(layer, direction, **options)


# ------------------------------------------------------------------------------------------------ suites


def test_every_layer_of_every_suite_is_written_as_it_prints():
    for part in suites.parts():
        assert part["source"]
        for batch, rest in itertools.product(part["batches"], part["layers"].values()):
            problem = suites.with_batch(rest, batch)
            assert str(ConvGeometry.parse(problem)) == problem


def test_the_suites_of_the_measures_are_there():
    assert {"default", "resnet50", "vgg16", "unet", "mobilenetv2_dw", "stems", "large_kernel"} <= set(suites.names())
    assert len(suites.layers("resnet50")) == 23
    assert {layer.geometry.kernel for layer in suites.layers("unet:r3s3")} == {(3, 3)}
    special = [str(layer.geometry) for layer in suites.choose(["stems", "large_kernel"], None)]
    for problem in ("n1_h512w512_c1_k1_r63s63_p31", "n1_h224w224_c3_k64_r7s7_p3_st2"):
        assert problem in special


def test_a_batch_replaces_those_of_the_suite_once():
    assert {layer.geometry.n for layer in suites.layers("resnet50")} == {1}
    assert {layer.geometry.n for layer in suites.layers("resnet50", largest=True)} == {128}
    problems = [str(layer.geometry) for layer in suites.layers("deepbench_train", 2)]
    assert {problem[:3] for problem in problems} == {"n2_"}
    assert len(problems) == len(set(problems))


# ------------------------------------------------------------------------------------------------ turns


def turns(**more):
    return dataclasses.replace(timer.ON_CPU, rest=0.0, **more)


def seconds_of(taken):
    return {name: [run.seconds for run in some.runs] for name, some in taken.items()}


def test_calls_take_turns_of_a_slot_each():
    order = []
    costs = {"quick": 1.0, "slow": 5.0}
    calls = {name: lambda name=name: order.append(name) for name in costs}

    def run(call):
        call()
        return timer.Run(costs[order[-1]])

    taken = timer.interleaved(calls, 2, run, turns(slot=3.0, warm=1.0), clock=lambda: 0.0, waited=lambda: 0.0)
    assert order == (["quick"] * 4 + ["slow"] * 2) * 2  # the first of each turn is not counted
    assert seconds_of(taken) == {"quick": [1.0] * 6, "slow": [5.0] * 2}


def test_a_call_without_duration_ends_its_turn():
    taken = timer.interleaved({"nothing": lambda: None}, 1, lambda call: timer.Run(0.0), turns(warm=0.0))
    assert seconds_of(taken) == {"nothing": [0.0] * timer.ON_CPU.most}


def test_after_its_budget_no_turn_begins_but_three_do():
    for budget, count in ((0.5, 3), (2.5, 5)):
        ticks = itertools.count()
        taken = timer.interleaved(
            {"a": int},
            10,
            lambda call: timer.Run(1.0),
            turns(slot=1.0, budget=budget),
            waited=lambda: 0.0,
            clock=lambda ticks=ticks: float(next(ticks)),
        )
        assert len(taken["a"].runs) == count


def turns_that_wait(*shares):
    """The taken runs of a call whose turns last one second, of which its threads wait for a core for these shares.

    The number of the turn stands in the place of the host's time.
    """
    waited = [0.0]

    def run(call):
        waited.append(waited[-1] + shares[len(waited) - 1])
        return timer.Run(1.0, host=float(len(waited) - 1))

    taken = timer.interleaved(
        {"a": int}, 5, run, turns(slot=0.0, warm=0.0), clock=lambda: 0.0, waited=lambda: waited[-1]
    )
    return [run.host for run in taken["a"].runs], taken["a"].dropped, taken["a"].disturbed


def test_a_turn_in_which_another_program_had_a_core_is_dropped_and_taken_again():
    assert turns_that_wait(*[0.1] * 5) == ([1, 2, 3, 4, 5], 0, 0)
    assert turns_that_wait(0, 0.5, 0, 0, 0, 0) == ([1, 3, 4, 5, 6], 1, 0)
    assert turns_that_wait(0, 0.5, 0.2, 0.9, 0, 0, 0, 0) == ([1, 5, 6, 7, 8], 3, 0)


def test_the_least_disturbed_turns_count_where_all_are():
    assert turns_that_wait(0.9, 0.8, 0.9, 0.3, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9) == ([2, 4, 7], 7, 3)
    assert turns_that_wait(0.9, 0.8, 0.9, 0, 0.9, 0.9, 0, 0.9, 0.9, 0.9) == ([2, 4, 7], 7, 1)


def test_a_device_does_not_mind_who_has_the_cores():
    pace = dataclasses.replace(timer.ON_DEVICE, slot=0.0, warm=0.0)
    taken = timer.interleaved({"a": int}, 5, lambda call: timer.Run(1.0), pace, waited=lambda: pytest.fail("it asks"))
    assert len(taken["a"].runs) == 5


@pytest.mark.parametrize(("spins", "rests"), [(0.0, 0.03), (0.02, 0.06), (0.13, 0.18), (9.0, 1.02)])
def test_a_rest_lasts_until_no_thread_spins(spins, rests):
    now = [0.0]

    def sleep(seconds):
        now.append(now[-1] + seconds)

    rest = quiet.wait_until_idle(0.03, sleep=sleep, clock=lambda: now[-1], used=lambda: min(now[-1], spins))
    assert rest == pytest.approx(rests)


def test_a_rest_sees_a_thread_that_computes():
    a, stopped = np.ones((128, 128)), threading.Event()

    def compute():
        while not stopped.is_set():
            a @ a

    def sleep(seconds):
        """At first as long as it takes the other thread to compute for so many seconds."""
        begin = time.process_time()
        while time.process_time() - begin < seconds and not stopped.is_set():
            time.sleep(0.005)
        stopped.set()
        thread.join()
        rests.append(seconds)

    rests = []
    thread = threading.Thread(target=compute)
    thread.start()
    quiet.wait_until_idle(0.06, sleep=sleep)
    assert len(rests) >= 2


def test_the_time_without_a_core_is_that_of_all_threads(tmp_path):
    for number, line in enumerate(["7 250000000 9", "7 500000000 9", "gone", ""]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(line)
    (tmp_path / "ended").mkdir()
    assert quiet.waited_for_a_core(tmp_path) == 0.75
    assert quiet.waited_for_a_core(tmp_path / "missing") == 0.0


def test_turns_on_a_device_are_few_and_short_and_rest_for_nothing(monkeypatch):
    monkeypatch.setattr(timer.time, "sleep", lambda seconds: pytest.fail("a device needs no rest"))
    for took, count in ((1e-6, timer.ON_DEVICE.most - 1), (1e-2, 1)):  # one is not counted
        calls = []
        taken = timer.interleaved(
            {"a": lambda calls=calls: calls.append(1)},
            3,
            lambda call, took=took: call() or timer.Run(took),
            timer.turns("cuda:0"),
            clock=lambda: 0.0,
        )
        assert len(taken["a"].runs) == 3 * count
        assert len(calls) == 3 * (count + 1)
    assert timer.turns("cpu") is timer.ON_CPU


def test_the_memory_of_a_call_is_its_peak():
    def call():
        np.empty(10**6, np.uint8)
        return np.empty(10**3, np.uint8)

    assert 10**6 <= timer.peak_bytes(call) < 10**6 + 10**4


def test_the_clock_of_the_cpu_goes_forward():
    run = timer.stopwatch("cpu")(int)
    assert run.seconds > 0
    assert (run.host, run.is_hidden) == (None, True)


class Cuda:
    """As much of CuPy as the meter of memory touches."""

    held = 100

    def get_default_memory_pool(self):
        return types.SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: self.held)


def test_on_a_gpu_memory_is_what_the_pool_grows_by(monkeypatch):
    cupy = Cuda()
    monkeypatch.setattr(backend, "module_for", lambda device: cupy)
    assert timer.peak_bytes(lambda: setattr(cupy, "held", 164), "cuda:1") == 64


# ------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_right_results_pass(dtype, direction):
    runner.validate(make_case("n2_h7w8_c4_k6_r3s2_p1_st2_g2", direction, dtype=dtype))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_right_results_of_integers_pass(dtype):
    runner.validate(make_case("n2_h7w8_c4_k6_r3s2_p1_st2_g2", dtype=dtype))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_one_wrong_integer_does_not_pass(monkeypatch, dtype):
    run = case.Case.run

    def spoiled(self, work):
        result = run(self, work)
        result[0, 0, 0, 0] += 1
        return result

    monkeypatch.setattr(case.Case, "run", spoiled)
    with pytest.raises(runner.WrongResult, match=r"forward by .* is wrong at output"):
        runner.validate(make_case(dtype=dtype))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_fast_results_are_allowed_to_round(direction):
    runner.validate(make_case("n2_h16w16_c8_k8_r3s3_p1", direction, algorithm="winograd_4x4", precision="fast"))


@pytest.mark.parametrize("value", [1000, np.nan])
@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"algorithm": "winograd_4x4", "precision": "fast"}])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_wrong_element_does_not_pass(monkeypatch, direction, options, value):
    suspect = make_case("n1_h16w16_c8_k8_r3s3_p1", direction, **options)
    run = case.Case.run

    def spoiled(self, work):
        result = run(self, work)
        if self == suspect:
            result[(0,) * result.ndim] = value
        return result

    monkeypatch.setattr(case.Case, "run", spoiled)
    with pytest.raises(runner.WrongResult, match=f"{direction} by .* (wrong|adjoint)"):
        runner.validate(suspect)


class Echo:
    """A peer that answers with gpuconv's own result, after `change`."""

    def __init__(self, change=lambda y: y):
        self.change = change

    def refusal(self, asked):
        return "does not go backwards" if asked.direction == "input_grad" else None

    def contestants(self, asked, work):
        return {way: Contestant(lambda: asked.run(work), self.change, scale) for way, scale in (("a", 1), ("b", 1e6))}


def test_a_row_holds_the_peers_by_their_ways():
    row = runner.measure(make_case(), {"echo": Echo()}, 1)
    assert set(row.peers["echo"]) == {"a", "b"}
    assert row.best("echo") == ("a", row.peers["echo"]["a"])
    assert row.ratio("echo") == row.peers["echo"]["a"].median / row.times.median
    assert row.workspace == make_case().plan().workspace


def test_a_peer_that_refuses_is_left_out_with_its_words():
    row = runner.measure(make_case(direction="input_grad"), {"echo": Echo()}, 1)
    assert row.refusals == {"echo": "does not go backwards"}
    assert row.ratio("echo") is row.best("echo") is None


@pytest.mark.parametrize("value", [1000, np.nan])
def test_a_peer_that_disagrees_is_not_timed(value):
    def change(y):
        y[0, 0, 0, 0] = value
        return y

    with pytest.raises(runner.WrongResult, match=r"echo \(a\) and gpuconv differ by .* but only 1e-04 is allowed"):
        runner.measure(make_case(), {"echo": Echo(change)}, 1)
    with pytest.raises(runner.WrongResult, match=r"gives the shape \(8, 8, 4\), but gpuconv gives \(1, 8, 8, 4\)"):
        runner.measure(make_case(), {"echo": Echo(lambda y: y[0])}, 1)


def test_threads_hold_for_all_and_are_given_back():
    with runner.threads(1):
        assert cpu.workers() == 1
    assert gpuconv.settings.threads is None


# ------------------------------------------------------------------------------------------------ pooling


POOLINGS = [
    "max_pool2d_n2_h9w9_c16_r3s3_p1_st2",
    "avg_pool2d_n2_h8w9_c16_r3s3_p1_st2_ceil",
    "avg_pool1d_n2_w9_c16_s3_p1_includepad",
]


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("problem", POOLINGS)
def test_pooling_is_validated(problem, direction, monkeypatch, tmp_path):
    asked = make_case(problem, direction)
    row = runner.measure(asked, {"matmul": peers.load("matmul")}, 1)
    assert row.refusals == {"matmul": "has nothing for a pooling"}
    assert (row.gflops > 0, row.algorithm) == (True, asked.plan().chosen)
    written = record.Record(record.Provenance.here("cpu", {}), Limits(1, 1), [row]).write(tmp_path / "a.json")
    (again,) = record.Record.read(written).rows
    assert again.geometry == asked.geometry
    assert list(summary.groups([again])) == ["problems"]
    pooled = Workload._pooled

    def wrong(self, g, which):
        result = pooled(self, g, which)
        if which == direction:
            result[-1, -1, ..., -1] += 1
        return result

    monkeypatch.setattr(Workload, "_pooled", wrong)
    with pytest.raises(runner.WrongResult, match=f"{direction} by .* is (wrong at output|not the gradient)"):
        runner.validate(asked)


def test_a_pooling_has_no_weight_gradient_to_measure():
    served, left_out = case.cases(suites.choose(None, POOLINGS[:1]), DIRECTIONS, ["auto"], "float32", "strict", "cpu")
    assert [one.direction for one in served] == ["forward", "input_grad"]
    assert len(left_out) == 1
    assert "has no weights" in left_out[0]


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("problem", POOLINGS[:2])
def test_torch_pools_the_same(problem, direction):
    pytest.importorskip("torch")
    asked = make_case(problem.replace("_ceil", ""), direction)
    assert set(runner.measure(asked, {"torch": peers.load("torch")}, 1).peers["torch"]) == {
        "contiguous",
        "channels_last",
    }


@pytest.mark.parametrize(
    ("problem", "direction", "says"),
    [
        ("max_pool2d_n1_h9w9_c4_r3s3_p2", "forward", "by half the kernel at most"),
        ("max_pool2d_n1_h9w9_c4_r3s3_p0-1", "forward", "both sides of an axis alike"),
        ("avg_pool2d_n1_h9w9_c4_r3s3_dl2", "forward", "no dilation in means"),
        ("max_pool1d_n1_w9_c4_s3", "input_grad", "1-D by its 2-D pooling"),
    ],
)
def test_what_torch_does_not_pool(problem, direction, says):
    assert says in peers.PEERS["torch"].refusal(make_case(problem, direction))


# ------------------------------------------------------------------------------------------------ a device


@pytest.fixture
def pace(monkeypatch, gpu):
    """The double's clock. A fill takes 100 us, an operation 5 us, and the host 10 us to ask for one."""
    if gpu is not cupy_double.cupy:
        pytest.skip("the clock is that of the double")
    model = cupy_double.machine.pace
    for module in (timer, stopwatch):
        monkeypatch.setattr(module.time, "perf_counter", lambda: model.now)
    monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**10)
    with model.at(asking=10e-6, least=5e-6, bandwidth=1e30, costs={"fill": 100e-6}):
        yield model


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.usefixtures("pace")
def test_a_row_from_a_device_has_its_time_and_the_hosts(direction, dtype):
    row = runner.measure(
        make_case(direction=direction, dtype=dtype, device="cuda:0"), {"matmul": peers.load("matmul")}, 1
    )
    launches = row.times.host / 10  # what Python itself takes does not count here
    assert launches == pytest.approx(round(launches))
    assert row.times.median == pytest.approx(5e-3 * round(launches))
    assert row.times.exposed == 0
    (theirs,) = row.peers["matmul"].values()
    assert (theirs.host > 0, theirs.exposed) == (True, 0)


def test_the_data_of_a_device_are_drawn_there_and_stay_there(gpu):
    g = ConvGeometry.parse("n3_h9w8_c4_k6_r3s3_p1")
    with no_waits(gpu):
        for make in (Workload.integers, Workload.normal):
            assert all(type(a) is gpu.ndarray for a in vars(make(g, "float32", "cuda:0")).values() if a is not g)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_what_is_drawn_on_a_device(gpu, dtype, monkeypatch):
    monkeypatch.setattr("gpuconv.tools.workload.PERIOD", 9973)
    numbers = Numbers("cuda:0", 1)
    resolved = np.dtype(dtype)
    small, normal = (backend.to_numpy(draw((5, 4001), resolved)) for draw in (numbers.integers, numbers.normal))
    assert small.dtype == normal.dtype == resolved
    parts = [small.real, small.imag] if resolved.kind == "c" else [small]
    for part in parts:
        values, counts = np.unique(part, return_counts=True)
        assert values.tolist() == [-2, -1, 1, 2]
        assert counts.min() > 0.23 * small.size
    for part in [normal.real, normal.imag] if resolved.kind == "c" else [normal]:
        part = part.astype(np.float64)
        assert abs(part.mean()) < 0.05
        assert abs(part.std() - 1) < 0.05
        assert abs((part**4).mean() - 3) < 0.3
        assert abs(np.corrcoef(part[0], part[1])[0, 1]) < 0.05
    assert not np.array_equal(normal, backend.to_numpy(numbers.normal((5, 4001), resolved)))
    again = Numbers("cuda:0", 1)
    assert np.array_equal(small, backend.to_numpy(again.integers((5, 4001), resolved)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrong_result_on_a_device_does_not_pass(gpu, monkeypatch, direction):
    suspect = make_case("n5_h6w6_c8_k8_r3s3_p1", direction, device="cuda:0")
    runner.validate(suspect)
    run = case.Case.run

    def swapped(self, work):
        result = run(self, work)
        return result[::-1].copy() if self == suspect else result

    monkeypatch.setattr(case.Case, "run", swapped)
    with pytest.raises(runner.WrongResult):
        runner.validate(suspect)


def test_the_command_on_a_device(pace, monkeypatch, tmp_path):
    monkeypatch.setitem(limits.SIDE, "cuda", 32)
    monkeypatch.setitem(limits.COPIED, "cuda", 2**12)
    words = ["bench", "--device", "cuda", "--problem", SMALL, "--direction", "forward", "--repeats", "2"]
    result = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    assert "host µs" in result.output
    (row,) = record.Record.read(tmp_path / "rows.json").rows
    assert row.times.host > 0
    assert row.times.exposed == 0


def test_a_training_step_on_a_device(pace, monkeypatch):
    monkeypatch.setattr(training, "lenet", lambda: models.Sequential([layers.Flatten(), layers.Dense(10)]))
    result = training.measure("cuda:0", 1, 1, against_torch=False)
    assert "host µs" in [column.header for column in result.table().columns]
    assert result.times.host > 0


def test_the_limits_of_a_device(pace, monkeypatch):
    monkeypatch.setitem(limits.SIDE, "cuda", 64)
    monkeypatch.setitem(limits.COPIED, "cuda", 2**12)
    with pace.at(costs={"fill": 100e-6, "copyto": 2e-6}):
        found = limits.measure("float32", "cuda:0")
    assert found.gflops > 0
    assert found.gbs > 0


def test_rows_of_amx_are_compared_with_a_product_on_that_unit(tmp_path, monkeypatch):
    """Such a product is timed only where a row needs it, and records without it are read as well."""
    rows = [
        dataclasses.replace(make_row(), algorithm=name, times=record.Times(0.01, 0.01, 0.01, 3))
        for name in ("amx", "gemm")
    ]
    for amx, wanted in ((400.0, 0.25), (None, 1.0)):
        found = dataclasses.replace(make_record(rows), limits=Limits(rows[0].gflops, 10.0, amx and 4 * rows[0].gflops))
        path = found.write(tmp_path / "rows.json")
        assert [row["of_peak"] for row in json.loads(path.read_text())["results"]] == [wanted, 1.0]
        assert record.Record.read(path).limits == found.limits
        assert ("in one on AMX" in tables.head(found)) == (amx is not None)
    monkeypatch.setattr(limits, "SIDE", {"cpu": 8})
    monkeypatch.setattr(limits, "COPIED", {"cpu": 2**21})
    monkeypatch.setattr(limits, "_product_on_amx", lambda case, side: 2 * side**3 / 7e9)
    for name, wanted in (("amx", 7.0), ("gemm", None)):
        one = dataclasses.replace(make_case("n1_w9_c8_k8_s1", "forward"), algorithm="gemm")
        monkeypatch.setattr(case.Case, "plan", lambda _, name=name: types.SimpleNamespace(chosen=name))
        assert limits.measure("float32", "cpu", [one]).amx == wanted


def test_tables_show_the_host_where_there_is_one():
    def text(*rows):
        console = rich.console.Console(width=200, file=io.StringIO())
        console.print(tables.rows(rows, Limits(100.0, 10.0), ["echo"], 200))
        return console.file.getvalue(), tables.notes(make_record(rows).times)

    row = make_row()
    assert "host" not in text(row)[0]
    on_device = dataclasses.replace(row, times=dataclasses.replace(row.times, host=12.34))
    shown, note = text(on_device)
    assert "host µs" in shown
    assert "echo host µs" in shown
    assert "12.3" in shown
    assert note == ""
    noisy = dataclasses.replace(row, times=dataclasses.replace(row.times, dropped=7, disturbed=2))
    shown, note = text(noisy, row)
    assert "~2.00" in shown
    assert note.splitlines()[0].startswith("~ other programs had a core in some of the turns")
    assert note.splitlines()[1] == "turns dropped because another program had a core meanwhile: 7"
    waited = dataclasses.replace(on_device, times=dataclasses.replace(on_device.times, exposed=2))
    shown, note = text(waited)
    assert "2.00*" in shown
    assert note == "* the device waited for the host in some of the runs, and the time includes that"


def test_the_host_is_read_as_it_was_written_and_older_files_have_none(tmp_path):
    row = make_row()
    row = dataclasses.replace(row, times=dataclasses.replace(row.times, host=12.5, exposed=1, dropped=2, disturbed=3))
    path = make_record([row]).write(tmp_path / "rows.json")
    assert record.Record.read(path).rows == [row]
    content = json.loads(path.read_text())
    for times in (content["results"][0]["times"], *content["results"][0]["peers"]["echo"].values()):
        for name in ("host", "exposed", "dropped", "disturbed"):
            del times[name]
    path.write_text(json.dumps(content))
    assert record.Record.read(path).rows == [make_row()]


# ------------------------------------------------------------------------------------------------ peers

PROBLEMS = (
    "n2_h9w8_c4_k6_r3s3_p1",
    "n1_h9w8_c4_k6_r3s2_p2x1_st2x3_dl1x2_g2",
    "n2_h9w9_c6_k6_r5s5_p2_st2_g6",
    "n2_w17_c3_k4_s4_p1_st3",
    "n1_d5h6w7_c2_k3_t2r3s3_p1",
    "n1_h7w8_c3_k2_r3s3_p0-1x2-1_st2",
    "n1_h20w21_c1_k1_r7s5_p3x2",
    "n1_h6w7_c1_k1_r3s3_p2_reflect",
)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name not in ("matmul", "float64")])
def test_peers_agree_or_refuse(name, direction):
    for package in peers.PACKAGES[name]:
        pytest.importorskip(package)
    served = 0
    for problem in PROBLEMS:
        asked = make_case(problem, direction)
        peer = peers.load(name)
        if peer.refusal(asked):
            continue
        served += 1
        work = Workload.normal(asked.geometry)
        ours = asked.run(work)
        for contestant in peer.contestants(asked, work).values():
            theirs = contestant.result(contestant.call())
            assert theirs.shape == ours.shape
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
    assert served or (name, direction) == ("onnxruntime", "weight_grad")
    assert set(peers.versions(name)) == set(peers.PACKAGES[name])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_agree_in_integers_or_refuse(name, dtype):
    """Those that do not have the same integers would not be timed."""
    for package in peers.PACKAGES[name]:
        pytest.importorskip(package)
    served = {"matmul": INTEGERS, "float64": INTEGERS, "torch": INTEGERS[3:], "onnxruntime": INTEGERS[:2]}
    for problem in PROBLEMS[:5]:
        row = runner.measure(make_case(problem, dtype=dtype), {name: peers.load(name)}, 1)
        assert bool(row.peers) == (dtype in served.get(name, ())), row.refusals


def test_integers_are_compared_with_float64_and_floats_are_not():
    of_8 = make_case(dtype="int8")
    (contestant,) = peers.load("float64").contestants(of_8, Workload.normal(of_8.geometry, "int8")).values()
    assert contestant.call().dtype == np.float64
    assert peers.base.refusal_of("float64", peers.load("float64"), make_case()) == "is what integers are compared with"


def test_an_integer_that_a_peer_has_otherwise_is_not_timed():
    def change(y):
        y[0, 0, 0, 0] += 1
        return y

    with pytest.raises(runner.WrongResult, match=r"float64 .* and gpuconv differ by .* but only 0e"):
        runner.measure(make_case(dtype="int8"), {"float64": Echo(change)}, 1)


def test_integers_move_results_of_more_bits():
    g = make_case().geometry
    x_and_w, y = np.prod(g.x_shape) + np.prod(g.w_shape), np.prod(g.y_shape)
    assert case.bytes_moved(g, "int8") == x_and_w + 4 * y
    assert case.bytes_moved(g, "int16") == 2 * x_and_w + 8 * y
    assert case.bytes_moved(g, "int64") == g.bytes(8)


def test_integers_have_all_values_of_8_bits():
    for dtype, least, greatest in (("int8", -128, 127), ("uint8", 0, 255), ("int64", -128, 127)):
        x = Workload.normal(ConvGeometry.parse("n1_h99w99_c4_k4_r1s1"), dtype).x
        assert (x.dtype, x.min(), x.max(), len(np.unique(x))) == (dtype, least, greatest, 256)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_torch_takes_other_dtypes(dtype):
    pytest.importorskip("torch")
    asked = make_case(dtype=dtype)
    row = runner.measure(asked, {"torch": peers.load("torch")}, 1)
    assert set(row.peers["torch"]) == {"contiguous", "channels_last"}


class Lent:
    """A tensor of a stand-in for PyTorch, in the memory of an array."""

    def __init__(self, array, dtype):
        self.array, self.dtype = array, dtype

    def view(self, dtype):
        return Lent(self.array, dtype)

    def contiguous(self, memory_format):
        return self


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_reads_arrays_where_they_are_on_a_gpu(double, monkeypatch, dtype):
    """By DLPack, as NumPy and CuPy share it: of bfloat16 the bits."""
    lent = []

    def from_dlpack(array):
        lent.append(Lent(array, str(array.dtype)))
        return lent[-1]

    names = {"convolution": lambda x, w, *_: (x, w), "no_grad": nullcontext, "bfloat16": "bfloat16"}
    backends = types.SimpleNamespace(
        cudnn=types.SimpleNamespace(), cuda=types.SimpleNamespace(matmul=types.SimpleNamespace())
    )
    formats = dict.fromkeys(("contiguous_format", "channels_last"))
    torch = types.SimpleNamespace(
        from_dlpack=from_dlpack, set_num_threads=lambda count: None, backends=backends, **names, **formats
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    asked = make_case("n2_h5w6_c4_k3_r3s2", dtype=dtype, device="cuda:0")
    work = Workload.integers(asked.geometry, dtype, "cuda:0")
    with cupy_double.no_transfers():
        ways = import_module("gpuconv.bench.peers.torch").contestants(asked, work)
        x, w = ways["channels_last"].call()
    assert {one.dtype for one in lent} == {"int16" if dtype == "bfloat16" else dtype}
    assert (x.dtype, x.array.shape, w.array.shape) == (dtype, (2, 4, 5, 6), (3, 4, 3, 2))
    assert (x.array.data.ptr, w.array.data.ptr) == (work.x.data.ptr, work.w.data.ptr)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", ["n2_h5w5_c4_k6_r3s3", "n2_h5w5_c4_k6_r3s3_g2"])
def test_the_matrix_product_has_the_flops_of_the_convolution(problem, direction, monkeypatch):
    asked = make_case(problem, direction)
    m, k, n, groups = 2 * 9, 9 * asked.geometry.c_group, asked.geometry.k_group, asked.geometry.groups
    (contestant,) = peers.load("matmul").contestants(asked, None).values()
    shape = {"forward": (m, n), "input_grad": (m, k), "weight_grad": (k, n)}[direction]
    assert contestant.call().shape == ((groups, *shape) if groups > 1 else shape)
    assert contestant.scale == 1
    monkeypatch.setattr("gpuconv.bench.peers.matmul.LARGEST_OPERAND", 4 * groups * k * 6)
    (contestant,) = peers.load("matmul").contestants(asked, None).values()
    assert contestant.scale == 3


# ------------------------------------------------------------------------------------------------ records


def make_row(suite="default", problem=SMALL, direction="forward", ratio=1.0, refused=False):
    times = record.Times(2.0, 1.9, 2.2, 10)
    ways = {"slow": record.Times(9 * ratio, 9.0, 9.0, 3), "best": record.Times(2 * ratio, 2.0, 2.0, 3)}
    return record.Row(
        suite=suite,
        layer="layer",
        problem=problem,
        direction=direction,
        algorithm="gemm",
        dtype="float32",
        precision="strict",
        times=times,
        peers={} if refused else {"echo": ways},
        refusals={"echo": "is tired"} if refused else {},
        workspace=1000,
        extra_bytes=1100,
        max_workspace=10**6,
    )


def make_record(rows):
    return record.Record(record.Provenance.here("cpu", {"echo": "1.0"}), Limits(gflops=100.0, gbs=10.0), list(rows))


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = make_record([make_row(), make_row(ratio=2.0, refused=True)])
    assert record.Record.read(written.write(tmp_path / "rows.json")) == written


def test_a_folder_gets_a_file_named_after_device_and_day(tmp_path):
    provenance = dataclasses.replace(
        make_record([]).provenance, device="Quick(R) CPU v2 @ 3.00GHz", date="2026-11-23T01:02:03+00:00"
    )
    path = dataclasses.replace(make_record([]), provenance=provenance).write(tmp_path)
    assert path == tmp_path / "quick-cpu-v2-3-00ghz-2026-11-23.json"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"results": [{}], "provenance": {}, "limits": {}}'])
def test_another_file_is_not_taken_for_a_record(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match="holds no results"):
        record.Record.read(tmp_path / "file.json")


ESCAPE = "\x1b]0;owned\x07\x1b[31m"

HOSTILE = {
    "deep": "[" * 1_000_000,
    "no number": '{"provenance": {}, "limits": {}, "results": NaN}',
    "two values of one name": '{"results": [], "results": []}',
    "too large": " " * (disk.LARGEST_TEXT + 1),
    **{
        f"{where} {value!r:.20}": (where, value)
        for where, value in [
            ("problem", "n1"),
            ("problem", f"n{'9' * 400}_h8w8_c4_k4_r3s3_p1"),
            ("problem", 7),
            ("direction", ESCAPE),
            ("direction", []),
            ("precision", "slow"),
            ("dtype", ESCAPE),
            ("suite", None),
            ("peers", []),
            ("peers", {"echo": {"": None}}),
            ("refusals", {"echo": 1}),
            ("workspace", -1),
            ("workspace", 1.5),
            ("extra_bytes", True),
            ("max_workspace", 10**400),
            ("times", {}),
            *(
                ("times", {"median": m, "low": 1.0, "high": 1.0, "count": 1})
                for m in (0, -1, "1", None, 1e-323, 10**400)
            ),
            ("times", {"median": float("nan"), "low": 1.0, "high": 1.0, "count": 1}),
            ("times", {"median": float("inf"), "low": 1.0, "high": 1.0, "count": 1}),
        ]
    },
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_is_refused_in_one_way(damage, tmp_path):
    path = make_record([make_row()]).write(tmp_path / "rows.json")
    if not isinstance(damage, str):
        content = json.loads(path.read_text())
        content["results"][0][damage[0]] = damage[1]
        damage = json.dumps(content)
    path.write_text(damage)
    begin = time.process_time()
    with pytest.raises(ValueError, match="holds no results") as caught:
        record.Record.read(path)
    assert time.process_time() - begin < 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("place", ["device", "command", "suite", "algorithm", "peer", "way", "refusal"])
def test_what_a_record_says_is_shown_as_text_and_drawn(place, tmp_path):
    """Neither the terminal, nor Rich, nor Matplotlib takes it for a command."""
    evil = f"{ESCAPE} [/nothing] [bold] $\\frac"
    content = json.loads(make_record([make_row(), make_row(refused=True)]).write(tmp_path / "rows.json").read_text())
    first, second = content["results"]
    if place in {"device", "command"}:
        content["provenance"][place] = evil
    elif place == "peer":
        first["peers"], second["refusals"] = {evil: first["peers"]["echo"]}, {evil: "is tired"}
    elif place == "way":
        first["peers"]["echo"] = {evil: first["peers"]["echo"]["best"], "b": first["peers"]["echo"]["best"]}
    elif place == "refusal":
        second["refusals"] = {"echo": evil}
    else:
        first[place] = evil
    (tmp_path / "rows.json").write_text(json.dumps(content))
    found = record.Record.read(tmp_path / "rows.json")
    console = rich.console.Console(file=io.StringIO(), width=1000, force_terminal=True, color_system=None)
    console.print(tables.head(found), markup=False)
    console.print(tables.rows(found.rows, found.limits, found.peers, 1000))
    for peer in found.peers:
        console.print(tables.means(found, peer, 1000))
        console.print(tables.verdict(found, peer), markup=False)
    text = console.file.getvalue()
    assert "\x07" not in text
    assert "\x1b]" not in text
    assert (r"\x1b]0;owned" in text) == (place != "command")
    assert "[/nothing]" in text or place == "command"
    plots.save(found, tmp_path / "rows.png")


def test_any_damage_to_a_record_is_found_or_harmless(tmp_path):
    path = make_record([make_row(), make_row(refused=True)]).write(tmp_path / "rows.json")
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        at, more = chance.randrange(len(content)), chance.randint(1, 9)
        damage = [
            content[:at],
            content[:at] + content[at + more :],
            content[:at] + chance.randbytes(more) + content[at:],
        ]
        path.write_bytes(damage[chance.randrange(3)])
        try:
            tables.rows(record.Record.read(path).rows, Limits(100.0, 10.0), ["echo"], 1000)
        except ValueError as error:
            assert "holds no results" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=repr)
def test_records_and_pictures_are_written_whole_or_not(error, tmp_path, monkeypatch):
    saved = make_record([make_row()])
    training = Result(1, "cpu", record.Times(2.0, 1.9, 2.2, 10), {})
    writers = {
        "rows.json": saved.write,
        "rows.png": lambda path: plots.save(saved, path),
        "step.json": lambda path: training.write(path, saved.provenance),
    }
    for name, write in writers.items():
        write(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    kind = (OSError, ValueError) if isinstance(error, OSError) else KeyboardInterrupt
    for name, write in writers.items():
        with pytest.raises(kind):
            write(tmp_path / name)
        with pytest.raises(kind):
            write(tmp_path / f"new-{name}")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_shapes_the_run_is_kept(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("HOME_ADDRESS", "secret")
    provenance = make_record([]).provenance
    assert provenance.environment["OPENBLAS_CORETYPE"] == "Haswell"
    assert "secret" not in json.dumps(dataclasses.asdict(provenance))
    assert {"numpy", "blas", "echo"} <= set(provenance.versions)


def test_rates_of_a_row():
    row = make_row()
    assert row.gflops == 2 * 64 * 36 * 4 / 2e-3 / 1e9
    assert row.bytes == 4 * (2 * 64 * 4 + 9 * 16)
    assert row.gbs == row.bytes / 2e-3 / 1e9
    assert row.times.spread == pytest.approx(0.075)


DENSE, STRIDED, DEPTHWISE = SMALL, "n1_h8w8_c4_k4_r3s3_p1_st2", "n1_h8w8_c4_k4_r3s3_p1_g4"


def test_means_by_suite_kind_and_all():
    rows = [make_row("one", DENSE, ratio=4.0), make_row("one", STRIDED), make_row("two", DEPTHWISE, ratio=0.25)]
    rows.append(make_row("two", DEPTHWISE, refused=True))
    means = {label: summary.Mean.of(members, "echo") for label, members in summary.groups(rows).items()}
    assert means == {
        "one": summary.Mean(2.0, 1.0, 4.0, 2),
        "two": summary.Mean(0.25, 0.25, 0.25, 1),
        "3×3, stride 1": summary.Mean(4.0, 4.0, 4.0, 1),
        "all": summary.Mean(1.0, 0.25, 4.0, 3),
    }
    assert summary.Mean.of(rows[-1:], "echo") is None


def test_a_verdict_counts_and_gives_the_reasons():
    rows = [make_row(ratio=1.5), make_row(ratio=0.5), make_row(refused=True)]
    assert tables.verdict(make_record(rows), "echo") == (
        "at least as fast as echo in 1 of 2 rows\n1 rows without echo: it is tired"
    )


def test_a_narrow_table_leaves_out_what_comes_second():
    headers = [
        {column.header for column in tables.rows([make_row()], Limits(1, 1), ["echo"], width).columns}
        for width in (80, 160)
    ]
    assert headers[1] - headers[0] == {"spread", "GB/s", "workspace", "extra memory", "way of echo"}
    assert {"problem", "ms", "GFLOP/s", "of peak", "echo ms", "ratio"} <= headers[0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_at_any_width(width):
    """At 60 columns the problem strings are broken."""
    some = [make_row(problem=f"n1_h112w112_c{c}_k{c}_r3s3_p1_st2_g{c}") for c in (32, 1024)]
    record = make_record(some)
    console = rich.console.Console(width=width, file=io.StringIO())
    console.print(tables.rows(some, Limits(100.0, 10.0), record.peers, width), tables.means(record, "echo", width))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in some:
        assert text.count(tables.milliseconds(row.times)) >= 2
        assert all(f"{row.ratio('echo'):.2f}" in text for row in some)


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_any_record_can_be_drawn(count, tmp_path):
    problems = [f"n1_h8w8_c4_k{k}_r3s3_p1" for k in range(1, count + 1)]
    rows = [make_row(f"suite {i % 5}", p, DIRECTIONS[i % 3], 1 + i, i % 4 == 3) for i, p in enumerate(problems)]
    plots.save(make_record(rows), tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 10_000
