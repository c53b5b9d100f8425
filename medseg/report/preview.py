"""A quick look at one prediction: its contours on the scan."""

from __future__ import annotations

from pathlib import Path

from medseg.core.case import Case
from medseg.core.labels import LabelSchema
from medseg.core.units import SOFT_TISSUE_HU
from medseg.core.volume import LabelMap
from medseg.report.overlays import draw_overlay


def draw_preview(path: Path, case: Case, label_map: LabelMap, labels: LabelSchema, modality: str) -> None:
    """Draw the contours of a prediction on the first channel of its scan, and those of the reference where there is one.

    Args:
        path: The picture to write.
        case: The scan, and its reference.
        label_map: The prediction, on the scan's grid.
        labels: The structures.
        modality: Of the first channel: CT is shown in a window of soft tissue, anything else in its own range.
    """
    grid = case.image.geometry
    contoured = None if case.label is None else grid.axes.to_canonical(case.label.array)
    image, values = (grid.axes.to_canonical(array) for array in (case.image.array[0], label_map.array))
    window = SOFT_TISSUE_HU if modality.upper() == "CT" else None
    draw_overlay(path, image, grid.canonical, labels, values, contoured, case.id, window)
