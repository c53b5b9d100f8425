"""The learning rate at each step, and when things are due. Steps are counted, never the clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLength:
    """The frozen length of a run.

    Attributes:
        num_steps: Steps in all.
        validate_every: Steps between two validations; the last step always validates.
        checkpoint_every: Steps between two checkpoints; the last step always writes one.
    """

    num_steps: int
    validate_every: int
    checkpoint_every: int

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows step number ``step`` (counted from 1)."""
        return step == self.num_steps or step % self.validate_every == 0

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows step number ``step`` (counted from 1)."""
        return step == self.num_steps or step % self.checkpoint_every == 0 or self.validates_after(step)


def learning_rate(step: int, num_steps: int, highest: float, warmup_steps: int, power: float) -> float:
    """Learning rate of a step counted from 0: a linear rise, then polynomial decay to zero at ``num_steps``.

    A warm-up longer than a tenth of the run is cut to a tenth, so that a short run still learns.
    """
    warmup = min(warmup_steps, num_steps // 10)
    rise = min(1.0, (step + 1) / (warmup + 1))
    return float(highest * rise * (1.0 - step / num_steps) ** power)
