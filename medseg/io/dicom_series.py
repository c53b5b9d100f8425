"""A folder of DICOM slices, or an enhanced multi-frame file, becomes one volume, or a refusal that says why.

Headers are read once and settle everything about the grid; then each slice's voxels are decoded once, straight into the
volume. Nothing is dropped in silence: a file that is damaged refuses the series, because without it a slice would be
missing; what is left out or dealt with is told as a :class:`~medseg.core.volume.Note`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Num

from medseg.core.errors import CaseError, GeometryError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.shapes import CIJK
from medseg.core.volume import Note, Volume
from medseg.io.dicom_file import damaged, is_dicom_file
from medseg.io.dicom_header import SliceHeader, read_headers
from medseg.io.dicom_pixels import AIR_HU, SliceReader
from medseg.io.dicom_stack import (
    ALLOWABLE,
    DUPLICATE_SLICE,
    Plane,
    Stack,
    choose_stack,
    find_duplicates,
    lay_planes,
    listed,
    split_into_stacks,
)

__all__ = ["ALLOWABLE", "SeriesHeader", "is_dicom_file", "is_series_folder", "read_dicom_series", "read_series_header"]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""Names that promise DICOM."""

MAX_PEEKED_FILES = 16
"""DICOM files of a folder that are looked at to see whether it holds a series."""

HU_TYPES = frozenset({"", "HU", "US", "HU_MOD"})
"""RescaleType of CT whose numbers are HU; US, unspecified, is what older writers put. DICOM PS3.3 C.11.1.1.2."""

MAX_VOXELS = 2**31
"""More voxels than any scanner makes (2048 × 1024 × 1024): headers that ask for more are damaged."""


@dataclass(frozen=True, eq=False)
class SeriesHeader:
    """A series whose grid is settled, its voxels not yet read.

    Attributes:
        slices: In order along axis K, without duplicates: source file, frame and UIDs of each.
        planes: What each index along K is made of; one slice each, unless gaps were allowed.
        geometry: The grid.
        notes: What was met and dealt with so far.
    """

    slices: tuple[SliceHeader, ...]
    planes: tuple[Plane, ...]
    geometry: Geometry
    notes: tuple[Note, ...]


def is_series_folder(path: Path) -> bool:
    """Whether a folder directly holds DICOM slices, judged by its first few DICOM files. Never raises."""
    try:
        files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != ".")
        return any(_holds_slices(file) for file in islice(filter(is_dicom_file, files), MAX_PEEKED_FILES))
    except OSError:
        return False


def read_dicom_series(path: Path, *, allow: Collection[str] = ()) -> Volume:
    """Read a CT, PET or MR series.

    Args:
        path: The folder of one series, or an enhanced multi-frame file.
        allow: Codes of :data:`ALLOWABLE` to go on with: of slices at one position the first is kept (by acquisition,
            then SOP instance UID); gaps are interpolated linearly along the normal.

    Returns:
        One channel on the grid I = columns, J = rows, K = slices along their normal. HU of CT, int16 or int32 where slopes
        and intercepts are whole, else float32.

    Raises:
        ReadError: A file is missing, damaged, truncated or cannot be decoded; or there are several volumes, or none.
        GeometryError: Slices are missing, double, unevenly spaced or shifted; or of several patients.
    """
    try:
        header = read_series_header(path, allow=allow)
        reader = SliceReader(keeps_integers=_keeps_integers(header.slices))
        array = _read_planes(header, reader)
    except MemoryError as error:
        raise ReadError(f"{path.name} does not fit into this machine's memory", code="read.memory") from error
    notes = header.notes + _notes_on_values(header.slices, reader)
    return Volume(array, header.geometry, notes=notes)


def read_series_header(path: Path, *, allow: Collection[str] = ()) -> SeriesHeader:
    """Settle which slices make up the volume and the grid they lie on; of voxels only those of duplicates are read.

    Raises:
        ReadError, GeometryError: As :func:`read_dicom_series`, but for what shows only in voxels.
    """
    slices, notes = _read_folder(path) if path.is_dir() else (list(read_headers(path)), ())
    if not slices:
        raise ReadError(f"{path.name} holds no DICOM image with a place in the body", code="dicom.no_images")
    stack, other_notes = choose_stack(split_into_stacks(slices), path.name)
    _check_rescale(stack.slices, path.name)
    stack, duplicate_notes = _settle_duplicates(stack, allow, path.name)
    planes, geometry, gap_notes = lay_planes(stack, allow, path.name)
    if geometry.num_voxels > MAX_VOXELS:
        raise ReadError(f"{path.name} claims {geometry.num_voxels} voxels: it is damaged", code="dicom.damaged")
    notes += other_notes + duplicate_notes + gap_notes
    if not geometry.is_orthogonal:
        tilt = "slices are not stacked along their normal (gantry tilt): the grid is sheared, as it was measured"
        notes += (Note("dicom.tilted", tilt),)
    return SeriesHeader(stack.slices, planes, geometry, notes)


def _holds_slices(file: Path) -> bool:
    try:
        return bool(read_headers(file))
    except CaseError as error:  # damaged, but what a series is made of
        return error.code.startswith("dicom.")


def _read_folder(folder: Path) -> tuple[list[SliceHeader], tuple[Note, ...]]:
    """All slices that lie directly in a folder, and what else does."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")
        files = [entry for entry in entries if entry.is_file()]
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise ReadError(f"cannot look into {folder.name}: {error.strerror or error}", code="read.failed") from error
    slices: list[SliceHeader] = []
    others: list[str] = []
    for file in files:
        if not is_dicom_file(file):
            if _promises_dicom(file):
                raise damaged(file, "it is no DICOM file, although it lies among them as one")
            others.append(file.name)
            continue
        found = read_headers(file)
        slices.extend(found)
        if not found:
            others.append(file.name)
    deeper = next((entry.name for entry in folders if slices and is_series_folder(entry)), None)
    if deeper is not None:  # perhaps the other half of the patient
        raise ReadError(
            f"{folder.name} holds slices and also a folder of slices, {deeper}: put all of one series, and nothing else, "
            "into one folder",
            code="dicom.several_volumes",
        )
    note = Note("dicom.other_files", f"left out, for they hold no slices: {listed(others)}")
    return slices, (note,) if others else ()


def _promises_dicom(file: Path) -> bool:
    """Whether a file that is not DICOM could be a damaged slice: by its suffix, or binary without a telling one."""
    suffix = file.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ReadError(f"cannot read {file.name}: {error.strerror or error}", code="read.failed") from error
    return (not suffix or suffix[1:].isdigit()) and (not head or b"\0" in head)


def _settle_duplicates(stack: Stack, allow: Collection[str], name: str) -> tuple[Stack, tuple[Note, ...]]:
    groups = find_duplicates(stack)
    if not groups:
        return stack, ()
    reader = SliceReader(keeps_integers=False)
    places = [
        f"{' and '.join(stack.slices[index].name for index in group)} at {stack.positions_mm[group[0]]:.2f} mm "
        f"({'the same' if _are_same(stack, group, reader) else 'different'} voxels)"
        for group in groups
    ]
    doubles = {index for group in groups for index in group[1:]}
    num_positions = len(stack.slices) - len(doubles)
    what = "several acquisitions or time points" if len(groups) == num_positions else "more than one slice"
    found = f"{len(groups)} of {num_positions} positions in {name} have {what}: {listed(places, '; ')}"
    if DUPLICATE_SLICE not in allow:
        raise GeometryError(
            f"{found}; separate them, or keep the first of each with --allow {DUPLICATE_SLICE}", code=DUPLICATE_SLICE
        )
    kept = Stack(tuple(item for index, item in enumerate(stack.slices) if index not in doubles))
    if len(kept.slices) < 2:
        raise ReadError(f"all slices in {name} lie at one position: no volume", code="dicom.too_few_slices")
    return kept, (Note(DUPLICATE_SLICE, f"{found}. The first of each was kept"),)


def _are_same(stack: Stack, group: Sequence[int], reader: SliceReader) -> bool:
    first, *others = (reader.read(stack.slices[index]) for index in group)
    return all(np.array_equal(first, other) for other in others)


def _check_rescale(slices: Sequence[SliceHeader], name: str) -> None:
    """Slope and intercept are both there or both not, in all slices alike, and give numbers."""
    if len({part is None for item in slices for part in (item.slope, item.intercept)}) > 1:
        raise ReadError(
            f"some slices in {name} have a rescale slope or intercept and some have not: what their numbers mean is "
            "unknown; export the series again",
            code="dicom.rescale",
        )
    for item in slices:
        slope, intercept = item.slope or 0.0, item.intercept or 0.0
        largest = abs(slope) * 2**item.layout.bits_stored + abs(intercept)
        if item.slope == 0 or largest > np.finfo(np.float32).max:
            raise damaged(item.layout.path, "its rescale slope makes no numbers")


def _keeps_integers(slices: Sequence[SliceHeader]) -> bool:
    """Whether rescaling gives whole numbers that 32 bits hold."""
    for item in slices:
        slope, intercept = item.slope or 1.0, item.intercept or 0.0
        if not (slope.is_integer() and intercept.is_integer()):
            return False
        if abs(slope) * 2**item.layout.bits_stored + abs(intercept) >= 2**31:
            return False
    return True


def _read_planes(header: SeriesHeader, reader: SliceReader) -> Num[np.ndarray, CIJK]:
    """Decode slice after slice into the volume; only two are held beside it."""
    volume: np.ndarray | None = None
    held: dict[int, np.ndarray] = {}
    for place, plane in enumerate(header.planes):
        wanted = {plane.lower, plane.upper}
        held = {index: held[index] if index in held else reader.read(header.slices[index]) for index in wanted}
        image = held[plane.lower]
        if plane.weight:
            image = image * (1 - plane.weight) + held[plane.upper] * plane.weight
            image = np.rint(image) if reader.keeps_integers else image
        if volume is None:  # after the first slice was decoded: what a header claims is allocated when it proves true
            size_i, size_j, size_k = header.geometry.shape_ijk
            volume = np.empty((size_k, size_j, size_i), np.int16 if reader.keeps_integers else np.float32)
        if volume.dtype == np.int16 and (image.min() < -(2**15) or image.max() >= 2**15):
            volume = volume.astype(np.int32)
        volume[place] = image
    assert volume is not None
    return volume.transpose(2, 1, 0)[None]


def _notes_on_values(slices: Sequence[SliceHeader], reader: SliceReader) -> tuple[Note, ...]:
    layouts = [item.layout for item in slices]
    scales = {(item.slope, item.intercept) for item in slices}
    is_ct = slices[0].modality == "CT"
    types = sorted({item.rescale_type for item in slices} - HU_TYPES)
    told = {
        "dicom.padding": f"{reader.num_padding_voxels} voxels marked as padding became {AIR_HU} HU"
        if reader.num_padding_voxels
        else "",
        "dicom.unused_bits": "bits that the header does not mean held something, which was ignored"
        if reader.has_unused_bits
        else "",
        "dicom.lossy": "compressed with loss: voxels differ from what the scanner measured"
        if any(layout.is_lossy for layout in layouts)
        else "",
        "dicom.monochrome1": "meant to be shown inverted; the numbers are taken as they are"
        if any(layout.is_inverted for layout in layouts)
        else "",
        "dicom.no_rescale": "no rescale slope and intercept: stored values are taken as HU"
        if is_ct and scales == {(None, None)}
        else "",
        "dicom.rescale_per_slice": f"{len(scales)} different rescale slopes and intercepts, each slice has its own"
        if is_ct and len(scales) > 1
        else "",
        "dicom.not_hu": f"the numbers are {', '.join(types)} by the header, not HU" if is_ct and types else "",
    }
    return tuple(Note(code, message) for code, message in told.items() if message)
