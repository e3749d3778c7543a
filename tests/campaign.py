"""Random configurations of every public function against the oracle, with faults injected, for as long as one likes.

    .venv/bin/python tests/campaign.py --minutes 2 [--seed 7] [--loops numpy] [--kinds conv] [--faults memory]

Each run has a new seed, which it prints. Half of the time goes to compiled loops, half to the NumPy path, with Numba
hidden; `--loops` chooses one of them, `--kinds` and `--faults` some of what there is (none: no faults). Nothing else is
printed until the end, which is a count by kind; or the first failure, reduced to a small configuration, as a few lines
of Python that run it again: exit status 1. A process that crashes or hangs is a failure like any other: each half runs
in a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import secrets
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "support")]

LOOPS = ("compiled", "numpy")
REDUCING = 60.0
"""Seconds for making a failure smaller. Of a crash each try takes a process of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--loops", choices=("both", *LOOPS), default="both")
    parser.add_argument("--kinds", nargs="+", default=[])
    parser.add_argument("--faults", nargs="*")
    parser.add_argument("--reducing", type=float, default=REDUCING, help="seconds for making a failure smaller")
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scratch:
        return inside(options)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    loops = LOOPS if options.loops == "both" else (options.loops,)
    if find_spec("numba") is None:
        loops = ("numpy",)
    status = 0
    for one in loops:
        status = status or half(one, seed, options.minutes / len(loops), options)
    return status


def half(loops: str, seed: int, minutes: float, options: argparse.Namespace) -> int:
    """One of the two, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        command = [*_command(loops, scratch), "--seed", str(seed), "--minutes", str(minutes)]
        command += ["--reducing", str(options.reducing)]
        command += ["--kinds", *options.kinds] if options.kinds else []
        command += ["--faults", *options.faults] if options.faults is not None else []
        status = subprocess.run(command, check=False).returncode
        if status not in (0, 1) or (status == 1 and not (scratch / "told").exists()):
            report_crash(loops, scratch, status, options.reducing)
            return 1
        counts = scratch / "counts.json"
        for what, count in sorted(json.loads(counts.read_text()).items()) if counts.exists() else ():
            print(f"{loops:<10}{what:<28}{count:>7}")
        return status


def _command(loops: str, scratch: Path) -> list[str]:
    return [sys.executable, __file__, "--scratch", str(scratch), "--loops", loops]


def inside(options: argparse.Namespace) -> int:
    """What the process of one half does, or of one configuration."""
    if options.loops == "numpy":
        sys.modules["numba"] = None  # type: ignore[assignment]
    scratch = Path(options.scratch)
    os.environ["GPUCONV_CACHE_DIR"] = str(scratch / "cache")
    from campaigns import running
    from campaigns.configuration import Wrong

    if options.only:
        running.faulthandler.dump_traceback_later(running.HUNG, exit=True, file=2)
        try:
            running.check(ast.literal_eval(options.only))
        except Wrong:
            return 1
        return 0
    campaign = running.Campaign(
        options.seed,
        60 * options.minutes,
        options.kinds or tuple(running.KINDS),
        tuple(running.FAULTS) if options.faults is None else options.faults,
        options.reducing,
    )
    status = running.run(campaign, scratch)
    (scratch / "told").touch()
    return status


def report_crash(loops: str, scratch: Path, status: int, seconds: float) -> None:
    """A process that ended by a signal, or was ended since it hung: the configuration, made smaller by further ones."""
    from campaigns.reduction import reduced, script

    now = scratch / "now.txt"
    if not now.exists():
        print(f"{loops}: the process ended with status {status} before its first configuration")
        return

    def label_of(configuration: dict[str, object]) -> str | None:
        command = [*_command(loops, scratch), "--only", repr(configuration)]
        ended = subprocess.run(command, check=False, capture_output=True).returncode
        return None if ended in (0, 1) else "crash"

    configuration = ast.literal_eval(now.read_text())
    small = reduced(configuration, "crash", seconds, label_of)
    print(f"{loops}: the process hung or crashed, with status {status}\n\n{script(small)}")


if __name__ == "__main__":
    sys.exit(main())
