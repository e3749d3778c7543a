"""Step 8: what calls cost the device, beside PyTorch, the measured floor and what the models expect.

The floor of a pass is the longer of its multiply-adds at the rate of a large matrix product, and its arrays, each read
or written once, at the rate of a large copy; both rates are measured first. All passes by gpuconv come first, then
those by PyTorch, so that a search of cuDNN's for its best algorithm cannot take the time of the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from contact.journal import Journal, read
from contact.setting import Setting

MODES = {"bfloat16": ("bfloat16", "strict"), "TF32": ("float32", "fast"), "float32": ("float32", "strict")}
PASSES = ("forward", "input_grad", "weight_grad")
BATCHES = (128, 1)
LAYERS = (
    "h56w56_c64_k64_r3s3_p1",
    "h28w28_c128_k128_r3s3_p1",
    "h14w14_c256_k256_r3s3_p1",
    "h7w7_c512_k512_r3s3_p1",
    "h56w56_c64_k256_r1s1",
    "h28w28_c512_k128_r1s1",
    "h14w14_c1024_k256_r1s1",
    "h224w224_c3_k64_r7s7_p3_st2",
)
"""Eight layers of ResNet-50, without their batch."""

SIDE, COPIED = 8192, 2**30
RUNS = 7


@dataclass(frozen=True)
class Pass:
    """One pass of a layer, in one mode."""

    problem: str
    mode: str
    direction: str

    def __str__(self) -> str:
        return f"{self.problem} {self.direction} {self.mode}"


def run(setting: Setting, journal: Journal) -> None:
    _ = setting.cupy
    ceilings = _ceilings(setting, journal)
    passes = list(_passes(setting.double))
    tensors: dict[str, Any] = {}
    for maker, name in ((_ours, "gpuconv"), (_torch, "torch")):
        if name == "torch" and (setting.double or find_spec("torch") is None):
            journal.note("torch", "is not there" if not setting.double else "is not asked")
            continue
        for count, one in enumerate(passes):
            if setting.left < 1:
                journal.fault(name, f"time was up after {count} of {len(passes)} passes")
                break
            try:
                maker(setting, journal, one, ceilings, tensors)
            except Exception as error:
                journal.fault(f"{one} by {name}", f"{type(error).__name__}: {error}")
        tensors.clear()
    _tell(journal, [finding.values for finding in read(setting.out) if finding.step == setting.number])


def _passes(double: bool) -> Iterator[Pass]:
    if double:
        yield Pass("n1_h6w5_c8_k8_r3s3_p1", "bfloat16", "forward")
        return
    for batch in BATCHES:
        for layer in LAYERS:
            for mode in MODES:
                for direction in PASSES:
                    yield Pass(f"n{batch}_{layer}", mode, direction)


# ------------------------------------------------------------------------------------------------ measurements


def _microseconds(setting: Setting, call: Callable[[], Any]) -> float:
    """The median of some runs on the device, each with a cold second-level cache, after one that is not counted."""
    from gpuconv.bench import timer

    seconds = timer.stopwatch("cuda:0")
    call()
    return 1e6 * statistics.median(seconds(call) for _ in range(2 if setting.double else RUNS))


def _ceilings(setting: Setting, journal: Journal) -> dict[str, float]:
    """The multiply-adds per second of a large product by mode, and the bytes per second of a large copy."""
    import gpuconv

    cupy, found = setting.cupy, {}
    source = cupy.zeros(2**20 if setting.double else COPIED, "uint8")
    target = source.copy()

    def copy() -> None:
        target[...] = source

    found["copy"] = 2 * source.nbytes / _microseconds(setting, copy) * 1e6
    journal.note("copy", f"{found['copy'] / 1e9:.0f} GB/s, read and written", bytes_per_second=found["copy"])
    side = 64 if setting.double else SIDE
    for mode, (dtype, precision) in MODES.items():
        x, w = _drawn(setting, (1, side, side), dtype), _drawn(setting, (1, side, side), dtype)
        product = partial(gpuconv.conv1d, x, w, algorithm="gemm", precision=precision, out=x.copy())
        found[mode] = side**3 / _microseconds(setting, product) * 1e6
        journal.note(
            f"{side}^3 by cuBLAS, {mode}", f"{2 * found[mode] / 1e12:.1f} TFLOP/s", macs_per_second=found[mode]
        )
    return found


def _drawn(setting: Setting, shape: tuple[int, ...], dtype: str) -> Any:
    """Normal deviates, drawn on the device."""
    from gpuconv.backend import as_dtype

    resolved = as_dtype(dtype, "times")
    if setting.double:
        return setting.cupy.ones(shape, resolved)
    return setting.cupy.random.standard_normal(shape, dtype="float32").astype(resolved)


def _ours(setting: Setting, journal: Journal, one: Pass, ceilings: dict[str, float], tensors: dict[str, Any]) -> None:
    from gpuconv import ConvGeometry, heuristics
    from gpuconv.algorithms import ALGORITHMS
    from gpuconv.planning import plan, problem_of
    from gpuconv.tools.workload import Workload

    g, (dtype, precision) = ConvGeometry.parse(one.problem), MODES[one.mode]
    key = f"{one.problem} {dtype}"
    if key not in tensors:
        tensors.clear()
        tensors[key] = Workload(g, *(_drawn(setting, shape, dtype) for shape in (g.x_shape, g.w_shape, g.y_shape)))
    work, direction = tensors[key], one.direction
    name = plan(g, dtype, "cuda:0", direction=direction, precision=precision).chosen
    problem = problem_of(g, dtype, "cuda:0", direction, precision, None, "times")
    expected = heuristics.seconds(problem, next(a for a in ALGORITHMS if a.name == name))
    us = _microseconds(setting, lambda: work.run(direction, precision=precision))
    floor = max(g.macs / ceilings[one.mode], g.bytes(work.x.itemsize) / ceilings["copy"])
    journal.note(
        "",
        which=str(one),
        problem=one.problem,
        mode=one.mode,
        direction=direction,
        algorithm=name,
        us=us,
        expected_us=1e6 * expected,
        floor_us=1e6 * floor,
        tflops=g.flops / us / 1e6,
    )


def _torch(setting: Setting, journal: Journal, one: Pass, ceilings: dict[str, float], tensors: dict[str, Any]) -> None:
    """cuDNN through PyTorch: channels last, its best algorithm searched for, TF32 where ours rounds to it."""
    import torch

    from gpuconv import ConvGeometry

    g, (dtype, precision) = ConvGeometry.parse(one.problem), MODES[one.mode]
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "fast"
    key = f"{one.problem} {dtype}"
    if key not in tensors:
        tensors.clear()
        shapes = ((g.n, g.c, *g.spatial), (g.k, g.c, *g.kernel), (g.n, g.k, *g.out))
        made = (torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for shape in shapes)
        tensors[key] = [tensor.to(memory_format=torch.channels_last) for tensor in made]
    x, w, dy = tensors[key]
    settings = ([*g.stride], [low for low, _ in g.pad], [*g.dilation], False, [0] * g.ndim, g.groups)
    wanted = [one.direction == "input_grad", one.direction == "weight_grad", False]

    def call() -> None:
        with torch.no_grad():
            if one.direction == "forward":
                torch.convolution(x, w, None, *settings)
            else:
                torch.ops.aten.convolution_backward(dy, x, w, None, *settings, wanted)

    journal.note("", which=str(one), torch_us=_microseconds(setting, call))


# ------------------------------------------------------------------------------------------------ the table


def _tell(journal: Journal, values: list[dict[str, Any]]) -> None:
    """A line per pass."""
    theirs = {some["which"]: some["torch_us"] for some in values if "torch_us" in some}
    for row in values:
        if "us" not in row:
            continue
        torch_us = theirs.get(row["which"])
        beside = f", torch {torch_us:.1f} (x{torch_us / row['us']:.2f})" if torch_us else ""
        journal.note(
            "",
            f"{row['which']}: {row['algorithm']} {row['us']:.1f} us, {row['tflops']:.0f} TFLOP/s, "
            f"{row['floor_us'] / row['us']:.0%} of the floor, expected {row['expected_us']:.1f}{beside}",
        )
