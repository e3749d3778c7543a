"""Work in several processes, one task after another in each, which an interrupt or a closed iterator ends at once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Ended:
    """In place of the result of a task: its process has ended meanwhile, with this status."""

    status: int | None


def results(
    function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Yield the number of each task and `function(*task)`, when it is ready.

    The function is one of a module, and what it takes and returns can be pickled. It must not raise.
    """
    waiting = enumerate(tasks)
    workers = list[_Worker]()
    last = False
    try:
        while True:
            while not last and len(workers) < processes:
                task = next(waiting, None)
                if task is None:
                    last = True
                    break
                _start_one(workers, function)
                workers[-1].give(*task)
            if not workers:
                return
            for pipe in connection.wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                number, result = worker.take()
                task = next(waiting, None) if worker.process.is_alive() else None
                if task is not None:
                    worker.give(*task)
                else:
                    worker.end()
                    workers.remove(worker)
                yield number, result
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does one task after another. If forgotten, it ends after its task, when its pipe closes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, number: int, task: tuple[Any, ...]) -> None:
        self._number = number
        with suppress(BrokenPipeError):  # `take` will report it
            self.pipe.send(task)

    def take(self) -> tuple[int, Any]:
        """The number of its task, and the result."""
        try:
            return self._number, self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return self._number, Ended(self.process.exitcode)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection, function: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group, and the parent handles it
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            pipe.send(function(*pipe.recv()))


def _start_one(workers: list[_Worker], function: Callable[..., Any]) -> None:
    with _interrupts_held_back():  # else one might come after a process has started and before it is in the list
        workers.append(_Worker(function))


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A context in which a started process has SIGINT blocked from its first instruction, also while it imports.

    An interrupt of this process is raised when the other has all that it reads. Blocking the signal here is not enough:
    another thread, of BLAS for instance, may take it, and Python raises the interrupt in the main thread.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    held = callable(before) and threading.current_thread() is threading.main_thread()
    if held:
        signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        resource_tracker.ensure_running()  # when it starts later, it would unblock SIGINT
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        if held:
            signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])
