"""From scores of cases to a summary: means over cases and structures, with BCa bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from medseg.core.labels import LabelSchema
from medseg.metrics.case import StructureScore

METRICS = tuple(
    field.name for field in fields(StructureScore) if field.name != "status" and not field.name.startswith("num_")
)
"""Fields of a score that means are taken of: not its status, and no counts."""

NUM_DRAWS = 9999
"""Bootstrap draws, as many as SciPy's: each end of a 95 % interval rests on 250 of them."""

CHUNK_NUMBERS = 2**14
"""Draws times cases at once; a table of all draws and all cases would grow large otherwise."""

CONFIDENCE = 0.95
"""Of the intervals."""

CaseScores = Mapping[str, Mapping[str, StructureScore]]

Table = Float[np.ndarray, "cases structures"]

Interval = dict[str, float | None]
"""``mean``, ``low`` and ``high``."""


def summarise(cases: CaseScores, schema: LabelSchema, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Means over cases for each structure, and over structures, with 95 % BCa bootstrap intervals over cases.

    Args:
        cases: Scores by case and structure; structures that nobody annotated in a case are left out there.
        schema: Gives the order.
        seed: Of the bootstrap.

    Returns:
        By structure, and ``mean`` of all: ``{"mean", "low", "high", "num_cases"}`` for each metric, null where nothing
        was scored; and how often it was ``num_missing`` and ``num_spurious``. ``mean`` is the mean over structures of
        each one's mean over its scored cases, and counts all cases.
    """
    summary: dict[str, dict[str, Any]] = {name: {} for name in (*schema.names, "mean")}
    tables = [score_table(cases, schema.names, metric) for metric in METRICS]
    for metric, table, intervals in zip(METRICS, tables, mean_intervals(tables, seed), strict=True):
        num_scored = [*np.count_nonzero(~np.isnan(table), axis=0), len(cases)]
        for entry, interval, count in zip(summary.values(), intervals, num_scored, strict=True):
            entry[metric] = {**interval, "num_cases": int(count)}
    for status in ("missing", "spurious"):
        for name in schema.names:
            statuses = [scores[name].status for scores in cases.values() if name in scores]
            summary[name][f"num_{status}"] = statuses.count(status)
        summary["mean"][f"num_{status}"] = sum(summary[name][f"num_{status}"] for name in schema.names)
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


def summary_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``summary.csv`` holds: a row for each structure, and one for their mean."""
    return [
        {
            "structure": name,
            **{f"{metric}_{key}": value for metric in METRICS for key, value in entry[metric].items()},
            **{key: entry[key] for key in ("num_missing", "num_spurious")},
        }
        for name, entry in summary.items()
    ]


def score_table(cases: CaseScores, names: Sequence[str], metric: str) -> Table:
    """Scores as numbers, a row for each case and a column for each structure, NaN where there is none."""
    rows = [[getattr(scores[name], metric) if name in scores else None for name in names] for scores in cases.values()]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(names))


def mean_intervals(tables: Sequence[Table], seed: int = 0) -> list[list[Interval]]:
    """The mean of each column over its numbers, and last the mean of these means, each with its BCa interval.

    Rows are drawn whole, one draw for all columns of all tables, so that what belongs to one case stays together. A
    column without a number in a draw is left out of it.

    Args:
        tables: Of the same rows; NaN where there is no number.
        seed: Of the draws.

    Returns:
        For each table ``{"mean", "low", "high"}``, null in columns without a number. A single row has an interval of no
        width.

    Source:
        Bias-corrected and accelerated intervals: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), with
        the acceleration from the jackknife over rows.
    """
    if not len(tables[0]):
        return [[{"mean": None, "low": None, "high": None} for _ in range(table.shape[1] + 1)] for table in tables]
    return [
        [_interval(*columns) for columns in zip(_estimates(table), draws.T, _jackknife(table).T, strict=True)]
        for table, draws in zip(tables, _drawn_means(tables, seed), strict=True)
    ]


def _estimates(table: Table) -> Float[np.ndarray, " means"]:
    values, is_number = _split(table)
    estimates: np.ndarray = _means(values.sum(axis=0, keepdims=True), is_number.sum(axis=0, keepdims=True))[0]
    return estimates


def _jackknife(table: Table) -> Float[np.ndarray, "cases means"]:
    """The means without each row."""
    values, is_number = _split(table)
    return _means(values.sum(axis=0) - values, is_number.sum(axis=0) - is_number)


def _drawn_means(tables: Sequence[Table], seed: int) -> list[Float[np.ndarray, "draws means"]]:
    """The means of each bootstrap draw, told from how often each row is in it."""
    random, num_rows = np.random.default_rng(seed), len(tables[0])
    parts = [_split(table) for table in tables]
    means = [np.empty((NUM_DRAWS, table.shape[1] + 1)) for table in tables]
    num_at_once = max(1, CHUNK_NUMBERS // num_rows)
    for start in range(0, NUM_DRAWS, num_at_once):
        size = min(num_at_once, NUM_DRAWS - start)
        counts = random.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size).astype(np.float64)
        for of_table, (values, is_number) in zip(means, parts, strict=True):
            of_table[start : start + size] = _means(counts @ values, counts @ is_number)
    return means


def _split(table: Table) -> tuple[Table, Table]:
    """The numbers, 0 where there is none, and 1 where there is one."""
    is_number = (~np.isnan(table)).astype(np.float64)
    return np.where(is_number > 0, table, 0.0), is_number


def _means(sums: np.ndarray, counts: np.ndarray) -> Float[np.ndarray, "rows means"]:
    """The mean of each column, and the mean of these; NaN where nothing is counted."""
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, on purpose
        # Differences of sums may leave a rest of rounding where nothing is counted.
        means = np.where(counts > 0, sums, 0.0) / counts
        mean = np.nansum(means, axis=1, keepdims=True) / np.count_nonzero(counts, axis=1)[:, None]
    return np.concatenate([means, mean], axis=1)


def _interval(
    estimate: np.floating, draws: Float[np.ndarray, " draws"], jackknife: Float[np.ndarray, " cases"]
) -> Interval:
    mean = float(estimate)
    if np.isnan(mean):
        return {"mean": None, "low": None, "high": None}
    low, high = _bca(mean, draws[~np.isnan(draws)], jackknife[~np.isnan(jackknife)])
    return {"mean": mean, "low": low, "high": high}


def _bca(estimate: float, draws: np.ndarray, jackknife: np.ndarray) -> tuple[float, float]:
    """The interval of one mean; its ends are percentiles of the draws, moved by bias and acceleration."""
    slack = 1e-12 * max(1.0, abs(estimate))  # draws that are equal but for rounding
    if np.ptp(draws) <= slack:
        return estimate, estimate
    below, up_to = np.count_nonzero(draws < estimate - slack), np.count_nonzero(draws <= estimate + slack)
    at_most = 1 - 0.5 / len(draws)  # an estimate beyond all draws would move the ends for ever
    bias = ndtri(np.clip((below + up_to) / (2 * len(draws)), 1 - at_most, at_most))
    pull = jackknife.mean() - jackknife
    spread = np.sum(pull**2) ** 1.5
    acceleration = np.sum(pull**3) / (6 * spread) if spread > 0 else 0.0
    ends = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.percentile(draws, 100 * ndtr(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)
