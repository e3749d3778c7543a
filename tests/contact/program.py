"""The program: runs the steps one after the other, and tells what they found."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

from contact import journal as journals
from contact.page import END, first_faulty, page
from contact.processes import HUNG, Process
from contact.setting import LOG, ROOT, Setting, environment
from contact.steps import SECONDS, STEPS, Step, chosen

PAGE = "page.txt"
USAGE = 64
LAST_LINES = 12
"""Lines of the log that are shown of a step that hung or died."""


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Run the program; tests give it other steps."""
    try:
        options = _options(arguments, steps)
    except SystemExit as leaving:
        return USAGE if leaving.code else 0
    if options.show:
        text = (options.show / PAGE).read_text(encoding="utf-8")
        sys.stdout.write(text)
        if options.record:
            record(options.show, options.record)
        return first_faulty(journals.read(options.show))
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (journals.NAME, LOG, PAGE):
        (options.out / name).unlink(missing_ok=True)
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for step in options.steps:
                run(step, options.out, step.seconds * options.seconds / SECONDS, options.double, Path(scratch))
    finally:  # also of an interrupted run
        findings = journals.read(options.out)
        text = page(_head(findings, time.monotonic() - begin, options.double), options.steps, findings)
        (options.out / PAGE).write_text(text, encoding="utf-8")
        sys.stdout.write(text)
    if options.record:
        record(options.out, options.record)
    return first_faulty(findings)


def run(step: Step, out: Path, seconds: float, double: bool, scratch: Path) -> None:
    """Run a step in its process, and note how it ended."""
    journal = journals.Journal(out, step.number)
    setting = Setting(step.number, step.module, out, seconds, double)
    log = out / LOG
    sys.stdout.write(f"{step.number}  {step.title}, up to {seconds:.0f} s\n")
    sys.stdout.flush()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"=== {step.number}  {step.title}\n")
    before = log.stat().st_size
    end = Process(setting.command(), log, environment(scratch), ROOT).wait(seconds)
    took = time.monotonic() - setting.begin
    text = ""
    if end:
        end = f"was ended at its limit of {seconds:.0f} s" if end == HUNG else end
        last = log.read_bytes()[before:].decode(errors="replace").splitlines()[-LAST_LINES:]
        text = "\n".join([f"its process {end}, and printed last:", *(f"    {line}" for line in last)])
    if step.tells:
        own = [finding for finding in journals.read(out) if finding.step == step.number]
        import_module(step.module).tell(journal, own)
    journal.note(END, text, fault=bool(end), seconds=took, limit=seconds)


def record(out: Path, folder: Path) -> None:
    """Copy the results of a run on a device, under the name of the device and the day."""
    findings = journals.read(out)
    about = next((finding.values for finding in findings if "device" in finding.values), None)
    if about is None or about["double"]:
        sys.stderr.write("first_contact: nothing is recorded, as these results come from no device\n")
        return
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    for name, suffix in ((PAGE, "txt"), (journals.NAME, "jsonl")):
        target = folder / f"{device}-{about['date']}-first-contact.{suffix}"
        target.write_bytes((out / name).read_bytes())
        sys.stdout.write(f"recorded in {target}\n")


def _head(findings: Sequence[journals.Finding], seconds: float, double: bool) -> str:
    about = next((finding.values for finding in findings if "device" in finding.values), {})
    device = about.get("device", "an unknown device")
    day = about.get("date", datetime.now(timezone.utc).date().isoformat())
    where = "the double of CuPy, whose times and registers mean nothing" if double else device
    return f"First contact with {where}, {day}, {seconds:.0f} s"


def _options(arguments: Sequence[str] | None, steps: Sequence[Step]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="first_contact.py", description="What a GPU makes of gpuconv, on one page.")
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT"), help="folder of the results; $OUT by default"
    )
    parser.add_argument("--steps", default="", help="steps to run, for instance 1,3-5; all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of all nine steps, by default {SECONDS:.0f}")
    parser.add_argument("--double", action="store_true", help="run on the double of CuPy, at small sizes")
    parser.add_argument("--record", type=Path, help="folder that gets a copy under the device's name and the date")
    parser.add_argument("--show", type=Path, help="print the page of an earlier run, and run nothing")
    options = parser.parse_args(arguments)
    if options.show is None and options.out is None:
        parser.error("say where the results are to go, with --out FOLDER or in the variable OUT")
    if options.show is not None and not (options.show / PAGE).exists():
        parser.error(f"--show {options.show}: there is no {PAGE}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, not {options.seconds}")
    if options.out is not None:
        options.out = Path(options.out).absolute()
    try:
        numbers = {step.number for step in chosen(options.steps)} if options.steps else None
    except ValueError as error:
        parser.error(f"--steps: {error}")
    options.steps = [step for step in steps if numbers is None or step.number in numbers]
    return options
