"""Contours on the scan: for each structure three planes through it, with reference and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from contourpy import LineType, contour_generator
from jaxtyping import Integer, Shaped
from matplotlib.axes import Axes as Panel
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import Normal, Stroke
from scipy import ndimage

from medseg.core.geometry import Geometry, Shape3
from medseg.core.labels import LabelSchema, Structure
from medseg.core.shapes import IJK
from medseg.metrics.overlap import dice
from medseg.report.figures import new_figure, plain, write_png
from medseg.report.planes import CONVENTION, PLANES, Plane, write_letters

MAX_ROWS = 12
"""Structures that get a row of their own, the largest; more would be too small to look at."""

PANEL_INCHES = 2.9
"""Side of one plane's square."""

SMALLEST_VIEW_MM = 150.0
"""Edge of the square that a panel shows: a head with its neck; larger structures get as much as they need."""

MARGIN_MM = 20.0
"""Left around a structure that is larger than that."""

SCALE_BAR_MM = 50.0

LINE_WIDTH, THIN_LINE_WIDTH = 1.7, 0.8
"""Of the row's structure, and of all others [points]."""

FILL_OPACITY = 0.22
"""Of the row's reference."""

PREDICTION_DASHES = (0.0, (2.5, 1.5))
"""Offset, and lengths of dash and gap [line widths]."""

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class _Contours:
    """A label map, with the box around each structure that it holds."""

    labels: np.ndarray
    boxes: dict[Structure, Box]

    @classmethod
    def of(cls, labels: np.ndarray, schema: LabelSchema) -> _Contours:
        largest = max(max(_values(structure)) for structure in schema.structures)
        found = ndimage.find_objects(labels, max_label=largest)
        of_structures = {s: [box for value in _values(s) if (box := found[value - 1])] for s in schema.structures}
        return cls(labels, {structure: _around(boxes) for structure, boxes in of_structures.items() if boxes})

    def mask(self, structure: Structure, box: Box) -> np.ndarray:
        mask: np.ndarray = np.isin(self.labels[box], _values(structure))
        return mask

    def size(self, structure: Structure) -> int:
        return int(np.count_nonzero(self.mask(structure, self.boxes[structure]))) if structure in self.boxes else 0


@dataclass(frozen=True, eq=False)
class _Scene:
    """All that one figure shows; ``reference`` and ``prediction`` hold contours on the image's grid."""

    image: np.ndarray
    geometry: Geometry
    schema: LabelSchema
    reference: _Contours | None
    prediction: _Contours | None
    window: tuple[float, float]

    @property
    def maps(self) -> list[_Contours]:
        """What is contoured, the reference first."""
        return [found for found in (self.reference, self.prediction) if found is not None]


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
    """Draw a case: a row for each structure that either map holds, the largest ``MAX_ROWS`` of them.

    Args:
        path: PNG to write.
        image: One channel, axes in R, A, S order.
        geometry: Its grid, canonical.
        schema: The structures.
        prediction, reference: Label values on the same grid; either may be None.
        title: On top.
        window: Intensities shown black and white; None: the image's 1st and 99th percentile.
    """
    contoured, predicted = (
        None if labels is None else _Contours.of(labels, schema) for labels in (reference, prediction)
    )
    low, high = window or np.percentile(image, [1, 99])
    scene = _Scene(image, geometry, schema, contoured, predicted, (float(low), float(high)))
    rows = _rows(scene)
    figure = new_figure(3 * PANEL_INCHES + 0.6, 1.0 + PANEL_INCHES * len(rows))
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, structure in zip(panels, rows, strict=True):
        _draw_row(row, scene, structure)
    figure.legend(handles=_line_keys(scene), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    colors = [Line2D([], [], color=s.color, lw=2, label=plain(s.name)) for s in rows if s is not None]
    if colors:
        figure.legend(handles=colors, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(f"{plain(title)}  ·  {CONVENTION}", fontsize=10, x=0.02, ha="left")
    write_png(path, figure)


def _rows(scene: _Scene) -> list[Structure | None]:
    """The structures to show, in the schema's order; one row without a structure where there is none."""
    sizes = {s: max((found.size(s) for found in scene.maps), default=0) for s in scene.schema.structures}
    largest = sorted((s for s in sizes if sizes[s]), key=lambda s: -sizes[s])[:MAX_ROWS]
    return [s for s in scene.schema.structures if s in largest] or [None]


def _draw_row(row: Any, scene: _Scene, structure: Structure | None) -> None:
    centre = _centre(scene, structure)
    view = _view(scene.geometry, _box_around(scene, structure))
    for panel, plane in zip(row, PLANES, strict=True):
        _draw_plane(panel, scene, plane, centre[plane.across])
        for contours in scene.maps:
            _draw_contours(panel, scene, contours, plane, centre[plane.across], structure)
        (left, right), (bottom, top) = (view[axis] for axis in plane.along)
        panel.set(xlim=(right, left), ylim=(bottom, top))  # x is turned for the viewer who faces the patient
        write_letters(panel, plane)
    (_, right), (bottom, _) = (view[axis] for axis in PLANES[0].along)
    _draw_scale_bar(row[0], right, bottom)
    if structure is not None:
        row[0].set_ylabel(_caption(scene, structure), fontsize=10)


def _box_around(scene: _Scene, structure: Structure | None) -> Box:
    """Around the structure in all maps, the volume where there is none."""
    boxes = [contours.boxes[structure] for contours in scene.maps if structure in contours.boxes] if structure else []
    return _around(boxes) if boxes else tuple(slice(0, size) for size in scene.geometry.shape_ijk)


def _around(boxes: list[Box]) -> Box:
    """One box around others."""
    return tuple(slice(min(box[a].start for box in boxes), max(box[a].stop for box in boxes)) for a in range(3))


def _values(structure: Structure) -> list[int]:
    """Of its voxels: its own in predictions, in references all those of its region."""
    return sorted({structure.value, *structure.reference_values})


def _centre(scene: _Scene, structure: Structure | None) -> Shape3:
    """The slice of each axis that holds most of the structure: as the reference has it, else as it was predicted."""
    holders = [contours for contours in scene.maps if structure and structure in contours.boxes]
    if structure is None or not holders:
        i, j, k = (size // 2 for size in scene.geometry.shape_ijk)
        return i, j, k
    box = holders[0].boxes[structure]
    mask = holders[0].mask(structure, box)
    i, j, k = (side.start + _largest_slice(mask, axis) for axis, side in enumerate(box))
    return i, j, k


def _largest_slice(mask: np.ndarray, axis: int) -> int:
    """The middle one of those that are equally large: the first would be at the edge of a tube or a box."""
    sizes = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    largest = np.flatnonzero(sizes == sizes.max())
    return int(largest[len(largest) // 2])


def _view(geometry: Geometry, box: Box) -> list[tuple[float, float]]:
    """First and last millimetre shown along each axis: a cube around a box, kept inside the volume where it fits."""
    spacing = geometry.spacing_ijk_mm
    sizes = [size * mm for size, mm in zip(geometry.shape_ijk, spacing, strict=True)]
    extents = [(side.stop - side.start) * mm for side, mm in zip(box, spacing, strict=True)]
    length = min(max(max(extents) + 2 * MARGIN_MM, SMALLEST_VIEW_MM), max(sizes))
    view = []
    for side, mm, size in zip(box, spacing, sizes, strict=True):
        half = length / 2
        middle = (side.start + side.stop) / 2 * mm
        middle = size / 2 if size <= length else min(max(middle, half), size - half)
        view.append((middle - half, middle + half))
    return view


def _draw_plane(panel: Panel, scene: _Scene, plane: Plane, index: int) -> None:
    x_mm, y_mm = (scene.geometry.shape_ijk[axis] * scene.geometry.spacing_ijk_mm[axis] for axis in plane.along)
    low, high = scene.window
    panel.imshow(
        plane.slice_of(scene.image, index), cmap="gray", vmin=low, vmax=high, origin="lower",
        extent=(0.0, x_mm, 0.0, y_mm), interpolation="bilinear",
    )  # fmt: skip
    panel.set(xticks=[], yticks=[], facecolor="black")


def _draw_contours(
    panel: Panel, scene: _Scene, contours: _Contours, plane: Plane, index: int, chosen: Structure | None
) -> None:
    """All structures of one map in one plane: thin, and the chosen one thick."""
    is_reference = contours is scene.reference
    # One path a structure, not one a line: where there are crumbs all over, thousands of lines would take seconds.
    for structure in sorted(scene.schema.structures, key=lambda one: one is chosen):
        outline = _outline(scene.geometry, contours, plane, index, structure)
        if outline is None:
            continue
        width = LINE_WIDTH if structure is chosen else THIN_LINE_WIDTH
        style = "solid" if is_reference else PREDICTION_DASHES
        drawn = PathPatch(outline, fill=False, edgecolor=structure.color, linewidth=width, linestyle=style)
        if structure is chosen and is_reference:
            panel.add_artist(PathPatch(outline, facecolor=structure.color, alpha=FILL_OPACITY, lw=0))
        elif structure is chosen:  # told apart from the reference below it, which has the same colour
            drawn.set_path_effects([Stroke(linewidth=width + 1.0, foreground="black"), Normal()])
        panel.add_artist(drawn)


def _outline(geometry: Geometry, contours: _Contours, plane: Plane, index: int, structure: Structure) -> Outline | None:
    """The closed lines around a structure in a plane, points (x, y) in mm; None where it is not in the plane."""
    box = contours.boxes.get(structure)
    if box is None or not box[plane.across].start <= index < box[plane.across].stop:
        return None
    inside = np.isin(plane.slice_of(contours.labels[box], index - box[plane.across].start), _values(structure))
    mask = np.pad(inside, 1).astype(np.float64)  # closes the line at the edge of the box and of the volume
    x, y = ((np.arange(box[a].start - 1, box[a].stop + 1) + 0.5) * geometry.spacing_ijk_mm[a] for a in plane.along)
    # contourpy does the work in panel.contour() too, which takes 5 ms a call: seconds where there are many structures.
    found = contour_generator(x, y, mask, line_type=LineType.ChunkCombinedCode).lines(0.5)
    [points], [codes] = cast(tuple[list[Any], list[Any]], found)  # of the one chunk
    return None if points is None else Outline(points, codes)


def _draw_scale_bar(panel: Panel, right_mm: float, bottom_mm: float) -> None:
    x, y = right_mm - 8, bottom_mm + 8
    panel.plot([x, x - SCALE_BAR_MM], [y, y], color="white", lw=2)
    panel.text(x - SCALE_BAR_MM / 2, y + 3, f"{SCALE_BAR_MM / 10:.0f} cm", color="white", fontsize=7, ha="center")


def _caption(scene: _Scene, structure: Structure) -> str:
    if scene.prediction is None or scene.reference is None:
        return plain(structure.name)
    box = _box_around(scene, structure)
    predicted, contoured = (found.mask(structure, box) for found in (scene.prediction, scene.reference))
    if not contoured.any():
        return f"{plain(structure.name)}\nno reference"
    if not predicted.any():
        return f"{plain(structure.name)}\nnot predicted"
    return f"{plain(structure.name)}\nDice {dice(predicted, contoured):.2f}"


def _line_keys(scene: _Scene) -> list[Line2D]:
    styles = (("reference", scene.reference, "-"), ("prediction", scene.prediction, "--"))
    return [Line2D([], [], color="0.3", ls=line, label=name) for name, found, line in styles if found is not None]
