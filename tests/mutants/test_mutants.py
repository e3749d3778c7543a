"""tests/mutants/mutants.py: what it plants still fits the kernels, and it tells what is caught from what is not."""

import mutants
import pytest

ALL = mutants.mutants()


@pytest.mark.parametrize("mutant", ALL, ids=lambda one: f"{one.file}: {one.what}")
def test_no_mutant_is_stale(mutant):
    """The text of a kernel has changed: give the mistake its new text in mutants.txt."""
    assert len(mutant.places()) == 1
    assert mutant.text != mutant.other


def test_each_is_there_once():
    assert len({(one.file, one.what) for one in ALL}) == len(ALL)
    assert len({(one.file, one.text, one.other) for one in ALL}) == len(ALL)


def test_every_file_has_some():
    files = {path.name for path in mutants.KERNELS.glob("*.cu*")}
    assert {one.file for one in ALL} == set(mutants.SUITES) == files


@pytest.mark.parametrize("text", ["im2col.cu\n- a\n+ b", "im2col.cu: what\n+ b", "im2col.cu: what\n- a\n* b"])
def test_what_is_no_mutant(text):
    with pytest.raises(ValueError, match="not a mutant"):
        mutants.mutants(text)


def test_text_of_several_lines_and_nothing_in_its_place():
    (one,) = mutants.mutants("# a remark\na.cu: a barrier: gone\n-   x;\n-   y;\n")
    assert one == mutants.Mutant("a.cu", "a barrier: gone", "  x;\n  y;", "")


@pytest.mark.parametrize(("caught", "status"), [(20, 0), (19, 0), (18, 1)])
def test_the_part_that_is_caught_decides(monkeypatch, capsys, caught, status):
    some = [mutants.Mutant("im2col.cu", f"mistake {number}", "#pragma unroll", "no") for number in range(20)]
    verdicts = [mutants.Verdict(number < caught, "a test") for number in range(20)]
    monkeypatch.setattr(mutants, "mutants", lambda: some)
    monkeypatch.setattr(mutants.Mutant, "places", lambda one: [7])
    monkeypatch.setattr(mutants, "tried", lambda one: verdicts[some.index(one)])
    assert mutants.main(["--trust"]) == status
    told = capsys.readouterr().out
    assert f"{caught} of 20 caught" in told
    assert ("\nSURVIVED im2col.cu:7: mistake 19\n    - #pragma unroll\n    + no" in told) == (caught < 20)


def test_a_stale_mutant_stops_everything(monkeypatch, capsys):
    monkeypatch.setattr(mutants, "mutants", lambda: [mutants.Mutant("im2col.cu", "what", "nowhere", "")])
    assert mutants.main([]) == 1
    assert "STALE im2col.cu:?: what" in capsys.readouterr().out


@pytest.mark.emulated
def test_a_mistake_is_planted_in_the_kernels_that_are_tested(emulated, monkeypatch):
    suite = {"conv.cuh": (f"{mutants.CUDA}/test_gemm.py::test_a_nan_passes_the_epilogue",)}
    monkeypatch.setattr(mutants, "SUITES", suite)
    (mistake,) = (one for one in ALL if one.what == "relu makes zero of a NaN")
    verdict = mutants.tried(mistake)
    assert verdict.caught
    assert "test_a_nan_passes_the_epilogue" in verdict.by
    harmless = mutants.Mutant("conv.cuh", "nothing", "#pragma once", "#pragma once ")
    assert not mutants.tried(harmless).caught
    wrong = mutants.Mutant("conv.cuh", "no C++", "#pragma once", "#pragma once\n?")
    verdict = mutants.tried(wrong)
    assert not verdict.caught
    assert "does not compile" in verdict.by
