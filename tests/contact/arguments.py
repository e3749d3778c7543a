"""Step 1: what is there, what the device allows, and whether a kernel gets the arguments that a launch gives it."""

from __future__ import annotations

import platform
import shutil
import tempfile
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from contact.journal import Journal
from contact.setting import Setting

NEEDED = ("numpy", "threadpoolctl", "fastrlock", "ml_dtypes", "hypothesis", "pytest")
USEFUL = ("cupy-cuda12x", "cupy-cuda13x", "pytest-xdist", "numba", "safetensors", "typer", "torch")
TOOLS = ("compute-sanitizer", "ncu")
MIB = 2**20

NUMBERS = {
    "bool": np.True_,
    "char": np.int8(-7),
    "unsigned char": np.uint8(201),
    "short": np.int16(-30001),
    "unsigned short": np.uint16(60001),
    "int": np.int32(-2000000001),
    "unsigned": np.uint32(4000000001),
    "long long": np.int64(-(2**62) - 12345),
    "unsigned long long": np.uint64(2**63 + 12345),
    "float": np.float32(-1.5e-30),
    "double": np.float64(1.25e300),
}
"""A number of every kind that a kernel may take, see gpuconv.cuda.signature."""

STRUCT = np.dtype([("n", "i4"), ("x", "i4", (3,)), ("by", [("mul", "u4"), ("shift", "u4")], (2,)), ("mode", "i4")])

_PARAMETERS = ", ".join(f"const {kind} a{place}" for place, kind in enumerate(NUMBERS))
_COPIES = "\n".join(f"    copy(out, at, &a{place}, sizeof a{place});" for place in range(len(NUMBERS)))
ECHO = f"""
struct By {{ unsigned mul, shift; }};
struct Echoed {{ int n; int x[3]; By by[2]; int mode; }};

__device__ void copy(unsigned char* out, int& at, const void* from, int count) {{
  for (int i = 0; i < count; i++) out[at++] = ((const unsigned char*)from)[i];
}}

extern "C" __global__ void echo(unsigned char* out, const float* nothing, const float* there, const Echoed g,
                                {_PARAMETERS}) {{
  if (blockIdx.x || threadIdx.x) return;
  int at = 0;
  out[at++] = nothing == nullptr;
  copy(out, at, there, 8);
  copy(out, at, &g, sizeof g);
{_COPIES}
}}
"""


def run(setting: Setting, journal: Journal) -> None:
    if not _packages(journal):
        return
    with journal.guarded("device"):
        _device(setting, journal)
    with journal.guarded("arguments"):
        _echo(setting, journal)


def _packages(journal: Journal) -> bool:
    """Note the versions; False if gpuconv or its tests cannot be imported."""
    found = {"python": platform.python_version()}
    for name in (*NEEDED, *USEFUL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        journal.fault(
            "packages",
            f"{', '.join(missing)} cannot be imported, and gpuconv or its tests need it. Where pip reaches no index, "
            "bring a wheel along: `pip download --no-deps` on another machine, `pip install --no-index --no-deps` here",
        )
    journal.note("versions", ", ".join(f"{name} {number}" for name, number in found.items()), versions=found)
    journal.note("tools", ", ".join(f"{name}: {shutil.which(name) or 'not there'}" for name in TOOLS))
    return not missing


def _device(setting: Setting, journal: Journal) -> None:
    import gpuconv

    runtime = setting.cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    date = datetime.now(timezone.utc).date().isoformat()
    device = properties["name"].decode()
    limits = {
        "multiprocessors": properties["multiProcessorCount"],
        "memory_mib": properties["totalGlobalMem"] // MIB,
        "l2_mib": properties["l2CacheSize"] // MIB,
        "shared_bytes": properties["sharedMemPerBlock"],
        "shared_bytes_opt_in": runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
    }
    arch = f"sm_{properties['major']}{properties['minor']}"
    journal.note(
        "device",
        f"{device}, {arch}, {', '.join(f'{name} {count}' for name, count in limits.items())}, "
        f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}, gpuconv {gpuconv.__version__}",
        device=device,
        date=date,
        double=setting.double,
        arch=arch,
        limits=limits,
    )


def _echo(setting: Setting, journal: Journal) -> None:
    """Launch as the library does, and compare the bytes of each argument."""
    from gpuconv.cuda import Launch, Unit, launch, loader

    cupy, before = setting.cupy, loader.folder
    there = np.array([1.5, -2.5], np.float32)
    struct = np.array((3, (-4, 5, 2**31 - 1), [(2**32 - 1, 1), (7, 31)], -9), STRUCT)
    expected = {"a null pointer": b"\1", "an array": there.tobytes(), "a struct": struct.tobytes()}
    expected |= {kind: number.tobytes() for kind, number in NUMBERS.items()}
    out = cupy.zeros(sum(map(len, expected.values())), np.uint8)
    with tempfile.TemporaryDirectory() as name:
        Path(name, "echo.cu").write_text(ECHO, encoding="utf-8")
        loader.folder = lambda: Path(name)
        try:
            unit, rest = Unit("echo.cu", np.dtype(np.float32)), (struct, *NUMBERS.values())
            launch(cupy, Launch(unit, "echo", (1,), (32,), rest), out, None, cupy.asarray(there))
        finally:
            loader.folder = before
    got, at = out.get().tobytes(), 0
    for kind, wanted in expected.items():
        came = got[at : at + len(wanted)]
        at += len(wanted)
        if came != wanted:
            journal.fault(f"argument: {kind}", f"the kernel got the bytes {came.hex()}, not {wanted.hex()}")
    journal.note("arguments", f"{len(expected)} kinds handed to a kernel")
