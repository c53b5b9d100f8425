"""Contours on the scan: for each structure three planes through it, with reference and prediction.

Drawn as radiologists look: the patient's right is on the viewer's left, and the head is up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.lines import Line2D

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.shapes import IJK
from medseg.report.figures import new_figure, write_png

MAX_ROWS = 12
"""Structures drawn a case, the largest first; more would be too small to look at."""

PLANES = (
    ("axial", 2, (0, 1), ("R", "L", "P", "A")),
    ("coronal", 1, (0, 2), ("R", "L", "I", "S")),
    ("sagittal", 0, (1, 2), ("A", "P", "I", "S")),
)
"""Name, the axis across the plane, the axes along its x and y, and letters at its left, right, bottom and top. Axes are
R, A, S, each growing; x is turned so that the patient's right, or front, is on the left."""

REFERENCE_STYLE: dict[str, Any] = {"linestyles": "solid"}
PREDICTION_STYLE: dict[str, Any] = {"linestyles": "dashed"}


def draw_overlay(
    path: Path,
    image: Shaped[np.ndarray, IJK],
    geometry: Geometry,
    schema: LabelSchema,
    prediction: Integer[np.ndarray, IJK] | None,
    reference: Integer[np.ndarray, IJK] | None,
    title: str,
    window: tuple[float, float] | None,
) -> None:
    """Draw a case.

    Args:
        path: PNG to write.
        image: One channel, axes in R, A, S order.
        geometry: Its grid, canonical.
        schema: The structures.
        prediction, reference: Label values on the same grid; either may be None.
        title: On top.
        window: Intensities shown black and white; None: the image's 1st and 99th percentile.
    """
    maps = [
        (labels, style)
        for labels, style in ((reference, REFERENCE_STYLE), (prediction, PREDICTION_STYLE))
        if labels is not None
    ]
    sizes = {s: max(int(np.count_nonzero(labels == s.value)) for labels, _ in maps) for s in schema.structures}
    shown = sorted((s for s in schema.structures if sizes[s]), key=lambda s: -sizes[s])[:MAX_ROWS]
    rows: list[Structure | None] = [s for s in schema.structures if s in shown] or [None]
    low, high = window or tuple(float(value) for value in np.percentile(image, [1, 99]))
    figure = new_figure(9.6, 0.8 + 3.0 * len(rows))
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, structure in zip(panels, rows, strict=True):
        centre = _centre(structure, reference, prediction, geometry)
        for panel, plane in zip(row, PLANES, strict=True):
            _draw_plane(panel, image, geometry, plane, centre[plane[1]], (low, high))
            for labels, style in maps:
                _draw_contours(panel, labels, geometry, plane, centre[plane[1]], schema, structure, style)
        if structure is not None:
            row[0].set_ylabel(_caption(structure, prediction, reference), color="black", fontsize=10)
    handles = [
        Line2D([], [], color="0.3", ls="-", label="reference"),
        Line2D([], [], color="0.3", ls="--", label="prediction"),
    ]
    kept = [handle for handle, labels in zip(handles, (reference, prediction), strict=True) if labels is not None]
    figure.legend(handles=kept, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    write_png(path, figure)


def _centre(
    structure: Structure | None, reference: np.ndarray | None, prediction: np.ndarray | None, geometry: Geometry
) -> tuple[int, int, int]:
    """A voxel of the structure in the middle of its largest slice along each axis."""
    if structure is None:
        i, j, k = (size // 2 for size in geometry.shape_ijk)
        return i, j, k
    masks = [labels == structure.value for labels in (reference, prediction) if labels is not None]
    mask = next(mask for mask in masks if mask.any())
    i, j, k = (int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3))
    return i, j, k


def _plane_of(array: np.ndarray, plane: tuple[Any, ...], index: int) -> np.ndarray:
    """A slice with y down the rows and x along the columns."""
    shown: np.ndarray = array.take(index, axis=plane[1]).T
    return shown


def _extent(geometry: Geometry, plane: tuple[Any, ...]) -> tuple[float, float, float, float]:
    x, y = (geometry.shape_ijk[axis] * geometry.spacing_ijk_mm[axis] for axis in plane[2])
    return 0.0, x, 0.0, y


def _draw_plane(
    panel: Panel, image: np.ndarray, geometry: Geometry, plane: tuple[Any, ...], index: int, window: tuple[float, float]
) -> None:
    shown = _plane_of(image, plane, index)
    panel.imshow(
        shown, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=_extent(geometry, plane),
        interpolation="bilinear",
    )  # fmt: skip
    # R, A, S axes grow to the right, the front and the head: x is turned for the viewer who faces the patient.
    panel.invert_xaxis()
    panel.set_xticks([])
    panel.set_yticks([])
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    for letter, (x, y) in zip(plane[3], places, strict=True):
        panel.text(x, y, letter, transform=panel.transAxes, color="gold", fontsize=8, ha="center", va="center")


def _draw_contours(
    panel: Panel,
    labels: np.ndarray,
    geometry: Geometry,
    plane: tuple[Any, ...],
    index: int,
    schema: LabelSchema,
    chosen: Structure | None,
    style: dict[str, Any],
) -> None:
    shown = _plane_of(labels, plane, index)
    spacing = [geometry.spacing_ijk_mm[axis] for axis in plane[2]]
    x, y = ((np.arange(size) + 0.5) * mm for size, mm in zip(shown.shape[::-1], spacing, strict=True))
    for structure in schema.structures:
        mask = shown == structure.value
        if mask.any() and min(mask.shape) > 1:
            width = 1.8 if structure is chosen else 0.8
            panel.contour(
                x, y, mask.astype(np.uint8), levels=[0.5], colors=[structure.color], linewidths=width, **style
            )


def _caption(structure: Structure, prediction: np.ndarray | None, reference: np.ndarray | None) -> str:
    if prediction is None or reference is None:
        return structure.name
    predicted, contoured = prediction == structure.value, reference == structure.value
    dice = 2 * np.count_nonzero(predicted & contoured) / (np.count_nonzero(predicted) + np.count_nonzero(contoured))
    return f"{structure.name}\nDice {dice:.2f}"
