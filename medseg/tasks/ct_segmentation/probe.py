"""The probe: how fast this machine trains, from a few steps of a few networks on real patches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from medseg.core.memory import free_memory_bytes, resident_bytes
from medseg.core.progress import Listener, Progress, silent
from medseg.core.task import Limits
from medseg.engine.machine import GPU_PROGRAM_BYTES, USUAL_CPU, Machine, Step, fit_step_time, profile
from medseg.engine.throughput import PROBE_STEPS, WARMUP_STEPS, faster_precision, probe_steps
from medseg.inference.runtimes.torch import choose_device
from medseg.tasks.ct_segmentation.search import Choice, Search, closest
from medseg.tasks.ct_segmentation.training import CtSegmentationTask, create

CASES = 2
"""Cases that are prepared for the probe."""

EDGES = {1: (32, 40), 2: (48, 72)}
"""Of the patches that are probed, by the network's first stride [voxels]."""

SHARE = 0.03
"""Of the budget: after this time no further point is probed."""

NUM_MOMENTS = 2
"""Of AdamW: what is probed must fit in any case."""

USUAL_GPU = "gpu-24g"
"""Profile whose proportions a GPU is expected to have."""

PROBE_BYTES = 350_000_000
"""What a probe leaves behind in memory on a CPU, and a run would without one: MONAI, oneDNN's kernels, the allocator's spare parts."""

LATER_BYTES = 60_000_000
"""Of modules that are loaded after the plan is made: matplotlib, TensorBoard."""


@dataclass(frozen=True)
class Probed:
    """What was found.

    Attributes:
        machine: In numbers.
        preparing_s: Of one case [s].
        measured: Steps, each with its seconds.
    """

    machine: Machine
    preparing_s: float
    measured: tuple[tuple[Step, float], ...]


def probe(search: Search, limits: Limits, listener: Listener) -> Probed:
    """Measure this machine.

    Args:
        search: What will be chosen from.
        limits: Time and device; the probe takes a small part of the time.
        listener: Hears of each point.

    Raises:
        ConfigError: There is no such device.
    """
    device = choose_device(limits.device)
    machine = machine_here(device)
    most_bytes = min(machine.memory_bytes, limits.memory_bytes or machine.memory_bytes)
    limit_s = float("inf") if limits.budget_s is None else SHARE * limits.budget_s
    began = time.monotonic()
    some = search.plan.model_copy(update={"training_cases": search.plan.training_cases[:CASES], "validation_cases": ()})
    task = create(search.config, search.dataset, some, silent)
    preparing_s = (time.monotonic() - began) / len(some.training_cases)
    trainer = search.config.trainer
    points = _points(search)
    precision = trainer.precision or machine.precision
    if (
        trainer.precision is None and limits.budget_s is not None
    ):  # what is counted in steps must not depend on a timing
        precision = faster_precision(_trial(task, points[len(points) // 2]), trainer, device)
    machine = replace(machine, precision=precision)
    trainer = trainer.model_copy(update={"precision": precision})
    measured: list[tuple[Step, float]] = []
    for choice in points:
        expected_s = (WARMUP_STEPS + PROBE_STEPS) * fit_step_time(measured, machine.step_time).seconds(choice.step)
        is_late = bool(measured) and time.monotonic() - began + expected_s > limit_s
        if is_late or sum(machine.memory(choice.step, NUM_MOMENTS).values()) > most_bytes:
            continue
        measured.append((choice.step, probe_steps(_trial(task, choice), trainer, device)))
        listener(Progress("probing", len(measured), None))
    machine = replace(machine, step_time=fit_step_time(measured, machine.step_time))
    if device.type == "cpu":
        # What the probe leaves behind (threads, kernels, memory that the allocator keeps) is there in the run too.
        machine = replace(machine, program_bytes=resident_bytes() + LATER_BYTES)
    return Probed(machine, preparing_s, tuple(measured))


def machine_here(device: torch.device) -> Machine:
    """This machine as it usually is, before it is measured."""
    if device.type == "cuda":
        usual = profile(USUAL_GPU).step_time
        free = torch.cuda.mem_get_info(device)[0]
        return Machine(torch.cuda.get_device_name(device), "cuda", usual, free, GPU_PROGRAM_BYTES, "fp16")
    name = f"a CPU with {torch.get_num_threads()} threads"
    own = resident_bytes()
    return Machine(name, "cpu", USUAL_CPU, own + free_memory_bytes(), own + PROBE_BYTES + LATER_BYTES, "fp32")


def _points(search: Search) -> list[Choice]:
    """Patches, widths and first strides that differ, the cheapest first."""
    points: dict[tuple[object, ...], Choice] = {}
    for rule in search.rules():
        possible = search.layouts(search.plan.spacing_ijk_mm, rule)
        for edge in EDGES[rule.stem_stride]:
            each = closest(possible, edge**3)
            networks = search.networks(rule, len(each.strides))
            network = networks[len(networks) // 2] if edge == EDGES[rule.stem_stride][-1] else networks[-1]
            batch_size = search.batch_sizes(search.plan.spacing_ijk_mm, each)[0]
            choice = Choice(search.plan.spacing_ijk_mm, each, network, search.cost(network, each), batch_size)
            points[network, each] = choice
    return sorted(points.values(), key=lambda point: point.cost.macs * point.batch_size)


def _trial(task: CtSegmentationTask, choice: Choice) -> CtSegmentationTask:
    """The task with one choice's patch, batch and network."""
    changes = {
        "patch_ijk": choice.layout.patch_ijk,
        "strides": choice.layout.strides,
        "kernels": choice.layout.kernels,
        "batch_size": choice.batch_size,
    }
    config = task.config.model_copy(update={"network": choice.network})
    return replace(task, config=config, plan=task.plan.model_copy(update=changes))
