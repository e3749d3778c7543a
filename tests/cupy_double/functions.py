"""Functions of the module: those that differ from NumPy's by hand, the others lifted."""

from __future__ import annotations

import itertools

import numpy as np

from .arrays import (
    BFLOAT16,
    SCALARS,
    cast,
    copy_across,
    device_dtype,
    fresh,
    from_host,
    lent,
    ndarray,
    own,
    storing,
    use,
)
from .cublas import refuse_capture
from .indexing import take
from .names import NAMES, signature
from .state import machine
from .streams import current_queue

# ------------------------------------------------------------------------------------------------------ making


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype, order)


def full(shape, fill_value, dtype=None, order="C"):
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    made = ndarray(shape, dtype, order=order)
    made.fill(fill_value)
    return made


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    _refuse_host(prototype)
    dtype = prototype.dtype if dtype is None else dtype
    if shape is None:
        return fresh(prototype.shape, dtype, order, prototype._hidden)
    return ndarray(shape, dtype, order="F" if order == "F" else "C")


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 1, dtype, order, subok, shape)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    made = empty_like(a, dtype, order, subok, shape)
    made.fill(fill_value)
    return made


def arange(start, stop=None, step=1, dtype=None):
    made = np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype)
    return own(lambda: made, [], "arange")


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    if retstep or axis:
        raise NotImplementedError("the double's linspace is a plain one")
    return own(lambda: np.linspace(start, stop, num, endpoint, dtype=dtype), [], "linspace")


def eye(N, M=None, k=0, dtype=float, order="C"):
    return own(lambda: np.eye(N, M, k, dtype), [], "eye")


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if subok:
        raise NotImplementedError
    return _array(obj, dtype, copy, order, ndmin, blocking)


def asarray(a, dtype=None, order=None, *, blocking=False):
    return _array(a, dtype, False, order, 0, blocking)


def _array(obj, dtype, copy, order, ndmin, blocking):
    order = order or "K"
    if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in _leaves(obj)):
        made = stack([_array(x, dtype, False, order, 0, False) for x in obj])
    elif not isinstance(obj, ndarray) and hasattr(obj, "__cuda_array_interface__"):
        told = obj.__cuda_array_interface__
        made = lent(told["data"][0], told["shape"], told["strides"], np.dtype(told["typestr"]), obj)
        return _array(made, dtype, copy, order, ndmin, blocking)
    elif not isinstance(obj, ndarray):
        made = from_host(obj, dtype, order)
        if blocking:
            machine.wait_for(current_queue().now())
    elif obj.size and obj._memory.device_id != machine.thread.device:
        made = obj.copy(order)
        made = made if dtype is None else made.astype(dtype, copy=False)
    else:
        made = obj.astype(obj.dtype if dtype is None else dtype, order, copy=copy)
    if ndmin > made.ndim:
        made = made.reshape((1,) * (ndmin - made.ndim) + made.shape)
    return made


def _leaves(obj):
    for x in obj:
        yield from _leaves(x) if isinstance(x, (list, tuple)) else (x,)


def asanyarray(a, dtype=None, order=None, *, blocking=False):
    return asarray(a, dtype, order, blocking=blocking)


def ascontiguousarray(a, dtype=None):
    _refuse_host(a)
    a = a.reshape(1) if a.ndim == 0 else a
    return a.astype(a.dtype if dtype is None else dtype, "C", copy=False)


def copy(a, order="K"):
    _refuse_host(a)
    return a.copy(order)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    values = np.asarray(a, order=order)
    if out is None:
        return values
    out[...] = values
    return out


# ------------------------------------------------------------------------------------------------------ moving


def copyto(dst, src, casting="same_kind", where=None):
    if not isinstance(dst, ndarray):
        raise TypeError(f"Unsupported type {type(dst)}")
    if type(src) in SCALARS:
        np.copyto(np.empty((), dst.dtype), src, casting=casting)
        values = src
    elif isinstance(src, ndarray):
        values = src._hidden
    elif isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    else:
        values = np.asarray(src).reshape(())[()]
    if hasattr(values, "dtype") and not np.can_cast(values.dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast {values.dtype} to {dst.dtype} in {casting} casting mode")
    if isinstance(src, ndarray):
        pairs = itertools.zip_longest(reversed(src.shape), reversed(dst.shape), fillvalue=1)
        if not all(s in (d, 1) for s, d in pairs):
            raise ValueError(f"could not broadcast input array from shape {src.shape} into shape {dst.shape}")
        if where is None and src._memory.device_id != dst._memory.device_id:
            copy_across(src, dst)
            return
    hidden, mask = dst._hidden, True if where is None else where._hidden

    def copy_there():
        with np.errstate(all="ignore"):
            np.copyto(hidden, values, casting, where=mask)

    use([x for x in (src, where) if isinstance(x, ndarray)], [dst], "copyto", copy_there)


def from_dlpack(array, *, device=None, copy=None):
    if not isinstance(array, ndarray) or device is not None or copy is not None:
        raise NotImplementedError("the double takes its own arrays for tensors of others, where they are")
    return lent(array.data.ptr, array.shape, array.strides, array.dtype, array)


def may_share_memory(a, b, max_work=None):
    """As in CuPy: False where the two memories begin at different addresses, even if one lies in the other."""
    for x in (a, b):
        _refuse_host(x)
    same = a._memory.ptr == b._memory.ptr and a.size and b.size
    return bool(same and np.may_share_memory(a._hidden, b._hidden))


def shares_memory(a, b, max_work=None):
    return may_share_memory(a, b)


def as_strided(x, shape=None, strides=None):
    """CuPy checks nothing; here what reaches past the allocation raises."""
    return ndarray(x.shape if shape is None else tuple(shape), x.dtype, x.data, strides or x.strides)


def where(condition, x=None, y=None):
    if x is None and y is None:
        return nonzero(condition)
    from .ufuncs import operand

    given = (condition, x, y)
    values = [operand(v) for v in given]
    reads = [v for v in given if isinstance(v, ndarray)]
    return own(lambda: np.where(*values), reads, "where")


def nonzero(a):
    _refuse_host(a)
    if a.ndim == 0:
        raise ValueError("Calling nonzero on 0d arrays is not allowed. Use cp.atleast_1d(scalar).nonzero() instead.")
    machine.note("to host", "the number of nonzero elements went to the host")
    machine.wait_for(current_queue().now())
    return tuple(own(lambda one=one: one, [a], "nonzero") for one in np.nonzero(a._hidden))


# ------------------------------------------------------------------------------------------------------ products


def matmul(*args, out=None, axes=None, axis=None, keepdims=False, casting="same_kind", dtype=None, signature=None):
    if (axes, axis, keepdims, casting, dtype, signature) != (None, None, False, "same_kind", None, None):
        raise NotImplementedError("the double's matmul is a plain one")
    a, b, *rest = args
    out = rest[0] if rest else out
    for x in (a, b, *([] if out is None else [out])):
        _refuse_host(x)
    dtype = np.promote_types(a.dtype, b.dtype)
    if dtype == BFLOAT16 and max(a.ndim, b.ndim) > 2:
        raise TypeError("CuPy multiplies no stacks of bfloat16 matrices")
    made = _product(np.matmul, a, b, dtype)
    if out is None:
        return own(lambda: made, [a, b], "matmul")
    if out.shape != made.shape:
        raise ValueError("Output array has an invalid size")
    held = [x.copy() for x in (a, b) if not x.flags.c_contiguous]
    if out.dtype != dtype or not out.flags.c_contiguous:
        held.append(own(lambda: made, [a, b], "matmul"))
    use([a, b], [out], "matmul", storing(out._hidden, lambda: made))
    del held  # these are what CuPy holds meanwhile
    return out


def _product(function, a, b, dtype, **more):
    """16-bit factors are summed in float32."""
    refuse_capture()
    work = np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind in "fV" else dtype
    with np.errstate(all="ignore"):
        return np.asarray(function(cast(a._hidden, work), cast(b._hidden, work), **more)).astype(dtype)


def dot(a, b, out=None):
    _refuse_host(a)
    _refuse_host(b)
    made = _product(np.dot, a, b, np.promote_types(a.dtype, b.dtype))
    if out is not None:
        copyto(out, own(lambda: made, [a, b], "dot"))
        return out
    return own(lambda: made, [a, b], "dot")


def tensordot(a, b, axes=2):
    _refuse_host(a)
    _refuse_host(b)
    made = _product(np.tensordot, a, b, np.promote_types(a.dtype, b.dtype), axes=axes)
    return own(lambda: made, [a, b], "tensordot")


def einsum(*operands, **kwargs):
    dtype, optimize = kwargs.pop("dtype", None), kwargs.pop("optimize", False)
    if kwargs:
        raise TypeError(f"Did not understand the following kwargs: {list(kwargs)}")
    arrays = []

    def sent(x):
        arrays.append(asarray(x))
        return arrays[-1]._hidden

    if isinstance(operands[0], str):
        operands = [operands[0], *map(sent, operands[1:])]
    else:  # array, axes, array, axes ... and maybe the axes of the result
        operands = [sent(x) if place % 2 == 0 and x is not operands[-1] else x for place, x in enumerate(operands)]
    hidden = [x for x in operands if isinstance(x, np.ndarray)]
    result = np.result_type(*hidden) if dtype is None else device_dtype(dtype)
    if result == BFLOAT16:
        raise NotImplementedError("what CuPy's einsum does with bfloat16 is not known")
    refuse_capture()
    with np.errstate(all="ignore"):
        cast_operands = [cast(x, result) if isinstance(x, np.ndarray) else x for x in operands]
        made = np.einsum(*cast_operands, optimize=bool(optimize))
    return own(lambda: made, arrays, "einsum")


# ------------------------------------------------------------------------------------------------------ lifted

_LIFTED = """
all allclose amax amin any append argmax argmin argsort around array_equal atleast_1d atleast_2d atleast_3d bincount
broadcast_to clip column_stack concatenate count_nonzero cross cumprod cumsum diag diagonal diff dsplit dstack
expand_dims flip fliplr flipud full hsplit hstack inner isclose ix_ kron max mean median min moveaxis nanmax nanmean
nanmin nansum ndim outer pad prod ptp ravel repeat reshape resize roll rollaxis rot90 round shape size sort split
squeeze stack std sum swapaxes tile trace transpose tril triu vdot vstack var isrealobj iscomplexobj broadcast_arrays
unravel_index meshgrid real imag
"""
_NUMBERS = ("result_type", "can_cast", "promote_types", "min_scalar_type", "isscalar", "dtype", "finfo", "iinfo")


def lift(name, owner="cupy", function=None):
    """NumPy's function of that name under CuPy's signature; what is a view in NumPy is a view here."""
    over = getattr(np, name) if function is None else function
    bound = signature(owner, name)

    def lifted(*args, **kwargs):
        bound.bind_partial(*args, **kwargs)
        found, outs = [], []
        values = [_lower(x, found) for x in args]
        named = {key: _lower(x, found) for key, x in kwargs.items() if key != "out"}
        if isinstance(kwargs.get("out"), np.ndarray):
            raise TypeError(f"Unsupported type {type(kwargs['out'])}")
        if kwargs.get("out") is not None:
            outs = [kwargs["out"]]
            named["out"] = outs[0]._hidden

        def compute():
            with np.errstate(all="ignore"):
                return over(*values, **named)

        if outs:
            use(found, outs, name, compute)
            return outs[0]
        return _raise_up(compute(), compute, found, name)

    lifted.__name__ = lifted.__qualname__ = name
    lifted.__module__ = owner
    lifted.__signature__ = bound
    return lifted


def _lower(x, found):
    if isinstance(x, ndarray):
        found.append(x)
        return x._hidden
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(_lower(one, found) for one in x)
    return x


def _raise_up(made, compute, found, name):
    """What `compute` made, as arrays of the device: views of those that were given, or new ones."""
    if isinstance(made, (list, tuple)):
        parts = (_raise_up(one, lambda i=i: compute()[i], found, name) for i, one in enumerate(made))
        return type(made)(parts)
    if isinstance(made, (np.ndarray, np.generic)) or (type(made) in SCALARS and found and name not in _HOST_ANSWERS):
        made = np.asarray(made)
        for a in found:
            if made.base is not None and made.size and np.shares_memory(made, a._memory.bytes):
                return a._view(made)
        return own(compute, found, name)
    return made


_HOST_ANSWERS = {"ndim", "size", "shape", "isrealobj", "iscomplexobj"}


def _refuse_host(x):
    if not isinstance(x, ndarray):
        raise TypeError(f"Unsupported type {type(x)}: CuPy takes a cupy.ndarray here")


stack = lift("stack")

FUNCTIONS = {name: lift(name) for name in _LIFTED.split() if name in NAMES["cupy"] and "takes" in NAMES["cupy"][name]}
FUNCTIONS |= {name: getattr(np, name) for name in _NUMBERS if name in NAMES["cupy"]}
FUNCTIONS |= {
    one.__name__: one
    for one in (
        empty, zeros, ones, full, empty_like, zeros_like, ones_like, full_like, arange, linspace, eye, array, asarray,
        asanyarray, ascontiguousarray, copy, asnumpy, copyto, may_share_memory, shares_memory, where, nonzero, matmul,
        dot, tensordot, einsum, take, from_dlpack,
    )
}  # fmt: skip


def _method(name):
    function = FUNCTIONS[name]

    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    method.__name__ = name
    return method


def install_methods():
    names = "all any argmax argmin argsort clip cumsum cumprod dot max mean min prod ptp repeat round std sum trace var"
    for name in [*names.split(), "nonzero"]:
        setattr(ndarray, name, _method(name))
    ndarray.__matmul__ = lambda self, other: matmul(self, other) if isinstance(other, ndarray) else NotImplemented
    ndarray.__rmatmul__ = lambda self, other: matmul(other, self)
