"""The array-module shim: the library an array belongs to, and moves between devices. Only this file imports CuPy.

CuPy is imported when one of its arrays appears (it is loaded by then) or when a CUDA device is named, but never by
``import gpuconv``. Public functions ask here for the module of their arrays, and hand it down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.errors import DeviceError, DTypeError
from gpuconv.support.installing import how_to_add
from gpuconv.typing import Array, DTypeLike

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")
"""The integers that some kernels take, besides the `DTYPES` of all of them."""


def array_module(x: object) -> ModuleType:
    """NumPy for a NumPy array, CuPy for a CuPy array.

    Subclasses of NumPy's array count as arrays, np.memmap for instance, with two exceptions whose operators compute
    something else: masked arrays and np.matrix.

    Raises
    ------
    TypeError
        For anything else, such as None, numbers, lists and tensors of other libraries.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    if isinstance(x, np.ndarray) and not isinstance(x, (np.ma.MaskedArray, np.matrix)):
        return np
    raise TypeError(f"{_kind(x)} is neither a NumPy nor a CuPy array")


def common_module(caller: str, *, bias: object = None, out: object = None, **arrays: object) -> ModuleType:
    """The one module that all of these arrays belong to. Only `bias` and `out` may be None.

    Raises
    ------
    TypeError
        If one is not an array, or some live in NumPy and some in CuPy. Nothing is copied to make them agree.
    DeviceError
        If CuPy arrays live on different devices.
    """
    for x in arrays.values():
        if type(x) is not np.ndarray:
            break
    else:
        if (bias is None or type(bias) is np.ndarray) and (out is None or type(out) is np.ndarray):
            return np
    arrays |= {name: x for name, x in (("bias", bias), ("out", out)) if x is not None}
    homes = {name: _home(x, caller, name) for name, x in arrays.items()}
    if len(set(homes.values())) > 1:
        where = ", ".join(f"{name} in {'NumPy' if home is np else 'CuPy'}" for name, home in homes.items())
        raise TypeError(
            f"{caller}: the arrays must live in one library: {where}. "
            "Move some with gpuconv.to_device or gpuconv.to_numpy; nothing is copied across the bus unasked."
        )
    devices = {name: device_of(x) for name, x in arrays.items()}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DeviceError(f"{caller}: the arrays must live on one device: {where}. Move some with gpuconv.to_device.")
    return next(iter(homes.values()))


def _home(x: object, caller: str, name: str) -> ModuleType:
    """`array_module` with an error that names the argument and the remedy."""
    if x is None:
        raise TypeError(f"{caller}: {name} is None, where a NumPy or a CuPy array is needed. Pass {name}.")
    try:
        return array_module(x)
    except TypeError as error:
        if hasattr(x, "to_numpy"):  # a column or a table of pandas or Polars
            raise TypeError(f"{caller}: {name}: {error}. Pass {name}.to_numpy() instead.") from None
        raise TypeError(f"{caller}: {name}: {error}. Convert it first: {_way_in(x, name)}.") from None


def _way_in(x: object, name: str) -> str:
    """How to make an array that gpuconv takes of `x`, which is none."""
    if isinstance(x, np.ma.MaskedArray):
        return f"{name}.filled(value)"
    return f"gpuconv.asarray({name})" if _may_lend(x) else f"np.asarray({name}) or cupy.asarray({name})"


def _may_lend(x: object) -> bool:
    """Whether `x` is a tensor of another library, whose memory can be used. A masked array would lose its mask."""
    return hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray)


def may_overlap(xp: ModuleType) -> Callable[[Array, Array], bool]:
    """The function that says whether two arrays may have memory in common: True unless their bytes are far apart.

    CuPy's ``may_share_memory`` says False where two memories begin at different addresses. Those of a tensor and of a
    part of it do, if both were lent by ``from_dlpack`` or ``__cuda_array_interface__``.
    """
    return np.may_share_memory if xp is np else _byte_ranges_meet


def _byte_ranges_meet(a: Any, b: Any) -> bool:
    (first, first_end), (second, second_end) = byte_range(a), byte_range(b)
    return first < second_end and second < first_end


def byte_range(a: Any) -> tuple[int, int]:
    """The address of the first byte of an array on a GPU, and the address after its last."""
    start = end = int(a.data.ptr)
    if a.size == 0:
        return start, start
    if a.flags.c_contiguous:
        return start, start + int(a.nbytes)
    for size, stride in zip(a.shape, a.strides, strict=True):
        reach = (size - 1) * stride
        start, end = (start, end + reach) if reach > 0 else (start + reach, end)
    return start, end + int(a.itemsize)


def module_for(device: str) -> ModuleType:
    """The module whose arrays live on `device`."""
    if device == "cpu":
        return np
    import cupy

    module: ModuleType = cupy
    return module


def common_dtype(caller: str, **arrays: Array | None) -> np.dtype[Any]:
    """The dtype, in native byte order, that all of these arrays share.

    Raises
    ------
    DTypeError
        If gpuconv does not compute in one of them, or they differ. Nothing is cast to make them agree.
    """
    kinds = {x.dtype for x in arrays.values() if x is not None}
    if len(kinds) == 1 and (only := kinds.pop()).isnative and _is_known(only):
        if only.kind == "V" and not all(isinstance(x, np.ndarray) for x in arrays.values() if x is not None):
            check_dtype_on_gpu(only, caller)
        return only
    dtypes = {name: native(x.dtype) for name, x in arrays.items() if x is not None}
    for name, dtype in dtypes.items():
        check_dtype(dtype, caller, f"{name}.dtype")
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise DTypeError(f"{caller}: the arrays must share one dtype: {found}. Cast some with .astype.")
    return next(iter(dtypes.values()))


def check_number(x: Array, caller: str, name: str) -> None:
    """Check the dtype for functions that only move or add values, which take integers as well."""
    if x.dtype.kind not in "iu":
        common_dtype(caller, **{name: x})


def check_dtype(dtype: np.dtype[Any], caller: str, name: str = "dtype") -> None:
    if not _is_known(dtype):
        of_integers = "; of integers it computes forward convolutions and pooling alone" if dtype.kind in "iu" else ""
        raise DTypeError(
            f"{caller}: {name} is {dtype}, but gpuconv computes in {', '.join(DTYPES)}{of_integers}. Cast with .astype."
        )


def check_dtype_on_gpu(dtype: np.dtype[Any], caller: str) -> None:
    """Raise if this CuPy has no bfloat16. Before 14.0 it makes such arrays unchecked, and fails when it copies them."""
    if dtype.name != "bfloat16":
        return
    version: str = sys.modules["cupy"].__version__
    if int(version.partition(".")[0]) < 14:
        raise DTypeError(
            f"{caller}: dtype bfloat16 on a GPU needs CuPy 14.0 or newer, but this is CuPy {version}. Upgrade CuPy, or "
            "use float16."
        )


@lru_cache(maxsize=256)  # NumPy makes the name of a dtype anew each time
def _is_known(dtype: np.dtype[Any]) -> bool:
    return dtype.name in DTYPES


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """`dtype` in this machine's byte order."""
    if dtype.isnative:
        return dtype
    swapped: np.dtype[Any] = dtype.newbyteorder("=")
    return swapped


def as_dtype(dtype: DTypeLike, caller: str) -> np.dtype[Any]:
    """`dtype`, or the dtype of that name, if gpuconv computes in it. "bfloat16" needs the ml_dtypes package."""
    result = as_number(dtype, caller)
    check_dtype(result, caller)
    return result


def as_number(dtype: DTypeLike, caller: str) -> np.dtype[Any]:
    """The same for functions that take integers as well."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise DTypeError(
                f"{caller}: dtype bfloat16 needs the ml_dtypes package: run python -m pip install ml_dtypes."
            ) from None
        dtype = ml_dtypes.bfloat16
    try:
        if dtype is None:  # NumPy's word for float64
            raise TypeError  # noqa: TRY301
        result = native(np.dtype(dtype))
    except (SyntaxError, TypeError, ValueError):
        raise DTypeError(
            f"{caller}: dtype={dtype!r} is not a dtype. gpuconv computes in {', '.join(DTYPES)}."
        ) from None
    if result.kind not in "iu":
        check_dtype(result, caller)
    return result


@lru_cache(maxsize=256)
def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that sums of products of `dtype` are made in: float32 for the 16-bit floats, else `dtype` itself."""
    return np.dtype(np.float32) if dtype.name in ("float16", "bfloat16") else dtype


def is_complex(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "c"


# -------------------------------------------------------------------------------------------------- devices


def device_of(x: Any) -> str:
    """The device of an array: "cpu", or "cuda:0" and so on.

    >>> device_of(np.zeros(3))
    'cpu'
    """
    return "cpu" if isinstance(x, np.ndarray) else f"cuda:{x.device.id}"


def on_device_of(x: Any) -> AbstractContextManager[object]:
    """A context in which the device of `x` is the current one, so that memory is allocated there."""
    return _HERE if isinstance(x, np.ndarray) else x.device


_HERE = nullcontext()


def devices() -> list[str]:
    """The devices of this machine that gpuconv can use: "cpu", then the CUDA devices that CuPy sees. Imports CuPy.

    >>> devices()[0]
    'cpu'
    """
    count, _ = _cuda_devices()
    return ["cpu", *(f"cuda:{i}" for i in range(count))]


def why_no_cuda() -> str:
    """The reason why there is no CUDA device, in words that include CuPy's own; empty if there is one. Imports CuPy."""
    return _cuda_devices()[1]


def _cuda_devices() -> tuple[int, str]:
    """The number of CUDA devices that CuPy sees, and the reason if there is none."""
    try:
        import cupy
    except Exception as error:  # of any kind: a library may be missing, or too old
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return 0, f"CuPy is not installed; for a CUDA GPU, {how_to_add('cuda13')} (or cuda12)"
        return 0, f"CuPy cannot be imported: {type(error).__name__}: {error}"
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, or one that is too old
        return 0, f"CuPy finds no CUDA device: {error}"
    return count, "" if count else "CuPy finds no CUDA device"


def check_device(device: str, caller: str) -> str:
    """`device` as "cpu" or "cuda:<number>".

    Raises
    ------
    DeviceError
        If there is no such device, or no CuPy to reach it.
    """
    name: object = device
    if not isinstance(name, str):
        raise DeviceError(f"{caller}: device={name!r} is not a string. It must be 'cpu', 'cuda' or 'cuda:<number>'.")
    if device == "cpu":
        return "cpu"
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise DeviceError(f"{caller}: device={device!r} is neither 'cpu' nor 'cuda' nor 'cuda:<number>'.")
    device = f"cuda:{number or 0}"
    count, why_none = _cuda_devices()
    if why_none:
        raise DeviceError(f"{caller}: device={device!r} cannot be used. {why_none}.")
    if ordinal(device) >= count:
        raise DeviceError(f"{caller}: device={device!r} does not exist: CuPy sees {count} CUDA devices, from 0 on.")
    return device


def device_name(device: str) -> str:
    """The device with its product name, if it has one: "cpu", "cuda:0 NVIDIA H200"."""
    return device if device == "cpu" else f"{device} {product_name(device)}"


@cache
def product_name(device: str) -> str:
    """The product name of a CUDA device: "NVIDIA H200"."""
    import cupy

    name: bytes = cupy.cuda.runtime.getDeviceProperties(ordinal(device))["name"]
    return name.decode()


def synchronize(device: str) -> None:
    """Wait until the current stream of `device` has finished its work."""
    if device != "cpu":
        cupy = module_for(device)
        with cupy.cuda.Device(ordinal(device)):
            cupy.cuda.get_current_stream().synchronize()


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` ("cpu", "cuda", "cuda:1"); `x` itself if it is there already, a copy otherwise.

    Raises
    ------
    DeviceError
        If there is no such device, or no CuPy to reach it.

    >>> a = np.ones(3)
    >>> to_device(a, "cpu") is a
    True
    """
    home = _home(x, "to_device", "x")
    device = check_device(device, "to_device")
    if device == "cpu":
        return to_numpy(x)
    cupy = module_for(device)
    if home is cupy and device_of(x) == device:
        return x
    check_dtype_on_gpu(x.dtype, "to_device")
    with cupy.cuda.Device(ordinal(device)):
        moved: Array = cupy.array(x)
    return moved


def asarray(x: Any) -> Array:
    """`x` as a NumPy or a CuPy array, wherever it is: the way in for tensors of PyTorch, JAX and other libraries.

    A NumPy or a CuPy array is returned as it is. Anything else that has ``__dlpack__`` becomes a NumPy array if it is
    on the CPU, and a CuPy array if it is on a CUDA device. Nothing is copied: the result shares its memory, so that
    what is written to one is seen in the other, unless its library says that it is read-only. On a GPU, that library
    makes CuPy's current stream wait for it.

    Raises
    ------
    TypeError
        If `x` has no ``__dlpack__``, as numbers and lists, or does not lend its memory, as a tensor that requires a
        gradient or has a dtype that NumPy does not have.
    DeviceError
        If it is on another kind of device, or there is no CuPy to reach it.

    >>> a = np.ones(3)
    >>> asarray(a) is a
    True
    >>> class Tensor:
    ...     __dlpack__, __dlpack_device__ = a.__dlpack__, a.__dlpack_device__
    >>> np.shares_memory(asarray(Tensor()), a)
    True
    """
    try:
        array_module(x)
    except TypeError as error:
        if not _may_lend(x):
            raise TypeError(f"asarray: {error}, and does not lend its memory. Use {_way_in(x, 'x')}.") from None
    else:
        return x  # type: ignore[no-any-return]
    try:
        where, number = (int(value) for value in x.__dlpack_device__())
        if where in _ON_HOST:
            return np.from_dlpack(x)
        if where in _ON_CUDA:
            cupy = module_for(check_device(f"cuda:{number}", "asarray"))
            with cupy.cuda.Device(number):
                view: Array = cupy.from_dlpack(x)
            return view
    except DeviceError:
        raise
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise TypeError(
            f"asarray: {_kind(x)} does not lend its memory: {reason}. Convert it by its own library first, to a dtype "
            "that NumPy has, without a gradient."
        ) from error
    raise DeviceError(
        f"asarray: {_kind(x)} is on a device of DLPack's kind {where}, but gpuconv computes on the CPU and on CUDA "
        "devices. Move it to one of them first."
    )


_ON_HOST, _ON_CUDA = {1, 3}, {2, 13}
"""DLPack's kinds of devices: kDLCPU and kDLCUDAHost, kDLCUDA and kDLCUDAManaged."""


def to_numpy(x: Array) -> Array:
    """`x` as a NumPy array: itself, or a copy brought from the device.

    >>> to_numpy(np.arange(3))
    array([0, 1, 2])
    """
    home = _home(x, "to_numpy", "x")
    return x if home is np else home.asnumpy(x)


def ordinal(device: str) -> int:
    """The number of a CUDA device: 1 for "cuda:1"."""
    return int(device.removeprefix("cuda:"))


@cache
def multiprocessors(device: str) -> int:
    """The number of multiprocessors of a CUDA device."""
    return int(module_for(device).cuda.runtime.getDeviceProperties(ordinal(device))["multiProcessorCount"])


@cache
def compute_capability(device: str) -> int:
    """90 for a device of compute capability 9.0."""
    return int(module_for(device).cuda.Device(ordinal(device)).compute_capability)


def _kind(x: object) -> str:
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
