"""How a training went: loss, learning rate, validation Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.report.figures import new_figure, write_png

SMOOTHED_PART = 40
"""The loss is averaged over this part of the run to show where it is heading."""


def draw_curves(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Draw the entries of ``log.jsonl``.

    Args:
        path: PNG to write.
        log: Entries of kind ``step`` (step, loss, lr) and ``validation`` (step, mean_dice, dice by structure).
    """
    steps = [entry for entry in log if entry["kind"] == "step"]
    validations = [entry for entry in log if entry["kind"] == "validation"]
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    numbers, losses = (np.array([entry[key] for entry in steps], float) for key in ("step", "loss"))
    left.plot(numbers, losses, color="tab:blue", alpha=0.25, lw=0.7)
    width = max(1, len(losses) // SMOOTHED_PART)
    if len(losses) >= width:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(numbers[width - 1 :], smooth, color="tab:blue", label=f"loss, mean of {width} steps")
    rate = left.twinx()
    rate.plot(numbers, [entry["lr"] for entry in steps], color="tab:orange", lw=1)
    rate.set_ylabel("learning rate", color="tab:orange")
    left.set(xlabel="step", ylabel="loss")
    left.legend(loc="upper right", frameon=False)
    places = [entry["step"] for entry in validations]
    for name in validations[0]["dice"] if validations else ():
        values = [np.nan if entry["dice"][name] is None else entry["dice"][name] for entry in validations]
        right.plot(places, values, lw=1, marker=".", label=name)
    right.plot(places, [entry["mean_dice"] for entry in validations], color="black", lw=2.5, marker="o", label="mean")
    right.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))
    right.grid(alpha=0.3)
    if validations:
        right.legend(fontsize=8, frameon=False, loc="lower right")
    write_png(path, figure)
