"""Calls are timed on the device: the host's time to enqueue them is hidden, or it is said that it is not."""

import cupy_double
import pytest

from gpuconv.cuda import stopwatch


@pytest.fixture
def pace(monkeypatch):
    """The clock of the double, by which a fill takes 60 us, a kernel of the call 5 us, and an enqueueing 10 us."""
    model = cupy_double.machine.pace
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: model.now)
    monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**10)
    with model.at(asking=10e-6, costs={"fill": 60e-6, "kernel": 5e-6}):
        yield model


@pytest.fixture
def watch(double, pace):
    return stopwatch.Stopwatch("cuda:0")


def kernels(count):
    def call():
        for _ in range(count):
            cupy_double.machine.submit(cupy_double.machine.null[0], [], [], "kernel")

    return call


def test_the_device_alone_is_timed(watch):
    assert watch(kernels(4)) == stopwatch.Run(pytest.approx(20e-6), pytest.approx(40e-6), True)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_fills_are_added_until_the_host_is_hidden(watch, count):
    assert watch(kernels(count)) == stopwatch.Run(pytest.approx(count * 5e-6), pytest.approx(count * 10e-6), True)


def test_fills_that_are_not_needed_are_left_out_again(watch, pace):
    watch(kernels(100))
    for _ in range(10):
        begin = pace.now
        assert watch(kernels(1)).is_hidden
    assert pace.now - begin < 200e-6


def test_a_host_that_cannot_be_hidden_is_told(watch, pace):
    """It waits for the device itself."""

    def call():
        kernels(2)()
        cupy_double.machine.wait_for(cupy_double.machine.everything(0))
        pace.spend(1e-3)
        kernels(2)()

    run = watch(call)
    assert not run.is_hidden
    assert run.seconds > 1e-3


def test_the_cache_is_flushed_before_each_run(watch, double):
    assert watch._buffer.nbytes == stopwatch.FLUSHED * 2**10
    ran = []
    submit = cupy_double.machine.submit

    def note(queue, reads, writes, what, **more):
        ran.append(what)
        submit(queue, reads, writes, what, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_double.machine, "submit", note)
        for _ in range(2):
            watch(kernels(1))
    assert ran == ["fill", "kernel"] * 2


def test_other_devices_and_streams(double, pace):
    """What is timed is the current stream of the device that was named, whichever is current."""
    watch = stopwatch.Stopwatch("cuda:1")
    assert watch._buffer.device.id == 1

    def call():
        assert double.cuda.Device().id == 1
        cupy_double.machine.submit(double.cuda.get_current_stream().queue(), [], [], "kernel")

    assert watch(call).seconds == pytest.approx(5e-6)
    assert double.cuda.Device().id == 0


def test_no_memory(double, monkeypatch):
    monkeypatch.setitem(cupy_double.streams.PROPERTIES, "l2CacheSize", 2**40)
    with pytest.raises(MemoryError):
        stopwatch.Stopwatch("cuda:0")
