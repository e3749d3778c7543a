"""One training step of the demo's LeNet, by gpuconv and by PyTorch: forward, loss, backward, optimizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from gpuconv import backend, cpu
from gpuconv.bench import timer
from gpuconv.bench.record import Provenance, Times
from gpuconv.bench.runner import WrongResult
from gpuconv.bench.tables import digits, milliseconds
from gpuconv.demo.lenet import BATCH, lenet
from gpuconv.models import Sequential
from gpuconv.support.disk import write_whole
from gpuconv.typing import Array

TOLERANCE = 1e-4
"""The largest difference of loss and gradients from the peer's, over their root mean square."""


@dataclass(frozen=True)
class Result:
    """Milliseconds of a step. `peers` is by PyTorch's ways of doing it: memory format, and optimizer fused or not."""

    batch: int
    device: str
    times: Times
    peers: dict[str, Times]

    @property
    def best(self) -> tuple[str, Times] | None:
        """The fastest way of the peer."""
        return min(self.peers.items(), key=lambda way: way[1].median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast gpuconv is as the best way of the peer."""
        return None if self.best is None else self.best[1].median / self.times.median

    def table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(f"a training step of LeNet, batch {self.batch}", no_wrap=True)
        on_device = self.times.host is not None
        for header in ("ms", "spread", *(["host µs"] if on_device else []), "images/s", "ratio"):
            table.add_column(header, justify="right")
        ours = self.times.median
        for name, times in {"gpuconv": self.times, **{f"torch, {way}": t for way, t in self.peers.items()}}.items():
            ratio = "" if name == "gpuconv" else f"{times.median / ours:.2f}×"
            rate = f"{1e3 * self.batch / times.median:,.0f}"
            host = [] if times.host is None else [digits(times.host)]
            table.add_row(name, milliseconds(times), f"±{times.spread:.0%}", *host, rate, ratio)
        return table

    def write(self, path: Path, provenance: Provenance) -> None:
        """Save as JSON, whole or not at all, with the provenance.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        content = {"provenance": asdict(provenance), "training_step": asdict(self) | {"ratio": self.ratio}}
        write_whole(path, f"{json.dumps(content, indent=2)}\n".encode(), "--json")


def measure(device: str, batch: int | None, repeats: int, *, against_torch: bool) -> Result:
    """Compare the step with PyTorch's, then time the two in turns.

    Raises
    ------
    WrongResult
        If loss or gradients differ by more than rounding.
    """
    n = batch or BATCH
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, 28, 28, 1), np.float32), rng.integers(0, 10, n)
    step = Step(lenet(), backend.to_device(x, device), backend.to_device(y, device))
    step.model.forward(step.x, retain_derived=False)  # the weights are made by the first input
    calls: dict[str, timer.Call] = {"gpuconv": step}
    ways = _torch_steps(step.model, x, y, device) if against_torch else {}
    loss, gradients = step.gradients()
    for name, way in ways.items():
        _compare(name, loss, gradients, *way.gradients())
        calls[name] = way.call
    taken = timer.interleaved(calls, repeats, timer.stopwatch(device), timer.turns(device))
    return Result(n, device, Times.of(taken["gpuconv"]), {name: Times.of(taken[name]) for name in ways})


@dataclass
class Step:
    """The training step of gpuconv."""

    model: Sequential
    x: Array
    y: Array

    def __call__(self) -> Array:
        value = self._backward()
        self.model.update()
        return value

    def gradients(self) -> tuple[float, list[Array]]:
        """The loss, and the gradients of all parameters, without an update."""
        value = float(self._backward())
        found = [backend.to_numpy(g).copy() for layer in self.model.layers for g in layer.gradients.values()]
        self.model.flush_gradients()
        return value, found

    def _backward(self) -> Array:
        value, gradient = self.model.loss.value_and_grad(self.model.forward(self.x), self.y)
        self.model.pull_back([gradient], need_input_grad=False, may_overwrite=True)
        return value


@dataclass(frozen=True)
class Way:
    """One of PyTorch's ways of doing the step."""

    call: Callable[[], Any]
    gradients: Callable[[], tuple[float, list[Array]]]


def _torch_steps(model: Sequential, x: Array, y: Array, device: str) -> dict[str, Way]:
    """The same network with the same weights in both memory formats, with the usual optimizer and the fused one."""
    import torch

    torch.set_num_threads(cpu.workers())
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    weights = [
        {name: backend.to_numpy(p) for name, p in layer.params.items()} for layer in model.layers if layer.params
    ]

    def way(memory_format: Any, fused: bool) -> Way:
        net = _torch_network(torch, weights).to(device, memory_format=memory_format)
        images = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(device, memory_format=memory_format)
        labels = torch.from_numpy(y).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)

        def backward() -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            return loss

        def call() -> Any:
            loss = backward()
            optimizer.step()
            return loss

        def gradients() -> tuple[float, list[Array]]:
            value = float(backward().detach())
            return value, _as_ours([p.grad.cpu().numpy() for p in net.parameters()])

        return Way(call, gradients)

    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    optimizers = {"": False, ", fused Adam": True}
    return {
        f"{name}{words}": way(memory_format, fused)
        for name, memory_format in formats.items()
        for words, fused in optimizers.items()
    }


SHAPE_BEFORE_FLATTEN = (5, 5, 32)


def _torch_network(torch: Any, weights: list[dict[str, Array]]) -> Any:
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    with torch.no_grad():
        trained = [module for module in net if hasattr(module, "weight")]
        for module, params in zip(trained, weights, strict=True):
            w = params["W"]
            if w.ndim == 4:
                w = np.moveaxis(w, (-1, -2), (0, 1))  # (r, s, c, k) -> (k, c, r, s)
            else:
                if w.shape[0] == np.prod(SHAPE_BEFORE_FLATTEN):  # ours flattens (h, w, c), PyTorch (c, h, w)
                    w = np.moveaxis(w.reshape(*SHAPE_BEFORE_FLATTEN, -1), 2, 0).reshape(w.shape)
                w = w.T
            module.weight.copy_(torch.from_numpy(w.copy()))
            module.bias.copy_(torch.from_numpy(params["b"].copy()))
    return net


def _as_ours(gradients: list[Array]) -> list[Array]:
    """PyTorch's gradients, weights and biases in turn, in the layout of gpuconv."""
    found = []
    for g in gradients:
        if g.ndim == 4:
            found.append(np.moveaxis(g, (0, 1), (-1, -2)))
        elif g.ndim == 2:
            h, w, c = SHAPE_BEFORE_FLATTEN
            wide = g.shape[1] == h * w * c
            found.append(np.moveaxis(g.T.reshape(c, h, w, -1), 0, 2).reshape(h * w * c, -1) if wide else g.T)
        else:
            found.append(g)
    return found


def _compare(name: str, loss: float, ours: list[Array], their_loss: float, theirs: list[Array]) -> None:
    """Raise if the two steps differ: they are timed only if they compute the same."""
    if not abs(loss - their_loss) <= TOLERANCE * abs(their_loss):
        raise WrongResult(f"a training step: the loss is {loss}, but torch ({name}) has {their_loss}")
    for got, want in zip(ours, theirs, strict=True):
        scale = float(np.sqrt(np.mean(np.square(want)))) or 1.0
        error = float(np.abs(got - want).max()) / scale
        if got.shape != want.shape or not error <= TOLERANCE * np.sqrt(want.size):
            raise WrongResult(
                f"a training step: a gradient of shape {got.shape} differs from torch's ({name}): {error}"
            )
