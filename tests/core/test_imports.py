"""Imports point down only, CuPy has one door, and importing gpuconv brings nothing heavy along."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import gpuconv

PACKAGE = pathlib.Path(gpuconv.__file__).parent

# From the bottom up. A name that ends in a dot is a folder. On one floor imports may go sideways, never in a circle.
# The package itself stands under the programs, which use it as anyone else does.
FLOORS = [
    ["errors", "typing", "settings", "version", "support."],
    ["geometry", "backend"],
    ["cuda.", "simd."],
    ["cpu."],
    ["algorithms."],
    ["heuristics", "autotune", "planning"],
    ["functions.", "compat.", "dask", "signal", "torch"],
    ["activations", "initializers", "optimizers", "schedulers", "losses", "layers.", "models."],
    ["__init__"],
    ["tools.", "bench.", "demo.", "cli", "__main__"],
]


def module_name(path):
    """gpuconv/algorithms/__init__.py -> algorithms.__init__"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(name):
    for number, residents in enumerate(FLOORS):
        if any(name == r or (r.endswith(".") and name.startswith(r)) for r in residents):
            return number
    raise AssertionError(f"{name} stands on no floor: give it one in the design and here")


def local(module):
    """The name in SOURCES of a module of gpuconv; None for any other module, or for something inside one."""
    inner = module.removeprefix("gpuconv").lstrip(".")
    ours = module == "gpuconv" or module.startswith("gpuconv.")
    return next((name for name in (inner, f"{inner}.__init__".lstrip(".")) if ours and name in SOURCES), None)


def imports(name):
    """Every module that a file imports by its full name, at its top, inside a function or for type checkers only."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: import by the full name"
            for alias in node.names:  # "from gpuconv import settings" takes a module, not a name out of one
                inner = f"{node.module}.{alias.name}"
                yield inner if local(inner) else node.module


def inside(name):
    """The modules of gpuconv that a file imports."""
    return {local(module) for module in imports(name)} - {None, name}


def test_contributing_shows_these_floors():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| F(\d) \| ([^|]*) \|", text, re.MULTILINE))
    shown = [set(re.findall(r"`([^`]+)`", rows[number])) for number in sorted(rows)]
    assert shown == [{name.replace(".", "/") for name in residents} for residents in FLOORS]


def test_every_module_has_a_floor():
    assert {"errors", "geometry", "backend"} <= set(SOURCES)
    for name in SOURCES:
        floor(name)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    assert not {other for other in inside(name) if floor(other) > floor(name)}


def test_no_circles():
    left = {name: inside(name) for name in SOURCES}
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"among these some import each other: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_the_base_of_the_algorithms_is_below_its_siblings_and_the_list_above():
    assert not {other for other in inside("algorithms.base") if other.startswith("algorithms.")}
    siblings = {name for name in SOURCES if name.startswith("algorithms.")} - {"algorithms.__init__"}
    assert not {name for name in siblings if "algorithms.__init__" in inside(name)}


def test_what_runs_on_one_device_imports_nothing_of_the_other():
    for here, there in (("cpu", "cuda"), ("cuda", "cpu")):
        names = [name for name in SOURCES if name.startswith(f"algorithms.{here}.")]
        assert len(names) > 5
        assert not {other for name in names for other in inside(name) if other.startswith(f"algorithms.{there}.")}


def test_only_backend_imports_cupy():
    assert [name for name in SOURCES if any(m.split(".")[0] == "cupy" for m in imports(name))] == ["backend"]


def loaded_by(statement):
    """The modules in sys.modules of a fresh interpreter after a statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(json.loads(done.stdout))


def test_importing_gpuconv_brings_nothing_heavy():
    new = loaded_by("import gpuconv") - loaded_by("import numpy")
    heavy = {"cupy", "numba", "llvmlite", "typer", "rich", "click", "matplotlib", "PIL", "sklearn", "scipy", "torch"}
    heavy |= {"dask", "ml_dtypes"}
    assert not {module for module in new if module.split(".")[0] in heavy}
    assert "gpuconv.functions.conv" in new
    assert not {module for module in new if module.startswith(("gpuconv.layers", "gpuconv.models"))}


def test_what_training_needs_is_there_when_it_is_named():
    assert "gpuconv.models.fit" in loaded_by("import gpuconv; gpuconv.models.Sequential, gpuconv.layers.Conv2D")
    with pytest.raises(AttributeError, match="has no attribute 'layer'"):
        gpuconv.layer  # noqa: B018
    assert {"layers", "models"} <= set(dir(gpuconv))


def test_convolving_on_the_cpu_does_not_look_for_cupy():
    statement = (
        "import numpy as np, gpuconv; y = gpuconv.conv2d(np.ones((1, 5, 5, 2)), np.ones((3, 3, 2, 2))); "
        "str(gpuconv.explain(np.ones((1, 5, 5, 2)), np.ones((3, 3, 2, 2))))"
    )
    assert not {module for module in loaded_by(statement) if module.split(".")[0] == "cupy"}


def test_everything_promised_is_exported():
    names = ["im2col", "col2im", "pad", "explain", "plan", "ConvGeometry", "ConvPlan", "settings", "__version__"]
    for d in (1, 2, 3):
        names += [f"conv{d}d", f"conv{d}d_input_grad", f"conv{d}d_weight_grad", f"conv_transpose{d}d"]
        names += [f"max_pool{d}d", f"avg_pool{d}d", f"max_pool{d}d_grad", f"avg_pool{d}d_grad", f"max_unpool{d}d"]
    names += ["GeometryError", "DTypeError", "DeviceError", "AlgorithmError", "WorkspaceError", "KernelError"]
    assert not [name for name in names if not hasattr(gpuconv, name)]
    assert not [name for name in gpuconv.__all__ if not hasattr(gpuconv, name)]
    assert set(names) - {"settings", "__version__"} <= set(gpuconv.__all__)
