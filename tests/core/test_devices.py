"""Where arrays live: one library and one device a call, nothing copied unasked. A class of its name plays CuPy."""

import re
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from calls import CALLS, same
from typer.testing import CliRunner

import gpuconv
from gpuconv import backend
from gpuconv.cli import app
from gpuconv.tools import check

MIXED = {name: call for name, call in CALLS.items() if len(call.shapes) > 1}


class FakeArray:
    """As much of a cupy.ndarray as is looked at before an array is found to be in the wrong place."""

    def __init__(self, a, device=0):
        self.shape, self.dtype, self.ndim, self.size = a.shape, a.dtype, a.ndim, a.size
        self.device = types.SimpleNamespace(id=device)
        self.flags = types.SimpleNamespace(c_contiguous=False)


@pytest.fixture
def cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.ndarray = FakeArray
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: 0))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_mixed_libraries_are_named(cupy, call):
    arrays = call.arrays()
    for moved in arrays:
        mixed = {name: FakeArray(a) if name == moved else a for name, a in arrays.items()}
        before = {name: a.copy() for name, a in arrays.items()}
        with pytest.raises(TypeError) as refused:
            call(mixed)
        says = str(refused.value)
        assert says.startswith(f"{call.function}: the arrays must live in one library: ")
        assert all(f"{name} in {'CuPy' if name == moved else 'NumPy'}" in says for name in arrays)
        assert "to_device" in says
        assert all(same(arrays[name], before[name]) for name in arrays)


@pytest.mark.parametrize("call", [call for call in CALLS.values() if call.has_layout], ids=lambda call: call.function)
def test_out_in_the_other_library(cupy, call):
    arrays = call.arrays()
    with pytest.raises(TypeError, match=rf"^{call.function}: .*out in CuPy"):
        call(arrays, out=FakeArray(call(arrays)))


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_two_devices_are_named(cupy, call):
    arrays = {name: FakeArray(a, device) for device, (name, a) in enumerate(call.arrays().items())}
    where = ", ".join(f"{name} on cuda:{device}" for device, name in enumerate(arrays))
    with pytest.raises(gpuconv.DeviceError, match=rf"^{call.function}: the arrays must live on one device: {where}\."):
        call(arrays)


class Tensor:
    """An array of yet another library, which NumPy could convert but is not asked to."""

    def __init__(self, a):
        self.a, self.shape, self.dtype, self.ndim = a, a.shape, a.dtype, a.ndim

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("converted behind the user's back")


STRANGERS = {
    "list": (np.ndarray.tolist, "list", "np.asarray({})"),
    "masked": (np.ma.masked_array, "MaskedArray", "{}.filled(value)"),
    "tensor": (Tensor, "Tensor", "asarray({})"),
    "scalar": (lambda a: 1.0, "float", "np.asarray({})"),
}


@pytest.mark.parametrize(("disguise", "named", "remedy"), STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_array_is_named_with_the_remedy(call, disguise, named, remedy):
    arrays = call.arrays()
    for name in arrays:
        strange = {**arrays, name: disguise(arrays[name])}
        told = rf"^{call.function}: {name}: \S*{named} is neither .*{re.escape(remedy.format(name))}"
        with pytest.raises(TypeError, match=told):
            call(strange)


def test_a_column_of_pandas_is_taken_by_to_numpy():
    column = pytest.importorskip("pandas").Series([0, 1, 1])
    with pytest.raises(TypeError, match=r"^fit: y: pandas\.\S*Series is neither .*\. Pass y\.to_numpy\(\) instead\.$"):
        backend.common_module("fit", X=np.ones((3, 4)), y=column)
    assert backend.common_module("fit", X=np.ones((3, 4)), y=column.to_numpy()) is np


class TestBackend:
    def test_numpy_is_numpy(self):
        assert backend.array_module(np.ones(3)) is np
        assert backend.device_of(np.ones(3)) == "cpu"
        assert backend.devices()[0] == "cpu"

    def test_each_backend_there_is(self, xp, device):
        x = xp.ones(3)
        assert backend.array_module(x) is xp
        assert backend.device_of(x) == device
        assert backend.to_device(x, device) is x
        assert isinstance(backend.to_numpy(x), np.ndarray)
        assert device in backend.devices()

    @pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
    def test_a_device_that_is_none(self, device):
        with pytest.raises(gpuconv.DeviceError, match=rf"'{device}'"):
            backend.to_device(np.ones(3), device)

    def test_a_device_without_cupy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)  # makes "import cupy" an ImportError
        words = r"'cuda:1' cannot be used\. CuPy is not installed; .*pip install .*\[cuda13\]'"
        with pytest.raises(gpuconv.DeviceError, match=words):
            backend.to_device(np.ones(3), "cuda:1")
        assert backend.devices() == ["cpu"]

    def test_a_broken_cupy_is_no_missing_cupy(self, tmp_path, monkeypatch):
        (tmp_path / "cupy.py").write_text("raise ImportError('libcublas.so.13: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        words = "CuPy cannot be imported: ImportError: libcublas.so.13: cannot open shared object file"
        with pytest.raises(gpuconv.DeviceError, match=rf"^to_device: device='cuda:0' cannot be used\. {words}\.$"):
            backend.to_device(np.ones(3), "cuda")
        assert backend.devices() == ["cpu"]
        assert backend.why_no_cuda() == words

    def test_where_there_is_no_device_cupy_says_why(self, double, monkeypatch):
        def fails():
            raise double.cuda.runtime.CUDARuntimeError(35)

        with pytest.raises(gpuconv.DeviceError, match=r"'cuda:2' does not exist: CuPy sees 2 CUDA devices"):
            backend.check_device("cuda:2", "plan")
        assert backend.why_no_cuda() == ""
        monkeypatch.setattr(double.cuda.runtime, "getDeviceCount", fails)
        words = "cannot be used. CuPy finds no CUDA device: cudaErrorInsufficientDriver: CUDA driver version is insuff"
        with pytest.raises(gpuconv.DeviceError, match=re.escape(words)):
            gpuconv.plan("n1_h8w8_c4_k4_r1s1", device="cuda")
        shown = " ".join(CliRunner().invoke(app, ["info"]).output.split())
        assert "CuPy finds no CUDA device: cudaErrorInsufficientDriver: CUDA driver version" in shown


def test_bfloat16_on_a_cupy_that_has_none(double, monkeypatch):
    """CuPy 13.6 makes such arrays, and fails when it copies them."""
    x = double.empty((1, 4, 4, 8), ml_dtypes.bfloat16)
    monkeypatch.setattr(double, "__version__", "13.6.0")
    words = (
        r": dtype bfloat16 on a GPU needs CuPy 14\.0 or newer, but this is CuPy 13\.6\.0\. Upgrade CuPy, or use float16"
    )
    with pytest.raises(gpuconv.DTypeError, match=f"^conv2d{words}"):
        gpuconv.conv2d(x, x.reshape(1, 1, 16, 8)[:, :, :8])
    with pytest.raises(gpuconv.DTypeError, match=f"^max_pool2d{words}"):
        gpuconv.max_pool2d(x, 2)
    with pytest.raises(gpuconv.DTypeError, match=f"^im2col{words}"):
        gpuconv.im2col(x, 2)
    with pytest.raises(gpuconv.DTypeError, match=f"^to_device{words}"):
        gpuconv.to_device(np.zeros(3, ml_dtypes.bfloat16), "cuda")
    assert all(outcome.refused for outcome in check.outcomes(["cuda:0"], ["bfloat16"]))
    gpuconv.conv2d(*(np.ones(shape, ml_dtypes.bfloat16) for shape in ((1, 4, 4, 8), (1, 1, 8, 8))))
