"""Compiled loops on several threads, none of which is inside a loop when the call has ended, whatever ended it.

A job is a compiled loop with its arguments, which lie in one block of integers. `run` hands the block's address to one
piece of compiled code (`share` in simd/sharing.py). That calls workers of thread_pool.py, which need no GIL to come,
runs the loop itself, and sees to it that they are out again. So there is no Python between the beginning and the end of
a call, where a KeyboardInterrupt could be raised.

    buffers = Room(2, [bytes_per_thread]).buffers((100, np.int64), (200, x.dtype))
    job = Job(dense.correlate, product, index_maps, bias_row, tasks, *buffers)
    run(2, [job], macs=g.macs)

simd/arguments.py says how a loop receives its arguments, and how they lie in the block. A job serves one call at a
time, and so belongs to one thread of Python. It keeps its arguments alive, but not the arrays whose addresses stand in
a NamedTuple: `keeps` is for those. repeated_jobs.py makes a template of jobs, from which repeated calls get blocks of
their own.

A long loop is split into slices, so that Ctrl-C does not have to wait for its end. Between two slices the caller is in
Python for a moment, and nobody is inside the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv.cpu import thread_pool
from gpuconv.simd.host import address
from gpuconv.simd.lines import ASKED, LIMIT, LINE, LINK, NEXT, NONE_LEFT, lines
from gpuconv.support.shielded import shielded
from gpuconv.typing import Array

SLICED_MACS = 2**32
"""Minimum multiply-adds of a call that is split into slices: about 50 ms of one core at its best, and up to 5 s at its
worst."""

SLICE = 0.1
"""Target duration of a slice, in seconds."""


WORTH_WAKING = 2**22
"""Minimum multiply-adds of a call that wakes workers: it takes the caller some 20 us, and them as long to come. Loops
that need longer for a multiply-add than those of a dense convolution count it several times."""

FREQUENT = 1e-4
"""Seconds since the end of the last call for which a call wakes workers, however small it is: they stay awake for
longer than that, and will be there for the next one."""

Maker = Callable[[Array, Array, Array, "Array | None"], Array]
"""Makes an array that a job reads or writes, from those of a call: both that it reads, the result, and the bias."""


class Made(NamedTuple):
    """An array that is made for every call, how, and where in a job it is: fields by name, arguments by number."""

    names: tuple[str | int, ...]
    make: Maker
    array: Array


class Each:
    """Arrays of one shape, dtype and layout, one per thread: a loop sees that of its own thread."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays
        self.addresses = np.array([address(array) for array in arrays], np.int64)


class Room:
    """The buffers of the threads of a call. Its jobs, which need so many bytes per thread, use them one after another.

    A single job has every buffer in an array of its own.
    """

    def __init__(self, threads: int, sizes: Sequence[int]) -> None:
        self._threads = threads
        self._shared = [np.empty(max(sizes), np.uint8) for _ in range(threads)] if len(sizes) > 1 else []

    def buffers(self, *wanted: tuple[int, Any]) -> list[Each]:
        """Buffers of a job: for each (length, dtype) one per thread."""
        if not self._shared:
            return [Each([np.empty(length, dtype) for _ in range(self._threads)]) for length, dtype in wanted]
        made, start = [], 0
        for length, dtype in wanted:
            stop = start + length * np.dtype(dtype).itemsize
            made.append(Each([room[start:stop].view(dtype) for room in self._shared]))
            start = stop
        return made


class Job:
    """A compiled loop and its arguments: `block` holds the head, see simd/lines.py, and then the arguments."""

    def __init__(
        self,
        loop: Any,
        *arguments: Any,
        keeps: object = None,
        roles: Mapping[Any, int] | None = None,
        made: Sequence[Made] = (),
    ) -> None:
        """Write the arguments of a loop into a block.

        `roles` and `made` say of which arrays there are addresses in it, for repeated_jobs.py. `roles` is for fields of
        the first argument, by name, and for arguments, by number, with addresses in the arrays of the call. `made` is
        for arrays that are made for every call. Without `roles` the job belongs to one call.
        """
        words: list[int] = []
        self._places: list[int] = []
        keys = []
        for argument in arguments:
            self._places.append(LINE + len(words))
            keys.append(_write(argument, words))
        key = loop, tuple(keys)
        function = _functions.get(key)
        if function is None:
            function = _functions[key] = _compile(loop, arguments)
        self.block = np.array([function, 0, 0, NONE_LEFT, 0, 0, 0, 0, *words], np.int64)
        self.address = address(self.block)
        self._kept_alive = arguments, keeps
        self.is_told = roles is not None
        self.roles = {self._field(arguments, name): role for name, role in (roles or {}).items()}
        self.made = [([self._field(arguments, name) for name in one.names], one.make, one.array) for one in made]
        self.each = [(self.place(i), each) for i, each in enumerate(arguments) if isinstance(each, Each)]
        varying = {name for one in made for name in one.names} | set(roles or ())
        self.constants = [
            one for i, one in enumerate(arguments) if isinstance(one, (np.ndarray, tuple)) and i not in varying
        ]

    def _field(self, arguments: tuple[Any, ...], name: str | int) -> int:
        """The index in `block` of an argument, by its number, or of a field of the first argument, by its name."""
        if isinstance(name, int):
            return self.place(name)
        first = arguments[0]
        names = first.dtype.names or () if isinstance(first, np.void) else first._fields
        return self.place(0) + names.index(name)

    def place(self, argument: int) -> int:
        """The index in `block` of the first word of an argument."""
        return self._places[argument]


def run(threads: int, jobs: Sequence[Job], *, macs: int = 0) -> None:
    """Run all jobs, of `macs` multiply-adds in total, on up to `threads` threads, the caller's among them.

    Every thread goes through the jobs in order, and the call returns when no thread is inside one.
    """
    if not jobs:
        return
    gate, sharing = _take_gate(), _sharing()
    wakes = threads > 1 and (macs >= WORTH_WAKING or _calls_are_frequent())
    try:
        workers = thread_pool.mailboxes(threads - 1, len(_gates) - len(_spare_gates))
        if macs < SLICED_MACS:
            for i in range(len(jobs) - 1):
                jobs[i].block[LINK] = jobs[i + 1].address
            sharing.share(gate, jobs[0].address, True, threads, wakes, *workers)
        else:
            for job in jobs:
                _run_in_slices(gate, job, threads, workers)
        _note_end()
    finally:
        _spare_gates.append(gate)


def _calls_are_frequent() -> bool:
    """Whether calls follow each other so fast that a worker, once awake, stays awake between them."""
    return time.perf_counter() - _last_end < FREQUENT


def _note_end() -> None:
    """Note when a call has ended, for the next one."""
    global _last_end  # noqa: PLW0603
    _last_end = time.perf_counter()


_last_end = -1.0


def run_again(threads: int, macs: int, *template_and_addresses: int) -> None:
    """Run jobs of an earlier call, which are not sliced, at other addresses: see `share_again` of simd/sharing.py."""
    if threads == 1:
        _sharing().share_again(*template_and_addresses, 0, 1, False, 0, 0)
        return
    wakes = macs >= WORTH_WAKING or _calls_are_frequent()
    gate = _take_gate()
    try:
        workers = thread_pool.mailboxes(threads - 1, len(_gates) - len(_spare_gates))
        _sharing().share_again(*template_and_addresses, gate, threads, wakes, *workers)
        _note_end()
    finally:
        _spare_gates.append(gate)


def _run_in_slices(gate: int, job: Job, threads: int, workers: tuple[int, int]) -> None:
    """Run a job, some tasks at a time, by raising its limit."""
    tasks = threads
    job.block[LIMIT] = tasks
    begins = True
    while True:
        start = time.perf_counter()
        _sharing().share(gate, job.address, begins, threads, True, *workers)
        if job.block[NEXT] < job.block[LIMIT]:
            return
        seconds = time.perf_counter() - start
        tasks = max(threads, round(tasks * min(4, SLICE / max(seconds, 1e-6))))
        job.block[LIMIT] += tasks
        begins = False


# -------------------------------------------------------------------------------------------------- gates


_gates: list[Array] = []
"""All gates. Their memory is never freed: a late worker may look at a gate that belongs to another call by now."""

_spare_gates: list[int] = []
"""The addresses of the gates that no call holds. An interrupt may lose one: 64 bytes and an object of Python."""


def _take_gate() -> int:
    """The address of a gate, which is closed."""
    try:
        return _spare_gates.pop()
    except IndexError:
        gate, at = lines(1)
        _gates.append(gate)
        return at


# -------------------------------------------------------------------------------------------------- blocks


_functions: dict[tuple[Any, ...], int] = {}
"""The address of every loop that has been compiled, by the loop and what it is specialized for."""


def _write(argument: Any, words: list[int]) -> Any:
    """Append an argument to the words of a block. The result says what code has to be specialized for."""
    if type(argument) is int:
        words.append(argument)
        return int
    if isinstance(argument, np.ndarray):
        words += (address(argument), *argument.shape, *argument.strides)
        return argument.dtype.str, argument.ndim, argument.flags.c_contiguous
    if isinstance(argument, Each):
        first = argument.arrays[0]
        words += (argument.addresses.ctypes.data, *first.shape, *first.strides)
        return Each, first.dtype.str, first.ndim, first.flags.c_contiguous
    if isinstance(argument, tuple):
        if hasattr(argument, "_fields"):
            words += argument
            return type(argument)
        if argument and type(argument[0]) is int:  # zeros
            return len(argument)
        return tuple([_write(one, words) for one in argument])
    if isinstance(argument, np.void):
        words += argument.item()
        return argument.dtype
    words.append(argument)
    return int


def _compile(loop: Any, arguments: tuple[Any, ...]) -> int:
    """The address of a loop for such arguments."""
    from numba import types

    kinds = types.TypeRef(types.Tuple([_kind(argument) for argument in arguments]))
    signature = types.intp, types.intp, kinds
    loop.compile(signature)
    compiled = loop.overloads[signature]
    found: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    return found


def _kind(argument: Any) -> Any:
    """The Numba type of an argument, see simd/arguments.py."""
    from numba import typeof, types
    from numba.np.numpy_support import from_dtype

    from gpuconv.simd.arguments import EachType

    if isinstance(argument, np.ndarray):
        layout = "C" if argument.flags.c_contiguous else "A"
        return types.Array(from_dtype(argument.dtype), argument.ndim, layout)
    if isinstance(argument, Each):
        return EachType(_kind(argument.arrays[0]))
    if isinstance(argument, tuple) and not hasattr(argument, "_fields"):
        return types.Tuple([_kind(one) for one in argument])
    if isinstance(argument, int):
        return types.intp
    return typeof(argument)


@cache
def _sharing() -> ModuleType:
    """The module simd/sharing.py, imported when it is first needed, since Numba takes long to import."""
    sharing: ModuleType = shielded(_import_sharing)
    return sharing


def _import_sharing() -> ModuleType:
    """The module, after its functions have been compiled and the workers have them."""
    from gpuconv.simd import sharing

    room, at = lines(1)  # compiled now, not while a worker is wanted
    room[0, ASKED] = 1
    sharing.attend(at, 0)
    sharing.call_back(at)
    sharing.share(at, 0, True, 1, True, at, 0)
    sharing.share_again(at, 0, 0, 0, 0, 0, 0, 0, 1, True, 0, 0)
    sharing.is_set(at)
    thread_pool.enter_compiled_code(sharing)
    return sharing
