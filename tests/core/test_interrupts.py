"""An interrupt anywhere in a call: no later result is wrong, no thread stays at work, BLAS keeps its threads."""

import _thread
import collections
import contextlib
import dis
import functools
import gc
import linecache
import os
import random
import signal
import subprocess
import sys
import threading
import time

import alarms
import numpy as np
import pytest
from calls import same
from threadpoolctl import threadpool_info

import gpuconv
from gpuconv.cpu import thread_pool, threads

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timed signals")

x = np.random.default_rng(0).integers(-2, 3, (2, 28, 28, 64)).astype(np.float32)
w = np.random.default_rng(1).integers(-2, 3, (3, 3, 64, 64)).astype(np.float32)
w_depthwise = w[:, :, :1]
z, w_complex = x[..., :16].astype(np.complex64), w[:, :, :16, :16].astype(np.complex64)

CALLS = {
    "direct": lambda out=None: gpuconv.conv2d(x, w, pad=1, algorithm="direct", out=out),
    "direct, depthwise": lambda out=None: gpuconv.conv2d(x, w_depthwise, pad=1, groups=64, algorithm="direct", out=out),
    "direct, several loops": lambda out=None: gpuconv.conv2d_input_grad(
        x, w, (2, 57, 57, 64), stride=2, algorithm="direct", out=out
    ),
    "direct, few channels": lambda out=None: gpuconv.conv2d_input_grad(
        x, w[:, :, :3], (2, 28, 28, 3), pad=1, algorithm="direct", out=out
    ),
    "direct, weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(x, x, 3, pad=1, algorithm="direct", out=out),
    "direct, depthwise weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(
        x, x, 3, pad=1, groups=64, algorithm="direct", out=out
    ),
    "winograd": lambda out=None: gpuconv.conv2d(x, w, pad=1, algorithm="winograd", out=out),
    "winograd, weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(
        x, x, 3, pad=1, algorithm="winograd", out=out
    ),
    "winograd of NumPy": lambda out=None: gpuconv.conv2d(z[:1], w_complex, pad=1, algorithm="winograd", out=out),
    "winograd of NumPy, weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(
        z[:1], z[:1], 3, pad=1, algorithm="winograd", out=out
    ),
    "amx": lambda out=None: gpuconv.conv2d(x, w, pad=1, algorithm="amx", out=out),
    "gemm": lambda out=None: gpuconv.conv2d(x[:1], w, pad=1, algorithm="gemm", max_workspace=2**19, out=out),
    "gemm, weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(
        x, x, 3, pad=1, algorithm="gemm", max_workspace=2**21, out=out
    ),
    "depthwise": lambda out=None: gpuconv.conv2d(x, w_depthwise, pad=1, groups=64, algorithm="depthwise", out=out),
    "fft": lambda out=None: gpuconv.conv2d(x[:1, ..., :8], w[:, :, :8, :24], pad=1, algorithm="fft", out=out),
    "fft, weight gradient": lambda out=None: gpuconv.conv2d_weight_grad(
        x[:1, ..., :8], x[:1, ..., :8], 3, pad=1, algorithm="fft", out=out
    ),
    "max_pool2d": lambda out=None: gpuconv.max_pool2d(x, 2, out=out),
    "avg_pool2d": lambda out=None: gpuconv.avg_pool2d(x, 3, pad=1, out=out),
}


class Storm:
    """Raises KeyboardInterrupt in the main thread some time from now, and once more soon after that.

    Nothing is collected meanwhile: Hypothesis times that in a callback, where Python reports an exception and goes on.
    """

    def __init__(self, seed):
        self._random, self._left = random.Random(seed), 0

    def __enter__(self):
        gc.disable()
        self._alarms = alarms.handled_by(self._strike)
        self._alarms.__enter__()
        return self

    def __exit__(self, *_):
        self._alarms.__exit__(None, None, None)
        gc.enable()

    def _strike(self, *_):
        if self._left > 0:
            self._left -= 1
            raise KeyboardInterrupt

    def over(self, call, longest):
        """Make a call in it; whether it was interrupted."""
        try:
            self._left = self._random.choice((1, 1, 2, 3))
            after, again = self._random.uniform(1e-6, 1) ** 2 * longest, self._random.uniform(5e-5, 1e-3)
            signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6), again)
            call()
        except KeyboardInterrupt:
            return True
        else:
            return False
        finally:
            self._left = 0


def available(call):
    try:
        call()
    except gpuconv.AlgorithmError:
        return False
    return True


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr(gpuconv.settings, "threads", 2)


@pytest.mark.parametrize("name", CALLS)
def test_a_storm_of_interrupts(name):
    call = CALLS[name]
    if not available(call):
        pytest.skip("needs Numba, or AMX")
    want, before = call().copy(), blas_threads()
    start = time.perf_counter()
    call()
    longest = max(1.2 * (time.perf_counter() - start), 1e-4)
    interrupted, out = 0, np.empty_like(want)
    with Storm(name) as storm:
        for _ in range(150):
            interrupted += storm.over(lambda: call(out), longest)
            out[...] = 7  # what was left behind may not be written to
            mine = np.zeros_like(want)
            got = call()
            assert same(got, want)
            assert not mine.any()
            assert (out == 7).all()
    assert interrupted > 10
    assert blas_threads() == before
    assert len(thread_pool._workers) <= 4
    time.sleep(0.05)
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.1, "threads are at work though nobody asked them for anything"


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_line_of_a_call(name):
    """Put there by a trace function: at each line that the caller runs, of any module, once or later."""
    call = CALLS[name]
    if not available(call):
        pytest.skip("needs Numba, or AMX")
    want, before = call().copy(), blas_threads()
    lines, _ = traced(call)
    interrupted = 0
    for line, times in lines.items():
        for which in {1, random.Random(name).randint(1, times)}:
            with ending_within(20):
                _, struck = traced(call, line, which)
                interrupted += struck
                assert same(call(), want), line
            assert blas_threads() == before, line
    assert interrupted > 30
    assert len(thread_pool._workers) <= 4


def traced(call, strike_at=None, which=1):
    """How often a call runs each line of each file, and whether it was interrupted.

    It is interrupted at a line of a file, the `which`-th time that it comes there, if it does so again.
    """
    lines, struck = collections.Counter(), False

    def trace(frame, event, _):
        nonlocal struck
        if event == "line" and not is_safe(frame.f_code, frame.f_lasti, frame.f_lineno):
            line = (frame.f_code.co_filename, frame.f_lineno)
            lines[line] += 1
            if line == strike_at and lines[line] == which:
                struck = True
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    else:
        assert not struck, f"the interrupt at {strike_at} was lost"
    finally:
        sys.settrace(None)
    return lines, struck


@functools.cache
def is_safe(code, step, line):
    """Whether no signal can come here, where an exception would skip an `__exit__`.

    Python looks for signals at the ends of calls and loops: not between the body of a with statement and its
    `__exit__`, and not at the NOP that stands for a `try:`, which the body's table of exceptions leaves out.
    """
    names = [each.opname for each in dis.get_instructions(code) if each.offset >= step]
    is_with = linecache.getline(code.co_filename, line).lstrip().startswith("with ")
    return names[0] == "NOP" or (is_with and next(name for name in names if name != "POP_BLOCK") == "LOAD_CONST")


@contextlib.contextmanager
def ending_within(seconds):
    def strike(*_):
        raise TimeoutError

    with alarms.handled_by(strike):
        signal.alarm(seconds)
        yield


def test_an_alarm_that_comes_late_strikes_nobody(recwarn):
    """As one does that the system has handed to a busy thread."""
    with ending_within(20):
        pass
    signal.raise_signal(signal.SIGALRM)
    assert not recwarn


def test_a_share_left_behind_is_not_taken_for_one_of_the_next_call():
    """The caller is gone between asking and its first task."""
    call, other = CALLS["fft"], CALLS["fft, weight gradient"]
    want, want_other = call().copy(), other().copy()

    def interrupted(*arguments):
        thread_pool.offer(*arguments)
        raise KeyboardInterrupt

    for _ in range(20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "offer", interrupted)
            patch.setattr(threads, "settle", lambda _: None)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert same(other(), want_other)
        assert same(call(), want)


def test_a_long_call_can_be_interrupted():
    pytest.importorskip("numba")
    big = np.zeros((8, 256, 256, 64), np.float32)
    wide = np.zeros((5, 5, 64, 256), np.float32)

    def call():
        gpuconv.conv2d(big, wide, algorithm="direct")

    CALLS["direct"]()
    threading.Timer(0.3, _thread.interrupt_main, [signal.SIGINT]).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()  # some 200 G multiply-adds
    finally:
        signal.signal(signal.SIGINT, before)
    ended = time.perf_counter() - start
    start = time.perf_counter()
    gpuconv.conv2d(big[:1], wide, algorithm="direct")
    eighth = time.perf_counter() - start
    assert ended < 0.3 + 4 * eighth


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_forked_inside_gemm_has_all_threads_of_blas():
    statement = (
        "import os, sys, warnings; import numpy as np, gpuconv; from gpuconv.cpu import threads; "
        "from threadpoolctl import threadpool_info; warnings.simplefilter('ignore'); "
        "blas = lambda: [pool['num_threads'] for pool in threadpool_info()]; before = blas(); "
        "held = threads._serial_blas; held.__enter__(); pid = os.fork(); "
        "pid or os._exit(blas() != before); held.__exit__(); sys.exit(os.waitpid(pid, 0)[1] or blas() != before)"
    )
    assert subprocess.run([sys.executable, "-c", statement], check=False).returncode == 0


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7])
def test_an_interrupt_while_numba_is_imported_and_the_first_loop_compiled(delay):
    pytest.importorskip("numba")
    statement = f"""
import signal
import numpy as np, gpuconv

def strike(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, strike)
x, w = np.ones((1, 32, 32, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
try:
    signal.setitimer(signal.ITIMER_REAL, {delay})
    gpuconv.conv2d(x, w)
    signal.setitimer(signal.ITIMER_REAL, 0)
except KeyboardInterrupt:
    pass
for _ in range(3):
    assert (gpuconv.conv2d(x, w, algorithm="direct") == 144).all()
"""
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
