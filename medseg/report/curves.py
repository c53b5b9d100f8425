"""How a training went: loss, learning rate, validation Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.ticker import MaxNLocator

from medseg.report.figures import new_figure, write_png

Entries = Sequence[Mapping[str, Any]]

SMOOTHED_PART = 40
"""The loss is averaged over this part of the run to show where it is heading."""

SHOWN_PERCENT = 99.5
"""Losses shown; the first few are so large that the rest would be a flat line."""

LOSS_COLOR, RATE_COLOR = "tab:blue", "tab:orange"


def draw_curves(path: Path, log: Entries) -> None:
    """Draw the entries of ``log.jsonl``; a panel without entries stays empty.

    Args:
        path: PNG to write.
        log: Entries of kind ``step`` (step, loss, lr) and ``validation`` (step, mean_dice, dice by structure).
    """
    figure = new_figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    _draw_loss(left, [entry for entry in log if entry["kind"] == "step"])
    _draw_validation(right, [entry for entry in log if entry["kind"] == "validation"])
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.grid(alpha=0.3)
    write_png(path, figure)


def _draw_loss(panel: Panel, steps: Entries) -> None:
    panel.set(xlabel="step", ylabel="loss", title="training")
    if not steps:
        return
    numbers, losses = _column(steps, "step"), _column(steps, "loss")
    width = len(losses) // SMOOTHED_PART
    panel.plot(numbers, losses, color=LOSS_COLOR, alpha=0.25 if width > 1 else 1.0, lw=0.7, label="loss")
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        panel.plot(numbers[width - 1 :], smooth, color=LOSS_COLOR, lw=2, label=f"mean of {width} steps")
        _limit(panel, losses)
    rate = panel.twinx()
    rate.plot(numbers, _column(steps, "lr"), color=RATE_COLOR, lw=1, label="learning rate")
    rate.set_ylabel("learning rate", color=RATE_COLOR)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panel.legend(handles=[*panel.get_lines(), *rate.get_lines()], loc="upper right", framealpha=0.8, fontsize=8)


def _limit(panel: Panel, losses: np.ndarray) -> None:
    finite = losses[np.isfinite(losses)]
    low, high = (finite.min(), np.percentile(finite, SHOWN_PERCENT)) if len(finite) else (0.0, 0.0)
    if high > low:
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw_validation(panel: Panel, validations: Entries) -> None:
    panel.set(xlabel="step", ylabel="Dice", ylim=(0, 1), title="validation")
    if not validations:
        return
    places = _column(validations, "step")
    for name in validations[0]["dice"]:
        panel.plot(places, _column([entry["dice"] for entry in validations], name), lw=1, marker=".", label=name)
    means = _column(validations, "mean_dice")
    panel.plot(places, means, color="black", lw=2.5, marker="o", ms=4, label=f"mean, at the end {means[-1]:.3f}")
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _column(entries: Entries, key: str) -> np.ndarray:
    """NaN, a gap in the line, where nothing was measured."""
    return np.array([np.nan if entry[key] is None else entry[key] for entry in entries], dtype=np.float64)
