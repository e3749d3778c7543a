"""Training that is interrupted: at every place, twice, by others' signals, and where SIGINT is ignored."""

import gc
import json
import random
import signal
import sys
import threading
import time

import alarms
import numpy as np
import pytest
from training import all_contents

from gpuconv import layers
from gpuconv.models import Sequential
from gpuconv.models.fit import Fit
from gpuconv.models.interrupts import CtrlC, until_done

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise")

SETTINGS = {"epochs": 3, "batch_size": 10, "validation": 0.2, "patience": 9}


def network():
    """Without convolutions: every kind of state there is, and short steps."""
    parts = [layers.BatchNorm2D(), layers.Flatten(), layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(2)]
    return Sequential(parts, optimizer="adam(lr=0.02)", rng=3)


def convolving():
    """Every kind of layer, with compiled loops, BLAS and FFTs in a step."""
    parts = [
        layers.Conv2D(4, 3, "same", acti_fn="relu"),
        layers.BatchNorm2D(),
        layers.MaxPool2D(2),
        layers.DepthwiseConv2D(3, pad="same"),
        layers.Conv2D(6, 3, pad="same", algorithm="gemm"),
        layers.AvgPool2D(2, pad="same"),
        layers.ConvTranspose2D(3, 2),
        layers.Conv2D(4, 3, algorithm="fft"),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(2),
    ]
    return Sequential(parts, optimizer="adam(lr=0.02)", rng=3)


def samples(count=40, side=3):
    rng = np.random.default_rng(5)
    return rng.random((count, side, side, 2), np.float32), np.arange(count) % 2


def state_of(model):
    kept = ("params", "buffers", "cache", "seed", "step")
    state = [{k: v for k, v in one.items() if k in kept} for one in all_contents(model)]
    return json.dumps(state, sort_keys=True, default=repr)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.fixture
def handler():
    """SIGINT as a Python program has it, also where the tests run in the background; and what was there, afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def steps_of(make, data):
    """The states after whole steps of a run that nothing interrupts, the model at its end, and its history."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = Fit._batch

        def spied(self, *arguments):
            if not seen:
                seen.append(state_of(self.model))
            original(self, *arguments)
            seen.append(state_of(self.model))

        patch.setattr(Fit, "_batch", spied)
        model = make()
        history = model.fit(*data, **SETTINGS)
    return {*seen, state_of(model)}, model, history


@pytest.fixture(scope="module")
def whole_steps():
    return steps_of(network, samples())


def resumed_is_right(path, whole_steps, make=network, data=None):
    model = make()
    history = model.fit(*(data or samples()), **SETTINGS, checkpoint=path, resume=True)
    return state_of(model) == state_of(whole_steps[1]) and history == whole_steps[2]


# -------------------------------------------------------------------------------------------------- at one place


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("call", ["_forward", "_backward", "update"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_step_cut_short_is_undone(call, layer, after, error, path, whole_steps, handler):
    model = network()
    part, times = model.layers[layer], [0]
    original = getattr(part, call)

    def cut(*arguments, **keywords):
        times[0] += 1
        if times[0] == 6 and not after:
            raise error
        result = original(*arguments, **keywords)
        if times[0] == 6:
            raise error
        return result

    setattr(part, call, cut)
    if error is KeyboardInterrupt:
        history = model.fit(*samples(), **SETTINGS, checkpoint=path)
        assert history.interrupted
        assert history.loss == whole_steps[2].loss[: history.epochs]
    else:
        with pytest.raises(error):
            model.fit(*samples(), **SETTINGS, checkpoint=path)
    delattr(part, call)
    assert state_of(model) in whole_steps[0]
    assert not any(one.X for one in model.layers)
    assert resumed_is_right(path, whole_steps)


@pytest.mark.parametrize("where", ["evaluate", "state_dict", "content"])
def test_between_two_epochs(where, path, whole_steps, handler, monkeypatch):
    """In the validation, while the best is kept, and while a checkpoint is made."""
    model, times = network(), [0]
    original = getattr(model, where)

    def cut(*arguments, **keywords):
        times[0] += 1
        if times[0] == 2:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(model, where, cut, raising=False)
    history = model.fit(*samples(), **SETTINGS, checkpoint=path)
    assert history.interrupted
    assert history.loss == whole_steps[2].loss[: history.epochs]
    assert model.epochs_done == history.epochs
    assert state_of(model) in whole_steps[0]
    assert resumed_is_right(path, whole_steps)


def test_the_way_back_may_be_interrupted_too(whole_steps, handler, monkeypatch):
    """And where it was cut short for good, whoever uses the model next finishes it."""
    model = network()
    part = model.layers[2]
    original, times = part.update, [0]

    def cut(*arguments):
        times[0] += 1
        if times[0] == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    part.update = cut
    monkeypatch.setattr("gpuconv.models.fit.until_done", lambda act: None)
    history = model.fit(*samples(), **SETTINGS)
    del part.update
    assert history.interrupted
    saved = model.state_dict()
    other = network()
    other.fit(*samples(), **{**SETTINGS, "epochs": 1})  # the interrupt came in the second
    assert {k: v.tobytes() for k, v in saved.items()} == {k: v.tobytes() for k, v in other.state_dict().items()}


def test_what_must_be_done_is_tried_again():
    times = []

    def act():
        times.append(1)
        if len(times) < 5:
            raise KeyboardInterrupt

    assert isinstance(until_done(act), KeyboardInterrupt)
    assert len(times) == 5
    assert until_done(lambda: None) is None


# -------------------------------------------------------------------------------------------------- a storm


@pytest.mark.parametrize(("make", "size"), [(network, (40, 3)), (convolving, (20, 9))], ids=["dense", "convolving"])
def test_a_storm_of_interrupts(make, size, path, handler, monkeypatch):
    """KeyboardInterrupt from the handler of a timer, which nothing of ours holds back: one, or several in a row."""
    chance, data = random.Random(0), samples(*size)
    whole_steps = steps_of(make, data)
    # Between `open` and `with` an interrupt leaves a file to be closed by the garbage collector, which remarks on it.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def strike(_, frame):
        while frame is not None and armed:
            if frame.f_code is Fit.run.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back

    armed = []  # on a busy machine a signal may arrive long after its timer was stopped, by way of another thread
    streams = sys.stdout, sys.stderr
    make().fit(*data, **SETTINGS, checkpoint=path)
    started = time.monotonic()
    make().fit(*data, **SETTINGS, checkpoint=path)
    length = time.monotonic() - started
    threads = threading.active_count()
    ended = {"interrupted": 0, "raised": 0, "whole": 0}
    with alarms.handled_by(strike):
        while sum(ended.values()) < 300 and (time.monotonic() < started + 15 or ended["interrupted"] < 20):
            path.unlink(missing_ok=True)
            model = make()
            again = chance.choice([0, 0, 5e-5, 2e-4, 1e-3])
            armed.append(1)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, length), again)
            try:
                history = model.fit(*data, **SETTINGS, checkpoint=path)
            except KeyboardInterrupt:
                ended["raised"] += 1
            else:
                ended["interrupted" if history.interrupted else "whole"] += 1
                assert history.loss == whole_steps[2].loss[: history.epochs]
                assert history.interrupted or history == whole_steps[2]
            signal.setitimer(signal.ITIMER_REAL, 0)
            armed.clear()
            model.settle()
            assert not model.layers[-1].params or state_of(model) in whole_steps[0]  # or not all layers are built
            assert resumed_is_right(path, whole_steps, make, data)
            assert in_effect() is handler
            assert (sys.stdout, sys.stderr) == streams
            assert threading.active_count() == threads
    gc.collect()
    assert ended["interrupted"] >= 20


def in_effect():
    """The handler of SIGINT, past one of training that is over."""
    found = signal.getsignal(signal.SIGINT)
    return found.found_by_next(None) if isinstance(found, CtrlC) else found


# -------------------------------------------------------------------------------------------------- Ctrl-C


def interrupting(times, at=6):
    """A model that sends itself so many SIGINT in a forward."""
    model = network()
    original, seen = model.layers[2]._forward, [0]

    def forward(xp, X, training):
        seen[0] += training
        if training and seen[0] == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(xp, X, training)

    model.layers[2]._forward = forward
    return model


@pytest.mark.parametrize(("times", "steps"), [(1, 6), (2, 5)])
def test_the_first_waits_for_the_batch_and_the_second_does_not(times, steps, path, whole_steps, handler):
    model = interrupting(times)
    assert model.fit(*samples(), **SETTINGS, checkpoint=path).interrupted
    assert model.layers[2].cache["step"] == steps
    assert signal.getsignal(signal.SIGINT) is handler
    assert resumed_is_right(path, whole_steps)


@pytest.mark.parametrize(("times", "steps"), [(2, 6), (3, 4)])
def test_a_second_in_the_update_waits_for_its_end_and_a_third_does_not(times, steps, handler, whole_steps):
    model = network()
    original = model.layers[2].update

    def update(*arguments):
        if model.layers[2].cache.get("step") == 5:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        original(*arguments)

    model.layers[2].update = update
    assert model.fit(*samples(), **SETTINGS).interrupted
    assert model.layers[2].cache["step"] == steps
    assert state_of(model) in whole_steps[0]


def test_a_second_while_the_checkpoint_is_written_waits_for_it(path, whole_steps, handler, monkeypatch):
    model = interrupting(1)
    original = model.content

    def content():
        if model.epochs_done and model.layers[2].cache["step"] == 6:
            signal.raise_signal(signal.SIGINT)
        return original()

    monkeypatch.setattr(model, "content", content)
    assert model.fit(*samples(), **SETTINGS, checkpoint=path).interrupted
    assert resumed_is_right(path, whole_steps)


@pytest.mark.parametrize("found", ["ignored", "python", "default"])
def test_what_was_found_is_put_back(found, handler):
    mine = {"ignored": signal.SIG_IGN, "python": lambda *_: heard.append(1), "default": signal.SIG_DFL}[found]
    heard = []
    signal.signal(signal.SIGINT, mine)
    history = interrupting(1 if found == "default" else 2).fit(*samples(), **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is mine
    assert history.interrupted == (found != "ignored")
    assert len(heard) == (found == "python")


def test_a_handler_set_during_training_stays(handler):
    def mine(*_):
        pass

    network().fit(*samples(), **SETTINGS, on_epoch=lambda _: signal.signal(signal.SIGINT, mine) and None)
    assert signal.getsignal(signal.SIGINT) is mine


def test_a_handler_of_other_than_python_code_stays(handler, monkeypatch):
    """For which getsignal returns None; signal.signal could not put it back."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("replaced"))
    assert network().fit(*samples(), **SETTINGS).epochs == 3


def test_two_close_together_do_not_wait_for_each_other(handler, monkeypatch):
    """A handler that is interrupted by itself, wherever that may be, ends: it takes no lock."""
    model, original, nested = interrupting(1), CtrlC.is_in_use, []

    def is_in_use(self, frame):
        if not nested:
            nested.append(1)
            signal.raise_signal(signal.SIGINT)
        return original(self, frame)

    monkeypatch.setattr(CtrlC, "is_in_use", is_in_use)
    assert model.fit(*samples(), **SETTINGS).interrupted


def test_a_handler_left_behind_steps_aside(handler, monkeypatch):
    """As where an interrupt comes in the way of putting back what was there."""
    with monkeypatch.context() as patch:
        patch.setattr(CtrlC, "put_back", lambda self: None)
        network().fit(*samples(), **SETTINGS)
    assert isinstance(signal.getsignal(signal.SIGINT), CtrlC)
    network().fit(*samples(), **SETTINGS)
    assert in_effect() is handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("found", ["python", "default"])
def test_a_handler_left_behind_holds_nothing_back(found, handler, monkeypatch):
    """Where no training is going on, the first Ctrl-C interrupts, as it did before."""
    heard = []
    if found == "python":
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(CtrlC, "put_back", lambda self: None)
        network().fit(*samples(), **SETTINGS)
    left = signal.getsignal(signal.SIGINT)
    assert isinstance(left, CtrlC)
    if found == "python":
        signal.raise_signal(signal.SIGINT)
        assert heard == [1]
    else:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not left.requested
    assert signal.getsignal(signal.SIGINT) is not left


def test_outside_the_main_thread_nothing_is_arranged(handler):
    seen = []
    thread = threading.Thread(
        target=lambda: network().fit(
            *samples(), **SETTINGS, on_epoch=lambda _: seen.append(signal.getsignal(signal.SIGINT)) and None
        )
    )
    thread.start()
    thread.join()
    assert seen == [handler] * 3


def test_a_loss_that_keeps_its_gradient_finds_it_as_it_was():
    from gpuconv import losses

    class Toward(losses.Loss):
        name = "toward"

        def both(self, xp, prediction, target, count):
            return (prediction * target).sum() / 8, target

        def check(self, shape, dtype, target):
            pass

    X, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    Sequential([layers.Dense(2, "relu", rng=0)], loss=Toward()).fit(X, y, shuffle=False)
    assert (y == 1).all()
