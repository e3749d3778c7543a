"""Files of models are read without trust in what they claim, and so are the names in them."""

import json
import os
import random
import time
import tracemalloc
from contextlib import suppress

import pytest
from odd_files import ESCAPE, no_file, posix, spoiled
from training import images, network, same_training

import gpuconv
from gpuconv import optimizers
from gpuconv.support import from_string


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A saved model, with an optimizer that remembers."""
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = network(noisy=True)
    model.fit(*images(), epochs=1)
    model.save(path)
    return path.read_bytes()


def parts(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def described(description, content):
    """The file with another description, under the checksum that belongs to it: anyone can compute that."""
    import safetensors.numpy

    from gpuconv.models import files

    arrays = safetensors.numpy.load(content)
    text = description if isinstance(description, str) else json.dumps(description)
    return safetensors.numpy.save(arrays, metadata={"gpuconv": text, "sha256": files._digest(arrays, text)})


def changed(content, where, value):
    description = json.loads(parts(content)[0]["__metadata__"]["gpuconv"])
    inner = description
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return described(description, content)


def array(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "nothing": lambda c: b"",
    "half a length": lambda c: c[:5],
    "10^18 bytes of header": lambda c: file_of(b"{}", length=10**18),
    "2^64-1 bytes of header": lambda c: b"\xff" * 8 + c[8:],
    "a header longer than the file": lambda c: file_of(b"{}", length=3),
    "no JSON": lambda c: file_of(b"not JSON"),
    "no UTF-8": lambda c: file_of(b'{"\xff\xfe": 1}'),
    "a list": lambda c: file_of([]),
    "a deep one": lambda c: file_of(b"[" * 1_000_000),
    "deep objects": lambda c: file_of(b'{"a":' * 500_000),
    "NaN": lambda c: file_of(b'{"a": NaN}'),
    "a number of a million digits": lambda c: file_of(b'{"a": ' + b"9" * 1_000_000 + b"}"),
    "an array of 2^60 elements": lambda c: file_of({"a": array([2**60], 0, 2**62)}),
    "an array beyond 2^64": lambda c: file_of({"a": array([2**63, 8], 0, 4)}, bytes(4)),
    "a negative place": lambda c: file_of({"a": array([1], -4, 0)}),
    "places that are text": lambda c: file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4)),
    "no places": lambda c: file_of({"a": 3}),
    "an unknown dtype": lambda c: file_of({"a": array([1], 0, 4, ESCAPE)}, bytes(4)),
    "arrays that overlap": lambda c: file_of({"a": array([2], 0, 8), "b": array([2], 4, 12)}, bytes(12)),
    "arrays with a gap": lambda c: file_of({"a": array([1], 0, 4), "b": array([1], 8, 12)}, bytes(12)),
    "one name twice": lambda c: file_of(b'{"a": 1, "a": 2}'),
    "a name that writes to the terminal": lambda c: file_of({ESCAPE: 1}),
    "metadata that are a list": lambda c: file_of({"__metadata__": [1]}),
    "metadata that are numbers": lambda c: file_of({"__metadata__": {"gpuconv": 1}}),
    "data behind the arrays": lambda c: c + b"more",
    "half of the data": lambda c: c[:-100],
}  # fmt: skip

MANY = [{"layer": "Flatten"}] * 200_000

DESCRIPTIONS = {
    "no JSON": lambda c: described("{", c),
    "deep": lambda c: described("[" * 1_000_000, c),
    "a list": lambda c: described([], c),
    "of format NaN": lambda c: changed(c, ["format"], float("nan")),
    "of format True": lambda c: changed(c, ["format"], True),
    "of a format that writes to the terminal": lambda c: changed(c, ["format"], ESCAPE),
    "without a model": lambda c: changed(c, ["model"], None),
    "with no layers": lambda c: changed(c, ["model", "layers"], []),
    "with layers that are text": lambda c: changed(c, ["model", "layers"], "Dense"),
    "with 200,000 layers": lambda c: changed(c, ["model", "layers"], MANY),
    "with an unknown layer": lambda c: changed(c, ["model", "layers", 0, "layer"], ESCAPE),
    "with a layer that is a number": lambda c: changed(c, ["model", "layers", 0], 7),
    "with 10^15 channels": lambda c: changed(c, ["model", "layers", 0, "out_ch"], 10**15),
    "with NaN channels": lambda c: changed(c, ["model", "layers", 0, "out_ch"], float("nan")),
    "with an argument too many": lambda c: changed(c, ["model", "layers", 0, "__class__"], "x"),
    "with a wrong dtype": lambda c: changed(c, ["model", "layers", 0, "dtype"], "object"),
    "with an optimizer of 400 kB": lambda c: changed(
        c, ["model", "layers", 0, "optimizer"], f"SGD(lr={'1+' * 200_000}1)"
    ),
    "with an optimizer in parentheses": lambda c: changed(
        c, ["model", "layers", 0, "optimizer"], f"SGD(lr={'(' * 4000}1{')' * 4000})"
    ),
    "with an optimizer of blanks": lambda c: changed(c, ["model", "layers", 0, "optimizer"], f"SGD{' ' * 5000}!"),
    "with an activation of blanks": lambda c: changed(c, ["model", "layers", 0, "acti_fn"], f"relu{' ' * 100_000}!"),
    "without a loss": lambda c: changed(c, ["model", "loss"], None),
    "with numbers that are missing": lambda c: changed(c, ["numbers"], []),
    "with a step that is text": lambda c: changed(c, ["numbers", 0, "step"], "many"),
}


class TestHostileModels:
    @pytest.mark.parametrize("make", [*HEADERS.values(), *DESCRIPTIONS.values()], ids=[*HEADERS, *DESCRIPTIONS])
    def test_one_documented_error_within_a_second(self, content, path, make):
        path.write_bytes(make(content))
        begin = time.process_time()
        with pytest.raises(ValueError, match=r"^load: ") as caught:
            gpuconv.models.Sequential.load(path)
        assert time.process_time() - begin < 1
        message = str(caught.value)
        tracemalloc.start()
        with suppress(ValueError):
            gpuconv.models.Sequential.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2e7 + 40 * path.stat().st_size
        assert message.isprintable()
        assert len(message) < 1000
        assert str(path) in message

    @posix
    def test_a_file_of_holes_takes_no_memory(self, path):
        size = 2**42
        header = {"__metadata__": {"gpuconv": '{"format": 1}'}}
        header["a"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
        path.write_bytes(file_of(header))
        try:
            os.truncate(path, path.stat().st_size + size)
        except OSError:
            pytest.skip("the file system takes no file of 4 TiB")
        with pytest.raises(MemoryError, match=r"load: .* holds 4398\d+ bytes, but this machine has"):
            gpuconv.models.Sequential.load(path)

    @posix
    @no_file
    def test_what_is_no_file(self, path, make):
        make(path)
        with pytest.raises(OSError, match="load: the file cannot be read: it is a") as caught:
            gpuconv.models.Sequential.load(path)
        assert caught.value.filename == str(path)

    def test_any_damage_is_found_or_harmless(self, content, path):
        """Bytes changed, cut out, put in: the same model, or the documented error."""
        chance = random.Random(0)
        path.write_bytes(content)
        want = gpuconv.models.Sequential.load(path)
        begin, refused = time.monotonic(), 0
        for _ in range(300):
            path.write_bytes(spoiled(content, chance))
            try:
                found = gpuconv.models.Sequential.load(path)
            except ValueError as error:
                assert str(error).startswith("load: ")  # noqa: PT017
                refused += 1
            else:
                assert same_training(found, want)
            if time.monotonic() - begin > 20:
                break
        assert refused > 5

    def test_what_could_not_be_loaded_is_not_saved(self, path):
        model = gpuconv.models.Sequential([gpuconv.layers.Flatten() for _ in range(10_001)])
        with pytest.raises(ValueError, match="save: the model has 10001 layers, but files hold at most 10000"):
            model.save(path)
        assert not path.exists()


@pytest.mark.parametrize("blanks", [10, 1000, 9000])
@pytest.mark.parametrize("text", ["SGD{}!", "SGD{}(", "{}SGD{}(lr=1{}", "a{}b{}c{}!"])
def test_a_name_is_read_in_one_pass(text, blanks):
    begin = time.process_time()
    with pytest.raises(ValueError, match="optimizer"):
        optimizers.parse(text.replace("{}", " " * blanks), "test")
    assert time.process_time() - begin < 0.1


def test_a_name_of_any_length_is_refused_in_few_words():
    with pytest.raises(
        ValueError, match=f"has 1000000 characters, but at most {from_string.LONGEST} are read"
    ) as caught:
        optimizers.parse("x" * 10**6, "test")
    assert len(str(caught.value)) < 200
