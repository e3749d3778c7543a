"""`gpuconv warmup`: loops compiled ahead by several processes, and what is said of a compilation that takes long."""

import io
import re
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from gpuconv.cli import app
from gpuconv.cpu import parallel_loops
from gpuconv.support import shielded
from gpuconv.support.installing import how_to_add
from gpuconv.tools import compiled_loops, worker_processes
from gpuconv.tools.compiled_loops import Job, Outcome

pytest.importorskip("numba")

from gpuconv.simd import compiled_cache, exchange  # they import Numba

POOL = Job("n1_h64w64_c16_k16_r2s2_st2_g16", "input_grad", "float32", "pool")


def warmup(*words):
    return CliRunner().invoke(app, ["warmup", *words])


def test_the_usual_jobs_are_those_of_every_algorithm_in_the_dtypes_asked_for():
    jobs = compiled_loops.usual(("float64",))
    assert {job.dtype for job in jobs} == {"float64"}
    assert {job.algorithm for job in jobs} == {"direct", "winograd", "winograd_4x4", "pool", "copy"}
    pooling = compiled_loops.of_problems(["max_pool1d_n1_w9_c4_s3"], ["float32"])
    assert [job.direction for job in pooling] == ["forward", "input_grad"]
    assert len(compiled_loops.usual()) == 2 * len(jobs)
    of_one = compiled_loops.of_problems(["n1_h8w8_c4_k4_r3s3"], ("float32",))
    assert [job.direction for job in of_one] == ["forward", "input_grad", "weight_grad"]


def test_bfloat16_has_the_loops_of_amx_where_there_is_one(monkeypatch):
    monkeypatch.setattr(compiled_loops, "why_no_amx", lambda: None)
    assert compiled_loops.served() == ("float32", "float64", "bfloat16")
    compiled_loops.check_dtype("bfloat16")
    jobs = compiled_loops.usual(("bfloat16",))
    assert [(job.algorithm, job.direction) for job in jobs] == [("amx", "forward"), ("amx", "weight_grad")]
    monkeypatch.setattr(compiled_loops, "why_no_amx", lambda: "needs a better CPU")
    result = warmup("--dtype", "bfloat16")
    assert result.exit_code == 2
    assert "has no loops on this machine: it needs a better CPU. Choose among float32, float64." in result.stderr


def test_copies_are_compiled():
    (job,) = (job for job in compiled_loops.usual(("float32",)) if job.algorithm == "copy")
    assert compiled_loops.compile_one(job).error == ""
    assert any(exchange.copy is loop for loop, _ in parallel_loops._functions)


def test_what_is_compiled_is_found_by_the_next_command(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_loops, "usual", lambda dtypes: [POOL])
    first = warmup()
    assert first.exit_code == 0, first.output
    kept = sorted(path.name for path in tmp_path.glob("*/*.kept"))
    assert any("avg_pool_grad" in name for name in kept)
    assert f"{len(kept)} loops compiled" in first.output
    again = warmup("--dtype", "float32")
    assert again.exit_code == 0, again.output
    assert again.output.startswith("0 loops compiled in ")
    found = int(re.search(r"and (\d+) found that were there", again.output)[1])
    assert 0 < found <= len(kept)  # what only the compilation of others needs is not looked for again
    assert sorted(path.name for path in tmp_path.glob("*/*.kept")) == kept


def test_a_job_that_fails_is_named_and_the_others_are_done(monkeypatch):
    jobs = [Job(POOL.problem, "forward", "float32", "abacus"), POOL]
    monkeypatch.setattr(compiled_loops, "usual", lambda dtypes: jobs)
    monkeypatch.setattr(
        worker_processes, "results", lambda function, tasks, count: ((i, function(*t)) for i, t in enumerate(tasks))
    )
    monkeypatch.setattr(compiled_cache, "announces", True)
    result = warmup()
    assert result.exit_code == 1
    assert "gpuconv warmup: abacus forward float32: AlgorithmError: " in result.stderr
    assert "loops compiled in" in result.stdout


def test_a_process_that_ends_is_a_failure(monkeypatch):
    monkeypatch.setattr(
        worker_processes, "results", lambda function, tasks, count: ((i, worker_processes.Ended(-9)) for i in range(1))
    )
    (outcome,) = compiled_loops.compile_all([POOL], 1)
    assert outcome == Outcome(POOL, error="the process has ended with status -9")


def test_a_warning_is_a_failure_because_nothing_was_kept(monkeypatch):
    monkeypatch.setattr(compiled_loops, "_run", lambda job: compiled_cache._warn(OSError(28, "disk full")))
    monkeypatch.setattr(compiled_cache, "_warned", [])
    monkeypatch.setattr(compiled_cache, "announces", True)
    assert "disk full" in compiled_loops.compile_one(POOL).error


def test_wrong_words_are_refused():
    for words, message in {
        ("--dtype", "float16"): "dtype='float16' has no loops. Choose among float32, float64",
        ("--problem", "n1"): "is not a problem string",
    }.items():
        result = warmup(*words)
        assert result.exit_code == 2
        assert message in result.output


def test_without_numba_it_says_what_is_missing():
    code = "import sys; sys.modules['numba'] = None; from gpuconv.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "warmup"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpuconv warmup: needs Numba on the CPU: {how_to_add('cpu')}\n"


# ------------------------------------------------------------------------------------------------ a long compilation


@pytest.mark.parametrize(("seconds", "said"), [(0.0, []), (0.4, [(0.4,)])])
def test_a_run_that_takes_long_is_noticed_once(monkeypatch, seconds, said):
    monkeypatch.setattr(shielded, "NOTICED", 0.15)
    notices = []
    assert shielded.shielded_with_notice(lambda *words: notices.append(words), time.sleep, seconds) is None
    assert notices == said


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_and_no_file_is_told_of_a_compilation(monkeypatch, tmp_path, stream):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))  # where an earlier run has left nothing
    monkeypatch.setattr(shielded, "NOTICED", 0.0)
    monkeypatch.setattr(shielded, "PATIENCE", 0.001)
    monkeypatch.setattr(sys, "stderr", stream())

    @compiled_cache.kept
    def twice_and_more(x):
        return 2 * x + 1

    compiled_cache._loops.pop()
    monkeypatch.setattr(compiled_cache, "announces", True)
    assert twice_and_more(3) == 7
    text = sys.stderr.getvalue()
    assert text == "" if stream is io.StringIO else text.startswith("gpuconv: compiling the loop 'twice_and_more'")


def test_nobody_is_told_where_the_command_shows_how_far_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(compiled_cache, "announces", False)
    compiled_cache._announce("some_loop")
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(compiled_cache, "announces", True)
    compiled_cache._announce("some_loop")
