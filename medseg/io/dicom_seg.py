"""DICOM SEG: masks as frames, each placed by its own position in the body.

Frames come in any order, empty ones are usually missing, and segments may overlap. Where a frame's voxels are voxels of
the grid that is asked for, they are copied; nothing is ever resampled, and what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, Num

from medseg.core.errors import CaseError, GeometryError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.shapes import IJK
from medseg.core.units import MIN_SPACING_MM
from medseg.core.volume import Note
from medseg.io.dicom_file import (
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    NATIVE,
    DicomFile,
    damaged,
    inflate,
    open_dicom,
    quiet,
    truncated,
)
from medseg.io.dicom_header import PixelLayout, SliceHeader
from medseg.io.dicom_pixels import SliceReader
from medseg.io.dicom_rtstruct import MAX_COORDINATE_MM

SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation, and Label Map Segmentation (Supplement 243)."""

KEYWORDS = (
    "SOPClassUID", "SegmentationType", "MaximumFractionalValue", "SegmentSequence", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "SegmentIdentificationSequence")
"""Functional groups that say where a frame lies and which segment it shows. DICOM PS3.3 C.7.6.16."""

PLACE_TOLERANCE_VOXELS = 0.1
"""How far a frame's voxels may be from the grid's: positions are rounded, and slices lie a little unevenly; the next
voxel is ten times as far."""

DIRECTION_TOLERANCE = 1e-2
"""How far direction cosines may be from unit length and right angles: they are written with two decimals at the least."""

Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]


@dataclass(frozen=True)
class Segment:
    """One structure of the file.

    Attributes:
        number: Its number in the file.
        label: As its author wrote it.
        code: Of the kind of structure, mostly SNOMED CT; None where the file gives none.
    """

    number: int
    label: str
    code: str | None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """All segments of a file; voxels are read when they are asked for.

    Attributes:
        kind: One bit a voxel and segment, a probability or share of the voxel, or one number a voxel.
        segments: In the order of the file.
        planes_ras: Of each frame: maps (column, row, distance along the normal [mm], 1) to RAS millimetres.
        frame_segments: Number of the segment that each frame shows; empty in a label map, which shows all.
        slice_spacing_mm: Distance of slices as the file tells it; None where it does not.
        full_value: What a whole voxel has in a FRACTIONAL one.
        layout: How voxels are stored.
    """

    kind: Kind
    segments: tuple[Segment, ...]
    planes_ras: Float[np.ndarray, "frames 4 4"]
    frame_segments: tuple[int, ...]
    slice_spacing_mm: float | None
    full_value: int
    layout: PixelLayout

    @property
    def file_name(self) -> str:
        """For messages."""
        return self.layout.path.name

    @property
    def names(self) -> dict[int, str]:
        """Label by number."""
        return {segment.number: segment.label for segment in self.segments}

    @cached_property
    def geometry(self) -> Geometry:
        """The smallest grid that holds all frames: I along columns, J along rows, K along the normal.

        Raises:
            GeometryError: The frames lie on no one grid.
        """
        first = self.planes_ras[0]
        offsets = (self.planes_ras[:, :3, 3] - first[:3, 3]) @ np.linalg.inv(first[:3, :3]).T
        heights = offsets[:, 2] - offsets[:, 2].min()
        spacing = self._slice_spacing(heights)
        places = heights / spacing
        sideways = np.abs(offsets[:, :2]).max()
        turned = np.abs(self.planes_ras[:, :3, :3] - first[:3, :3]).max()
        if max(sideways, turned, _unevenness(places)) > PLACE_TOLERANCE_VOXELS:
            raise GeometryError(f"the frames of {self.file_name} lie on no one grid", code="geometry.label")
        affine = first.copy()
        affine[:3, 3] += first[:3, 2] * offsets[:, 2].min()
        affine[:3, 2] *= spacing
        rows, columns = self.layout.shape_ji
        return Geometry(affine, (columns, rows, int(np.round(places.max())) + 1))

    def _slice_spacing(self, heights_mm: Float[np.ndarray, " frames"]) -> float:
        """As the file tells it where that fits, since frames may be missing; else the smallest step."""
        steps = np.diff(np.sort(heights_mm))
        steps = steps[steps >= MIN_SPACING_MM]
        told = self.slice_spacing_mm
        if told and _unevenness(heights_mm / told) <= PLACE_TOLERANCE_VOXELS:
            return told
        return float(steps.min()) if len(steps) else 1.0

    def mask(self, number: int, geometry: Geometry | None = None) -> Bool[np.ndarray, IJK]:
        """Where a segment is, on a grid: its own where none is given. :meth:`burn` also tells what was met.

        Raises:
            ReadError: The voxels are damaged, truncated, or compressed in a way that cannot be read.
            LabelError: There is no such segment, or two frames of it claim one place.
            GeometryError: Its voxels are not voxels of the grid.
        """
        return self.burn(number, geometry or self.geometry)[0]

    def burn(self, number: int, geometry: Geometry) -> tuple[Bool[np.ndarray, IJK], tuple[Note, ...]]:
        """The mask of a segment, and what was met."""
        if number not in self.names:
            raise LabelError(f"{self.file_name} has no segment {number}", code="label.name")
        mask = np.zeros(geometry.shape_ijk, dtype=bool)
        to_index = np.linalg.inv(geometry.affine_ras)
        num_outside, seen = 0, set()
        for frame in range(len(self.planes_ras)):
            if self.frame_segments and self.frame_segments[frame] != number:
                continue
            rows, columns = np.nonzero(self._shows(frame, number))
            if not len(rows):
                continue
            corner, along_columns, along_rows = self._place(to_index @ self.planes_ras[frame])
            if (place := tuple(corner.tolist())) in seen:
                raise LabelError(
                    f"{self.file_name} has two frames of segment {number} at one place: export it again, one point "
                    "in time a file",
                    code="label.duplicate_frame",
                )
            seen.add(place)
            index = corner[:, None] + along_columns[:, None] * columns + along_rows[:, None] * rows
            inside = ((index >= 0) & (index < np.array(geometry.shape_ijk)[:, None])).all(axis=0)
            num_outside += int(np.count_nonzero(~inside))
            mask[tuple(index[:, inside])] = True
        message = f"'{self.names[number]}' in {self.file_name}: {num_outside} voxels lie outside the image, left out"
        return mask, (Note("label.outside", message),) if num_outside else ()

    def _place(
        self, to_index: Float[np.ndarray, "4 4"]
    ) -> tuple[Int64[np.ndarray, " 3"], Int64[np.ndarray, " 3"], Int64[np.ndarray, " 3"]]:
        """Index of a frame's first voxel, and what a step along its columns and its rows adds to it."""
        exact = to_index[:3, [3, 0, 1]]
        whole = np.round(exact)
        rows, columns = self.layout.shape_ji
        corners = np.array([[1, c, r] for c in (0, columns - 1) for r in (0, rows - 1)]).T
        off = float(np.abs((exact - whole) @ corners).max())
        is_permuted = (np.abs(whole[:, 1:]).sum(axis=0) == 1).all() and (np.abs(whole[:, 1:]).sum(axis=1) <= 1).all()
        if not is_permuted or off > PLACE_TOLERANCE_VOXELS:
            by = f"by up to {off:.2f} voxels" if is_permuted else "in spacing or direction"
            raise GeometryError(
                f"expected the frames of {self.file_name} on the voxels of the image, found them off {by}: export the "
                "segmentation on this image's grid, or resample it first",
                code="geometry.label",
            )
        corner, along_columns, along_rows = whole.T.astype(np.int64)
        return corner, along_columns, along_rows

    def _shows(self, frame: int, number: int) -> Bool[np.ndarray, "rows columns"]:
        if self.kind == "BINARY":
            return self._bits(frame)
        if self.kind == "LABELMAP":
            shown: np.ndarray = self._numbers[frame] == number
            return shown
        # A voxel that belongs to it by a half or more.
        return 2 * self._stored(frame).astype(np.int64) >= self.full_value

    def _bits(self, frame: int) -> Bool[np.ndarray, "rows columns"]:
        rows, columns = self.layout.shape_ji
        start, end = frame * rows * columns, (frame + 1) * rows * columns
        packed = np.frombuffer(self._packed[start // 8 : -(-end // 8)], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][: rows * columns]
        return bits.reshape(rows, columns).astype(bool)

    @cached_property
    def _packed(self) -> bytes:
        """All voxels of a BINARY one: frames follow each other without padding. DICOM PS3.5 section 8.1.1."""
        layout = self.layout
        num_bytes = _num_packed_bytes(layout)
        if layout.syntax == DEFLATED:
            content = inflate(layout.path, layout.start + num_bytes)[layout.start :]
        else:
            with layout.path.open("rb") as file:
                file.seek(layout.start)
                content = file.read(num_bytes)
        if len(content) < num_bytes:
            raise truncated(layout.path, num_bytes, len(content))
        return content

    @cached_property
    def _numbers(self) -> Integer[np.ndarray, "frames rows columns"]:
        """All frames of a label map: each segment looks at all of them."""
        dtype = np.uint8 if self.layout.bits_allocated == 8 else np.uint16
        return np.stack([self._stored(frame).astype(dtype) for frame in range(len(self.planes_ras))])

    def _stored(self, frame: int) -> Num[np.ndarray, "rows columns"]:
        header = SliceHeader(
            self.layout, frame, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0), None, None, "", "SEG",
            (), "", "", "", "", "", 0,
        )  # fmt: skip
        return self._reader.read(header)

    @cached_property
    def _reader(self) -> SliceReader:
        return SliceReader(keeps_integers=True)


def read_dicom_seg(path: Path) -> Segmentation:
    """Read what a segmentation says of itself; its voxels are read later.

    Raises:
        ReadError: It is missing, damaged, truncated, or no DICOM SEG.
    """
    parsed = open_dicom(path, KEYWORDS)
    if parsed.sop_class_uid not in SEG_CLASSES:
        raise ReadError(f"{path.name} is no DICOM SEG: name the right file, or leave it out", code="read.format")
    try:
        with quiet():
            return _segmentation(parsed, path)
    except CaseError:
        raise
    except Exception as error:  # pydicom converts when asked, and raises whatever it meets in a damaged header
        raise damaged(path, f"its header makes no sense ({type(error).__name__})") from error


def _unevenness(places: Float[np.ndarray, " frames"]) -> float:
    """How far places are from whole numbers, at most."""
    return float(np.abs(places - np.round(places)).max())


def _segmentation(parsed: DicomFile, path: Path) -> Segmentation:
    dataset = parsed.dataset
    kind = str(dataset.SegmentationType).strip().upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise damaged(path, "it does not say how its voxels are meant")
    segments = tuple(_segment(item) for item in dataset.SegmentSequence)
    layout = _layout(parsed, path, kind)
    shared, frames = dataset.get("SharedFunctionalGroupsSequence") or (), dataset.PerFrameFunctionalGroupsSequence
    if len(frames) != layout.num_frames:
        raise damaged(path, f"it announces {layout.num_frames} frames and describes {len(frames)}")
    groups = [_groups((frame, *shared)) for frame in frames]
    numbers = () if kind == "LABELMAP" else tuple(int(group["ReferencedSegmentNumber"]) for group in groups)
    known = {segment.number for segment in segments}
    if len(known) < len(segments) or not known.issuperset(numbers):
        raise damaged(path, "its segments are numbered twice, or a frame shows one that is not there")
    spacing = groups[0].get("SpacingBetweenSlices") or groups[0].get("SliceThickness")
    return Segmentation(
        kind=kind,  # type: ignore[arg-type]
        segments=segments,
        planes_ras=np.stack([_plane(group, path) for group in groups]),
        frame_segments=numbers,
        slice_spacing_mm=float(spacing) if spacing else None,
        full_value=int(dataset.MaximumFractionalValue) if kind == "FRACTIONAL" else 1,
        layout=layout,
    )


def _segment(item: Any) -> Segment:
    codes = item.get("SegmentedPropertyTypeCodeSequence")
    code = str(codes[0].get("CodeValue") or "").strip() if codes else ""
    return Segment(int(item.SegmentNumber), str(item.get("SegmentLabel") or "").strip(), code or None)


def _groups(holders: Sequence[Any]) -> dict[str, Any]:
    """What the functional groups say, a frame's own before those of all frames."""
    told: dict[str, Any] = {}
    for holder in holders:
        for name in GROUPS:
            for element in holder[name][0] if holder.get(name) else ():
                told.setdefault(element.keyword, element.value)
    return told


def _plane(group: dict[str, Any], path: Path) -> Float[np.ndarray, "4 4"]:
    position = np.array(group["ImagePositionPatient"], dtype=np.float64).reshape(3)
    axes = np.array(group["ImageOrientationPatient"], dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = np.array(group["PixelSpacing"], dtype=np.float64)
    is_turn = np.abs(axes @ axes.T - np.eye(2)).max() <= DIRECTION_TOLERANCE  # also false where one is NaN
    is_near = (np.abs(position) <= MAX_COORDINATE_MM).all()
    if not (is_near and is_turn and MIN_SPACING_MM <= min(between_rows, between_columns) <= MAX_COORDINATE_MM):
        raise damaged(path, "a frame's position, orientation or spacing is impossible")
    row, column = axes / np.linalg.norm(axes, axis=1)[:, None]
    plane = np.eye(4)
    plane[:3] = np.array([row * between_columns, column * between_rows, np.cross(row, column), position]).T
    plane[:2] *= -1  # LPS to RAS
    return plane


def _layout(parsed: DicomFile, path: Path, kind: str) -> PixelLayout:
    dataset = parsed.dataset
    rows, columns, num_frames = (int(dataset[name].value) for name in ("Rows", "Columns", "NumberOfFrames"))
    bits = int(dataset.BitsAllocated)
    if min(rows, columns, num_frames) < 1 or bits not in ((1,) if kind == "BINARY" else (8, 16)):
        raise damaged(path, f"it announces {num_frames} × {rows} × {columns} voxels of {bits} bits")
    stored = int(dataset.get("BitsStored") or bits)
    layout = PixelLayout(
        path, parsed.syntax, parsed.start, parsed.num_bytes, parsed.is_little_endian, (rows, columns), num_frames, bits,
        stored, stored - 1, False, None, False, False,
    )  # fmt: skip
    if kind == "BINARY" and parsed.syntax not in (IMPLICIT, EXPLICIT, DEFLATED):
        raise ReadError(
            f"{path.name} stores single bits compressed or as big endian, which is not supported: convert it, for "
            "example with dcmdjpeg or gdcmconv",
            code="dicom.transfer_syntax",
        )
    if parsed.syntax in NATIVE:
        expected = _num_packed_bytes(layout)
        available = parsed.num_bytes or 0
        if parsed.syntax != DEFLATED:
            available = min(available, parsed.num_available)
        if available < expected:
            raise truncated(path, expected, available)
    return layout


def _num_packed_bytes(layout: PixelLayout) -> int:
    rows, columns = layout.shape_ji
    return -(-rows * columns * layout.num_frames * layout.bits_allocated // 8)
