"""One configuration after another in this process, until the time is over or one fails.

The configuration that runs stands in a file of the folder `scratch`: should the process crash or hang, whoever started
it finds it there.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .configuration import Configuration, Wrong, chance, pick
from .faults import FAULTS
from .judging import KINDS, check
from .reduction import reduced, script

HUNG = 120.0
"""Seconds after which a configuration hangs; the first ones compile loops."""

FAULTY = 0.35
"""The share of configurations that a fault strikes."""


@dataclass(frozen=True)
class Campaign:
    """What is drawn: of which kinds, struck by which faults."""

    seed: int
    seconds: float
    kinds: Sequence[str] = tuple(KINDS)
    faults: Sequence[str] = tuple(FAULTS)
    reducing: float = 30.0


def draw(campaign: Campaign, number: int) -> Configuration:
    """Configuration `number` of a campaign."""
    rng = np.random.default_rng([campaign.seed, number])
    kinds = [KINDS[name] for name in campaign.kinds]
    weights = np.array([kind.weight for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    configuration = kind.draw(rng)
    faults = [name for name in kind.faults if name in campaign.faults]
    if faults and chance(rng, FAULTY):
        configuration["fault"] = pick(rng, faults)
    return configuration


def run(campaign: Campaign, scratch: Path) -> int:
    """The exit status: 0 where all went well. Writes what was counted to counts.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _run(campaign, scratch)


def _run(campaign: Campaign, scratch: Path) -> int:
    until, number, counts = time.monotonic() + campaign.seconds, 0, Counter[str]()
    while time.monotonic() < until:
        configuration = draw(campaign, number)
        number += 1
        (scratch / "now.txt").write_text(repr(configuration))
        faulthandler.dump_traceback_later(HUNG, exit=True, file=2)  # where sys.stderr may be no file
        try:
            outcome = check(configuration)
        except Wrong as wrong:
            faulthandler.cancel_dump_traceback_later()
            report(campaign, number - 1, configuration, wrong)
            return 1
        faulthandler.cancel_dump_traceback_later()
        name = " ".join(filter(None, (configuration["kind"], configuration.get("fault"))))
        counts[f"{name} {outcome}"] += 1
        (scratch / "counts.json").write_text(json.dumps(counts))
    return 0


def report(campaign: Campaign, number: int, configuration: Configuration, wrong: Wrong) -> None:
    small = reduced(configuration, wrong.label, campaign.reducing)
    try:
        check(small)
        text = f"{wrong}\n(not every time)"
    except Wrong as last:
        text = str(last)
    cause = wrong.__cause__
    where = ""
    if cause is not None and cause.__traceback__ is not None:
        trace = cause.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f"\nraised at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    sys.stdout.write(f"configuration {number} of seed {campaign.seed} fails: {text}{where}\n\n{script(small)}\n")
    sys.stdout.flush()
