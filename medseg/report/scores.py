"""Scores of all cases, as box plots by structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.core.labels import LabelSchema
from medseg.metrics.surface import StructureScore
from medseg.report.figures import new_figure, write_png

PANELS = (("dice", "Dice", (0.0, 1.0)), ("nsd", "surface Dice", (0.0, 1.0)), ("hd95_mm", "HD95 [mm]", None))


def draw_scores(path: Path, cases: Mapping[str, Mapping[str, StructureScore]], schema: LabelSchema) -> None:
    """A box a structure, and every case as a point.

    Args:
        path: PNG to write.
        cases: Scores by case and structure.
        schema: Gives order and colours.
    """
    figure = new_figure(13, 1.4 + 0.45 * len(schema.names))
    panels = figure.subplots(1, len(PANELS), sharey=True)
    rng = np.random.default_rng(0)  # only spreads the points
    for panel, (metric, label, limits) in zip(panels, PANELS, strict=True):
        for place, structure in enumerate(schema.structures):
            found = [getattr(scores[structure.name], metric) for scores in cases.values() if structure.name in scores]
            values = [value for value in found if value is not None]
            if values:
                panel.boxplot(
                    values,
                    positions=[place],
                    orientation="horizontal",
                    widths=0.6,
                    showfliers=False,
                    manage_ticks=False,
                )
                panel.scatter(values, place + rng.uniform(-0.18, 0.18, len(values)), s=14, color=structure.color, edgecolors="0.3", linewidths=0.4, zorder=3)  # fmt: skip
        panel.set_xlabel(label)
        panel.grid(axis="x", alpha=0.3)
        if limits:
            panel.set_xlim(*limits)
    panels[0].set_yticks(range(len(schema.names)), schema.names)
    panels[0].invert_yaxis()
    figure.suptitle(f"{len(cases)} cases", fontsize=11)
    write_png(path, figure)
