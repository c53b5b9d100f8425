"""Measuring this machine before a run: how long a step and a validation take, and how many steps fit into a budget."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from medseg.core.task import TrainableTask
from medseg.core.units import duration_text
from medseg.data.plan import Plan, steps_within
from medseg.engine.config import BudgetLength, StepsLength, TrainerConfig
from medseg.engine.precision import PrecisionName
from medseg.engine.prefetch import made_in_time
from medseg.engine.schedule import RunLength
from medseg.engine.state import start
from medseg.engine.trainer import train_step
from medseg.inference.components import component_cases

WARMUP_STEPS = 2
"""The first steps allocate memory and choose kernels; they say nothing about the later ones."""

FEWEST_STEPS, MOST_STEPS = 6, 60
"""Measured: enough that what is drawn for a patch (rotated or not) averages out, and that one hiccup does not matter."""

PROBE_STEPS = 2
"""Measured at each point of a model."""

PRECISION_STEPS = 3
"""Measured in each precision."""

WORTH_ROUNDING = 0.85
"""bf16 is taken where a step takes less than this share of its time in fp32. It is .5 to .75 on CPUs that compute in bf16
(AVX512-BF16, AMX), and 5 to 30 times as long on the others; so near 1 there is only noise."""

MEASURING_SHARE = 0.015
"""Part of a budget after which no further step is measured."""

RESERVE = 0.02
"""Part of a budget left for checkpoints and for a machine that is slower later than when it was measured."""

VALIDATION_SHARE = 0.1
"""Of a budget: where the config's validations would take more of it, there are fewer, but one at the end."""

FINISH_S = 8.0
"""The bundle, the figures and the page of a run [s]; two 2024 server cores, matplotlib's import included."""

FINAL_COST = 4.0
"""Of a case in the final validation beside one during the training: twice the overlap along three axes, less what lies outside
the case, and the scores on the file's grid."""

FINAL_SHARE = 0.05
"""Of the training's time, that the final validation may take for further cases."""


@dataclass(frozen=True)
class Throughput:
    """What was measured [s]."""

    seconds_per_step: float
    seconds_per_validation_case: float


def probe_steps(task: TrainableTask, config: TrainerConfig, device: torch.device) -> float:
    """Seconds of a step, from the fewest steps that say anything: for one of several points of a model."""
    return _measured_steps(task, config, device, 0.0, PROBE_STEPS, PROBE_STEPS)[0]


def faster_precision(task: TrainableTask, config: TrainerConfig, device: torch.device) -> PrecisionName:
    """Which arithmetic suits this machine: fp16 on a GPU, and on a CPU what a few steps of a throw-away network say."""
    if device.type != "cpu":
        return "fp16"
    in_full, in_half = (
        _measured_steps(
            task, config.model_copy(update={"precision": name}), device, 0.0, PRECISION_STEPS, PRECISION_STEPS
        )[0]
        for name in ("fp32", "bf16")
    )
    return "bf16" if in_half < WORTH_ROUNDING * in_full else "fp32"


def measure_throughput(task: TrainableTask, config: TrainerConfig, device: torch.device, limit_s: float) -> Throughput:
    """Train a throw-away network for a few steps, and validate it on up to two cases.

    Args:
        task: What will be trained.
        config: The loop's settings.
        device: Where the network will live.
        limit_s: After this time no further step is begun, once the fewest are done [s].
    """
    seconds, network = _measured_steps(task, config, device, limit_s, FEWEST_STEPS, MOST_STEPS)
    num_cases = min(config.validation.max_cases, task.num_validation_cases)
    numbers = sorted({0, num_cases // 2}) if num_cases else []
    began = time.perf_counter()
    if numbers:
        task.validate(network, device, numbers)
    return Throughput(seconds, (time.perf_counter() - began) / max(1, len(numbers)))


def frozen_length(
    task: TrainableTask, plan: Plan, config: TrainerConfig, device: torch.device, started: float
) -> tuple[Plan, RunLength]:
    """The plan with its arithmetic and its number of steps, measured only where nothing has fixed them yet.

    Args:
        task: What will be trained.
        plan: From this run before, from a file, or fresh.
        config: Says how long.
        device: Where the network will live.
        started: ``time.monotonic()`` when the command began: reading and preparing count against the budget.
    """
    validations = config.validation.num_validations
    if plan.num_steps is None:
        plan = with_precision(task, plan, config, device)
    if plan.num_steps is None and isinstance(config.length, StepsLength):
        plan = plan.model_copy(update={"num_steps": config.length.num_steps})
    elif plan.num_steps is None and isinstance(config.length, BudgetLength):
        budget_s = config.length.budget_s
        measured = measure_throughput(task, planned_trainer(config, plan), device, MEASURING_SHARE * budget_s)
        case_s, num_cases = measured.seconds_per_validation_case, task.num_validation_cases
        validation_s = min(config.validation.max_cases, num_cases) * case_s
        validations = num_validations(config, budget_s, validation_s)
        end_s = afterwards_s(budget_s, case_s, num_cases, config.validation.max_cases)
        spent_s = time.monotonic() - started
        left_s = budget_s * (1 - RESERVE) - end_s
        steps = steps_within(left_s, spent_s, measured.seconds_per_step, validation_s, validations)
        reason = (
            f"{steps} steps: {duration_text(budget_s)}, less {spent_s:.0f} s until now, {validations} validations of "
            f"{validation_s:.1f} s, {end_s:.0f} s for bundle, final validation and report and a reserve of {RESERVE:.0%}, "
            f"at {measured.seconds_per_step:.3f} s a step"
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


def with_precision(task: TrainableTask, plan: Plan, config: TrainerConfig, device: torch.device) -> Plan:
    """The plan with the arithmetic that suits this machine, where neither it nor the config says which.

    A run counted in steps is not timed: on a CPU it stays in fp32, so that its result does not depend on a measurement.
    """
    is_untimed = device.type == "cpu" and isinstance(config.length, StepsLength)
    if is_untimed or config.precision is not None or plan.precision is not None:
        return plan
    return plan.model_copy(update={"precision": faster_precision(task, config, device)})


def planned_trainer(config: TrainerConfig, plan: Plan) -> TrainerConfig:
    """The loop's settings with what the plan chose where they leave it open."""
    return config.model_copy(update={"precision": config.precision or plan.precision})


def num_validations(config: TrainerConfig, budget_s: float, validation_s: float) -> int:
    """How often a run validates: as often as the config says, where that is affordable."""
    affordable = int(VALIDATION_SHARE * budget_s / max(validation_s, 1e-9))
    return max(1, min(config.validation.num_validations, affordable))


def afterwards_s(budget_s: float, case_s: float, num_cases: int, num_at_least: int) -> float:
    """Seconds from the last step to the end of the command [s].

    Args:
        budget_s: Of the whole command [s].
        case_s: A validation case during the training [s].
        num_cases: That validate.
        num_at_least: Of them, tried in the final validation however long they take.
    """
    choosing = len(component_cases(num_cases))
    needed_s = FINAL_COST * case_s * min(num_at_least, num_cases)
    allowed_s = min(FINAL_COST * case_s * num_cases, FINAL_SHARE * budget_s)
    return FINISH_S + choosing * case_s + max(needed_s, allowed_s)


def _measured_steps(
    task: TrainableTask, config: TrainerConfig, device: torch.device, limit_s: float, fewest: int, most: int
) -> tuple[float, torch.nn.Module]:
    """Mean seconds of a step, the slowest left out where there are a few; and the network.

    Loading is included as in the run.
    """
    state = start(task, config, device)
    length = RunLength(num_steps=WARMUP_STEPS + most, validate_every=most, checkpoint_every=most)
    seconds: list[float] = []
    with made_in_time(task.train_batches(0), device) as batches:
        for _ in range(WARMUP_STEPS):
            train_step(task, state, next(batches), config, length, device)
        began = time.perf_counter()
        while len(seconds) < fewest or (len(seconds) < most and time.perf_counter() - began < limit_s):
            step_began = time.perf_counter()
            train_step(task, state, next(batches), config, length, device)
            seconds.append(time.perf_counter() - step_began)
    kept = sorted(seconds)[: -1 if len(seconds) >= FEWEST_STEPS else None]
    return sum(kept) / len(kept), state.network
