"""From scores of cases to a summary: means over cases and structures, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.labels import LabelSchema
from medseg.metrics.surface import StructureScore

METRICS = ("dice", "nsd", "hd95_mm", "volume_difference_ml")

NUM_DRAWS = 1000
"""Bootstrap draws: the ends of a 95 % interval rest on 25 draws each."""

CaseScores = Mapping[str, Mapping[str, StructureScore]]


def summarise(cases: CaseScores, schema: LabelSchema, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Means over cases for each structure, and over structures, with 95 % percentile bootstrap intervals over cases.

    Args:
        cases: Scores by case and structure; structures that nobody annotated in a case are left out there.
        schema: Gives the order.
        seed: Of the bootstrap.
    """
    draws = np.random.default_rng(seed).integers(0, max(1, len(cases)), (NUM_DRAWS, len(cases)))
    summary: dict[str, dict[str, Any]] = {name: {} for name in (*schema.names, "mean")}
    for metric in METRICS:
        table = _table(cases, schema, metric)
        for name, column in zip(schema.names, table.T, strict=True):
            summary[name][metric] = _interval(column[:, None], draws)
        summary["mean"][metric] = _interval(table, draws)
    for name in schema.names:
        statuses = [scores[name].status for scores in cases.values() if name in scores]
        summary[name]["num_missing"] = statuses.count("missing")
        summary[name]["num_spurious"] = statuses.count("spurious")
    return summary


def metrics_document(cases: CaseScores, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    plain = {case: {name: asdict(score) for name, score in scores.items()} for case, scores in cases.items()}
    return {"cases": plain, "summary": dict(summary)}


def metrics_rows(cases: CaseScores) -> list[dict[str, Any]]:
    """What ``metrics.csv`` holds: a row for each case and structure."""
    return [
        {"case": case, "structure": name, **asdict(score)}
        for case, scores in cases.items()
        for name, score in scores.items()
    ]


def _table(cases: CaseScores, schema: LabelSchema, metric: str) -> Float[np.ndarray, "cases structures"]:
    """Scores as numbers, NaN where there is none."""
    rows = [
        [getattr(scores[name], metric) if name in scores else None for name in schema.names]
        for scores in cases.values()
    ]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(schema.names))


def _interval(table: Float[np.ndarray, "cases structures"], draws: np.ndarray) -> dict[str, float | int | None]:
    """The mean over structures of each one's mean over its scored cases, with its interval."""
    num_cases = int((~np.isnan(table)).any(axis=1).sum()) if len(table) else 0
    if not num_cases:
        return {"mean": None, "low": None, "high": None, "num_cases": 0}
    drawn = table[draws]
    means = _mean_of_means(drawn)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    mean = float(_mean_of_means(table[None])[0])
    return {"mean": mean, "low": float(low), "high": float(high), "num_cases": num_cases}


def _mean_of_means(drawn: Float[np.ndarray, "draws cases structures"]) -> Float[np.ndarray, " draws"]:
    """Structures without a scored case in a draw are left out of it."""
    known = ~np.isnan(drawn)
    counts = known.sum(axis=1)
    means = np.where(known, drawn, 0).sum(axis=1) / np.maximum(counts, 1)
    structures = (counts > 0).sum(axis=1)
    total = np.where(counts > 0, means, 0).sum(axis=1)
    return np.where(structures > 0, total / np.maximum(structures, 1), np.nan)
