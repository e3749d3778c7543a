"""The notebooks run from top to bottom, and what they show in a browser is what a run shows."""

import html
import re

import pytest
import run_notebooks
from array_modules import ON_DEVICES, array_module
from matplotlib import pyplot as plt

import gpuconv
from gpuconv import planning

nbformat = pytest.importorskip("nbformat")
exceptions = pytest.importorskip("nbclient.exceptions")

LARGEST = 400_000
"""Bytes of a notebook, pictures included: a browser shows it at once, and the history stays light."""

LESS = {
    "(8, 56, 56, 16)": "(1, 8, 8, 16)",
    "repeats=9": "repeats=1",
    "(1, 2, 4, 8, 16)": "(1, 2)",
    "h28w28_c64_k64": "h8w8_c16_k16",
    "(4, 30, 30, 16)": "(1, 9, 9, 16)",
    "(256, 12, 12, 1)": "(64, 6, 6, 1)",
}

every_notebook = pytest.mark.parametrize("path", run_notebooks.NOTEBOOKS, ids=lambda path: path.stem[:2])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def differences(committed, fresh):
    """In words, where two runs of a notebook show different things, in cells that must not vary."""
    found = []
    for old, new in zip(code_cells(committed), code_cells(fresh), strict=True):
        if len(run_notebooks.images(old)) != len(run_notebooks.images(new)):
            found.append(f"the pictures of {new.source!r}")
        if "varies" not in new.metadata.get("tags", []) and run_notebooks.texts(old) != run_notebooks.texts(new):
            found.append(f"{new.source!r} shows {run_notebooks.texts(new)}, saved is {run_notebooks.texts(old)}")
    return found


@pytest.fixture(params=ON_DEVICES)
def gpu_xp(request):
    with array_module(request.param) as module:
        yield module


@every_notebook
def test_it_runs_and_shows_what_is_saved_in_it(path):
    committed = nbformat.read(path, as_version=4)
    found = differences(committed, run_notebooks.execute(path))
    assert found == [], "python tests/docs/run_notebooks.py saves what a run shows"


@every_notebook
def test_it_was_saved_after_a_run_of_all_its_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum(len(run_notebooks.images(cell)) for cell in cells) >= 2
    assert path.stat().st_size < LARGEST


@every_notebook
def test_nothing_of_one_machine_is_saved_in_it(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    assert {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])} <= {"varies"}
    folders = "|".join(f"/{name}/" for name in ("home", "tmp", "root"))
    assert not re.search(rf"({folders}|[A-Z]:\\\\)", path.read_text(encoding="utf-8"))


@every_notebook
def test_its_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (path.parent / target).exists(), target


def test_there_are_five():
    assert [path.name[:3] for path in run_notebooks.NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_"]


def test_the_one_about_gpus_runs_on_a_gpu(gpu_xp, capsys):
    """In this process, where a GPU, or the double of CuPy, is to be found; with less to do, as the double is slow."""
    plt.switch_backend("Agg")
    (path,) = run_notebooks.FOLDER.glob("04_*.ipynb")
    namespace, used = {}, set()
    for cell in code_cells(nbformat.read(path, as_version=4)):
        source = cell.source
        for much, little in LESS.items():
            source = source.replace(much, little)
        used |= {much for much in LESS if much in cell.source}
        exec(compile(source, path.name, "exec"), namespace)
    assert used == set(LESS)
    plt.close("all")
    shown = capsys.readouterr().out
    for line in (
        "this notebook runs on cuda:0",
        "x in CuPy, w in NumPy",
        "col2im: True",
        "same bits: True",
        "on cuda:0",
    ):
        assert line in shown


# ------------------------------------------------------------------------------------------------ the test itself


@pytest.fixture
def small(tmp_path):
    """A notebook of one cell, with what it shows saved as `shown`."""

    def make(source, shown, tags=()):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=shown)]
        path = tmp_path / "small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        return path

    return make


def test_an_error_in_a_cell_is_noticed(small):
    with pytest.raises(exceptions.CellExecutionError, match="no such luck"):
        run_notebooks.execute(small("raise ValueError('no such luck')", ""))


@pytest.mark.parametrize(("shown", "tags", "count"), [("1\n", [], 0), ("2\n", [], 1), ("2\n", ["varies"], 0)])
def test_an_output_that_no_longer_holds_is_noticed(small, shown, tags, count):
    path = small("print(1)", shown, tags)
    assert len(differences(nbformat.read(path, as_version=4), run_notebooks.execute(path))) == count


# ------------------------------------------------------------------------------------------------ plans


TABLE_ROW = re.compile(r"<tr[^>]*><td[^>]*>(\w+)</td><td[^>]*>(\w+)</td><td[^>]*>([^<]*)</td></tr>")


def saved_plans(notebook):
    """The plans of the CPU that a notebook shows as tables: head, and rows of algorithm, status and note."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            shown = output.get("data", {}).get("text/html", "")
            if head := re.search(r"<caption[^>]*>(n\d\S*)  (\w+) (\w+)  cpu  (\w+)  ", shown):
                yield head.groups(), TABLE_ROW.findall(shown)


def outdated(head, rows):
    """In words, where a saved plan is not what the code plans.

    Bytes of workspace depend on caches, and what becomes of amx depends on the processor, so neither counts.
    """
    problem, dtype, precision, direction = head
    plan = gpuconv.plan(problem, dtype, direction=direction, precision=precision)
    shown = [(c.name, c.status, html.escape(c.note)) for c in plan.candidates]
    fresh, saved = (
        [(name, status, note if status == "refused" else "") for name, status, note in some if name != "amx"]
        for some in (shown, rows)
    )
    return [] if fresh == saved else [f"{problem} {direction}: planned is {fresh}, saved is {saved}"]


@pytest.fixture
def one_machine(monkeypatch, without_amx):
    """A plan follows from the problem, the width of vectors, the number of threads, and whether there is AMX."""
    pytest.importorskip("numba")
    monkeypatch.setattr(gpuconv.cpu, "vector_bytes", lambda: 64)
    monkeypatch.setattr(gpuconv.settings, "threads", 2)
    planning._choose.cache_clear()
    yield
    planning._choose.cache_clear()


def test_the_plans_saved_in_the_notebooks_are_those_that_the_code_makes(one_machine):
    found, count = [], 0
    for path in run_notebooks.NOTEBOOKS:
        for head, rows in saved_plans(nbformat.read(path, as_version=4)):
            count += 1
            if not any(note.startswith("tuned") for _, _, note in rows):
                found += outdated(head, rows)
    assert count >= 4
    assert found == [], "python tests/docs/run_notebooks.py saves what a run shows"


def test_an_outdated_plan_is_noticed(one_machine):
    plan = gpuconv.plan("n1_h8w8_c4_k4_r3s3_p1")
    head = ("n1_h8w8_c4_k4_r3s3_p1", "float32", "strict", "forward")
    rows = TABLE_ROW.findall(plan._repr_html_())
    assert outdated(head, rows) == []
    assert outdated(head, [rows[1], rows[0], *rows[2:]]) != []
    assert outdated(head, [*rows[:-2], (*rows[-2][:2], "another reason"), rows[-1]]) != []
