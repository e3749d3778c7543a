"""The loader of the CUDA kernels, and the only function that launches them.

A `Unit` is a file of kernels/ specialised for a dtype. CuPy compiles its flattened text when one of its kernels is
first launched on a device, and keeps the binary on disk; this file keeps the loaded kernel. Every launch is checked
against the kernel's C signature, because CuPy takes any arguments and a GPU reads them as the kernel declares them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from fastrlock.rlock import FastRLock

from gpuconv.backend import DTYPES, INTEGERS, accumulator
from gpuconv.cuda.signature import Parameter, signatures
from gpuconv.errors import DeviceError, DTypeError, KernelError

NULL = np.uintp(0)
"""A null pointer. CuPy takes None for one from 14.0 on; before, it hands over the address of something else."""

_NAMES = (*DTYPES, *INTEGERS)

_INCLUDE = re.compile(r'\s*#\s*include\s*(?:"(?P<ours>[^"]+)"|(?P<other>\S.*))')
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")
_NEEDS = re.compile(r"^//\s*needs:\s*(sm_\d+a?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Unit:
    """A file of kernels with its specialisation: the unit of compilation.

    Attributes
    ----------
    file : str
        The name in kernels/, such as "im2col.cu".
    dtype : np.dtype
        The dtype of the arrays: ``T`` in the kernels.
    macros : tuple of (str, int)
        Further macros that specialise it. ``("INDEX64", 1)``: offsets into arrays need 64 bits.
    """

    file: str
    dtype: np.dtype[Any]
    macros: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.file, self.dtype.name, *(f"{name}={value}" for name, value in self.macros)])

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.file, self.dtype, self.macros))


class Launch:
    """A kernel with all that a launch of it is given beside its arrays, which come first among its parameters.

    Keep one that is used again: `rest` is checked, and made into what CuPy takes, at its first launch on a device.

    Attributes
    ----------
    unit, name
        The kernel.
    grid, block : tuple of int
        Blocks, and threads per block. An empty grid launches nothing.
    rest : tuple
        For a number a NumPy scalar of exactly its C type, for a struct a 0-d structured array with its layout.
    shared_bytes : int
        Dynamic shared memory per block.
    """

    __slots__ = ("block", "grid", "name", "ready", "rest", "shared_bytes", "unit")

    def __init__(
        self,
        unit: Unit,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        rest: tuple[Any, ...] = (),
        shared_bytes: int = 0,
    ) -> None:
        self.unit, self.name, self.grid, self.block = unit, name, grid, block
        self.rest, self.shared_bytes = rest, shared_bytes
        self.ready: dict[int, tuple[_Kernel, tuple[Any, ...]]] = {}  # by device

    def on(self, xp: ModuleType, device: int) -> tuple[_Kernel, tuple[Any, ...]]:
        """The kernel on a device, and `rest` as CuPy takes it, which are remembered."""
        ready = self.ready.get(device)
        if ready is None or ready[0].xp is not xp:
            key = (xp, device, self.unit, self.name)
            kernel = _ready.get(key) or _load(*key)
            ready = self.ready[device] = kernel, kernel.numbers_and_structs(self.rest)
        return ready

    def raise_if_refused(self, error: Exception) -> None:
        """Raise a KernelError if `error` is how CuPy says that the device refused this launch."""
        if type(error).__name__ in ("CUDADriverError", "CUDARuntimeError"):
            how = f"grid {self.grid}, block {self.block}, {self.shared_bytes} bytes of shared memory"
            raise KernelError(
                f"{self.name} ({self.unit}) could not be launched with {how}: {error}",
                kernel=self.name,
                file=self.unit.file,
            ) from error


def launch(xp: ModuleType, what: Launch, *arrays: Any) -> None:
    """Launch a kernel on the current device and stream, and do not wait for it.

    Parameters
    ----------
    xp : module
        CuPy.
    what : Launch
    *arrays
        C-contiguous arrays on the current device, or None for a null pointer.

    Raises
    ------
    KernelError
        If there is no such kernel, if it cannot be compiled, if the device refuses the launch, or if an array is not
        C-contiguous.
    TypeError, DTypeError, DeviceError
        If the arguments do not match the kernel's signature.
    """
    kernel, rest = what.on(xp, xp.cuda.runtime.getDevice())
    given = kernel.pointers(arrays)
    if 0 in what.grid:
        return
    try:
        kernel.raise_shared_bytes(what.shared_bytes)
        kernel.run(what.grid, what.block, (*given, *rest), shared_mem=what.shared_bytes)
    except Exception as error:
        what.raise_if_refused(error)
        raise


def options(unit: Unit) -> tuple[str, ...]:
    """The compiler's options for a unit. CuPy adds the device's architecture, and ``-ftz=true``.

    A file that needs one architecture exactly, such as sm_90a, names it. NVRTC takes it beside CuPy's sm_90, in either
    order (12.9).

    >>> options(Unit("im2col.cu", np.dtype("float32"), (("INDEX64", 0),)))
    ('-std=c++17', '-DDTYPE=2', '-DINDEX64=0')
    """
    if unit.dtype.name not in _NAMES:
        raise DTypeError(f"{unit.file}: there are no kernels for {unit.dtype}, only for {', '.join(_NAMES)}.")
    macros = (("DTYPE", dtype_code(unit.dtype)), *unit.macros)
    needed = needs(unit.file)
    arch = (f"-arch={needed}",) if needed.endswith("a") else ()
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros), *arch)


def dtype_code(dtype: np.dtype[Any]) -> int:
    """The number that stands for a dtype of kernels, in the macro DTYPE for instance."""
    return _NAMES.index(dtype.name)


def needs(file: str) -> str:
    """What a file needs: "sm_80" for that architecture or a newer one, "sm_90a" for exactly that one, "" for any.

    Its line ``// needs: sm_80`` says so.
    """
    return _needs(file, folder())


@cache
def _needs(file: str, where: Path) -> str:
    try:
        found = _NEEDS.search(_read(file, where))
    except KernelError:  # `flatten` says what is missing
        return ""
    return found[1] if found else ""


# ------------------------------------------------------------------------------------------------ the text


def folder() -> Path:
    """The folder of the kernels: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "kernels"
    return shipped if shipped.is_dir() else package.parent / "kernels"


def flatten(file: str) -> str:
    """The text of a file with each of its includes pasted in once, and ``#line`` directives that give the origin.

    CuPy's disk cache does not check included files: after an edit of one it would run a stale binary.

    Raises
    ------
    KernelError
        If a file is missing, or includes a file that is not in the folder.
    """
    return "\n".join(_pasted(file, set())) + "\n"


def _pasted(file: str, done: set[str]) -> Iterator[str]:
    done.add(file)
    text = _read(file, folder())
    yield f'#line 1 "{file}"'
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            yield "" if _ONCE.match(line) else line
        elif include["ours"] is None:
            raise KernelError(
                f"{file}, line {number}: {line.strip()}: which of the toolkit's headers NVRTC finds differs from one "
                f'installation to the next. Include only files of the folder, as in #include "conv.cuh".',
                file=file,
            )
        elif include["ours"] in done:
            yield ""
        else:
            yield from _pasted(include["ours"], done)
            yield f'#line {number + 1} "{file}"'


def _read(file: str, where: Path) -> str:
    try:
        return (where / file).read_text(encoding="utf-8")
    except OSError as error:
        raise KernelError(
            f"{file} cannot be read among the kernels in {where}: {error}. Reinstall gpuconv.", file=file
        ) from error


def types(unit: Unit) -> dict[str, np.dtype[Any]]:
    """The meaning, in a unit, of the kernels' own names of number types; see conv.cuh."""
    macros, sums = dict(unit.macros), accumulator(unit.dtype)
    is_integer = sums.kind in "iu"
    if is_integer:
        sums = np.dtype(np.int32 if sums.itemsize == 1 else np.int64)
    return {
        "T": unit.dtype,
        "A": sums,
        "W": np.dtype(_NAMES[macros["WEIGHTS"]]) if "WEIGHTS" in macros else unit.dtype,
        "Y": sums if is_integer else unit.dtype,
        "R": np.dtype(sums.char.lower()) if sums.kind == "c" else sums,
        "index_t": np.dtype(np.int64 if macros.get("INDEX64") else np.int32),
        "c64": np.dtype(np.complex64),
        "c128": np.dtype(np.complex128),
    }


# ------------------------------------------------------------------------------------------------ the loaded kernels


class _Kernel:
    """A kernel loaded on one device, and the check of its arguments."""

    def __init__(
        self, xp: ModuleType, device: int, unit: Unit, name: str, parameters: tuple[Parameter, ...], run: Any
    ) -> None:
        self.xp, self.run = xp, run
        self.shared_bytes = 0  # how much was asked for
        self._array, self._device = xp.ndarray, device
        self._unit, self._name = unit, name
        self._parameters = parameters
        leading = itertools.takewhile(lambda parameter: parameter.kind == "array", parameters)
        self._dtypes = [parameter.dtype for parameter in leading]

    def pointers(self, arrays: tuple[Any, ...]) -> list[Any]:
        """The arrays as CuPy takes them."""
        if len(arrays) != len(self._dtypes):
            self._refuse_count(f"{len(arrays)} arrays")
        kind, device = self._array, self._device
        given = list(arrays)
        for place, dtype in enumerate(self._dtypes):
            x = given[place]
            if x is None:
                given[place] = NULL
            elif (
                type(x) is not kind
                or ((found := x.dtype) is not dtype and found != dtype)
                or not x.flags.c_contiguous
                or x.data.device_id != device
            ):
                self._check_array(place, x)
        return given

    def numbers_and_structs(self, rest: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments behind the arrays, as CuPy takes them.

        It asks a struct for its ``__array_interface__``, where NumPy describes every field. Of mere bytes there is no
        more to say than their number.
        """
        if len(rest) + len(self._dtypes) != len(self._parameters):
            self._refuse_count(f"{len(rest)} others")
        given = []
        for place, x in enumerate(rest, len(self._dtypes)):
            parameter = self._parameters[place]
            if parameter.kind == "struct":
                self._check_struct(place, x)
                x = x.view(np.dtype((np.void, x.dtype.itemsize)))
            elif type(x) not in _spellings(parameter.dtype):
                name = parameter.dtype.type.__name__
                raise TypeError(
                    f"{self._where(place)} takes a NumPy {name}, but this is {_described(x)}. Write np.{name}(...)."
                )
            given.append(x)
        return tuple(given)

    def raise_shared_bytes(self, count: int) -> None:
        """Ask for as much dynamic shared memory.

        Without asking a block has 48 KB, its kernel's own included: how much that leaves depends on the compiler.
        """
        if count <= self.shared_bytes:
            return
        with _lock:
            if count > self.shared_bytes:
                self.run.max_dynamic_shared_size_bytes = count
                self.shared_bytes = count

    def _refuse_count(self, given: str) -> None:
        wanted = ", ".join(one.text for one in self._parameters)
        raise TypeError(
            f"{self._name} ({self._unit}) takes {len(self._dtypes)} arrays, {len(self._parameters)} arguments in all "
            f"({wanted}), but {given} were given."
        )

    def _where(self, place: int) -> str:
        return f"{self._name} ({self._unit}): argument {place + 1}, `{self._parameters[place].text}`,"

    def _check_struct(self, place: int, x: Any) -> None:
        dtype = self._parameters[place].dtype
        if not isinstance(x, np.ndarray) or x.ndim or x.dtype.names is None:
            raise TypeError(
                f"{self._where(place)} takes a 0-d structured array of {dtype}, but this is {_described(x)}."
            )
        if x.dtype != dtype:
            raise TypeError(
                f"{self._where(place)} has {dtype.itemsize} bytes as {dtype}, but the array has {x.dtype.itemsize} as "
                f"{x.dtype}."
            )

    def _check_array(self, place: int, x: Any) -> None:
        where, dtype = self._where(place), self._parameters[place].dtype
        if not isinstance(x, self._array):
            raise TypeError(f"{where} takes a device array or None, but this is {_described(x)}.")
        if x.dtype != dtype:
            raise DTypeError(f"{where} takes an array of {dtype}, not of {x.dtype}.")
        if x.device.id != self._device:
            raise DeviceError(
                f"{where} takes an array on the current device, cuda:{self._device}, not on cuda:{x.device.id}."
            )
        if not x.flags.c_contiguous:
            raise KernelError(
                f"{where} takes a C-contiguous array, not one of shape {x.shape} with strides {x.strides}.",
                kernel=self._name,
                file=self._unit.file,
            )


_ready: dict[tuple[ModuleType, int, Unit, str], _Kernel] = {}
_modules: dict[tuple[ModuleType, int, Unit], tuple[Any, dict[str, tuple[Parameter, ...]]]] = {}
_lock = FastRLock()


def _load(xp: ModuleType, device: int, unit: Unit, name: str) -> _Kernel:
    with _lock:
        key = (xp, device, unit, name)
        if key not in _ready:
            module, declared = _module(xp, device, unit)
            if name not in declared:
                raise KernelError(
                    f"{unit.file} declares no kernel {name!r}; it has {', '.join(declared)}.",
                    kernel=name,
                    file=unit.file,
                )
            try:
                run = module.get_function(name)  # compiles, the first time
            except MemoryError:
                raise
            except Exception as error:
                told = options(unit)
                raise KernelError(
                    f"{name} ({unit}) could not be compiled with {' '.join(told)}:\n{error}",
                    kernel=name,
                    file=unit.file,
                    options=told,
                    log=str(error),
                ) from error
            _ready[key] = _Kernel(xp, device, unit, name, declared[name], run)
        return _ready[key]


def _module(xp: ModuleType, device: int, unit: Unit) -> tuple[Any, dict[str, tuple[Parameter, ...]]]:
    key = (xp, device, unit)
    if key not in _modules:
        text = flatten(unit.file)
        _modules[key] = xp.RawModule(code=text, options=options(unit)), signatures(text, types(unit))
    return _modules[key]


@cache
def _spellings(dtype: np.dtype[Any]) -> frozenset[type]:
    """The NumPy types that match a number's C type: several where a platform has two of one size."""
    return frozenset(t for t in np.sctypeDict.values() if np.dtype(t) == dtype)


def _described(x: Any) -> str:
    kind = type(x)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{x!r} ({name})" if isinstance(x, (int, float, np.generic)) else name
