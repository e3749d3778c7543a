"""The crew: threads that compiled loops share their tasks with, asked awake or asleep, by one caller or several."""

import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from functools import cache

import numpy as np
import pytest

import gpuconv
from gpuconv.algorithms import crew

pytest.importorskip("numba")

ASLEEP_BY_NOW = 0.05
"""Seconds: members stay awake for some 100 us."""


@cache
def compiled_take():
    from gpuconv.simd.tile import compiled, next_task

    @compiled
    def take(counter):
        return next_task(counter)

    return take


def counting_job(taken, tasks=200, seconds=1e-4):
    """Takes tasks as a compiled loop does; each notes the thread that took it."""
    take = compiled_take()

    def job(counter):
        while (task := take(counter)) < tasks:
            taken.append((task, threading.current_thread()))
            time.sleep(seconds)

    return job


@pytest.mark.parametrize("pause", [0, ASLEEP_BY_NOW], ids=["awake", "asleep"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_task_is_done_once_and_by_all_threads(threads, pause):
    for _ in range(5):
        taken = []
        crew.run(threads, [counting_job(taken)])
        assert sorted(task for task, _ in taken) == list(range(200))
        assert len({thread for _, thread in taken}) == threads
        time.sleep(pause)


def test_jobs_one_after_another():
    taken = [[], [], []]
    crew.run(2, [counting_job(some, 20) for some in taken])
    assert all(sorted(task for task, _ in some) == list(range(20)) for some in taken)
    crew.run(2, [])


def test_no_more_threads_than_were_ever_asked_at_a_time():
    for _ in range(3):
        crew.run(3, [counting_job([])])
    before = threading.active_count()
    for _ in range(200):
        crew.run(3, [counting_job([], 3, 0)])
    assert threading.active_count() == before


def test_members_let_go_of_what_a_call_held():
    class Held:
        pass

    for _ in range(100):
        held = Held()
        seen = weakref.ref(held)
        job = counting_job([], 8, 1e-5)
        crew.run(2, [lambda counter, job=job, _=held: job(counter)])
        del held
        assert seen() is None


def test_a_member_that_fails_leaves_its_tasks_to_the_others():
    taken = []
    job = counting_job(taken)

    def failing(counter):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        job(counter)

    for _ in range(3):
        taken.clear()
        crew.run(3, [failing])
        assert sorted(task for task, _ in taken) == list(range(200))
    crew.run(3, [job])


def test_an_error_of_the_caller_is_raised_when_the_others_are_done():
    taken = []
    job = counting_job(taken)

    def failing(counter):
        if threading.current_thread() is threading.main_thread():
            counter[0] += 1
            time.sleep(0.01)
            raise MemoryError("full")
        job(counter)

    with pytest.raises(MemoryError, match="full"):
        crew.run(2, [failing])
    done = len(taken)
    time.sleep(0.01)
    assert len(taken) == done > 0
    crew.run(2, [job])


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
        "pid or os._exit(0 if same and threading.active_count() == 2 else 1); "
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
