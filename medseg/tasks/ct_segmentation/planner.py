"""The planner: the grid, patch, batch and network that promise most in the time and memory at hand."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from medseg.core.case import Dataset
from medseg.core.errors import ResourceError
from medseg.core.progress import Listener
from medseg.core.task import Limits
from medseg.core.units import duration_text, size_text
from medseg.data import worth
from medseg.data.plan import Candidate, Plan, median_shape_on, steps_within
from medseg.engine.config import SGDConfig, StepsLength
from medseg.engine.machine import PROFILES, Machine, profile
from medseg.engine.throughput import RESERVE, afterwards_s, num_validations
from medseg.inference.runtimes.torch import choose_device
from medseg.models.config import ResidualUNetConfig, UNetConfig
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.network import planned_network
from medseg.tasks.ct_segmentation.probe import machine_here, probe
from medseg.tasks.ct_segmentation.search import Choice, Search
from medseg.tasks.ct_segmentation.training import VALIDATION_OVERLAP

NUM_KEPT = 5
"""Candidates that the plan keeps for people."""

FORWARD_SHARE = 0.5
"""Of a step's time with one patch, that a window of a validation takes: a third for the forward pass, and its stitching."""

STITCHED_COPIES = 3
"""Arrays of a case's logits while it is validated: the sum of the windows, their mean, what is decided from it."""

OTHER_SHARE = 0.03
"""Part of a budget that the probe and the last measurement take."""


def fit_plan(config: CtSegmentationConfig, dataset: Dataset, plan: Plan, limits: Limits, listener: Listener) -> Plan:
    """A plan that makes the best of the time and memory at hand; only what the config leaves open is chosen.

    Args:
        config: Of the run.
        dataset: That it trains on.
        plan: As it follows from the data alone.
        limits: Time, memory and device.
        listener: Hears of the probe.

    Raises:
        ResourceError: Not even the smallest candidate fits into the memory.
        ConfigError: There is no such device.
    """
    if limits.device not in PROFILES:
        choose_device(limits.device)
    if plan.started_from is not None:
        return plan
    is_timed = limits.budget_s is not None or limits.device in PROFILES
    search = Search(config, dataset, plan) if is_timed else as_usual(config, dataset, plan)
    if not (is_timed and search.is_open) and limits.memory_bytes is None:
        return plan
    choices = list(search.choices())
    if limits.device in PROFILES:
        machine, preparing_s = profile(limits.device), 0.0
    elif len(choices) == 1:
        machine, preparing_s = machine_here(choose_device(limits.device)), 0.0
    else:
        probed = probe(search, limits, listener)
        machine, preparing_s = probed.machine, probed.preparing_s * len(plan.training_cases)
    if limits.memory_bytes is not None:
        machine = replace(machine, memory_bytes=limits.memory_bytes)
    if config.trainer.precision is not None:
        machine = replace(machine, precision=config.trainer.precision)
    planner = Planner(search, machine, limits, preparing_s)
    return planner.plan(choices) if len(choices) > 1 else planner.plan_without_choice(choices[0])


def as_usual(config: CtSegmentationConfig, dataset: Dataset, plan: Plan) -> Search:
    """The alternatives where nobody said how long a run may take: all is as usual, only the patch may shrink."""
    choices = config.plan.model_copy(update={"spacing_mm": plan.spacing_ijk_mm})
    trainer = config.trainer.model_copy(update={"batch_size": plan.batch_size})
    changes = {"plan": choices, "trainer": trainer, "network": planned_network(config.network, plan)}
    return Search(config.model_copy(update=changes), dataset, plan, float(np.prod(plan.patch_ijk)))


@dataclass(frozen=True)
class Weighed:
    """An alternative and what speaks for it.

    Attributes:
        choice: The alternative.
        num_steps: That fit into the time.
        seconds_per_step: Predicted [s].
        memory: Predicted peak by what takes it [bytes].
        losses: Of Dice, by reason.
    """

    choice: Choice
    num_steps: int
    seconds_per_step: float
    memory: dict[str, float]
    losses: dict[str, float]

    @cached_property
    def peak_bytes(self) -> float:
        """Of memory."""
        return sum(self.memory.values())

    @cached_property
    def expected_dice(self) -> float:
        """What the losses leave of 1."""
        return max(0.0, 1 - sum(self.losses.values()))

    @property
    def features(self) -> tuple[int, ...] | None:
        """Of a network whose features a planner may choose."""
        network = self.choice.network
        return network.features if isinstance(network, UNetConfig | ResidualUNetConfig) else None

    def candidate(self) -> Candidate:
        """For the plan's readers."""
        return Candidate(
            spacing_ijk_mm=self.choice.spacing,
            patch_ijk=self.choice.layout.patch_ijk,
            strides=self.choice.layout.strides,
            kernels=self.choice.layout.kernels,
            features=self.features,
            batch_size=self.choice.batch_size,
            num_steps=self.num_steps,
            seconds_per_step=round(self.seconds_per_step, 5),
            peak_bytes=round(self.peak_bytes),
            expected_dice=round(self.expected_dice, 4),
            losses={reason: round(loss, 4) for reason, loss in self.losses.items()},
        )


@dataclass(frozen=True)
class Planner:
    """Weighs the alternatives on a machine.

    Attributes:
        search: The alternatives.
        machine: Where training will run.
        limits: Time, memory and device.
        preparing_s: Of all training cases, on the grid that follows from the data [s].
    """

    search: Search
    machine: Machine
    limits: Limits
    preparing_s: float

    def plan_without_choice(self, choice: Choice) -> Plan:
        """The plan as it is, and the memory that it needs; raises ResourceError where that is not there."""
        only = self.weigh(choice)
        if only.peak_bytes > self.machine.memory_bytes:
            raise self.nothing_fits(only)
        return self.search.plan.model_copy(update=self.of_memory(only))

    def of_memory(self, each: Weighed) -> dict[str, object]:
        """What a plan says of memory."""
        return {
            "cases_in_memory": self.cases_bytes(each.choice) > 0 if self.machine.device == "cpu" else None,
            "memory_bytes": {name: round(size) for name, size in each.memory.items()},
        }

    def plan(self, choices: Iterable[Choice]) -> Plan:
        """The best of some alternatives as a plan; raises ResourceError where none fits."""
        weighed = [self.weigh(choice) for choice in choices]
        fitting = [each for each in weighed if each.peak_bytes <= self.machine.memory_bytes]
        if not fitting:
            raise self.nothing_fits(min(weighed, key=lambda each: each.peak_bytes))
        ranked = sorted(fitting, key=lambda each: (-each.expected_dice, each.peak_bytes))
        best, kept = ranked[0], _different(ranked)
        old = self.search.plan
        is_here = self.limits.device not in PROFILES
        return old.model_copy(
            update={
                "spacing_ijk_mm": best.choice.spacing,
                "patch_ijk": best.choice.layout.patch_ijk,
                "strides": best.choice.layout.strides,
                "kernels": best.choice.layout.kernels,
                "features": best.features,
                "batch_size": best.choice.batch_size,
                "num_steps": None if is_here else best.num_steps,
                "precision": self.machine.precision if self.search.config.trainer.precision is None else None,
                **self.of_memory(best),
                "candidates": tuple(each.candidate() for each in kept),
                "reasons": (*(r for r in old.reasons if not r.startswith("patch ")), *self.reasons(kept)),
            }
        )

    def weigh(self, choice: Choice) -> Weighed:
        """One alternative, weighed."""
        num_steps = self.num_steps(choice)
        run = worth.Run(
            spacing_ijk_mm=choice.spacing,
            patch_ijk=choice.layout.patch_ijk,
            stem_stride=max(choice.layout.strides[0]),
            num_parameters=choice.cost.num_parameters,
            batch_size=choice.batch_size,
            num_steps=num_steps,
        )
        lost = worth.losses(run, self.search.facts.median_extent_mm, self.search.thicknesses_mm)
        return Weighed(choice, num_steps, self.machine.step_time.seconds(choice.step), self.memory(choice), lost)

    def num_steps(self, choice: Choice) -> int:
        """Steps that the config says or that the time allows, at most as many as are worth anything."""
        length, validation = self.search.config.trainer.length, self.search.config.trainer.validation
        if isinstance(length, StepsLength) and self.limits.budget_s is None:
            return length.num_steps
        if self.limits.budget_s is None:
            return worth.MAX_STEPS
        budget_s, num_cases = self.limits.budget_s, len(self.search.plan.validation_cases)
        step_s, case_s = self.machine.step_time.seconds(choice.step), self.validation_s(choice)
        coarser = float(np.prod(choice.spacing) / np.prod(self.search.plan.spacing_ijk_mm))
        spent_s = time.monotonic() - self.limits.started + self.preparing_s / coarser + OTHER_SHARE * budget_s
        left_s = budget_s * (1 - RESERVE) - afterwards_s(budget_s, case_s, num_cases, validation.max_cases)
        validated_s = min(num_cases, validation.max_cases) * case_s
        times = num_validations(self.search.config.trainer, budget_s, validated_s)
        steps = steps_within(left_s, spent_s, step_s, validated_s, times)
        return min(worth.MAX_STEPS, steps)

    def validation_s(self, choice: Choice) -> float:
        """Of a median case [s]."""
        shape, patch = median_shape_on(self.search.facts, choice.spacing), np.array(choice.layout.patch_ijk)
        along = np.ceil(np.maximum(0, shape / patch - 1) / (1 - VALIDATION_OVERLAP)) + 1
        one = replace(choice, batch_size=1)
        return FORWARD_SHARE * self.machine.step_time.seconds(one.step) * float(along.prod())

    def memory(self, choice: Choice) -> dict[str, float]:
        """Peak memory by what takes it [bytes]."""
        optimizer = self.search.config.trainer.optimizer
        num_moments = 1 if isinstance(optimizer, SGDConfig) else 2
        micro = self.search.config.trainer.micro_batch_size or choice.batch_size
        step = replace(choice, batch_size=min(micro, choice.batch_size)).step
        terms = self.machine.memory(step, num_moments)
        of_step = ("activations", "workspace", "loss")
        voxels = float(median_shape_on(self.search.facts, choice.spacing).prod())
        channels, outputs = len(self.search.dataset.channels), self.search.num_outputs
        validating = 4.0 * voxels * (channels + STITCHED_COPIES * outputs)
        if validating > sum(terms[name] for name in of_step):
            terms = {name: size for name, size in terms.items() if name not in of_step}
            terms["validation of a case"] = validating
        if self.machine.device == "cpu":
            terms["cases"] = self.cases_bytes(choice)
        return terms

    def cases_bytes(self, choice: Choice) -> float:
        """Of the training cases unpacked; 0 where they are read from the cache [bytes]."""
        per_voxel = 4.0 * len(self.search.dataset.channels) + 1
        needed = per_voxel * self.search.num_voxels(choice.spacing)
        allowed = self.search.config.cache.memory_share * (self.machine.memory_bytes - self.machine.program_bytes)
        return needed if needed <= allowed else 0.0

    def nothing_fits(self, least: Weighed) -> ResourceError:
        """The refusal where memory is too small for everything."""
        told = ", ".join(f"{name} {size_text(size)}" for name, size in least.memory.items())
        return ResourceError(
            f"even the smallest plan needs {size_text(least.peak_bytes)} of memory ({told}), and there are "
            f"{size_text(self.machine.memory_bytes)}: allow more, or leave network, patch and batch to the planner",
            code="resource.memory",
        )

    def reasons(self, kept: Sequence[Weighed]) -> list[str]:
        """Why the first of the best, for people."""
        best, choice = kept[0], kept[0].choice
        shape = " x ".join(map(str, median_shape_on(self.search.facts, choice.spacing)))
        given = self.limits.budget_s
        time_told = "any length of time" if given is None else duration_text(given)
        lost = ", ".join(f"{reason} {loss:.3f}" for reason, loss in best.losses.items())
        told = [
            f"planned for {time_told} and {size_text(self.machine.memory_bytes)} of memory on {self.machine.name} in {self.machine.precision}; peak "
            f"{size_text(best.peak_bytes)}, {best.seconds_per_step:.3f} s a step, about {best.num_steps} steps",
            f"patch {' x '.join(map(str, choice.layout.patch_ijk))} voxels of a median case's {shape}, "
            f"{choice.batch_size} a step",
            f"network: {_network_told(choice)}",
            f"expected to lose, of a Dice of 1: {lost}",
        ]
        if choice.spacing != self.search.plan.spacing_ijk_mm:
            spacing = " x ".join(f"{value:.4g}" for value in choice.spacing)
            told.insert(1, f"grid coarsened to {spacing} mm: steps that see more weigh more than the detail lost")
        if len(kept) > 1:
            told.append(f"next best: {_alternative_told(kept[1])}")
        return told


def _different(ranked: Sequence[Weighed]) -> list[Weighed]:
    """The best of each grid, first stride, width and batch: neighbours of one patch tell nothing."""
    kept: dict[tuple[object, ...], Weighed] = {}
    for each in ranked:
        width = each.features[0] if each.features else None
        kept.setdefault((each.choice.spacing, each.choice.layout.strides[0], width, each.choice.batch_size), each)
        if len(kept) == NUM_KEPT:
            break
    return list(kept.values())


def _network_told(choice: Choice) -> str:
    features = getattr(choice.network, "features", None)
    strides = " ".join("x".join(map(str, stride)) for stride in choice.layout.strides)
    told = choice.network.kind + (f" with features {', '.join(map(str, features))}" if features else "")
    told += f", {choice.cost.num_parameters / 1e6:.2g} M weights, strides {strides}"
    if choice.layout.kernels is None:
        return f"{told}; 3D: all kernels are 3 along each axis"
    flat = [axis for axis in range(3) if choice.layout.kernels[0][axis] == 1]
    names = " and ".join("IJK"[axis] for axis in flat)
    is_never_strided = all(stride[axis] == 1 for stride in choice.layout.strides for axis in flat)
    dimensions = "2D but for the coarsest stage" if is_never_strided else "3D"
    return f"{told}; {dimensions}: along {names}, which is coarse, kernels are 1 until the other axes have caught up"


def _alternative_told(each: Weighed) -> str:
    spacing = " x ".join(f"{value:.3g}" for value in each.choice.spacing)
    patch = " x ".join(map(str, each.choice.layout.patch_ijk))
    width = f"{each.features[0]} features first, " if each.features else ""
    return (
        f"{spacing} mm, {each.choice.batch_size} patches of {patch}, {width}first stride "
        f"{max(each.choice.layout.strides[0])}: {each.num_steps} steps, {each.expected_dice:.3f} left of Dice"
    )
