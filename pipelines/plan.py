"""Planning: what training would decide from the data and this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.config import validated
from medseg.core.errors import PluginError
from medseg.core.plugins import find_task, resolve_reference, task_entry_points
from medseg.core.progress import Listener, silent
from medseg.core.task import Limits, TaskSpec
from medseg.core.units import size_text
from medseg.io.atomic import write_json_atomically
from medseg.io.config import apply_overrides
from pipelines.outcome import Outcome


@dataclass(frozen=True)
class PlanOptions:
    """Fields are the command's options."""

    out: Path | None = None
    device: str = "auto"
    budget_s: float | None = None
    memory_bytes: int | None = None
    explain: bool = False
    explain_memory: bool = False
    overrides: Sequence[str] = ()


def run(dataset_path: Path, options: PlanOptions, listener: Listener = silent) -> Outcome:
    """Fingerprint a dataset and plan for it; with a budget, probe the machine, choose for it, and freeze the steps.

    Args:
        dataset_path: Folder or dataset.json.
        options: Of the command line.
        listener: Hears of the progress.
    """
    started = time.monotonic()
    spec = task_of(dataset_path)
    config = validated(resolve_reference(spec.config_type), values_of(spec, dataset_path, options), "--set")
    files = resolve_reference(spec.files)
    dataset = files.read_dataset(dataset_path)
    if options.budget_s is not None:
        files.check_config(config, dataset)
    plan = planned(config, dataset, Limits(options.budget_s, options.memory_bytes, options.device, started), listener)
    if options.budget_s is not None and plan.num_steps is None:
        from medseg.engine.seeding import use_threads
        from medseg.engine.throughput import frozen_length
        from medseg.inference.runtimes.torch import choose_device

        use_threads(config.trainer.num_threads)
        task = resolve_reference(spec.create)(config, dataset, plan, listener)
        plan, _ = frozen_length(task, plan, config.trainer, choose_device(options.device), started)
    document = plan.model_dump(mode="json")
    if options.out is not None:
        write_json_atomically(options.out, document)
    lines = [*plan.reasons]
    lines += table(plan.candidates) if options.explain else []
    lines += memory_terms(plan.memory_bytes) if options.explain_memory else []
    lines += [f"plan: {options.out}"] if options.out else []
    return Outcome(1 if plan.left_out else 0, document, "\n".join(lines))


def planned(config: Any, dataset: Any, limits: Limits, listener: Listener) -> Any:
    """A new plan: from the data, and then for the machine where time or memory are limited.

    Args:
        config: Of the run.
        dataset: That it trains on.
        limits: Time, memory and device.
        listener: Hears of the progress.
    """
    spec = find_task(config.task)
    plan = resolve_reference(spec.files).make_plan(config, dataset, listener)
    if spec.fit_plan is None or limits == Limits(None, None, "auto", limits.started):
        return plan
    return resolve_reference(spec.fit_plan)(config, dataset, plan, limits, listener)


def table(candidates: Sequence[Any]) -> list[str]:
    """The candidates that were weighed, best first, for people."""
    lines = [
        "Dice   steps   s/step  memory   batch x patch          grid [mm]           network; what is lost of a Dice of 1"
    ]
    for each in candidates:
        patch, spacing = (
            " x ".join(map(str, each.patch_ijk)),
            " x ".join(f"{value:.3g}" for value in each.spacing_ijk_mm),
        )
        network = f"{', '.join(map(str, each.features or ()))} stride {max(each.strides[0])}"
        lost = ", ".join(f"{reason} {loss:.3f}" for reason, loss in each.losses.items())
        lines.append(
            f"{each.expected_dice:.3f} {each.num_steps:6d} {each.seconds_per_step:8.3f}  {size_text(each.peak_bytes):<8} "
            f"{each.batch_size:2d} x {patch:<18} {spacing:<19} {network}; {lost}"
        )
    return lines


def memory_terms(memory_bytes: Mapping[str, int]) -> list[str]:
    """What takes how much memory, for people."""
    if not memory_bytes:
        return ["memory is predicted with --budget or --memory"]
    terms = sorted(memory_bytes.items(), key=lambda term: -term[1])
    return [f"{size_text(size):>8}  {name}" for name, size in [*terms, ("together", sum(memory_bytes.values()))]]


def task_of(dataset_path: Path) -> TaskSpec:
    """The one installed task that recognises a dataset.

    Raises:
        PluginError: None or several do.
    """
    specs = [find_task(name) for name in task_entry_points()]
    fitting = [spec for spec in specs if resolve_reference(spec.files).recognises(dataset_path)]
    if len(fitting) == 1:
        return fitting[0]
    if len(specs) == 1:
        return specs[0]  # its reader says better what is wrong
    names = ", ".join(spec.name for spec in fitting or specs)
    raise PluginError(f"{'several tasks' if fitting else 'no task'} recognise {dataset_path.name}: {names}")


def values_of(spec: TaskSpec, dataset_path: Path, options: PlanOptions) -> dict[str, object]:
    """Config values: the task's defaults, the command line on top."""
    values: dict[str, Any] = resolve_reference(spec.config_type)().model_dump(mode="json")
    values["dataset"] = str(dataset_path)
    if options.budget_s is not None:
        values["trainer"]["length"] = {"kind": "budget", "budget_s": options.budget_s}
    return apply_overrides(values, options.overrides)
