"""Evaluation: predictions against references, as numbers and pictures; and two models against each other."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from medseg.core.case import Dataset, Split
from medseg.core.errors import CaseError, ConfigError, PluginError
from medseg.core.plugins import find_task
from medseg.core.progress import Listener, Progress, silent
from medseg.core.units import SOFT_TISSUE_HU
from medseg.core.volume import LabelMap
from medseg.io.exclusive import exclusive
from medseg.io.references import PredictionFolder, Reference, read_prediction, read_reference, what_to_compare
from medseg.metrics.aggregate import summarise
from medseg.metrics.case import StructureScore, SurfaceKind, measure_structures
from medseg.metrics.compare import compare
from medseg.report.evaluation import COMPARISON, SCORES, Comparison, Evaluation, picture_path, write_tables
from pipelines.outcome import Outcome

TASK = "ct_segmentation"
"""The only one that is evaluated here so far."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Fields are the command's options."""

    split: Split | None = None
    out: Path | None = None
    surface: SurfaceKind = "elements"
    labels: Path | None = None
    compare: Path | None = None
    task: str | None = None


def run(predictions: Path, references: Path, options: EvaluateOptions, listener: Listener = silent) -> Outcome:
    """Evaluate.

    Args:
        predictions: Folder of label maps, named by case.
        references: A dataset, or a folder of label maps.
        options: Of the command line.
        listener: Hears of the progress.
    """
    if options.surface not in get_args(SurfaceKind):
        raise ConfigError(f"expected a surface of {' or '.join(get_args(SurfaceKind))}, found '{options.surface}'")
    if options.task is not None and find_task(options.task).name != TASK:
        raise PluginError(f"predictions of the task '{options.task}' cannot be evaluated yet; {TASK} can")
    folders = [predictions] if options.compare is None else [predictions, options.compare]
    dataset, models = what_to_compare(references, folders, options.split, options.labels)
    with ExitStack() as stack:
        if options.out is not None:
            stack.enter_context(exclusive(options.out))
        evaluation = measure(dataset, models, options, listener)
        if options.out is not None:
            write_results(options.out, evaluation)
    text = evaluation.text() + (f"\nreport in {options.out / 'report.html'}" if options.out else "")
    has_problems = evaluation.problems or (evaluation.comparison is not None and evaluation.comparison.problems)
    # A missing prediction scores 0 and gives exit code 1, also where all are missing; 6: no reference could be read.
    return Outcome(int(bool(has_problems)) if evaluation.cases else 6, evaluation.document(), text)


def measure(
    dataset: Dataset, models: list[PredictionFolder], options: EvaluateOptions, listener: Listener
) -> Evaluation:
    """Score case by case; only the scores are kept."""
    scores: list[dict[str, dict[str, StructureScore]]] = [{} for _ in models]
    problems: list[dict[str, str]] = [{} for _ in models]
    pictures: dict[str, Path] = {}
    notes = [f"{model.name} has no value for {', '.join(model.unnamed)}" for model in models if model.unnamed]
    listener(Progress("evaluating", 0, len(dataset.cases), message="; ".join(notes)))
    for done, record in enumerate(dataset.cases, start=1):
        try:
            reference = read_reference(record, dataset)
        except CaseError as error:
            problems[0][record.id] = f"{record.id} is left out: {error.message}"
        else:
            for number, model in enumerate(models):
                prediction, problem = read_prediction(model, reference)
                scores[number][record.id] = measure_structures(
                    prediction.array, reference.label.array, reference.label.geometry, dataset.labels,
                    reference.annotated, surface=options.surface,
                )  # fmt: skip
                if problem:
                    problems[number][record.id] = problem
                if number == 0 and options.out is not None and reference.image is not None:
                    pictures[record.id] = draw(options.out, reference, prediction, dataset)
        told = "; ".join(found[record.id] for found in problems if record.id in found)
        listener(Progress("evaluating", done, len(dataset.cases), message=told))
    comparison = None
    if options.compare is not None:
        differences = compare(scores[0], scores[1], dataset.labels)
        comparison = Comparison(models[1].name, scores[1], differences, problems[1])
    references = f"{dataset.name}, split {options.split}" if options.split else dataset.name
    return Evaluation(
        predictions=models[0].name, references=references, schema=dataset.labels,
        surface=options.surface, cases=scores[0], summary=summarise(scores[0], dataset.labels),
        problems=problems[0], notes=notes, comparison=comparison, pictures=pictures,
    )  # fmt: skip


def draw(out: Path, reference: Reference, prediction: LabelMap, dataset: Dataset) -> Path:
    """Three planes through each structure with both contours."""
    from medseg.report.overlays import draw_overlay

    assert reference.image is not None
    grid = reference.label.geometry
    arrays = (reference.image, prediction.array, reference.label.array)
    image, predicted, contoured = (grid.axes.to_canonical(array) for array in arrays)
    window = SOFT_TISSUE_HU if dataset.channels[0].upper() == "CT" else None
    path = picture_path(out, reference.id)
    draw_overlay(path, image, grid.canonical, dataset.labels, predicted, contoured, reference.id, window)
    return path


def write_results(out: Path, evaluation: Evaluation) -> None:
    """Tables, the figures of all cases, and the page that holds it all."""
    from medseg.report.comparison import draw_comparison
    from medseg.report.page import write_page
    from medseg.report.scores import draw_scores

    write_tables(out, evaluation)
    draw_scores(out / "figures" / SCORES, evaluation.cases, evaluation.schema)
    if evaluation.comparison is not None:
        draw_comparison(out / "figures" / COMPARISON, evaluation, evaluation.comparison)
    write_page(out / "report.html", evaluation)
