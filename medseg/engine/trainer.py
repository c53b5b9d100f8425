"""The training loop. ``fit`` is its table of contents, ``train_step`` its recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from medseg.core.errors import TrainingError
from medseg.core.progress import Listener, Progress
from medseg.core.task import TrainableTask
from medseg.engine.checkpoint import load_checkpoint, save_checkpoint
from medseg.engine.config import TrainerConfig
from medseg.engine.interruption import stop_requests
from medseg.engine.optimizer import build_optimizer
from medseg.engine.precision import Precision
from medseg.engine.schedule import RunLength, learning_rate
from medseg.engine.seeding import seed_step
from medseg.engine.tracking import RunFolder, Tracker

Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass
class TrainingState:
    """All that changes while a run goes on.

    Attributes:
        network, optimizer, precision: What a step needs.
        step: Steps done.
        best_score: Of the best validation so far; None before the first.
        best_step: Where that was.
        best_values: All that was logged there.
        validations_without_gain: Since then.
        loss: Running mean, for the progress bar.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_values: Mapping[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    loss: float | None = None

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors."""
        names = ("step", "best_score", "best_step", "best_values", "validations_without_gain", "loss")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class FitResult:
    """How a run ended."""

    ending: Ending
    num_steps_done: int
    best_score: float | None
    best_step: int
    best_values: Mapping[str, Any]
    train_s: float


def fit(
    task: TrainableTask,
    config: TrainerConfig,
    length: RunLength,
    run: RunFolder,
    device: torch.device,
    listener: Listener,
    *,
    resume: bool = False,
) -> FitResult:
    """Train a task's network.

    Args:
        task: What is trained.
        config: The loop's settings.
        length: The frozen number of steps and what is due when.
        run: Where checkpoints and logs go.
        device: Where the network lives.
        listener: Hears of every step.
        resume: Go on from the last checkpoint: the remaining steps see the same patches as without interruption.

    Raises:
        TrainingError: The loss is not finite.
        CheckpointError: The checkpoint to resume from is unusable.
    """
    state = start(task, config, device)
    if resume:
        for name, value in load_checkpoint(run.last, state.network, state.optimizer, state.precision).items():
            setattr(state, name, value)
    started = time.perf_counter()
    ending: Ending = "finished"
    batches = task.train_batches(state.step)
    with stop_requests() as stop, Tracker(run, state.step) as tracker:
        while state.step < length.num_steps:
            values = train_step(task, state, next(batches), config, length, device)
            tracker.write("step", state.step, values)
            if length.validates_after(state.step):
                validate(task, state, config, run, device, tracker, listener)
            _tell(state, length, listener)
            stopping = stop.requested  # asked once: what comes after this line finds its checkpoint in the next round
            if length.saves_after(state.step) or stopping:
                save_checkpoint(run.last, state.network, state.optimizer, state.precision, state.progress())
            if stopping:
                ending = "interrupted"
                break
            patience = config.validation.patience
            if patience is not None and state.validations_without_gain >= patience:
                ending = "stopped early"
                break
    seconds = time.perf_counter() - started
    return FitResult(ending, state.step, state.best_score, state.best_step, state.best_values, seconds)


def start(task: TrainableTask, config: TrainerConfig, device: torch.device) -> TrainingState:
    """A fresh network and all that trains it."""
    seed_step(config.seed, -1)
    network = task.build_model().to(device)
    return TrainingState(network, build_optimizer(config.optimizer, network), Precision(config.precision, device.type))


def train_step(
    task: TrainableTask,
    state: TrainingState,
    batch: Any,
    config: TrainerConfig,
    length: RunLength,
    device: torch.device,
) -> dict[str, float]:
    """One step: forward, loss, backward, update. Returns what is logged of it."""
    began = time.perf_counter()
    seed_step(config.seed, state.step)
    state.network.train()
    rate = learning_rate(
        state.step,
        length.num_steps,
        config.optimizer.learning_rate,
        config.schedule.warmup_steps,
        config.schedule.power,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with state.precision.forward():
        loss = task.loss(state.network, batch.to(device))
    total = float(loss.total.detach())
    if not math.isfinite(total):
        raise TrainingError(
            f"the loss is {total} at step {state.step + 1}: try a lower learning rate, or precision fp32",
            code="training.nonfinite",
        )
    norm = state.precision.step(loss.total, state.network, state.optimizer, config.clip_norm)
    state.step += 1
    state.loss = total if state.loss is None else 0.95 * state.loss + 0.05 * total
    terms = {name: float(term.detach()) for name, term in loss.terms.items()}
    figures = {"lr": rate, "grad_norm": norm if math.isfinite(norm) else None, "seconds": time.perf_counter() - began}
    return {"loss": total, **terms, **figures}  # type: ignore[dict-item]  # None stands for overflow in JSON


def validate(
    task: TrainableTask,
    state: TrainingState,
    config: TrainerConfig,
    run: RunFolder,
    device: torch.device,
    tracker: Tracker,
    listener: Listener,
) -> None:
    """Try the network, log it, and keep its weights where it is the best so far."""
    numbers = range(min(config.validation.max_cases, task.num_validation_cases))
    if not numbers:
        return
    listener(Progress("validating", 0, len(numbers)))
    result = task.validate(state.network, device, numbers)
    tracker.write("validation", state.step, {"score": result.score, **result.values})
    if state.best_score is None or result.score > state.best_score:
        state.best_score, state.best_step, state.best_values = result.score, state.step, result.values
        state.validations_without_gain = 0
        save_checkpoint(run.best, state.network, state.optimizer, state.precision, state.progress())
    else:
        state.validations_without_gain += 1
    message = f"step {state.step}: validation {result.score:.3f}, best {state.best_score:.3f}"
    listener(Progress("validating", len(numbers), len(numbers), message=message))


def _tell(state: TrainingState, length: RunLength, listener: Listener) -> None:
    values = {"loss": state.loss or 0.0}
    if state.best_score is not None:
        values["best"] = state.best_score
    listener(Progress("training", state.step, length.num_steps, values))
