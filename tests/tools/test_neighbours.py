"""`gpuconv bench --neighbours`: how much slower calls get beside busy processes, which are gone afterwards."""

import subprocess
import time

import pytest
from typer.testing import CliRunner

from gpuconv.bench import neighbours
from gpuconv.cli import app


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "--problem", "n1_h6w6_c2_k2_r3s3", *map(str, arguments)])


def test_every_side_is_measured_alone_and_beside(monkeypatch):
    started, real = [], subprocess.Popen
    monkeypatch.setattr(neighbours, "SECONDS", 1e-3)
    monkeypatch.setattr(neighbours.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    result = bench("--neighbours", 2, "--direction", "forward", "--against", "matmul")
    assert result.exit_code == 0, result.output
    assert "us beside 2 busy processes" in result.output
    assert [line.split(":")[0] for line in result.output.splitlines()[-2:]] == ["gpuconv", "matmul"]
    assert len(started) == 4
    assert all(process.poll() is not None for process in started)


def test_the_ratio_is_that_of_the_means(monkeypatch):
    """A call of which every fourth takes long counts with all of its time."""
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.02 if len(calls) % 4 == 0 else 0)

    assert neighbours._mean(call, 0.2) > 0.004
    assert neighbours.Slowdown(2.0, 3.0).ratio == 1.5


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_nothing_is_saved_or_drawn(option, tmp_path):
    result = bench("--neighbours", 1, option, tmp_path / "x.png")
    assert result.exit_code == 2
    assert "saves and draws nothing" in result.output
