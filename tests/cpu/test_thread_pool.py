"""Threads that compiled loops share their tasks with, asked awake or asleep, by one caller or several."""

import os
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import gpuconv
from gpuconv import cpu
from gpuconv.cpu import parallel_loops, thread_pool

pytest.importorskip("numba")

ASLEEP_BY_NOW = 0.05
"""Seconds: workers stay awake for some 100 us."""


def counting_job(taken, tasks=200, seconds=1e-4):
    """Takes tasks as a compiled loop does; each notes the thread that took it."""
    from gpuconv.simd import waiting

    def job(turn):
        if not waiting.enter(turn):
            return
        try:
            while (task := waiting.next_task(turn)) < tasks:
                taken.append((task, threading.get_ident()))
                time.sleep(seconds)
        finally:
            waiting.leave(turn)

    return job


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Workers do not wait for a compiler."""
    parallel_loops.run(1, [counting_job([], 1)])


@pytest.mark.parametrize("pause", [0, ASLEEP_BY_NOW], ids=["awake", "asleep"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_task_is_done_once_and_by_all_threads(threads, pause):
    took_part = set()
    for _ in range(50):
        taken = []
        parallel_loops.run(threads, [counting_job(taken)])
        assert sorted(task for task, _ in taken) == list(range(200))
        took_part.add(len({thread for _, thread in taken}))
        if threads in took_part:  # on a busy machine a worker may come too late for a call
            break
        time.sleep(pause)
    assert max(took_part) == threads


def test_a_worker_waits_for_a_caller_that_is_held_up():
    """As on a busy machine: if it gave up at once, the caller would do all of a long call alone."""
    took_part = set()
    for _ in range(20):
        taken = []
        job = counting_job(taken)

        def late(turn, job=job):
            if turn.is_caller:
                time.sleep(0.002)
            job(turn)

        parallel_loops.run(2, [late])
        took_part.add(len({thread for _, thread in taken}))
    assert 2 in took_part


def test_a_call_that_fails_before_its_loop_does_not_wait_for_its_workers_patience():
    taken = []

    def failing(turn):
        if turn.is_caller:
            raise MemoryError("full")
        counting_job(taken)(turn)

    times = []
    for _ in range(10):
        start = time.perf_counter()
        with pytest.raises(MemoryError, match="full"):
            parallel_loops.run(2, [failing])
        times.append(time.perf_counter() - start)
        assert not taken
    assert min(times) < 5e-3


def test_jobs_one_after_another():
    taken = [[], [], []]
    parallel_loops.run(2, [counting_job(some, 20) for some in taken])
    assert all(sorted(task for task, _ in some) == list(range(20)) for some in taken)
    parallel_loops.run(2, [])


def test_a_long_job_is_cut_into_slices_with_nobody_inside_between_them():
    taken, inside = [], []
    job = counting_job(taken, 300, 1e-4)

    def watched(turn):
        if turn.is_caller:
            inside.append(int(turn.gate[parallel_loops._waiting().INSIDE]))
        job(turn)

    parallel_loops.run(2, [watched], macs=parallel_loops.SLICED_MACS)
    assert sorted(task for task, _ in taken) == list(range(300))
    assert len(inside) > 2
    assert not any(inside)


def test_no_more_threads_than_were_ever_asked_at_a_time():
    for _ in range(3):
        parallel_loops.run(3, [counting_job([])])
    before = len(thread_pool._workers)
    for _ in range(200):
        parallel_loops.run(3, [counting_job([], 3, 0)])
    assert len(thread_pool._workers) == before


def test_workers_let_go_of_what_a_call_held():
    class Held:
        pass

    for _ in range(100):
        held = Held()
        seen = weakref.ref(held)
        job = counting_job([], 8, 1e-5)
        parallel_loops.run(2, [lambda turn, job=job, _=held: job(turn)])
        del held
        assert seen() is None


def test_a_worker_that_fails_leaves_its_tasks_to_the_others():
    taken = []
    job = counting_job(taken)

    def failing(turn):
        if not turn.is_caller:
            raise MemoryError
        job(turn)

    for _ in range(3):
        taken.clear()
        parallel_loops.run(3, [failing])
        assert sorted(task for task, _ in taken) == list(range(200))
    parallel_loops.run(3, [job])


def test_an_error_of_the_caller_is_raised_when_the_others_are_done():
    taken = []
    job = counting_job(taken, 200)

    def failing(turn):
        if turn.is_caller:
            waiting = parallel_loops._waiting()
            waiting.enter(turn)
            started = time.monotonic()
            while not taken and time.monotonic() < started + 60:  # on a busy machine a worker may come late
                time.sleep(0.001)
            turn.gate[waiting.LIMIT] = 0
            waiting.leave(turn)
            raise MemoryError("full")
        job(turn)

    with pytest.raises(MemoryError, match="full"):
        parallel_loops.run(2, [failing])
    done = len(taken)
    time.sleep(0.01)
    assert len(taken) == done > 0
    parallel_loops.run(2, [job])


def test_who_belongs_to_another_call_finds_the_gate_closed():
    """Even if that call is at its loop, with the very gate of the one that ended."""
    waiting = parallel_loops._waiting()
    gate, _ = parallel_loops._take_gate()
    now, late = waiting.Turn(gate, 8, True), waiting.Turn(gate, 7, False)
    assert waiting.enter(now)
    assert not waiting.enter(late)
    assert gate[waiting.INSIDE] == 0
    assert waiting.enter(now._replace(is_caller=False))
    waiting.leave(now._replace(is_caller=False))
    waiting.leave(now)
    assert not waiting.enter(now._replace(is_caller=False))
    assert not waiting.enter(late)


def test_the_caller_leaves_last():
    waiting = parallel_loops._waiting()
    caller = waiting.Turn(parallel_loops._take_gate()[0], 9, True)
    worker = caller._replace(is_caller=False)
    waiting.enter(caller)
    assert waiting.enter(worker)
    leaving = threading.Thread(target=waiting.leave, args=(caller,), daemon=True)
    leaving.start()
    leaving.join(0.1)
    assert leaving.is_alive()
    waiting.leave(worker)
    leaving.join(60)
    assert not leaving.is_alive()


def test_without_any_more_threads_the_caller_does_it_all(monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_pool, "_workers", [])
    monkeypatch.setattr(thread_pool._thread, "start_new_thread", start)
    monkeypatch.setattr(gpuconv.settings, "threads", 3)
    taken = []
    parallel_loops.run(3, [counting_job(taken)])
    assert sorted(task for task, _ in taken) == list(range(200))
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
