"""Weights of trained networks, by the names and in the order of axes of PyTorch and Keras."""

import json
import re

import channels_first as theirs
import numpy as np
import pytest
from tolerances import to_numpy
from training import all_contents

from gpuconv.layers import (
    Activation,
    BatchNorm2D,
    Conv1D,
    Conv2D,
    ConvTranspose2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Residual,
)
from gpuconv.models import Sequential

io = pytest.importorskip("safetensors.numpy")

EPSILON = 3.0
"""With variances of 1, 13 and 61, the square root of their sum is 2, 4 or 8: no division rounds."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def some(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float64)


def module_of_torch(rng, w_shape, bias=True):
    return {"weight": some(rng, *w_shape), **({"bias": some(rng, w_shape[0])} if bias else {})}


def norm_of_torch(rng, c):
    return {
        "weight": 8 * some(rng, c), "bias": some(rng, c), "running_mean": some(rng, c),
        "running_var": rng.choice([1.0, 13.0, 61.0], c), "num_batches_tracked": np.array(3),
    }  # fmt: skip


def flat(modules, separator="."):
    return {f"{name}{separator}{last}": value for name, module in modules.items() for last, value in module.items()}


def norm(module):
    return [module[name] for name in ("weight", "bias", "running_mean", "running_var")], EPSILON


# -------------------------------------------------------------------------------------------------- PyTorch


def lenet(rng):
    """The modules, and what they compute of x (N, 1, 8, 8)."""
    m = {
        "conv1": module_of_torch(rng, (3, 1, 3, 3)), "conv2": module_of_torch(rng, (5, 3, 3, 3)),
        "fc1": module_of_torch(rng, (7, 20)), "fc2": module_of_torch(rng, (4, 7)),
    }  # fmt: skip

    def forward(x):
        x = theirs.max_pool(theirs.relu(theirs.conv(x, m["conv1"]["weight"], m["conv1"]["bias"], pad=1)), 2)
        x = theirs.max_pool(theirs.relu(theirs.conv(x, m["conv2"]["weight"], m["conv2"]["bias"], pad=1)), 2)
        x = theirs.relu(x.reshape(len(x), -1) @ m["fc1"]["weight"].T + m["fc1"]["bias"])
        return x @ m["fc2"]["weight"].T + m["fc2"]["bias"]

    return m, forward


def our_lenet(**keywords):
    parts = [Conv2D(3, 3, 1, acti_fn="relu"), MaxPool2D(2), Conv2D(5, 3, 1, acti_fn="relu"), MaxPool2D(2)]
    parts += [Flatten(), Dropout(), Dense(7, "relu"), Dense(4)]
    model = Sequential(parts, rng=0, **keywords)
    model.build((1, 1, 8, 8) if "layout" in keywords else (1, 8, 8, 1), "float64")
    return model


def test_lenet_of_torch(path, xp, rng):
    modules, forward = lenet(rng)
    io.save_file(flat(modules), path)
    x = some(rng, 2, 1, 8, 8)
    want = forward(x)
    for layout, image in (("channels_last", x.transpose(0, 2, 3, 1)), ("channels_first", x)):
        model = our_lenet() if layout == "channels_last" else our_lenet(layout=layout)
        model.to("cpu" if xp is np else "cuda")
        model.load_weights(path, names="torch")
        assert (to_numpy(model.predict(xp.asarray(np.ascontiguousarray(image)))) == want).all()


def block_of_torch(rng, name, c, k, stride):
    around = {
        f"{name}.downsample.0": module_of_torch(rng, (k, c, 1, 1), bias=False),
        f"{name}.downsample.1": norm_of_torch(rng, k),
    }
    m = {
        f"{name}.conv1": module_of_torch(rng, (k, c, 3, 3), bias=False), f"{name}.bn1": norm_of_torch(rng, k),
        f"{name}.conv2": module_of_torch(rng, (k, k, 3, 3), bias=False), f"{name}.bn2": norm_of_torch(rng, k),
        **(around if stride > 1 else {}),
    }  # fmt: skip

    def forward(x):
        def normed(at, value):
            values, epsilon = norm(m[f"{name}.{at}"])
            return theirs.norm(value, *values, epsilon)

        y = theirs.relu(normed("bn1", theirs.conv(x, m[f"{name}.conv1"]["weight"], stride=stride, pad=1)))
        y = normed("bn2", theirs.conv(y, m[f"{name}.conv2"]["weight"], pad=1))
        side = theirs.conv(x, m[f"{name}.downsample.0"]["weight"], stride=stride) if stride > 1 else x
        return theirs.relu(y + (normed("downsample.1", side) if stride > 1 else side))

    return m, forward


def our_block(k, stride):
    body = [Conv2D(k, 3, 1, stride, use_bias=False), BatchNorm2D(epsilon=EPSILON), Activation("relu")]
    body += [Conv2D(k, 3, 1, use_bias=False), BatchNorm2D(epsilon=EPSILON)]
    around = [Conv2D(k, 1, 0, stride, use_bias=False), BatchNorm2D(epsilon=EPSILON)]
    return Residual(body, around if stride > 1 else [], "relu")


def test_blocks_of_torch_and_the_same_folded_and_prepared(path, rng):
    first, second = block_of_torch(rng, "layers.9", 2, 4, 2), block_of_torch(rng, "layers.10", 4, 4, 1)
    io.save_file(flat({**second[0], **first[0], "head": module_of_torch(rng, (3, 4))}), path)
    model = Sequential([our_block(4, 2), our_block(4, 1), GlobalAvgPool2D(), Dense(3)], layout="channels_first")
    model.build((1, 2, 8, 8), "float64")
    model.load_weights(path, "torch")
    x = some(rng, 2, 2, 8, 8)
    head = io.load_file(path)
    want = second[1](first[1](x)).mean(axis=(2, 3)) @ head["head.weight"].T + head["head.bias"]
    assert (model.predict(x) == want).all()
    folded = model.folded()
    assert sum("BatchNorm2D" in repr(layer) for layer in folded.layers) == 0
    assert (folded.predict(x) == want).all()
    assert (folded.prepared(x.shape)(x) == want).all()


def test_every_kind_of_layer_of_torch(path, rng):
    cases = [
        (Conv2D(6, 3, groups=2), (6, 2, 3, 3), lambda x, w, b: theirs.conv(x, w, b, groups=2)),
        (DepthwiseConv2D(3, multiplier=2), (8, 1, 3, 3), lambda x, w, b: theirs.conv(x, w, b, groups=4)),
        (
            ConvTranspose2D(6, (3, 2), 0, 2, groups=2),
            (4, 3, 3, 2),
            lambda x, w, b: theirs.conv_transpose(x, w, b, stride=2, groups=2),
        ),
    ]
    x = some(rng, 2, 4, 5, 6)
    for layer, w_shape, forward in cases:
        w, b = some(rng, *w_shape), some(rng, 8 if isinstance(layer, DepthwiseConv2D) else 6)
        io.save_file({"0.weight": w, "0.bias": b}, path)
        model = Sequential([layer], layout="channels_first")
        model.build(x.shape, "float64")
        model.load_weights(path, "torch")
        assert (model.predict(x).transpose(0, 3, 1, 2) == forward(x, w, b)).all(), layer
    w, b = some(rng, 3, 4, 2), some(rng, 3)
    io.save_file({"net.weight": w, "net.bias": b}, path)
    model = Sequential([Conv1D(3, 2)], layout="channels_first")
    model.build((1, 4, 5), "float64")
    model.load_weights(path, "torch")
    signal = x[:, :, 0]
    want = theirs.conv(signal[:, :, None], w[:, :, None], b)[:, :, 0]
    assert (model.predict(signal).transpose(0, 2, 1) == want).all()


def test_one_pixel_and_one_channel_need_no_other_order(path, rng):
    """Flatten gives the same features there; between it and Dense, what acts on each of them may stand."""
    for sample, parts in (((3, 2, 1), []), ((1, 1, 6), []), ((3, 2, 1), [BatchNorm2D()]), ((1, 1, 6), [Flatten()])):
        w, b = some(rng, 2, 6), some(rng, 2)
        norms = {f"0.{k}": v for k, v in norm_of_torch(rng, 1).items()} if BatchNorm2D in map(type, parts) else {}
        io.save_file({"1.weight": w, "1.bias": b, **norms}, path)
        model = Sequential([*parts, Flatten(), Activation("relu"), Dense(2)])
        model.build((1, *sample), "float64")
        model.load_weights(path, "torch")
        x = some(rng, 3, *sample)
        if not norms:
            assert (model.predict(x) == np.maximum(x.reshape(3, 6), 0) @ w.T + b).all()


def test_what_follows_flatten_must_be_known(path, rng):
    io.save_file({"0.weight": some(rng, 8, 8), "0.bias": some(rng, 8)}, path)
    model = Sequential([Flatten(), Residual([Dense(8)])])
    model.build((1, 2, 2, 2))
    with pytest.raises(ValueError, match=r"load_weights: layer 1 \(Residual\) comes after Flatten, whose output PyTor"):
        model.load_weights(path, "torch")


def test_a_branch_that_ends_with_flatten_is_not_known_either(path, rng):
    io.save_file({"0.weight": some(rng, 8, 8), "0.bias": some(rng, 8)}, path)
    for names in ("torch", "keras"):
        model = Sequential([Residual([Flatten(), Dense(8)], [Flatten()])])
        model.build((1, 2, 2, 2))
        message = "0.shortcut of a block ends with Flatten, whose" if names == "torch" else "does not suit the model"
        with pytest.raises(ValueError, match=f"load_weights: .*{message}"):
            model.load_weights(path, names)


# -------------------------------------------------------------------------------------------------- Keras


@pytest.mark.parametrize("prefix", ["", "sequential_3/"])
@pytest.mark.parametrize("suffix", ["", ":0"])
def test_a_network_of_keras(path, prefix, suffix, rng):
    """Kernels are (KH, KW, C, F), and those of depthwise layers (KH, KW, C, multiplier)."""
    kernel, depth = some(rng, 3, 3, 2, 4), some(rng, 3, 2, 4, 3)
    gamma, beta, mean, var = 8 * some(rng, 12), some(rng, 12), some(rng, 12), rng.choice([1.0, 13.0, 61.0], 12)
    up, dense = some(rng, 2, 2, 2, 12), [some(rng, 4 * 6 * 2, 3), some(rng, 3, 3)]
    first = "kernel" if prefix else "depthwise_kernel"
    modules = {
        "conv2d": {"kernel": kernel, "bias": some(rng, 4)},
        "depthwise_conv2d": {first: depth, "bias": some(rng, 12)},
        "batch_normalization": {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": var},
        "conv2d_transpose": {"kernel": up, "bias": some(rng, 2)},
        "dense_1": {"kernel": dense[1], "bias": some(rng, 3)},
        "dense": {"kernel": dense[0], "bias": some(rng, 3)},
        "dropout/seed_generator": {"seed_generator_state": np.zeros(2, np.uint32)},
    }
    io.save_file({f"{prefix}{name}{suffix}": value for name, value in flat(modules, "/").items()}, path)
    parts = [Conv2D(4, 3), DepthwiseConv2D((3, 2), multiplier=3), BatchNorm2D(epsilon=EPSILON)]
    parts += [ConvTranspose2D(2, 2, 0, 1), Flatten(), Dense(3, "relu"), Dense(3)]
    model = Sequential(parts)
    x = some(rng, 2, 7, 8, 2)
    model.build(x.shape, "float64")
    model.load_weights(path, "keras")
    y = theirs.conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), modules["conv2d"]["bias"])
    separate = [theirs.conv(y[:, c : c + 1], depth[None, None, :, :, c, m]) for c in range(4) for m in range(3)]
    y = np.concatenate(separate, axis=1) + modules["depthwise_conv2d"]["bias"][:, None, None]
    y = theirs.norm(y, gamma, beta, mean, var, EPSILON)
    y = theirs.conv_transpose(y, up.transpose(3, 2, 0, 1), modules["conv2d_transpose"]["bias"])
    y = y.transpose(0, 2, 3, 1).reshape(2, -1)
    y = theirs.relu(y @ dense[0] + modules["dense"]["bias"]) @ dense[1] + modules["dense_1"]["bias"]
    assert (model.predict(x) == y).all()


def test_one_name_twice(path):
    io.save_file({"a/kernel": np.ones((1, 1)), "a/kernel:0": np.zeros((1, 1))}, path)
    model = Sequential([Dense(1, use_bias=False)])
    model.build((1, 1))
    with pytest.raises(ValueError, match="load_weights: the file holds kernel of a twice, once as a/kernel"):
        model.load_weights(path, "keras")


# -------------------------------------------------------------------------------------------------- which is whose


def stack(count, around=False):
    parts = [Dense(3, use_bias=False) for _ in range(count)]
    return Sequential([Residual(parts[:1], parts[1:2]), *parts[2:]] if around else parts)


@pytest.mark.parametrize(
    ("names", "kind", "around"),
    [
        (["0", "2", "10"], "torch", False),
        (["fc", "fc2", "fc10"], "torch", False),
        (["layer1.0.fc2", "layer1.1.fc1", "layer2.0.fc1"], "torch", False),
        (["block1_fc2", "block2_fc1", "block10_fc1"], "keras", False),
        (["dense_7", "dense_8", "dense_10"], "keras", False),
        (["net/dense", "net/dense_1", "net/dense_2"], "keras", False),
        (["0.fc", "0.downsample.0", "1.fc"], "torch", True),
        (["0.body.fc1", "0.shortcut.fc0", "2.fc"], "torch", True),
        (["fc" + "9" * 5000, "fc1" + "0" * 5000, "fc1" + "1" * 5000], "torch", False),
    ],
)
def test_numbers_in_the_names_give_the_order(path, names, kind, around, rng):
    last = "/kernel" if kind == "keras" else ".weight"
    weights = [some(rng, 3, 3) for _ in names]
    io.save_file({name + last: w for name, w in sorted(zip(names, weights, strict=True), reverse=True)}, path)
    for order in (None, names):
        model = stack(3, around)
        model.build((1, 3), "float64")
        model.load_weights(path, kind, order=order)
        found = [value if kind == "keras" else value.T for value in model.state_dict().values()]
        assert all((a == b).all() for a, b in zip(found, weights, strict=True))


@pytest.mark.parametrize(
    ("names", "around"),
    [
        (["left", "right", "top"], False),
        (["conv1", "fc1", "fc2"], False),
        (["fc1", "fc01", "fc2"], False),
        (["fc1", "fc1.fc", "fc2"], False),
        (["fc1", "fc2", "fc3"], True),  # which is on the way around?
        (["fc1", "downsample", "fc2"], False),  # there is no way around
    ],
)
def test_what_they_do_not_give_is_asked_for(path, names, around, rng):
    io.save_file({f"{name}.weight": some(rng, 3, 3) for name in names}, path)
    model = stack(3, around)
    model.build((1, 3), "float64")
    before = all_contents(model)
    with pytest.raises(ValueError, match=r"do not say which of .* Pass order=\[...\], the names of all 3 modules") as e:
        model.load_weights(path, "torch")
    assert all(name in str(e.value) for name in [*names, "(Dense)", "named_modules", str(path)])
    assert all_contents(model) == before
    model.load_weights(path, "torch", order=names)


def test_an_order_that_is_none(path, rng):
    io.save_file({f"net.{name}.weight": some(rng, 3, 3) for name in ("a", "b")}, path)
    model = stack(2)
    model.build((1, 3), "float64")
    before = all_contents(model)
    for order, message in [
        (["net.a"], "order leaves out net.b; order has 1 names for 2 layers"),
        (["net.a", "net.a"], "order names net.a twice; order leaves out net.b"),
        (
            ["net.a", "c"],
            r"it does not hold c; order leaves out net.b. It must name the modules of the file, which are ",
        ),
        ([], r"in the order of the layers: 0 \(Dense\), 1 \(Dense\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.load_weights(path, "torch", order=order)
    for order in ("net.a", [1, 2]):
        with pytest.raises(TypeError, match=r"order=.* must be a list of names"):
            model.load_weights(path, "torch", order=order)
    assert all_contents(model) == before


# -------------------------------------------------------------------------------------------------- what does not fit


def damaged(modules, change):
    changed = {name: dict(module) for name, module in modules.items()}
    change(changed)
    return flat(changed)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda m: m["conv2"].update(weight=np.ones((5, 3, 5, 5))),
            ["layer 2 (Conv2D) needs weight (5, 3, 3, 3), bias (5,), but conv2 has weight (5, 3, 5, 5), bias (5,)"],
        ),
        (
            lambda m: m["conv1"].pop("bias"),
            [
                "layer 0 (Conv2D) needs weight (3, 1, 3, 3), bias (3,), but conv1 has weight (3, 1, 3, 3)",
                "use_bias=Fal",
            ],
        ),
        (
            lambda m: m.pop("fc2"),
            ["layer 7 (Dense) needs weight (4, 7), bias (4,), but the file holds nothing like it"],
        ),
        (lambda m: m.update(aux={"w": np.ones(3)}), ["the file also holds what no layer needs: aux has w (3,)"]),
        (
            lambda m: (
                m["fc1"].update(weight=np.ones((7, 21))),
                m["fc2"].update(weight=np.ones((5, 7)), bias=np.ones(5)),
            ),
            [
                "layer 6 (Dense) needs weight (7, 20)",
                "fc1 has weight (7, 21)",
                "layer 7 (Dense)",
                "fc2 has weight (5, 7)",
            ],
        ),
    ],
    ids=["shape", "no bias", "missing", "left over", "two"],
)
def test_an_error_names_every_array_that_does_not_fit(path, change, messages, rng):
    modules, _ = lenet(rng)
    model = our_lenet()
    before = all_contents(model)
    io.save_file(damaged(modules, change), path)
    with pytest.raises(ValueError, match="does not suit the model") as caught:
        model.load_weights(path, "torch")
    assert all(message in str(caught.value) for message in messages), caught.value
    assert str(caught.value).startswith(f"load_weights: {path} ")
    assert all_contents(model) == before


def test_shapes_that_do_not_fit_in_the_order_given(path, rng):
    modules, _ = lenet(rng)
    io.save_file(flat(modules), path)
    model = our_lenet()
    with pytest.raises(ValueError, match=r"layer 0 \(Conv2D\) needs .*, but conv2 has .*; layer 2 .*, but conv1 has"):
        model.load_weights(path, "torch", order=["conv2", "conv1", "fc1", "fc2"])


def test_what_is_refused_before_the_file_is_looked_at(path):
    model = Sequential([Dense(3)])
    with pytest.raises(ValueError, match=r"load_weights: the model has no weights yet.* Call build\(x_shape\) first"):
        model.load_weights(path, "torch")
    for use in (model.folded, lambda: model.prepared((1, 3))):
        with pytest.raises(ValueError, match="the model has no weights yet"):
            use()
    model.build((1, 2))
    with pytest.raises(FileNotFoundError, match="load_weights: the file cannot be read"):
        model.load_weights(path, "torch")
    io.save_file({"a.weight": np.ones((3, 2))}, path)
    for names in ("jax", None, ["torch"]):
        with pytest.raises(ValueError, match=re.escape(f"load_weights: names={names!r} is none of 'torch', 'keras'")):
            model.load_weights(path, names)


def test_what_numpy_does_not_have_and_what_is_no_file(path):
    header = json.dumps({"a.weight": {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]}}).encode()
    model = Sequential([Dense(1, use_bias=False)])
    model.build((1, 1))
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(ValueError, match=r"'a.weight' has a dtype that NumPy does not have. Save it as float32"):
        model.load_weights(path, "torch")
    for content in (b"", b"PK\3\4" + bytes(100), header):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"load_weights: .* is not a safetensors file, or a damaged one"):
            model.load_weights(path, "torch")
    io.save_file({"a.weight": np.ones((1, 1), np.complex64)}, path)
    with pytest.raises(TypeError, match="Dense: W is complex64"):
        model.load_weights(path, "torch")


def test_an_interrupt_leaves_the_model_as_it_was(path, rng, monkeypatch):
    modules, _ = lenet(rng)
    io.save_file(flat(modules), path)
    model = our_lenet()
    before = all_contents(model)
    monkeypatch.setattr(model.layers[6], "load_state_dict", lambda d: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.load_weights(path, "torch")
    monkeypatch.undo()
    assert all_contents(model) == before
    assert model.pending is None
