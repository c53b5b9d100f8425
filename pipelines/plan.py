"""Planning: what training would decide from the data and this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.config import validated
from medseg.core.errors import PluginError
from medseg.core.plugins import find_task, resolve_reference, task_entry_points
from medseg.core.progress import Listener, silent
from medseg.core.task import TaskSpec
from medseg.io.atomic import write_json_atomically
from medseg.io.config import apply_overrides
from pipelines.outcome import Outcome


@dataclass(frozen=True)
class PlanOptions:
    """Fields are the command's options."""

    out: Path | None = None
    device: str = "auto"
    budget_s: float | None = None
    overrides: Sequence[str] = ()


def run(dataset_path: Path, options: PlanOptions, listener: Listener = silent) -> Outcome:
    """Fingerprint a dataset and plan for it; with a budget, measure the machine and freeze the steps too.

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
    plan = files.make_plan(config, dataset, listener)
    if options.budget_s is not None:
        from medseg.engine.seeding import use_threads
        from medseg.engine.throughput import frozen_length
        from medseg.inference.runtimes.torch import choose_device

        use_threads(config.trainer.num_threads)
        task = resolve_reference(spec.create)(config, dataset, plan, listener)
        plan, _ = frozen_length(task, plan, config.trainer, choose_device(options.device), started)
    document = plan.model_dump(mode="json")
    if options.out is not None:
        write_json_atomically(options.out, document)
    text = "\n".join(plan.reasons) + (f"\nplan: {options.out}" if options.out else "")
    return Outcome(1 if plan.left_out else 0, document, text)


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
