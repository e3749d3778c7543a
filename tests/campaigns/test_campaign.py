"""The campaign finds what is planted, and makes it small: a checker has to be seen failing."""

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from campaigns import check, faults, reduction, running
from campaigns.configuration import Wrong

import gpuconv
from gpuconv.algorithms.cpu.strip_algorithm import StripAlgorithm
from gpuconv.algorithms.loops import Loops
from gpuconv.functions import patches
from gpuconv.functions.pooling import maxima
from gpuconv.models import files

ROOT = Path(gpuconv.__file__).parents[1]
SECONDS = 600
"""For a campaign to find what is planted, and to reduce it; a few are enough where nobody else uses the cores."""


@pytest.fixture
def campaign(monkeypatch, tmp_path, capsys):
    """Runs one, and returns what it said and the configuration that it shows."""
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))

    def run(*kinds, faults=(), seconds=SECONDS, reducing=SECONDS):
        status = running.run(running.Campaign(1, seconds, kinds, faults, reducing=reducing), tmp_path)
        said = capsys.readouterr().out
        if status == 0:
            assert said == ""
            return "", {}
        return said, ast.literal_eval(said[said.index("check(") + len("check(") : said.rindex(")")])

    return run


def test_what_is_right_passes_without_a_word(campaign):
    assert campaign(*running.KINDS, faults=("memory", "threads"), seconds=3) == ("", {})


def test_two_campaigns_of_one_seed_are_the_same():
    one, other = running.Campaign(7, 1.0), running.Campaign(8, 1.0)
    drawn = [running.draw(one, number) for number in range(50)]
    assert drawn == [running.draw(one, number) for number in range(50)]
    assert drawn != [running.draw(other, number) for number in range(50)]
    assert {configuration["kind"] for configuration in drawn} == set(running.KINDS)


def test_every_configuration_can_be_written_down():
    for number in range(200):
        configuration = running.draw(running.Campaign(3, 1.0), number)
        assert ast.literal_eval(repr(configuration)) == configuration


def test_a_wrong_result_of_one_algorithm(campaign, monkeypatch):
    forward = Loops.forward

    def wrong(self, problem, x, w, out, *epilogue):
        forward(self, problem, x, w, out, *epilogue)
        if problem.geometry.k >= 3:
            out[..., -1] += 1

    monkeypatch.setattr(Loops, "forward", wrong)
    said, small = campaign("conv")
    assert "fails: a wrong result: error" in said
    assert small.get("algorithm", "loops") == "loops"  # "auto" takes it for what is as small as this
    assert small["pass"] in ("forward", "prepared")
    assert small["k_group"] * small.get("groups", 1) <= 4
    assert (small["n"], small["c_group"], set(small["spatial"]), set(small["kernel"])) == (1, 1, {1}, {1})
    assert set(small) <= {"kind", "seed", "pass", "n", "spatial", "c_group", "k_group", "groups", "kernel", "algorithm"}
    monkeypatch.undo()
    assert check(small) == "right"


def test_a_result_that_is_not_a_number(campaign, monkeypatch):
    forward = Loops.forward

    def wrong(self, problem, x, w, out, *epilogue):
        forward(self, problem, x, w, out, *epilogue)
        if problem.dtype.kind == "f":
            out.reshape(-1)[:1] = np.nan
            out[..., :1] = np.nan

    monkeypatch.setattr(Loops, "forward", wrong)
    said, small = campaign("conv")
    assert "fails: a wrong result: error nan" in said
    assert small.get("algorithm", "loops") == "loops"  # "auto" takes it for what is as small as this


def test_an_error_that_is_not_documented(campaign, monkeypatch):
    im2col = patches.columns.im2col

    def broken(xp, x, g):
        if g.c > 4:
            raise KeyError(g.c)
        return im2col(xp, x, g)

    monkeypatch.setattr(patches.columns, "im2col", broken)
    said, small = campaign("columns")
    assert "fails: an error that is not documented, KeyError: 5" in said
    assert f"raised at {__file__}" in said
    assert (small["function"], small["c"], set(small["spatial"])) == ("im2col", 5, {1})


def test_an_argument_that_is_changed(campaign, monkeypatch):
    im2col = patches.columns.im2col

    def meddling(xp, x, g):
        x.flags.writeable = True
        x[...] += 1
        return im2col(xp, x, g)

    monkeypatch.setattr(patches.columns, "im2col", meddling)
    monkeypatch.setattr(np, "ascontiguousarray", lambda a, dtype=None: np.array(a, dtype, order="C"))
    said, small = campaign("columns")
    assert "an argument that was changed" in said or "a wrong result" in said
    assert small["function"] == "im2col"


@pytest.fixture
def _impatient(monkeypatch):
    """What is planted never rests: each second that is waited for it, in every step of the reduction, is lost."""
    monkeypatch.setattr(faults, "LOOKS", 5)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("fault", ["memory", "threads", "interrupts"])
def test_threads_that_are_left(campaign, monkeypatch, fault):
    monkeypatch.setattr(gpuconv.settings, "threads", 2)
    over = threading.Event()
    max_pool = maxima.max_pool

    def leaking(*args):
        threading.Thread(target=over.wait, daemon=True).start()
        max_pool(*args)

    monkeypatch.setattr(maxima, "max_pool", leaking)
    monkeypatch.setattr("gpuconv.functions.pooling.compiled.refusal", lambda *_: "for this test")
    try:
        said, small = campaign("pools", faults=(fault,), reducing=2)
    finally:
        over.set()
    assert "fails: threads that are left: " in said
    assert (small["function"], small["fault"]) == ("max_pool2d", fault)


@pytest.mark.usefixtures("_impatient")
def test_a_process_that_computes_at_rest(campaign, monkeypatch):
    over, started = threading.Event(), []
    max_pool = maxima.max_pool

    def spin():
        while not over.is_set():
            pass

    def busy(*args):
        if not started:
            started.append(True)
            threading.Thread(target=spin, daemon=True).start()
        max_pool(*args)

    monkeypatch.setattr(maxima, "max_pool", busy)
    monkeypatch.setattr("gpuconv.functions.pooling.compiled.refusal", lambda *_: "for this test")
    try:
        said, small = campaign("pools", faults=("memory",), reducing=2)
    finally:
        over.set()
    assert "fails: a process that computes at rest" in said
    assert small["fault"] == "memory"


def test_no_memory_that_ends_in_another_error(campaign, monkeypatch):
    strip_job = StripAlgorithm.forward

    def hiding(self, *args):
        try:
            strip_job(self, *args)
        except MemoryError as error:
            raise RuntimeError("something went wrong") from error

    monkeypatch.setattr(StripAlgorithm, "forward", hiding)
    said, small = campaign("conv", faults=("memory",))
    assert "fails: no memory ends in RuntimeError: allocation" in said
    assert small["fault"] == "memory"
    assert small["n"] == 1


@pytest.mark.parametrize("fault", ["memory", "interrupts"])
def test_a_fault_that_leaves_something_wrong(campaign, monkeypatch, fault):
    """As a buffer that is kept for the next call, and was not finished."""
    col2im, broken = patches.columns.col2im_gather, []

    def leaving(*args):
        try:
            made = col2im(*args)
        except (KeyboardInterrupt, MemoryError):
            broken.append(True)
            raise
        if broken:
            broken.clear()
            made = made + 1
        return made

    monkeypatch.setattr(patches.columns, "col2im_gather", leaving)
    said, small = campaign("columns", faults=(fault,))
    assert "fails: other bits in a later call" in said
    assert (small["function"], small["fault"]) == ("col2im", fault)


def test_calls_that_disturb_each_other(campaign, monkeypatch):
    inside, gather = [], patches.gather

    def sharing(*args):
        made = gather(*args).copy()
        inside.append(True)
        threading.Event().wait(0.002)
        made += len(inside) > 1
        inside.pop()
        args[-1][: made.size] = made.reshape(-1)
        return made

    monkeypatch.setattr(patches, "gather", sharing)
    said, small = campaign("columns", faults=("threads",))
    assert "fails: other bits in several threads" in said
    assert (small["function"], small["fault"]) == ("pad", "threads")


def test_a_save_that_loses_the_old_file(campaign, monkeypatch):
    write = files.write

    def careless(path, *content):
        Path(path).unlink(missing_ok=True)
        write(path, *content)

    monkeypatch.setattr(files, "write", careless)
    said, small = campaign("saves")
    assert "fails: the old file is gone" in said
    assert "target" not in small


def test_a_save_that_leaves_half_a_file(campaign, monkeypatch):
    def plain(path, arrays, description):
        files._safetensors("save").save_file(dict(arrays), path)

    def half(path, *content):
        whole = Path(path).with_name("whole")
        write(whole, *content)
        data = whole.read_bytes()
        whole.unlink()
        with Path(path).open("wb") as file:
            file.write(data)

    write = files.write
    monkeypatch.setattr(files, "write", half)
    said, _ = campaign("saves")
    assert "fails: " in said


def test_a_damaged_file_that_is_loaded(campaign, monkeypatch):
    monkeypatch.setattr(files, "_digest", lambda *_: "always the same")
    said, small = campaign("loads")
    assert "fails: a damaged file that was loaded" in said or "not documented" in said
    assert small["what"] == "model"
    assert len(small["damages"]) <= 3


class TestReduction:
    def test_ends_at_what_cannot_be_made_smaller(self):
        """Of a failure that takes seven samples and an option."""
        large = {"kind": "pools", "seed": 5, "function": "max_pool2d", "n": 23, "spatial": (9, 8), "c": 17,
                 "kernel": (3, 2), "stride": (2, 2), "layout": "channels_first", "dtype": "float64"}  # fmt: skip

        def label_of(configuration):
            fails = configuration["n"] >= 7 and configuration.get("layout") == "channels_first"
            return "it fails" if fails else None

        small = reduction.reduced(large, "it fails", 10.0, label_of)
        assert small == {
            "kind": "pools", "seed": 5, "function": "max_pool2d", "n": 7, "spatial": (1, 1), "c": 1, "kernel": (1, 1),
            "layout": "channels_first",
        }  # fmt: skip

    def test_does_not_take_another_failure_for_the_same(self):
        large = {
            "kind": "pools",
            "seed": 5,
            "function": "max_pool2d",
            "n": 4,
            "spatial": (9, 8),
            "c": 2,
            "kernel": (3, 2),
        }

        def label_of(configuration):
            return "this one" if configuration["n"] == 4 else "another"

        assert reduction.reduced(large, "this one", 10.0, label_of)["n"] == 4

    def test_the_lines_that_are_printed_run(self, tmp_path):
        configuration = running.draw(running.Campaign(5, 1.0, ("columns",), ()), 0)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        lines = reduction.script(configuration)
        subprocess.run([sys.executable, "-c", lines], cwd=ROOT, env=env, check=True)


def test_what_is_refused_is_no_failure():
    configuration = {
        "kind": "conv", "seed": 0, "pass": "forward", "n": 1, "spatial": (5, 5), "c_group": 2, "k_group": 2,
        "kernel": (2, 2),
    }  # fmt: skip
    assert check(configuration) == "right"
    assert check({**configuration, "algorithm": "winograd"}) == "refused"
    with pytest.raises(Wrong, match="an error that is not documented, GeometryError"):
        check({**configuration, "kernel": (9, 9)})


@pytest.mark.parametrize("how", ["os.abort()", "__import__('time').sleep(3600)"])
def test_a_process_that_crashes_or_hangs(tmp_path, how):
    """Planted by a module that Python imports as it starts."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"sys.path[:0] = {[str(ROOT / 'tests'), str(ROOT / 'tests' / 'support')]!r}\n"
        "from campaigns import running\n"
        "from gpuconv.functions import patches\n"
        "im2col = patches.columns.im2col\n"
        "def broken(xp, x, g):\n"
        f"    return im2col(xp, x, g) if g.c < 3 else {how}\n"
        "patches.columns.im2col = broken\n"
        "running.HUNG = 1.0\n"
    )
    command = [sys.executable, "tests/campaign.py", "--minutes", "0.5", "--kinds", "columns", "--loops", "numpy"]
    command += ["--faults", "--reducing", "2", "--seed", "3"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "seed 3\n" in done.stdout
    assert "numpy: the process hung or crashed" in done.stdout
    assert "'function': 'im2col'" in done.stdout


def test_the_command_is_quiet_and_counts(tmp_path):
    command = [sys.executable, "tests/campaign.py", "--minutes", "0.05", "--kinds", "columns", "--faults"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    seed, *counts = done.stdout.splitlines()
    assert seed.startswith("seed ")
    assert {line.split()[0] for line in counts} <= {"compiled", "numpy"}
    assert all("columns right" in line for line in counts)
