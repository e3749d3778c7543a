"""Device, Stream and Event as CuPy has them, over the queues of `state`."""

from __future__ import annotations

import weakref

from .state import DEVICE_BYTES, DEVICES, Clock, CUDARuntimeError, Queue, machine


def set_device(device):
    if not 0 <= device < DEVICES:
        raise CUDARuntimeError(101)
    machine.thread.device = device


class Device:
    def __init__(self, device=None):
        self.id = machine.thread.device if device is None else int(device)

    def __int__(self):
        return self.id

    def __enter__(self):
        before = machine.thread.device
        set_device(self.id)
        machine.thread.device_stack.append(before)
        return self

    def __exit__(self, *_):
        set_device(machine.thread.device_stack.pop())

    def use(self):
        set_device(self.id)
        return self

    def synchronize(self):
        machine.wait_for(machine.everything(self.id))

    @property
    def compute_capability(self):
        return f"{PROPERTIES['major']}{PROPERTIES['minor']}"

    @property
    def attributes(self):
        return dict(ATTRIBUTES)

    @property
    def mem_info(self):
        with self:
            return memory_info()

    @property
    def cublas_handle(self):
        return 0xB1A5_0000 + self.id

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    __hash__ = None

    def __lt__(self, other):
        return self.id < other.id if isinstance(other, Device) else NotImplemented

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


# An A100's limits, which are those of the architecture that the PTX tier compiles for.
ATTRIBUTES = {
    "ComputeCapabilityMajor": 8,
    "ComputeCapabilityMinor": 0,
    "L2CacheSize": 40 * 2**20,
    "MaxBlockDimX": 1024,
    "MaxBlockDimY": 1024,
    "MaxBlockDimZ": 64,
    "MaxGridDimX": 2**31 - 1,
    "MaxGridDimY": 65535,
    "MaxGridDimZ": 65535,
    "MaxSharedMemoryPerBlock": 48 * 1024,
    "MaxSharedMemoryPerBlockOptin": 163 * 1024,
    "MaxSharedMemoryPerMultiprocessor": 164 * 1024,
    "MaxThreadsPerBlock": 1024,
    "MaxThreadsPerMultiProcessor": 2048,
    "MultiProcessorCount": 108,
    "WarpSize": 32,
}
PROPERTIES = {
    "name": b"CuPy test double",
    "totalGlobalMem": DEVICE_BYTES,
    "sharedMemPerBlock": ATTRIBUTES["MaxSharedMemoryPerBlock"],
    "sharedMemPerBlockOptin": ATTRIBUTES["MaxSharedMemoryPerBlockOptin"],
    "sharedMemPerMultiprocessor": ATTRIBUTES["MaxSharedMemoryPerMultiprocessor"],
    "regsPerBlock": 65536,
    "warpSize": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerMultiProcessor": 2048,
    "major": 8,
    "minor": 0,
    "multiProcessorCount": ATTRIBUTES["MultiProcessorCount"],
    "l2CacheSize": ATTRIBUTES["L2CacheSize"],
    "clockRate": 1410000,
    "memoryClockRate": 1215000,
    "memoryBusWidth": 5120,
}


def memory_info():
    from .memory import default_pool

    return DEVICE_BYTES - default_pool.used_bytes(), DEVICE_BYTES


# ------------------------------------------------------------------------------------------------------ streams


class Stream:
    """A stream of the current device. `Stream.null` is the null stream of whichever device is current."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        if ptds:
            raise NotImplementedError("the double has no per-thread default stream")
        if null:
            self._queue, self.device_id = None, -1
            return
        self.device_id = machine.thread.device
        self._queue = Queue(self.device_id, blocks=not non_blocking)
        with machine.lock:
            machine.others.append(self._queue)
        weakref.finalize(self, _retire, self._queue)

    def queue(self, device_id=None):
        if self._queue is not None:
            return self._queue
        return machine.null[machine.thread.device if device_id is None else device_id]

    @property
    def ptr(self):
        return 0 if self._queue is None else self._queue.ptr

    @property
    def done(self):
        queue = self.queue()
        return machine.host.get(queue, 0) >= queue.time

    def synchronize(self):
        queue = self.queue()
        clock = queue.now()
        for other in machine.others:
            if queue.is_null and other.blocks and other.device_id == queue.device_id:
                clock.learn(other.now())
        machine.wait_for(clock)

    def begin_capture(self, mode=None):
        if self._queue is None:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if mode not in (None, RELAXED):
            raise NotImplementedError("the double captures in relaxed mode only")
        if self._queue.capture is not None:
            raise CUDARuntimeError(401)
        self._queue.capture = []

    def end_capture(self):
        steps = None if self._queue is None else self._queue.capture
        if steps is None:
            raise CUDARuntimeError(401)
        self._queue.capture = None
        graph = Graph.__new__(Graph)
        graph._steps = steps
        return graph

    def is_capturing(self):
        if self._queue is not None:
            return self._queue.capture is not None
        if any(queue.capture is not None and queue.blocks for queue in machine.others):
            raise CUDARuntimeError(906)
        return False

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if self.queue().capture is not None:
            raise NotImplementedError("the double captures no events")
        self.queue().knows.learn(event.clock)
        machine.pace.wait(self.queue(), event.at or 0.0)

    def _check_device(self):
        here = machine.thread.device
        if self.device_id not in {-1, here}:
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({here})"
            )

    def __enter__(self):
        self._check_device()
        device = machine.thread.device
        machine.thread.entered.append((device, machine.thread.streams.get(device)))
        machine.thread.streams[device] = self
        return self

    def __exit__(self, *_):
        device, before = machine.thread.entered.pop()
        machine.thread.streams[device] = before

    def use(self):
        self._check_device()
        machine.thread.streams[machine.thread.device] = self
        return self

    def __eq__(self, other):
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self):
        return self.ptr

    def __repr__(self):
        return f"<Stream {self.ptr} (device {self.device_id})>"


class ExternalStream(Stream):
    """A stream that someone else made, of which CuPy is told the address."""

    def __init__(self, ptr, device_id=-1):
        self.device_id = device_id
        self._queue = next((queue for queue in machine.others if queue.ptr == ptr), None)
        if self._queue is None and ptr:
            raise CUDARuntimeError(400)


Stream.null = Stream(null=True)
RELAXED = 2  # cudaStreamCaptureModeRelaxed


class Graph:
    """What was captured: it is done anew at each launch, with the memory that was used then."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    def launch(self, stream=None):
        queue = (get_current_stream() if stream is None else stream).queue()
        if queue.capture is not None:
            raise NotImplementedError("the double captures no graph within a graph")
        machine.pace.spend(machine.pace.asking)
        with machine.pace.at(asking=0.0):  # the host asks once for all of it
            for step in self._steps:
                step.replay(queue)

    def upload(self, stream=None):
        pass


def _retire(queue):
    """Its work goes on; the null stream still waits for it."""
    with machine.lock:
        if queue.blocks:
            machine.null[queue.device_id].knows.learn(queue.now())
        machine.others.remove(queue)


class Event:
    """`at` is when it happens, in the seconds of `pace`; None where it was not recorded."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.clock, self.at, self.disable_timing = Clock(), None, disable_timing

    @property
    def done(self):
        return self.at is None or machine.pace.now >= self.at

    def record(self, stream=None):
        queue = (get_current_stream() if stream is None else stream).queue()
        self.clock, self.at = queue.now(), max(machine.pace.now, machine.pace.end(queue))

    def synchronize(self):
        machine.wait_for(self.clock, self.at)


def get_elapsed_time(start_event, end_event):
    """Milliseconds by the model. On a device an event that the host has not waited for may not have happened yet."""
    for event in (start_event, end_event):
        if event.at is None or event.disable_timing:
            raise CUDARuntimeError(400)
        if not event.done:
            raise CUDARuntimeError(600)
    return 1e3 * (end_event.at - start_event.at)


def get_current_stream(device_id=-1):
    device = machine.thread.device if device_id == -1 else device_id
    return machine.thread.streams.get(device) or Stream.null


def current_queue():
    return get_current_stream().queue()
