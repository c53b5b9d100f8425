"""The training loop. ``fit`` is its table of contents, ``train_step`` its recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medseg.core.progress import Listener, Progress
from medseg.core.task import Batch, TrainableTask
from medseg.engine.average import decay_at, update_average
from medseg.engine.config import TrainerConfig
from medseg.engine.gradients import gradients_within_memory
from medseg.engine.interruption import stop_requests
from medseg.engine.prefetch import made_in_time
from medseg.engine.schedule import RunLength, learning_rate
from medseg.engine.state import TrainingState, restore, save, start
from medseg.engine.stopwatch import Stopwatch
from medseg.engine.tracking import RunFolder, Tracker
from medseg.engine.trouble import Trouble, copied_buffers, nonfinite, require_recovery, restore_buffers

Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        ending: Why.
        num_steps_done: Of the whole run.
        best_score, best_step, best_values: Of the best validation; None, 0 and empty without one.
        train_s: Wall clock of this command's part of the training [s].
        seconds: Wall clock spent on each of :data:`~medseg.engine.state.STAGES`, by all commands of this run [s].
    """

    ending: Ending
    num_steps_done: int
    best_score: float | None
    best_step: int
    best_values: Mapping[str, Any]
    train_s: float
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class StepReport:
    """What came of a step.

    Attributes:
        values: What is logged of it: loss and its terms, grad_norm, lr, seconds; None in place of what is not finite, as
            the norm where fp16 overflowed. None altogether where the step was skipped.
        troubles: What went wrong on the way and was got over.
    """

    values: Mapping[str, Any] | None
    troubles: Sequence[Trouble]


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
        TrainingError: Loss or gradient was not finite twice.
        ResourceError: Not even one patch fits into memory.
        CheckpointError: The checkpoint to resume from is unusable.
    """
    state = start(task, config, device)
    if resume:
        restore(run.last, state)
    started = time.perf_counter()
    ending: Ending = "finished"
    watch = Stopwatch(state.seconds)
    prefetch = made_in_time(task.train_batches(state.step), device)
    with stop_requests() as stop, Tracker(run, state.step) as tracker, prefetch as batches:
        while state.step < length.num_steps:
            with watch.measure("loading"):
                batch = next(batches)
            wait_s = watch.last_s
            with watch.measure("steps"):
                report = train_step(task, state, batch, config, length, device)
            _record(report, state, length, wait_s, tracker, listener)
            if length.validates_after(state.step):
                with watch.measure("validation"):
                    validate(task, state, config, run, device, tracker, listener)
            stopping = stop.requested  # asked once: what comes after this line finds its checkpoint in the next round
            if length.saves_after(state.step) or stopping:
                with watch.measure("checkpoints"):
                    save(run.last, state)
            if stopping:
                ending = "interrupted"
                break
            patience = config.validation.patience
            if patience is not None and state.validations_without_gain >= patience:
                ending = "stopped early"
                break
    seconds = time.perf_counter() - started
    best = (state.best_score, state.best_step, state.best_values)
    return FitResult(ending, state.step, *best, seconds, state.seconds)


def train_step(
    task: TrainableTask,
    state: TrainingState,
    batch: Batch,
    config: TrainerConfig,
    length: RunLength,
    device: torch.device,
) -> StepReport:
    """One step: forward, loss, backward, update. A step whose loss or gradient is not finite changes no weight."""
    began = time.perf_counter()
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
    buffers = copied_buffers(state.network)
    figures, troubles = gradients_within_memory(task, state, batch, buffers, config.seed, device)
    total, norm = figures["loss"], figures["grad_norm"]
    is_usable = math.isfinite(total) and (math.isfinite(norm) or state.precision.expects_overflow)
    if is_usable:
        state.precision.update(state.network, state.optimizer, norm, config.clip_norm)
        if state.average is not None and config.ema_decay is not None:
            update_average(state.average, state.network, decay_at(state.step, config.ema_decay))
        state.loss = total if state.loss is None else 0.95 * state.loss + 0.05 * total
    else:
        state.precision.skip()
        restore_buffers(state.network, buffers)
        troubles.append(nonfinite(task, state, batch, figures, config.seed, device))
    state.step += 1
    values = {name: number if math.isfinite(number) else None for name, number in figures.items()}
    values |= {"lr": rate, "seconds": time.perf_counter() - began}
    return StepReport(values if is_usable else None, troubles)


def validate(
    task: TrainableTask,
    state: TrainingState,
    config: TrainerConfig,
    run: RunFolder,
    device: torch.device,
    tracker: Tracker,
    listener: Listener,
) -> None:
    """Try the network (its averaged weights), log it, and keep it where it is the best so far."""
    numbers = range(min(config.validation.max_cases, task.num_validation_cases))
    if not numbers:
        return
    listener(Progress("validating", 0, len(numbers)))
    result = task.validate(state.trained, device, numbers)
    tracker.write("validation", state.step, {"score": result.score, **result.values})
    if state.best_score is None or result.score > state.best_score:
        state.best_score, state.best_step, state.best_values = result.score, state.step, result.values
        state.validations_without_gain = 0
        save(run.best, state)
    else:
        state.validations_without_gain += 1
    message = f"step {state.step}: validation {result.score:.3f}, best {state.best_score:.3f}"
    listener(Progress("validating", len(numbers), len(numbers), message=message))


def _record(
    report: StepReport, state: TrainingState, length: RunLength, wait_s: float, tracker: Tracker, listener: Listener
) -> None:
    """Log a step and tell of it; end the run where it is not to be got over."""
    for trouble in report.troubles:
        tracker.write(trouble.kind, state.step, trouble.values)
        listener(Progress("training", state.step, length.num_steps, message=trouble.message))
    require_recovery(state)
    if report.values is not None:
        tracker.write("step", state.step, {**report.values, "wait_s": wait_s})
    values = {"loss": state.loss or 0.0}
    if state.best_score is not None:
        values["best"] = state.best_score
    listener(Progress("training", state.step, length.num_steps, values))
