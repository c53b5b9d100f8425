"""Making and writing figures, without matplotlib's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.io.atomic import write_atomically


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that draws into memory."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(path: Path, figure: Figure, dpi: int = 90, **options: Any) -> None:
    """Write a figure as PNG, replacing an older one."""
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=dpi, format="png", **options), overwrite=True
    )
