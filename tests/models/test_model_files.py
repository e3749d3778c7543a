"""Models as files, and training that goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from training import all_contents, images, network, same_training

from gpuconv import layers, optimizers
from gpuconv.errors import GeometryError
from gpuconv.models import Sequential, files

safetensors = pytest.importorskip("safetensors.numpy")

SETTINGS = {"batch_size": 16, "validation": 0.2, "patience": 3, "clip_norm": 5.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def trained():
    model = network(noisy=True)
    model.fit(*images(), epochs=2)
    return model


class TestSaving:
    def test_what_is_loaded_predicts_the_same_and_trains_on_the_same(self, trained, path):
        trained.layers[1].freeze()
        trained.save(path)
        loaded = Sequential.load(path)
        X, y = images()
        assert loaded.predict(X).tobytes() == trained.predict(X).tobytes()
        assert same_training(loaded, trained)
        assert loaded.config == trained.config
        assert [layer.trainable for layer in loaded.layers] == [layer.trainable for layer in trained.layers]
        for model in (trained, loaded):
            model.fit(X, y, epochs=2, validation=0.2)
        assert same_training(loaded, trained)

    def test_it_holds_nothing_but_arrays_and_text(self, trained, path):
        trained.save(path)
        with (
            safetensors.safe_open(path, framework="numpy") if hasattr(safetensors, "safe_open") else _open(path) as file
        ):
            assert {"0.W", "0.b", "1.running_mean", "optimizer.0.W.mean"} <= set(file.keys())
            assert json.loads(file.metadata()["gpuconv"])["format"] == files.FORMAT
        content = path.read_bytes()
        assert b"pickle" not in content
        assert not any(name in content for name in (b"\x80\x04\x95", b"\x80\x05\x95"))

    @pytest.mark.parametrize(
        "layer",
        [
            layers.ConvTranspose2D(2, 3, ((1, 0), (0, 1)), 2, output_pad=1),
            layers.ConvTranspose2D(2, 3, 0, 2, output_shape=(17, 17)),
            layers.DepthwiseConv2D((3, 1), "same", multiplier=3, acti_fn="gelu"),
            layers.Conv2D(4, 3, (0, 1, 2, 3), (1, 2), groups=1, use_bias=False, init_w="he_normal", algorithm="gemm"),
            layers.AvgPool2D((2, 1), pad=((1, 0), (0, 0)), count_include_pad=False),
            layers.MaxPool2D(3, 2, 1, ceil_mode=True),
        ],
        ids=lambda layer: layer.kind,
    )
    def test_every_kind_of_layer(self, layer, path):
        x = np.random.default_rng(0).standard_normal((2, 8, 8, 1))
        model = Sequential([layer, layers.Flatten(), layers.Dense(2, "tanh")], loss="squared_error", rng=0)
        want = model.predict(x)
        model.save(path)
        loaded = Sequential.load(path)
        assert loaded.predict(x).tobytes() == want.tobytes()
        assert loaded.loss == model.loss

    def test_before_any_input(self, path):
        network(seed=3).save(path)
        assert not any(layer.is_initialised for layer in Sequential.load(path).layers if layer.params)

    def test_a_path_may_be_text(self, trained, path):
        trained.save(str(path))
        Sequential.load(str(path))


def _open(path):
    from safetensors import safe_open

    return safe_open(path, framework="numpy")


class TestWritingIsAllOrNothing:
    @pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
    def test_a_failure_leaves_the_old_file(self, trained, path, where, monkeypatch):
        trained.save(path)
        before = path.read_bytes()
        trained.fit(*images())
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                trained.save(path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_the_new_file_is_on_disk_before_it_takes_the_name(self, trained, path, monkeypatch):
        events = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr("os.fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
        monkeypatch.setattr(
            "pathlib.Path.replace", lambda self, other: (events.append("replace"), replace(self, other))[1]
        )
        trained.save(path)
        assert events[:2] == ["fsync", "replace"]

    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
    def test_killed_while_writing(self, path, tmp_path):
        """A process that writes the same file over and over is killed; what is there can be read."""
        code = (
            "import numpy as np, itertools, sys\n"
            "from gpuconv.models import files\n"
            "for i in itertools.count():\n"
            "    files.write(sys.argv[1], {'a': np.full(200_000, i, 'float32')}, {'i': i})\n"
            "    print(i, flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        arrays, description = files.read(path)
        assert (arrays["a"] == description["i"]).all()


class TestRefusing:
    @pytest.fixture
    def content(self, trained, path):
        trained.save(path)
        return path.read_bytes()

    @pytest.mark.parametrize("kept", [0, 4, 8, 100, -1, -1000])
    def test_what_is_cut_off(self, content, path, kept):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"not a safetensors file, or a damaged one"):
            Sequential.load(path)

    def test_a_flipped_bit(self, content, path):
        spoiled = bytearray(content)
        spoiled[-5] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(ValueError, match="do not match their checksum"):
            Sequential.load(path)

    def test_a_changed_description(self, content, path):
        path.write_bytes(content.replace(b"leaky_relu(alpha=0.1)", b"leaky_relu(alpha=0.2)"))
        with pytest.raises(ValueError, match="do not match their checksum"):
            Sequential.load(path)

    def test_of_another_program(self, path):
        safetensors.save_file({"weight": np.ones(3)}, path)
        with pytest.raises(ValueError, match="gpuconv did not write it"):
            Sequential.load(path)

    def test_something_else(self, path):
        path.write_bytes(b"PK\x03\x04 a zip file, or anything")
        with pytest.raises(ValueError, match="not a safetensors file"):
            Sequential.load(path)

    def test_of_a_newer_gpuconv(self, trained, path, monkeypatch):
        monkeypatch.setattr(files, "FORMAT", 99)
        trained.save(path)
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"has format 99, but gpuconv .* reads 1"):
            Sequential.load(path)

    def test_a_missing_file(self, path):
        with pytest.raises(FileNotFoundError):
            Sequential.load(path)

    def test_without_safetensors(self, trained, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(ImportError, match=r"safetensors: run .*\[models\]'"):
            trained.save(path)


# -------------------------------------------------------------------------------------------------- resuming


def straight(epochs=6):
    model = network(noisy=True)
    return model, model.fit(*images(), epochs=epochs, **SETTINGS)


class Crash(Exception):
    pass


def crash(*_):
    raise Crash


class TestResuming:
    @pytest.mark.parametrize("after", [1, 3])
    def test_after_an_epoch(self, path, after):
        want, want_history = straight()
        first = network(noisy=True)
        with pytest.raises(Crash):
            first.fit(
                *images(), epochs=6, **SETTINGS, checkpoint=path, on_epoch=lambda h: h.epochs == after and crash()
            )
        second = network(seed=99, noisy=True)  # its own seed and weights do not matter
        history = second.fit(*images(), epochs=6, **SETTINGS, checkpoint=path, resume=True)
        assert history == want_history
        assert same_training(second, want)

    @pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise")
    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
    def test_in_the_middle_of_an_epoch(self, path, batch, monkeypatch):
        from gpuconv.models.fit import Fit

        want, want_history = straight()
        original, seen = Fit._batch, []

        def interrupted(self, *arguments):
            original(self, *arguments)
            seen.append(1)
            if len(seen) == batch:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Fit, "_batch", interrupted)
        first = network(noisy=True)
        assert first.fit(*images(), epochs=6, **SETTINGS, checkpoint=path).interrupted
        assert len(seen) == batch
        second = network(seed=99, noisy=True)
        history = second.fit(*images(), epochs=6, **SETTINGS, checkpoint=path, resume=True)
        assert history == want_history
        assert same_training(second, want)

    def test_more_epochs_than_planned(self, path):
        want, want_history = straight(4)
        network(noisy=True).fit(*images(), epochs=2, **SETTINGS, checkpoint=path)
        second = network(noisy=True)
        assert second.fit(*images(), epochs=4, **SETTINGS, checkpoint=path, resume=True) == want_history
        assert same_training(second, want)

    def test_nothing_left_to_do(self, path):
        first = network()
        history = first.fit(*images(), epochs=2, checkpoint=path)
        second = network(seed=4)
        assert second.fit(*images(), epochs=2, checkpoint=path, resume=True) == history
        assert same_training(first, second)

    def test_a_checkpoint_that_is_not_there_yet(self, path):
        history = network().fit(*images(), epochs=1, checkpoint=path, resume=True)
        assert history.epochs == 1
        assert path.exists()

    def test_the_names_in_a_checkpoint(self, path):
        """What attributes are called may change, what files say may not: they are read by other versions."""
        network(noisy=True).fit(*images(), epochs=1, **SETTINGS, checkpoint=path)
        training = files.read(path)[1]["training"]
        assert list(training) == ["settings", "samples", "at", "history"]
        assert list(training["at"]) == ["batch", "seen", "loss_sum", "right", "best_loss", "waited"]
        assert list(training["settings"]) == [
            *("batch_size", "shuffle", "validation", "micro_batch", "clip_norm", "patience", "min_delta"),
        ]
        assert list(training["history"]) == [
            *("loss", "accuracy", "val_loss", "val_accuracy", "best_epoch", "stopped_early", "interrupted"),
        ]

    def test_a_checkpoint_is_a_model_too(self, path):
        model = network()
        model.fit(*images(), epochs=1, checkpoint=path)
        assert Sequential.load(path).predict(images()[0]).tobytes() == model.predict(images()[0]).tobytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 8}, "was made with batch_size=16, but now batch_size=8"),
            ({"validation": 0.5}, "validation=0.2, but now validation=0.5"),
            ({"clip_norm": None}, "clip_norm=5.0, but now clip_norm=None"),
        ],
    )
    def test_other_settings_are_refused(self, path, change, message):
        network(noisy=True).fit(*images(), epochs=1, **SETTINGS, checkpoint=path)
        other = network(noisy=True)
        other.forward(images()[0])
        before = all_contents(other)
        with pytest.raises(ValueError, match=message):
            other.fit(*images(), epochs=2, **{**SETTINGS, **change}, checkpoint=path, resume=True)
        other.flush_gradients()
        assert [c["params"] for c in all_contents(other)] == [c["params"] for c in before]

    @pytest.mark.parametrize("used", ["not at all", "forward", "trained"])
    @pytest.mark.parametrize("reason", ["settings", "samples", "network", "shape", "no training", "position"])
    def test_a_refusal_leaves_all_as_it_was(self, path, reason, used):
        """Parameters that are not made yet among it, and the random numbers that they will be made of."""
        network(noisy=True).fit(*images(), epochs=1, **SETTINGS, checkpoint=path)
        X, y, settings = *images(), dict(SETTINGS)
        if reason == "settings":
            settings["batch_size"] = 8
        elif reason == "samples":
            X, y = X[1:], y[1:]
        elif reason == "shape":
            X = np.pad(X, ((0, 0), (0, 4), (0, 4), (0, 0)))
        elif reason in {"no training", "position"}:
            arrays, description = files.read(path)
            if reason == "no training":
                del description["training"]
            else:
                description["training"]["at"]["batch"] = "first"
            files.write(path, arrays, description)
        model, twin = (network(noisy=reason != "network") for _ in range(2))
        for one in (model, twin):
            if used == "forward":
                one.forward(X)
            elif used == "trained":
                one.fit(X, y)
        before = all_contents(model), model.config
        with pytest.raises((ValueError, GeometryError)):
            model.fit(X, y, epochs=2, **settings, checkpoint=path, resume=True)
        assert (all_contents(model), model.config) == before
        for one in (model, twin):
            one.fit(X, y)
        assert same_training(model, twin)

    def test_other_samples_and_other_networks_are_refused(self, path):
        network(noisy=True).fit(*images(), epochs=1, checkpoint=path)
        with pytest.raises(ValueError, match="samples=60, but now samples=59"):
            network(noisy=True).fit(*(a[:-1] for a in images()), epochs=2, checkpoint=path, resume=True)
        with pytest.raises(ValueError, match="is of another network: their layers 1 differ"):
            network().fit(*images(), epochs=2, checkpoint=path, resume=True)

    def test_another_learning_rate_is_refused_with_the_way_to_it(self, path):
        def with_rate(lr):
            model = network(noisy=True)
            for layer in model.layers:
                layer.optimizer = optimizers.Adam(lr=lr)
            return model

        X, y = images()
        with_rate(0.01).fit(X, y, epochs=1, checkpoint=path)
        with pytest.raises(ValueError, match=r"another optimizer or learning rate.*Sequential\.load") as no:
            with_rate(0.005).fit(X, y, epochs=2, checkpoint=path, resume=True)
        assert "lr=0.01" in str(no.value)
        model = Sequential.load(path)
        for layer in model.layers:
            layer.optimizer = optimizers.Adam(lr=0.005)
        assert model.fit(X, y, epochs=1).epochs == 1
        assert model.layers[0].cache["step"] == 2, "the state of the optimizer goes on"

    def test_a_model_is_no_checkpoint(self, trained, path):
        trained.save(path)
        with pytest.raises(ValueError, match="holds a model, but no training"):
            network(noisy=True).fit(*images(), checkpoint=path, resume=True)
