"""Elementwise functions: NumPy's arithmetic behind CuPy's door."""

from __future__ import annotations

import numpy as np

from .arrays import BFLOAT16, SCALARS, device_dtype, ndarray, own, use
from .names import NAMES

_ADDED_BY_INDEX = ("int32", "uint32", "uint64", "float16", "float32", "float64")
_EXTREMES_BY_INDEX = ("int32", "uint32", "uint64", "float32", "float64")
_AT = {"add": _ADDED_BY_INDEX, "subtract": ("int32", "uint32"), "maximum": _EXTREMES_BY_INDEX}
_AT["minimum"] = _EXTREMES_BY_INDEX


def operand(x):
    """What is computed with, for an array of the device or a number; anything else is refused as CuPy refuses it."""
    if isinstance(x, ndarray):
        return x._hidden
    if type(x) in SCALARS or isinstance(x, np.generic):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


class ufunc:
    def __init__(self, name, over):
        self.name = f"cupy_{name}"
        self.__name__ = name
        self._over = over
        self.nin, self.nout, self.nargs = over.nin, over.nout, over.nargs
        self.types = NAMES["cupy"][name]["types"]
        self._inputs = [[np.dtype(char) for char in one.split("->")[0] if char != "E"] for one in self.types]
        self._takes_bfloat16 = any("E" in one for one in self.types)

    def __repr__(self):
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", **kwargs):
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(f"Wrong number of arguments for {self.name!r}.")
        if len(args) > self.nin:
            if out is not None:
                raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
            out = args[self.nin :]
        outs = out if isinstance(out, tuple) else (out,) * (out is not None)
        inputs = args[: self.nin]
        values = [operand(x) for x in inputs]
        for x in outs:
            if x is not None and not isinstance(x, ndarray):
                raise TypeError(f"Unsupported type {type(x)}")
        self._check_types(values)
        reads = [x for x in inputs if isinstance(x, ndarray)]
        more = {} if dtype is None else {"dtype": device_dtype(dtype)}
        if outs and outs[0] is not None:
            more["out"] = tuple(x._hidden for x in outs)

        def compute():
            with np.errstate(all="ignore"):
                return self._over(*values, casting=casting, **more)

        if "out" in more:
            use(reads, list(outs), self.__name__, compute)
            return outs[0] if self.nout == 1 else outs
        if self.nout == 1:
            return own(compute, reads, self.__name__, "K")
        return tuple(own(lambda i=i: compute()[i], reads, self.__name__, "K") for i in range(self.nout))

    def _check_types(self, values):
        dtypes = [x.dtype for x in values if isinstance(x, (np.ndarray, np.generic))]
        if BFLOAT16 in dtypes:
            if not self._takes_bfloat16:
                raise NotImplementedError(f"cupy.{self.__name__} has no loop for bfloat16; what CuPy does is not known")
            return
        if dtypes and not any(
            all(np.can_cast(dtype, given) for dtype in dtypes for given in set(inputs)) for inputs in self._inputs
        ):
            raise TypeError(f"Wrong type ({', '.join(map(str, dtypes))}) of arguments for {self.name}")

    def at(self, a, indices, b=None):
        from .indexing import prepared, wrapped

        dtypes = _AT.get(self.__name__)
        if dtypes is None:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if a.dtype.name not in dtypes:
            raise TypeError(f"cupy.{self.__name__}.at only supports {', '.join(dtypes)} as data type, not {a.dtype}")
        index = prepared(indices)
        reads = [x for x in (*index, b) if isinstance(x, ndarray)]
        hidden, where, value = a._hidden, wrapped(a, index), operand(b)

        def add_there():
            with np.errstate(all="ignore"):
                self._over.at(hidden, where, value)

        use(reads, [a], f"{self.__name__}.at", add_there)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        from . import cupy

        function = {"add": "sum", "multiply": "prod"}.get(self.__name__)
        if function is None:
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        return getattr(cupy, function)(array, axis, dtype, out, keepdims)

    def outer(self, A, B, **kwargs):
        from .functions import array

        A, B = array(A), array(B)
        return self(A.reshape(A.shape + (1,) * B.ndim), B, **kwargs)


UFUNCS = {
    name: ufunc(name, getattr(np, name))
    for name, what in NAMES["cupy"].items()
    if "types" in what and isinstance(getattr(np, name, None), np.ufunc)
}

_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "lshift": "left_shift", "rshift": "right_shift", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor",
}  # fmt: skip
_COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip


def _declines(other):
    """Whether the other operand asks to be the one that answers."""
    return getattr(other, "__array_ufunc__", False) is None


def _binary(function):
    def forward(self, other):
        return NotImplemented if _declines(other) else function(self, other)

    def backward(self, other):
        return NotImplemented if _declines(other) else function(other, self)

    def in_place(self, other):
        return function(self, other, self)

    return forward, backward, in_place


def _unary(function):
    def method(self):
        return function(self)

    return method


def _comparison(name, function):
    def compare(self, other):
        if _declines(other):
            return NotImplemented
        if isinstance(other, np.ndarray) and other.ndim == 0:
            other = other.item()
        if name in {"eq", "ne"} and (other is None or type(other).__eq__ is object.__eq__):
            shape = self.shape
            return own(lambda: np.full(shape, name == "ne"), [self], name)
        return function(self, other)

    return compare


def install_operators():
    for name, called in _OPERATORS.items():
        for prefix, method in zip(("", "r", "i"), _binary(UFUNCS[called]), strict=True):
            setattr(ndarray, f"__{prefix}{name}__", method)
    for name, called in _COMPARISONS.items():
        setattr(ndarray, f"__{name}__", _comparison(name, UFUNCS[called]))
    for name, called in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
        setattr(ndarray, f"__{name}__", _unary(UFUNCS[called]))
    ndarray.__pos__ = lambda self: self.copy()
    ndarray.__divmod__ = lambda self, other: (self // other, self % other)
    ndarray.conj = ndarray.conjugate = lambda self: UFUNCS["conjugate"](self) if self.dtype.kind == "c" else self
