"""Where arrays live: one library and one device a call, nothing copied unasked. A class of its name plays CuPy."""

import sys
import types

import numpy as np
import pytest
from calls import CALLS, same

import gpuconv
from gpuconv import backend

MIXED = {name: call for name, call in CALLS.items() if len(call.shapes) > 1}


class FakeArray:
    """As much of a cupy.ndarray as is looked at before an array is found to be in the wrong place."""

    def __init__(self, a, device=0):
        self.shape, self.dtype, self.ndim, self.size = a.shape, a.dtype, a.ndim, a.size
        self.device = types.SimpleNamespace(id=device)


@pytest.fixture
def cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.ndarray = FakeArray
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
    "list": (np.ndarray.tolist, "list"),
    "masked": (np.ma.masked_array, "MaskedArray"),
    "tensor": (Tensor, "Tensor"),
    "scalar": (lambda a: 1.0, "float"),
}


@pytest.mark.parametrize(("disguise", "named"), STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_array_is_named_with_the_remedy(call, disguise, named):
    arrays = call.arrays()
    for name in arrays:
        strange = {**arrays, name: disguise(arrays[name])}
        with pytest.raises(TypeError, match=rf"^{call.function}: {name}: \S*{named} is neither .*asarray\({name}\)"):
            call(strange)


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
        with pytest.raises(gpuconv.DeviceError, match=r"'cuda:1' needs CuPy: pip install 'gpuconv\[cuda12\]'"):
            backend.to_device(np.ones(3), "cuda:1")
        assert backend.devices() == ["cpu"]
