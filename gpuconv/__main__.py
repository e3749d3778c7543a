"""The `gpuconv` command: the command line if its packages are there, else one line that says how to get them."""

import sys

from gpuconv.tools import streams

EXTRA = {"typer", "rich", "matplotlib", "PIL", "mlxtend", "sklearn"}


def main() -> None:
    """Entry point of the console script and of ``python -m gpuconv``."""
    streams.run(_command)


def _command() -> None:
    try:
        from gpuconv.cli import app

        app(prog_name="gpuconv")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRA:
            raise
        sys.exit(f"gpuconv: this needs {package}. Install it with: python -m pip install 'gpuconv[demo]'")


if __name__ == "__main__":
    main()
