"""The compiler without a GPU."""

import os
import platform
import sys

import pytest
from nvrtc_here import needs_nvrtc, why_not

from gpuconv.cuda import nvrtc
from gpuconv.errors import KernelError

SOURCE = """#line 7 "twice.cu"
extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }
"""


@needs_nvrtc
def test_ptx():
    ptx, log = nvrtc.compile_ptx(SOURCE, ("-std=c++17", "-DFACTOR=2"), "sm_80")
    assert b".target sm_80" in ptx
    assert b".visible .entry twice(" in ptx
    assert b"mul.ftz.f32" in ptx or b"add.ftz.f32" in ptx  # as on a device: CuPy asks for it too
    assert log == ""


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_70", "sm_90", "sm_90a"])
def test_cubin(arch):
    cubin, log = nvrtc.compile_cubin(SOURCE, ("-DFACTOR=2", "--ptxas-options=-v"), arch)
    assert cubin[:4] == b"\x7fELF"
    assert f"Compiling entry function 'twice' for '{arch}'" in log
    assert "deprecated" not in log


@needs_nvrtc
def test_what_the_compiler_says_is_kept():
    with pytest.raises(
        KernelError, match=r"-DFACTOR=f -arch=sm_80 -ftz=true:\ntwice\.cu\(7\): error: .*\"f\""
    ) as caught:
        nvrtc.compile_cubin(SOURCE, ("-DFACTOR=f",), "sm_80")
    assert caught.value.log.startswith("twice.cu(7): error: ")
    assert caught.value.options == ("-DFACTOR=f", "-arch=sm_80", "-ftz=true")
    with pytest.raises(KernelError, match="invalid value for --gpu-architecture"):
        nvrtc.compile_cubin(SOURCE, (), "sm_1")


@needs_nvrtc
def test_what_it_compiles_for():
    assert nvrtc.version() >= (12, 9)
    assert {"sm_80", "sm_90"} <= set(nvrtc.architectures())


@pytest.mark.skipif("CI" not in os.environ or platform.machine() != "x86_64", reason="not CI, or no NVRTC for it")
def test_ci_has_it():
    assert why_not() == ""


def test_without_it_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    nvrtc._nvrtc.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"NVRTC and cuda-bindings: run .*\[kernels\]'"):
        nvrtc.compile_ptx(SOURCE, (), "sm_80")
    monkeypatch.undo()
    nvrtc._nvrtc.cache_clear()
