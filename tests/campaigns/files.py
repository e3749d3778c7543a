"""Files: models saved while file operations fail one after the other, and damaged ones that are loaded; also text."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np

import gpuconv
from gpuconv import autotune, layers, models

from .configuration import Configuration, Kind, Subject, Wrong, pick
from .faults import FileOperations

DAMAGES = ("flip", "cut", "insert", "repeat", "noise", "length", "swap")


def _model(seed: int) -> models.Sequential:
    model = models.Sequential([layers.Conv2D(2 + seed % 3, 3, rng=seed), layers.Flatten(), layers.Dense(3, rng=seed)])
    model.predict(np.ones((1, 6, 6, 2), np.float32))
    return model


def _values(model: models.Sequential) -> list[np.ndarray]:
    return [np.asarray(value) for _, value in sorted(model.state_dict().items())]


# Saving


def draw_saves(rng: np.random.Generator) -> Configuration:
    drawn: Configuration = {"kind": "saves", "seed": int(rng.integers(1000)), "operation": int(rng.integers(16))}
    if rng.random() < 0.3:
        drawn["target"] = "new"
    return drawn


def saves(configuration: Configuration) -> Subject:
    old, new = _model(0), _model(configuration["seed"])
    is_new = configuration.get("target") == "new"

    def call() -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as name:
            return _save_and_look(Path(name), old, new, configuration["operation"], is_new)

    def judge(results: list[np.ndarray]) -> None:
        found, *last = [results[i : i + len(_values(new))] for i in range(0, len(results), len(_values(new)))]
        if found and not any(_same(found, _values(model)) for model in (old, new)):
            raise Wrong("a file that is neither the old nor the new one")
        if not last or not _same(last[-1], _values(new)):
            raise Wrong("a later save does not save")

    return Subject(call, judge)


def _save_and_look(
    folder: Path, old: models.Sequential, new: models.Sequential, operation: int, is_new: bool
) -> list[np.ndarray]:
    path = folder / "model.safetensors"
    if not is_new:
        old.save(path)
    failed = None
    with FileOperations(fail_at=operation) as operations:
        try:
            new.save(path)
        except OSError as error:
            failed = error
    found = []
    if path.exists():
        found = _values(models.Sequential.load(path))
    elif not is_new:
        raise Wrong("the old file is gone", f"after {failed!r}")
    if failed is None and not _same(found, _values(new)):
        raise Wrong("a save that failed without a word", f"at its operation {operation}, {operations.failed}")
    if operations.failed != "remove":
        left = sorted(other.name for other in folder.iterdir() if other != path and not other.name.endswith(".lock"))
        if left:
            raise Wrong("files that are left behind", f"{left} after {failed!r}")
    new.save(path)
    return (found or _values(new)) + _values(models.Sequential.load(path))


def _same(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(some, others, strict=True)
    )


# Loading


def draw_loads(rng: np.random.Generator) -> Configuration:
    what = pick(rng, ("model", "model", "model", "table", "problem"))
    return {
        "kind": "loads",
        "seed": int(rng.integers(2**31)),
        "what": what,
        "damages": tuple(pick(rng, DAMAGES) for _ in range(int(rng.integers(1, 4)))),
    }


def _damaged(content: bytes, damages: tuple[str, ...], rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for damage in damages:
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
        if damage == "flip" and data:
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        elif damage == "cut":
            del data[at : at + length if rng.random() < 0.5 else len(data)]
        elif damage == "insert":
            data[at:at] = rng.bytes(length)
        elif damage == "repeat":
            data[at:at] = data[at : at + length]
        elif damage == "noise":
            data = bytearray(rng.bytes(length)) if rng.random() < 0.3 else data[:at] + rng.bytes(length) + data[at:]
        elif damage == "length":
            data[:8] = int(rng.integers(2**63)).to_bytes(8, "little") if rng.random() < 0.5 else bytes(8)
        elif damage == "swap":
            old, new = pick(rng, _SWAPS)
            data = bytearray(bytes(data).replace(old, new, 1))
    return bytes(data)


_SWAPS = (
    (b"F32", b"F64"),
    (b"[0,", b"[9,"),
    (b":1", b":-1"),
    (b"3", b"99999999999999999999"),
    (b"{", b"[" * 2000),
    (b"Conv2D", b"Conv9D"),
    (b'"layers', b'"l\\u0000yers'),
    (b"c", b"\xff"),
    (b"h", b"h" * 500),
    (b"_", b"0_" * 200),
)


def loads(configuration: Configuration) -> Subject:
    rng = np.random.default_rng(configuration["seed"])
    what, damages = configuration["what"], configuration["damages"]
    model = _model(1)

    def load_model() -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.safetensors"
            model.save(path)
            path.write_bytes(_damaged(path.read_bytes(), damages, rng))
            return _values(models.Sequential.load(path))

    def read_table() -> list[np.ndarray]:
        table = b'{"version": 1, "entries": {"some problem": {"date": "2026-11-23", "seconds": {"gemm": 1.5}}}}'
        path = autotune.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_damaged(table, damages, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                autotune.entries()
        finally:
            path.unlink()
        return []

    def parse() -> list[np.ndarray]:
        text = _damaged(b"n8_h56w56_c64_k64_r3s3_p1_st2_dl2_g2_reflect", damages, rng).decode("latin-1")
        gpuconv.ConvGeometry.parse(text)
        return []

    def judge(results: list[np.ndarray]) -> None:
        if results and not _same(results, _values(model)):
            raise Wrong("a damaged file that was loaded")

    call = {"model": load_model, "table": read_table, "problem": parse}[what]
    refusals: tuple[type[Exception], ...] = () if what == "table" else (ValueError,)
    return Subject(call, judge, refusals)


SAVES = Kind("saves", draw_saves, saves, faults=(), weight=0.5)
LOADS = Kind("loads", draw_loads, loads, faults=(), weight=1)
