"""`first_contact.py` runs whole on the double of CuPy, and tells what goes wrong in a step, a test or a tool."""

import json
import os
import pkgutil
import re
import subprocess
import sys
import time
import types
from importlib import import_module
from pathlib import Path

import cupy_double
import pytest
from contact import arguments, compiling, counters, exact, journal, launches, processes, program, setting, times
from contact.steps import SECONDS, STEPS, Step

from gpuconv.algorithms.cuda.implicit_gemm import UNITS
from gpuconv.cuda import launches as launching
from gpuconv.cuda import loader
from gpuconv.functions import repeats
from gpuconv.tools import kernel_report, workload

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends groups of processes, as POSIX has them")

SANITIZER = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --log-file ]] && log=$2; shift 2; done
"$@" || exit
echo '========= ERROR SUMMARY: 0 errors' >"$log"
"""
FAULTY_SANITIZER = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --log-file ]] && log=$2; shift 2; done
for line in 'Invalid __global__ write of size 4 bytes' '    at im2col' 'ERROR SUMMARY: 7 errors'; do
    echo "========= $line"
done >"$log"
exit 86
"""
COUNTERS = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in --csv) shift;; --log-file) log=$2; shift 2;; *) shift 2;; esac
done
"$@" || exit
cat >"$log" <<'END'
==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","smsp__issue_active.avg.pct","launch__registers_per_thread"
"","","us","%",""
"0","implicit_gemm_forward(const T *, Conv)","72.5","61.3","128"
END
"""


def write_tool(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs steps whose modules are these texts; returns the status, the page and the findings."""

    def steps_of(seconds=30.0, **texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(f"import os, sys, time\n\n{text}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        steps = [Step(number, name, seconds, name) for number, name in enumerate(texts, 1)]
        status = program.main(["--out", str(tmp_path / "out"), "--double"], steps)
        return status, (tmp_path / "out" / program.PAGE).read_text(), journal.read(tmp_path / "out")

    return steps_of


def body(*lines):
    return "def run(setting, journal):\n" + "".join(f"    {line}\n" for line in lines)


def pytest_step(*arguments):
    """A step that runs pytest."""
    return f"from contact.suite import run_tests\n{body(f'run_tests(setting, journal, {list(arguments)!r})')}"


RIGHT = body('journal.note("what is right", "seen")')

# ------------------------------------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("first_contact") / "out"


@pytest.fixture(scope="module")
def whole(out):
    """The process of all steps on the double, the page and the findings."""
    folder = out.parent
    write_tool(folder, "compute-sanitizer", SANITIZER)
    write_tool(folder, "ncu", COUNTERS)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(out)}
    command = [sys.executable, str(Path(program.__file__).parents[1] / "first_contact.py"), "--double"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, (out / program.PAGE).read_text(), journal.read(out)


@pytest.mark.usefixtures("emulated")
class TestTheWhole:
    def test_runs_on_the_double(self, whole):
        done, page, findings = whole
        assert done.returncode == 0, page
        assert page in done.stdout
        assert not [finding for finding in findings if finding.fault]
        assert page.count(": right, ") == len(STEPS)

    @pytest.mark.parametrize(
        ("step", "says"),
        [
            (1, "14 kinds handed to a kernel"),
            (2, "2 of 2 compiled"),
            (3, "13 results in 2 groups, by 1 units"),
            (4, "3 passed"),
            (5, "1 passed"),
            (6, "memcheck: ERROR SUMMARY: 0 errors"),
            (7, "us of the host per call"),
            (8, "of the floor, expected "),
            (9, "implicit_gemm_forward: us 72.5 us, issue slots busy 61.3 %, registers 128"),
        ],
    )
    def test_each_step_tells_what_it_is_for(self, whole, step, says):
        _, page, _ = whole
        (own,) = re.findall(rf"^{step}  .*\n((?:   .*\n)+)", page, re.MULTILINE)
        assert says in " ".join(own.split())

    def test_leaves_three_files(self, whole, out):
        assert {path.name for path in out.iterdir()} == {journal.NAME, setting.LOG, program.PAGE}


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_step_that_hangs_is_ended_with_what_it_started(run, tmp_path):
    sleeping = "import os, time; print('begun', os.getpid(), flush=True); time.sleep(99)"
    hangs = body(
        "import subprocess",
        'journal.note("before", "seen")',
        f"command = [sys.executable, '-c', {sleeping!r}]",
        "setting.start(command)",
        "subprocess.Popen(command)",
        "time.sleep(99)",
    )
    begin = time.monotonic()
    status, page, findings = run(2.0, hangs=hangs, right=RIGHT)
    assert time.monotonic() - begin < 20
    assert status == 1
    assert "hangs: FAULTY, 2 s of 2\n   ! its process was ended at its limit of 2 s, and printed last:" in page
    assert 'File "' in page  # where it was
    assert [finding.name for finding in findings if finding.text == "seen"] == ["before", "what is right"]
    begun = re.findall(r"begun (\d+)$", (tmp_path / "out" / setting.LOG).read_text(), re.MULTILINE)
    assert len(begun) == 2
    for number in map(int, begun):
        assert not is_running(number)


def is_running(number):
    """A process that was killed, and whose parent is gone, may stay around until somebody asks for its status."""
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_step_whose_process_dies_takes_nothing_with_it(run):
    dies = body('journal.note("before", "seen")', "os.abort()")
    status, page, findings = run(right=RIGHT, dies=dies, last=RIGHT)
    assert status == 2
    assert page.splitlines()[1] == "Faults in step 2."
    assert "its process died by SIGABRT" in page
    assert [finding.name for finding in findings if finding.text == "seen"] == [
        "what is right",
        "before",
        "what is right",
    ]


def test_a_fault_and_an_exception_name_themselves(run):
    faulty = body(
        'journal.fault("bfloat16 128x64 COPY=16", "3 of 400 elements differ")', 'raise ValueError("no such x")'
    )
    status, page, _ = run(right=RIGHT, faulty=faulty)
    assert status == 2
    assert "! bfloat16 128x64 COPY=16: 3 of 400 elements differ" in page
    assert "! faulty: ValueError: no such x" in page


def test_a_module_that_cannot_be_imported_is_a_fault(run):
    status, page, _ = run(lacks="import nothing_of_that_name", right=RIGHT)
    assert status == 1
    assert "No module named 'nothing_of_that_name'" in page
    assert "what is right: seen" in page


def test_parts_die_and_hang_each_for_itself(run):
    text = body(
        'ends = setting.run_parts(["dies", "hangs", "right"], 3)',
        "for name, end in ends.items():",
        '    journal.fault(name, f"its process {end}") if end else journal.note(name, "seen")',
    )
    text += (
        'def part(setting, journal, name):\n    {"dies": os.abort, "hangs": lambda: time.sleep(99)}.get(name, list)()\n'
    )
    status, page, _ = run(9.0, parts=text)
    assert status == 1
    assert all(
        line in page for line in ("! dies: its process died by SIGABRT", "! hangs: its process hung", "right: seen")
    )


def test_what_does_not_begin_in_time_is_in_no_answer(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(99)"]
    ends = processes.run_several({"a": sleep, "b": sleep}, 1, 0.3, tmp_path / "log", os.environ, tmp_path)
    assert ends == {"a": processes.HUNG}


def test_a_failing_test_is_told_as_it_fails(run, tmp_path):
    (tmp_path / "test_two.py").write_text("def test_a():\n    assert 1 == 2, 'so it is'\n\n\ndef test_b():\n    pass\n")
    status, page, _ = run(tests=pytest_step(str(tmp_path)))
    assert status == 1
    assert re.search(r"! .*test_two.py::test_a: AssertionError: so it is", page)
    assert "tests: 1 failed, 1 passed" in page


LOSING = """
import sys, types
import pytest

pytestmark = pytest.mark.gpu
error = []

def synchronize():
    if error:
        raise RuntimeError(error[0])

sys.modules["cupy"] = cupy = types.SimpleNamespace(cuda=types.SimpleNamespace())
cupy.cuda.runtime = types.SimpleNamespace(deviceSynchronize=synchronize)

def test_a():
    error.append("an illegal memory access was encountered")
    synchronize()

@pytest.mark.parametrize("number", range(3))
def test_b(number):
    synchronize()
"""


@pytest.mark.parametrize(
    ("processes", "counts"),
    [(["-n", "1"], "2 failed, 3 passed"), (["-p", "no:xdist"], "1 failed")],
    ids=["xdist", "one process"],
)
def test_a_process_that_lost_the_device_spoils_no_other_test(run, tmp_path, processes, counts):
    (tmp_path / "test_losing.py").write_text(LOSING)
    status, page, _ = run(tests=pytest_step(*processes, str(tmp_path)))
    assert status == 1
    page = " ".join(page.split())  # lines are as long as the names of the folders let them be
    assert f"tests: {counts}" in page
    assert "test_losing.py::test_a: RuntimeError: an illegal memory access was encountered" in page
    assert bool(re.search(r"the device was lost in \S*test_losing\.py::test_a", page)) == (counts == "1 failed")


def test_a_run_without_a_test_is_a_fault(run, tmp_path):
    (tmp_path / "test_none.py").write_text("")
    status, page, _ = run(tests=pytest_step(str(tmp_path)))
    assert status == 1
    assert "! pytest: no test passed: ended with status 5" in page


@pytest.mark.parametrize(
    ("number", "tool", "text", "says"),
    [
        (
            6,
            "compute-sanitizer",
            FAULTY_SANITIZER,
            r"memcheck: ended with status 86: ERROR SUMMARY: 7 errors\s+Invalid __global__ write",
        ),
        (6, "compute-sanitizer", "#!/bin/bash\nexit 0\n", "gave no summary"),
        (9, "ncu", "#!/bin/bash\n", "measured no kernel"),
    ],
)
def test_tools_that_find_something_or_do_nothing(tmp_path, monkeypatch, number, tool, text, says):
    write_tool(tmp_path, tool, text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert program.main(["--out", str(tmp_path / "out"), "--double", "--steps", str(number)]) == number
    assert re.search(says, (tmp_path / "out" / program.PAGE).read_text())


def test_without_the_tools_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert program.main(["--out", str(tmp_path), "--double", "--steps", "6,9"]) == 0
    page = (tmp_path / program.PAGE).read_text()
    assert "compute-sanitizer is not there" in page
    assert "ncu is not there" in page


def test_a_package_that_is_missing_is_named_with_the_remedy(tmp_path, monkeypatch):
    found = arguments.find_spec
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "fastrlock" else found(name))
    assert not arguments._packages(journal.Journal(tmp_path, 1))
    (fault,) = [finding for finding in journal.read(tmp_path) if finding.fault]
    assert re.match(r"fastrlock cannot be imported.*pip download", fault.text)


def test_an_argument_that_arrives_wrong_is_named(tmp_path, monkeypatch, double):
    """A CuPy before 14.0 hands over something else for None."""
    monkeypatch.setattr(cupy_double.raw, "_passed", swapped(cupy_double.raw._passed))
    arguments._echo(setting.Setting(1, "", tmp_path, 60, double=True), journal.Journal(tmp_path, 1))
    assert [finding.name for finding in journal.read(tmp_path) if finding.fault] == ["argument: short"]


def swapped(passed):
    def passes(x):
        return passed(type(x)(7) if type(x).__name__ == "int16" else x)

    return passes


# ------------------------------------------------------------------------------------------------ what it covers


def test_the_units_of_the_tensor_cores_are_shared_out_and_all_launched(tmp_path, monkeypatch, double):
    """On the shapes that are run on a device; nothing is computed here."""
    shares = [exact._units(mode, direction) for mode in exact.MODES for direction in exact.PASSES]
    assert sorted(str(unit) for share in shares for unit in share) == sorted(map(str, UNITS))

    def convolved(setting, mode, direction, case):
        dtype, precision, _ = exact.MODES[mode]
        arrays = map(setting.cupy.asarray, case.arrays(dtype=dtype))
        convolve(direction, case, *arrays, algorithm="implicit_gemm", precision=precision)
        return ""

    from calls import convolve

    monkeypatch.setattr(exact, "_wrong", convolved)
    monkeypatch.setattr(launching, "launch", lambda *_: None)
    on_a_device = setting.Setting(3, "", tmp_path, 60)
    for mode in exact.MODES:
        for direction in exact.PASSES:
            exact._tensor_cores(on_a_device, journal.Journal(tmp_path, 3), mode, direction)
    assert not [finding for finding in journal.read(tmp_path) if finding.fault]


def test_a_unit_that_nothing_launches_is_a_fault(tmp_path, monkeypatch, double):
    monkeypatch.setattr(exact, "_wrong", lambda *_: "")
    exact._tensor_cores(setting.Setting(3, "", tmp_path, 60), journal.Journal(tmp_path, 3), "float16", "forward")
    (fault,) = [finding for finding in journal.read(tmp_path) if finding.fault]
    assert all(str(unit) in fault.text for unit in exact._units("float16", "forward"))


class Kernel:
    """A kernel as CuPy tells of it, on a device that gives a block 64 KiB of shared memory and no more."""

    num_regs, local_size_bytes, shared_size_bytes = 200, 8, 60 * 1024

    @property
    def max_dynamic_shared_size_bytes(self):
        return 0

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count):
        if count > 40 * 1024:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")


def test_what_a_kernel_takes_too_much_of_is_told(tmp_path, monkeypatch):
    runtime = types.SimpleNamespace(
        cudaDevAttrMaxSharedMemoryPerBlockOptin=97, deviceGetAttribute=lambda number, device: {97: 64 * 1024}[number]
    )
    module = types.SimpleNamespace(get_function=lambda name: Kernel())
    cupy = types.SimpleNamespace(RawModule=lambda **_: module, cuda=types.SimpleNamespace(runtime=runtime))
    units = {unit.file: unit for unit in kernel_report.units()}
    chosen = [units["im2col.cu"], units["depthwise_weights.cu"], units["implicit_gemm.cu"]]
    monkeypatch.setattr(kernel_report, "units", lambda: chosen)
    monkeypatch.setattr(kernel_report, "dynamic_bytes", lambda _: dict(zip(chosen[1:], (8192, 65536), strict=True)))
    on_a_device = setting.Setting(2, "", tmp_path, 60)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    compiling.part(on_a_device, journal.Journal(tmp_path, 2), "share 1 of 1")
    told = [finding.text for finding in journal.read(tmp_path) if finding.fault]
    assert told[0] == "takes 200 registers, but its budget is 64"
    assert told[1].startswith("takes 8 bytes of local memory per thread")
    assert told[4] == "takes 69632 bytes of shared memory, but the device allows 65536"
    assert told[5] == "RuntimeError: CUDA_ERROR_INVALID_VALUE: invalid argument"
    assert len(told) == 6


def test_the_counted_kernels_are_those_that_are_named(tmp_path, monkeypatch, double):
    """On the shapes of a device, whose arrays nobody fills here; nothing is computed either."""

    def empty(g, dtype, device):
        return workload.Workload(g, *(double.empty(shape, dtype) for shape in (g.x_shape, g.w_shape, (1,))))

    launched = []
    repeats.forget()
    monkeypatch.setattr(workload.Workload, "integers", empty)
    monkeypatch.setattr(launching, "launch", lambda xp, what, *arrays: launched.append(what))
    on_a_device = setting.Setting(9, "", tmp_path, 60)
    counters.part(on_a_device, journal.Journal(tmp_path, 9), "four kernels")
    names = ["implicit_gemm_forward", "implicit_gemm_forward", "depthwise_forward", "direct_forward"]
    launched = [what for what in launched if re.search(counters.KERNELS, what.name)]
    assert [what.name for what in launched] == names
    tiles = [
        (what.unit.dtype.name, dict(what.unit.macros)["TILE_M"], dict(what.unit.macros)["TILE_N"])
        for what in launched[:2]
    ]
    assert tiles == [("bfloat16", 128, 128), ("float32", 128, 64)]


def test_there_is_a_call_for_every_kernel(monkeypatch, double):
    seen = set()

    def launch(xp, what, *arrays):
        seen.add(what.name)

    for package in kernel_report.LAUNCHING:
        for info in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            if hasattr(module := import_module(info.name), "launch"):
                monkeypatch.setattr(module, "launch", launch)
    repeats.forget()
    for _, call in launches.calls(double):
        call()
    # The double is no Hopper device, whose own kernels are called on such a one alone.
    files = {unit.file: unit for unit in kernel_report.units() if not loader.needs(unit.file).endswith("a")}
    assert seen == {name for unit in files.values() for name in kernel_report.kernels(unit)}


# ------------------------------------------------------------------------------------------------ the program


def test_the_steps_take_nine_minutes():
    assert SECONDS < 540
    assert [step.number for step in STEPS] == list(range(1, 10))


@pytest.mark.parametrize(
    "words", [["--steps", "12"], ["--steps", "x"], ["--seconds", "0"], ["--show", "/nowhere"], ["--frobnicate"]]
)
def test_wrong_arguments_have_a_status_of_their_own(words, tmp_path, capsys):
    assert program.main(["--out", str(tmp_path), *words]) == program.USAGE
    assert "first_contact.py: error" in capsys.readouterr().err


def test_the_steps_do_not_take_themselves_for_a_process_of_xdist(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    monkeypatch.setenv("CUPY_TF32", "1")
    assert {"PYTEST_XDIST_WORKER", "CUPY_TF32"} & setting.environment(tmp_path).keys() == {"CUPY_TF32"}


def test_results_have_to_go_somewhere(monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    assert program.main([]) == program.USAGE
    assert "--out FOLDER" in capsys.readouterr().err


def test_the_results_of_a_device_are_recorded_under_its_name(tmp_path, capsys):
    out, folder = tmp_path / "out", tmp_path / "results"
    for path in (out, folder):
        path.mkdir()
    (out / program.PAGE).write_text("the page\n")
    for double, count in ((True, 0), (False, 2)):
        journal.Journal(out, 1).note("device", "", device="NVIDIA H200", date="2027-01-02", double=double)
        assert program.main(["--show", str(out), "--record", str(folder)]) == 0
        names = sorted(path.name for path in folder.iterdir())
        assert len(names) == count
        (out / journal.NAME).unlink()
    assert names == ["nvidia-h200-2027-01-02-first-contact.jsonl", "nvidia-h200-2027-01-02-first-contact.txt"]
    assert "the page" in capsys.readouterr().out


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    written = journal.Journal(tmp_path, 1)
    written.note("first", "seen", count=3)
    with written.path.open("a") as file:
        file.write(json.dumps({"step": 1})[:-3] + "\n")
    written.note("second")
    assert [(finding.name, finding.values) for finding in journal.read(tmp_path)] == [
        ("first", {"count": 3}),
        ("second", {}),
    ]


def test_times_are_told_with_their_ratios_and_stars(tmp_path):
    written = journal.Journal(tmp_path, 8)
    for direction, us in (("forward", 10.0), ("input_grad", 20.0)):
        one = times.Pass("n1_h7w7_c8_k8_r3s3_p1", "bfloat16", direction)
        measured = {"us": us, "exposed": direction != "forward", "expected_us": 8.0, "floor_us": 5.0, "tflops": 300.0}
        about = {"problem": one.problem, "mode": one.mode, "direction": direction, "algorithm": "implicit_gemm"}
        written.note("", which=str(one), **about, **measured)
    written.note("", which=str(times.Pass("n1_h7w7_c8_k8_r3s3_p1", "bfloat16", "forward")), torch_us=9.0)
    times.tell(written, journal.read(tmp_path))
    told = {finding.name: finding.text for finding in journal.read(tmp_path) if finding.text}
    assert told == {
        "n1 bfloat16 together": "30 us, 16 expected, 10 at least, "
        "0.90 times as fast as torch in the geometric mean of 1",
        "n1_h7w7_c8_k8_r3s3_p1 bfloat16": "10.0 20.0* us, 300 300 TFLOP/s, 50% 25% of the floor, expected 8.0 8.0, "
        "torch x0.90 -, by implicit_gemm",
    }
