"""The page of a run that has ended: its bundle is tried on the validation cases, and all that is known goes on one page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.core.config import validated
from medseg.core.plugins import find_task, resolve_reference
from medseg.core.progress import Listener, Progress
from medseg.data.plan import read_plan
from medseg.engine.tracking import RunFolder, read_log
from medseg.io.atomic import write_json_atomically
from medseg.io.config import read_yaml
from medseg.report.evaluation import Evaluation


def write_training_report(folder: RunFolder, report: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Write ``report.html``, and last ``report.json``, which says that the run is complete.

    Args:
        folder: Of a run with config, plan, log, figures and bundle.
        report: What is known of it: ``ending``, ``num_steps``, ``train_s``, ``total_s``, ``seconds`` by stage of the
            training and of choosing ``components``, why these were chosen, ``failed_cases``.
        listener: Hears of the progress.

    Returns:
        What ``report.json`` holds: the report with the final scores and the time of all stages.
    """
    from medseg.engine.throughput import FINAL_SHARE  # brings torch
    from medseg.report.training import Training, write_training_page

    began = time.monotonic()
    values = read_yaml(folder.config)
    spec = find_task(values["task"])
    config: Any = validated(resolve_reference(spec.config_type), values, folder.config.name)
    files = resolve_reference(spec.files)
    dataset = files.read_dataset(config.dataset)
    limit_s = FINAL_SHARE * report["train_s"]
    num_at_least, device = config.trainer.validation.max_cases, config.trainer.device
    evaluation = files.evaluate_bundle(folder.bundle, dataset, folder.path, device, num_at_least, limit_s, listener)
    seconds = {**stages(report), "final validation": round(time.monotonic() - began, 1)}
    page = folder.path / "report.html"
    training = Training(
        name=config.name,
        dataset=dataset.name,
        ending=report["ending"],
        num_steps=report["num_steps"],
        plan=read_plan(folder.plan),
        log=read_log(folder.log),
        seconds=seconds,
        figures=folder.figures,
        evaluation=evaluation,
        failed=report["failed_cases"],
        notes=report["components"],
    )
    write_training_page(page, training)
    listener(Progress("training", 0, None, message=f"report in {page}"))
    complete = {**report, "seconds": seconds, "scores": None if evaluation is None else evaluation.summary}
    write_json_atomically(folder.report, complete)
    return complete


def write_folds_report(
    folder: RunFolder, name: str, reports: Sequence[Mapping[str, Any]], evaluation: Evaluation
) -> None:
    """Write the ``report.html`` of a cross-validation, with a link to the page of each fold.

    Args:
        folder: Of all folds.
        name: Of the run.
        reports: What ``report.json`` of each fold holds.
        evaluation: Of every case by the network that never saw it.
    """
    from medseg.report.training import Training, write_training_page

    scores = folder.path / "cross_validation"
    pages = {Path(report["run"]).name: f"{Path(report['run']).name}/report.html" for report in reports}
    training = Training(
        name=name,
        dataset=evaluation.references,
        ending="finished",
        num_steps=sum(report["num_steps"] for report in reports),
        plan=read_plan(folder.plan),
        log=(),
        seconds={Path(report["run"]).name: sum(report["seconds"].values()) for report in reports},
        figures=scores / "figures",
        evaluation=evaluation,
        failed={case: why for report in reports for case, why in report["failed_cases"].items()},
        folds={**pages, "all scores, case by case": f"{scores.name}/report.html"},
    )
    write_training_page(folder.path / "report.html", training)


def stages(report: Mapping[str, Any]) -> dict[str, float]:
    """Wall clock by stage [s] until the bundle was written; what no stage counts is reading, planning and preparing."""
    before_s = max(0.0, report["total_s"] - report["train_s"] - report["seconds"]["components"])
    return {"reading, planning, preparing": round(before_s, 1), **report["seconds"]}
