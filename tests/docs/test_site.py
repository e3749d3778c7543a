"""The parts of the documentation site that are made; every public name has an example. No test builds the site."""

import ast
import doctest
import importlib.util
import pathlib
import sys

import pytest

import gpuconv
from gpuconv.algorithms import ALGORITHMS

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def making():
    spec = importlib.util.spec_from_file_location("making", DOCS / "making.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_example(module, names):
    """The names whose docstring runs nothing but imports."""
    parser = doctest.DocTestParser()

    def runs_something(name):
        examples = parser.get_examples(getattr(module, name).__doc__ or "")
        return any(not example.source.startswith(("import ", "from ")) for example in examples)

    return [name for name in names if not runs_something(name)]


def test_every_public_name_has_an_example(making):
    shown = {name for module in making.importable() for name in making.names_of(module)}
    functions = {name for name in gpuconv.__all__ if callable(getattr(gpuconv, name))}
    assert functions <= shown
    assert {"Conv2D", "Sequential", "Adam", "ReLU", "convolve2d", "convolution_forward"} <= shown
    for module in making.importable():
        assert without_example(sys.modules[module], making.names_of(module)) == [], module


def test_a_name_without_an_example_is_noticed():
    class Module:
        def shown():
            """>>> 1 + 1
            2
            """

        def bare():
            """Nothing."""

        def imported():
            """>>> import numpy"""

    assert without_example(Module, ["shown", "bare", "imported"]) == ["bare", "imported"]


def test_the_support_matrix_says_what_the_algorithms_say(making):
    text = making.support_of_this_machine()
    for name, row in {
        "direct": "| `direct` | - | - | yes | yes | - | - |",
        "winograd": "| `winograd` | yes | yes | yes | yes | yes | yes |",
        "implicit_gemm": "| `implicit_gemm` | yes | yes | yes | - | - | - |",
    }.items():
        device = text.partition("## CPU" if name != "implicit_gemm" else "## CUDA")[2]
        table = device.partition("dense, 3×3\n")[2].partition("###")[0]
        assert row in table, table
        assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == [
            algorithm.name for algorithm in ALGORITHMS
        ]


def test_the_gallery_shows_every_example(making):
    assert making.unused(DOCS / "gallery") == []
    assert len(making.ORDER) >= 10
    for name in making.ORDER:
        title, words, code = making.parts_of(DOCS / "gallery" / f"{name}.py")
        assert title
        assert words
        assert len(code.splitlines()) <= 50, f"{name} is not short"
        imported = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
            for node in ast.parse(code).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        }
        assert imported <= {"sys", "tempfile", "pathlib", "numpy", "matplotlib", "sklearn", "gpuconv"}


def test_an_example_runs_and_draws(making, tmp_path):
    """One of them; the build of the site runs all."""
    making.run_example(DOCS / "gallery" / "mri_coils.py", tmp_path / "picture.png")
    wrong = tmp_path / "a" / "b" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("raise ValueError('no such luck')")
    with pytest.raises(RuntimeError, match="no such luck"):
        making.run_example(wrong, tmp_path / "none.png")
    wrong.write_text("")
    with pytest.raises(RuntimeError, match="saved no picture"):
        making.run_example(wrong, tmp_path / "none.png")
