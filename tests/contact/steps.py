"""The steps in their order, with the seconds that each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A module with a function ``run(setting, journal)``, which a process of its own calls.

    A step may have parts that take processes of their own: ``part(setting, journal, name)``. If `tells`, the program
    calls ``tell(journal, findings)`` when the step has ended, however it has ended.
    """

    number: int
    title: str
    seconds: float
    module: str
    tells: bool = False


STEPS = (
    Step(1, "versions, limits, and a kernel that echoes its arguments", 15, "contact.arguments"),
    Step(2, "every kernel compiled: registers, local and shared memory", 30, "contact.compiling"),
    Step(3, "exact results: tensor cores by tile, dtype, pass and copy; then gpuconv check", 45, "contact.exact"),
    Step(4, "the GPU tests, beside each other", 150, "contact.suite"),
    Step(5, "the GPU tests that need the device for themselves", 45, "contact.suite_alone"),
    Step(6, "compute-sanitizer: memcheck, racecheck", 45, "contact.sanitizer"),
    Step(7, "what a call costs the host, and graph replay", 30, "contact.host"),
    Step(8, "what a call costs the device, beside torch, the floor and the models", 120, "contact.times", tells=True),
    Step(9, "Nsight Compute: issue slots, stalls, shared memory", 45, "contact.counters"),
)
SECONDS = sum(step.seconds for step in STEPS)


def chosen(text: str) -> tuple[Step, ...]:
    """The steps that a text such as "1,3-5" names.

    Raises
    ------
    ValueError
        If there is no such step.

    >>> [step.number for step in chosen("1,3-5")]
    [1, 3, 4, 5]
    """
    numbers: set[int] = set()
    for words in text.split(","):
        first, _, last = words.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    found = tuple(step for step in STEPS if step.number in numbers)
    if len(found) < len(numbers) or not found:
        raise ValueError(f"there are steps 1 to {len(STEPS)}, but {text!r} names others or none")
    return found
