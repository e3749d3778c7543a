"""Plants mistakes in kernels/, one at a time, and runs the tests of the file: each mistake must be caught.

    .venv/bin/python tests/mutants/mutants.py [--file direct.cu ...] [--jobs 2] [--list]

The mistakes are those of mutants.txt. A planted file lies in a copy of kernels/, which the environment variable
GPUCONV_TEST_KERNELS names to conftest.py. What survives is printed with its line: either the tests are too weak, or the
text says the same as before and is no mistake. Those of ptx.cuh need NVRTC. Exit status 1 if less than 95% are caught,
or if a mistake is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
KERNELS = TESTS.parent / "kernels"
TEXT = TESTS / "mutants" / "mutants.txt"
FLOOR = 0.95
SECONDS = {"kernel": 20, "tests": 1200}
"""How long a kernel may compute that ends in a fraction of a second when it is right; and all tests together."""

CUDA = "algorithms/cuda"
MEMORY = (f"{CUDA}/test_kernels_memory.py", f"{CUDA}/test_gemm.py")
EPILOGUES = (f"{CUDA}/test_gemm.py::test_bias_and_activation", f"{CUDA}/test_gemm.py::test_a_nan_passes_the_epilogue")
DIRECT = (f"{CUDA}/test_kernels_direct.py",)
DEPTHWISE = (f"{CUDA}/test_kernels_depthwise.py",)
TENSOR_CORES = (f"{CUDA}/test_kernels_implicit_gemm.py", f"{CUDA}/test_precision_tensor_cores.py")
HOPPER = (f"{CUDA}/test_kernels_wgmma.py",)
BANKS = ("functions/test_filter_banks.py::test_every_kernel_by_the_oracle",)
NORMS = "layers/test_optimizers.py::test_no_norm_overflows_or_vanishes"
CLIPPING = ("is_two_launches", "adds_up_the_sums_of_many_blocks", "of_what_is_not_finite")
SUITES = {
    "im2col.cu": MEMORY,
    "col2im.cu": (*MEMORY, *BANKS),
    "pool.cu": ("functions/test_pooling_axes.py", f"{CUDA}/test_kernels_memory.py", "functions/test_pooling.py"),
    "optimizer_step.cu": ("layers/test_optimizers.py",),
    "clip.cu": (*(f"layers/test_optimizers.py::test_clipping_{test}" for test in CLIPPING), NORMS),
    "epilogue.cu": (f"{CUDA}/test_gemm.py", *BANKS),
    "split_k_reduce.cu": (*(f"{DIRECT[0]}::{test}" for test in ("test_splits", "test_bias_and_activation")), *BANKS),
    "conv.cuh": (f"{CUDA}/test_kernels_memory.py", f"{DIRECT[0]}::test_integers", *EPILOGUES, *DEPTHWISE, *BANKS),
    "axes.cuh": DIRECT,
    "jobs.cuh": DIRECT,
    "tile.cuh": DIRECT,
    "direct.cu": (*DIRECT, *BANKS),
    "direct_stem.cu": (f"{DIRECT[0]}::test_stems", *DIRECT, *BANKS),
    "direct_weights.cu": (*DIRECT, *BANKS),
    "depthwise.cu": (*DEPTHWISE, *BANKS),
    "depthwise_weights.cu": (*DEPTHWISE, *BANKS),
    "windows.cuh": (*TENSOR_CORES, *BANKS),
    "implicit_gemm.cu": (*TENSOR_CORES, *BANKS),
    "wgmma.cu": HOPPER,
    "wgmma.cuh": HOPPER,
    "implicit_gemm_weights.cu": (*TENSOR_CORES, *BANKS),
    "mma.cuh": TENSOR_CORES,
    "ptx.cuh": (f"{CUDA}/test_kernels_ptx_functions.py",),
}
"""The tests of each file."""


@dataclass(frozen=True)
class Mutant:
    """A mistake: `text` of a file becomes `other`, and `what` goes wrong."""

    file: str
    what: str
    text: str
    other: str

    def places(self, folder: Path = KERNELS) -> list[int]:
        """The lines on which the text begins: one, or the mutant is stale."""
        whole = (folder / self.file).read_text(encoding="utf-8")
        return [whole.count("\n", 0, found.start()) + 1 for found in re.finditer(re.escape(self.text), whole)]

    def plant(self, folder: Path) -> None:
        path = folder / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.text, self.other), encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.file}:{'/'.join(map(str, self.places())) or '?'}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    caught: bool
    by: str
    seconds: float = 0.0


def mutants(text: str | None = None) -> list[Mutant]:
    """All of mutants.txt."""
    found = []
    for block in re.split(r"\n\s*\n", (TEXT.read_text(encoding="utf-8") if text is None else text).strip()):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        file, _, what = lines[0].partition(": ")
        parts = {sign: "\n".join(line[2:] for line in lines[1:] if line.startswith(sign)) for sign in "-+"}
        if not what or not parts["-"] or any(line[:2].rstrip() not in ("-", "+") for line in lines[1:]):
            raise ValueError(f"not a mutant:\n{block}")
        found.append(Mutant(file, what, parts["-"], parts["+"]))
    return found


def run(folder: Path, tests: tuple[str, ...]) -> Verdict:
    """Runs tests with the kernels of a folder until one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not gpu", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "GPUCONV_TEST_KERNELS": str(folder),
        "GPUCONV_EMULATOR_SECONDS": str(SECONDS["kernel"]),
        "COLUMNS": "1000",
    }
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS["tests"],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verdict(False, f"no answer after {SECONDS['tests']} s")
    seconds = time.monotonic() - began
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+::.*)$", done.stdout, re.MULTILINE)
    if failed is not None and "could not be compiled" in failed[1]:
        return Verdict(False, f"does not compile: {failed[1]}", seconds)
    if failed is not None:
        return Verdict(True, failed[1], seconds)
    if done.returncode:
        return Verdict(False, f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}", seconds)
    return Verdict(False, done.stdout.strip().splitlines()[-1], seconds)


def tried(mutant: Mutant) -> Verdict:
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(KERNELS, Path(scratch) / "kernels")
        mutant.plant(folder)
        return run(folder, SUITES[mutant.file])


def report(chosen: list[Mutant], jobs: int) -> float:
    """Tries all of them, prints what becomes of each, and gives the part that was caught."""
    survivors = []
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, verdict in zip(chosen, pool.map(tried, chosen), strict=True):
            if not verdict.caught:
                survivors.append(mutant)
            word = "caught  " if verdict.caught else "SURVIVED"
            print(f"{word} {mutant}\n         {verdict.seconds:.0f} s, {verdict.by[:200]}", flush=True)
    for mutant in survivors:
        old, new = (text.replace("\n", "\n      ") for text in (mutant.text, mutant.other))
        print(f"\nSURVIVED {mutant}\n    - {old}\n    + {new}")
    caught = len(chosen) - len(survivors)
    print(f"\n{caught} of {len(chosen)} caught, {caught / len(chosen):.0%}")
    return caught / len(chosen)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", action="append", help="mistakes in this file only; may be given several times")
    parser.add_argument("--match", default="", help="those only whose description holds this")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at the same time")
    parser.add_argument("--list", action="store_true", help="print them and run nothing")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a mistake first")
    asked = parser.parse_args(arguments)
    chosen = [one for one in mutants() if (not asked.file or one.file in asked.file) and asked.match in one.what]
    stale = [one for one in chosen if len(one.places()) != 1]
    if asked.list or not chosen:
        print(*chosen, f"{len(chosen)} mutants", sep="\n")
    for one in stale:
        print(f"STALE {one}: its text stands there {len(one.places())} times\n    - {one.text}")
    if asked.list or not chosen or stale:
        return int(bool(stale) or not chosen)
    if not asked.trust:
        suites = {test.split("::")[0]: None for one in chosen for test in SUITES[one.file]}
        verdict = run(KERNELS, tuple(suites))
        print(f"without a mistake: {verdict.seconds:.0f} s, {verdict.by}", flush=True)
        if verdict.caught or "passed" not in verdict.by:
            return 1
    return int(report(chosen, asked.jobs) < FLOOR)


if __name__ == "__main__":
    sys.exit(main())
