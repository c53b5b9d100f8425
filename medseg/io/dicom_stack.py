"""From slices in any order to the one grid they lie on.

Slices are sorted by their position along the normal of their plane; instance numbers, file names and slice thickness
say nothing of where a slice lies. Rows, columns and the step from slice to slice give one affine, sheared where the gantry
was tilted, and nothing is flipped. What a scanner adds to a series (scouts, reformats, other orientations) is split off;
slices that are missing, double or unevenly spaced are refused, because a reader that goes on rescales the patient.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from medseg.core.errors import GeometryError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.shapes import ANY
from medseg.core.volume import Note
from medseg.io.dicom_header import SliceHeader

DUPLICATE_SLICE, MISSING_SLICE, UNEVEN_GAPS = "dicom.duplicate_slice", "dicom.missing_slice", "dicom.uneven_gaps"
ALLOWABLE = frozenset({DUPLICATE_SLICE, MISSING_SLICE, UNEVEN_GAPS})
"""Codes of what can be dealt with when the user allows it."""

MIN_SLICES = 2
"""Two positions give a distance; one slice has none, whatever its thickness is."""

SAME_POSITION_MM = 0.01
"""Slices closer than this lie at one position: a fifth of the thinnest spacing that is read."""

ROUNDING_MM = 0.09
"""How far a position is off that was written with one decimal: 0.05 mm along each axis."""

EVEN_TOLERANCE, MAX_EVEN_TOLERANCE = 0.01, 0.2
"""Parts of the spacing by which a slice may lie off the even grid: 1 %, as highdicom allows
(``spatial._DEFAULT_SPACING_RELATIVE_TOLERANCE``), and never more than a fifth, however positions were rounded."""

SAME_ORIENTATION, SAME_SPACING = 2e-4, 2e-4
"""Largest difference of direction cosines, and relative one of voxel sizes, within a stack: a tenth of a voxel over 512."""

MAX_MADE_UP = 2
"""Planes of the grid for each slice, when gaps are allowed: beyond, more is made up than was measured."""

REFORMATS = frozenset({"REFORMATTED", "MPR", "CURVED", "CPR", "MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE"})
"""Words in ImageType of images that were computed from others. DICOM PS3.3 C.8.16.1, and vendors' conformance statements."""

VECTOR, SLICES, GAPS = "3", "slices", "gaps"

MAX_LISTED = 5
"""How many places a message names."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's world axes grow to the Left and Posterior, medseg's to the Right and Anterior."""


@dataclass(frozen=True)
class Stack:
    """Slices of one series that are parallel and of one size, sorted along their normal.

    Attributes:
        slices: At least one.
    """

    slices: tuple[SliceHeader, ...]

    @cached_property
    def normal_lps(self) -> Float[np.ndarray, VECTOR]:
        """Unit vector along which the slices are sorted: axis K."""
        return _normal(self.slices[0])

    @cached_property
    def positions_mm(self) -> Float[np.ndarray, SLICES]:
        """Place of each slice along the normal, growing."""
        places = np.array([item.position_lps_mm for item in self.slices])
        positions_mm: np.ndarray = places @ self.normal_lps
        return positions_mm

    @property
    def is_computed(self) -> bool:
        """Reformatted from other images, by its own words."""
        return bool(REFORMATS & set(self.slices[0].image_type))

    @property
    def is_derived(self) -> bool:
        """Reconstructed from other images rather than from what the scanner measured."""
        return self.is_computed or "DERIVED" in self.slices[0].image_type

    def __str__(self) -> str:
        first = self.slices[0]
        plane = ("sagittal", "coronal", "axial")[int(np.abs(self.normal_lps).argmax())]
        rows, columns = first.layout.shape_ji
        kind = " scout" if first.is_scout else " reformatted" if self.is_computed else ""
        noun = "image" if len(self.slices) == 1 else "images"
        return f"{len(self.slices)} {plane}{kind} {first.modality} {noun} of {columns} × {rows} voxels"


@dataclass(frozen=True)
class Plane:
    """A plane of the grid, between two slices of the stack.

    Attributes:
        lower, upper: Indices of slices; the same where a slice lies in the plane.
        weight: Share of the upper one, 0 to 1.
    """

    lower: int
    upper: int
    weight: float


def split_into_stacks(slices: Sequence[SliceHeader]) -> tuple[Stack, ...]:
    """Group slices that could be one volume; the largest group comes first."""
    groups: dict[tuple[object, ...], list[list[SliceHeader]]] = {}
    for item in slices:
        key = (item.series_uid, item.frame_of_reference_uid, item.modality, item.is_scout, item.layout.shape_ji)
        candidates = groups.setdefault(key, [])
        fitting = next((group for group in candidates if _are_parallel(group[0], item)), None)
        if fitting is None:
            candidates.append([item])
        else:
            fitting.append(item)
    stacks = [_sorted(group) for candidates in groups.values() for group in candidates]
    return tuple(sorted(stacks, key=lambda stack: -len(stack.slices)))


def choose_stack(stacks: Sequence[Stack], name: str) -> tuple[Stack, tuple[Note, ...]]:
    """The one stack that is the volume, and what is told of the others.

    Raises:
        ReadError: No stack has enough slices, or two could be the volume.
        GeometryError: One series has several frames of reference, or slices are of several patients.
    """
    _check_one_patient(stacks, name)
    volumes = [s for s in stacks if len(s.slices) >= MIN_SLICES and not s.slices[0].is_scout]
    if not volumes:
        raise ReadError(
            f"expected at least {MIN_SLICES} parallel slices of one series in {name}, found "
            f"{listed([str(stack) for stack in stacks])}: give the folder of a whole series",
            code="dicom.too_few_slices",
        )
    rivals = [stack for stack in volumes if not _is_outranked(stack, volumes)]
    if len(rivals) != 1:
        raise ReadError(
            f"{name} holds several volumes: {listed([str(stack) for stack in rivals])}; "
            "put each into a folder of its own",
            code="dicom.several_volumes",
        )
    return rivals[0], tuple(_note(stack) for stack in stacks if stack is not rivals[0])


def find_duplicates(stack: Stack) -> list[list[int]]:
    """Indices of slices that share a position, one list a position."""
    groups: list[list[int]] = []
    for index, gap in enumerate(np.diff(stack.positions_mm), start=1):
        if gap > SAME_POSITION_MM:
            continue
        if groups and groups[-1][-1] == index - 1:
            groups[-1].append(index)
        else:
            groups.append([index - 1, index])
    return groups


def lay_planes(stack: Stack, allow: Collection[str], name: str) -> tuple[tuple[Plane, ...], Geometry, tuple[Note, ...]]:
    """The even grid that slices without duplicates lie on.

    Where gaps are allowed, planes lie at the commonest distance from the first slice to the last or just beyond: the body
    keeps its size. Planes between two slices are to be interpolated, a plane beyond the last repeats it.

    Args:
        stack: Its slices differ in position.
        allow: Codes that the user allows.
        name: Of the series, for messages.

    Raises:
        GeometryError: Slices are missing, unevenly spaced or shifted against each other.
    """
    spacing_mm, code, gaps = _even_spacing(stack)
    tolerance_mm = _tolerance_mm(spacing_mm)
    _check_aligned(stack, tolerance_mm, name)
    if code is None:
        planes = tuple(Plane(index, index, 0.0) for index in range(len(stack.slices)))
        return planes, _geometry(stack, spacing_mm, len(planes), name), ()
    places = [
        f"{stack.positions_mm[index + 1] - stack.positions_mm[index]:.2f} mm between {stack.slices[index].name} at "
        f"{stack.positions_mm[index]:.2f} mm and {stack.slices[index + 1].name} at {stack.positions_mm[index + 1]:.2f} mm"
        for index in gaps
    ]
    what = "slices are missing" if code == MISSING_SLICE else "slices are unevenly spaced"
    found = f"{what} in {name}: expected {spacing_mm:.2f} mm from slice to slice, found {listed(places, '; ')}"
    if code not in allow:
        raise GeometryError(f"{found}; export the series again, or interpolate with --allow {code}", code=code)
    num_planes = int(np.ceil((stack.positions_mm[-1] - stack.positions_mm[0] - tolerance_mm) / spacing_mm)) + 1
    if num_planes > MAX_MADE_UP * len(stack.slices):
        raise GeometryError(f"{found}; more would be made up than there is, export the series again", code=code)
    planes = _interpolated(stack.positions_mm - stack.positions_mm[0], spacing_mm, num_planes)
    num_made_up = sum(plane.weight > 0 for plane in planes)
    note = Note(code, f"{found}. {num_made_up} of {num_planes} planes were interpolated along the normal")
    return planes, _geometry(stack, spacing_mm, num_planes, name), (note,)


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first few of many, and how many more there are."""
    more = f"{separator}and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return separator.join(items[:MAX_LISTED]) + more


def _normal(item: SliceHeader) -> Float[np.ndarray, VECTOR]:
    across = np.cross(item.row_lps, item.column_lps)
    normal: np.ndarray = across / np.linalg.norm(across)
    return normal


def _are_parallel(one: SliceHeader, other: SliceHeader) -> bool:
    cosines = zip(one.row_lps + one.column_lps, other.row_lps + other.column_lps, strict=True)
    sizes = zip(one.spacing_ij_mm, other.spacing_ij_mm, strict=True)
    return all(abs(a - b) <= SAME_ORIENTATION for a, b in cosines) and all(
        abs(a - b) <= SAME_SPACING * a for a, b in sizes
    )


def _sorted(slices: Sequence[SliceHeader]) -> Stack:
    """Ties by acquisition, so that of two acquisitions in one folder the first is the first everywhere."""
    normal = _normal(slices[0])

    def key(item: SliceHeader) -> tuple[int, int, str, str]:
        place_mm = float(np.dot(item.position_lps_mm, normal))
        return round(place_mm / SAME_POSITION_MM), item.acquisition, item.sop_instance_uid, item.name

    return Stack(tuple(sorted(slices, key=key)))


def _check_one_patient(stacks: Sequence[Stack], name: str) -> None:
    if len({item.patient_id for stack in stacks for item in stack.slices} - {""}) > 1:
        raise GeometryError(f"{name} holds images of several patients: separate them", code="dicom.several_patients")
    frames: dict[str, set[str]] = {}
    for stack in stacks:
        first = stack.slices[0]
        if not first.is_scout:
            frames.setdefault(first.series_uid, set()).add(first.frame_of_reference_uid)
    if any(len(uids) > 1 for uids in frames.values()):
        raise GeometryError(
            f"one series in {name} has several frames of reference: its slices cannot be placed against each other",
            code="dicom.frames_of_reference",
        )


def _is_outranked(stack: Stack, volumes: Sequence[Stack]) -> bool:
    """Whether it was computed from another stack of the folder: reformatted, or derived within its series."""
    first = stack.slices[0]
    return any(
        not other.is_derived
        and other.slices[0].modality == first.modality
        and (stack.is_computed or (stack.is_derived and other.slices[0].series_uid == first.series_uid))
        for other in volumes
        if other is not stack
    )


def _note(stack: Stack) -> Note:
    code = "dicom.scout" if stack.slices[0].is_scout else "dicom.reformat" if stack.is_derived else "dicom.other_stack"
    return Note(code, f"{stack} left out: {listed([item.name for item in stack.slices])}")


def _commonest(gaps_mm: Float[np.ndarray, GAPS]) -> float:
    """The commonest distance, the smaller of two that are equally common: the median of the gaps close to it."""
    gaps_mm = np.sort(gaps_mm)
    # Both ends of a gap may be rounded.
    width_mm = 2 * np.array([_tolerance_mm(float(gap)) for gap in gaps_mm])
    first = np.searchsorted(gaps_mm, gaps_mm - width_mm, side="left")
    behind = np.searchsorted(gaps_mm, gaps_mm + width_mm, side="right")
    best = int((behind - first).argmax())
    return float(np.median(gaps_mm[first[best] : behind[best]]))


def _tolerance_mm(spacing_mm: float) -> float:
    return max(EVEN_TOLERANCE * spacing_mm, min(ROUNDING_MM, MAX_EVEN_TOLERANCE * spacing_mm))


def _off_line(x: Float[np.ndarray, SLICES], y: Float[np.ndarray, ANY]) -> Float[np.ndarray, ANY]:
    """How far each y is off the straight line through all of them, over x."""
    design = np.stack([x - x.mean(), np.ones(len(x))], axis=1)
    fitted: np.ndarray = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    off: np.ndarray = y - fitted
    return off


def _even_spacing(stack: Stack) -> tuple[float, str | None, list[int]]:
    """Distance from slice to slice; what is wrong with it, by its code, and between which slices."""
    positions_mm = stack.positions_mm
    gaps_mm = np.diff(positions_mm)
    commonest_mm = _commonest(gaps_mm)
    steps = np.rint(gaps_mm / commonest_mm).astype(int)
    indices = np.concatenate([[0], np.cumsum(steps)])
    # Over the whole length, so that the rounding of single positions does not add up.
    spacing_mm = float((positions_mm[-1] - positions_mm[0]) / max(1, indices[-1]))
    off_mm = np.abs(_off_line(indices.astype(np.float64), positions_mm))
    if (steps < 1).any() or off_mm.max() > _tolerance_mm(spacing_mm):
        strange = np.abs(gaps_mm - commonest_mm) > _tolerance_mm(commonest_mm)
        return commonest_mm, UNEVEN_GAPS, np.flatnonzero(strange if strange.any() else gaps_mm > 0).tolist()
    missing = np.flatnonzero(steps > 1).tolist()
    return spacing_mm, MISSING_SLICE if missing else None, missing


def _check_aligned(stack: Stack, tolerance_mm: float, name: str) -> None:
    """Whether the slices' first voxels lie on one straight line, as those of a volume do."""
    places = np.array([item.position_lps_mm for item in stack.slices])
    off_mm = np.linalg.norm(_off_line(stack.positions_mm, places), axis=1)
    if off_mm.max() > tolerance_mm:
        raise GeometryError(
            f"slices in {name} are shifted against each other within their plane, by up to {off_mm.max():.2f} mm at "
            f"{stack.slices[int(off_mm.argmax())].name}: no single grid holds them",
            code="dicom.shifted_slices",
        )


def _interpolated(along_mm: Float[np.ndarray, SLICES], spacing_mm: float, num_planes: int) -> tuple[Plane, ...]:
    planes = []
    for place_mm in np.arange(num_planes) * spacing_mm:
        nearest = int(np.abs(along_mm - place_mm).argmin())
        if abs(along_mm[nearest] - place_mm) <= _tolerance_mm(spacing_mm) or place_mm > along_mm[-1]:
            planes.append(Plane(nearest, nearest, 0.0))
            continue
        upper = int(np.searchsorted(along_mm, place_mm))
        gap_mm = along_mm[upper] - along_mm[upper - 1]
        planes.append(Plane(upper - 1, upper, float((place_mm - along_mm[upper - 1]) / gap_mm)))
    return tuple(planes)


def _geometry(stack: Stack, spacing_mm: float, num_planes: int, name: str) -> Geometry:
    first, last = stack.slices[0], stack.slices[-1]
    step = np.subtract(last.position_lps_mm, first.position_lps_mm) / (stack.positions_mm[-1] - stack.positions_mm[0])
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = np.multiply(first.row_lps, first.spacing_ij_mm[0])
    affine_lps[:3, 1] = np.multiply(first.column_lps, first.spacing_ij_mm[1])
    affine_lps[:3, 2] = step * spacing_mm
    affine_lps[:3, 3] = first.position_lps_mm
    rows, columns = first.layout.shape_ji
    try:
        return Geometry(LPS_TO_RAS @ affine_lps, (columns, rows, num_planes))
    except GeometryError as error:
        raise GeometryError(f"{name}: {error.message}", code=error.code) from error
