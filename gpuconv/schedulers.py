"""Learning rates as pure functions of the step, so that a resumed training continues where it stopped."""

from __future__ import annotations

import math
from typing import TypeAlias

from gpuconv.support import from_string
from gpuconv.support.argument_checks import as_int, flag, non_negative
from gpuconv.typing import SchedulerName


class Scheduler(from_string.FromString):
    """The base of all schedulers: ``scheduler(step)`` is the learning rate of step 1, 2, 3 and so on.

    Examples
    --------
    >>> from gpuconv import optimizers, schedulers
    >>> optimizers.Adam(scheduler=schedulers.parse("constant(lr=0.1)")).scheduler(7)
    0.1
    """

    def __call__(self, step: int, cur_loss: float | None = None) -> float:
        """Return the learning rate of a step. `cur_loss` is for your own schedules; those of this file ignore it."""
        raise NotImplementedError


class ConstantScheduler(Scheduler):
    """The same learning rate at every step.

    Examples
    --------
    >>> from gpuconv.schedulers import ConstantScheduler
    >>> ConstantScheduler(0.1)(1000)
    0.1
    """

    name = "constant"

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = non_negative(lr, "lr", self.name)

    def __call__(self, step: int, cur_loss: float | None = None) -> float:
        return self.lr


class ExponentialScheduler(Scheduler):
    """lr = initial_lr decay**(step / stage_length); with `staircase` the exponent is rounded down.

    The first step has initial_lr: steps are counted from 0 in the formula.

    Examples
    --------
    >>> from gpuconv.schedulers import ExponentialScheduler
    >>> rate = ExponentialScheduler(initial_lr=0.1, stage_length=100, staircase=True, decay=0.5)
    >>> rate(1), rate(101), rate(201)
    (0.1, 0.05, 0.025)
    """

    name = "exponential"

    def __init__(
        self, initial_lr: float = 0.01, stage_length: int = 500, staircase: bool = False, decay: float = 0.1
    ) -> None:
        self.initial_lr = non_negative(initial_lr, "initial_lr", self.name)
        self.stage_length = as_int(stage_length, "stage_length", self.name)
        self.staircase = flag(staircase, "staircase", self.name)
        self.decay = non_negative(decay, "decay", self.name)

    def __call__(self, step: int, cur_loss: float | None = None) -> float:
        stages: float = (step - 1) // self.stage_length if self.staircase else (step - 1) / self.stage_length
        try:
            return self.initial_lr * math.pow(self.decay, stages)
        except OverflowError:  # with a decay of more than 1; the optimizer refuses an infinite rate
            return math.inf


class CosineScheduler(Scheduler):
    """Half a cosine from initial_lr to final_lr in `steps` steps, then final_lr (Loshchilov & Hutter, "SGDR:
    stochastic gradient descent with warm restarts", 2017, eq. 5, without restarts).

    In the first `warmup` of these steps, the rate rises linearly to initial_lr instead.

    Examples
    --------
    >>> from gpuconv.schedulers import CosineScheduler
    >>> rate = CosineScheduler(0.1, 101)
    >>> rate(1), round(rate(51), 4), rate(101)
    (0.1, 0.05, 0.0)
    """

    name = "cosine"

    def __init__(self, initial_lr: float = 0.01, steps: int = 1000, final_lr: float = 0.0, warmup: int = 0) -> None:
        self.initial_lr = non_negative(initial_lr, "initial_lr", self.name)
        self.steps = as_int(steps, "steps", self.name)
        self.final_lr = non_negative(final_lr, "final_lr", self.name)
        self.warmup = as_int(warmup, "warmup", self.name, least=0)

    def __call__(self, step: int, cur_loss: float | None = None) -> float:
        if step <= self.warmup:
            return self.initial_lr * step / self.warmup
        done = min(1.0, (step - 1 - self.warmup) / max(1, self.steps - 1 - self.warmup))
        return self.final_lr + 0.5 * (self.initial_lr - self.final_lr) * (1 + math.cos(math.pi * done))


class NoamScheduler(Scheduler):
    """lr = scale_factor model_dim**-0.5 min(step**-0.5, step warmup_steps**-1.5) (Vaswani et al., "Attention is all you
    need", 2017, eq. 3): a linear rise, then a decay.

    Examples
    --------
    >>> from gpuconv.schedulers import NoamScheduler
    >>> rate = NoamScheduler(model_dim=256, warmup_steps=100)
    >>> [round(rate(step), 5) for step in (1, 100, 400)]
    [6e-05, 0.00625, 0.00313]
    """

    name = "noam"

    def __init__(self, model_dim: int = 512, scale_factor: float = 1.0, warmup_steps: int = 4000) -> None:
        self.model_dim = as_int(model_dim, "model_dim", self.name)
        self.scale_factor = non_negative(scale_factor, "scale_factor", self.name)
        self.warmup_steps = as_int(warmup_steps, "warmup_steps", self.name)

    def __call__(self, step: int, cur_loss: float | None = None) -> float:
        shape = min(1 / math.sqrt(step), step / self.warmup_steps**1.5)
        return self.scale_factor / math.sqrt(self.model_dim) * float(shape)


_CLASSES: tuple[type[Scheduler], ...] = (ConstantScheduler, ExponentialScheduler, CosineScheduler, NoamScheduler)

SCHEDULERS: dict[str, type[Scheduler]] = {kind.name: kind for kind in _CLASSES}

SchedulerLike: TypeAlias = Scheduler | SchedulerName | str
"""A scheduler, its name, or its name with parameters, as `parse` reads it."""


def parse(given: SchedulerLike, caller: str = "schedulers.parse", argument: str = "scheduler") -> Scheduler:
    """Make a scheduler from its name, with or without parameters.

    >>> parse("cosine(initial_lr=0.1, steps=100)")(100)
    0.0
    """
    return from_string.parse(Scheduler, SCHEDULERS, given, caller, argument)
