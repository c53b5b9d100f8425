"""Two models on the same cases, structure by structure: who is better, by how much, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.labels import LabelSchema
from medseg.metrics.aggregate import METRICS, CaseScores, Table, mean_intervals, score_table

SMALLER_IS_BETTER = frozenset({"hd95_mm", "assd_mm", "volume_difference_ml"})

SIZE_COUNTS = frozenset({"volume_difference_ml"})
"""Metrics that are best at 0 and are compared without their sign."""

TIE = 1e-9
"""Differences up to this are ties: the rest of rounding."""


def compare(ours: CaseScores, other: CaseScores, schema: LabelSchema, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired differences of two models, with 95 % BCa intervals and sign tests.

    Only where both have a number they are compared: where one of them misses a structure, there is no distance to
    compare, and Dice tells.

    Args:
        ours, other: Scores by case and structure of the same cases.
        schema: Gives the order.
        seed: Of the bootstrap, which draws whole cases.

    Returns:
        By structure and metric: ``difference`` (ours minus other, of the volume differences' sizes) with ``low`` and
        ``high``; ``num_cases`` compared, of which ``better``, ``worse`` and ``tied``; ``p_value`` of the exact
        two-sided sign test without the ties, and ``p_holm``, corrected for the number of structures. ``mean`` has the
        mean over structures of the differences, and counts the cases by theirs, for which one test is made.
    """
    comparison: dict[str, dict[str, Any]] = {name: {} for name in (*schema.names, "mean")}
    tables = [differences(ours, other, schema.names, metric) for metric in METRICS]
    for metric, table, intervals in zip(METRICS, tables, mean_intervals(tables, seed), strict=True):
        counts = [_counts(column, metric) for column in (*table.T, _case_means(table))]
        corrected = [*holm([entry["p_value"] for entry in counts[:-1]]), counts[-1]["p_value"]]
        for entry, interval, counted, p_holm in zip(comparison.values(), intervals, counts, corrected, strict=True):
            ends = {"difference": interval["mean"], "low": interval["low"], "high": interval["high"]}
            entry[metric] = {**ends, **counted, "p_holm": p_holm}
    return comparison


def differences(ours: CaseScores, other: CaseScores, names: Sequence[str], metric: str) -> Table:
    """Ours minus other in each case that both scored, NaN where one of them has no number."""
    tables = []
    for scores in (ours, {case: other[case] for case in ours}):
        table = score_table(scores, names, metric)
        tables.append(np.abs(table) if metric in SIZE_COUNTS else table)
    difference: np.ndarray = tables[0] - tables[1]
    return difference


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number; those that are None are no tests.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        corrected[place] = largest
    return corrected


def _case_means(table: Table) -> Float[np.ndarray, " cases"]:
    is_number = ~np.isnan(table)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, on purpose
        means: np.ndarray = np.where(is_number, table, 0.0).sum(axis=1) / is_number.sum(axis=1)
    return means


def _counts(column: Float[np.ndarray, " cases"], metric: str) -> Mapping[str, int | float | None]:
    from scipy.stats import binomtest  # takes longer to import than the rest of an evaluation's start

    gain = -column if metric in SMALLER_IS_BETTER else column
    better, worse = int(np.count_nonzero(gain > TIE)), int(np.count_nonzero(gain < -TIE))
    num_cases = int(np.count_nonzero(~np.isnan(column)))
    p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {
        "num_cases": num_cases,
        "better": better,
        "worse": worse,
        "tied": num_cases - better - worse,
        "p_value": p_value if num_cases else None,
    }
