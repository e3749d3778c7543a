"""The array: CuPy's methods and refusals around NumPy memory that nobody else sees."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from .memory import MemoryPointer, UnownedMemory, alloc, memory_at
from .state import machine
from .streams import current_queue, get_current_stream

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SCALARS = (bool, int, float, complex)
H2D = "the current stream is capturing, so H2D transfers are disallowed"
_SUPPORTED = {np.dtype(char) for char in "?bhilqBHILQefdFD"} | {BFLOAT16}


def device_dtype(dtype):
    """A dtype that CuPy holds, in native byte order."""
    dtype = np.dtype(dtype)
    if not dtype.isnative:
        dtype = dtype.newbyteorder("=")
    if dtype not in _SUPPORTED:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


class Flags:
    def __init__(self, c_contiguous, f_contiguous, owndata):
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    @property
    def fnc(self):
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self):
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name):
        if name not in {"C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"}:
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return getattr(self, name.lower())


class ndarray:
    """`_hidden` is a NumPy view of `_memory`; nothing outside of this package may look at it."""

    __array_priority__ = 100
    _data = None
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError("Negative dimensions are not allowed")
        dtype = device_dtype(dtype)
        if memptr is None:
            if strides is not None:
                raise NotImplementedError("the double makes no strided array without memory for it")
            memptr = alloc(math.prod(shape) * dtype.itemsize)
        self._memory, offset = memptr.mem, memptr._offset
        self._hidden = np.ndarray(shape, dtype, self._memory.bytes, offset, strides, order or "C")
        self.base = None

    @classmethod
    def _over(cls, hidden, memory, base):
        self = cls.__new__(cls)
        self._hidden, self._memory, self.base = hidden, memory, base
        return self

    def _view(self, hidden):
        """Another look at the same memory."""
        return ndarray._over(hidden, self._memory, self if self.base is None else self.base)

    # -------------------------------------------------------------------------------------------- attributes

    dtype = property(lambda self: self._hidden.dtype)
    ndim = property(lambda self: self._hidden.ndim)
    size = property(lambda self: self._hidden.size)
    itemsize = property(lambda self: self._hidden.itemsize)
    nbytes = property(lambda self: self._hidden.nbytes)
    strides = property(lambda self: self._hidden.strides)
    device = property(lambda self: self._memory.device)
    T = property(lambda self: self._view(self._hidden.T))

    @property
    def shape(self):
        return self._hidden.shape

    @shape.setter
    def shape(self, shape):
        self._hidden = _reshaped(self._hidden, shape)

    @property
    def data(self):
        """One object as long as the array lives, as in CuPy."""
        if self._data is None:
            offset = self._hidden.__array_interface__["data"][0] - self._memory.ptr if self.size else 0
            self._data = MemoryPointer(self._memory, offset)
        return self._data

    @property
    def __cuda_array_interface__(self):
        described = {"shape": self.shape, "typestr": self.dtype.str, "descr": self.dtype.descr, "version": 3}
        return described | {"strides": self.strides, "data": (self.data.ptr, False), "stream": None}

    @property
    def flags(self):
        flags = self._hidden.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def real(self):
        return self._view(self._hidden.real) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value):
        self.real[...] = value

    @property
    def imag(self):
        return self._view(self._hidden.imag) if self.dtype.kind == "c" else _zeros_like(self)

    @imag.setter
    def imag(self, value):
        if self.dtype.kind != "c":
            raise TypeError("cupy.ndarray does not have imaginary part to set")
        self.imag[...] = value

    # -------------------------------------------------------------------------------------------- to the host

    def get(self, stream=None, order="C", out=None, blocking=True):
        queue = (get_current_stream() if stream is None else stream).queue(self._memory.device_id)
        if queue.capture is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        machine.note("to host", f"{self.nbytes} bytes went to the host")
        machine.submit(queue, [self._memory._root], [], "get")
        if blocking:
            machine.wait_for(queue.now())
        if out is None:
            return np.array(self._hidden, order=order if order != "A" else "K")
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        out[...] = self._hidden
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        queue = (get_current_stream() if stream is None else stream).queue(self._memory.device_id)
        if queue.capture is not None:
            raise RuntimeError(H2D)
        machine.note("to device", f"{arr.nbytes} bytes went to the device")
        machine.submit(queue, [], [self._memory._root], "set")
        self._hidden[...] = arr

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __array__(self, dtype=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __bool__(self):
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __complex__(self):
        return complex(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    def __reduce__(self):
        return _rebuilt, (self.get(order="A"),)

    # -------------------------------------------------------------------------------------------- NumPy's protocols

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        from . import cupy

        out = kwargs.get("out", ())
        if out:
            if len(out) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            kwargs["out"] = out[0]
        function = getattr(cupy, ufunc.__name__, None)
        if function is not None and method != "__call__":
            function = getattr(function, method, None)
        known = (ndarray, np.ndarray, *SCALARS, np.generic)
        if function is None or not all(isinstance(x, known) for x in (*inputs, *out)):
            return NotImplemented
        return function(*inputs, **kwargs)

    def __array_function__(self, func, types, args, kwargs):
        from . import cupy

        home = cupy
        for part in func.__module__.split(".")[1:]:
            home = getattr(home, part, None)
        function = getattr(home, func.__name__, None)
        if function is None or function is func or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return function(*args, **kwargs)

    # -------------------------------------------------------------------------------------------- containers

    def __len__(self):
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        with self.device:
            return self.copy()

    # -------------------------------------------------------------------------------------------- shapes and copies

    def reshape(self, *shape, order="C"):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)) else shape
        try:
            return self._view(_reshaped(self._hidden, shape, order))
        except AttributeError:
            hidden = self._hidden
            return own(lambda: hidden.reshape(shape, order=order), [self], "reshape")

    def ravel(self, order="C"):
        order = "C" if order == "K" and not self.flags.f_contiguous else order
        return self.reshape(-1, order="F" if order == "K" else order)

    def flatten(self, order="C"):
        hidden = self._hidden
        return own(lambda: hidden.flatten(order), [self], "flatten")

    def transpose(self, *axes):
        return self._view(self._hidden.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return self._view(self._hidden.swapaxes(axis1, axis2))

    def squeeze(self, axis=None):
        return self._view(self._hidden.squeeze(axis))

    def diagonal(self, offset=0, axis1=0, axis2=1):
        return self._view(self._hidden.diagonal(offset, axis1, axis2))

    def view(self, dtype=None, type=None):  # noqa: A002
        if type is not None:
            raise NotImplementedError("the double has no subclasses")
        return self._view(self._hidden.view() if dtype is None else self._hidden.view(np.dtype(dtype)))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        for name, given in (("casting", casting), ("subok", subok)):
            if given is not None:
                raise TypeError(f"{name} is not supported yet")
        dtype = device_dtype(dtype)
        if not copy and dtype == self.dtype and np.asarray(self._hidden, order=order) is self._hidden:
            return self
        hidden = self._hidden
        return own(lambda: cast(hidden, dtype, order), [self], "astype", order)

    def copy(self, order="C"):
        if self.size and self._memory.device_id != machine.thread.device:
            return _copy_across(self, order)
        hidden = self._hidden
        return own(lambda: hidden, [self], "copy", order)

    def fill(self, value):
        if isinstance(value, ndarray):
            if value.shape != ():
                raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
            reads, value = [value], value._hidden
        else:
            reads, value = [], np.asarray(value, self.dtype)
            if value.shape != ():
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        use(reads, [self], "fill", storing(self._hidden, lambda: value))


def _reshaped(hidden, shape, order="C"):
    """A view, or AttributeError where there is none."""
    copyless = hidden.view()
    if order == "F":
        return _reshaped(hidden.T, tuple(shape)[::-1] if not isinstance(shape, (int, np.integer)) else shape).T
    size = hidden.size
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        shape = tuple(size // known if n == -1 and known else n for n in shape)
    if math.prod(shape) != size:
        raise ValueError(f"cannot reshape array of size {size} into shape {shape}")
    wanted = hidden.reshape(shape)
    if not np.shares_memory(wanted, hidden) and size:
        raise AttributeError("incompatible shape for a non-contiguous array")
    del copyless
    return wanted


# -------------------------------------------------------------------------------------------------- shared steps


def use(reads, writes, what, action):
    """Every operation: the arrays must live on the current device, and the stream must have been told to wait.

    `action` does it, now or whenever a graph is replayed. It must hold no array, which would keep memory alive.
    One that writes nothing is a part of another.
    """
    here = machine.thread.device
    for array in (*reads, *writes):
        if array._memory.device_id != here:
            raise ValueError(
                f"The device where the array resides ({array._memory.device_id}) is different from the current device "
                f"({here}). Peer access is unavailable between these devices."
            )
    reads, writes = ([a._memory._root for a in some] for some in (reads, writes))
    machine.perform(current_queue(), reads, writes, what, action, takes_time=bool(writes))


def storing(hidden, compute, where=...):
    """The action of storing what `compute` returns."""

    def action():
        with np.errstate(all="ignore"):
            hidden[where] = compute()

    return action


def fresh(shape, dtype, order="C", like=None):
    """A new array; order "K" keeps the order of the strides of `like`."""
    if order in {"K", "A"} and like is not None:
        plan = np.empty_like(like, dtype=dtype, order=order)
        made = ndarray(shape, dtype)
        return ndarray(shape, dtype, made.data, plan.strides)
    return ndarray(shape, dtype, order="F" if order == "F" else "C")


def own(compute, reads, what, order="C"):
    """A new array that holds what an operation computes."""
    with np.errstate(all="ignore"):
        hidden = np.asarray(compute())
    made = fresh(hidden.shape, hidden.dtype, order, hidden)
    is_captured = current_queue().capture is not None  # then `hidden` is of no worth: a replay computes anew
    use(reads, [made], what, storing(made._hidden, compute if is_captured else lambda: hidden))
    return made


def cast(hidden, dtype, order="K"):
    with np.errstate(all="ignore"):
        return hidden.astype(dtype, order=order)


def _zeros_like(a):
    shape, dtype = a.shape, a.dtype
    return own(lambda: np.zeros(shape, dtype), [a], "zeros")


def _copy_across(a, order):
    """Between devices: CuPy wants whole contiguous blocks, and the streams of both sides wait for each other."""
    if not (a.flags.c_contiguous or a.flags.f_contiguous):
        with a.device:
            a = a.copy(order)
    made = fresh(a.shape, a.dtype, "K", a._hidden)
    copy_across(a, made)
    return made


def copy_across(source, target):
    """A copy on a null stream starts when both devices are done, and both go on when it is."""
    machine.note("between devices", f"{source.nbytes} bytes went to another device")
    queue, sides = current_queue(), {source._memory.device_id, target._memory.device_id}
    if queue.is_null:
        for device_id in sides:
            queue.knows.learn(machine.everything(device_id))
    machine.submit(queue, [source._memory._root], [target._memory._root], "copy between devices")
    if queue.is_null:
        for device_id in sides:
            machine.null[device_id].knows.learn(queue.now())
    target._hidden[...] = source._hidden


def lent(ptr, shape, strides, dtype, owner):
    """An array over memory that belongs to `owner`, as CuPy makes of what it is lent."""
    size = math.prod(shape) and sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
    if not size:
        return ndarray(shape, dtype)
    return ndarray(shape, dtype, MemoryPointer(UnownedMemory(ptr, size, owner), 0), strides)


def from_host(values, dtype=None, order="K"):
    """A copy on the current device. A single number travels with the kernel that stores it."""
    values = np.asarray(values, dtype=dtype)
    values = values.astype(device_dtype(values.dtype), copy=False)
    made = ndarray(values.shape, values.dtype, order="F" if values.flags.fnc and order in {"K", "A", "F"} else "C")
    if values.ndim:
        if current_queue().capture is not None:
            raise RuntimeError(H2D)
        machine.note("to device", f"{values.nbytes} bytes went to the device")
    use([], [made], "asarray", storing(made._hidden, lambda: values))
    return made


def _rebuilt(values):
    return from_host(values)


def pointed_at(ptr, count, dtype):
    """The allocation at an address, and the offset there, for `count` elements of `dtype`."""
    memory, offset = memory_at(ptr)
    if offset + count * np.dtype(dtype).itemsize > memory.size:
        raise ValueError(f"{count} elements of {dtype} from {ptr:#x} reach past the end of their allocation")
    return memory, offset
