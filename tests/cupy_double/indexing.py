"""x[...] and x[...] = value: views where NumPy gives views, wrapped indices, and the waits that masks cost."""

from __future__ import annotations

import numpy as np

from .arrays import from_host, ndarray, own, storing, use
from .state import Hazard, machine
from .streams import current_queue


def prepared(index):
    """The index as a list; sequences and NumPy arrays in it are sent to the device."""
    parts = list(index) if isinstance(index, tuple) else [index]
    for place, part in enumerate(parts):
        if part is None or part is Ellipsis or isinstance(part, (slice, ndarray)):
            continue
        if np.isscalar(part) and not isinstance(part, (bool, np.bool_)):
            continue
        values = np.asarray(part)
        if values.size == 0 and isinstance(part, (list, tuple)):
            values = values.astype(np.int32)
        if values.dtype.kind not in "biu":
            raise IndexError(f"arrays used as indices must be of integer or boolean type (actual: {values.dtype.type})")
        parts[place] = from_host(values)
    for part in parts:
        if isinstance(part, ndarray) and part.dtype.kind not in "biu":
            raise IndexError(f"arrays used as indices must be of integer or boolean type. (actual: {part.dtype.type})")
    return parts


def wrapped(a, parts):
    """The index for NumPy: out-of-bounds numbers in arrays come around, as CuPy's do."""
    made, axis = [], 0
    taken = sum(_axes(part) for part in parts)
    for part in parts:
        if part is Ellipsis:
            axis += a.ndim - taken
            made.append(part)
            continue
        if isinstance(part, ndarray) and part.dtype.kind != "b":
            size = a.shape[axis] if axis < a.ndim else 1
            made.append(part._hidden % size if size else part._hidden)
        else:
            made.append(part._hidden if isinstance(part, ndarray) else part)
        axis += _axes(part)
    return tuple(made)


def _axes(part):
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, ndarray) and part.dtype.kind == "b" else 1


def getitem(a, index):
    parts = prepared(index)
    arrays = [part for part in parts if isinstance(part, ndarray)]
    if not arrays:
        if not any(part is Ellipsis for part in parts):
            parts.append(Ellipsis)  # a number is an array too
        return a._view(a._hidden[tuple(parts)])
    _wait_for_masks(arrays)
    hidden, where = a._hidden, wrapped(a, parts)
    return own(lambda: hidden[where], [a, *arrays], "getitem")


def setitem(a, index, value):
    parts = prepared(index)
    arrays = [part for part in parts if isinstance(part, ndarray)]
    if not arrays:
        target = a[tuple(parts)]
        if not isinstance(value, ndarray):
            target.fill(value)
            return
        hidden = value._hidden
        use([value], [target], "setitem", storing(target._hidden, lambda: hidden))
        return
    _wait_for_masks(arrays)
    if not isinstance(value, ndarray):
        value = from_host(value, a.dtype)
    where = wrapped(a, parts)
    _check_once(a, where, value)
    hidden = value._hidden
    use([value, *arrays], [a], "setitem", storing(a._hidden, lambda: hidden, where))


def _check_once(a, where, value):
    """Two values for one place: NumPy keeps the last, a device any of them."""
    if value.size == 1:
        return
    places = np.arange(a.size).reshape(a.shape)[where].ravel()
    if np.unique(places).size != places.size:
        raise Hazard("setitem: an index occurs twice; which of its values is stored is undefined in CuPy")


def _wait_for_masks(arrays):
    """How many elements a mask selects is read back before they can be stored."""
    if current_queue().capture is not None:
        raise NotImplementedError("the double captures no arrays as indices")
    if any(part.dtype.kind == "b" and part.size for part in arrays):
        machine.note("to host", "the size of a masked selection went to the host")
        machine.wait_for(current_queue().now())


def take(a, indices, axis=None, out=None):
    reads = [a]
    if isinstance(indices, ndarray):
        reads.append(indices)
        indices = indices._hidden
    elif not np.isscalar(indices):
        sent = from_host(indices, int)
        reads.append(sent)
        indices = sent._hidden
    if a.size == 0 and np.size(indices):
        raise IndexError("cannot do a non-empty take from an empty axes.")
    hidden = a._hidden

    def compute():
        return np.take(hidden, indices, axis, mode="wrap")

    if out is None:
        return own(compute, reads, "take")
    if out.dtype != a.dtype:
        raise TypeError("Output dtype mismatch")
    if out.shape != compute().shape:
        raise ValueError("Output shape mismatch")
    use(reads, [out], "take", storing(out._hidden, compute))
    return out


def install():
    ndarray.__getitem__ = getitem
    ndarray.__setitem__ = setitem
    ndarray.take = lambda self, indices, axis=None, out=None: take(self, indices, axis, out)
