"""The kernels that the library can launch, compiled for every architecture; and the rules of the folder kernels/."""

import re

import numpy as np
import pytest
from nvrtc_here import needs_nvrtc
from on_gpu import forget

import gpuconv
from gpuconv.algorithms.cuda import columns as columns_cuda
from gpuconv.cuda import loader
from gpuconv.tools import kernel_report

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(loader.folder().glob("*.cu*"))}


@needs_nvrtc
def test_kernels_compile_everywhere_without_spills_and_in_their_budgets():
    """Of those for `REFERENCE` one of each file: .ci/run compiles them all, in a step of its own."""
    jobs = kernel_report.sample()
    first = {unit.file: (unit, arch) for unit, arch in jobs if arch == kernel_report.REFERENCE}
    jobs = [*first.values(), *((unit, arch) for unit, arch in jobs if arch != kernel_report.REFERENCE)]
    done = list(kernel_report.compile_all(jobs))
    record = kernel_report.record(done, jobs)
    assert record["faults"] == []
    assert record["not_done"] == []
    assert all(outcome.usages for outcome in done)


@pytest.mark.parametrize("file", TEXTS)
def test_rules_of_the_folder(file):
    text = TEXTS[file]
    assert text.isascii()  # CuPy writes it to a file in the encoding of the platform
    assert text.startswith("// ")
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    assert file == "ptx.cuh" or not re.search(r"\basm\b", code)
    assert not re.search(r"#\s*include\s*<", code)
    assert not re.search(r"\b(long int|__half|__nv_bfloat16)\b", code)


def test_every_file_is_launched():
    assert sorted({unit.file for unit in kernel_report.units()}) == kernel_report.files()


@pytest.mark.emulated
def test_a_unit_that_is_launched_and_not_listed_is_named(double, emulated, monkeypatch):
    x = double.ones((1, 5, 3), np.float32)
    monkeypatch.setattr(loader, "_modules", {})
    monkeypatch.setattr(loader, "_ready", {})
    gpuconv.im2col(x, 3)
    loader._modules.clear(), loader._ready.clear(), forget(columns_cuda)
    monkeypatch.setattr(columns_cuda, "UNITS", ())
    monkeypatch.setattr("listed_units.listed", set())
    with pytest.raises(AssertionError, match=r"in no UNITS: im2col\.cu .*-DBYTES=4 -DINDEX64=0"):
        gpuconv.im2col(x, 3)


def test_every_kernel_has_a_budget_and_a_signature_that_launches_check():
    for unit in kernel_report.units():
        assert set(kernel_report.budgets(unit.file)) == set(kernel_report.kernels(unit)), unit


def test_every_line_of_what_is_tight_is_true_of_some_unit():
    units = kernel_report.units()
    for file in kernel_report.files():
        for where in kernel_report._TIGHT.findall(TEXTS[file]):
            chosen = kernel_report._selection(where)
            assert any(unit.file == file and kernel_report._is_one_of(*chosen, unit) for unit in units), where


def test_every_budget_of_a_file_is_one_that_is_read_and_holds_for_something():
    units = kernel_report.units()
    for file in kernel_report.files():
        lines = [line for line in TEXTS[file].splitlines() if "budget:" in line]
        steps = kernel_report.step_budgets(file)
        assert len(lines) == len(kernel_report.budgets(file)) + len(steps), file
        for budget in steps:
            holds = [unit for unit in units if unit.file == file and budget.holds_for(unit)]
            assert any(budget.kernel in kernel_report.kernels(unit) for unit in holds), budget
