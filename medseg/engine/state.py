"""All that changes while a run goes on, and how it becomes a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.core.task import TrainableTask
from medseg.engine.allocator import keep_freed_memory
from medseg.engine.average import averaged_copy
from medseg.engine.checkpoint import load_checkpoint, save_checkpoint
from medseg.engine.config import TrainerConfig
from medseg.engine.optimizer import build_optimizer
from medseg.engine.precision import Precision
from medseg.engine.seeding import seed_step

STAGES = ("loading", "steps", "validation", "checkpoints")
"""What the time of a run is spent on."""

KEPT = (
    "step",
    "micro_batch_size",
    "nonfinite",
    "best_score",
    "best_step",
    "best_values",
    "validations_without_gain",
    "loss",
    "seconds",
)
"""Fields that a checkpoint keeps as JSON, beside the tensors."""


@dataclass
class TrainingState:
    """All that changes while a run goes on.

    Attributes:
        network, optimizer, precision: What a step needs.
        average: The network with averaged weights; None where the run keeps none.
        step: Steps done, skipped ones included.
        micro_batch_size: Patches at once through the network; None: the whole batch.
        nonfinite: Steps that were skipped because something was not finite, see :func:`medseg.engine.trouble.nonfinite`.
        best_score: Of the best validation so far; None before the first.
        best_step: Where that was.
        best_values: All that was logged there.
        validations_without_gain: Since then.
        loss: Running mean, for the progress bar.
        seconds: Wall clock spent on each of :data:`STAGES`, by all commands that this run took.
    """

    network: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: int = 0
    micro_batch_size: int | None = None
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    best_score: float | None = None
    best_step: int = 0
    best_values: Mapping[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    loss: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def trained(self) -> nn.Module:
        """The network that validates and is kept: the average, where there is one."""
        return self.network if self.average is None else self.average


def start(task: TrainableTask, config: TrainerConfig, device: torch.device) -> TrainingState:
    """A fresh network and all that trains it."""
    if device.type == "cpu":
        keep_freed_memory()
    seed_step(config.seed, -1)
    network = task.build_model().to(device)
    return TrainingState(
        network=network,
        average=None if config.ema_decay is None else averaged_copy(network),
        optimizer=build_optimizer(config.optimizer, network),
        precision=Precision(config.precision or "fp32", device.type),
        micro_batch_size=config.micro_batch_size,
    )


def save(path: Path, state: TrainingState) -> None:
    """Write all that is needed to go on exactly."""
    progress = {name: getattr(state, name) for name in KEPT}
    save_checkpoint(path, state.network, state.average, state.optimizer, state.precision, progress)


def restore(path: Path, state: TrainingState) -> None:
    """Go on from what :func:`save` wrote.

    Raises:
        CheckpointError: The file is unusable, see :func:`~medseg.engine.checkpoint.load_checkpoint`.
    """
    progress = load_checkpoint(path, state.network, state.average, state.optimizer, state.precision)
    for name in KEPT:
        setattr(state, name, progress[name])
