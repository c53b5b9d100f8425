"""What the command line adds to the config of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.core.config import validated
from medseg.core.errors import ConfigError
from medseg.core.plugins import find_task, resolve_reference
from medseg.core.task import TaskSpec
from medseg.io.config import apply_overrides, read_yaml


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to a config; fields are the command's options, ``start_from`` is ``--from``."""

    data: Path | None = None
    out: Path | None = None
    budget_s: float | None = None
    memory_bytes: int | None = None
    plan: Path | None = None
    start_from: str | None = None
    fold: int | Literal["each", "none"] | None = None
    deterministic: bool = False
    resume: bool = False
    overrides: Sequence[str] = ()
    dry_run: bool = False


def read_config(config_file: Path, options: TrainOptions) -> tuple[TaskSpec, Any]:
    """The task and the validated config, with what the command line overrides."""
    overrides = list(options.overrides)
    if options.budget_s is not None:
        overrides.append(f"trainer.length={{kind: budget, budget_s: {options.budget_s}}}")
    if options.fold is not None:
        overrides.append(f"splits.fold={options.fold}")
    values = apply_overrides(read_yaml(config_file), overrides)
    spec = find_task(str(values.get("task", "ct_segmentation")))
    if options.data is not None:
        values["dataset"] = str(options.data)
    if options.start_from is not None:
        values["start_from"] = options.start_from
    config: Any = validated(resolve_reference(spec.config_type), values, config_file.name)
    if config.dataset is None:
        raise ConfigError("no dataset: give --data DATASET, or set dataset in the config")
    return spec, resolve_reference(spec.files).complete_config(config)
