"""From outlines drawn on planes to a mask on a grid: exact scan conversion at the voxels' centres.

A voxel belongs to a structure when its centre lies inside an odd number of outlines of its plane, so holes, islands and
keyholes (one outline that walks through a bridge of no width into its hole and back) come out right. A centre exactly on
an outline belongs to what lies on its side of higher index: neighbours that share a border neither overlap nor leave a
gap. Everything happens in index coordinates, so the grid may be oblique, mirrored, permuted or sheared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from medseg.core.errors import LabelError
from medseg.core.geometry import Geometry
from medseg.core.shapes import IJK
from medseg.core.volume import Note

POINTS, CORNERS = "_ 3", "_ 2"

PLANE_TOLERANCE_VOXELS = 0.5
"""An outline lies in a plane of the grid when it leaves it by less than this: the nearest slice is the same for all of it."""

SAME_PLANE_MM = 0.1
"""Outlines closer than this lie in one plane. Coordinates are rounded to 0.01–0.1 mm; no protocol has thinner slices."""

SAME_OUTLINE_MM = 0.1
"""Outlines whose points are closer than this to each other's line are one, stored twice: rounding, as above."""

NUM_COMPARED_POINTS = 64
"""Points of an outline, evenly taken, that are compared with another's line."""

SNAP_DIGITS = 6
"""Index coordinates are rounded to this: shared borders stay shared after the affine's rounding (1e-12)."""

TIE_VOXELS = 1e-3
"""Outlines midway between two slices go to the upper one, although rounding puts some of them just below."""

EDGE_TOLERANCE_VOXELS = 0.1
"""An outline along the edge of the grid may be rounded to beyond it; further out, something of it is cut."""

MAX_JOINED_MM = 10.0
"""Outlines further apart along the slices are never joined: physicians outline at least this densely."""

MAX_GAP = 1.5
"""In parts of a structure's own outline distance: a wider gap was left on purpose, or forgotten, and stays empty."""

CROSSINGS_AT_ONCE = 2**22
"""Crossings of outlines with rows that are held in memory together."""


@dataclass(frozen=True, eq=False)
class _Outline:
    """One closed outline: its corners in the body [mm] and in the grid [voxels]."""

    points_mm: Float[np.ndarray, POINTS]
    points_ijk: Float[np.ndarray, POINTS]


@dataclass(frozen=True, eq=False)
class _Plane:
    """All outlines at one place along the slice axis [voxels], as corners (row, column)."""

    position: float
    polygons: tuple[Float[np.ndarray, CORNERS], ...]


def rasterise(
    outlines_ras_mm: Sequence[Float[np.ndarray, POINTS]], geometry: Geometry, name: str
) -> tuple[Bool[np.ndarray, IJK], tuple[Note, ...]]:
    """Burn closed planar outlines onto a grid.

    Each slice takes the plane of outlines nearest to it, within half a slice. Where the outlines lie on every n-th slice
    only, the slices between two of them are interpolated by their distance maps; before the first and behind the last
    nothing is added.

    Args:
        outlines_ras_mm: Corners of each, in order; the last is joined with the first.
        geometry: The grid.
        name: Of the structure, for messages.

    Returns:
        The mask, and what was met: outlines that enclose nothing or are there twice, interpolated slices, wide gaps,
        outlines that leave the grid.

    Raises:
        LabelError: The outlines lie in no planes of the grid, or in planes of several directions.

    Source:
        Even-odd rule: DICOM PS3.3 C.8.8.6.3 (CLOSED_PLANAR, CLOSEDPLANAR_XOR); interpolation: Raya and Udupa 1990,
        "Shape-based interpolation of multidimensional objects".
    """
    mask = np.zeros(geometry.shape_ijk, dtype=bool)
    to_index = np.linalg.inv(geometry.affine_ras)
    outlines = [
        _Outline(points, np.round(points @ to_index[:3, :3].T + to_index[:3, 3], SNAP_DIGITS))
        for points in outlines_ras_mm
        if len(points) >= 3
    ]
    notes = _NoteBook(name)
    notes.count("label.degenerate", len(outlines_ras_mm) - len(outlines), "outlines of fewer than 3 points left out")
    if outlines:
        axis = _slice_axis(outlines, name)
        planes = _planes(outlines, axis, geometry, notes)
        in_plane = tuple(spacing for at, spacing in enumerate(geometry.spacing_ijk_mm) if at != axis)
        _burn(planes, np.moveaxis(mask, axis, 0), geometry.spacing_ijk_mm[axis], (in_plane[0], in_plane[1]), notes)
    return mask, tuple(notes.notes)


class _NoteBook:
    """Collects what was met with one structure."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.notes: list[Note] = []

    def count(self, code: str, number: int, what: str) -> None:
        if number:
            self.notes.append(Note(code, f"{self._name}: {number} {what}"))


def _slice_axis(outlines: Sequence[_Outline], name: str) -> int:
    """The array axis that all outlines stand at right angles to."""
    extents = np.array([np.ptp(outline.points_ijk, axis=0) for outline in outlines])
    fits = (extents <= PLANE_TOLERANCE_VOXELS).all(axis=0)
    if not fits.any():
        off = float(extents.max(axis=0).min())
        raise LabelError(
            f"expected the contours of {name} in planes of the image, all of one direction; found some that leave "
            f"them by {off:.1f} voxels: export them on the slices of this image",
            code="label.contour_plane",
        )
    return int(np.where(fits, extents.sum(axis=0), np.inf).argmin())


def _planes(outlines: Sequence[_Outline], axis: int, geometry: Geometry, notes: _NoteBook) -> list[_Plane]:
    """The outlines by plane, in the order of the slices, each once."""
    first = -0.5 - EDGE_TOLERANCE_VOXELS
    last = np.array(geometry.shape_ijk) - 0.5 + EDGE_TOLERANCE_VOXELS
    positions = np.array([outline.points_ijk[:, axis].mean() for outline in outlines])
    order = np.argsort(positions, kind="stable")
    same = SAME_PLANE_MM / geometry.spacing_ijk_mm[axis]
    starts = np.flatnonzero(np.diff(positions[order], prepend=-np.inf) > min(same, PLANE_TOLERANCE_VOXELS / 2))
    planes, num_twice, num_outside = [], 0, 0
    for members in np.split(order, starts[1:]):
        kept = _each_once([outlines[member] for member in members])
        num_twice += len(members) - len(kept)
        num_outside += sum(bool(((o.points_ijk < first) | (o.points_ijk > last)).any()) for o in kept)
        polygons = tuple(np.delete(outline.points_ijk, axis, axis=1) for outline in kept)
        planes.append(_Plane(float(positions[members].mean()), polygons))
    notes.count("label.duplicate_contour", num_twice, "contours that are there twice, used once")
    notes.count("label.outside", num_outside, "contours that leave the image, cut at its edge")
    return planes


def _each_once(outlines: Sequence[_Outline]) -> list[_Outline]:
    """Without those that are stored twice, which the even-odd rule would erase."""
    if len(outlines) == 1:
        return list(outlines)
    boxes = [np.append(o.points_mm.min(axis=0), o.points_mm.max(axis=0)) for o in outlines]
    kept: list[int] = []
    for number in sorted(range(len(outlines)), key=lambda number: float(boxes[number][0])):
        if not _has_twin(number, kept, boxes, outlines):
            kept.append(number)
    return [outlines[number] for number in kept]


def _has_twin(
    number: int, kept: Sequence[int], boxes: Sequence[Float[np.ndarray, " 6"]], outlines: Sequence[_Outline]
) -> bool:
    """Whether one of those kept, which come in the order of their boxes, is the same outline."""
    for other in reversed(kept):
        if boxes[number][0] - boxes[other][0] > SAME_OUTLINE_MM:
            return False
        is_near = np.abs(boxes[number] - boxes[other]).max() <= SAME_OUTLINE_MM
        if is_near and _are_same(outlines[number].points_mm, outlines[other].points_mm):
            return True
    return False


def _are_same(first_mm: Float[np.ndarray, POINTS], second_mm: Float[np.ndarray, POINTS]) -> bool:
    return _lies_on(first_mm, second_mm) and _lies_on(second_mm, first_mm)


def _lies_on(points_mm: Float[np.ndarray, POINTS], line_mm: Float[np.ndarray, POINTS]) -> bool:
    """Whether points are near a closed line, wherever it starts and whichever way it runs."""
    chosen = points_mm[np.linspace(0, len(points_mm) - 1, min(len(points_mm), NUM_COMPARED_POINTS)).astype(int)]
    steps = np.roll(line_mm, -1, axis=0) - line_mm
    lengths = np.maximum((steps**2).sum(axis=1), 1e-12)
    for point in chosen:
        along = np.clip(((point - line_mm) * steps).sum(axis=1) / lengths, 0, 1)
        distances = ((line_mm + along[:, None] * steps - point) ** 2).sum(axis=1)
        if distances.min() > SAME_OUTLINE_MM**2:
            return False
    return True


def _burn(
    planes: Sequence[_Plane],
    slices: Bool[np.ndarray, "slices rows columns"],
    spacing_mm: float,
    in_plane_mm: tuple[float, float],
    notes: _NoteBook,
) -> None:
    """Write into each slice the plane nearest to it, and interpolate between planes that belong together."""
    positions = np.array([plane.position for plane in planes])
    is_done = np.zeros(len(slices), dtype=bool)
    for number in range(len(slices)):
        offsets = positions + TIE_VOXELS - number
        nearest = int(np.abs(offsets).argmin())
        if -0.5 <= offsets[nearest] < 0.5:
            slices[number] = _filled(planes[nearest].polygons, slices.shape[1:])
            is_done[number] = True
    gaps = np.diff(positions)
    widest = min(MAX_GAP * float(np.median(gaps)), MAX_JOINED_MM / spacing_mm) if len(gaps) else 0.0
    num_joined = num_left = 0
    for below, above, gap in zip(planes[:-1], planes[1:], gaps, strict=True):
        first, end = np.clip(np.ceil([below.position, above.position]), 0, len(slices)).astype(int)
        between = [number for number in range(first, end) if not is_done[number]]
        if between and gap <= widest:
            _interpolate(below, above, slices, between, in_plane_mm)
            num_joined += len(between)
        else:
            num_left += len(between)
    notes.count("label.interpolated", num_joined, "slices without contours, interpolated from the contours beside them")
    notes.count("label.gap", num_left, "slices without contours between others that have some, left empty")


def _interpolate(
    below: _Plane,
    above: _Plane,
    slices: Bool[np.ndarray, "slices rows columns"],
    between: Sequence[int],
    in_plane_mm: tuple[float, float],
) -> None:
    low, high = (_distances(_filled(plane.polygons, slices.shape[1:]), in_plane_mm) for plane in (below, above))
    for number in between:
        part = (number - below.position) / (above.position - below.position)
        slices[number] = (1 - part) * low + part * high > 0


def _distances(
    mask: Bool[np.ndarray, "rows columns"], in_plane_mm: tuple[float, float]
) -> Float[np.ndarray, "rows columns"]:
    """Distance to the border, positive inside [mm]."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():  # which leaves no border to measure from
        return np.full(mask.shape, -np.inf)
    padded = np.pad(mask, 1)
    inside = distance_transform_edt(padded, sampling=in_plane_mm)
    outside = distance_transform_edt(~padded, sampling=in_plane_mm)
    return np.asarray((inside - outside)[1:-1, 1:-1], dtype=np.float64)


def _filled(polygons: Sequence[Float[np.ndarray, CORNERS]], shape: tuple[int, ...]) -> Bool[np.ndarray, "rows columns"]:
    """Whether each point (row, column) of whole numbers lies inside an odd number of polygons."""
    mask = np.zeros(shape, dtype=bool)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    # Every edge is walked upwards, so that neighbours compute the same crossing for a border that they share.
    is_down = (starts[:, 0] > ends[:, 0])[:, None]
    low, high = np.where(is_down, ends, starts), np.where(is_down, starts, ends)
    first, end = (np.clip(np.ceil(points[:, 0]), 0, shape[0]).astype(np.int64) for points in (low, high))
    is_crossing = end > first
    if not is_crossing.any():
        return mask
    low, high, first, counts = low[is_crossing], high[is_crossing], first[is_crossing], (end - first)[is_crossing]
    rows = slice(int(first.min()), int(end.max()))
    columns = slice(*(int(edge) for edge in np.clip([starts[:, 1].min(), starts[:, 1].max() + 1], 0, shape[1])))
    turns = np.zeros((rows.stop - rows.start, columns.stop - columns.start + 1), dtype=np.uint8)
    edges_at_once = max(1, CROSSINGS_AT_ONCE // len(turns))
    for begin in range(0, len(low), edges_at_once):
        part = slice(begin, begin + edges_at_once)
        _count_crossings(turns, (rows.start, columns.start), low[part], high[part], first[part], counts[part])
    # Counts wrap at 256, which leaves odd numbers odd.
    mask[rows, columns] = np.add.accumulate(turns, axis=1, dtype=np.uint8)[:, :-1] & 1
    return mask


def _count_crossings(
    turns: UInt8[np.ndarray, "rows columns"],
    corner: tuple[int, int],
    low: Float[np.ndarray, "edges 2"],
    high: Float[np.ndarray, "edges 2"],
    first: Int64[np.ndarray, " edges"],
    counts: Int64[np.ndarray, " edges"],
) -> None:
    """Add one at the first column that lies behind each crossing of an edge with a row."""
    edges = np.repeat(np.arange(len(low)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    slopes = (high[:, 1] - low[:, 1]) / (high[:, 0] - low[:, 0])
    columns = np.ceil(np.round(low[edges, 1] + (rows - low[edges, 0]) * slopes[edges], SNAP_DIGITS))
    columns = np.clip(columns - corner[1], 0, turns.shape[1] - 1).astype(np.int64)
    np.add.at(turns, (rows - corner[0], columns), np.uint8(1))
