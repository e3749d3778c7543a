"""CUDA graphs: what is captured of a stream is replayed later, at the addresses that it had then.

What a call takes for itself, such as partial sums, goes back to CuPy's pool when the call returns. In a graph it must
not: each replay writes there again, when the pool has long handed the memory to another array. So while a stream is
being captured, somebody has to keep what is allocated: a `GraphMemory`, through CuPy's allocator of the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import backend
from gpuconv.errors import WorkspaceError
from gpuconv.support.numbers import si

LEGACY_STREAMS = (0, 1)
"""The null stream, and the handle that stands for it: neither can be captured."""


def is_captured(xp: ModuleType) -> bool:
    """Whether the current stream of the current device is being captured, so that nothing runs now."""
    stream = xp.cuda.get_current_stream()
    return stream.ptr not in LEGACY_STREAMS and bool(stream.is_capturing())


class GraphMemory:
    """The device memory that captured graphs work in; it lives as long as this object. See `graph_memory`.

    Attributes
    ----------
    nbytes : int
        Bytes of device memory, as CuPy's pool rounds them.

    Examples
    --------
    >>> import gpuconv
    >>> gpuconv.GraphMemory().nbytes
    0
    """

    def __init__(self) -> None:
        self._held: list[Any] = []

    @property
    def nbytes(self) -> int:
        return sum(pointer.mem.size for pointer in self._held)

    def hold(self, pointer: Any) -> None:
        """Keep an allocation of CuPy's."""
        self._held.append(pointer)

    def __repr__(self) -> str:
        return f"<GraphMemory {si(self.nbytes)}B>"


class _Keeping(NamedTuple):
    """An allocator that hands out the memory of another, which `memory` holds if a stream is being captured.

    That is asked at each allocation: where an interrupt keeps this allocator in place for too long, it keeps nothing.
    """

    xp: ModuleType
    memory: GraphMemory
    allocate: Any

    def __call__(self, size: int) -> Any:
        pointer = self.allocate(size)
        if is_captured(self.xp):
            self.memory.hold(pointer)
        return pointer


def keeping(memory: GraphMemory, xp: ModuleType) -> AbstractContextManager[None]:
    """A context in which `memory` keeps what this thread allocates while a stream is being captured."""
    context: AbstractContextManager[None] = xp.cuda.using_allocator(_Keeping(xp, memory, xp.cuda.get_allocator()))
    return context


@contextmanager
def graph_memory() -> Iterator[GraphMemory]:
    """The memory of a CUDA graph: it keeps what CuPy allocates in this block while a stream is being captured.

    A graph is replayed at the addresses that it was captured with. Keep the object that this yields, and your own
    arrays in the graph, for as long as you launch it. Memory taken outside of a capture, by a call that compiles the
    kernels for example, is not kept, nor is that of other threads.

        with cupy.cuda.Stream(non_blocking=True) as stream:
            step()                                   # compiles the kernels, and fills CuPy's pool
            stream.begin_capture()
            with gpuconv.graph_memory() as memory:
                step()
            graph = stream.end_capture()
            graph.launch()                           # again and again, as long as there is `memory`

    Raises
    ------
    DeviceError
        If there is no CUDA device, or no CuPy to reach it.

    Examples
    --------
    >>> import gpuconv
    >>> if "cuda:0" in gpuconv.devices():
    ...     with gpuconv.graph_memory() as memory:
    ...         pass  # the calls that a stream captures
    """
    device = backend.check_device("cuda", "graph_memory")
    memory = GraphMemory()
    with keeping(memory, backend.module_for(device)):
        yield memory


def refuse_training(xp: ModuleType, caller: str) -> None:
    """Raise if the current stream is being captured: a replay changes no number of the host."""
    if xp is not np and is_captured(xp):
        raise RuntimeError(
            f"{caller}: a CUDA graph is being captured, but training counts its steps and keeps its gradients and "
            "running averages on the host's side, which a replay does not change. Capture predict, or forward with "
            "retain_derived=False; gradients are captured as gpuconv's functions, conv2d_input_grad and the like."
        )


def check_if_captured(xp: ModuleType, caller: str, what: str = "arrays are made on the way to its result") -> None:
    """`check_kept` if the current stream is being captured."""
    if xp is not np and is_captured(xp):
        check_kept(xp, caller, what)


def check_kept(xp: ModuleType, caller: str, what: str) -> None:
    """Raise unless somebody keeps what is allocated during this capture: `what` needs memory of its own."""
    if not isinstance(xp.cuda.get_allocator(), _Keeping):
        raise WorkspaceError(
            f"{caller}: a CUDA graph is being captured, and {what}. That memory would go back to CuPy's pool after the "
            "call, and each replay of the graph would write into what is then another array. Capture inside `with "
            "gpuconv.graph_memory() as memory:`, and keep `memory` for as long as the graph."
        )
