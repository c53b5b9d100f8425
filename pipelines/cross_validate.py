"""Cross-validation: a run for each fold, every case contoured by the network that never saw it, and their ensemble."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.core.case import Dataset
from medseg.core.errors import Interrupted
from medseg.core.progress import Listener, Progress
from medseg.core.units import duration_text
from medseg.core.version import VERSION
from medseg.data.plan import Plan, read_plan
from medseg.engine.tracking import RunFolder, open_run
from medseg.inference.components import ComponentChoice, choose_components
from medseg.inference.ensemble import Ensemble, ensemble_of
from medseg.inference.files import compared_cases
from medseg.inference.runtimes.choice import choose_runtime
from medseg.io.atomic import write_json_atomically
from medseg.io.bundle import read_bundle, write_bundle
from medseg.io.exclusive import exclusive
from medseg.io.label_tables import write_label_tables
from medseg.io.manifest import Manifest
from medseg.io.references import what_to_compare
from medseg.report.evaluation import Evaluation
from pipelines import evaluate, predict, predict_cases, train
from pipelines.outcome import Outcome
from pipelines.train_options import TrainOptions
from pipelines.training_report import write_folds_report


def run_in(
    folder: RunFolder, config_file: Path, files: Any, config: Any, dataset: Dataset, options: TrainOptions,
    listener: Listener,
) -> Outcome:  # fmt: skip
    """Train all folds in turn in a run folder that is ours, then predict, evaluate and join them.

    The plan is made once, from all cases, and the number of steps is measured once, in the first fold: networks whose
    logits are averaged must share the plan, and figures that are put together should come from runs of one length.
    """
    started = time.monotonic()
    runs = [RunFolder(folder.path / f"fold_{fold}") for fold in range(config.splits.num_folds)]
    listener(Progress("training", 0, None, message=announcement(config)))
    plan = train.make_plan(folder, files, config, dataset, options, listener, started)
    for fold, run in enumerate(runs):
        write_json_atomically(folder.plan, plan.model_dump(mode="json"))
        train_fold(fold, run, folder, config_file, config, options, listener)
        plan = files.divide_plan(read_plan(run.plan), config, dataset)
    ensemble = ensemble_of([read_bundle(run.path) for run in runs])
    out = folder.path / "cross_validation"
    with exclusive(out):
        predict_unseen(out, ensemble, runs, config, dataset, listener)
        evaluation, choice = evaluate_unseen(out, runs, config.dataset, listener)
    for reason in choice.reasons:
        listener(Progress("training", 0, None, message=reason))
    write_ensemble(folder, ensemble.with_components(choice.rules), plan, evaluation)
    return finish(folder, config.name, runs, evaluation, choice, started)


def announcement(config: Any) -> str:
    """How long all of it will take, for people."""
    num_folds, length = config.splits.num_folds, config.trainer.length
    if length.kind == "steps":
        return f"{num_folds} folds of {length.num_steps} steps each"
    each, together = duration_text(length.budget_s), duration_text(num_folds * length.budget_s)
    return f"{num_folds} folds of {each} each: about {together}"


def train_fold(
    fold: int, run: RunFolder, folder: RunFolder, config_file: Path, config: Any, options: TrainOptions, listener: Listener
) -> None:  # fmt: skip
    """Train one fold, or go on with it; one that is finished is left as it is."""
    if run.report.exists():
        splits = config.splits.model_copy(update={"fold": fold})
        open_run(run, config.model_copy(update={"splits": splits}), resume=True)  # refuses a run of another config
        listener(Progress("training", 0, None, message=f"fold {fold} is finished already: {run.path}"))
        return
    own = replace(options, fold=fold, out=run.path, plan=folder.plan, resume=True)
    try:
        train.run(config_file, own, listener)
    except Interrupted:
        raise Interrupted(
            f"stopped in fold {fold}; the same command with --out {folder.path} --resume goes on"
        ) from None


def predict_unseen(
    out: Path, ensemble: Ensemble, runs: Sequence[RunFolder], config: Any, dataset: Dataset, listener: Listener
) -> None:
    """Contour every case by the network of the fold in which it validated; a case that fails is told in manifest.json.

    All connected parts are kept: which ones are worth keeping is chosen from these very predictions, and figures with
    rules that were chosen on the same cases would flatter them.
    """
    options = predict_cases.PredictOptions(out=out)
    write_label_tables(out, dataset.labels)
    choice = choose_runtime(ensemble, "torch", config.trainer.device, config.trainer.num_threads)
    manifest = Manifest.open(out, ensemble.hash, predict.settings(options, choice))
    options = replace(options, overwrite=not manifest.entries)  # without entries, what lies there is of other networks
    for run, bundle in zip(runs, ensemble.bundles, strict=True):
        unseen = set(read_plan(run.plan).validation_cases)
        records = [record for record in dataset.cases if record.id in unseen]
        fold = ensemble_of([bundle]).with_components({})
        predict_cases.predict_all(predict_cases.Job(fold, choice, manifest, options), records, listener)


def evaluate_unseen(
    out: Path, runs: Sequence[RunFolder], references: Path, listener: Listener
) -> tuple[Evaluation, ComponentChoice]:
    """Score every case that validated in a fold, as ``medseg evaluate`` does, and choose the ensemble's components."""
    unseen = {case for run in runs for case in read_plan(run.plan).validation_cases}
    dataset, models = what_to_compare(references, [out], None, None)
    dataset = replace(dataset, cases=tuple(record for record in dataset.cases if record.id in unseen))
    evaluation = evaluate.measure(dataset, models, evaluate.EvaluateOptions(out=out), listener)
    evaluate.write_results(out, evaluation)
    return evaluation, choose_components(compared_cases(dataset, models[0]), dataset.labels)


def write_ensemble(folder: RunFolder, ensemble: Ensemble, plan: Plan, evaluation: Evaluation) -> None:
    """The networks of all folds as one bundle, which says how good each was on cases that it never saw."""
    from medseg.inference.runtimes.torch import make_probe

    description = ensemble.description.model_copy(update={"plan": plan})
    manifest = {**description.model_dump(mode="json"), "metrics": {"cross_validation": evaluation.summary}}
    write_bundle(folder.bundle, manifest, ensemble.members, make_probe(description, ensemble.members))


def finish(
    folder: RunFolder, name: str, runs: Sequence[RunFolder], evaluation: Evaluation, choice: ComponentChoice,
    started: float,
) -> Outcome:  # fmt: skip
    """Page and report of all folds together."""
    reports: list[Mapping[str, Any]] = [json.loads(run.report.read_text(encoding="utf-8")) for run in runs]
    write_folds_report(folder, name, reports, evaluation)
    failed = {case: problem for report in reports for case, problem in report["failed_cases"].items()}
    failed |= evaluation.problems
    report = {
        "run": str(folder.path),
        "ending": "finished",
        "folds": reports,
        "cross_validation": evaluation.summary,
        "components": choice.reasons,
        "total_s": round(time.monotonic() - started, 1),
        "failed_cases": failed,
        "medseg_version": VERSION,
    }
    write_json_atomically(folder.report, report)
    told = f"each case by the network that never saw it: {folder.path / 'report.html'}"
    return Outcome(1 if failed else 0, report, f"{evaluation.text()}\n{told}\nbundle: {folder.bundle}")
