"""What the README shows is run, and what it names exists."""

import pathlib
import re
import sys

import pytest

import gpuconv
from gpuconv.algorithms import ALGORITHMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_one_after_the_other(capsys):
    namespace = {}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"README python block {number}", "exec"), namespace)
    assert "chosen" in capsys.readouterr().out


def test_the_two_commands_are_one_line_each_from_a_fresh_clone():
    lines = [block.strip() for block in blocks("bash")]
    install = 'python3 -m venv .venv && .venv/bin/python -m pip install -e ".[{}]" && '
    assert install.format("demo") + ".venv/bin/gpuconv demo" in lines
    assert install.format("demo,test") + ".venv/bin/python -m pytest -n auto" in lines


def test_every_extra_it_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {extra for group in re.findall(r"\.\[([\w,]+)\]", README) for extra in group.split(",")}
    assert {"demo", "test", "cuda12"} <= named <= set(extras)


def test_every_command_it_names_exists():
    cli = pytest.importorskip("gpuconv.cli")
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    named = set(re.findall(r"(?:`|bin/)gpuconv ([a-z]+)", README))
    assert named == commands


def test_every_function_it_names_exists():
    table = README.partition("## What there is")[2].partition("\n## ")[0]
    names = {
        name
        for row in table.splitlines()
        if not row.startswith(("| padding", "| dtypes", "| algorithms"))
        for name in re.findall(r"`(\w+)`", row)
    }
    assert len(names) > 15
    assert names <= set(gpuconv.__all__)


def test_it_lists_the_algorithms_there_are():
    row = next(line for line in README.splitlines() if line.startswith("| algorithms"))
    assert re.findall(r"`(\w+)`", row) == [algorithm.name for algorithm in ALGORITHMS]
