"""A function that is shielded runs to its end, whatever becomes of its caller."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alarms
import pytest

import gpuconv
from gpuconv.support import shielded as module
from gpuconv.support.shielded import shielded

LONG = 60
"""Seconds after which a test that waits gives up."""


class Slow:
    """A function that waits until it is let go."""

    def __init__(self, outcome=7):
        self.outcome, self.calls = outcome, 0
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self):
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(LONG)
        self.ended.set()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def interrupt_once(slow):
    """Interrupt the main thread once the function has begun."""

    def wait_and_interrupt():
        slow.begun.wait(LONG)
        _thread.interrupt_main()

    thread = threading.Thread(target=wait_and_interrupt)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    until(lambda: not module._running and not module._threads)


def run_program(program):
    environment = {**os.environ, "PYTHONPATH": str(Path(gpuconv.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
        env=environment,
    )


def test_the_result_is_that_of_the_function_and_its_arguments():
    assert shielded(divmod, 17, 5) == (3, 2)


def test_it_runs_in_another_thread():
    assert shielded(threading.get_ident) != threading.get_ident()


def test_an_error_is_raised_in_the_caller_and_keeps_nothing_alive():
    class Thing:
        pass

    def fails():
        thing = Thing()
        things.append(weakref.ref(thing))
        raise OSError("no disk")

    things = []
    gc.disable()
    try:
        try:  # pytest.raises would keep the error
            shielded(fails)
        except OSError as error:
            text = str(error)
        until(lambda: not module._threads)
        assert text == "no disk"
        assert [thing() for thing in things] == [None]
    finally:
        gc.enable()


def test_an_argument_without_a_hash_is_an_error_of_the_caller():
    with pytest.raises(TypeError, match="unhashable"):
        shielded(print, [])


def test_an_interrupted_caller_leaves_it_running_and_a_later_call_waits_for_it():
    slow = Slow()
    interrupter = interrupt_once(slow)
    with pytest.raises(KeyboardInterrupt):
        shielded(slow)
    interrupter.join()
    assert not slow.ended.is_set()
    with ThreadPoolExecutor(2) as pool:
        later = [pool.submit(shielded, slow) for _ in range(2)]
        until(lambda: len(module._threads) == 3)
        slow.go_on.set()
        assert [one.result(LONG) for one in later] == [7, 7]
    assert slow.calls == 1


def test_equal_calls_share_an_error():
    slow = Slow(ValueError("broken"))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(shielded, slow) for _ in range(2)]
        until(lambda: len(module._threads) == 2)
        slow.go_on.set()
        errors = [one.exception(LONG) for one in calls]
    assert [str(error) for error in errors] == ["broken", "broken"]
    assert slow.calls == 1


def test_an_outcome_is_not_kept():
    calls = []
    shielded(calls.append, 1)
    shielded(calls.append, 1)
    assert calls == [1, 1]


def test_other_calls_do_not_wait():
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shielded, slow)
        assert slow.begun.wait(LONG)
        assert shielded(abs, -3) == 3
        slow.go_on.set()
        assert first.result(LONG) == 7


def test_what_is_shielded_may_shield():
    def outer():
        return threading.get_ident(), shielded(threading.get_ident), shielded(inner)

    def inner():
        return threading.get_ident()

    assert len(set(shielded(outer))) == 1


def test_a_function_may_shield_itself():
    def countdown(left):
        return left and shielded(countdown, left - 1)

    assert shielded(countdown, 3) == 0


def test_where_no_thread_can_be_started_it_runs_in_place(monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", start)
    assert shielded(threading.get_ident) == threading.get_ident()


def test_interrupts_at_every_moment_leave_later_calls_whole():
    """Real signals, spread over some milliseconds, so that they come before, in and after the wait."""

    def work(number):
        done.append(number)
        return number

    done, count = [], 0
    try:
        with alarms.handled_by(signal.default_int_handler):
            for number in range(400):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (number % 100 + 1))
                    shielded(work, number)
                except KeyboardInterrupt:
                    count += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert shielded(work, number) == number
    except KeyboardInterrupt:  # it came when the timer was being stopped
        count += 1
    assert count
    assert done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
class TestForks:
    PROGRAM = """
        import os, threading, time
        from gpuconv.support import shielded as module
        from gpuconv.support.shielded import shielded

        ended = []

        def slow():
            begun.set()
            time.sleep(0.3)
            ended.append(True)
            return 5

        begun = threading.Event()
        caller = threading.Thread(target=shielded, args=(slow,))
        caller.start()
        begun.wait()
        child = os.fork()
        assert ended, "forked in the middle of a run"
        if child == 0:
            assert not module._running and not module._threads
            os._exit(shielded(slow))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        caller.join()
        print("done")
        """

    def test_a_fork_waits_for_a_run_and_the_child_starts_anew(self):
        done = run_program(self.PROGRAM)
        assert done.stdout == "done\n", done.stderr

    def test_a_run_may_fork(self):
        done = run_program(
            """
            import os
            from gpuconv.support.shielded import shielded

            def forks():
                child = os.fork()
                if child == 0:
                    os._exit(shielded(abs, -6))
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

            print(shielded(forks))
            """
        )
        assert done.stdout == "6\n", done.stderr


def test_the_process_ends_after_the_run():
    """What compiles in C++ must not be there when that is torn down."""
    done = run_program(
        """
        import _thread, threading, time
        from gpuconv.support.shielded import shielded

        def slow():
            _thread.interrupt_main()
            time.sleep(0.3)
            print("ended")

        try:
            shielded(slow)
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert done.stdout == "interrupted\nended\n", done.stderr
    assert done.returncode == 0


def test_it_works_while_the_process_ends():
    done = run_program(
        """
        import atexit
        from gpuconv.support.shielded import shielded

        class AtTheVeryEnd:
            def __del__(self):
                print(shielded(abs, -2), flush=True)

        until_the_very_end = AtTheVeryEnd()
        atexit.register(lambda: print(shielded(abs, -1)))
        """
    )
    assert done.stdout == "1\n2\n", done.stderr
