"""Scores as tables: for the terminal, and as CSV; and what each metric is called and means."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.io.atomic import write_text_atomically

NOTHING = "–"
"""Where there is no number."""


@dataclass(frozen=True)
class MetricWords:
    """A metric for people.

    Attributes:
        name: With its unit.
        digits: Behind the point.
        meaning: A sentence.
    """

    name: str
    digits: int
    meaning: str


WORDS = {
    "dice": MetricWords(
        "Dice", 3, "Twice the common volume over the sum of both volumes: 1 is identical, 0 is disjoint."
    ),
    "iou": MetricWords("IoU", 3, "Common volume over the volume of both together (Jaccard): 1 is identical."),
    "nsd": MetricWords(
        "NSD", 3, "Surface Dice: the part of both surfaces that lies within a tolerance of the other one."
    ),
    "hd95_mm": MetricWords(
        "HD95 [mm]", 1, "95th percentile of the distances between the surfaces, the larger of both directions."
    ),
    "assd_mm": MetricWords("ASSD [mm]", 2, "Average distance between the surfaces, over both of them."),
    "volume_difference_ml": MetricWords(
        "volume difference [ml]", 2, "Predicted minus reference volume; in comparisons of two models its size."
    ),
    "lesion_sensitivity": MetricWords(
        "lesion sensitivity", 3, "The part of the reference's connected pieces that the prediction overlaps."
    ),
    "lesion_precision": MetricWords(
        "lesion precision", 3, "The part of the prediction's connected pieces that overlap the reference."
    ),
    "lesion_f1": MetricWords("lesion F1", 3, "Harmonic mean of lesion sensitivity and precision."),
}


def words_of(metric: str) -> MetricWords:
    """Name, digits and meaning of a metric; its field's name where nobody wrote any."""
    return WORDS.get(metric) or MetricWords(metric, 3, "")


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A number for people, a dash where there is none."""
    return NOTHING if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def interval(entry: Mapping[str, Any], digits: int, *, signed: bool = False) -> str:
    """``low to high``; a dash where fewer than two cases leave it without meaning."""
    if entry["low"] is None or entry["num_cases"] < 2:
        return NOTHING
    return f"{number(entry['low'], digits, signed=signed)} to {number(entry['high'], digits, signed=signed)}"


def p_value(value: float | None) -> str:
    """A p value for people."""
    if value is None:
        return NOTHING
    return "<.001" if value < 0.001 else f"{value:.3f}"


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for the terminal."""
    rows = [["structure", "Dice", "95 % interval", "NSD", "HD95 mm", "cases"]]
    for name, entry in summary.items():
        dice, nsd, hd95 = (entry[metric]["mean"] for metric in ("dice", "nsd", "hd95_mm"))
        numbers = [number(dice, 3), interval(entry["dice"], 3), number(nsd, 3), number(hd95, 1)]
        rows.append([name, *numbers, str(entry["dice"]["num_cases"])])
    return _aligned(rows)


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The comparison of two models for the terminal."""
    rows = [["structure", "Dice", "95 % interval", "p", "better/worse/tied", "NSD", "p", "HD95 mm", "p"]]
    for name, entry in comparison.items():
        dice, nsd, hd95 = (entry[metric] for metric in ("dice", "nsd", "hd95_mm"))
        counts = f"{dice['better']}/{dice['worse']}/{dice['tied']}"
        row = [name, number(dice["difference"], 3, signed=True), interval(dice, 3, signed=True)]
        row += [p_value(dice["p_holm"]), counts]
        row += [number(nsd["difference"], 3, signed=True), p_value(nsd["p_holm"])]
        row += [number(hd95["difference"], 1, signed=True), p_value(hd95["p_holm"])]
        rows.append(row)
    return _aligned(rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys, with a header; only a name where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["case"])
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue(), overwrite=True)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(lines)
