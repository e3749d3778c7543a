"""Threads that help with compiled loops and with jobs of Python, asked awake or asleep, by one caller or several."""

import functools
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import gpuconv
from gpuconv import cpu
from gpuconv.cpu import parallel_loops, thread_pool
from gpuconv.cpu.parallel_loops import Each, Job
from gpuconv.simd import lines

pytest.importorskip("numba")

ASLEEP_BY_NOW = 0.05
"""Seconds: workers stay awake for less than a millisecond."""


@functools.cache
def counting_loop():
    from numba import njit

    from gpuconv.simd.arguments import arguments
    from gpuconv.simd.waiting import Turn, nap, next_task

    @njit(nogil=True)
    def count(job, thread, kinds):
        turn = Turn(job, thread)
        tasks, microseconds, times, threads = arguments(turn, kinds)
        while True:
            task = next_task(turn)
            if task >= tasks:
                break
            times[task] += 1
            threads[task] = thread
            if microseconds > 0:
                nap(microseconds)

    return count


class Count:
    """A job that counts how often each of its tasks was taken, and notes by which thread."""

    def __init__(self, tasks=200, microseconds=20, keeps=None):
        self.times, self.threads = np.zeros(tasks, int), np.zeros(tasks, int)
        self.job = Job(counting_loop(), tasks, microseconds, self.times, self.threads, keeps=keeps)

    def run(self, threads, *, macs=parallel_loops.WORTH_WAKING):
        self.times[:], self.threads[:] = 0, -1
        parallel_loops.run(threads, [self.job], macs=macs)

    def once(self):
        return (self.times == 1).all()


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Workers do not wait for a compiler."""
    Count().run(1)


def mailbox_states():
    return [int(thread_pool._mailboxes[i, lines.STATE]) for i in range(len(thread_pool._workers))]


@pytest.mark.parametrize("pause", [0, ASLEEP_BY_NOW], ids=["awake", "asleep"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_task_is_done_once_and_by_all_threads(threads, pause):
    took_part, count = set(), Count()
    for _ in range(50):
        count.run(threads)
        assert count.once()
        took_part.add(len(set(count.threads)))
        if threads in took_part:  # on a busy machine a worker may come too late for a call
            break
        time.sleep(pause)
    assert max(took_part) == threads


def test_workers_fall_asleep_and_use_no_time():
    for _ in range(3):
        Count().run(3)
    deadline = time.monotonic() + 60
    while set(mailbox_states()) != {lines.ASLEEP} and time.monotonic() < deadline:
        time.sleep(ASLEEP_BY_NOW)
    assert set(mailbox_states()) == {lines.ASLEEP}
    used = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - used < 0.02


@functools.cache
def waking():
    """Compiled functions by which one thread wakes another. `sleep` and `wake` return the core that they are on."""
    from numba import njit

    from gpuconv.simd import tile, waiting

    @njit(nogil=True)
    def sleep(lock):
        waiting.wait_for_lock(lock, -1)
        return waiting.this_core()

    @njit
    def wake(lock, thread):
        core = waiting.this_core()
        waiting.release_elsewhere(lock, thread)
        return core

    @njit
    def lock_and_thread():
        return waiting.make_lock(), waiting.this_thread()

    @njit
    def is_one_of_several(core, words):
        return waiting.is_one_of_several(core, tile.address_of(words))

    return SimpleNamespace(sleep=sleep, wake=wake, begin=lock_and_thread, is_one_of_several=is_one_of_several)


@pytest.mark.skipif(sys.platform != "linux", reason="which cores a thread may use is asked of Linux alone")
@pytest.mark.parametrize("most", [1, 1024])
def test_a_sleeper_wakes_on_another_core_and_may_use_all_that_it_might(most):
    functions, known, slept_on, is_over = waking(), [], [], []
    cores = set(sorted(os.sched_getaffinity(0))[:most])

    def sleeper():
        os.sched_setaffinity(0, cores)
        known.extend((*functions.begin(), threading.get_native_id()))
        while not is_over:
            slept_on.append(functions.sleep(known[0]))

    def wakes_elsewhere():
        time.sleep(0.003)
        times = len(slept_on) + 1
        core = functions.wake(*known[:2])
        while len(slept_on) < times:
            time.sleep(0.001)
        assert os.sched_getaffinity(known[2]) == cores
        return slept_on[-1] != core

    thread = threading.Thread(target=sleeper, daemon=True)
    thread.start()
    while len(known) < 3:
        time.sleep(0.01)
    elsewhere = 0
    for _ in range(3):  # it may be moved before it begins, by processes that are busy for a while
        elsewhere = sum(wakes_elsewhere() for _ in range(20))
        if len(cores) == 1 or elsewhere >= 15:
            break
    is_over.append(True)
    functions.wake(*known[:2])
    thread.join()
    assert len(cores) == 1 or elsewhere >= 15


def test_the_core_of_the_caller_is_left_out_if_there_are_others():
    is_one_of_several, words = waking().is_one_of_several, np.zeros(16, np.int64)
    for others in ([], [0], [63], [64], [500]):
        words[:] = 0
        for core in others:
            words.view(np.uint64)[core // 64] |= np.uint64(1 << core % 64)
        for core in (0, 63, 64, 65, 1023):
            assert not is_one_of_several(core, words)  # not among them, or alone
            word = words.view(np.uint64)[core // 64]
            words.view(np.uint64)[core // 64] |= np.uint64(1 << core % 64)
            assert is_one_of_several(core, words) == (others not in ([], [core]))
            words.view(np.uint64)[core // 64] = word
        assert not is_one_of_several(-1, words)
        assert not is_one_of_several(1024, words)


def test_a_small_call_leaves_sleepers_alone_unless_calls_are_frequent(monkeypatch):
    """What counts is the time between the end of a call and the beginning of the next, however long calls take."""
    from gpuconv.simd import sharing

    real, woken, times = sharing.share, [], []
    monkeypatch.setattr(sharing, "share", lambda *arguments: (woken.append(arguments[4]), real(*arguments)))
    monkeypatch.setattr(parallel_loops, "time", SimpleNamespace(perf_counter=lambda: times.pop(0)))
    monkeypatch.setattr(parallel_loops, "_last_end", -1.0)
    count, soon = Count(3, 0), parallel_loops.FREQUENT / 2
    for begin, end, macs in [(10, 20, 9), (20 + soon, 30, 9), (40, 50, 9), (60, 70, parallel_loops.WORTH_WAKING)]:
        times[:] = [begin, end] if macs == 9 else [end]
        count.run(2, macs=macs)
        assert not times
    assert woken == [False, True, False, True]
    assert count.once()


@pytest.mark.parametrize("state", [lines.FREE, lines.ASLEEP, lines.HELPING, lines.IN_PYTHON])
def test_nobody_waits_for_a_worker_that_does_not_come(monkeypatch, state):
    """Its thread has no core, say. When it comes to it, it finds that nobody needs it any more."""
    from numba import njit

    from gpuconv.simd import waiting

    @njit
    def make_lock():
        return waiting.make_lock()

    mailbox, address = lines.lines(1)
    mailbox[0, lines.STATE], mailbox[0, lines.LOCK] = state, make_lock()
    monkeypatch.setattr(thread_pool, "mailboxes", lambda *_: (address, 1))
    count = Count()
    count.run(2)
    assert count.once()
    assert set(count.threads) == {0}
    assert mailbox[0, lines.STATE] == (lines.FREE if state == lines.ASLEEP else state)


def test_who_comes_late_finds_the_gate_closed_and_who_comes_in_time_does_not():
    from numba import njit

    from gpuconv.simd import sharing

    @njit
    def help_at(gate):  # what only compiled code calls cannot be called from Python
        sharing._help(gate)

    count, (gate, address) = Count(microseconds=0), lines.lines(1)
    gate[0, lines.JOB], gate[0, lines.ENTERED], gate[0, lines.THREADS] = count.job.address, 1, 2
    help_at(address)
    assert not count.times.any()
    gate[0, lines.OPEN] = 1
    help_at(address)
    assert count.once()
    assert set(count.threads) == {1}
    count.job.block[lines.NEXT] = 0
    help_at(address)  # as many threads as the call asked for are there
    assert count.once()
    assert gate[0, lines.INSIDE] == 0


def test_the_caller_leaves_last():
    from gpuconv.simd import sharing

    count, (gate, address), (mailbox, of_mailbox) = Count(microseconds=0), lines.lines(1), lines.lines(1)
    gate[0, lines.INSIDE] = 1
    leaving = threading.Thread(
        target=sharing.share, args=(address, count.job.address, True, 2, True, of_mailbox, 1), daemon=True
    )
    leaving.start()
    leaving.join(0.1)
    assert leaving.is_alive()
    assert count.once()
    assert not mailbox.any()
    gate[0, lines.INSIDE] = 0
    leaving.join(60)
    assert not leaving.is_alive()


def test_jobs_one_after_another():
    counts = [Count(20) for _ in range(3)]
    for _ in range(2):
        for count in counts:
            count.times[:] = 0
        parallel_loops.run(2, [count.job for count in counts])
        assert all(count.once() for count in counts)
    parallel_loops.run(2, [])


def test_a_long_job_is_cut_into_slices_with_nobody_inside_between_them(monkeypatch):
    from gpuconv.simd import sharing

    real, inside = sharing.share, []

    def watched(gate, *arguments):
        real(gate, *arguments)
        inside.append(next(int(line[0, lines.INSIDE]) for line in parallel_loops._gates if line.ctypes.data == gate))

    monkeypatch.setattr(sharing, "share", watched)
    counts = [Count(300, 100), Count(7)]
    for _ in range(2):
        del inside[:]
        for count in counts:
            count.times[:] = 0
        parallel_loops.run(2, [count.job for count in counts], macs=parallel_loops.SLICED_MACS)
        assert all(count.once() for count in counts)
        assert len(inside) > 4
        assert not any(inside)
    counts[0].run(2)
    assert counts[0].once()


def test_no_more_threads_than_were_ever_asked_at_a_time():
    for _ in range(3):
        Count().run(3)
    before = len(thread_pool._workers)
    count = Count(3, 0)
    for _ in range(200):
        count.run(3)
    assert len(thread_pool._workers) == before


def test_a_call_and_its_workers_let_go_of_what_it_held():
    class Held:
        pass

    def work(held):
        return lambda _: held

    for _ in range(50):
        held = Held()
        seen = weakref.ref(held)
        Count(8, 0, keeps=held).run(2)
        cpu.parallel_for(range(8), lambda held=held: work(held), 2)
        del held
        assert seen() is None


def test_jobs_of_python_between_compiled_ones():
    count = Count(20, 10)
    for i in range(100):
        done = []
        cpu.parallel_for(range(20), lambda done=done: done.append, 3)
        assert sorted(done) == list(range(20))
        count.run(3)
        assert count.once()
        if i % 25 == 0:
            time.sleep(ASLEEP_BY_NOW)


def test_a_job_of_python_reaches_workers_that_are_in_compiled_code():
    took_part = set()

    def worker():
        def work(_):
            took_part.add(threading.get_ident())
            time.sleep(0.001)

        return work

    for pause in (0, ASLEEP_BY_NOW):
        took_part.clear()
        deadline = time.monotonic() + 60
        while len(took_part) < 2 and time.monotonic() < deadline:
            Count(20, 0).run(2)
            time.sleep(pause)
            cpu.parallel_for(range(20), worker, 2)
        assert len(took_part) >= 2


class Sizes(NamedTuple):
    rows: int
    columns: int


def test_a_loop_receives_its_arguments_as_they_are():
    from numba import njit

    from gpuconv.simd.arguments import arguments
    from gpuconv.simd.waiting import Turn

    @njit(nogil=True)
    def add_up(job, thread, kinds):
        turn = Turn(job, thread)
        sizes, record, shape, pair, x, out, last = arguments(turn, kinds)
        for i in range(sizes.rows):
            for j in range(sizes.columns):
                out[i] += x[i, j] * pair[0][0] + pair[1][j, i]
        out[0] += 1000 * record.b + 10000 * len(shape[0]) + 100000 * len(shape[1])
        out[1] += last

    x, both = np.arange(12.0).reshape(2, 6)[:, ::2], (np.array([10]), np.arange(6).reshape(3, 2))
    record = np.array([(5, 7)], [("a", np.int64), ("b", np.int64)])[0]
    outs = [np.zeros(2), np.zeros(2)]
    job = Job(add_up, Sizes(2, 3), record, ((0,), (0, 0)), both, x, Each(outs), -3)
    for thread in range(2):
        parallel_loops.run(1, [job])
        job.block[job.place(5)] += 8 * (1 - 2 * thread)  # the list of addresses begins with the next one, or the first
    want = x.sum(1) * 10 + both[1].sum(0) + [217000, -3]
    assert np.array_equal(outs[0], want)
    assert np.array_equal(outs[1], want)
    job.block[job.place(0) + Sizes._fields.index("rows")] = 1
    parallel_loops.run(1, [job])
    assert np.array_equal(outs[0] - want, [want[0], -3])


def test_without_any_more_threads_the_caller_does_it_all(monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_pool, "_workers", {})
    monkeypatch.setattr(thread_pool._thread, "start_new_thread", start)
    monkeypatch.setattr(gpuconv.settings, "threads", 3)
    count = Count()
    count.run(3)
    assert count.once()
    done = []
    cpu.parallel_for(range(50), lambda: done.append, 3)
    assert sorted(done) == list(range(50))


def test_callers_side_by_side(monkeypatch):
    monkeypatch.setattr(gpuconv.settings, "threads", 2)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 60, 60, 16), np.float32), rng.standard_normal((3, 3, 16, 32), np.float32)
    want = gpuconv.conv2d(x, w, algorithm="direct")
    wrong = []

    def call():
        wrong.extend(i for i in range(30) if not np.array_equal(gpuconv.conv2d(x, w, algorithm="direct"), want))

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_after_a_fork():
    statement = (
        "import os, threading, time; import numpy as np; import gpuconv; gpuconv.settings.threads = 2; "
        "x, w = np.ones((2, 90, 90, 16), 'f'), np.ones((3, 3, 16, 32), 'f'); "
        "f = lambda: gpuconv.conv2d(x, w, algorithm='direct').sum(); "
        "before = f(); pid = os.fork(); same = f() == before; "
        "from gpuconv.cpu import thread_pool\nwhile not pid and not thread_pool._workers: time.sleep(0.01)\n"
        "pid or os._exit(0 if same and len(thread_pool._workers) == 1 else 1); "
        "assert os.waitpid(pid, 0)[1] == 0 and same"
    )
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", statement], check=True)


def test_a_geometry_that_travels_has_the_hash_of_the_process_it_comes_to():
    statement = (
        "import pickle, sys, gpuconv; g = gpuconv.ConvGeometry.create(1, (5, 5), 2, 3, (3, 3)); hash(g); "
        "sys.stdout.buffer.write(pickle.dumps(g))"
    )
    sent = subprocess.run(
        [sys.executable, "-c", statement], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    ).stdout
    g = gpuconv.ConvGeometry.create(1, (5, 5), 2, 3, (3, 3))
    assert {pickle.loads(sent): "found"}[g] == "found"
