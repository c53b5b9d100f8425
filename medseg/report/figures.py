"""Making and writing figures, without matplotlib's global state."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes as Panel
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.io.atomic import write_atomically

WIDEST_LINEAR_MM, LINEAR_PART_MM = 60.0, 10.0
"""Distances up to the first are drawn on a linear scale; else only those up to the second are, and logarithmic beyond."""

DISTANCE_TICKS_MM = (0, 5, 10, 30, 100, 300, 1000)

MAX_BYTES = 1_500_000
"""Of a picture: a report with one a case must still open and travel easily."""


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that draws into memory."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(name: str) -> str:
    """A name as it stands: between two dollar signs matplotlib would read a formula."""
    return name.replace("$", r"\$")


def scale_distances(panel: Panel, largest_mm: float) -> None:
    """Make room along x for the small distances, where a large one would press them together."""
    if largest_mm <= WIDEST_LINEAR_MM:
        return
    low, high = (1.3 * end for end in panel.get_xlim())
    panel.set_xscale("symlog", linthresh=LINEAR_PART_MM)
    panel.set_xlim(low, high)
    ticks = sorted({sign * tick for tick in DISTANCE_TICKS_MM for sign in (-1, 1) if low <= sign * tick <= high})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])


def write_png(path: Path, figure: Figure, dpi: float = 90.0) -> None:
    """Write a figure as PNG of at most ``MAX_BYTES``, replacing an older one; a coarser one where it would be larger."""

    def write(temporary: Path) -> None:
        scale = 1.0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes for Chinese, and no noise about it
            figure.savefig(temporary, dpi=dpi, format="png")
            while (size := temporary.stat().st_size) > MAX_BYTES:
                scale *= 0.9 * (MAX_BYTES / size) ** 0.5  # bytes go with the number of pixels, roughly
                figure.savefig(temporary, dpi=scale * dpi, format="png")

    write_atomically(path, write, overwrite=True)
