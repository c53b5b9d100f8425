"""Making and writing figures, without matplotlib's global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.io.atomic import write_atomically

MAX_BYTES = 1_500_000
"""Of a picture: a report with one a case must still open and travel easily."""


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that draws into memory."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(path: Path, figure: Figure, dpi: float = 90.0) -> None:
    """Write a figure as PNG of at most ``MAX_BYTES``, replacing an older one; a coarser one where it would be larger."""

    def write(temporary: Path) -> None:
        scale = 1.0
        figure.savefig(temporary, dpi=dpi, format="png")
        while (size := temporary.stat().st_size) > MAX_BYTES:
            scale *= 0.9 * (MAX_BYTES / size) ** 0.5  # bytes go with the number of pixels, roughly
            figure.savefig(temporary, dpi=scale * dpi, format="png")

    write_atomically(path, write, overwrite=True)
