"""Executes the notebooks. As a program it runs them and saves what they show.

    python tests/docs/run_notebooks.py [NOTEBOOK ...]

What differs between two runs, a timing say, stands in cells tagged `varies`.
"""

import pathlib
import sys

from gpuconv.support.disk import write_whole

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 300
"""The longest that a cell may take, on a machine that has much else to do."""


def execute(path):
    """The notebook after a run from top to bottom, without the marks of that run that say nothing to a reader.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    """
    import nbformat  # here, so that a machine without it and without Jupyter can collect the tests
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what has to be compiled depends on the machine, and on who was there before
            cell.outputs = [output for output in cell.outputs if not _announces_a_compilation(output)]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _announces_a_compilation(output):
    return output.get("name") == "stderr" and output.text.startswith("gpuconv: compiling the loop ")


def images(cell):
    """The pictures that a cell shows, in base64."""
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


def texts(cell):
    """All the text that a cell shows."""
    return [
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in cell.outputs
        if output.output_type in {"stream", "execute_result"}
    ]


def main(paths):
    import nbformat

    for path in map(pathlib.Path, paths):
        notebook = execute(path)
        write_whole(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode(), "notebooks")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:] or NOTEBOOKS)
