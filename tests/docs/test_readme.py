"""What the README and the pages of docs/ show is run, and what they name exists."""

import pathlib
import re
import sys

import pytest

import gpuconv
from gpuconv.algorithms import ALGORITHMS
from gpuconv.bench import summary
from gpuconv.bench.record import Record
from gpuconv.planning import DIRECTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {"README.md": README, **{f"docs/{path.name}": path.read_text(encoding="utf-8") for path in DOCS}}
LINKED = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md")),
    *DOCS,
]

INDEX = TEXTS["docs/index.md"]
PARTS = {f"docs/{name}.md" for name in ("index", "guide", "notebooks", "performance", "development")}
"""Pages that list other pages."""

NEEDED = {"docs/large-data.md": ("dask.array", "zarr"), "docs/pytorch.md": ("torch",)}
"""What the Python blocks of a page import beside the extra "test"."""

every_text = pytest.mark.parametrize("name", TEXTS)


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(path):
    """The fragments that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path):
    """Relative links of a page whose file, or whose heading, does not exist."""
    found = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, fragment = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (fragment and fragment not in anchors(target)):
            found.append(link)
    return found


def run_blocks(name):
    namespace = {}
    for number, block in enumerate(blocks("python", TEXTS[name]), 1):
        exec(compile(block, f"{name} python block {number}", "exec"), namespace)


def test_the_python_blocks_run_one_after_the_other(capsys):
    run_blocks("README.md")
    assert "chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [name for name, text in TEXTS.items() if name != "README.md" and blocks("python", text)]
)
def test_the_python_blocks_of_each_page_run_by_themselves(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some pages write files
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    run_blocks(name)
    assert capsys.readouterr().out


def test_pages_with_examples_are_found():
    assert {"docs/training.md", "docs/tuning.md"} <= {name for name, text in TEXTS.items() if blocks("python", text)}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_its_links_lead_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](#one-heading) [b](#another) [c](gone.md) [d](page.md#one-heading) [e](page.md#no)\n"
    )
    assert broken_links(page) == ["#another", "gone.md", "page.md#no"]


def lost_paths(text):
    """What is written as a path of this repository, or as the name of a Python file, and is none."""
    paths = re.findall(r"(?:^|[\s`(])((?:gpuconv|kernels|tests|docs|notebooks|\.ci)/[\w./-]*\w)", text)
    names = re.findall(r"`(\w+\.py)`", text)
    lost = [path for path in paths if not (ROOT / path).exists()]
    return lost + [name for name in names if not any(any((ROOT / top).rglob(name)) for top in ("gpuconv", "tests"))]


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_the_files_it_names_exist(path):
    assert lost_paths(path.read_text(encoding="utf-8").replace("gpuconv/algorithms/<name>.py", "")) == []


def test_a_file_that_is_gone_is_noticed():
    text = "`gpuconv/geometry.py`, gpuconv/gone.py, `tests/cupy_double` and `gone.py`, not `base.py`, kernels/gone.cu"
    assert lost_paths(text) == ["gpuconv/gone.py", "kernels/gone.cu", "gone.py"]


def test_contributing_says_where_to_look_for_what_there_is():
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### Where is what")[2].partition("\n## ")[0]
    )
    rows = [line.split(" | ") for line in table.splitlines() if "`" in line]
    assert len(rows) > 8
    for _, files, names in rows:
        text = "".join((ROOT / file).read_text(encoding="utf-8") for file in re.findall(r"`([^`]+)`", files))
        missing = [
            name
            for name in re.findall(r"`([^`]+)`", names)
            if not re.search(rf"^ *(def |class )?{name.split('.')[-1]}\b|^[A-Z, ]*\b{name}\b", text, re.MULTILINE)
        ]
        assert missing == [], files


def test_the_index_links_every_page_with_its_purpose():
    pages = [path for path in DOCS if f"docs/{path.name}" not in PARTS]
    assert len(pages) > 15
    for path in pages:
        purpose = re.search(rf"^\| \[{path.name}\]\({path.name}\) \| (.*) \|$", INDEX, re.MULTILINE)
        assert purpose, path.name
        assert TEXTS[f"docs/{path.name}"].split("\n\n")[1].startswith(purpose[1].removesuffix(".")), path.name


def test_every_page_is_in_the_tables_of_contents():
    listed = {name for part in PARTS for name in re.findall(r"^([\w-]+)$", TEXTS[part], re.MULTILINE)}
    assert {path.stem for path in DOCS} - listed == {"index"}


def test_it_is_short_and_says_first_what_it_is_not():
    assert len(README.split()) < 900
    assert (
        README.index("No GPU has run") < README.index("## Who") < README.index("## Install") < README.index("## Speed")
    )
    assert not re.search(r"^[| ]+$", README, re.MULTILINE), "a table without heads"


def test_the_two_commands_are_one_line_each_from_a_fresh_clone():
    lines = [block.strip() for block in blocks("bash")]
    install = 'python3 -m venv .venv && .venv/bin/python -m pip install -e ".[{}]" && '
    assert install.format("demo") + ".venv/bin/gpuconv demo" in lines
    assert install.format("demo,test") + ".venv/bin/python -m pytest -n auto" in lines


def test_every_extra_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    groups = [group for text in TEXTS.values() for group in re.findall(r"(?:\.|gpuconv)\[([\w,]+)\]", text)]
    named = {extra for group in groups for extra in group.split(",")}
    assert {"demo", "test", "cpu", "cuda12", "models"} <= named <= set(extras)


@every_text
def test_every_command_named_exists(name):
    cli = pytest.importorskip("gpuconv.cli")
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    named = set(re.findall(r"(?:^|`|bin/)gpuconv ([a-z]+)", TEXTS[name], re.MULTILINE))
    if name == "README.md":
        assert named == commands
    assert named <= commands


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {gpuconv.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{gpuconv.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_function_it_names_exists():
    table = README.partition("## What is in it")[2].partition("\n## ")[0]
    names = {
        name
        for row in table.splitlines()
        if not row.startswith(("| padding", "| dtypes", "| algorithms"))
        for name in re.findall(r"`(\w+)`", row)
    }
    assert len(names) > 15
    assert names <= set(gpuconv.__all__)


def measured(file, suite):
    """By direction, the mean over the layers of a suite of how many times as fast as PyTorch gpuconv was."""
    rows = summary.groups(Record.read(ROOT / "gpuconv" / "bench" / "results" / f"{file}.json").rows)
    by_direction = [[row for row in rows[suite] if row.direction == direction] for direction in DIRECTIONS]
    return [summary.Mean.of(some, "torch") for some in by_direction]


RANGE = "{0.mean:.2f} ({0.low:.2f} to {0.high:.2f})"
EPYC, XEON = "amd-epyc-2026-11-23", "intel-xeon-2026-12-01"


@pytest.mark.parametrize(
    ("row", "file", "suite", "form"),
    [
        ("resnet50", EPYC, "resnet50", RANGE),
        ("vgg16", EPYC, "vgg16", RANGE),
        ("unet, 3×3", EPYC, "unet", RANGE),
        ("all of these", EPYC, "dense", "{0.mean:.2f}"),
        ("3×3 of stride 1", EPYC, "3×3, stride 1", "{0.mean:.2f}"),
        ("mobilenetv2", EPYC, "mobilenetv2_dw", RANGE),
        ("convnext", f"{EPYC}-stems", "convnext_dw7x7", RANGE),
        ("7×7 of stride 2", f"{EPYC}-stems", "stems", RANGE),
        ("one 63×63", f"{EPYC}-large-kernel", "large_kernel", "{0.mean:.0f}"),
    ],
)
def test_the_figures_of_the_benchmarks_are_those_of_the_saved_results(row, file, suite, form):
    line = next(line for line in TEXTS["docs/benchmarks.md"].splitlines() if line.startswith(f"| {row}"))
    assert line.strip("| ").split(" | ")[1:] == [form.format(mean) for mean in measured(file, suite)]


def test_its_figures_are_those_of_the_saved_results():
    for machine, files in {"AMD EPYC": (EPYC, EPYC), "Intel Xeon": (XEON, XEON)}.items():
        (line,) = [line for line in README.splitlines() if line.startswith("| ") and machine in line]
        forward = [measured(file, suite)[0] for file, suite in zip(files, ("resnet50", "mobilenetv2_dw"), strict=True)]
        assert line.strip("| ").split(" | ")[1:] == [RANGE.format(mean) for mean in forward]


def test_it_lists_the_algorithms_there_are():
    row = next(line for line in README.splitlines() if line.startswith("| algorithms"))
    assert re.findall(r"`(\w+)`", row) == [algorithm.name for algorithm in ALGORITHMS]
