"""Compiles C++ to shared objects, in a cache on disk that several processes may share."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME_SOURCES = (
    "launch.cpp",
    "fibers.cpp",
    "barriers.cpp",
    "faults.cpp",
    "clocks.cpp",
    "checker.cpp",
    "device_memory.cpp",
    "async_copies.cpp",
    "matrix.cpp",
    "wgmma.cpp",
    "sanitizer_hooks.cpp",
    "traffic.cpp",
)
RUNTIME_HEADERS = ("runtime.h", "internal.h", "traffic.h")

COMMON = (
    *("-std=c++17", "-fPIC", "-shared", "-pipe", "-g1", "-fvisibility=hidden"),
    "-fno-gnu-unique",  # statics of templates must not merge across the modules of a process
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",  # kernels read shared memory as whatever they like, and CUDA lets them
    "-fno-optimize-sibling-calls",  # return addresses say where a call stood
)
RUNTIME_FLAGS = (
    *("-O2", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra"),
    *os.environ.get("GPUCONV_EMULATOR_RUNTIME_FLAGS", "").split(),
)
WARNINGS = ("-w",)  # NVRTC is whom a kernel's warnings are asked of
OPTIMISED = ("-O2", "-ffp-contract=fast")
# Instrumented code calls sanitizer_hooks.cpp; the sanitizers' own libraries are not linked.
CHECKED = ("-O1", "-fsanitize=thread,alignment,bounds", "-fno-sanitize-recover=all", "-ftrivial-auto-var-init=pattern")
OVERFLOW = (
    *("-O1", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr,null,nonnull-attribute"),
    *("-fno-sanitize-recover=all", "-ftrivial-auto-var-init=pattern"),
)


class BuildError(RuntimeError):
    """The compiler refused."""


def unavailable() -> str | None:
    """Why nothing can be built here, or None."""
    if not sys.platform.startswith("linux"):
        return f"the emulator runs on Linux, this is {sys.platform}"
    if compiler() is None:
        return "the emulator needs g++, and there is none on the PATH"
    return None


@functools.cache
def compiler() -> str | None:
    return shutil.which(os.environ.get("GPUCONV_EMULATOR_CXX", "g++"))


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Fused multiply-add and 16-bit conversion in hardware where there is any: `fma` would be a slow call."""
    try:
        known = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ()
    flags = ("fma", "avx2", "f16c")
    return tuple(f"-m{flag}" for flag in flags) if known.issuperset(flags) else ()


@functools.cache
def cache_directory() -> Path:
    named = os.environ.get("GPUCONV_EMULATOR_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(named) if named else base / "gpuconv-emulator"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def cached(name: str, make) -> Path:
    """The file of that name in the cache; `make(path)` writes it where it is missing, in one process at a time."""
    path = cache_directory() / name
    if path.exists():
        return path
    with (cache_directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{os.getpid()}-{name}")
            try:
                make(unfinished)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
    (cache_directory() / f"{name}.lock").unlink(missing_ok=True)
    return path


def run(command: list, text: str | None = None) -> str:
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr[:6000] or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def contents(names: tuple[str, ...]) -> list[str]:
    return [(HERE / name).read_text() for name in names]


@functools.cache
def headers_key() -> str:
    """Changes with anything that a module is compiled against."""
    return digest(
        contents(tuple(sorted(path.name for path in HERE.glob("*.h")))), runtime_key(), COMMON, machine_flags()
    )


@functools.cache
def runtime_key() -> str:
    parts = (
        contents(RUNTIME_SOURCES),
        contents(RUNTIME_HEADERS),
        COMMON,
        RUNTIME_FLAGS,
        machine_flags(),
        compiler_version(),
    )
    return digest(parts)


@functools.cache
def runtime() -> Path:
    """The runtime, which all modules of a process share."""
    name = f"runtime-{runtime_key()}.so"

    def make(out: Path) -> None:
        forget_old()
        sources = [HERE / source for source in RUNTIME_SOURCES]
        run([compiler(), *COMMON, *RUNTIME_FLAGS, *machine_flags(), f"-Wl,-soname,{name}", *sources, "-lrt", "-o", out])

    return cached(name, make)


def forget_old(days: int = 30) -> None:
    """Removes from the cache what has not been built lately."""
    for path in cache_directory().iterdir():
        if path.suffix == ".so" and path.stat().st_mtime < time.time() - days * 86400:
            path.unlink(missing_ok=True)


def shared_object(key: str, text, flags: tuple[str, ...]) -> Path:
    """A module of C++ `text`, or of what `text()` gives, called only where it must be compiled; `key` tells it."""
    flags = (*COMMON, *machine_flags(), *WARNINGS, *flags)
    key = digest(key, flags, headers_key())

    def make(out: Path) -> None:
        source = text() if callable(text) else text
        # without the default libraries, which with instrumentation would be those of the sanitizers
        libraries = ("-x", "none", runtime(), "-nodefaultlibs", "-lm", "-lc", "-lgcc")
        run([compiler(), *flags, f"-I{HERE}", "-x", "c++", "-", *libraries, "-o", out], source)

    return cached(f"module-{key}.so", make)
