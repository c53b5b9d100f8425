"""An evaluation as one noun: what its files, tables, figures and page are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.labels import LabelSchema
from medseg.core.version import VERSION
from medseg.io.atomic import write_json_atomically
from medseg.metrics.aggregate import CaseScores, metrics_document, metrics_rows, score_table, summary_rows
from medseg.report.tables import comparison_text, summary_text, write_csv

SCORES, COMPARISON = "scores.png", "comparison.png"
"""Figures of all cases, beside those of single ones."""

CURVES, FIRST_BATCHES = "curves.png", "first_batches.png"
"""Figures of a run, beside those of its validation cases."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Another model on the same cases.

    Attributes:
        name: Of its predictions.
        cases: Its scores by case and structure.
        summary: As :func:`~medseg.metrics.compare.compare` gives it, of the first model against this one.
        problems: By case, why its prediction counts as empty.
    """

    name: str
    cases: CaseScores
    summary: Mapping[str, Any]
    problems: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions against references.

    Attributes:
        predictions, references: Names for people.
        schema: The structures.
        surface: Definition of surfaces: ``elements`` or ``borders``.
        cases: Scores by case and structure.
        summary: As :func:`~medseg.metrics.aggregate.summarise` gives it.
        problems: By case, why it is left out or counts as empty.
        notes: What else people should know, in sentences.
        comparison: With another model, where there is one.
        pictures: By case, the drawing of its contours.
    """

    predictions: str
    references: str
    schema: LabelSchema
    surface: str
    cases: CaseScores
    summary: Mapping[str, Any]
    problems: Mapping[str, str]
    notes: Sequence[str] = ()
    comparison: Comparison | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        document = metrics_document(self.cases, self.summary)
        if self.comparison is not None:
            document["comparison"] = {
                "other": self.comparison.name,
                "summary": dict(self.comparison.summary),
                "problems": dict(self.comparison.problems),
            }
        told = {"problems": dict(self.problems), "notes": [*self.notes]}
        return {**document, **told, "surface": self.surface, "medseg_version": VERSION}

    def text(self) -> str:
        """The tables for the terminal."""
        text = summary_text(self.summary)
        if self.comparison is None:
            return text
        title = f"{self.predictions} minus {self.comparison.name} (p: sign test, Holm's correction)"
        return f"{text}\n\n{title}\n{comparison_text(self.comparison.summary)}"

    def worst_first(self) -> list[tuple[str, float | None]]:
        """Cases with their mean Dice over structures, lowest first; among equals the lowest single structure decides.

        Cases without a score come last.
        """
        table = score_table(self.cases, self.schema.names, "dice")
        ranked: list[tuple[float, float, str]] = []
        unscored: list[tuple[str, float | None]] = []
        for case, row in zip(self.cases, table, strict=True):
            values = row[~np.isnan(row)]
            if len(values):
                ranked.append((float(values.mean()), float(values.min()), case))
            else:
                unscored.append((case, None))
        return [(case, mean) for mean, _, case in sorted(ranked)] + unscored


def picture_path(out: Path, case: str) -> Path:
    """Where the drawing of a case goes; a case may be called like one of the other figures."""
    is_taken = f"{case.lower()}.png" in (SCORES, COMPARISON, CURVES, FIRST_BATCHES)
    return out / "figures" / (f"{case}.case.png" if is_taken else f"{case}.png")


def write_tables(out: Path, evaluation: Evaluation) -> None:
    """Write ``metrics.json``, ``metrics.csv`` and ``summary.csv``."""
    write_json_atomically(out / "metrics.json", evaluation.document())
    write_csv(out / "metrics.csv", metrics_rows(evaluation.cases))
    write_csv(out / "summary.csv", summary_rows(evaluation.summary))
