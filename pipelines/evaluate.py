"""Evaluation: predictions against references, as numbers and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.core.errors import CaseError, ConfigError, GeometryError
from medseg.core.progress import Listener, Progress, silent
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap
from medseg.io.atomic import write_json_atomically, write_text_atomically
from medseg.io.case import read_case
from medseg.io.dataset import is_dataset, read_dataset
from medseg.io.label_tables import read_label_schema
from medseg.io.nifti import read_label_map
from medseg.metrics.aggregate import metrics_document, metrics_rows, summarise
from medseg.metrics.surface import StructureScore, measure_structures
from pipelines.outcome import Outcome
from pipelines.predict import SOFT_TISSUE_HU

Scores = Mapping[str, Mapping[str, StructureScore]]


@dataclass(frozen=True)
class EvaluateOptions:
    """Fields are the command's options."""

    split: Split | None = None
    out: Path | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What a person contoured in a case, and the image below it where there is one."""

    id: str
    label: LabelMap
    annotated: Bool[np.ndarray, " classes"]
    image: Shaped[np.ndarray, IJK] | None


def run(predictions: Path, references: Path, options: EvaluateOptions, listener: Listener = silent) -> Outcome:
    """Evaluate.

    Args:
        predictions: Folder of label maps, named by case.
        references: A dataset, or a folder of label maps.
        options: Of the command line.
        listener: Hears of the progress.
    """
    dataset = references_of(predictions, references, options.split)
    scores: dict[str, Mapping[str, StructureScore]] = {}
    problems: dict[str, str] = {}
    listener(Progress("evaluating", 0, len(dataset.cases)))
    for done, record in enumerate(dataset.cases, start=1):
        message = ""
        try:
            reference, prediction, problem = read_pair(predictions, record, dataset)
        except CaseError as error:
            problem = f"{record.id} is left out: {error.message}"
        else:
            scores[record.id] = measure_structures(
                prediction.array, reference.label.array, reference.label.geometry, dataset.labels, reference.annotated
            )
            if options.out is not None:
                draw(options.out, reference, prediction, dataset)
        if problem:
            problems[record.id] = message = problem
        listener(Progress("evaluating", done, len(dataset.cases), message=message))
    summary = summarise(scores, dataset.labels)
    if options.out is not None:
        write_results(options.out, scores, summary, dataset)
    text = table(summary) + (f"\nresults in {options.out}" if options.out else "")
    result = {**metrics_document(scores, summary), "problems": problems}
    # A missing prediction scores 0 and gives exit code 1, also where all are missing; 6: no reference could be read.
    exit_code = 6 if not scores else int(bool(problems))
    return Outcome(exit_code, result, text)


def references_of(predictions: Path, references: Path, split: Split | None) -> Dataset:
    """The labelled cases of a dataset, or a folder of label maps as a dataset without images.

    Raises:
        ConfigError: There is nothing to compare with.
    """
    if is_dataset(references):
        dataset = read_dataset(references)
        chosen = dataset.cases if split is None else dataset.of_split(split)
        cases = tuple(case for case in chosen if case.label is not None)
    elif split is not None:
        raise ConfigError(f"--split {split} needs a dataset, and {references.name} is none")
    else:
        dataset = Dataset(references.name, (), read_label_schema(predictions), (), references)
        files = sorted(path for path in references.glob("*") if path.name.endswith((".nii", ".nii.gz")))
        cases = tuple(CaseRecord(name := path.name.split(".nii")[0], name, (), label=path) for path in files)
    if not cases:
        raise ConfigError(f"{references.name} holds no reference label map" + (f" of split {split}" if split else ""))
    return replace(dataset, cases=cases)


def read_pair(predictions: Path, record: CaseRecord, dataset: Dataset) -> tuple[Reference, LabelMap, str]:
    """Reference and prediction of a case; a missing or unusable prediction counts as empty and is told.

    Raises:
        CaseError: The reference cannot be read.
    """
    reference = read_reference(record, dataset)
    empty = LabelMap(np.zeros_like(reference.label.array), reference.label.geometry)
    path = next((p for suffix in (".nii.gz", ".nii") if (p := predictions / f"{record.id}{suffix}").exists()), None)
    if path is None:
        return reference, empty, f"{record.id} has no prediction in {predictions.name}: it counts as empty"
    try:
        prediction = read_label_map(path)
        difference = reference.label.geometry.difference(prediction.geometry)
        if difference:
            raise GeometryError(f"{path.name} is not on the reference's grid: {difference}", code="geometry.prediction")
        dataset.labels.to_classes(prediction.array)
    except CaseError as error:
        return reference, empty, f"{record.id}'s prediction counts as empty: {error.message}"
    return reference, prediction, ""


def read_reference(record: CaseRecord, dataset: Dataset) -> Reference:
    """The reference of a case, with its image where there is one."""
    annotated = dataset.labels.annotated_channels(record.annotated)
    if record.images:
        case = read_case(record, dataset)
        assert case.label is not None  # references_of() keeps labelled cases only
        return Reference(case.id, case.label, annotated, case.image.array[0])
    assert record.label is not None
    label = read_label_map(record.label)
    dataset.labels.to_classes(label.array)
    return Reference(record.id, label, annotated, None)


def draw(out: Path, reference: Reference, prediction: LabelMap, dataset: Dataset) -> None:
    """Three planes through each structure with both contours."""
    if reference.image is None:
        return
    from medseg.report.overlays import draw_overlay

    grid = reference.label.geometry
    arrays = (reference.image, prediction.array, reference.label.array)
    image, predicted, contoured = (grid.axes.to_canonical(array) for array in arrays)
    window = SOFT_TISSUE_HU if dataset.channels[0].upper() == "CT" else None
    path = out / "figures" / f"{reference.id}.png"
    draw_overlay(path, image, grid.canonical, dataset.labels, predicted, contoured, reference.id, window)


def write_results(out: Path, scores: Scores, summary: Mapping[str, Any], dataset: Dataset) -> None:
    """``metrics.json``, ``metrics.csv`` and the box plot."""
    from medseg.report.scores import draw_scores

    write_json_atomically(out / "metrics.json", metrics_document(scores, summary))
    rows = metrics_rows(scores)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["case"])
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(out / "metrics.csv", text.getvalue(), overwrite=True)
    draw_scores(out / "figures" / "scores.png", scores, dataset.labels)


def table(summary: Mapping[str, Any]) -> str:
    """The summary for people."""
    lines = [f"{'structure':<24}{'Dice':>7}  {'95 % interval':<15}{'NSD':>6}{'HD95 mm':>9}{'cases':>7}"]
    for name, entry in summary.items():
        dice, nsd, hd95 = (entry.get(metric, {}).get("mean") for metric in ("dice", "nsd", "hd95_mm"))
        interval = f"{entry['dice']['low']:.3f} to {entry['dice']['high']:.3f}" if dice is not None else ""
        shown = [
            f"{value:.{digits}f}" if value is not None else "-" for value, digits in ((dice, 3), (nsd, 3), (hd95, 1))
        ]
        lines.append(
            f"{name:<24}{shown[0]:>7}  {interval:<15}{shown[1]:>6}{shown[2]:>9}{entry['dice']['num_cases']:>7}"
        )
    return "\n".join(lines)
