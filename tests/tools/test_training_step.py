"""`gpuconv bench --training-step`: what is timed is the same step on both sides."""

import dataclasses
import json
import platform
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from gpuconv.bench import record, timer, training
from gpuconv.bench.runner import WrongResult
from gpuconv.cli import app
from gpuconv.demo.lenet import lenet


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(timer, "ON_CPU", dataclasses.replace(timer.ON_CPU, rest=0.0, slot=0.0, warm=0.0))


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "--training-step", "--repeats", "1", *map(str, arguments)])


def test_alone(tmp_path):
    saved = tmp_path / "step.json"
    result = bench("--batch", 4, "--threads", 1, "--json", saved)
    assert result.exit_code == 0, result.output
    assert "a training step of LeNet, batch 4" in result.output
    content = json.loads(saved.read_text())
    assert content["provenance"]["threads"] == 1
    step = content["training_step"]
    assert (step["batch"], step["device"], step["peers"], step["ratio"]) == (4, "cpu", {}, None)
    assert step["times"]["median"] > 0


def test_against_torch(tmp_path):
    pytest.importorskip("torch")
    saved = tmp_path / "step.json"
    result = bench("--batch", 3, "--against", "torch", "--json", saved)
    assert result.exit_code == 0, result.output
    step = json.loads(saved.read_text())["training_step"]
    best = min(times["median"] for times in step["peers"].values())
    assert len(step["peers"]) == 4
    assert step["ratio"] == best / step["times"]["median"]


@pytest.mark.parametrize("spoilt", ["loss", "gradient", "nan"])
def test_another_result_is_not_timed(spoilt, monkeypatch):
    pytest.importorskip("torch")
    gradients = training.Step.gradients

    def wrong(self):
        loss, found = gradients(self)
        if spoilt == "loss":
            return loss * 1.01, found
        found[4][0, 0] += np.nan if spoilt == "nan" else 1
        return loss, found

    monkeypatch.setattr(training.Step, "gradients", wrong)
    result = bench("--batch", 3, "--against", "torch")
    assert result.exit_code == 1
    assert "gpuconv bench: a training step: " in result.output
    with pytest.raises(WrongResult):
        training.measure("cpu", 3, 1, against_torch=True)


def test_a_step_is_a_step(rng):
    """Its first is the gradient step of Adam: every weight moves by the learning rate."""
    model = lenet()
    step = training.Step(model, rng.standard_normal((4, 28, 28, 1), np.float32), rng.integers(0, 10, 4))
    model.forward(step.x, retain_derived=False)
    before = model.state_dict()
    loss, gradients = step.gradients()
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    assert float(step()) == loss
    moved = model.state_dict()["7.W"] - before["7.W"]
    assert np.allclose(np.abs(moved[gradients[-2] != 0]), 1e-3, rtol=1e-2)


def test_wrong_words_are_refused(tmp_path):
    for words, want in (
        (("--against", "jax"), "against torch, not against jax"),
        (("--device", "tpu"), "'tpu'"),
        (("--json", tmp_path / "missing" / "step.json"), "is not a folder"),
    ):
        result = bench(*words)
        assert result.exit_code == 2
        assert want in result.output


def test_the_table_names_the_ratio():
    times = record.Times(2.0, 1.9, 2.2, 10)
    result = training.Result(64, "cpu", times, {"slow": record.Times(6.0, 6, 6, 3), "fast": record.Times(3.0, 3, 3, 3)})
    assert result.ratio == 1.5
    assert result.best[0] == "fast"
    assert [str(cell) for cell in result.table().columns[4]._cells] == ["", "3.00×", "1.50×"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back at once")
def test_a_step_takes_the_memory_of_the_one_before():
    """Pages that the system hands out anew are cleared first; thousands of them took a seventh of each step."""
    script = """
import resource
import numpy as np
from gpuconv.bench.training import Step, lenet
step = Step(lenet(), np.ones((64, 28, 28, 1), np.float32), np.zeros(64, int))
counts = []
for _ in range(12):
    step()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(np.median(np.diff(counts)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
