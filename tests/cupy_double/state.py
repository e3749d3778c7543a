"""What the double knows about its devices: which is current, what each stream has done, what crossed the bus.

Work is done at once, in the order in which Python asks for it. What a real device might have done differently is kept
as clocks: every stream counts its operations, and knows of the others how far they had come when it was last made to
wait for them. Touching memory that another stream wrote, without such a wait, is a `Hazard`; on a device it would be a
race that is lost now and then. Whole allocations are watched, not single bytes.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from typing import ClassVar

from .pace import Pace

DEVICES = 2
DEVICE_BYTES = 4 * 2**30


class Hazard(RuntimeError):
    """Two streams use the same memory and nothing makes one wait for the other."""


class Transfer(AssertionError):
    """Something crossed the bus, or the host waited, where a test forbids it."""


class CUDARuntimeError(RuntimeError):
    NAMES: ClassVar = {
        2: "cudaErrorMemoryAllocation: out of memory",
        35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
        101: "cudaErrorInvalidDevice: invalid device ordinal",
        400: "cudaErrorInvalidResourceHandle: invalid resource handle",
        401: "cudaErrorIllegalState: the operation cannot be performed in the present state",
        600: "cudaErrorNotReady: device not ready",
        900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
        906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking "
        "stream",
    }

    def __init__(self, status):
        self.status = status
        super().__init__(self.NAMES.get(status, f"cudaError {status}"))


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


class Clock(dict):
    """Of each stream, how many of its operations are known to be over."""

    def learn(self, other):
        for stream, time in other.items():
            if time > self.get(stream, 0):
                self[stream] = time


class Queue:
    """What a stream is to the device: the operations it was given, in order."""

    ids = itertools.count(1)

    def __init__(self, device_id, is_null=False, blocks=True):
        self.device_id = device_id
        self.is_null = is_null
        self.blocks = blocks  # it and the null stream wait for each other
        self.time = 0
        self.knows = Clock()
        self.capture = None  # the steps of the graph that is being captured
        self.ptr = 0 if is_null else 0x5000_0000 + 0x100 * next(self.ids)

    def now(self):
        clock = Clock(self.knows)
        clock[self] = self.time
        return clock

    def __repr__(self):
        return f"the null stream of device {self.device_id}" if self.is_null else f"stream {self.ptr:#x}"


class Step:
    """An operation of a graph: it knows the memory that it touches by address, and keeps none of it alive."""

    def __init__(self, reads, writes, what, action):
        self._reads, self._writes = ([weakref.ref(memory) for memory in some] for some in (reads, writes))
        self._what, self._action = what, action

    def replay(self, queue):
        reads, writes = ([memory() for memory in some] for some in (self._reads, self._writes))
        if None in reads or None in writes:
            raise Hazard(
                f"a graph replays {self._what} on memory that was given back to the pool since the capture: it may be "
                "anyone's by now."
            )
        machine.submit(queue, reads, writes, self._what)
        self._action()


class _Thread(threading.local):
    def __init__(self):
        self.device = 0
        self.device_stack = []
        self.streams = {}  # per device: current stream objects, the last is current
        self.entered = []


class Machine:
    def __init__(self):
        self.thread = _Thread()
        self.null = [Queue(i, is_null=True) for i in range(DEVICES)]
        self.others = []  # queues that the null stream waits for; those gone are dropped with their Stream
        self.host = Clock()
        self.counts = Counter()
        self.forbidden = []  # reasons, innermost last
        self.faults = []
        self.pace = Pace()
        self.lock = threading.RLock()

    # ------------------------------------------------------------------------------------------ operations

    def perform(self, queue, reads, writes, what, action, takes_time=True):
        """Put an operation on these memories at the end of a queue, or into the graph that is being captured."""
        if queue.capture is None:
            self.submit(queue, reads, writes, what, takes_time=takes_time)
            action()
        else:
            queue.capture.append(Step(reads, writes, what, action))

    def submit(self, queue, reads, writes, what, takes_time=True):
        """Note an operation that is done at once; say so if a device might run it too early."""
        with self.lock:
            if queue.capture is not None:
                raise NotImplementedError(f"the double captures no {what}")
            if self.faults:
                raise Hazard(self.faults.pop())
            queue.knows.learn(self.host)
            before = self._waits_for_itself(queue)
            for other in before:
                queue.knows.learn(other.now())
            for memory in (*reads, *writes):
                self._check(queue, memory, memory.writer, what, "wrote")
            for memory in writes:
                for reader in memory.readers.items():
                    self._check(queue, memory, reader, what, "reads")
            queue.time += 1
            if takes_time:
                self.pace.add(queue, before, what, sum(memory.size for memory in (*reads, *writes)))
            for memory in reads:
                memory.readers[queue] = queue.time
            for memory in writes:
                memory.writer = (queue, queue.time)
                memory.readers = {}

    def _waits_for_itself(self, queue):
        """The queues whose work so far comes first unasked: the null stream's, and for it that of the others."""
        if not queue.is_null:
            return [self.null[queue.device_id]] if queue.blocks else []
        others = [other for other in self.others if other.blocks and other.device_id == queue.device_id]
        if any(other.capture is not None for other in others):
            raise CUDARuntimeError(906)
        return others

    @staticmethod
    def _check(queue, memory, earlier, what, did):
        if earlier is None:
            return
        other, time = earlier
        if other is not queue and queue.knows.get(other, 0) < time:
            raise Hazard(
                f"{what} on {queue} touches {memory.size} bytes that {other} {did}, and nothing makes it wait for that."
            )

    def released(self, memory):
        """Memory goes back to the arena of the stream it was allocated on, which may hand it out again at once."""
        home = memory.home
        for queue, time in [*memory.readers.items(), *([memory.writer] if memory.writer else [])]:
            known = max(home.knows.get(queue, 0), self.host.get(queue, 0))
            blocking = queue.blocks and home.blocks and (queue.is_null or home.is_null)
            if queue is not home and known < time and not blocking:
                self.faults.append(f"{memory.size} bytes of {home} were freed while {queue} was still using them.")

    # ------------------------------------------------------------------------------------------ waiting

    def wait_for(self, clock, until=None):
        """The host waits, for the last operation of each queue, or until that time of the model."""
        self._refuse_capturing(clock)
        self.note("synchronisations", "the host waited for the device")
        with self.lock:
            self.host.learn(clock)
            self.pace.wait_on_host(max(map(self.pace.end, clock), default=0.0) if until is None else until)

    def everything(self, device_id):
        queues = [self.null[device_id], *(q for q in self.others if q.device_id == device_id)]
        self._refuse_capturing(queues)
        clock = Clock()
        for queue in queues:
            clock.learn(queue.now())
        return clock

    @staticmethod
    def _refuse_capturing(queues):
        if any(queue.capture is not None for queue in queues):
            raise CUDARuntimeError(900)

    def note(self, kind, words):
        if self.forbidden:
            raise Transfer(f"{words}, in {self.forbidden[-1]}")
        self.counts[kind] += 1

    @contextmanager
    def forbid(self, where):
        self.forbidden.append(where)
        try:
            yield
        finally:
            self.forbidden.pop()


machine = Machine()
