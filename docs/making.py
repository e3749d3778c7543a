"""Makes the parts of the documentation that are not written by hand, in the folder `_made`.

- `api/`: one page per public name, from its docstring.
- `support.md`: which algorithm takes which dtype in which pass on which device, as `refusal` answers.
- `gallery/`: one page per example of `gallery/`, with its code and the picture that it draws when it is run here.
- `notebooks/`: copies, because Sphinx reads nothing outside of its folder.
- copies of the pages at the top of the repository.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

REPOSITORY = "https://github.com/gpuconv/gpuconv"
PAGES = {
    "README.md": "/index.md",
    "CONTRIBUTING.md": "/_made/contributing.md",
    "CHANGELOG.md": "/_made/changelog.md",
    "RELEASING.md": "/_made/releasing.md",
    "SECURITY.md": "/_made/security.md",
}
"""The pages of the site for files at the top of the repository."""

MODULES = {
    "gpuconv": "Convolution, pooling, plans, devices and errors",
    "gpuconv.layers": "Trainable layers",
    "gpuconv.models": "Networks",
    "gpuconv.activations": "Activations of layers",
    "gpuconv.initializers": "Initializers of weights",
    "gpuconv.losses": "Losses",
    "gpuconv.optimizers": "Optimizers",
    "gpuconv.schedulers": "Schedules of the learning rate",
    "gpuconv.signal": "SciPy's convolutions",
    "gpuconv.torch": "Convolutions of PyTorch tensors",
    "gpuconv.dask": "Convolutions of Dask arrays",
    "gpuconv.compat.cudnn": "The convolutions of cupy.cudnn",
}
"""The modules of the API reference, and what they hold."""

SECONDS = 240
"""The longest that an example of the gallery may take, on a machine that has much else to do."""

ORDER = (
    "blur_and_deblur",
    "gabor_bank",
    "edges_of_uint8",
    "denoising",
    "motion_in_video",
    "audio_filter_bank",
    "template_matching",
    "kernels_per_sample",
    "mri_coils",
    "larger_than_memory",
    "game_of_life",
    "receptive_field",
)
"""The examples, in the order of the page."""


def is_there(package):
    return importlib.util.find_spec(package) is not None


def names_of(module_name):
    """The public names of a module: of `__all__`, or what is defined in it."""
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module_name and callable(value)
    ]
    return [name for name in names if not isinstance(getattr(module, name), (dict, type(module)))]


def importable():
    """The modules that can be imported here: those of PyTorch and Dask need them."""
    return [name for name in MODULES if name.rpartition(".")[2] not in ("torch", "dask") or is_there(name[8:])]


def page_of(name):
    """The full name of what has a page under this short one; None if nothing does."""
    if not _SHORT:
        for module in importable():
            for found in names_of(module):
                _SHORT.setdefault(found, f"{module}.{found}")
    return _SHORT.get(name) or (name if name in _SHORT.values() else None)


_SHORT = {}


def make(folder):
    """Make everything, anew where it may have changed."""
    made = folder / "_made"
    for part in ("notebooks", "api"):
        shutil.rmtree(made / part, ignore_errors=True)
        (made / part).mkdir(parents=True)
    _pages(folder.parent, made)
    _notebooks(folder.parent / "notebooks", made / "notebooks")
    _reference(made / "api")
    write(made / "support.md", support_of_this_machine())
    gallery(folder / "gallery", made / "gallery")


def write(path, text):
    """Write a file if it would change, so that Sphinx reads again only what did."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _pages(root, made):
    for file, page in PAGES.items():
        if file != "README.md":
            text = (root / file).read_text(encoding="utf-8")
            write(made / Path(page).name, re.sub(r"\]\((?!https?:|#)(?:\./)?([^)]+)\)", r"](../\1)", text))


def _notebooks(source, target):
    for path in sorted(source.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({REPOSITORY}/blob/main/\1)", text)
        (target / path.name).write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the API reference


def _reference(folder):
    index = ["# API reference\n", "Every public name has a page with its arguments, its errors and an example.\n"]
    pages = []
    for module_name in importable():
        names = names_of(module_name)
        stem = module_name.replace(".", "_")
        pages.append(stem)
        title = f"{module_name}: {MODULES[module_name].lower()}" if module_name != "gpuconv" else module_name
        lines = [
            title, "=" * len(title), "", f".. currentmodule:: {module_name}", "", f".. automodule:: {module_name}",
            "   :no-members:", "   :no-index:", "", ".. autosummary::", "   :toctree: names", "   :nosignatures:", "",
            *(f"   {name}" for name in names), "",
        ]  # fmt: skip
        write(folder / f"{stem}.rst", "\n".join(lines))
    rows = "\n".join(f"- [{name}]({name.replace('.', '_')}.rst): {MODULES[name]}" for name in importable())
    index += [rows, "\n```{toctree}\n:hidden:\n", *pages, "```\n"]
    write(folder / "index.md", "\n".join(index))


# ------------------------------------------------------------------------------------------------ the support matrix

LAYERS = {
    "dense, 3×3": "n8_h56w56_c64_k64_r3s3_p1",
    "dense, 3×3, stride 2": "n8_h56w56_c64_k64_r3s3_p1_st2",
    "dense, 1×1": "n8_h56w56_c64_k64_r1s1",
    "depthwise, 3×3": "n8_h56w56_c64_k64_r3s3_p1_g64",
    "dense, 31×31": "n1_h128w128_c4_k4_r31s31_p15",
}


def _posing_as_a_gpu():
    """Tell algorithms that ask how large the device is, and of which architecture, of one where there is none."""
    properties = {"multiProcessorCount": 132, "major": 9, "minor": 0}
    double = types.ModuleType("cupy")
    double.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDeviceProperties=lambda _number: properties),
        Device=lambda _number: types.SimpleNamespace(compute_capability="90"),
    )
    return mock.patch.dict(sys.modules, {} if is_there("cupy") else {"cupy": double})


def support_of_this_machine():
    """The page for the algorithms and dtypes that there are here."""
    with _posing_as_a_gpu():
        return support()


def support():
    """The page that says which algorithm takes what, as `refusal` answers, for a few kinds of layers."""
    from gpuconv.algorithms import ALGORITHMS, Problem
    from gpuconv.backend import DTYPES, as_dtype
    from gpuconv.geometry import ConvGeometry
    from gpuconv.planning import DIRECTIONS

    dtypes = [name for name in DTYPES if name != "bfloat16" or is_there("ml_dtypes")]

    def cell(algorithm, device, dtype, layer):
        taken = [
            precision
            for precision in ("strict", "fast")
            if all(
                algorithm.refusal(Problem(g, as_dtype(dtype, "docs"), device, direction, precision, 2**28)) is None
                for g in [ConvGeometry.parse(LAYERS[layer])]
                for direction in DIRECTIONS
            )
        ]
        some = [
            direction
            for direction in DIRECTIONS
            if algorithm.refusal(
                Problem(ConvGeometry.parse(LAYERS[layer]), as_dtype(dtype, "docs"), device, direction, "fast", 2**28)
            )
            is None
        ]
        if "strict" in taken:
            return "yes"
        if taken:
            return "fast"
        return ", ".join(some).replace("_", " ") if some else "-"

    lines = [
        "# Support matrix\n",
        "Which algorithm takes which dtype, as each algorithm itself answers (`refusal`). This page is made from those",
        'answers when the site is built. **yes**: all three passes. **fast**: all three under `precision="fast"` only.',
        "The name of a pass: that one only. **-**: refused. Integers (int8 to int64) are computed exactly by the",
        "algorithms of floating-point numbers, forward only. The rows of a CUDA device say what the library would run;",
        "no GPU has run it yet.\n",
    ]
    for device, title in (("cpu", "CPU, with Numba"), ("cuda:0", "CUDA")):
        lines.append(f"## {title}\n")
        for layer, problem in LAYERS.items():
            lines += [f"### {title}: {layer}\n", f"`{problem}`\n"]
            lines += ["| algorithm | " + " | ".join(dtypes) + " |", "|-" * (len(dtypes) + 1) + "|"]
            for algorithm in ALGORITHMS:
                cells = [cell(algorithm, device, dtype, layer) for dtype in dtypes]
                lines.append(f"| `{algorithm.name}` | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the gallery


def run_example(path, picture):
    """Run an example of the gallery in a process of its own, and have it save its picture.

    Raises
    ------
    RuntimeError
        If it fails or draws nothing; the message has its errors.
    """
    root = path.parents[2]
    places = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), str(picture)],
        capture_output=True, text=True, check=False, env=environment, timeout=SECONDS,
    )  # fmt: skip
    if done.returncode or not picture.exists():
        raise RuntimeError(f"{path.name}: {done.stderr or 'it saved no picture'}")
    return done.stdout


def parts_of(path):
    """The title, the text and the code of an example: its docstring, and all below it."""
    import ast

    text = path.read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    title, _, words = docstring.value.value.partition("\n")
    code = "\n".join(text.splitlines()[docstring.end_lineno :]).strip("\n")
    return title.rstrip("."), words.strip(), code


def gallery(source, target):
    """Make a page per example, and one that shows all pictures. As many run at a time as there are cores."""
    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name: _drawn(source / f"{name}.py", target / f"{name}.png"), ORDER))
    cards = []
    for name in ORDER:
        title, words, code = parts_of(source / f"{name}.py")
        shown = (target / f"{name}.txt").read_text(encoding="utf-8")
        printed = f"\n```text\n{shown.rstrip()}\n```\n" if shown else ""
        write(
            target / f"{name}.md",
            f"# {title}\n\n{words}\n\n![{title}]({name}.png)\n{printed}\n```python\n{code}\n```\n",
        )
        cards.append(f"## [{title}]({name}.md)\n\n[![{title}]({name}.png)]({name}.md)\n")
    toc = "\n".join(ORDER)
    head = "# Gallery\n\nShort programs with what they draw. Each runs by itself, on NumPy alone, in a few seconds.\n\n"
    write(target / "index.md", f"{head}" + "\n".join(cards) + f"\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n")


def _drawn(path, picture):
    """Run an example unless its picture is there and newer."""
    output = picture.with_suffix(".txt")
    if output.exists() and picture.exists() and picture.stat().st_mtime >= path.stat().st_mtime:
        return
    start = time.perf_counter()
    output.write_text(run_example(path, picture), encoding="utf-8")
    sys.stderr.write(f"gallery: {path.stem} in {time.perf_counter() - start:.1f} s\n")


def unused(folder):
    """The examples that are in the folder and not on the page."""
    there = {path.stem for path in folder.glob("*.py")}
    return sorted(there.symmetric_difference(ORDER))
