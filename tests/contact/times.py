"""Step 8: what calls cost the device, beside PyTorch, the measured floor and what the models expect.

The floor of a pass is the longer of its multiply-adds at the rate of a large matrix product, and its arrays, each read
or written once, at the rate of a large copy; both rates are measured first. All passes by gpuconv come first, then
those by PyTorch, so that a search of cuDNN's for its best algorithm cannot take the time of the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from contact.journal import Finding, Journal
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

OF_THE_DOUBLE = "n1_h6w5_c8_k8_r3s3_p1"
SIDE, COPIED = 8192, 2**30
RUNS = 7


@dataclass(frozen=True)
class Pass:
    """One pass of a layer, in one mode."""

    problem: str
    mode: str
    direction: str

    def __str__(self) -> str:
        return f"{self.problem} {self.mode} {self.direction}"


def run(setting: Setting, journal: Journal) -> None:
    meter = _Meter(setting)
    ceilings = _ceilings(setting, journal, meter)
    passes = list(_passes(setting.double))
    _measure(setting, journal, passes, _Ours(meter, ceilings))
    if setting.double or find_spec("torch") is None:
        journal.note("torch", "is not asked" if setting.double else "is not there")
    else:
        _measure(setting, journal, passes, _Torch(meter))


def _passes(double: bool) -> Iterator[Pass]:
    if double:
        yield Pass(OF_THE_DOUBLE, "bfloat16", "forward")
        return
    for batch in BATCHES:
        for layer in LAYERS:
            for mode in MODES:
                for direction in PASSES:
                    yield Pass(f"n{batch}_{layer}", mode, direction)


def _measure(setting: Setting, journal: Journal, passes: list[Pass], way: _Ours | _Torch) -> None:
    for count, one in enumerate(passes):
        if setting.left < 1:
            journal.fault(way.name, f"time was up after {count} of {len(passes)} passes")
            break
        with journal.guarded(f"{one} by {way.name}"):
            journal.note("", which=str(one), **way.measure(one))
        setting.cupy.cuda.Device().synchronize()  # raises if this process has lost the device


# ------------------------------------------------------------------------------------------------ measurements


class _Meter:
    """Times calls on the device, each with a cold second-level cache, after one that is not counted."""

    def __init__(self, setting: Setting) -> None:
        from gpuconv.cuda.stopwatch import Stopwatch

        self._stopwatch, self._runs = Stopwatch("cuda:0"), 2 if setting.double else RUNS

    def __call__(self, call: Callable[[], Any]) -> tuple[float, bool]:
        """The median of some runs in microseconds; and whether the device waited for the host in one of them."""
        call()
        runs = [self._stopwatch(call) for _ in range(self._runs)]
        return 1e6 * statistics.median(run.seconds for run in runs), not all(run.is_hidden for run in runs)


def _ceilings(setting: Setting, journal: Journal, meter: _Meter) -> dict[str, float]:
    """The multiply-adds per second of a large product by mode, and the bytes per second of a large copy."""
    import gpuconv
    from gpuconv.backend import as_dtype
    from gpuconv.tools.workload import Numbers

    found: dict[str, float] = {}
    source = setting.cupy.zeros(2**20 if setting.double else COPIED, "uint8")
    target = source.copy()

    def copy() -> None:
        target[...] = source

    found["copy"] = 2 * source.nbytes / meter(copy)[0] * 1e6
    journal.note("copy", f"{found['copy'] / 1e9:.0f} GB/s, read and written", bytes_per_second=found["copy"])
    side, numbers = 64 if setting.double else SIDE, Numbers("cuda:0")
    for mode, (dtype, precision) in MODES.items():
        x, w = (numbers.normal((1, side, side), as_dtype(dtype, "times")) for _ in range(2))
        product = partial(gpuconv.conv1d, x, w, algorithm="gemm", precision=precision, out=x.copy())
        rate = found[mode] = side**3 / meter(product)[0] * 1e6
        journal.note(f"{side}^3 by cuBLAS", f"{2 * rate / 1e12:.1f} TFLOP/s in {mode}", mode=mode, macs_per_second=rate)
    return found


class _Ours:
    name = "gpuconv"

    def __init__(self, meter: _Meter, ceilings: dict[str, float]) -> None:
        self._meter, self._ceilings = meter, ceilings
        self._drawn: tuple[tuple[str, str], Any] | None = None

    def measure(self, one: Pass) -> dict[str, Any]:
        from gpuconv import ConvGeometry, heuristics
        from gpuconv.algorithms import ALGORITHMS
        from gpuconv.planning import plan, problem_of
        from gpuconv.tools.workload import Workload

        g, (dtype, precision) = ConvGeometry.parse(one.problem), MODES[one.mode]
        if self._drawn is None or self._drawn[0] != (one.problem, dtype):
            self._drawn = None  # before others are drawn
            self._drawn = (one.problem, dtype), Workload.normal(g, dtype, "cuda:0")
        work = self._drawn[1]
        name = plan(g, dtype, "cuda:0", direction=one.direction, precision=precision).chosen
        problem = problem_of(g, dtype, "cuda:0", one.direction, precision, None, "times")
        (algorithm,) = (each for each in ALGORITHMS if each.name == name)
        # A model of the kernels alone says what a device takes; the other counts launches from Python as well.
        expected = algorithm.cost(problem).seconds or heuristics.seconds(problem, algorithm)
        us, exposed = self._meter(lambda: work.run(one.direction, precision=precision))
        floor = max(g.macs / self._ceilings[one.mode], g.bytes(work.x.itemsize) / self._ceilings["copy"])
        return {
            "problem": one.problem,
            "mode": one.mode,
            "direction": one.direction,
            "algorithm": name,
            "us": us,
            "exposed": exposed,
            "expected_us": 1e6 * expected,
            "floor_us": 1e6 * floor,
            "tflops": g.flops / us / 1e6,
        }


class _Torch:
    """cuDNN through PyTorch: channels last, its best algorithm searched for, TF32 where ours rounds to it."""

    name = "torch"

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter
        self._drawn: tuple[tuple[str, str], Any] | None = None

    def measure(self, one: Pass) -> dict[str, Any]:
        import torch

        from gpuconv import ConvGeometry

        g, (dtype, precision) = ConvGeometry.parse(one.problem), MODES[one.mode]
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "fast"
        if self._drawn is None or self._drawn[0] != (one.problem, dtype):
            self._drawn = None
            shapes = ((g.n, g.c, *g.spatial), (g.k, g.c, *g.kernel), (g.n, g.k, *g.out))
            drawn = (torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for shape in shapes)
            tensors = [tensor.to(memory_format=torch.channels_last) for tensor in drawn]
            self._drawn = (one.problem, dtype), tensors
        x, w, dy = self._drawn[1]
        settings = ([*g.stride], [low for low, _ in g.pad], [*g.dilation], False, [0] * g.ndim, g.groups)
        wanted = [one.direction == "input_grad", one.direction == "weight_grad", False]

        def call() -> None:
            with torch.no_grad():
                if one.direction == "forward":
                    torch.convolution(x, w, None, *settings)
                else:
                    torch.ops.aten.convolution_backward(dy, x, w, None, *settings, wanted)

        us, exposed = self._meter(call)
        return {"torch_us": us, "torch_exposed": exposed}


# ------------------------------------------------------------------------------------------------ the table


def tell(journal: Journal, findings: list[Finding]) -> None:
    """A line for all layers of a batch and mode; then one for each layer in each mode, with the passes in their order.

    The program calls this, for the process of this step may end before its time.
    """
    values = [finding.values for finding in findings]
    theirs = {some["which"]: some["torch_us"] for some in values if "torch_us" in some}
    rows = [some | {"torch_us": theirs.get(some["which"])} for some in values if "us" in some]
    for batch, mode in dict.fromkeys((_batch(row), row["mode"]) for row in rows):
        some = [row for row in rows if (_batch(row), row["mode"]) == (batch, mode)]
        journal.note(f"{batch} {mode} together", _sums(some))
    for problem, mode in dict.fromkeys((row["problem"], row["mode"]) for row in rows):
        some = [row for row in rows if (row["problem"], row["mode"]) == (problem, mode)]
        journal.note(f"{problem} {mode}", _line(some))


def _batch(row: dict[str, Any]) -> str:
    return row["problem"].partition("_")[0]


def _sums(rows: list[dict[str, Any]]) -> str:
    took, expected, floor = (sum(row[name] for row in rows) for name in ("us", "expected_us", "floor_us"))
    words = [f"{took:.0f} us, {expected:.0f} expected, {floor:.0f} at least"]
    ratios = [row["torch_us"] / row["us"] for row in rows if row["torch_us"]]
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        words.append(f"{mean:.2f} times as fast as torch in the geometric mean of {len(ratios)}")
    return ", ".join(words)


def _line(rows: list[dict[str, Any]]) -> str:
    """The figures of the passes; a star says that the device waited for the host."""
    words = [" ".join(f"{row['us']:.1f}{'*' if row['exposed'] else ''}" for row in rows) + " us"]
    words.append(" ".join(f"{row['tflops']:.0f}" for row in rows) + " TFLOP/s")
    words.append(" ".join(f"{row['floor_us'] / row['us']:.0%}" for row in rows) + " of the floor")
    words.append("expected " + " ".join(f"{row['expected_us']:.1f}" for row in rows))
    if any(row["torch_us"] for row in rows):
        ratios = (f"x{row['torch_us'] / row['us']:.2f}" if row["torch_us"] else "-" for row in rows)
        words.append("torch " + " ".join(ratios))
    return f"{', '.join(words)}, by {', '.join(dict.fromkeys(row['algorithm'] for row in rows))}"
