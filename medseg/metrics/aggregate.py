"""From scores of cases to a summary: means over cases and structures, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from medseg.core.labels import LabelSchema
from medseg.metrics.surface import StructureScore

METRICS = ("dice", "nsd", "hd95_mm", "volume_difference_ml")

NUM_DRAWS = 1000
"""Bootstrap draws: the ends of a 95 % interval rest on 25 draws each."""

INTERVAL_PERCENT = (2.5, 97.5)
"""The ends of a 95 % percentile interval."""

CaseScores = Mapping[str, Mapping[str, StructureScore]]


def summarise(cases: CaseScores, schema: LabelSchema, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Means over cases for each structure, and over structures, with 95 % percentile bootstrap intervals over cases.

    Args:
        cases: Scores by case and structure; structures that nobody annotated in a case are left out there.
        schema: Gives the order.
        seed: Of the bootstrap.

    Returns:
        By structure, and ``mean`` of all: ``{"mean", "low", "high", "num_cases"}`` for each metric, null where nothing
        was scored; structures also count ``num_missing`` and ``num_spurious``.
    """
    draws = _drawn_counts(len(cases), seed)
    summary: dict[str, dict[str, Any]] = {name: {} for name in (*schema.names, "mean")}
    for metric in METRICS:
        table = _table(cases, schema, metric)
        for name, column in zip(schema.names, table.T, strict=True):
            num_scored = int(np.count_nonzero(~np.isnan(column)))
            summary[name][metric] = {**_interval(column[:, None], draws), "num_cases": num_scored}
        summary["mean"][metric] = {**_interval(table, draws), "num_cases": len(cases)}
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


def _drawn_counts(num_cases: int, seed: int) -> Integer[np.ndarray, "draws cases"]:
    """How often each case is in each bootstrap draw; one draw serves all structures, so that cases stay whole."""
    if not num_cases:
        return np.zeros((NUM_DRAWS, 0), dtype=np.int64)
    counts: np.ndarray = np.random.default_rng(seed).multinomial(
        num_cases, np.full(num_cases, 1 / num_cases), NUM_DRAWS
    )
    return counts


def _interval(
    table: Float[np.ndarray, "cases structures"], draws: Integer[np.ndarray, "draws cases"]
) -> dict[str, float | None]:
    """The mean over structures of each one's mean over its scored cases, with its interval."""
    if np.isnan(table).all():
        return {"mean": None, "low": None, "high": None}
    mean = _mean_of_means(table, np.ones((1, len(table)), dtype=np.int64))[0]
    low, high = np.nanpercentile(_mean_of_means(table, draws), INTERVAL_PERCENT)
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _mean_of_means(
    table: Float[np.ndarray, "cases structures"], draws: Integer[np.ndarray, "draws cases"]
) -> Float[np.ndarray, " draws"]:
    """One mean a draw; a structure without a scored case in a draw is left out of it, NaN where that is all of them."""
    is_scored = ~np.isnan(table)
    counts = draws @ is_scored.astype(np.float64)
    sums = draws @ np.where(is_scored, table, 0.0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, on purpose
        structure_means = sums / counts
        means: np.ndarray = np.nansum(structure_means, axis=1) / np.count_nonzero(counts, axis=1)
    return means
