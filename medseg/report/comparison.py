"""Paired differences of two models, a row for each structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Panel

from medseg.metrics.compare import SMALLER_IS_BETTER, differences
from medseg.report.evaluation import Comparison, Evaluation
from medseg.report.figures import new_figure, plain, scale_distances, write_png
from medseg.report.tables import p_value, words_of

SHOWN = ("dice", "nsd", "hd95_mm")
"""Metrics that get a panel."""

MAX_NAME = 40
"""Letters of a model's name in the title."""

BETTER_COLOR, WORSE_COLOR = "#e8f3ea", "#f8e9e7"
"""Behind the side of zero where the first model is better, and where it is worse."""


def draw_comparison(path: Path, evaluation: Evaluation, comparison: Comparison) -> None:
    """Every case as a point at its difference, the mean with its interval, and the corrected p value beside it.

    Args:
        path: PNG to write.
        evaluation: Of the first model.
        comparison: With the second one.
    """
    structures, names = evaluation.schema.structures, evaluation.schema.names
    figure = new_figure(1.5 + 4.0 * len(SHOWN), 1.6 + 0.45 * len(names))
    panels = figure.subplots(1, len(SHOWN), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, SHOWN, strict=True):
        table = differences(evaluation.cases, comparison.cases, names, metric)
        for place, structure in enumerate(structures):
            entry = comparison.summary[structure.name][metric]
            _draw_structure(panel, place, table[:, place], structure.color, entry)
        _mark_sides(panel, table, metric)
        panel.set_title("p, Holm", loc="right", fontsize=8, color="0.3")
        panel.set_xlabel(f"difference of {words_of(metric).name}")
    panels[0].set_yticks(range(len(names)), [plain(name) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    first, second = (plain(_shortened(name)) for name in (evaluation.predictions, comparison.name))
    figure.suptitle(f"{first} minus {second}, case by case; green: {first} is better", fontsize=11)
    write_png(path, figure)


def _shortened(name: str) -> str:
    """The end tells folders apart."""
    return name if len(name) <= MAX_NAME else f"…{name[-MAX_NAME:]}"


def _draw_structure(panel: Panel, place: int, values: np.ndarray, color: str, entry: Mapping[str, Any]) -> None:
    panel.annotate(
        p_value(entry["p_holm"]), (1.01, place), xycoords=("axes fraction", "data"), fontsize=8, color="0.3",
        va="center",
    )  # fmt: skip
    values = values[~np.isnan(values)]
    if not len(values):
        return
    # Spread evenly, so that equal differences do not hide each other.
    places = place + np.linspace(-0.2, 0.2, len(values) + 2)[1:-1]
    panel.scatter(values, places, s=12, color=color, edgecolors="0.3", linewidths=0.4, alpha=0.8, zorder=2)
    panel.plot([entry["low"], entry["high"]], [place, place], color="black", lw=2, zorder=3)
    panel.plot([entry["difference"]], [place], marker="D", ms=5, color="black", zorder=4)


def _mark_sides(panel: Panel, table: np.ndarray, metric: str) -> None:
    largest = np.nanmax(np.abs(table)) if not np.isnan(table).all() else 0.0
    limit = 1.08 * largest if largest > 0 else 1.0
    is_better_left = metric in SMALLER_IS_BETTER
    left, right = (BETTER_COLOR, WORSE_COLOR) if is_better_left else (WORSE_COLOR, BETTER_COLOR)
    panel.axvspan(-2 * limit, 0, color=left, lw=0, zorder=0)
    panel.axvspan(0, 2 * limit, color=right, lw=0, zorder=0)
    panel.axvline(0, color="0.4", lw=1, zorder=1)
    panel.set_xlim(-limit, limit)
    if metric.endswith("_mm"):
        scale_distances(panel, limit)
    panel.grid(axis="x", alpha=0.3)
