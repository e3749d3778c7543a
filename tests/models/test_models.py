"""Networks: training, early stopping, interruption, prediction, and what is refused."""

import io
import os
import signal
import sys
import threading
import types

import cupy_double
import numpy as np
import pytest
from tolerances import assert_near, assert_slope, to_numpy
from training import CLASSES, all_contents, images, network, same_training

import gpuconv
from gpuconv import layers, optimizers
from gpuconv.errors import DTypeError, GeometryError
from gpuconv.models import Sequential
from gpuconv.models.history import History
from gpuconv.models.progress import INTERVAL, Progress


class Spy(layers.Flatten):
    """Passes images on, and calls something each time."""

    def __init__(self, call):
        super().__init__()
        self.call, self.batches = call, 0

    def output_shape(self, x_shape):
        return tuple(x_shape)

    def _forward(self, xp, X, training):
        if training:
            self.batches += 1
            self.call(self.batches)
        return X, {}


def with_spy(model, call):
    return Sequential([Spy(call), *model.layers], rng=0)


# -------------------------------------------------------------------------------------------------- the circle


def test_gradients_of_the_whole(rng):
    model = network(optimizer="SGD")
    model.layers[0].acti_fn = gpuconv.activations.parse("tanh")
    model.layers[2].acti_fn = gpuconv.activations.parse("softplus")
    X, y = images(4, dtype="float64")
    loss = model.loss
    prediction = model.forward(X)
    dX = model.backward(loss.grad(prediction, y))
    for layer in model.layers:
        for key, value in layer.params.items():
            start, move = value.copy(), rng.standard_normal(value.shape)

            def at(t, layer=layer, key=key, start=start, move=move):
                layer.params[key][...] = start + t * move
                found = float(loss(model.forward(X, retain_derived=False), y))
                layer.params[key][...] = start
                return found

            assert_slope(float((layer.gradients[key] * move).sum()), at)
    move = rng.standard_normal(X.shape)
    assert_slope(float((dX * move).sum()), lambda t: float(loss(model.forward(X + t * move, False), y)))


def test_several_forwards_before_one_backward(xp):
    together, apart = network(), network()
    X, y = (xp.asarray(a) for a in images(12, dtype="float64"))
    parts = [slice(0, 4), slice(4, 6), slice(6, 12)]
    outputs = [together.forward(X[s]) for s in parts]
    gradients = [together.loss.grad(out, y[s]) for out, s in zip(outputs, parts, strict=True)]
    dXs = together.backward(gradients)
    for s, gradient, dX in zip(parts, gradients, dXs, strict=True):
        apart.forward(X[s])
        assert (to_numpy(apart.backward(gradient)) == to_numpy(dX)).all()
    for one, other in zip(together.layers, apart.layers, strict=True):
        for key, value in one.gradients.items():
            assert_near(value, to_numpy(other.gradients[key]), "float64", units=16)


def test_only_the_gradients_that_are_needed_are_made(monkeypatch):
    model = network()
    X, y = images(4)
    made = []
    for number, layer in enumerate(model.layers):
        original = layer._backward

        def spy(xp, d, x, derived, params, inputs, overwrite, number=number, original=original):
            made.append((number, params, inputs))
            return original(xp, d, x, derived, params, inputs, overwrite)

        monkeypatch.setattr(layer, "_backward", spy)
    model.pull_back([model.loss.grad(model.forward(X), y)], need_input_grad=False)
    assert made == [(4, True, True), (3, False, True), (2, True, True), (1, False, True), (0, True, False)]
    made.clear()
    model.flush_gradients()
    model.layers[0].freeze()
    model.pull_back([model.loss.grad(model.forward(X), y)], need_input_grad=False)
    assert made == [(4, True, True), (3, False, True), (2, True, False)]


def test_a_frozen_layer_in_the_middle_lets_those_below_train():
    model, (X, y) = network(), images()
    model.forward(X)
    model.layers[2].freeze()
    before = all_contents(model)
    model.fit(X, y, epochs=1)
    after = all_contents(model)
    assert after[2]["params"] == before[2]["params"]
    assert after[0]["params"] != before[0]["params"]
    model.unfreeze()
    assert all(layer.trainable for layer in model.layers)


def test_an_error_in_the_middle_leaves_every_layer_as_it_was(monkeypatch):
    model, (X, y) = network(noisy=True), images()
    model.fit(X, y)
    before = all_contents(model)
    monkeypatch.setattr(model.layers[-1], "_forward", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
    with pytest.raises(MemoryError):
        model.forward(X)
    monkeypatch.undo()
    assert all_contents(model) == before


# -------------------------------------------------------------------------------------------------- fit


def test_it_learns():
    model, (X, y) = network(), images(120)
    history = model.fit(X, y, epochs=12, batch_size=16, validation=0.25)
    assert history.epochs == len(history.val_loss) == len(history.val_accuracy) == 12
    assert history.loss[-1] < history.loss[0] / 3
    assert history.val_accuracy[-1] > 0.8
    found = model.evaluate(*images(60, seed=1))
    assert found["accuracy"] > 0.8
    assert found["loss"] < 0.6


def test_it_learns_numbers_too():
    X, _ = images(64)
    y = X.mean(axis=(1, 2))
    model = Sequential([layers.Flatten(), layers.Dense(1)], loss="squared_error", optimizer="Adam(lr=0.01)", rng=0)
    history = model.fit(X, y, epochs=30)
    assert history.loss[-1] < 0.1 * history.loss[0]
    assert history.accuracy == []
    assert set(model.evaluate(X, y)) == {"loss"}


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_one_seed_one_result(optimizer):
    X, y = images()
    models = [network(seed, f"{optimizer}(lr=0.02)", noisy=True) for seed in (7, 7, 8)]
    histories = [model.fit(X, y, epochs=2, batch_size=16, validation=0.2) for model in models]
    assert same_training(models[0], models[1])
    assert histories[0] == histories[1]
    assert not same_training(models[0], models[2])


def test_for_loops_and_matrices_learn_the_same():
    X, y = images(24, dtype="float64")
    curves = []
    for algorithm in ("loops", "gemm"):
        model = network(algorithm=algorithm)
        curves.append(np.array(model.fit(X, y, epochs=3, batch_size=8).loss))
    assert_near(curves[0], curves[1], "float64", units=2**14)  # rounding, after nine updates of Adam


def test_epochs_in_one_call_or_in_two():
    X, y = images()
    once, twice = network(noisy=True), network(noisy=True)
    once.fit(X, y, epochs=4)
    twice.fit(X, y, epochs=1)
    twice.fit(X, y, epochs=3)
    assert same_training(once, twice)
    assert twice.epochs_done == 4


def test_shuffling_takes_each_sample_once_in_another_order_each_epoch():
    seen = []
    model = Sequential([layers.Flatten(), layers.Dense(2)], loss="squared_error", rng=0)
    X = np.arange(10.0).reshape(10, 1)
    original = model.layers[0]._forward
    model.layers[0]._forward = lambda xp, x, training: (seen.extend(x.ravel().tolist()), original(xp, x, training))[1]
    model.fit(X, np.zeros((10, 2)), epochs=3, batch_size=3)
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == X.ravel().tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    seen.clear()
    model.fit(X, np.zeros((10, 2)), shuffle=False, batch_size=3)
    assert seen == X.ravel().tolist()


def test_what_is_put_aside_is_not_trained_on():
    seen = []
    X, y = np.arange(20.0).reshape(20, 1), np.zeros((20, 1))
    model = Sequential([layers.Flatten(), layers.Dense(1)], loss="squared_error", rng=0)
    original = model.layers[0]._forward
    model.layers[0]._forward = lambda xp, x, training: (
        seen.append((training, frozenset(x.ravel()))),
        original(xp, x, training),
    )[1]
    model.fit(X, y, epochs=2, batch_size=4, validation=0.25)
    trained = frozenset().union(*(rows for training, rows in seen if training))
    aside = frozenset().union(*(rows for training, rows in seen if not training))
    assert (len(trained), len(aside), trained & aside) == (15, 5, frozenset())


def test_small_batches_add_up_to_a_large_one():
    X, y = images(dtype="float64")
    whole, parts = network(optimizer="SGD(lr=0.1)"), network(optimizer="SGD(lr=0.1)")
    a = whole.fit(X, y, epochs=2, batch_size=32)
    b = parts.fit(X, y, epochs=2, batch_size=32, micro_batch=5)
    assert_near(np.array(b.loss), np.array(a.loss), "float64", units=256)
    assert b.accuracy == a.accuracy
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.cache.get("step") == other.cache.get("step")
        for key, value in one.params.items():
            assert_near(other.params[key], value, "float64", units=256)


def test_clipping_all_layers_together():
    X, y = images(dtype="float64")
    model, twin = network(optimizer="SGD(lr=1.0)"), network(optimizer="SGD(lr=1.0)")
    for m in (model, twin):
        m.forward(X[:1], retain_derived=False)
    before = model.state_dict()
    model.fit(X, y, batch_size=len(X), clip_norm=0.01, shuffle=False)
    moved = np.sqrt(sum(((value - before[key]) ** 2).sum() for key, value in model.state_dict().items()))
    assert abs(moved - 0.01) < 1e-12
    twin.fit(X, y, batch_size=len(X), shuffle=False)
    free = {key: value - before[key] for key, value in twin.state_dict().items()}
    for key, value in model.state_dict().items():
        scale = 0.01 / np.sqrt(sum((v**2).sum() for v in free.values()))
        assert_near(value - before[key], scale * free[key], "float64", units=2**12)


def test_schedules_count_updates():
    X, y = images(48)
    model = network(optimizer="SGD(scheduler='cosine(initial_lr=0.1, steps=6)')")
    model.fit(X, y, epochs=2, batch_size=16)
    assert model.layers[0].cache["step"] == 6
    before = all_contents(model)
    model.fit(X, y, epochs=1, batch_size=16)  # the rate is 0 by now
    assert [c["params"] for c in all_contents(model)] == [c["params"] for c in before]


class TestEarlyStop:
    def test_it_stops_and_goes_back_to_the_best(self):
        X, y = images(40)
        other, labels = images(20, seed=3)
        model = network(optimizer="Adam(lr=0.05)")
        states = []
        history = model.fit(
            X, (y + 1) % CLASSES, epochs=50, validation=(other, labels), patience=3,
            on_epoch=lambda h: states.append(model.state_dict()) and None,
        )  # fmt: skip
        assert history.stopped_early
        assert history.epochs == history.best_epoch + 3 < 50
        assert history.best_epoch == 1 + int(np.argmin(history.val_loss))
        best = states[history.best_epoch - 1]
        assert all(value.tobytes() == best[key].tobytes() for key, value in model.state_dict().items())

    def test_small_gains_do_not_count(self):
        X, y = images(40)
        history = network(optimizer="SGD(lr=0.0)").fit(X, y, epochs=9, patience=2, shuffle=False)
        assert (history.epochs, history.best_epoch) == (3, 1)
        history = network().fit(X, y, epochs=9, patience=2, min_delta=1e9)
        assert history.epochs == 3

    def test_on_epoch_may_end_it(self):
        history = network().fit(*images(), epochs=9, on_epoch=lambda h: h.epochs == 2)
        assert history.epochs == 2


class TestNaN:
    def test_a_nan_leaves_the_model_as_it_was_when_the_epoch_began(self):
        X, y = images()
        model = network(noisy=True)
        model.fit(X, y, epochs=2, batch_size=10)
        before = all_contents(model)
        X[37] = np.nan
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1, batch \d"),
        ):
            model.fit(X, y, batch_size=10)
        assert same_training(model, model)
        for one, other in zip(before, all_contents(model), strict=True):
            for key in ("params", "buffers", "cache", "X"):
                assert one.get(key) == other.get(key), key
        X[37] = 0
        model.fit(X, y)

    def test_on_the_cpu_it_is_seen_at_once(self):
        model, (X, y) = with_spy(network(), lambda batch: None), images()
        X[12] = np.nan
        with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="epoch 1, batch 2"):
            model.fit(X, y, batch_size=10, shuffle=False)
        assert model.layers[0].batches == 2

    def test_an_explosion_names_its_remedies(self):
        model, (X, y) = network(optimizer="SGD(lr=1e30)"), images()
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"Lower the learning rate \(1e\+30\)"):
            model.fit(X, y, epochs=5, batch_size=8)
        assert all(np.isfinite(value).all() for value in model.state_dict().values())

    def test_on_a_device_it_is_seen_at_the_end_of_the_epoch(self, xp):
        X, y = images(20)
        X[3] = np.nan
        model = network()
        model.forward(xp.asarray(X[4:5]))
        before = {key: to_numpy(value) for key, value in model.state_dict().items()}
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError):
            model.fit(xp.asarray(X), xp.asarray(y), batch_size=5)
        assert all(to_numpy(value).tobytes() == before[key].tobytes() for key, value in model.state_dict().items())


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise")
class TestCtrlC:
    def test_the_batch_is_finished(self):
        model = with_spy(network(), lambda batch: batch == 6 and os.kill(os.getpid(), signal.SIGINT))
        before = signal.getsignal(signal.SIGINT)
        history = model.fit(*images(), epochs=5, batch_size=15)
        assert history.interrupted
        assert history.epochs == 1
        assert model.layers[0].batches == 6
        assert model.layers[1].cache["step"] == 6
        assert signal.getsignal(signal.SIGINT) is before
        assert not any(layer.X for layer in model.layers)
        model.layers[0].call = lambda batch: None
        assert not model.fit(*images(), epochs=1).interrupted

    def test_a_second_one_ends_it_at_once(self):
        def twice(batch):
            if batch == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        model = with_spy(network(), twice)
        assert model.fit(*images(), epochs=5, batch_size=15).interrupted
        assert model.layers[1].cache["step"] == 1

    def test_in_another_thread_there_is_nothing_to_arrange(self):
        found = []
        thread = threading.Thread(target=lambda: found.append(network().fit(*images())))
        thread.start()
        thread.join()
        assert found[0].epochs == 1


def test_any_other_error_leaves_nothing_behind():
    model = with_spy(network(), lambda batch: 1 / (batch - 3))
    with pytest.raises(ZeroDivisionError):
        model.fit(*images(), batch_size=15)
    assert not any(layer.X for layer in model.layers)
    assert not any(g.any() for layer in model.layers for g in layer.gradients.values())
    model.layers[0].call = lambda batch: None
    model.fit(*images())


class TestProgress:
    def test_silent_without_a_terminal(self, capfd):
        network().fit(*images(), epochs=2)
        assert capfd.readouterr() == ("", "")

    def test_a_line_an_epoch_where_asked_for(self, capsys):
        network().fit(*images(), epochs=2, progress=True, validation=0.2)
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
        assert all("loss" in line and "accuracy" in line and "validation" in line for line in lines)

    def test_a_bar_on_a_terminal(self, capsys, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("gpuconv.models.progress.INTERVAL", 0.0)
        network().fit(*images(), epochs=2, batch_size=16)
        err = capsys.readouterr().err
        assert "epoch 2/2" in err
        assert "images/s" in err
        assert "accuracy" in err

    def test_a_bar_in_a_notebook_leaves_the_line_of_the_last_epoch(self, capfd, monkeypatch):
        """With the one object of IPython that a kernel has in addition."""
        shown = []

        class Handle:
            def update(self, data, raw):
                shown.append(data)

        ipython = types.ModuleType("IPython")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)
        display = types.ModuleType("IPython.display")
        display.display = lambda data, raw, display_id: Handle()
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        monkeypatch.setattr("gpuconv.models.progress.INTERVAL", 0.0)
        history = network().fit(*images(), epochs=2, batch_size=16, validation=0.2)
        assert capfd.readouterr() == ("", "")
        assert sum("<progress value" in data["text/html"] for data in shown) > 2
        assert shown[-1]["text/plain"].startswith(f"epoch 2/2  loss {history.loss[-1]:.4f}")
        assert "progress" not in shown[-1]["text/html"]

    @pytest.mark.parametrize("accuracy", [True, False])
    def test_a_line_fits_into_80_characters(self, accuracy, capsys):
        bar = Progress(True, epochs=1000, samples=100)
        of = [0.9876] if accuracy else []
        bar.epoch(History(loss=[12.3456] * 1000, accuracy=of, val_loss=[12.3456], val_accuracy=of))
        line = capsys.readouterr().err
        assert "validation 12.3456" in line
        assert len(line) <= 80

    def test_no_bar_where_there_is_none(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        network().fit(*images(), epochs=1)
        assert "epoch 1/1" in capsys.readouterr().err

    def test_the_loss_is_looked_at_once_an_interval(self, monkeypatch):
        """Each look waits for the device."""
        now = [0.0]
        monkeypatch.setattr("gpuconv.models.progress.time.monotonic", lambda: now[0])
        bar = Progress(True, epochs=1, samples=100)
        assert not bar.is_due()  # nothing is drawn
        bar.bar = object()
        due = []
        for now[0] in np.arange(0, 1, INTERVAL / 8):
            due.append(bar.is_due())
        assert sum(due) == 1 / INTERVAL

    @pytest.mark.parametrize("progress", [None, True])
    @pytest.mark.parametrize("isatty", [True, False])
    def test_a_stream_that_cannot_be_written_to_ends_the_bar_alone(self, progress, isatty, monkeypatch):
        class Broken(io.StringIO):
            def isatty(self):
                return isatty

            def write(self, text):
                raise self.error

        class Log:
            def write(self, text):
                pass

        closed = io.StringIO()
        closed.close()
        streams = [None, Log(), object(), closed]
        for error in (
            BrokenPipeError(),
            OSError(5, "gone"),
            ValueError(),
            UnicodeEncodeError("ascii", "x", 0, 1, "no"),
        ):
            streams.append(Broken())
            streams[-1].error = error
        monkeypatch.setattr("gpuconv.models.progress.INTERVAL", 0.0)
        for stream in streams:
            monkeypatch.setattr(sys, "stderr", stream)
            out = sys.stdout
            assert network().fit(*images(20), epochs=2, progress=progress).epochs == 2
            assert sys.stderr is stream
            assert sys.stdout is out

    def test_a_bar_needs_no_thread_and_gives_the_streams_back(self, monkeypatch):
        """Whatever ends training, an interrupt while it is drawn too."""
        rich = pytest.importorskip("rich.progress")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr("gpuconv.models.progress.INTERVAL", 0.0)
        streams, threads = (sys.stdout, sys.stderr), threading.active_count()
        for method in ("update", "stop", "add_task"):
            original, times = getattr(rich.Progress, method), []

            def cut(self, *arguments, original=original, times=times, **keywords):
                times.append(threading.active_count())
                if len(times) == 1:
                    raise KeyboardInterrupt
                return original(self, *arguments, **keywords)

            with monkeypatch.context() as patch:
                patch.setattr(rich.Progress, method, cut)
                try:
                    network().fit(*images(20), epochs=2)
                except KeyboardInterrupt:
                    assert method != "update"
            assert set(times) == {threads}
            assert (sys.stdout, sys.stderr) == streams
            assert threading.active_count() == threads

    def test_it_can_be_turned_off(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        network().fit(*images(), epochs=1, progress=False)
        assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------------------------- using it


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_prediction_in_batches(xp, batch_size):
    model, (X, y) = network(noisy=True), images()
    model.fit(X, y)
    model.to("cpu" if xp is np else "cuda")
    given, labels = xp.asarray(X), xp.asarray(y)
    before = all_contents(model)
    got = model.predict(given, batch_size=batch_size)
    assert_near(got, to_numpy(model.forward(given, retain_derived=False)), "float32", units=8)
    found = model.evaluate(given, labels, batch_size=batch_size)
    logits = to_numpy(got).astype("float64")
    assert found["accuracy"] == (logits.argmax(axis=1) == y).mean()
    shifted = logits - logits.max(axis=1, keepdims=True)
    costs = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]
    assert_near(np.array([found["loss"]]), np.array([costs.mean()]), "float64", units=2**31)
    assert all_contents(model) == before


def test_prediction_of_nothing():
    model = network()
    assert model.predict(np.zeros((0, 8, 8, 1), np.float32)).shape == (0, CLASSES)


def test_the_summary_counts():
    model = network()
    found = model.summary((8, 8, 1))
    assert [row.params for row in found.rows] == [40, 0, 222, 0, 75]
    assert [row.output_shape for row in found.rows] == [(8, 8, 4), (4, 4, 4), (2, 2, 6), (24,), (3,)]
    assert found.flops == 2 * (64 * 9 * 4 + 4 * 9 * 4 * 6 + 24 * 3)
    with pytest.raises(ValueError, match="Pass input_shape"):
        model.summary()
    model.predict(images()[0])
    assert model.summary() == found
    assert found.params == sum(layer.param_count for layer in model.layers) == 337
    model.layers[0].freeze()
    assert "(frozen)" in str(model.summary())


def test_state_dict_and_back():
    model, (X, y) = network(noisy=True), images()
    model.fit(X, y)
    saved = model.state_dict()
    other = network(seed=5, noisy=True)
    other.load_state_dict(saved)
    assert other.predict(X).tobytes() == model.predict(X).tobytes()
    model.fit(X, y)
    assert other.predict(X).tobytes() != model.predict(X).tobytes()
    before = all_contents(model)
    with pytest.raises(
        ValueError, match=r"layer 0: Conv2D: load_state_dict was given \['W'\], but the layer has \['W', 'b'\]"
    ):
        model.load_state_dict({"0.W": saved["0.W"]})
    with pytest.raises(GeometryError, match=r"layer 6: Dense: W.shape"):
        model.load_state_dict({**saved, "6.W": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"'9.W' names no layer"):
        model.load_state_dict({**saved, "9.W": np.ones((2, 2))})
    assert all_contents(model) == before


# -------------------------------------------------------------------------------------------------- devices


@pytest.fixture
def cupy(emulated):
    with cupy_double.installed() as module:
        yield module


def test_on_a_device_it_learns_the_same(cupy):
    X, y = images(24)
    on_cpu, on_gpu = network(noisy=True), network(noisy=True)
    a = on_cpu.fit(X, y, epochs=2, batch_size=8, validation=0.25)
    b = on_gpu.fit(cupy.asarray(X), cupy.asarray(y), epochs=2, batch_size=8, validation=0.25)
    assert_near(np.float32(b.loss), np.float32(a.loss), "float32", units=2**10)
    assert on_gpu.device == "cuda:0"
    assert set(map(type, on_gpu.state_dict().values())) == {cupy.ndarray}
    on_gpu.to("cpu")
    assert_near(on_gpu.predict(X), on_cpu.predict(X), "float32", units=2**12)


def test_a_training_step_stays_on_the_device(cupy, monkeypatch):
    """From the second epoch on (the first one makes the parameters) nothing crosses the bus but the epoch's totals."""
    from gpuconv.models.fit import Fit

    X, y = (cupy.asarray(a) for a in images(24))
    model = network(noisy=True)
    model.fit(X, y, epochs=1, batch_size=8)
    original, steps = Fit._batch, []

    def guarded(self, *arguments):
        with cupy_double.no_transfers():
            original(self, *arguments)
        steps.append(1)

    monkeypatch.setattr(Fit, "_batch", guarded)
    model.fit(X, y, epochs=2, batch_size=8, micro_batch=4, clip_norm=1.0)
    assert len(steps) == 6


def test_samples_and_targets_live_together(cupy):
    X, y = images()
    with pytest.raises(TypeError, match="fit: the arrays must live in one library: X in CuPy, y in NumPy"):
        network().fit(cupy.asarray(X), y)
    model = network()
    model.fit(X, y)
    with pytest.raises(TypeError, match="X is on cuda:0, but the layer is on cpu"):
        model.predict(cupy.asarray(X))


# -------------------------------------------------------------------------------------------------- bad input


BAD = {
    "lengths": (lambda X, y: (X, y[:-1], {}), GeometryError, "there must be one target per sample"),
    "no-samples": (lambda X, y: (X[:0], y[:0], {}), GeometryError, "at least one sample"),
    "channels": (lambda X, y: (X[..., [0, 0]], y, {}), GeometryError, "layer 0: Conv2D: X has 2 channels"),
    "axes": (lambda X, y: (X[0], y[:8], {}), GeometryError, "layer 0: Conv2D: X.shape"),
    "labels": (lambda X, y: (X, y + 1, {}), ValueError, "labels go from 1 to 3, but 3 logits allow 0 to 2"),
    "float-labels": (lambda X, y: (X, y.astype("float32"), {}), GeometryError, "integer labels of shape"),
    "dtype": (lambda X, y: (X.astype("float64"), y, {}), DTypeError, "X is float64, but the layer is float32"),
    "ints": (lambda X, y: (X.astype(int), y, {}), DTypeError, "X.dtype is int64"),
    "list": (lambda X, y: (X.tolist(), y, {}), TypeError, "fit: X: list is neither a NumPy nor a CuPy array"),
    "batch": (lambda X, y: (X, y, {"batch_size": 0}), ValueError, "fit: batch_size=0 is less than 1"),
    "epochs": (lambda X, y: (X, y, {"epochs": 1.5}), ValueError, "epochs=1.5 is not an integer"),
    "validation": (lambda X, y: (X, y, {"validation": 1.5}), ValueError, "validation=1.5, but must be"),
    "too-little": (lambda X, y: (X, y, {"validation": 0.001}), ValueError, "puts 0 of 60 samples aside"),
    "validation-data": (lambda X, y: (X, y, {"validation": (X, y[:3])}), GeometryError, "fit: validation: X.shape"),
    "patience": (lambda X, y: (X, y, {"patience": 0}), ValueError, "patience=0 is less than 1"),
    "clip": (lambda X, y: (X, y, {"clip_norm": -1}), ValueError, "clip_norm=-1"),
    "resume": (lambda X, y: (X, y, {"resume": True}), ValueError, "resume=True needs the checkpoint"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(spoil, error, message):
    X, y = images()
    model = network()
    model.fit(X, y)
    before = all_contents(model)
    bad_X, bad_y, keywords = spoil(X, y)
    with pytest.raises(error, match=message):
        model.fit(bad_X, bad_y, **keywords)
    assert all_contents(model) == before
    model.fit(X, y)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Sequential([]), ValueError, "at least one"),
        (lambda: Sequential([layers.Flatten()] * 2), ValueError, "each object only once"),
        (lambda: Sequential(["Dense"]), TypeError, "'Dense' is not a layer"),
        (lambda: Sequential([layers.Flatten()], loss="hinge"), ValueError, "loss='hinge' is none of softmax_cross"),
        (lambda: Sequential([layers.Flatten()], optimizer="x"), ValueError, "optimizer='x' is none of"),
    ],
)
def test_what_is_no_network(build, error, message):
    with pytest.raises(error, match=message):
        build()
