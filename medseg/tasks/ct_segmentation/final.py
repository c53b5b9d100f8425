"""The last word on a training: its bundle on the validation cases, from file to scores, as a user will get them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import CaseError
from medseg.core.progress import Listener, Progress
from medseg.core.volume import LabelMap
from medseg.inference.predictor import Predictor
from medseg.io.case import read_case
from medseg.metrics.aggregate import summarise
from medseg.metrics.case import StructureScore, measure_structures
from medseg.report.evaluation import SCORES, Evaluation, picture_path
from medseg.report.training import NUM_WORST

Scores = dict[str, dict[str, StructureScore]]


def evaluate_bundle(
    bundle: Path, dataset: Dataset, out: Path, device: str, num_at_least: int, limit_s: float, listener: Listener
) -> Evaluation | None:
    """Predict the validation cases of a bundle's plan, score them on the grid of their files, and draw the worst.

    Args:
        bundle: Of the run; its plan names the cases.
        dataset: That the run was trained on.
        out: The run's folder; pictures go into ``figures`` in it.
        device: As in the config.
        num_at_least: Cases that are tried however long they take.
        limit_s: After this time no further case is begun [s].
        listener: Hears of each.

    Returns:
        None where no case validates.
    """
    import torch

    # As it was trained: no seconds for finding out whether another runtime is faster.
    predictor = Predictor.load(bundle, device, runtime="torch", threads=torch.get_num_threads())
    by_id = {record.id: record for record in dataset.cases}
    records = [by_id[case] for case in predictor.description.plan.validation_cases]
    if not records:
        return None
    scores: Scores = {}
    problems: dict[str, str] = {}
    worst: list[tuple[float, float, str, LabelMap]] = []
    began = time.monotonic()
    num_tried = 0
    for record in records:
        if num_tried >= num_at_least and time.monotonic() - began > limit_s:
            break
        num_tried += 1
        try:
            case = read_case(record, dataset)
            label_map = predictor.predict_case(case).label_map
        except CaseError as error:
            problems[record.id] = f"{record.id} is left out: {error.message}"
        else:
            scores[record.id] = _measure(case, label_map, dataset)
            worst = sorted([*worst, *_ranked(record.id, scores[record.id], label_map)], key=lambda entry: entry[:3])
            del worst[NUM_WORST:]  # only these label maps are kept in memory
        listener(Progress("final validation", num_tried, len(records), message=problems.get(record.id, "")))
    drawn = [(by_id[case], label_map) for _, _, case, label_map in worst]
    pictures = {record.id: _draw(out, record, label_map, dataset) for record, label_map in drawn}
    return _evaluation(dataset, out, scores, problems, pictures, _notes(num_tried, len(records)))


def _measure(case: Case, label_map: LabelMap, dataset: Dataset) -> dict[str, StructureScore]:
    assert case.label is not None  # validation cases are labelled, see divide()
    return measure_structures(label_map.array, case.label.array, case.label.geometry, dataset.labels, case.annotated)


def _ranked(
    case: str, scores: Mapping[str, StructureScore], label_map: LabelMap
) -> list[tuple[float, float, str, LabelMap]]:
    """A case as :meth:`Evaluation.worst_first` ranks it; nothing where nothing was scored."""
    values = [score.dice for score in scores.values() if score.dice is not None]
    return [(sum(values) / len(values), min(values), case, label_map)] if values else []


def _draw(out: Path, record: CaseRecord, label_map: LabelMap, dataset: Dataset) -> Path:
    from medseg.report.preview import draw_preview

    path = picture_path(out, record.id)
    draw_preview(path, read_case(record, dataset), label_map, dataset.labels, dataset.channels[0])
    return path


def _notes(num_tried: int, num_cases: int) -> list[str]:
    if num_tried == num_cases:
        return []
    return [f"scored at the end: {num_tried} of {num_cases} validation cases, the first of the plan, to save time"]


def _evaluation(
    dataset: Dataset,
    out: Path,
    scores: Scores,
    problems: Mapping[str, str],
    pictures: Mapping[str, Path],
    notes: list[str],
) -> Evaluation:
    from medseg.report.scores import draw_scores

    draw_scores(out / "figures" / SCORES, scores, dataset.labels)
    return Evaluation(
        predictions="the bundle",
        references=dataset.name,
        schema=dataset.labels,
        surface="elements",
        cases=scores,
        summary=summarise(scores, dataset.labels),
        problems=problems,
        notes=notes,
        pictures=pictures,
    )
