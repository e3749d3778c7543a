"""Tuning: asked for or absent, bounded, remembered, shared by processes, and never in the way of a call."""

import contextlib
import datetime as dt
import json
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import cupy_double
import numpy as np
import pytest

import gpuconv
from gpuconv import autotune, heuristics, settings
from gpuconv.algorithms import ALGORITHMS, Problem
from gpuconv.cuda import stopwatch
from gpuconv.planning import choose
from gpuconv.support import disk

SMALL = "n1_h8w8_c4_k4_r3s3_p1"
LARGE = "n8_h56w56_c64_k64_r3s3_p1"
BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The file of a cache of its own, in a folder that is not there yet; nothing remembered from other tests."""
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "_TABLE", fresh_table())
    autotune._memory.forget()
    yield tmp_path / "cache" / "tuned.json"
    autotune._memory.forget()


def fresh_table():
    """As a new process has it: with no warning given yet."""
    table = autotune._TABLE
    return disk.JsonCache(table._name, table._version, table._decode, table._encode)


@pytest.fixture
def autotuning(monkeypatch):
    monkeypatch.setattr(settings, "autotune", True)


class Stopwatch:
    """In place of the clock: each algorithm takes what it is told to; records who ran, and for how long in all."""

    def __init__(self, monkeypatch, seconds, otherwise=1e-3):
        self.seconds, self.otherwise = seconds, otherwise
        self.now, self.ran = 0.0, []
        monkeypatch.setattr(autotune, "run", self.run)
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: self.now)

    def run(self, algorithm, problem, arrays):
        self.ran.append(algorithm.name)
        self.now += self.seconds.get(algorithm.name, self.otherwise)


@pytest.fixture
def level(monkeypatch):
    """The heuristics expect the same of all, so that only the stopwatch decides, in the order of the list."""
    monkeypatch.setattr(heuristics, "seconds", lambda problem, algorithm: 1.0)


def problem(text=LARGE, **more):
    return Problem(gpuconv.ConvGeometry.parse(text), np.dtype("float32"), max_workspace=2**28, **more)


def arrays(text=SMALL):
    g = gpuconv.ConvGeometry.parse(text)
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in (g.x_shape, g.w_shape)]


def names(*wanted):
    return [BY_NAME[name] for name in wanted]


class TestOptingIn:
    def test_off_means_untouched(self, monkeypatch, cache):
        watch = Stopwatch(monkeypatch, {})
        x, w = arrays()
        before = str(gpuconv.explain(x, w, pad=1))
        gpuconv.conv2d(x, w, pad=1)
        assert str(gpuconv.explain(x, w, pad=1)) == before
        assert not watch.ran
        assert not cache.parent.exists()

    def test_importing_writes_nothing(self, cache):
        subprocess.run([sys.executable, "-c", "import gpuconv"], check=True)
        assert not cache.parent.exists()

    @pytest.mark.usefixtures("autotuning", "level")
    def test_a_first_call_tunes_and_the_next_does_not(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {"winograd": 1e-5})
        x, w = arrays()
        assert gpuconv.explain(x, w, pad=1).seconds is None  # explaining runs nothing
        gpuconv.conv2d(x, w, pad=1)
        assert {"winograd", "gemm"} <= set(watch.ran)
        watch.ran.clear()
        gpuconv.conv2d(x, w, pad=1)
        assert gpuconv.explain(x, w, pad=1).chosen == "winograd"
        assert not watch.ran

    @pytest.mark.usefixtures("level")
    @pytest.mark.parametrize("fastest", ["winograd", "gemm"])
    def test_the_fastest_is_what_runs(self, monkeypatch, fastest):
        x, w = arrays()
        want = {name: gpuconv.conv2d(x, w, pad=1, algorithm=name).tobytes() for name in ("winograd", "gemm")}
        assert want["winograd"] != want["gemm"]
        with monkeypatch.context() as patch:
            Stopwatch(patch, {fastest: 1e-5})
            gpuconv.warmup(SMALL, directions="forward", tune=True)
        assert gpuconv.conv2d(x, w, pad=1).tobytes() == want[fastest]

    @pytest.mark.usefixtures("level")
    def test_what_was_tuned_is_not_used_by_a_process_that_does_not_ask(self, monkeypatch):
        heuristic = gpuconv.plan(SMALL).chosen
        possible = [c.name for c in gpuconv.plan(SMALL).candidates if c.status == "possible" and "auto" not in c.note]
        other = next(name for name in possible if name != "loops")
        Stopwatch(monkeypatch, {other: 1e-5})
        gpuconv.warmup(SMALL, tune=True)
        assert gpuconv.plan(SMALL).chosen == other  # warmed up in this process
        autotune._memory.forget()  # as in the next process
        assert gpuconv.plan(SMALL).chosen == heuristic
        monkeypatch.setattr(settings, "autotune", True)
        assert gpuconv.plan(SMALL).chosen == other
        monkeypatch.setattr(settings, "autotune", False)
        assert gpuconv.plan(SMALL).chosen == heuristic

    @pytest.mark.usefixtures("autotuning")
    def test_a_named_algorithm_is_not_tuned(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        x, w = arrays()
        gpuconv.conv2d(x, w, pad=1, algorithm="gemm")
        assert not watch.ran

    @pytest.mark.usefixtures("autotuning")
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
    @pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
    def test_every_dtype_and_direction(self, monkeypatch, dtype, direction):
        monkeypatch.setattr(settings, "autotune_budget", 0.0)
        (plan,) = gpuconv.warmup(SMALL, dtype, directions=direction, tune=True)
        assert plan.seconds > 0

    @pytest.mark.usefixtures("autotuning")
    def test_nothing_to_compute_is_nothing_to_tune(self, cache):
        assert gpuconv.conv2d(np.ones((0, 8, 8, 4)), np.ones((3, 3, 4, 4))).shape == (0, 6, 6, 4)
        assert not cache.exists()

    @pytest.mark.usefixtures("autotuning")
    def test_no_memory_to_tune_in_leaves_the_choice_to_the_heuristics(self, monkeypatch, cache):
        def refuse(problem):
            raise MemoryError

        x, w = arrays()
        want = gpuconv.conv2d(x, w, pad=1, algorithm=gpuconv.plan(SMALL).chosen)
        monkeypatch.setattr(autotune, "operands", refuse)
        assert gpuconv.conv2d(x, w, pad=1).tobytes() == want.tobytes()
        assert not cache.exists()


class TestTiming:
    @pytest.mark.usefixtures("level")
    def test_the_median_decides(self, monkeypatch):
        Stopwatch(monkeypatch, {"gemm": 2e-3, "winograd": 1e-3})
        tuned = autotune.tune(problem(), names("gemm", "winograd"))
        assert tuned.fastest == "winograd"
        assert tuned.seconds == {"gemm": pytest.approx(2e-3), "winograd": pytest.approx(1e-3)}
        assert tuned.date == dt.datetime.now(dt.timezone.utc).date().isoformat()

    @pytest.mark.usefixtures("level")
    def test_turns_alternate(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        autotune.tune(problem(), names("gemm", "winograd"))
        assert watch.ran == ["gemm"] * 2 + ["winograd"] * 2 + ["gemm", "winograd"] * (autotune.TURNS - 1)

    @pytest.mark.usefixtures("level")
    def test_who_is_far_behind_is_out_after_two_runs(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {"gemm": 1e-3, "winograd": 1.01e-3 * autotune.BEHIND})
        tuned = autotune.tune(problem(), names("winograd", "gemm"))
        assert tuned.seconds["winograd"] is None
        assert watch.ran.count("winograd") == 2

    def test_who_is_expected_to_be_hopeless_is_not_run(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        expected = {"winograd": 1.0, "gemm": 1.01 * autotune.HOPELESS}
        monkeypatch.setattr(heuristics, "seconds", lambda problem, algorithm: expected[algorithm.name])
        assert autotune.tune(problem(), names("winograd", "gemm")).seconds["gemm"] is None
        assert set(watch.ran) == {"winograd"}

    @pytest.mark.usefixtures("level")
    def test_the_reference_runs_only_when_it_is_alone(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        assert autotune.tune(problem(), names("gemm", "loops")).seconds["loops"] is None
        assert "loops" not in watch.ran
        assert autotune.tune(problem(), names("loops")).fastest == "loops"

    @pytest.mark.usefixtures("level")
    @pytest.mark.parametrize("run", [1e-4, 0.03, 0.2, 0.6, 5.0])
    def test_the_budget_holds(self, monkeypatch, run):
        """At most the budget, or two runs of the first where they alone take more."""
        watch = Stopwatch(monkeypatch, {}, otherwise=run)
        monkeypatch.setattr(settings, "autotune_budget", 0.5)
        tuned = autotune.tune(problem(), names("winograd", "gemm", "loops"))
        assert watch.now <= max(0.5, 2 * run) + 1e-9
        assert tuned.seconds["winograd"] == pytest.approx(run)

    @pytest.mark.usefixtures("level")
    def test_who_fails_is_out(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})

        def run(algorithm, problem, arrays):
            if algorithm.name == "winograd":
                raise MemoryError
            watch.run(algorithm, problem, arrays)

        monkeypatch.setattr(autotune, "run", run)
        tuned = autotune.tune(problem(), names("winograd", "gemm"))
        assert (tuned.seconds["winograd"], tuned.fastest) == (None, "gemm")
        assert autotune.tune(problem(), names("winograd")) is None

    @pytest.mark.usefixtures("level")
    def test_a_kernel_that_fails_is_told_of(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})

        def run(algorithm, problem, arrays):
            if algorithm.name == "winograd":
                raise gpuconv.KernelError("refused by the device")
            watch.run(algorithm, problem, arrays)

        monkeypatch.setattr(autotune, "run", run)
        with pytest.warns(RuntimeWarning, match=r"winograd fails for the forward of n8_.* not tuned: refused"):
            tuned = autotune.tune(problem(), names("winograd", "gemm"))
        assert (tuned.seconds["winograd"], tuned.fastest) == (None, "gemm")

    @pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
    def test_the_arrays_are_those_of_the_problem(self, direction):
        first, second, out = autotune.operands(problem("n1_h7w6_c4_k5_r3s2", direction=direction))
        shapes = {"x": (1, 7, 6, 4), "w": (3, 2, 4, 5), "y": (1, 5, 5, 5)}
        order = {"forward": "xwy", "input_grad": "ywx", "weight_grad": "xyw"}[direction]
        assert [a.shape for a in (first, second, out)] == [shapes[letter] for letter in order]
        assert all(a.flags.c_contiguous and a.dtype == np.float32 for a in (first, second, out))
        assert np.ptp(first) > 0


class TestTimingOnADevice:
    """Algorithms that are so many kernels of so many seconds; Python takes 20 us to enqueue each of them."""

    @pytest.fixture
    def kernels(self, double, monkeypatch):
        """Tells what each algorithm launches, and returns how often each has run, on the model's clock."""
        pace, queue = cupy_double.machine.pace, cupy_double.machine.null[0]
        monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**10)
        for module in (autotune, stopwatch):
            monkeypatch.setattr(module.time, "perf_counter", lambda: pace.now)
        launched, ran = {}, []

        def run(algorithm, problem, arrays):
            ran.append(algorithm.name)
            for _ in range(launched[algorithm.name][0]):
                cupy_double.machine.submit(queue, [], [], algorithm.name)

        def take(**kernels):
            launched.update(kernels)
            costs = {name: seconds for name, (_, seconds) in kernels.items()}
            stack.enter_context(pace.at(asking=20e-6, costs={"fill": 60e-6, **costs}))
            return ran

        monkeypatch.setattr(autotune, "run", run)
        with contextlib.ExitStack() as stack:
            yield take

    @pytest.mark.usefixtures("level")
    def test_python_is_not_tuned(self, kernels):
        """Three kernels of 5 us beat one of 30 us, though a host that enqueues and waits takes longer over them."""
        kernels(gemm=(3, 5e-6), direct=(1, 30e-6))
        pace, asked = cupy_double.machine.pace, problem(device="cuda:0")
        walls = []
        for name in ("gemm", "direct"):
            begin = pace.now
            autotune.run(BY_NAME[name], asked, None)
            cupy_double.machine.wait_for(cupy_double.machine.everything(0))
            walls.append(pace.now - begin)
        assert walls == [pytest.approx(65e-6), pytest.approx(50e-6)]  # so a wall clock would take direct
        tuned = autotune.tune(asked, names("direct", "gemm"))
        assert tuned.seconds == {"gemm": pytest.approx(15e-6), "direct": pytest.approx(30e-6)}
        assert tuned.fastest == "gemm"

    @pytest.mark.usefixtures("level")
    def test_each_runs_several_times_in_its_turn(self, kernels):
        ran = kernels(gemm=(1, 5e-6), direct=(1, 6e-6))
        autotune.tune(problem(device="cuda:0"), names("direct", "gemm"))
        turn = [name for name in ("direct", "gemm") for _ in range(autotune.RUNS)]
        assert ran == ["direct", *turn[:3], "gemm", *turn[3:]] + turn * (autotune.TURNS - 1)

    @pytest.mark.usefixtures("level")
    def test_the_budget_is_that_of_the_wall_clock(self, kernels, monkeypatch):
        """The fills before a run count as well."""
        monkeypatch.setattr(settings, "autotune_budget", 4e-3)
        ran = kernels(gemm=(1, 1e-6), direct=(1, 1e-6))
        pace = cupy_double.machine.pace
        autotune.tune(problem(device="cuda:0"), names("direct"))  # draws and sends the operands
        begin = pace.now
        autotune.tune(problem(device="cuda:0"), names("direct", "gemm"))
        assert pace.now - begin < 5e-3
        assert ran

    def test_no_memory_for_the_buffer_leaves_the_choice_to_the_heuristics(self, kernels, monkeypatch):
        kernels(gemm=(1, 1e-6))
        monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**40)
        assert autotune.tune(problem(SMALL, device="cuda:0"), names("gemm")) is None


class TestExplain:
    def test_the_text_is_golden(self, monkeypatch):
        tuned = autotune.Tuned("2026-11-22", {"winograd": 2.1e-5, "gemm": 3e-5, "loops": None})
        monkeypatch.setattr(autotune, "consult", lambda *_: tuned)
        autotune._memory.forget()
        p = gpuconv.plan(LARGE)
        head, chosen, *rest = str(p).splitlines()
        assert head == f"{LARGE}  float32 strict  cpu  forward  1.85 GFLOP"
        assert chosen.split(maxsplit=2) == ["winograd", "chosen", "tuned 2026-11-22: 21 us, 88.1 TFLOP/s"]
        assert any("gemm" in line and "possible" in line and "workspace" in line for line in rest)
        assert (p.chosen, p.seconds) == ("winograd", 2.1e-5)
        assert [c.seconds for c in p.candidates if c.name in ("gemm", "loops")] == [3e-5, None]

    def test_the_workspace_stays_an_attribute(self, monkeypatch):
        Stopwatch(monkeypatch, {})
        (p,) = gpuconv.warmup(SMALL, directions="forward", tune=True)
        assert p.workspace == gpuconv.plan(SMALL, algorithm=p.chosen).workspace


GOOD = {"date": "2026-11-22", "seconds": {"gemm": 1e-3}}
DAMAGED = {
    "empty": "",
    "garbage": "\x00\x01 not json",
    "truncated": '{"version": 1, "entries": {"a": {"da',
    "nested": "[" * 100_000,
    "a list": "[]",
    "a number": "1",
    "no version": '{"entries": {}}',
    "another version": '{"version": 2, "entries": {}}',
    "no entries": '{"version": 1}',
    "entries that are a list": '{"version": 1, "entries": []}',
    **{
        f"entry {entry!r}": json.dumps({"version": 1, "entries": {"good": GOOD, "bad": entry}})
        for entry in [
            None,
            1,
            "x",
            [],
            {},
            {"date": "2026-11-22"},
            {"date": "yesterday", "seconds": {"gemm": 1e-3}},
            {"date": 20261122, "seconds": {"gemm": 1e-3}},
            {"date": "2026-11-22", "seconds": 1e-3},
            {"date": "2026-11-22", "seconds": {}},
            {"date": "2026-11-22", "seconds": {"gemm": None}},
            {"date": "2026-11-22", "seconds": {"gemm": "fast"}},
            {"date": "2026-11-22", "seconds": {"gemm": -1.0}},
            {"date": "2026-11-22", "seconds": {"gemm": float("nan")}},
            {"date": "2026-11-22", "seconds": {"gemm": float("inf")}},
        ]
    },
}


class TestTheFile:
    def test_keeps_what_was_found(self, monkeypatch, cache):
        Stopwatch(monkeypatch, {"direct": 2.5e-3}, otherwise=1.0)
        gpuconv.warmup(SMALL, directions="forward", tune=True)
        (entry,) = autotune.entries().values()
        assert entry.seconds["direct"] == pytest.approx(2.5e-3)
        content = json.loads(cache.read_text())
        (key,) = content["entries"]
        for part in (gpuconv.__version__, SMALL, "float32", "strict", "forward", "contiguous", "threads"):
            assert part in key
        assert [path.name for path in cache.parent.iterdir() if path.suffix == ".tmp"] == []

    @pytest.mark.usefixtures("autotuning", "level")
    def test_another_process_takes_it_from_there(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {"winograd": 1e-5})
        gpuconv.warmup(SMALL, directions="forward")
        code = f"import gpuconv; gpuconv.settings.autotune = True; print(gpuconv.plan({SMALL!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(gpuconv.plan(SMALL))
        assert "tuned" in done.stdout
        assert watch.ran

    @pytest.mark.usefixtures("autotuning")
    @pytest.mark.parametrize(
        "change",
        [
            {"dtype": "float64"},
            {"precision": "fast"},
            {"direction": "input_grad"},
            {"max_workspace": 2**20},
        ],
    )
    def test_is_about_one_problem(self, monkeypatch, change):
        Stopwatch(monkeypatch, {})
        gpuconv.warmup(SMALL, directions="forward", tune=True)
        assert gpuconv.plan(SMALL).seconds
        assert gpuconv.plan(SMALL, **change).seconds is None

    @pytest.mark.usefixtures("autotuning")
    def test_depends_on_the_threads(self, monkeypatch):
        Stopwatch(monkeypatch, {})
        gpuconv.warmup(SMALL, directions="forward", tune=True)
        monkeypatch.setattr(settings, "threads", 7)
        assert gpuconv.plan(SMALL).seconds is None

    @pytest.mark.usefixtures("autotuning", "level")
    def test_other_candidates_are_tuned_anew(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        autotune.consult(problem(), names("gemm"), True)
        watch.ran.clear()
        assert autotune.consult(problem(), names("gemm", "winograd"), False) is None
        assert autotune.consult(problem(), names("gemm", "winograd"), True)
        assert "winograd" in watch.ran

    def test_clear_forgets(self, monkeypatch, cache):
        Stopwatch(monkeypatch, {})
        autotune.clear()  # nothing there yet
        gpuconv.warmup(SMALL, tune=True)
        assert len(autotune.entries()) == 3
        autotune.clear()
        assert not autotune.entries()
        assert not cache.exists()
        assert gpuconv.plan(SMALL).seconds is None

    @pytest.mark.usefixtures("autotuning")
    @pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
    def test_a_damaged_one_is_ignored_with_one_warning_and_replaced(self, monkeypatch, cache, text):
        Stopwatch(monkeypatch, {})
        cache.parent.mkdir()
        cache.write_text(text)
        x, w = arrays()
        with pytest.warns(RuntimeWarning, match=r"gpuconv: .*tuned\.json is damaged or foreign, and is ignored"):
            gpuconv.explain(x, w, pad=1)
        gpuconv.conv2d(x, w, pad=1)  # no second warning: it would be an error here
        assert len(autotune.entries()) == 1

    @pytest.mark.usefixtures("autotuning")
    def test_bytes_that_are_no_text(self, cache):
        cache.parent.mkdir()
        cache.write_bytes(b"\xff\xfe\x00")
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert autotune.entries() == {}

    @pytest.mark.usefixtures("autotuning")
    def test_a_folder_that_cannot_be_made_is_no_error(self, monkeypatch, tmp_path):
        Stopwatch(monkeypatch, {})
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "file" / "cache"))
        x, w = arrays()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = gpuconv.conv2d(x, w, pad=1)
            gpuconv.conv2d(x, w, pad=1)
        assert y.shape == (1, 8, 8, 4)
        assert gpuconv.plan(SMALL).seconds  # remembered in this process at least
        assert {str(warning.message).split(", and")[0].rpartition("tuned.json ")[2] for warning in caught} <= {
            "cannot be read",
            "cannot be written",
        }
        assert any("cannot be written" in str(warning.message) for warning in caught)

    @pytest.mark.usefixtures("autotuning")
    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, monkeypatch, cache):
        Stopwatch(monkeypatch, {})
        cache.parent.mkdir(mode=0o500)
        with pytest.warns(RuntimeWarning, match=r"cannot be written, and is ignored"):
            gpuconv.conv2d(*arrays(), pad=1)

    @pytest.mark.usefixtures("autotuning")
    def test_a_replacement_that_fails_leaves_the_old_one(self, monkeypatch, cache):
        Stopwatch(monkeypatch, {})
        gpuconv.warmup(SMALL, directions="forward")
        before = cache.read_text()

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(pathlib.Path, "replace", fail)
        with pytest.warns(RuntimeWarning, match="disk full"):
            gpuconv.warmup(SMALL, directions="input_grad")
        assert cache.read_text() == before

    @pytest.mark.parametrize(
        ("platform", "variables", "folder"),
        [
            ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/gpuconv"),
            ("linux", {}, "/home/u/.cache/gpuconv"),
            ("darwin", {}, "/home/u/Library/Caches/gpuconv"),
            ("win32", {"LOCALAPPDATA": "/l"}, "/l/gpuconv"),
            ("win32", {}, "/home/u/AppData/Local/gpuconv"),
            ("linux", {"GPUCONV_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/x"}, "/mine"),
        ],
    )
    def test_its_folder(self, monkeypatch, platform, variables, folder):
        for name in ("GPUCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("/home/u"))
        assert disk.cache_dir() == pathlib.Path(folder)


class TestSeveralAtOnce:
    def test_two_processes_lose_nothing(self, cache):
        """Each tunes other problems while the other does; every entry of both is there in the end."""
        code = (
            "import sys, gpuconv; gpuconv.settings.autotune_budget = 0\n"
            "sys.stdin.readline()\n"
            "for c in range(1, 13): gpuconv.warmup(f'n1_w8_c{c}_k{sys.argv[1]}_s1', tune=True)"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", code, k], stdin=subprocess.PIPE, text=True) for k in ("1", "2")
        ]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=120)
            assert process.returncode == 0
        assert len(autotune.entries()) == 2 * 12 * 3

    def test_two_writers_merge(self):
        """Interleaved on purpose: both have read before either writes."""
        first, second = fresh_table(), fresh_table()
        tuned = autotune.Tuned("2026-11-22", {"gemm": 1e-3})
        assert first.load() == second.load() == {}
        first.store({"a": tuned})
        second.store({"b": tuned})
        assert set(first.load()) == {"a", "b"}

    @pytest.mark.usefixtures("autotuning", "level")
    def test_threads_tune_a_problem_once(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        together = threading.Barrier(4)

        def call():
            together.wait()
            choose(problem(SMALL), "auto", "test")

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert watch.ran.count("gemm") == 1 + autotune.TURNS


class TestWarmup:
    def test_returns_the_plans(self):
        plans = gpuconv.warmup([SMALL, "n2_w9_c3_k5_s1"], "float64")
        assert [(str(p.geometry), p.direction) for p in plans] == [
            (text, direction)
            for text in (SMALL, "n2_w9_c3_k5_s1")
            for direction in ("forward", "input_grad", "weight_grad")
        ]
        assert plans[0] == gpuconv.plan(SMALL, "float64")
        assert all(p.seconds is None for p in plans)

    def test_takes_one_or_several(self):
        g = gpuconv.ConvGeometry.parse(SMALL)
        assert gpuconv.warmup(g, directions="forward") == gpuconv.warmup([SMALL], directions=["forward"])
        assert gpuconv.warmup([]) == []

    def test_runs_what_the_calls_will_run(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        (p,) = gpuconv.warmup(LARGE, directions="forward")
        assert watch.ran == [p.chosen]

    def test_everything_is_checked_before_anything_runs(self, monkeypatch):
        watch = Stopwatch(monkeypatch, {})
        with pytest.raises(gpuconv.GeometryError, match="'resnet' is not a problem string"):
            gpuconv.warmup([SMALL, "resnet"])
        with pytest.raises(ValueError, match=r"^warmup: direction='backward'"):
            gpuconv.warmup(SMALL, directions=["forward", "backward"])
        with pytest.raises(gpuconv.DTypeError, match=r"^warmup: dtype is int32"):
            gpuconv.warmup(SMALL, "int32")
        assert not watch.ran

    def test_out_of_memory_says_what_was_asked_for(self, monkeypatch):
        def refuse(problem):
            raise MemoryError("no")

        monkeypatch.setattr(autotune, "operands", refuse)
        with pytest.raises(
            gpuconv.WorkspaceError, match=r"^warmup: out of memory on cpu: no\. The arrays of n1_.* take"
        ):
            gpuconv.warmup(SMALL)

    def test_an_empty_problem(self):
        assert len(gpuconv.warmup("n0_h8w8_c4_k4_r3s3_p1", tune=True)) == 3
