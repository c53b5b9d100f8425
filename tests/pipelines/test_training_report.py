"""What a finished run says of itself: its page, and scores that are those of predicting and evaluating."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import ReadError
from medseg.core.progress import silent
from medseg.core.volume import LabelMap
from medseg.metrics.case import StructureScore
from medseg.tasks.ct_segmentation import final
from medseg.tasks.ct_segmentation.files import files


def test_the_page_of_a_run(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    for part in (
        "Training of smoke",
        "Plan, and why",
        "Curves",
        "Scores",
        "Time by stage",
        "The first patches",
        "pt_201",
    ):
        assert part in page
    report = json.loads((run_folder / "report.json").read_text())
    assert next(iter(report["seconds"])) == "reading, planning, preparing"
    assert {"loading", "steps", "validation", "checkpoints", "components", "final validation"} <= set(report["seconds"])
    assert min(report["seconds"].values()) >= 0
    num_scored = report["scores"]["mean"]["dice"]["num_cases"]
    assert 1 <= num_scored <= 2
    assert (f"scored at the end: {num_scored} of 2" in page) == (num_scored < 2)


def test_final_scores_are_those_of_predict_and_evaluate(tmp_path: Path, run_folder: Path, sample: Path, medseg) -> None:
    """And no case is begun that there is no time for."""
    predictions = tmp_path / "predictions"
    assert medseg("predict", run_folder, sample, "--split", "validation", "--out", predictions).exit_code == 0
    answer = medseg("evaluate", predictions, sample, "--split", "validation", "--json")
    dataset = files.read_dataset(sample)
    evaluation = files.evaluate_bundle(run_folder / "bundle", dataset, tmp_path, "cpu", 1, 0.0, silent)
    assert evaluation is not None
    assert list(evaluation.cases) == ["pt_201"]
    assert evaluation.notes == ["scored at the end: 1 of 2 validation cases, the first of the plan, to save time"]
    for name, score in evaluation.cases["pt_201"].items():
        expected = answer.json["cases"]["pt_201"][name]
        for metric in ("dice", "nsd", "hd95_mm", "volume_difference_ml"):
            np.testing.assert_equal(getattr(score, metric), expected[metric])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"pt_201.png", "scores.png"}


def test_the_worst_are_drawn_and_bad_cases_are_told(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scores that are given: the three lowest, as the page ranks them; one case cannot be read."""
    dataset = files.read_dataset(sample)
    dice = dict(zip((record.id for record in dataset.cases), (0.9, 0.2, 0.5, 0.5, None, 0.1, 0.8, 0.7), strict=True))
    read, told = final.read_case, []

    class Given:
        description = SimpleNamespace(plan=SimpleNamespace(validation_cases=tuple(dice)))

        def predict_case(self, case: Case) -> SimpleNamespace:
            return SimpleNamespace(label_map=case.label)

    def read_or_not(record: CaseRecord, dataset: Dataset) -> Case:
        if dice[record.id] == 0.1:
            raise ReadError(f"{record.id} is damaged", code="read.crc")
        return read(record, dataset)

    def score(case: Case, label_map: LabelMap, dataset: Dataset) -> dict[str, StructureScore]:
        status = "absent" if dice[case.id] is None else "scored"
        return {"mandible": StructureScore(dice[case.id], None, None, None, status)}

    monkeypatch.setattr(final.Predictor, "load", lambda *_, **__: Given())
    monkeypatch.setattr(final, "read_case", read_or_not)
    monkeypatch.setattr(final, "_measure", score)
    monkeypatch.setattr(final, "_draw", lambda out, record, *_: told.append(record.id) or out / record.id)
    evaluation = final.evaluate_bundle(tmp_path, dataset, tmp_path, "cpu", 1, 60.0, silent)
    assert evaluation is not None
    assert told == [case for case, _ in evaluation.worst_first()[:3]] == list(evaluation.pictures)
    assert [dice[case] for case in told] == [0.2, 0.5, 0.5]
    assert len(evaluation.cases) == 7
    assert [text.endswith("is damaged") for text in evaluation.problems.values()] == [True]


def test_where_nothing_validates_there_are_no_scores(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    out = tmp_path / "run"
    answer = medseg(
        "train",
        smoke,
        "--data",
        sample,
        "--out",
        out,
        "--fold",
        "none",
        "--json",
        "--set",
        "trainer.length.num_steps=1",
    )
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["scores"] is None
    assert "No case was set aside to validate" in (out / "report.html").read_text()
