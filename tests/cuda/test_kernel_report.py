"""`gpuconv kernels`: what the compiler says of small kernels that are right, spill, are over budget, do not compile."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import alarms
import numpy as np
import pytest
from nvrtc_here import needs_nvrtc
from typer.testing import CliRunner

from gpuconv.cli import app
from gpuconv.cuda import Unit, loader, nvrtc
from gpuconv.tools import kernel_report, sass, worker_processes
from gpuconv.tools.kernel_report import Outcome, StepBudget, Usage, compile_all, usages
from gpuconv.tools.sass import Step

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)

GOOD = """// Adds one, and turns a block around.
//
// budget: more 32 registers
// budget: turn 40 registers
#if DTYPE == 2
typedef float T;
#else
typedef double T;
#endif
extern "C" __global__ void more(T* x) { x[threadIdx.x] += 1; }
extern "C" __global__ void turn(T* x) {
  __shared__ T all[64];
  all[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = all[63 - threadIdx.x];
}
"""

SPILLS = """// budget: squeezed 255 registers
extern "C" __global__ void __launch_bounds__(1024, 2) squeezed(float* x) {
  float kept[96];
  for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = kept[(95 * i) % 96] * kept[i];
}
"""

LOG = """ptxas info    : 0 bytes gmem, 24 bytes cmem[4]
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
ptxas         .     8 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 16.555 ms
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""

UNITS = [Unit("good.cu", F32, (("INDEX64", 0),)), Unit("good.cu", F64)]


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder with one good file in place of the real one, and its units."""
    monkeypatch.setattr(loader, "folder", lambda: tmp_path)
    monkeypatch.setattr(kernel_report, "units", lambda: list(UNITS))
    (tmp_path / "good.cu").write_text(GOOD)
    return tmp_path


def command(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["kernels", *map(str, arguments)])


def spoil(kernels, monkeypatch, text):
    (kernels / "bad.cu").write_text(text)
    monkeypatch.setattr(kernel_report, "units", lambda: [*UNITS, Unit("bad.cu", F32)])


# ------------------------------------------------------------------------------------------------ the report


def test_the_log_is_read():
    assert list(usages(LOG)) == [Usage("one", 80, 4096, 8, 16, 20), Usage("two", 8, 0, 0, 0, 0)]


def test_budgets_are_read(kernels):
    assert kernel_report.budgets("good.cu") == {"more": 32, "turn": 40}


@needs_nvrtc
def test_a_file_that_needs_an_architecture_is_not_compiled_for_older_ones(kernels, monkeypatch):
    spoil(kernels, monkeypatch, "// A page.\n//\n// needs: sm_80\n" + GOOD)
    bad = Unit("bad.cu", F32)
    assert [loader.needs(file) for file in ("good.cu", "bad.cu")] == ["", "sm_80"]
    assert {arch for unit, arch in kernel_report.jobs(("sm_75", "sm_80", "sm_90a")) if unit == bad} == {
        "sm_80",
        "sm_90a",
    }
    assert {arch for unit, arch in kernel_report.sample() if unit == bad} == set(kernel_report.architectures()[2:])


@needs_nvrtc
def test_units_that_are_tight_go_before_others_in_a_sample(kernels, monkeypatch):
    """But for the reference, whose units take turns; CI compiles all of them."""
    units = [Unit("good.cu", F32, (("WIDE", wide),)) for wide in range(9)]
    monkeypatch.setattr(kernel_report, "units", lambda: [*units, Unit("good.cu", F64)])
    (kernels / "good.cu").write_text(f"// A page.\n//\n// tight: float32 WIDE=8\n{GOOD}")
    assert [unit for unit in units if kernel_report.is_tight(unit)] == units[8:]
    archs = kernel_report.architectures()
    chosen = {arch: [unit for unit, one in kernel_report.sample() if one == arch] for arch in archs}
    for arch in archs:
        outer = arch in (archs[0], archs[-1])
        if arch == kernel_report.REFERENCE:
            assert units[8] not in chosen[arch]
        else:
            assert chosen[arch] == [units[8], Unit("good.cu", F64)] if outer else [units[8]]


WGMMA = """// One product of Hopper's tensor cores.
//
// needs: sm_90a
// budget: product 40 registers
extern "C" __global__ void product(float* x, unsigned long long a) {
  float d[4] = {x[0], x[1], x[2], x[3]};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %4, 1, 1, 1, 0, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a) : "memory");
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; i++) x[i] = d[i];
}
"""


@needs_nvrtc
def test_a_file_that_needs_an_architecture_exactly_is_compiled_for_that_one(kernels, monkeypatch):
    spoil(kernels, monkeypatch, WGMMA)
    unit = Unit("bad.cu", F32)
    assert loader.options(unit)[-1] == "-arch=sm_90a"
    assert "-arch=sm_90a" not in loader.options(UNITS[0])
    assert "sm_90a" in kernel_report.architectures()
    for jobs in (kernel_report.sample(), kernel_report.jobs(kernel_report.architectures())):
        assert [arch for one, arch in jobs if one == unit] == ["sm_90a"]
        assert "sm_90a" not in [arch for one, arch in jobs if one != unit]
    with pytest.raises(ValueError, match=r"^product needs sm_90a\.$"):
        kernel_report.jobs(("sm_90", "sm_100"), ("product",))
    (done,) = compile_all([(unit, "sm_90a")], 1)
    assert done.usages
    assert kernel_report.faults([done]) == []


@needs_nvrtc
def test_what_the_assembler_must_add_to_wgmma_is_a_fault(kernels, monkeypatch):
    fence = next(line for line in WGMMA.splitlines() if "fence" in line)
    spoil(kernels, monkeypatch, WGMMA.replace(fence, ""))
    (done,) = compile_all([(Unit("bad.cu", F32), "sm_90a")], 1)
    (fault,) = kernel_report.faults([done])
    assert fault.startswith("bad.cu float32 for sm_90a: ")
    assert "(C7519) warpgroup.arrive is injected" in fault


def test_units_are_collected_from_every_module_that_launches(monkeypatch):
    from gpuconv.algorithms.cuda import gemm
    from gpuconv.functions.pooling import functions

    mine = [Unit("a.cu", F64), Unit("a.cu", F32), Unit("b.cu", F32)]
    before = kernel_report.units()
    monkeypatch.setattr(gemm, "UNITS", mine[:2], raising=False)
    monkeypatch.setattr(functions, "UNITS", mine[1:], raising=False)
    found = kernel_report.units()
    assert set(mine) <= set(found)
    assert len(set(found)) == len(found)
    assert [unit for unit in found if unit in mine] == [mine[1], mine[0], mine[2]]
    assert before == sorted(before, key=lambda unit: (unit.file, loader.options(unit)))


@needs_nvrtc
def test_shared_memory_is_held_to_what_a_block_may_have(kernels, monkeypatch):
    """The kernel's own, 512 bytes of doubles, and what a launch adds."""
    jobs = [(UNITS[1], arch) for arch in ("sm_75", "sm_86", "sm_90")]
    done = list(compile_all(jobs, 1))
    for arch, most in (("sm_75", 64 * 1024), ("sm_86", 99 * 1024), ("sm_90", 227 * 1024)):
        for dynamic, count in ((most - 512, 0), (most - 511, 1)):
            monkeypatch.setattr(kernel_report, "dynamic_bytes", lambda _, more=dynamic: {UNITS[1]: more})
            found = [fault for fault in kernel_report.faults(done) if arch in fault]
            assert len(found) == count
        assert f"turn (good.cu float64 for {arch}) takes 512 bytes of shared memory and a launch" in found[0]
        assert found[0].endswith(f"{most - 511} more, but a block may have {most}")


def test_every_architecture_has_its_limit():
    assert {int(arch.removeprefix("sm_")) for arch in kernel_report.ARCHITECTURES} <= set(kernel_report.SHARED_KIB)


@needs_nvrtc
def test_the_sample(kernels, monkeypatch):
    every = [Unit(file, dtype, (("WIDE", wide),)) for file in "ab" for dtype in (F32, F64) for wide in range(3)]
    for file in "ab":
        (kernels / file).write_text("")
    monkeypatch.setattr(kernel_report, "units", lambda: every)
    jobs = kernel_report.sample()
    assert len(set(jobs)) == len(jobs)
    archs = kernel_report.architectures()
    chosen = {arch: [unit for unit, a in jobs if a == arch] for arch in archs}
    for arch in (archs[0], "sm_90", archs[-1]):
        assert [(u.file, u.dtype) for u in chosen[arch]] == [("a", F32), ("a", F64), ("b", F32), ("b", F64)]
    others = [chosen[arch] for arch in archs[1:-1] if arch != "sm_90"]
    assert all([u.file for u in units] == ["a", "b"] for units in others)
    assert {u.dtype for units in others for u in units if u.file == "a"} == {F32, F64}
    assert {unit for unit, _ in jobs} == set(every)


@needs_nvrtc
@pytest.mark.parametrize("processes", [1, 2])
def test_outcomes(kernels, processes):
    jobs = kernel_report.jobs(("sm_80", "sm_90"))
    done = list(compile_all(jobs, processes))
    assert {(outcome.unit, outcome.arch) for outcome in done} == set(jobs)
    assert kernel_report.faults(done) == []
    for outcome in done:
        assert [usage.kernel for usage in sorted(outcome.usages, key=lambda usage: usage.kernel)] == ["more", "turn"]
        (turn,) = (usage for usage in outcome.usages if usage.kernel == "turn")
        assert turn.shared - 64 * outcome.unit.dtype.itemsize in (0, 1024)  # the system takes 1 KB from sm_90 on
        assert 4 <= turn.registers <= 32
        assert not turn.spills


@needs_nvrtc
def test_faults_in_words(kernels, monkeypatch):
    spoil(kernels, monkeypatch, SPILLS)
    (fault,) = kernel_report.faults(list(compile_all([(Unit("bad.cu", F32), "sm_80")])))
    assert fault.startswith("squeezed (bad.cu float32 for sm_80) spills ")
    (good,) = compile_all([(UNITS[1], "sm_80")])
    assert kernel_report.faults([good]) == []
    (fault,) = good.excesses({"more": 3})
    assert fault.startswith("more (good.cu float64 for sm_80) takes ")
    assert fault.endswith(" registers, but its budget is 3")
    (kernels / "good.cu").write_text("int f( {")
    (fault,) = kernel_report.faults(list(compile_all([(UNITS[1], "sm_80")] * 3, 1)))
    assert fault.startswith("good.cu float64 for sm_80 (and 2 alike) does not compile: good.cu(1): error:")


# ------------------------------------------------------------------------------------------------ steps

BUDGET = "// budget: turn 20 instructions per 4 FFMA"

FAKE = """#!{python}
print({text!r})
"""
"""A disassembler that says the same of everything."""


def test_budgets_of_steps_are_read(kernels):
    where = "// budget: more 9 instructions per 1 DFMA where float32 float64 WIDE=2 DEEP=1"
    (kernels / "good.cu").write_text(f"{BUDGET}\n{where}\n{GOOD}")
    plain, narrow = kernel_report.step_budgets("good.cu")
    assert plain == StepBudget("turn", 20, 4, "FFMA")
    assert narrow == StepBudget("more", 9, 1, "DFMA", ("float32", "float64"), (("WIDE", 2), ("DEEP", 1)))
    assert [str(plain), str(narrow)] == ["20 per 4 FFMA", "9 per 1 DFMA where float32 float64 WIDE=2 DEEP=1"]
    assert kernel_report.budgets("good.cu") == {"more": 32, "turn": 40}
    assert [narrow.holds_for(Unit("good.cu", F32, macros)) for macros in ((), (("WIDE", 2),))] == [False, False]
    assert narrow.holds_for(Unit("good.cu", F64, (("DEEP", 1), ("FAR", 0), ("WIDE", 2))))
    assert not narrow.holds_for(Unit("good.cu", np.dtype(np.float16), (("DEEP", 1), ("WIDE", 2))))


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Step("turn", 20, 4, "FFMA"), None),
        (Step("turn", 40, 8, "FFMA"), None),  # twice the work
        (Step("turn", 21, 4, "FFMA"), "takes 21/4 FFMA per step"),
        (Step("turn", 5, 2, "FFMA"), "takes 5/2 FFMA per step"),  # the other half is in another loop
        (Step("turn", 20, 4, "DFMA"), "takes 20/4 DFMA per step"),
        (None, "has no such loop"),
    ],
)
def test_a_long_step_is_a_fault(step, told):
    used = Usage("turn", 8, 0, 0, 0, 0)
    outcome = Outcome(UNITS[1], "sm_90", (used,), steps=(step,) if step else ())
    budgets = [StepBudget("turn", 20, 4, "FFMA"), StepBudget("more", 1, 1, "FFMA")]  # `more` is in another unit
    words = [f"turn (good.cu float64 for sm_90) {told}, but its budget is 20 per 4 FFMA"]
    assert list(outcome.long_steps(budgets)) == (words if told else [])
    assert list(Outcome(UNITS[1], "sm_90", (used,)).long_steps(budgets)) == []  # not counted


@pytest.fixture
def disassembler(tmp_path, monkeypatch):
    """A program in the place of nvdisasm, for whose answer the caller asks."""

    def install(text):
        path = tmp_path / "nvdisasm"
        path.write_text(FAKE.format(python=sys.executable, text=text))
        path.chmod(0o755)
        monkeypatch.setattr(sass, "disassembler", lambda: str(path))

    return install


LOOP = """
.text.turn:
        /*0000*/                   MOV R1, 0x1 ;
.L_x_0:
        /*0010*/                   FFMA R0, R0, R0, R0 ;
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
        /*0040*/                   EXIT ;
"""


@needs_nvrtc
def test_the_command_counts_where_there_is_a_budget(kernels, disassembler, tmp_path):
    disassembler(LOOP)
    (kernels / "good.cu").write_text("// budget: turn 5 instructions per 2 FFMA where float64\n" + GOOD)
    saved = tmp_path / "kernels.json"
    result = command("--arch", "sm_75", "--arch", "sm_90", "--json", saved)
    assert result.exit_code == 1
    assert "turn (good.cu float64 for sm_90) takes 3/1 FFMA per step, but its budget is 5 per 2 FFMA" in " ".join(
        result.output.split()
    )
    assert "float32 INDEX64=0 for sm_90) takes" not in result.output
    steps = {
        (row["dtype"], row["arch"]): (row["step"], row["step_budgets"])
        for row in json.loads(saved.read_text())["results"]
        if row["kernel"] == "turn"
    }
    step = {"kernel": "turn", "instructions": 3, "work": 1, "kind": "FFMA", "around": [3]}
    assert steps["float64", "sm_90"] == (step, ["5 per 2 FFMA where float64"])
    assert steps["float32", "sm_90"] == (None, [])
    assert steps["float64", "sm_75"][0] is None  # not one of those that are counted


@needs_nvrtc
def test_a_disassembler_that_fails_is_a_fault(kernels, disassembler):
    disassembler(LOOP)
    (kernels / "nvdisasm").write_text("#!/bin/sh\necho too new >&2\nexit 3\n")
    result = command("--kernel", "turn", "--arch", "sm_90")
    assert result.exit_code == 1
    assert "nvdisasm failed: too new" in result.output


@needs_nvrtc
def test_without_a_disassembler_it_says_so_and_counts_nothing(kernels, monkeypatch):
    monkeypatch.setattr(sass, "disassembler", lambda: None)
    assert "nvdisasm" not in kernel_report.summary([], [])
    (kernels / "good.cu").write_text(BUDGET + "\n" + GOOD)
    result = command("--arch", "sm_90")
    assert result.exit_code == 0
    assert "instructions per step were not counted: there is no nvdisasm" in result.output
    assert "python -m pip install nvidia-cuda-nvdisasm" in result.output
    assert "FFMA" not in result.output


# ------------------------------------------------------------------------------------------------ the command


@needs_nvrtc
def test_every_kernel_on_every_architecture(kernels):
    result = command()
    assert result.exit_code == 0, result.output
    archs = [arch for arch in kernel_report.ARCHITECTURES if arch in nvrtc.architectures()]
    header, _, *rows = [line for line in result.output.splitlines() if line.strip()][:4]
    assert header.split() == ["file", "kernel", "shared", "stack", "spills", "budget", *archs]
    assert [row.split()[:2] for row in rows] == [["good.cu", "more"], ["good.cu", "turn"]]
    assert all(row.split()[4] == "0" and 4 <= int(row.split()[-1]) <= 32 for row in rows)
    assert f"2 kernels in 2 units for {', '.join(archs)}, by NVRTC " in result.output


@needs_nvrtc
def test_a_sample_says_that_it_is_one(kernels, monkeypatch):
    monkeypatch.setattr(kernel_report, "ARCHITECTURES", ("sm_80", "sm_86", "sm_90"))
    monkeypatch.setattr(kernel_report, "units", lambda: [*UNITS, Unit("good.cu", F64, (("INDEX64", 1),))])
    sampled, complete = command().output, command("--all").output
    assert "a sample, 5 of 9 compilations: one unit per file and dtype for sm_80, sm_90 and sm_90" in sampled
    assert "--arch, --kernel or --all compile every unit" in sampled
    assert "compilations" not in complete


@needs_nvrtc
def test_named_kernels_are_shown_unit_by_unit(kernels):
    text = command("--kernel", "turn", "--arch", "sm_90").output
    assert "more" not in text
    assert [line.split()[1] for line in text.splitlines() if line.lstrip().startswith("good.cu")] == ["turn", "turn"]
    assert "float32 INDEX64=0" in text
    assert "float64" in text


@needs_nvrtc
def test_json(kernels, tmp_path):
    saved = tmp_path / "kernels.json"
    assert f"saved: {saved}" in command("--arch", "sm_80", "--json", saved).output.replace("\n", "")
    content = json.loads(saved.read_text())
    assert set(content) == {"gpuconv", "nvrtc", "results", "faults", "not_done"}
    assert (content["faults"], content["not_done"]) == ([], [])
    assert len(content["results"]) == 4
    row = next(row for row in content["results"] if row["dtype"] == "float32" and row["kernel"] == "turn")
    assert (row["file"], row["macros"], row["arch"], row["budget"]) == ("good.cu", {"INDEX64": 0}, "sm_80", 40)
    assert (row["shared"], row["spill_stores"], row["spill_loads"], row["stack"]) == (256, 0, 0, 0)


@needs_nvrtc
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SPILLS, "squeezed (bad.cu float32 for sm_80) spills"),
        (GOOD.replace("32 registers", "3 registers"), "registers, but its budget is 3"),
        (GOOD.replace("+= 1", "+= y"), 'identifier "y" is undefined'),
    ],
)
def test_what_does_not_pass_is_told_and_the_status_is_1(kernels, monkeypatch, text, words):
    spoil(kernels, monkeypatch, text)
    result = command("--arch", "sm_80")
    assert result.exit_code == 1
    assert "wrong: " in result.output
    assert words in result.output
    assert "2 kernels in" in result.output or "3 kernels in" in result.output or "4 kernels in" in result.output


@needs_nvrtc
def test_what_nothing_launches_is_told(kernels):
    (kernels / "idle.cu").write_text("")
    assert "nothing launches idle.cu" in command("--arch", "sm_80").output


@needs_nvrtc
def test_an_interrupt_leaves_what_is_done(kernels, monkeypatch, tmp_path):
    every = kernel_report.compile_all

    def interrupted(jobs, **_):
        yield next(every(jobs[:1]))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(kernel_report, "compile_all", interrupted)
    result = command("--arch", "sm_80", "--json", tmp_path / "some.json")
    assert result.exit_code == 130
    assert re.search(r"good\.cu +more", result.output)
    assert "1 of 2 compilations not done" in result.output
    content = json.loads((tmp_path / "some.json").read_text())
    assert len(content["results"]) == 2
    assert content["not_done"] == ["good.cu float64 for sm_80"]


SLOW = "".join(
    f"""extern "C" __global__ void slow{i}(float* x) {{
  float kept[200];
  for (int j = 0; j < 200; ++j) kept[j] = x[j * 1024 + threadIdx.x];
  for (int j = 0; j < 200; ++j) x[j * 1024 + threadIdx.x] = kept[(95 * j) % 200] * kept[j];
}}
"""
    for i in range(100)
)
"""Half a minute's work of NVRTC."""


@needs_nvrtc
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timed signals")
@pytest.mark.parametrize("after", [0.001, 0.02, 0.3, 3.0])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_ends_running_compilations_at_once(kernels, after, processes):
    """While the processes start, while they import, and while they compile."""
    (kernels / "good.cu").write_text(SLOW)
    begin = time.monotonic()

    def interrupted():
        signal.setitimer(signal.ITIMER_REAL, after)
        list(compile_all([(unit, "sm_90") for unit in UNITS], processes))

    with alarms.handled_by(lambda *_: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin - after < 10  # on a busy machine; on another, 0.1
    assert not multiprocessing.active_children()


# As the command does it, but for a word when the compilations begin.
CTRL_C = """
from gpuconv import __main__
from gpuconv.tools import kernel_report
every = kernel_report.compile_all
def compile_all(jobs, **told):
    print("starting", flush=True)
    yield from every(jobs, **told)
kernel_report.compile_all = compile_all
__main__.main()
"""


@needs_nvrtc
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends signals otherwise")
@pytest.mark.parametrize("after", [0.0, 0.3, 3.0])
def test_ctrl_c_at_a_terminal_ends_the_command_and_its_processes_in_silence(after, tmp_path):
    """SIGINT reaches them all. What was compiled until then is saved."""
    path = tmp_path / "some.json"
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C, "kernels", "--all", "--json", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "starting\n"
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        begin = time.monotonic()
        out, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20  # on a busy machine, to put into words what was done
    assert (process.returncode, errors) == (130, "")
    assert "interrupted: " in out
    assert len(json.loads(path.read_text())["not_done"]) > 100
    while at_work(process.pid) and time.monotonic() < begin + 10:  # multiprocessing's tracker of resources
        time.sleep(0.05)
    assert not at_work(process.pid)


def at_work(group):
    """The processes of a group, but those that nobody has asked how they ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(its_group) == group:
                found.append(path.parent.name)
    return found


BLOCKED = """
import signal
from pathlib import Path
from gpuconv.tools import worker_processes
if __name__ == "__main__":
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for _ in range(2):
        workers = []
        worker_processes._start_one(workers, print)
        [worker] = workers
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        worker.end()
        blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
        print(int(blocked, 16) >> signal.SIGINT - 1 & 1)
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells what is blocked")
def test_workers_are_out_of_reach_of_ctrl_c_from_the_first():
    """They would print where they were in their imports. The first starts another process as well."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "True"]


@needs_nvrtc
def test_a_compiler_that_is_killed_is_a_fault_and_the_rest_goes_on(kernels, monkeypatch):
    give = worker_processes._Worker.give

    def killed(self, number, task):
        if number != 1:
            self.process.kill()
            self.process.join()
        give(self, number, task)

    monkeypatch.setattr(worker_processes._Worker, "give", killed)
    done = list(compile_all([(UNITS[0], "sm_80"), (UNITS[1], "sm_80"), (UNITS[0], "sm_90")], 1))
    gone = "the process that compiled it has ended with status -9"
    assert [outcome.error for outcome in done] == [gone, "", gone]
    assert len(done[1].usages) == 2


@needs_nvrtc
def test_refusals(kernels, tmp_path):
    (kernels / "good.cu").write_text("// needs: sm_80\n" + GOOD)
    for words, arguments in {
        "arch='sm_30' is not known to NVRTC": ("--arch", "sm_30"),
        "arch='hopper' is not known to NVRTC": ("--arch", "hopper"),
        "there is no kernel nope. There is: more, turn.": ("--kernel", "nope"),
        "more needs sm_80 or newer": ("--kernel", "more", "--arch", "sm_75"),
        "is not a folder": ("--json", tmp_path / "missing" / "rows.json"),
    }.items():
        result = command(*arguments)
        assert result.exit_code == 2
        assert words in result.output
        assert len(result.output.splitlines()) == 1


def test_without_nvrtc_it_names_the_extra(kernels, monkeypatch):
    def missing():
        raise ModuleNotFoundError("this needs NVRTC and cuda-bindings: run this", name="cuda")

    monkeypatch.setattr(nvrtc, "architectures", missing)
    result = command()
    assert result.exit_code == 2
    assert result.output == "gpuconv kernels: this needs NVRTC and cuda-bindings: run this\n"
