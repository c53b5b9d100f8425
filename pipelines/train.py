"""Training: from a config and a dataset to a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.config import ConfigBase, validated
from medseg.core.errors import ConfigError, Interrupted
from medseg.core.plugins import find_task, resolve_reference
from medseg.core.progress import Listener, Progress, silent
from medseg.core.task import TaskSpec
from medseg.core.version import VERSION
from medseg.io.atomic import write_json_atomically
from medseg.io.config import apply_overrides, read_yaml, write_yaml
from medseg.io.exclusive import exclusive
from pipelines.outcome import Outcome


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to a config; fields are the command's options."""

    data: Path | None = None
    out: Path | None = None
    budget_s: float | None = None
    plan: Path | None = None
    deterministic: bool = False
    resume: bool = False
    overrides: Sequence[str] = ()
    dry_run: bool = False


def run(config_file: Path, options: TrainOptions, listener: Listener = silent) -> Outcome:
    """Train.

    Args:
        config_file: YAML of one complete run.
        options: Of the command line.
        listener: Hears of the progress.
    """
    started = time.monotonic()
    spec, config = read_config(config_file, options)
    files = resolve_reference(spec.files)
    dataset = files.read_dataset(config.dataset)
    files.check_config(config, dataset)
    if options.dry_run:
        result = {"config": config.model_dump(mode="json")}
        return Outcome(0, result, f"{config_file.name} is valid; nothing was trained")

    from medseg.engine.tracking import RunFolder
    from medseg.inference.runtimes.torch import choose_device

    choose_device(config.trainer.device)  # what is not there is told before there is a folder that would be in the way
    if options.plan is not None:
        read_plan(options.plan)
    folder = RunFolder(options.out or Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    with exclusive(folder.path):
        open_run(folder, config, resume=options.resume)
        listener(Progress("training", 0, None, message=f"run folder {folder.path}"))
        return train_in(folder, spec, config, dataset, options, listener, started)


def train_in(
    folder: Any, spec: TaskSpec, config: Any, dataset: Any, options: TrainOptions, listener: Listener, started: float
) -> Outcome:
    """Plan, prepare, fit and finish, in a run folder that is ours."""
    from medseg.engine import throughput, trainer
    from medseg.engine.seeding import use_deterministic_algorithms, use_threads
    from medseg.inference.runtimes.torch import choose_device

    device = choose_device(config.trainer.device)
    use_threads(config.trainer.num_threads)
    if options.deterministic:
        use_deterministic_algorithms()
    files = resolve_reference(spec.files)
    frozen = folder.plan if folder.plan.exists() else options.plan
    plan = read_plan(frozen) if frozen else files.make_plan(config, dataset, listener)
    task = resolve_reference(spec.create)(config, dataset, plan, listener)
    plan, length = throughput.frozen_length(task, plan, config.trainer, device, started)
    write_json_atomically(folder.plan, plan.model_dump(mode="json"))
    for reason in plan.reasons:
        listener(Progress("training", 0, None, message=reason))
    task.draw_first_batches(folder.figures / "first_batches.png")

    resume = options.resume and folder.last.exists()
    fitted = trainer.fit(task, config.trainer, length, folder, device, listener, resume=resume)
    if fitted.ending == "interrupted":
        done = f"stopped at step {fitted.num_steps_done} with a checkpoint"
        raise Interrupted(f"{done}; the same command with --out {folder.path} --resume goes on")
    return finish(folder, task, plan, fitted, time.monotonic() - started)


def read_config(config_file: Path, options: TrainOptions) -> tuple[TaskSpec, Any]:
    """The task and the validated config, with what the command line overrides."""
    values = apply_overrides(read_yaml(config_file), options.overrides)
    spec = find_task(str(values.get("task", "ct_segmentation")))
    if options.data is not None:
        values["dataset"] = str(options.data)
    if options.budget_s is not None:
        values.setdefault("trainer", {})["length"] = {"kind": "budget", "budget_s": options.budget_s}
    config: Any = validated(resolve_reference(spec.config_type), values, config_file.name)
    if config.dataset is None:
        raise ConfigError("no dataset: give --data DATASET, or set dataset in the config")
    return spec, config


def open_run(run: Any, config: ConfigBase, *, resume: bool) -> None:
    """Make the run folder, or make sure that an old one fits.

    Raises:
        ConfigError: The folder holds a run and ``resume`` is off, or the run's config is another.
    """
    values = config.model_dump(mode="json")
    if run.config.exists():
        if not resume:
            raise ConfigError(f"{run.path} holds a run already: give --resume to go on, or another --out")
        if read_yaml(run.config) != values:
            raise ConfigError(f"{run.path} was started with another config: resume with {run.config}")
        return
    run.path.mkdir(parents=True, exist_ok=True)
    write_yaml(run.config, values)


def read_plan(path: Path) -> Any:
    """A plan that was written before."""
    from medseg.data.plan import Plan

    return validated(Plan, read_yaml(path), path.name)  # JSON is YAML


def finish(folder: Any, task: Any, plan: Any, fitted: Any, total_s: float) -> Outcome:
    """Bundle, figures and report of a run that ended."""
    from medseg.engine.checkpoint import load_weights
    from medseg.engine.tracking import read_log
    from medseg.io.bundle import write_bundle
    from medseg.report.curves import draw_curves

    network = task.build_model()
    network.load_state_dict(load_weights(folder.best if folder.best.exists() else folder.last))
    manifest, weights, probe = task.bundle(network)
    frozen = {"plan": plan.model_dump(mode="json"), "metrics": dict(fitted.best_values)}
    write_bundle(folder.bundle, {**manifest, **frozen}, weights, probe)
    draw_curves(folder.figures / "curves.png", read_log(folder.log))
    failed = {**plan.left_out, **{case: error.message for case, error in task.failed.items()}}
    report = {
        "run": str(folder.path),
        "ending": fitted.ending,
        "num_steps": fitted.num_steps_done,
        "best_step": fitted.best_step,
        "validation": dict(fitted.best_values),
        "train_s": round(fitted.train_s, 1),
        "total_s": round(total_s, 1),
        "failed_cases": failed,
        "medseg_version": VERSION,
    }
    write_json_atomically(folder.report, report)
    score = "" if fitted.best_score is None else f", validation {fitted.best_score:.3f} at step {fitted.best_step}"
    text = f"{fitted.ending} after {fitted.num_steps_done} steps{score}\nbundle: {folder.bundle}"
    return Outcome(1 if failed else 0, report, text)
