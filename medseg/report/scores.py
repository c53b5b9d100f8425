"""Scores of all cases, as box plots by structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes as Panel

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.case import StructureScore
from medseg.report.figures import new_figure, plain, scale_distances, write_png

CaseScores = Mapping[str, Mapping[str, StructureScore]]

PANELS = (("dice", "Dice", 2), ("nsd", "surface Dice", 2), ("hd95_mm", "HD95 [mm]", 1))
"""Field of a score, its name for people, and the digits of its mean."""


def draw_scores(path: Path, cases: CaseScores, schema: LabelSchema) -> None:
    """A box a structure, every case as a point, and the mean beside it.

    Args:
        path: PNG to write.
        cases: Scores by case and structure.
        schema: Gives order and colours.
    """
    shown = [entry for entry in PANELS if entry[0] == "dice" or any(_values(cases, s, entry[0]) for s in schema.names)]
    figure = new_figure(1.5 + 4.0 * len(shown), 1.4 + 0.45 * len(schema.names))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (metric, label, digits) in zip(panels, shown, strict=True):
        for place, structure in enumerate(schema.structures):
            _draw_structure(panel, place, structure, _values(cases, structure.name, metric), digits)
        panel.set_title("mean", loc="right", fontsize=8, color="0.3")
        panel.set_xlabel(label)
        panel.grid(axis="x", alpha=0.3)
        if metric == "hd95_mm":
            largest_mm = max(value for name in schema.names for value in _values(cases, name, metric))
            panel.set_xlim(0.0, 1.05 * largest_mm or 1.0)
            scale_distances(panel, largest_mm)
        else:
            panel.set_xlim(-0.02, 1.02)
    panels[0].set_yticks(range(len(schema.names)), [plain(name) for name in schema.names])
    panels[0].set_ylim(len(schema.names) - 0.5, -0.5)
    figure.suptitle(f"{len(cases)} cases{_unfound(cases)}", fontsize=11)
    write_png(path, figure)


def _values(cases: CaseScores, name: str, metric: str) -> list[float]:
    found = [getattr(scores[name], metric) for scores in cases.values() if name in scores]
    return [float(value) for value in found if value is not None]


def _draw_structure(panel: Panel, place: int, structure: Structure, values: list[float], digits: int) -> None:
    mean = f"{np.mean(values):.{digits}f}" if values else "–"
    panel.annotate(mean, (1.01, place), xycoords=("axes fraction", "data"), fontsize=8, color="0.3", va="center")
    if not values:
        return
    panel.boxplot(
        values, positions=[place], orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False,
        medianprops={"color": "black", "lw": 1.5}, boxprops={"color": "0.4"}, whiskerprops={"color": "0.4"},
        capprops={"color": "0.4"},
    )  # fmt: skip
    # Spread evenly, so that equal scores do not hide each other.
    places = place + np.linspace(-0.2, 0.2, len(values) + 2)[1:-1]
    panel.scatter(values, places, s=14, color=structure.color, edgecolors="0.3", linewidths=0.4, zorder=3)


def _unfound(cases: CaseScores) -> str:
    """How many structures have no distance, because one side lacks them."""
    statuses = [score.status for scores in cases.values() for score in scores.values()]
    counts = [f"{count} {status}" for status in ("missing", "spurious") if (count := statuses.count(status))]
    return f"; structures that have no HD95: {', '.join(counts)}" if counts else ""
