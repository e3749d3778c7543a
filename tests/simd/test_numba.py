"""Numba that is installed and cannot be used: NumPy serves instead, one warning says why, no call fails."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from calls import ALGORITHM_NAMES

import gpuconv

ROOT = Path(gpuconv.__file__).parents[1]

# What stands in place of Numba, or of what it needs, and what the warning must say.
UNUSABLE = {
    "too old for NumPy": (
        {"numba": 'raise ImportError("Numba needs NumPy 2.3 or less. Got NumPy 2.4.")'},
        "Numba cannot be imported: ImportError: Numba needs NumPy 2.3 or less. Got NumPy 2.4.",
    ),
    "an error of another kind": (
        {"numba": 'raise AttributeError("module numpy has no attribute trapz")'},
        "Numba cannot be imported: AttributeError: module numpy has no attribute trapz",
    ),
    "an LLVM that does not load": (
        {"llvmlite": 'raise OSError("Could not find/load shared object file")'},
        "Numba cannot be imported: OSError: Could not find/load shared object file",
    ),
    "without its LLVM": (
        {"llvmlite": "raise ModuleNotFoundError(\"No module named 'llvmlite'\", name='llvmlite')"},
        "Numba cannot be imported: ModuleNotFoundError: No module named 'llvmlite'",
    ),
    "an empty folder of that name": ({"numba": ""}, "Numba cannot be imported: AttributeError: "),
    "switched off": ({}, "Numba's compiler is switched off by NUMBA_DISABLE_JIT"),
}

PRELUDE = """
import sys, warnings
import numpy as np, gpuconv
x, w = np.ones((2, 16, 16, 16), "f4"), np.ones((3, 3, 16, 16), "f4")
seen = []
warnings.showwarning = lambda message, category, *_: seen.append((category.__name__, str(message)))
warnings.simplefilter("always")
assert "numba" not in sys.modules
"""

EVERY_FUNCTION = """
dy = np.ones((2, 14, 14, 16), "f4")
for _ in range(2):
    assert (gpuconv.conv2d(x, w) == 144).all()
    assert gpuconv.conv2d_input_grad(dy, w, x.shape).max() == 144
    assert (gpuconv.conv2d_weight_grad(x, dy, (3, 3)) == 2 * 14 * 14).all()
    assert (gpuconv.conv2d(x, w[:, :, :1], groups=16) == 9).all()
    assert (gpuconv.conv2d_input_grad(dy.astype("f2"), w.astype("f2"), dy.shape, pad=1, pad_mode="reflect").max() > 0)
    assert (gpuconv.max_pool2d(np.ones((2, 64, 64, 32), "f4"), 2) == 1).all()
"""


def run(program, folder, names, **more):
    """Run a program with modules of these names before all others. What it prints."""
    for name, text in names.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **more},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=UNUSABLE)
def unusable(request, tmp_path):
    """Runs programs where Numba cannot be used, and what they must be told."""
    names, words = UNUSABLE[request.param]
    more = {} if names else {"NUMBA_DISABLE_JIT": "1"}
    return lambda program: run(program, tmp_path, names, **more), words


def test_every_function_runs_on_numpy_and_one_warning_says_why(unusable):
    run_program, words = unusable
    printed = run_program(PRELUDE + EVERY_FUNCTION + "print(*seen)")
    assert printed.count("RuntimeWarning") == 1, printed
    assert words in printed.replace("\\'", "'")
    assert "run on NumPy" in printed


def test_what_is_compiled_refuses_in_the_same_words_and_explain_knows(unusable):
    run_program, words = unusable
    printed = run_program(
        PRELUDE
        + """
plan = gpuconv.explain(x, w)
assert plan.chosen == gpuconv.plan(plan.geometry).chosen != "direct"
print([c.note for c in plan.candidates if c.name == "direct"][0])
try:
    gpuconv.conv2d(x, w, algorithm="direct")
except gpuconv.AlgorithmError as error:
    print(error)
"""
    )
    refusal, error = printed.splitlines()
    assert words in refusal
    assert words in error


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_no_algorithm_fails_but_by_refusing(tmp_path, name):
    names, _ = UNUSABLE["too old for NumPy"]
    run(
        PRELUDE
        + f"""
for direction in ("forward", "input_grad", "weight_grad"):
    try:
        gpuconv.warmup("n1_h9w9_c8_k8_r3s3_p1", directions=direction)
        arrays = (x, w) if direction == "forward" else (np.ones((2, 14, 14, 16), "f4"), w, x.shape)
        call = gpuconv.conv2d if direction == "forward" else gpuconv.conv2d_input_grad
        call(*arrays, algorithm={name!r}, precision="fast")
    except gpuconv.AlgorithmError as error:
        assert {name!r} in ("direct", "wgmma", "implicit_gemm", "amx", "depthwise"), error
""",
        tmp_path,
        names,
    )


def test_where_warnings_are_errors_one_call_fails_and_the_next_is_right(tmp_path):
    names, _ = UNUSABLE["too old for NumPy"]
    printed = run(
        PRELUDE
        + """
warnings.simplefilter("error")
for _ in range(2):
    try:
        print((gpuconv.conv2d(x, w) == 144).all())
    except RuntimeWarning as warning:
        print("warned")
""",
        tmp_path,
        names,
    )
    assert printed.split() == ["warned", "True"]


def test_numba_that_is_not_installed_is_nothing_to_warn_of(tmp_path):
    program = PRELUDE.replace('assert "numba" not in sys.modules', "sys.modules['numba'] = None") + EVERY_FUNCTION
    assert run(program + "print(seen)", tmp_path, {}) == "[]\n"


def test_info_names_a_numba_that_is_not_used(tmp_path):
    names, words = UNUSABLE["too old for NumPy"]
    assert words in run("from gpuconv.tools import machine; print(machine.versions()['numba'])", tmp_path, names)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timed signals here")
@pytest.mark.parametrize("call", ["conv2d(x, w)", "max_pool2d(np.ones((1, 64, 64, 32), 'f4'), 2)", "explain(x, w)"])
def test_an_interrupted_import_is_whole_at_the_next_call(tmp_path, call):
    """At one moment of the import after another."""
    program = (
        PRELUDE
        + f"""
import os, signal, time

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
try:
    signal.setitimer(signal.ITIMER_REAL, float(os.environ["AFTER"]))
    gpuconv.{call}
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("whole")
except KeyboardInterrupt:
    print("interrupted")
assert (gpuconv.conv2d(x, w) == 144).all()
assert gpuconv.explain(x, w, algorithm="direct").chosen == "direct"
assert not seen, seen
"""
    )
    printed = [run(program, tmp_path, {}, AFTER=str(0.06 * i)).strip() for i in range(1, 6)]
    assert "interrupted" in printed
