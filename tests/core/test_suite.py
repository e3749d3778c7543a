"""What must hold wherever the tests run."""

import ast
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from on_gpu import POOLS, room_for, turn_on_the_device

TESTS = Path(__file__).parents[1]
OPTIONAL = {
    "IPython",
    "cupy",
    "cuda",
    "ipykernel",
    "mlxtend",
    "nbclient",
    "nbformat",
    "safetensors",
    "sklearn",
    "torch",
}
"""What a machine that runs some of the tests may lack, a machine with a GPU for instance."""
INTERRUPTED = (
    "tools/test_cli.py",
    "cuda/test_kernel_report.py",
    "models/test_model_files.py",
    "models/test_models.py",
    "core/test_shielded.py",
)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's way to ignore a signal")
def test_what_is_interrupted_is_so_in_the_background_too():
    """The background jobs of a script, and what they start, ignore SIGINT: one after 3.0 s as much as one at once."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            + ["-k", "(interrupt or CtrlC) and not 3.0", *(str(TESTS / file) for file in INTERRUPTED)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0, done.stdout + done.stderr


def needed_at_once(text):
    """The packages that a module imports when it is imported itself, other than by `pytest.importorskip`."""
    found, waiting = set(), list(ast.parse(text).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return found


def test_all_tests_are_collected_without_what_only_some_of_them_need():
    needy = {
        str(path.relative_to(TESTS)): needed & OPTIONAL
        for path in TESTS.rglob("*.py")
        if (needed := needed_at_once(path.read_text(encoding="utf-8"))) & OPTIONAL
    }
    assert needy == {}


def test_an_import_is_found_wherever_it_is_carried_out():
    text = "try: import mlxtend.data\nfinally: ...\nclass A: from nbclient import x\ndef f(): import torch"
    assert needed_at_once(text) == {"mlxtend", "nbclient"}


def test_processes_share_a_device_and_one_may_have_it_alone(double, tmp_path):
    pool, total = double.get_default_memory_pool(), double.cuda.runtime.memGetInfo()[1]
    came = []

    def alone():
        with turn_on_the_device(double, tmp_path, 4, alone=True):
            came.append(pool.get_limit())

    other = threading.Thread(target=alone)
    with turn_on_the_device(double, tmp_path, 4, alone=False):
        with turn_on_the_device(double, tmp_path, 4, alone=False):
            other.start()
            other.join(0.05)
        assert came == []
        share = pool.get_limit()
        with room_for(double, 512):
            assert pool.get_limit() < share
        assert pool.get_limit() == share == int(total * POOLS / 4)
    other.join()
    pool.set_limit(0)
    assert came == [total]
