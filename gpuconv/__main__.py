"""The `gpuconv` command: the command line if its packages are there, else one line that says how to get them."""

import sys

from gpuconv.support.installing import how_to_add
from gpuconv.tools import streams

EXTRAS = {"typer": "cli", "rich": "cli", "matplotlib": "demo", "PIL": "demo", "mlxtend": "demo", "sklearn": "demo"}
"""The extras that bring the packages which a command may lack."""


def main() -> None:
    """Entry point of the console script and of ``python -m gpuconv``."""
    streams.run(_command)


def _command() -> None:
    try:
        from gpuconv.cli import app

        app(prog_name="gpuconv")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        sys.stderr.write(f"gpuconv: this needs {package}: {how_to_add(EXTRAS[package])}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
