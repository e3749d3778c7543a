"""Checks the steps of RELEASING.md that a program can check: python .ci/release.py [--tagged] [--no-build]

It prints a line per step and changes nothing but `dist/`. The exit status is 1 if a step is missing.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def output(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def version_faults(version):
    """Every place that names the version, and names another."""
    places = {
        "CITATION.cff": rf"^version: {re.escape(version)}$",
        ".ci/recipe/meta.yaml": rf'set version = "{re.escape(version)}"',
        "CHANGELOG.md": rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$",
    }
    return [
        f"{name} lacks {wanted}" for name, wanted in places.items() if not re.search(wanted, read(name), re.MULTILINE)
    ]


def unreleased_faults():
    """What still stands under "Unreleased"."""
    below = read("CHANGELOG.md").partition("## [Unreleased]")[2].partition("\n## [")[0]
    return ['CHANGELOG.md: entries stand under "Unreleased"'] if "\n- " in below else []


def address_faults():
    """Addresses of the project that differ between the files that name them."""
    found = {name: set(re.findall(r"https://github\.com/[\w.-]+/gpuconv", read(name))) for name in (
        "pyproject.toml", "docs/making.py", ".ci/recipe/meta.yaml",
    )}  # fmt: skip
    every = set().union(*found.values())
    return [] if len(every) == 1 else [f"addresses differ: {found}"]


def gpu_faults():
    """Pages that no longer say that no GPU has run it, while no results of one are there."""
    results = {path.name for path in (ROOT / "gpuconv/bench/results").iterdir()}
    if any("nvidia" in name for name in results):
        return []
    return [f"{name} must say that no GPU has run the kernels" for name in ("README.md", "docs/gpu.md")
            if not re.search(r"[Nn]o (GPU|kernel) has run", read(name))]  # fmt: skip


def tag_faults(version):
    tags = output("git", "tag", "--points-at", "HEAD").split()
    dirty = output("git", "status", "--porcelain")
    return ([] if f"v{version}" in tags else [f"HEAD has no tag v{version}"]) + (
        ["files are not committed"] * bool(dirty)
    )


def build_faults():
    """Build, and install wheel and sdist in every Python that there is."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "build"], cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode:
        return ["`python -m build` fails"]
    files = sorted((ROOT / "dist").iterdir())
    for file in files:
        print(f"  {file.name}  sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
    faults = []
    for number in PYTHONS:
        python = shutil.which(f"python{number}")
        if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
            print(f"  Python {number} is not here")
            continue
        for file in files:
            done = subprocess.run([ROOT / ".ci/smoke", python, file], capture_output=True, text=True, check=False)
            print("  " + "\n  ".join(done.stdout.splitlines()))
            if done.returncode:
                faults.append(f"{file.name} fails on Python {number}: {done.stderr.strip()[-500:]}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tagged", action="store_true", help="check the tag as well")
    parser.add_argument("--no-build", action="store_true", help="build and install nothing")
    chosen = parser.parse_args()
    version = re.search(r'__version__ = "(.+)"', read("gpuconv/version.py"))[1]
    steps = {
        f"version {version} everywhere": lambda: version_faults(version),
        "the changelog is closed": unreleased_faults,
        "one address of the project": address_faults,
        "what is said about GPUs": gpu_faults,
    }
    if chosen.tagged:
        steps["the tag"] = lambda: tag_faults(version)
    if not chosen.no_build:
        steps["sdist and wheel"] = build_faults
    missing = 0
    for name, check in steps.items():
        faults = check()
        missing += len(faults)
        print(f"{'missing' if faults else 'done   '}  {name}")
        for fault in faults:
            print(f"         {fault}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
