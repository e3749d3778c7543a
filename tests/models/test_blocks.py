"""Networks with blocks inside: training, interruption, files, summaries."""

import json
from unittest import mock

import numpy as np
import pytest
from tolerances import to_numpy
from training import all_contents, images, residual_network, same_training

from gpuconv import layers
from gpuconv.errors import GeometryError
from gpuconv.layers import BatchNorm2D, Conv2D, Dense, Flatten, Residual
from gpuconv.models import Sequential


def test_one_seed_one_result_and_it_learns():
    X, y = images(64)
    models = [residual_network(seed) for seed in (1, 1, 2)]
    histories = [model.fit(X, y, epochs=6, batch_size=16, clip_norm=3.0) for model in models]
    assert same_training(models[0], models[1])
    assert histories[0] == histories[1]
    assert not same_training(models[0], models[2])
    assert histories[0].loss[-1] < histories[0].loss[0] * 0.75


def test_the_parts_of_a_large_batch_add_up():
    X, y = images(16, dtype="float64")
    model = residual_network()
    for part in model.layers[1:3]:
        part.freeze()  # batch normalization and dropout would depend on the parts
    twin = residual_network()
    for part in twin.layers[1:3]:
        part.freeze()
    losses = [m.fit(X, y, batch_size=16, micro_batch=size).loss[0] for m, size in ((model, None), (twin, 4))]
    assert abs(losses[0] - losses[1]) < 1e-12
    assert all(np.allclose(v, twin.state_dict()[k], rtol=0, atol=1e-12) for k, v in model.state_dict().items())


def test_clipping_reaches_the_layers_inside():
    X, y = images(12, dtype="float64")
    model = residual_network(optimizer="SGD(lr=1.0)")
    model.build(X.shape, "float64")
    before = {path: layer.state_dict() for path, layer in layers.chain.by_path(model.layers).items() if layer.params}
    model.fit(X, y, batch_size=12, clip_norm=0.01)
    after = layers.chain.by_path(model.layers)
    moved = sum(
        ((after[path].params[name] - state[name]) ** 2).sum()
        for path, state in before.items()
        for name in after[path].params
    )
    assert abs(np.sqrt(moved) - 0.01) < 1e-12


def test_a_step_cut_short_is_undone():
    X, y = images(32)
    model, twin = residual_network(), residual_network()
    for one in (model, twin):
        one.fit(X, y, batch_size=8)
    conv = model.layers[2].body[3].body[1]
    real = conv._forward
    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no")
        return real(*arguments)

    with mock.patch.object(conv, "_forward", failing), pytest.raises(MemoryError):
        model.fit(X, y, batch_size=8)
    with pytest.raises(FloatingPointError), np.errstate(invalid="ignore"):
        twin.fit(np.concatenate([X[:24], np.full_like(X[:8], np.nan)]), y, batch_size=8, shuffle=False)
    assert twin.epochs_done == model.epochs_done == 1
    assert not any(layer.X for model in (model, twin) for layer in layers.chain.by_path(model.layers).values())
    fresh = residual_network()
    fresh.fit(X, y, batch_size=8)
    assert same_training(twin, fresh)


class TestFiles:
    @pytest.fixture(autouse=True)
    def needed(self):
        pytest.importorskip("safetensors")

    def test_what_is_loaded_predicts_the_same_and_trains_on_the_same(self, tmp_path):
        X, y = images(24)
        model = residual_network()
        model.layers[2].shortcut[1].freeze()
        model.fit(X, y, batch_size=8)
        model.save(tmp_path / "model")
        loaded = Sequential.load(tmp_path / "model")
        assert loaded.config == model.config
        assert loaded.predict(X).tobytes() == model.predict(X).tobytes()
        assert not loaded.layers[2].shortcut[1].trainable
        for one in (model, loaded):
            one.fit(X, y, batch_size=8)
        assert same_training(loaded, model)

    def test_a_training_resumed_is_that_of_an_uninterrupted_run(self, tmp_path):
        X, y = images(24)
        whole, begun, resumed = residual_network(), residual_network(), residual_network(5)
        whole.fit(X, y, epochs=3, batch_size=8, patience=3)
        settings = {"batch_size": 8, "patience": 3, "checkpoint": tmp_path / "net"}
        begun.fit(X, y, epochs=3, on_epoch=lambda history: True, **settings)
        history = resumed.fit(X, y, epochs=3, resume=True, **settings)
        assert history.epochs == 3
        assert same_training(resumed, whole)
        other = residual_network(layout="channels_first")
        with pytest.raises(ValueError, match="was made with layout=channels_last, but now layout=channels_first"):
            other.fit(X.transpose(0, 3, 1, 2), y, epochs=4, resume=True, **settings)
        other = residual_network()
        other.layers[1] = Residual([Conv2D(4, 3, 1)])
        with pytest.raises(ValueError, match="is of another network: their layers 1 differ"):
            other.fit(X, y, epochs=4, resume=True, **settings)

    def test_what_a_hostile_file_says_of_inner_layers(self, tmp_path):
        import safetensors.numpy

        from gpuconv.models import files

        path = tmp_path / "model"
        model = residual_network()
        model.build((1, 8, 8, 1))
        model.save(path)
        content = path.read_bytes()
        arrays = safetensors.numpy.load(content)
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["gpuconv"]

        def with_body(value):
            description = json.loads(text)
            description["model"]["layers"][1]["body"] = value
            changed = json.dumps(description)
            metadata = {"gpuconv": changed, "sha256": files._digest(arrays, changed)}
            path.write_bytes(safetensors.numpy.save(arrays, metadata=metadata))

        def deep(levels):
            return {"layer": "Residual", "body": [deep(levels - 1)]} if levels else {"layer": "Flatten"}

        for value, message in [
            ([{"layer": "Flatten"}] * 20_000, "layers, but files hold at most 10000"),
            ([{"layer": "Conv2D", "out_ch": 1, "kernel_shape": 1, "device": "cuda"}], "names or values that no layer"),
            ([{"layer": "Conv2D", "out_ch": 1, "kernel_shape": 1, "trainable": 3}], "names or values that no layer"),
            ([{"layer": "nothing"}], "layer='nothing' is none of"),
            ([3], "3 is not a layer"),
            ([deep(16)], "blocks 17 deep, but files hold at most 16"),
            ([deep(300)], "blocks 301 deep, but files hold at most 16"),
            ([deep(15)], "load: "),
        ]:
            with_body(value)
            with pytest.raises(ValueError, match=message):
                Sequential.load(path)


def test_a_summary_shows_the_layers_of_a_block_and_counts_each_once():
    model = residual_network()
    summary = model.summary((8, 8, 1))
    model.build((1, 8, 8, 1))
    assert summary.params == sum(layer.param_count for layer in model.layers)
    assert summary.flops == sum(
        layer.flops(shape) for layer, shape in zip(model.layers, model._shapes((1, 8, 8, 1)), strict=False)
    )
    lines = [line.split("  ")[0] or line.strip().split("  ")[0] for line in str(summary).splitlines()]
    assert "Residual(acti_fn='relu')" in lines
    text = str(summary)
    assert "\n  body.3 Residual()  " in text
    assert "\n    body.1 Conv2D(4, (3, 3), pad=1" in text
    assert "  shortcut.0 Conv2D" in model.summary()._repr_html_()


def test_each_layer_object_may_occur_once():
    conv = Conv2D(1, 1)
    with pytest.raises(ValueError, match="each object only once"):
        Sequential([conv, Residual([conv])])


class TestLayout:
    def pair(self, **keywords):
        def layers():
            return [Conv2D(4, 3, 1, acti_fn="relu"), Residual([BatchNorm2D()]), Flatten(), Dense(3)]

        return [
            Sequential(layers(), rng=0, layout=layout, **keywords) for layout in ("channels_last", "channels_first")
        ]

    def test_the_same_network_for_the_other_order_of_axes(self, xp):
        X, y = images(24)
        X = np.concatenate([X, X[:, ::-1]], axis=3)  # two channels
        last, first = self.pair()
        turned = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
        for model, data in ((last, X), (first, turned)):
            model.fit(xp.asarray(data), xp.asarray(y), batch_size=8, validation=0.25)
        assert same_training(last, first)
        want, found = last.forward(xp.asarray(X)), first.forward(xp.asarray(turned))
        assert (to_numpy(want) == to_numpy(found)).all()
        dX = to_numpy(last.backward(want))
        assert (to_numpy(first.backward(found)) == dX.transpose(0, 3, 1, 2)).all()
        assert last.evaluate(xp.asarray(X), xp.asarray(y)) == first.evaluate(xp.asarray(turned), xp.asarray(y))
        assert (to_numpy(first.predict(xp.asarray(turned), 5)) == to_numpy(last.predict(xp.asarray(X), 5))).all()

    def test_its_shapes_are_those_of_x(self):
        last, first = self.pair()
        assert first.output_shape((5, 2, 8, 8)) == last.output_shape((5, 8, 8, 2)) == (5, 3)
        first.build((1, 2, 8, 8))
        assert first.input_shape == (2, 8, 8)
        assert first.summary().rows[0].output_shape == (8, 8, 4)
        assert str(first.summary()).splitlines()[1].split()[1:6] == ["2", "x", "8", "x", "8"]
        with pytest.raises(GeometryError, match=r"The layout of the model is channels_first: X.shape=\(1, 3, 8, 8\)"):
            first.forward(np.ones((1, 3, 8, 8), np.float32))
        with pytest.raises(GeometryError, match=r"X.shape=\(4,\)"):
            first.forward(np.ones(4))
        with pytest.raises(GeometryError, match="Sequential: layout='NCHW' is none of 'channels_last'"):
            Sequential([Flatten()], layout="NCHW")
        assert "layout='channels_first'" in repr(first)
        assert "layout" not in repr(last)

    def test_what_the_caller_writes_afterwards_changes_nothing(self, rng):
        _, first = self.pair()
        X = rng.standard_normal((2, 2, 8, 8))
        y = first.forward(X)
        twin = self.pair()[1]
        twin.forward(X.copy())
        X += 1
        assert (first.backward(np.ones_like(y)) == twin.backward(np.ones_like(y))).all()

    def test_a_file_says_which(self, tmp_path):
        pytest.importorskip("safetensors")
        _, first = self.pair()
        X = np.ones((1, 2, 8, 8), np.float32)
        want = first.predict(X)
        first.save(tmp_path / "model")
        loaded = Sequential.load(tmp_path / "model")
        assert loaded.layout == "channels_first"
        assert loaded.predict(X).tobytes() == want.tobytes()


def test_contents_reach_inside():
    """The helper of these tests: a change inside of a block is seen."""
    model = residual_network()
    model.build((1, 8, 8, 1))
    before = all_contents(model)
    model.layers[1].body[3].body[1].params["W"][0, 0, 0, 0] += 1
    assert all_contents(model) != before
