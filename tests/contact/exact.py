"""Step 3: sums of small integers, which are right to the last bit or wrong.

First every unit of the tensor cores: each tile, dtype, pass and copy width, on shapes that leave tails in all axes, on
strides and groups, and on sums so long that they are split. Then `gpuconv check`. Each group has a process of its own,
since an illegal address ends the use of a device by a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from contact.journal import Journal, read
from contact.setting import Setting

PASSES = ("forward", "input_grad", "weight_grad")
MODES = {
    "float16": ("float16", "strict", 1),
    "bfloat16": ("bfloat16", "strict", 1),
    "float32": ("float32", "strict", 3),
    "TF32": ("float32", "fast", 1),
}
"""Dtype, precision, and the macro PRODUCTS."""

CHECKED = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
ON_THE_DOUBLE = ("float16 forward", "check float32")


def run(setting: Setting, journal: Journal) -> None:
    groups = [f"{mode} {direction}" for mode in MODES for direction in PASSES]
    groups += [f"check {dtype}" for dtype in CHECKED]
    names = ON_THE_DOUBLE if setting.double else groups
    ends = setting.run_parts(names, min(len(names), setting.processors))
    for name in names:
        if end := ends.get(name, "did not begin in time"):
            journal.fault(name, f"its process {end}")
    values = [finding.values for finding in read(setting.out) if finding.step == setting.number]
    results, units = (sum(some.get(what, 0) for some in values) for what in ("results", "units"))
    journal.note(
        "", f"{results} results in {len(names)} groups, by {units} units of the tensor cores and by gpuconv check"
    )


def part(setting: Setting, journal: Journal, name: str) -> None:
    first, second = name.split()
    if first == "check":
        _check(setting, journal, second)
    else:
        _tensor_cores(setting, journal, first, second)


# ------------------------------------------------------------------------------------------------ tensor cores


def _tensor_cores(setting: Setting, journal: Journal, mode: str, direction: str) -> None:
    from contact.tiles import only_tile, watched

    wanted = _units(mode, direction)[-1:] if setting.double else _units(mode, direction)
    missed, count = [], 0
    for unit in wanted:
        macros = dict(unit.macros)
        with only_tile(macros["TILE_M"], macros["TILE_N"]), watched() as launched:
            for what, case in _cases(macros["COPY"] // unit.dtype.itemsize, direction, setting.double):
                count += 1
                if words := _wrong(setting, mode, direction, case):
                    journal.fault(f"{unit}, {what}", words)
                    setting.cupy.cuda.Device().synchronize()  # raises if this process has lost the device
        if unit not in [what.unit for what, _ in launched]:
            missed.append(str(unit))
    journal.note(f"{mode} {direction}", results=count, units=len(wanted))
    if missed:
        journal.fault(f"{mode} {direction}", f"these units were never launched: {', '.join(missed)}")


def _units(mode: str, direction: str) -> list[Any]:
    """The units of one dtype, precision and pass."""
    from gpuconv.algorithms.cuda.implicit_gemm import UNITS

    dtype, _, products = MODES[mode]
    file = "implicit_gemm_weights.cu" if direction == "weight_grad" else "implicit_gemm.cu"
    back = {"INPUT_GRAD": int(direction == "input_grad")} if file == "implicit_gemm.cu" else {}
    return [
        unit
        for unit in UNITS
        if (unit.file, unit.dtype.name) == (file, dtype)
        and dict(unit.macros) | {"PRODUCTS": products, **back} == dict(unit.macros)
    ]


def _cases(chunk: int, direction: str, double: bool) -> Iterator[tuple[str, Any]]:
    """Convolutions whose channels are odd multiples of `chunk` elements, so that no wider copy serves them."""
    from cases import Case

    one, none = (1, 1), ((0, 0), (0, 0))
    if double:
        yield "tails", Case(1, (5, 7), 3 * chunk, 5 * chunk, (3, 2), one, one, ((1, 1), (1, 0)))
        return
    tail = 136 // chunk | 1
    yield "tails", Case(1, (13, 15), 3 * chunk, tail * chunk, (3, 2), one, one, ((1, 1), (1, 0)))
    yield "stride 2, groups", Case(2, (8, 9), 6 * chunk, 10 * chunk, (3, 3), (2, 2), one, ((1, 1), (0, 1)), 2)
    yield "dilation", Case(1, (13, 12), chunk, 3 * chunk, (3, 3), (4, 3), (2, 3), ((2, 2), (3, 1)))
    deep = 1030 // chunk | 1
    if direction == "weight_grad":
        yield "a long sum", Case(2, (40, 41), 5 * chunk, 3 * chunk, (1, 1), one, one, none)
    elif direction == "forward":
        yield "a long sum", Case(1, (9, 8), deep * chunk, 5 * chunk, (1, 1), one, one, none)
    else:
        yield "a long sum", Case(1, (9, 8), 5 * chunk, deep * chunk, (1, 1), one, one, none)


def _wrong(setting: Setting, mode: str, direction: str, case: Any) -> str:
    """What is wrong with one result, in words."""
    from calls import convolve
    from cases import integers
    from tolerances import assert_exact

    dtype, precision, _ = MODES[mode]
    arrays = case.arrays(integers, dtype)
    try:
        sent = map(setting.cupy.asarray, arrays)
        got = convolve(direction, case, *sent, algorithm="implicit_gemm", precision=precision)
        assert_exact(got, case.want(direction, *arrays), arrays[0].dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ------------------------------------------------------------------------------------------------ gpuconv check


def _check(setting: Setting, journal: Journal, dtype: str) -> None:
    from gpuconv.tools import check

    if setting.double:
        check.PROBLEMS = check.PROBLEMS[4:5]
    outcomes = list(check.outcomes(["cuda:0"], [dtype]))
    for outcome in outcomes:
        if outcome.failure:
            where = f"{outcome.algorithm} {outcome.dtype} {outcome.problem} {outcome.direction}"
            journal.fault(f"check: {where}", outcome.failure)
    journal.note(f"check {dtype}", results=sum(not outcome.refused for outcome in outcomes))
