"""NVIDIA's runtime compiler without a driver or a GPU: the machine code of the kernels, for reports and tests.

Launches do not use this file: CuPy compiles for them. The compiler is NVRTC, by way of cuda.bindings, which the extra
``kernels`` installs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from gpuconv.errors import KernelError
from gpuconv.support.installing import how_to_add


def compile_cubin(text: str, options: Sequence[str], arch: str) -> tuple[bytes, str]:
    """The machine code of a text, and the compiler's log.

    Parameters
    ----------
    text : str
        CUDA C++ without includes, see `cuda.flatten`.
    options : sequence of str
        See `cuda.options`; ``-ftz=true`` is added, as CuPy does.
    arch : str
        "sm_80", "sm_90a" and the like.

    Raises
    ------
    KernelError
        If it does not compile; ``.log`` has the compiler's words.
    ModuleNotFoundError
        If NVRTC is not installed.
    """
    return _compile(text, [*options, f"-arch={arch}"], "CUBIN")


def compile_ptx(text: str, options: Sequence[str], arch: str) -> tuple[bytes, str]:
    """The PTX of a text for an architecture, and the compiler's log; otherwise as `compile_cubin`."""
    return _compile(text, [*options, f"-arch={arch.replace('sm_', 'compute_')}"], "PTX")


@cache
def version() -> tuple[int, int]:
    """The version of NVRTC, such as (12, 9)."""
    nvrtc = _nvrtc()
    major, minor = _checked(nvrtc.nvrtcVersion())
    return major, minor


@cache
def architectures() -> tuple[str, ...]:
    """The architectures that this NVRTC compiles for, from the oldest: "sm_70" and so on."""
    nvrtc = _nvrtc()
    (found,) = _checked(nvrtc.nvrtcGetSupportedArchs())
    return tuple(f"sm_{number}" for number in found)


def _compile(text: str, options: Sequence[str], form: str) -> tuple[bytes, str]:
    nvrtc = _nvrtc()
    told = (*options, "-ftz=true")
    (program,) = _checked(nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(told), [option.encode() for option in told])
        lines = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").splitlines()
        log = "\n".join(line for line in lines if "deprecated and may be removed" not in line).strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = log or status.name
            raise KernelError(f"NVRTC, with {' '.join(told)}:\n{log}", options=told, log=log)
        return _read(program, form), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(program: Any, what: str) -> bytes:
    nvrtc = _nvrtc()
    (size,) = _checked(getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    buffer = bytearray(size)
    _checked(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return bytes(buffer)


def _checked(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = answer
    if status.value:
        raise KernelError(f"NVRTC failed with {status.name}.")
    return tuple(values)


@cache
def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library itself, which may be missing
    except Exception as error:  # the kind differs by version
        raise ModuleNotFoundError(
            f"this needs NVRTC and cuda-bindings: {how_to_add('kernels')} ({error})", name="cuda"
        ) from error
    return nvrtc
