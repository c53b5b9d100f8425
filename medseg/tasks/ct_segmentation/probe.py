"""The probe: how fast this machine trains, from a few steps of a few networks on real patches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from medseg.core.memory import free_memory_bytes, resident_bytes
from medseg.core.progress import Listener, Progress, silent
from medseg.core.task import Limits
from medseg.engine.machine import GPU_PROGRAM_BYTES, Machine, Step, fit_step_time
from medseg.engine.throughput import PROBE_STEPS, WARMUP_STEPS, probe_steps
from medseg.inference.runtimes.torch import choose_device
from medseg.tasks.ct_segmentation.search import Choice, Search, closest
from medseg.tasks.ct_segmentation.training import CtSegmentationTask, create

CASES = 2
"""Cases that are prepared for the probe."""

EDGES = {1: (32, 40), 2: (48, 72)}
"""Of the patches that are probed, by the network's first stride [voxels]."""

SHARE = 0.03
"""Of the budget: after this time no further point is probed."""

LATER_BYTES = 150_000_000
"""Of modules that are loaded after the plan is made: MONAI, matplotlib, TensorBoard."""


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
    program_bytes = resident_bytes() + LATER_BYTES
    limit_s = float("inf") if limits.budget_s is None else SHARE * limits.budget_s
    began = time.monotonic()
    some = search.plan.model_copy(update={"training_cases": search.plan.training_cases[:CASES], "validation_cases": ()})
    task = create(search.config, search.dataset, some, silent)
    preparing_s = (time.monotonic() - began) / len(some.training_cases)
    measured: list[tuple[Step, float]] = []
    for choice in _points(search):
        expected_s = (WARMUP_STEPS + PROBE_STEPS) * fit_step_time(measured).seconds(choice.step)
        if measured and time.monotonic() - began + expected_s > limit_s:
            break
        measured.append((choice.step, _seconds(task, choice, device)))
        listener(Progress("probing", len(measured), None))
    step_time = fit_step_time(measured)
    if device.type == "cuda":
        name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
        machine = Machine(name, "cuda", step_time, free, GPU_PROGRAM_BYTES, "fp16")
    else:
        name, free = f"a CPU with {torch.get_num_threads()} threads", resident_bytes() + free_memory_bytes()
        machine = Machine(name, "cpu", step_time, free, program_bytes, "fp32")
    return Probed(machine, preparing_s, tuple(measured))


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


def _seconds(task: CtSegmentationTask, choice: Choice, device: torch.device) -> float:
    """A step of one choice, measured [s]."""
    changes = {
        "patch_ijk": choice.layout.patch_ijk,
        "strides": choice.layout.strides,
        "kernels": choice.layout.kernels,
        "batch_size": choice.batch_size,
    }
    config = task.config.model_copy(update={"network": choice.network})
    return probe_steps(
        replace(task, config=config, plan=task.plan.model_copy(update=changes)), task.config.trainer, device
    )
