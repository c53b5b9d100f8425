"""Measuring this machine before a run: how long a step and a validation take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from medseg.core.task import TrainableTask
from medseg.data.plan import Plan, steps_within
from medseg.engine.config import BudgetLength, StepsLength, TrainerConfig
from medseg.engine.schedule import RunLength
from medseg.engine.trainer import start, train_step

WARMUP_STEPS = 2
"""The first steps allocate memory and choose kernels; they say nothing about the later ones."""

MEASURED_STEPS = 6
"""Enough for a median that one hiccup of a shared machine does not move."""

RESERVE = 0.03
"""Part of a budget left for checkpoints and for a machine that is slower later than when it was measured."""


@dataclass(frozen=True)
class Throughput:
    """What was measured [s]."""

    seconds_per_step: float
    seconds_per_validation_case: float


def measure_throughput(task: TrainableTask, config: TrainerConfig, device: torch.device) -> Throughput:
    """Train a throw-away network for a few steps, loading included, and validate it on one case."""
    state = start(task, config, device)
    length = RunLength(num_steps=WARMUP_STEPS + MEASURED_STEPS, validate_every=1, checkpoint_every=1)
    batches = task.train_batches(0)
    seconds = []
    for _ in range(length.num_steps):
        began = time.perf_counter()
        train_step(task, state, next(batches), config, length, device)
        seconds.append(time.perf_counter() - began)
    validation = 0.0
    if task.num_validation_cases:
        began = time.perf_counter()
        task.validate(state.network, device, [0])
        validation = time.perf_counter() - began
    return Throughput(statistics.median(seconds[WARMUP_STEPS:]), validation)


def frozen_length(
    task: TrainableTask, plan: Plan, config: TrainerConfig, device: torch.device, started: float
) -> tuple[Plan, RunLength]:
    """The plan with its number of steps, measured only where nothing has fixed it yet.

    Args:
        task: What will be trained.
        plan: From this run before, from a file, or fresh.
        config: Says how long.
        device: Where the network will live.
        started: ``time.monotonic()`` when the command began: reading and preparing count against the budget.
    """
    validations = config.validation.num_validations
    if plan.num_steps is None and isinstance(config.length, StepsLength):
        plan = plan.model_copy(update={"num_steps": config.length.num_steps})
    elif plan.num_steps is None and isinstance(config.length, BudgetLength):
        measured = measure_throughput(task, config, device)
        cases = min(config.validation.max_cases, task.num_validation_cases)
        validation_s = cases * measured.seconds_per_validation_case
        spent_s = time.monotonic() - started
        budget_s = config.length.budget_s * (1 - RESERVE)
        steps = steps_within(budget_s, spent_s, measured.seconds_per_step, validation_s, validations)
        reason = (
            f"{steps} steps: {config.length.budget_s:.0f} s, less {spent_s:.0f} s until now, {validations} validations of "
            f"{validation_s:.1f} s and a reserve of {RESERVE:.0%}, at {measured.seconds_per_step:.3f} s a step"
        )
        plan = plan.model_copy(
            update={
                "num_steps": steps,
                "seconds_per_step": measured.seconds_per_step,
                "reasons": (*plan.reasons, reason),
            }
        )
    num_steps = plan.num_steps or 1
    validate_every = plan.validate_every or -(-num_steps // validations)
    plan = plan.model_copy(update={"validate_every": validate_every})
    return plan, RunLength(num_steps, validate_every, config.checkpoint_every)
