"""What training has found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """What `fit` found, one number an epoch. Lists stay empty where there is nothing to tell."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    """Counted from 1; with `patience` only."""
    stopped_early: bool = False
    interrupted: bool = False

    @property
    def epochs(self) -> int:
        return len(self.loss)
