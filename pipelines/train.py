"""Training: from a config and a dataset to a bundle. One run; :mod:`pipelines.cross_validate` makes one for each fold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError, Interrupted
from medseg.core.plugins import resolve_reference
from medseg.core.progress import Listener, Progress, silent
from medseg.core.task import Limits, TaskSpec
from medseg.core.version import VERSION
from medseg.data.plan import read_plan
from medseg.io.atomic import write_json_atomically
from medseg.io.exclusive import exclusive
from medseg.io.references import references_of
from pipelines.outcome import Outcome
from pipelines.plan import planned
from pipelines.train_options import TrainOptions, read_config
from pipelines.training_report import write_training_report

__all__ = ["TrainOptions", "run"]


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
    if options.plan is not None and (read_plan(options.plan).started_from is None) != (config.start_from is None):
        raise ConfigError(f"{options.plan} and --from do not go together: a network that goes on brings its own plan")
    if config.splits.fold == "each":
        references_of(config.dataset, None, None)  # what could not be evaluated afterwards is refused now
    if options.dry_run:
        result = {"config": config.model_dump(mode="json")}
        return Outcome(0, result, f"{config_file.name} is valid; nothing was trained")

    from medseg.engine.interruption import interruptible
    from medseg.engine.tracking import RunFolder, open_run
    from medseg.inference.runtimes.torch import choose_device
    from pipelines import cross_validate

    choose_device(config.trainer.device)  # what is not there is told before there is a folder that would be in the way
    folder = RunFolder(options.out or Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    remedy = f"the same command with --out {folder.path} --resume goes on"
    with exclusive(folder.path), interruptible(remedy):
        open_run(folder, config, resume=options.resume)
        listener(Progress("training", 0, None, message=f"run folder {folder.path}"))
        if config.splits.fold == "each":
            return cross_validate.run_in(folder, config_file, files, config, dataset, options, listener)
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
    plan = make_plan(folder, resolve_reference(spec.files), config, dataset, options, listener, started)
    task = resolve_reference(spec.create)(config, dataset, plan, listener)
    plan, length = throughput.frozen_length(task, plan, config.trainer, device, started)
    trainer_config = throughput.planned_trainer(config.trainer, plan)
    write_json_atomically(folder.plan, plan.model_dump(mode="json"))
    for reason in plan.reasons:
        listener(Progress("training", 0, None, message=reason))
    task.draw_first_batches(folder.figures / "first_batches.png")

    resume = options.resume and folder.last.exists()
    fitted = trainer.fit(task, trainer_config, length, folder, device, listener, resume=resume)
    if fitted.ending == "interrupted":
        done = f"stopped at step {fitted.num_steps_done} with a checkpoint"
        raise Interrupted(f"{done}; the same command with --out {folder.path} --resume goes on")
    return finish(folder, task, plan, fitted, device, started, listener)


def make_plan(
    folder: Any, files: Any, config: Any, dataset: Any, options: TrainOptions, listener: Listener, started: float
) -> Any:
    """The plan that this run has already, the one it was given, or a new one."""
    if folder.plan.exists():
        return read_plan(folder.plan)
    if options.plan is None:
        length, device = config.trainer.length, config.trainer.device
        budget_s = length.budget_s if length.kind == "budget" else None
        return planned(config, dataset, Limits(budget_s, options.memory_bytes, device, started), listener)
    given = read_plan(options.plan)
    return given if given.fold == config.splits.fold else files.divide_plan(given, config, dataset)


def finish(folder: Any, task: Any, plan: Any, fitted: Any, device: Any, started: float, listener: Listener) -> Outcome:
    """Bundle, figures and report of a run that ended."""
    from medseg.engine.checkpoint import load_weights
    from medseg.engine.tracking import read_log
    from medseg.io.bundle import write_bundle
    from medseg.report.curves import draw_curves

    network = task.build_model()
    network.load_state_dict(load_weights(folder.best if folder.best.exists() else folder.last))
    began = time.monotonic()
    choice = task.choose_components(network, device)
    choosing_s = time.monotonic() - began
    for reason in choice.reasons:
        listener(Progress("training", 0, None, message=reason))
    manifest, weights, probe = task.bundle(network)
    rules = {name: rule.model_dump(mode="json") for name, rule in choice.rules.items()}
    frozen = {"plan": plan.model_dump(mode="json"), "metrics": dict(fitted.best_values), "components": rules}
    write_bundle(folder.bundle, {**manifest, **frozen}, [weights], probe)
    draw_curves(folder.figures / "curves.png", read_log(folder.log))
    failed = {**plan.left_out, **{case: error.message for case, error in task.failed.items()}}
    report = {
        "run": str(folder.path),
        "ending": fitted.ending,
        "num_steps": fitted.num_steps_done,
        "best_step": fitted.best_step,
        "validation": dict(fitted.best_values),
        "seconds": {name: round(spent, 1) for name, spent in (*fitted.seconds.items(), ("components", choosing_s))},
        "train_s": round(fitted.train_s, 1),
        "total_s": round(time.monotonic() - started, 1),
        "components": choice.reasons,
        "failed_cases": failed,
        "medseg_version": VERSION,
    }
    report = write_training_report(folder, report, listener)
    score = "" if fitted.best_score is None else f", validation {fitted.best_score:.3f} at step {fitted.best_step}"
    text = f"{fitted.ending} after {fitted.num_steps_done} steps{score}\nbundle: {folder.bundle}"
    return Outcome(1 if failed else 0, report, text)
