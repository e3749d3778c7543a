"""The benchmark without its clock: layers, turns, validation, peers, summaries. Nothing depends on a time taken."""

import dataclasses
import errno
import io
import itertools
import json
import os
import random
import time
import types

import numpy as np
import pytest
import rich.console

import gpuconv
from gpuconv import backend, cpu
from gpuconv.bench import case, peers, plots, record, runner, suites, summary, tables, timer
from gpuconv.bench.limits import Limits
from gpuconv.bench.peers.base import Contestant
from gpuconv.bench.training import Result
from gpuconv.geometry import ConvGeometry
from gpuconv.planning import DIRECTIONS
from gpuconv.support import disk
from gpuconv.tools.workload import Workload

SMALL = "n1_h8w8_c4_k4_r3s3_p1"


def make_case(problem=SMALL, direction="forward", **options):
    (layer,) = suites.choose(None, [problem])
    return case.Case(layer, direction, **options)


# ------------------------------------------------------------------------------------------------ suites


def test_every_layer_of_every_suite_is_written_as_it_prints():
    for part in suites.parts():
        assert part["source"]
        for batch, rest in itertools.product(part["batches"], part["layers"].values()):
            assert str(ConvGeometry.parse(f"n{batch}_{rest}")) == f"n{batch}_{rest}"


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


def test_calls_take_turns_of_a_slot_each():
    order = []
    costs = {"quick": 1.0, "slow": 5.0}
    calls = {name: lambda name=name: order.append(name) for name in costs}

    def seconds(call):
        call()
        return costs[order[-1]]

    taken = timer.interleaved(calls, 2, seconds, slot=3.0, warm=1.0, clock=lambda: 0.0)
    assert order == (["quick"] * 4 + ["slow"] * 2) * 2  # the first of each turn is not counted
    assert taken == {"quick": [1.0] * 6, "slow": [5.0] * 2}


def test_a_call_without_duration_ends_its_turn():
    assert timer.interleaved({"nothing": lambda: None}, 1, lambda call: 0.0, warm=0.0) == {
        "nothing": [0.0] * timer.MOST
    }


def test_after_its_budget_no_turn_begins_but_three_do():
    ticks = itertools.count()
    taken = timer.interleaved({"a": int}, 10, lambda call: 1.0, slot=1.0, budget=0.5, clock=lambda: float(next(ticks)))
    assert len(taken["a"]) == 3
    ticks = itertools.count()
    taken = timer.interleaved({"a": int}, 10, lambda call: 1.0, slot=1.0, budget=2.5, clock=lambda: float(next(ticks)))
    assert len(taken["a"]) == 5


def test_the_memory_of_a_call_is_its_peak():
    def call():
        np.empty(10**6, np.uint8)
        return np.empty(10**3, np.uint8)

    assert 10**6 <= timer.peak_bytes(call) < 10**6 + 10**4


def test_the_clock_of_the_cpu_goes_forward():
    assert timer.stopwatch("cpu")(int) > 0


class Cuda:
    """As much of CuPy as the timer touches. An event remembers how many milliseconds had passed on its stream."""

    def __init__(self):
        self.log, self.passed, self.held = [], 0.0, 100
        self.cuda = types.SimpleNamespace(
            Device=self.device,
            Event=self.event,
            get_elapsed_time=lambda start, end: end.at - start.at,
            runtime=types.SimpleNamespace(getDeviceProperties=lambda ordinal: {"l2CacheSize": 50}),
        )

    def device(self, ordinal):
        assert ordinal == 1
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def empty(self, size, dtype):
        assert (size, dtype) == (200, "uint8")
        return types.SimpleNamespace(fill=lambda value: self.work(1000, "flush"))

    def work(self, milliseconds, name):
        self.passed += milliseconds
        self.log.append(name)

    def event(self):
        event = types.SimpleNamespace(at=0.0, synchronize=lambda: self.log.append("synchronize"))
        event.record = lambda: setattr(event, "at", self.passed)
        return event

    def get_default_memory_pool(self):
        return types.SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: self.held)


def test_on_a_gpu_events_time_the_call_alone_after_a_flush(monkeypatch):
    cupy = Cuda()
    monkeypatch.setattr(backend, "module_for", lambda device: cupy)
    seconds = timer.stopwatch("cuda:1")
    assert seconds(lambda: cupy.work(8, "call")) == 0.008
    assert cupy.log == ["flush", "call", "synchronize"]


def test_on_a_gpu_memory_is_what_the_pool_grows_by(monkeypatch):
    cupy = Cuda()
    monkeypatch.setattr(backend, "module_for", lambda device: cupy)
    assert timer.peak_bytes(lambda: setattr(cupy, "held", 164), "cuda:1") == 64


# ------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_right_results_pass(dtype, direction):
    runner.validate(make_case("n2_h7w8_c4_k6_r3s2_p1_st2_g2", direction, dtype=dtype))


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
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "matmul"])
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


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_torch_takes_other_dtypes(dtype):
    pytest.importorskip("torch")
    asked = make_case(dtype=dtype)
    row = runner.measure(asked, {"torch": peers.load("torch")}, 1)
    assert set(row.peers["torch"]) == {"contiguous", "channels_last"}


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
        console.print(tables.means(found, peer))
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
    assert headers[1] - headers[0] == {"spread", "GB/s", "workspace", "extra memory"}
    assert {"problem", "ms", "GFLOP/s", "of peak", "echo ms", "ratio"} <= headers[0]


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_any_record_can_be_drawn(count, tmp_path):
    problems = [f"n1_h8w8_c4_k{k}_r3s3_p1" for k in range(1, count + 1)]
    rows = [make_row(f"suite {i % 5}", p, DIRECTIONS[i % 3], 1 + i, i % 4 == 3) for i, p in enumerate(problems)]
    plots.save(make_record(rows), tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 10_000
