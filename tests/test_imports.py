"""Imports point down only, CuPy has one door, and importing gpuconv brings nothing heavy along."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

import gpuconv

PACKAGE = pathlib.Path(gpuconv.__file__).parent

# From the bottom up. A name ending in a dot is a whole folder. On one floor imports may go sideways, never in a circle.
FLOORS = [
    ["errors", "typing", "settings"],
    ["geometry", "backend"],
    ["cuda", "cpu"],
    ["algorithms."],
    ["heuristics", "autotune", "plan"],
    ["functional", "pooling"],
    ["activations", "initializers", "optimizers", "schedulers", "losses", "layers.", "models"],
    ["integrations.", "bench.", "cli", "check", "demo", "__main__"],
    ["__init__"],
]


def module_name(path):
    """gpuconv/algorithms/__init__.py -> algorithms.__init__"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(name):
    for number, residents in enumerate(FLOORS):
        if any(name == r or (r.endswith(".") and name.startswith(r)) for r in residents):
            return number
    raise AssertionError(f"{name} stands on no floor: give it one in DESIGN and here")


def imports(name):
    """(module, where) for every import in a file, at the top or inside a function, except for type checkers only."""
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: import by the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name):
    """The modules of gpuconv that a file imports, by their names in SOURCES."""
    for module in imports(name):
        if module == "gpuconv" or module.startswith("gpuconv."):
            local = module.removeprefix("gpuconv").lstrip(".")
            for candidate in (local, f"{local}.__init__".lstrip(".")):
                if candidate in SOURCES and candidate != name:
                    yield candidate


def test_every_module_has_a_floor():
    assert {"errors", "geometry", "backend"} <= set(SOURCES)
    for name in SOURCES:
        floor(name)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    above = {other for other in inside(name) if floor(other) > floor(name)}
    # "from gpuconv import settings" names the package on the way to a module
    above -= {"__init__"} if from_package_takes_modules_only(name) else set()
    assert not above, f"{name} (floor {floor(name)}) imports {above}"


def from_package_takes_modules_only(name):
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "gpuconv"
        for alias in node.names
    }
    plainly = any(
        alias.name == "gpuconv" for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    )
    return not plainly and all(module in SOURCES or f"{module}.__init__" in SOURCES for module in taken)


def test_no_circles():
    below = {name: set(inside(name)) - {"__init__"} for name in SOURCES}
    while below:
        free = {name for name, needs in below.items() if not needs & set(below)}
        assert free, f"these import each other: {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


def test_the_base_of_the_algorithms_is_below_its_siblings():
    assert not {other for other in inside("algorithms.base") if other.startswith("algorithms.")}
    siblings = {name for name in SOURCES if name.startswith("algorithms.")} - {"algorithms.__init__"}
    assert not {name for name in siblings if "algorithms.__init__" in set(inside(name)) and takes_the_list(name)}


def takes_the_list(name):
    return any(
        module == "gpuconv.algorithms.ALGORITHMS" or module == "gpuconv.algorithms.by_name" for module in imports(name)
    )


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
    heavy = {"cupy", "typer", "rich", "matplotlib", "sklearn", "scipy", "torch", "dask", "ml_dtypes", "PIL", "click"}
    assert not {module for module in new if module.split(".")[0] in heavy}
    assert "gpuconv.functional" in new


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
    names += ["max_pool2d", "avg_pool2d", "max_pool2d_grad", "avg_pool2d_grad"]
    names += ["GeometryError", "DTypeError", "DeviceError", "AlgorithmError", "WorkspaceError", "KernelError"]
    assert not [name for name in names if not hasattr(gpuconv, name)]
    assert not [name for name in gpuconv.__all__ if not hasattr(gpuconv, name)]
    assert set(names) - {"settings", "__version__"} <= set(gpuconv.__all__)
