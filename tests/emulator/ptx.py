"""The PTX tier: what NVRTC makes of a CUDA text, inline PTX included, translated to C++ and run."""

import functools
from pathlib import Path

from . import build

HEADERS = ("ptx_numbers.h", "ptx_memory.h", "ptx_warp.h", "traffic.h")
TRANSLATOR = (
    *("ptx.py", "ptx_parse.py", "ptx_flow.py", "ptx_table.py", "ptx_translate.py"),
    *("ptx_arithmetic.py", "ptx_memory.py", "ptx_warp.py"),
)
# Contraction would fuse what the PTX does not. -O1 compiles in half the time of -O2, and runs about as fast
FLAGS = ("-O1", "-g0", "-ffp-contract=off")


def unavailable() -> str | None:
    """Why this tier cannot run here, or None."""
    from gpuconv.cuda import nvrtc

    try:
        nvrtc.version()
    except ModuleNotFoundError as error:
        return str(error)
    return build.unavailable()


@functools.cache
def translator_key() -> str:
    """Changes with anything that decides what C++ a text becomes."""
    from gpuconv.cuda import nvrtc

    return build.digest(build.contents(HEADERS + TRANSLATOR), nvrtc.version())


def ptx_of(text: str, options: tuple[str, ...], arch: int) -> str:
    """The PTX of a text, with the source lines; CuPy's options are added, as everywhere."""
    from gpuconv.cuda import nvrtc

    if not any(option.startswith(("-std", "--std")) for option in options):
        options = (*options, "-std=c++17")
    exact = [option for option in options if option.startswith("-arch=")]  # what the text needs, see cuda.options
    others = (option for option in options if option not in exact)
    return nvrtc.compile_ptx(text, (*others, "-lineinfo"), (exact or [f"-arch=sm_{arch}"])[0].removeprefix("-arch="))[
        0
    ].decode()


def build_module(text: str, options: tuple[str, ...], *, check: bool, arch: int) -> Path:
    """The shared object of a text. Checks cost one test of a flag where they are off, so one object serves both."""
    from .ptx_translate import translate

    def make() -> str:
        return translate(ptx_of(text, options, arch))

    key = build.digest("ptx", text, options, arch, translator_key())
    return build.shared_object(key, make, FLAGS)
