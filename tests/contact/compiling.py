"""Step 2: every unit compiled into CuPy's cache on the disk, and what its kernels take of the device.

The parts of the step share out the units; what they compile is there for the steps that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from contact.journal import Journal, read
from contact.setting import Setting

OF_THE_DOUBLE = 2
"""Units compiled for the double, where each takes g++ some seconds."""


def run(setting: Setting, journal: Journal) -> None:
    count = min(16, setting.processors)
    names = [f"share {number} of {count}" for number in range(1, 1 + (1 if setting.double else count))]
    for name, end in setting.run_parts(names, count).items():
        if end:
            journal.fault(name, f"its process {end}")
    own = [finding.values for finding in read(setting.out) if finding.step == setting.number]
    rows = [values for values in own if "unit" in values]
    compiled, planned = len({values["unit"] for values in rows}), sum(values.get("units", 0) for values in own)
    journal.note("units", f"{compiled} of {planned} compiled, {len(rows)} kernels")
    if compiled < planned:
        journal.fault("units", f"{planned - compiled} of {planned} were not compiled")
    for file in sorted({values["file"] for values in rows}):
        some = [values for values in rows if values["file"] == file]
        most = [f"{what} up to {max(values[what] for values in some)}" for what in _WORDS if what in some[0]]
        journal.note(file, ", ".join([f"{len(some)} kernels", *most]))


_WORDS = {"registers": "num_regs", "local": "local_size_bytes", "static": "shared_size_bytes"}
"""What a kernel takes, and CuPy's names of it: registers and local bytes per thread, shared bytes per block."""


def part(setting: Setting, journal: Journal, name: str) -> None:
    from gpuconv.tools import kernel_report

    number, count = (int(word) for word in name.split() if word.isdecimal())
    units = kernel_report.units()[number - 1 :: count]
    if setting.double:
        units = [unit for unit in units if unit.file in ("epilogue.cu", "split_k_reduce.cu")][:OF_THE_DOUBLE]
    journal.note(name, units=len(units))
    for unit in units:
        with journal.guarded(str(unit)):
            for values in _taken(setting, unit):
                journal.note("", **values)
                for fault in _excesses(setting, unit, values):
                    journal.fault(f"{values['kernel']} ({unit})", fault)


def _taken(setting: Setting, unit: Any) -> Iterator[dict[str, Any]]:
    """Compile a unit, and what each kernel in it takes."""
    from gpuconv import cuda
    from gpuconv.tools import kernel_report

    module = setting.cupy.RawModule(code=cuda.flatten(unit.file), options=cuda.options(unit))
    for name in kernel_report.kernels(unit):
        kernel = module.get_function(name)
        values = {"unit": str(unit), "file": unit.file, "kernel": name}
        if not setting.double:
            values |= {word: int(getattr(kernel, attribute)) for word, attribute in _WORDS.items()}
            dynamic = kernel_report.dynamic_bytes({unit}).get(unit, 0)
            if dynamic:
                kernel.max_dynamic_shared_size_bytes = dynamic  # raises where the device does not allow so much
            values["dynamic"] = dynamic
        yield values


def _excesses(setting: Setting, unit: Any, values: dict[str, Any]) -> Iterator[str]:
    """What a kernel takes too much of, in words."""
    from gpuconv.tools import kernel_report

    if "registers" not in values:
        return
    budget = kernel_report.budgets(unit.file).get(values["kernel"], values["registers"])
    if values["registers"] > budget:
        yield f"takes {values['registers']} registers, but its budget is {budget}"
    if values["local"]:
        yield f"takes {values['local']} bytes of local memory per thread: arrays or registers that were spilled"
    runtime = setting.cupy.cuda.runtime
    limit = runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, 0)
    total = values["static"] + values["dynamic"]
    if total > limit:
        yield f"takes {total} bytes of shared memory, but the device allows {limit}"
