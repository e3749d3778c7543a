"""The kernels that the library can launch, compiled for every architecture; and the rules of the folder kernels/."""

import re

import pytest
from nvrtc_here import needs_nvrtc

from gpuconv import cuda, kernel_report

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(cuda.folder().glob("*.cu*"))}


@pytest.mark.xfail(reason="direct, depthwise and im2col spill in a few units of sm_70, sm_90 and sm_100")
@needs_nvrtc
def test_kernels_compile_everywhere_without_spills_and_in_their_budgets():
    jobs = kernel_report.sample()
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


def test_every_kernel_has_a_budget_and_a_signature_that_launches_check():
    for unit in kernel_report.units():
        assert set(kernel_report.budgets(unit.file)) == set(kernel_report.kernels(unit)), unit
