"""What a DICOM image says of itself: one record a slice, checked, and nothing more.

A classic file gives one :class:`SliceHeader`, an enhanced multi-frame file one a frame. Voxels are not touched: where
they start and how they are stored is told as a :class:`PixelLayout`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import CaseError, ReadError
from medseg.io.dicom_file import DEFLATED, LOSSY, NATIVE, DicomFile, damaged, open_dicom, quiet, truncated

Vector3 = tuple[float, float, float]

MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.2.1": "CT", "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.4.1": "MR", "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT", "1.2.840.10008.5.1.4.1.1.130": "PT", "1.2.840.10008.5.1.4.1.1.128.1": "PT",
}  # fmt: skip
"""CT, MR and PET images: classic, enhanced, and enhanced made of classic ones. DICOM PS3.4 annex B.5."""

NO_SCAN = frozenset({
    "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.30",
})  # fmt: skip
"""Objects with voxels and a place in the body that are no scan: RT dose, segmentation (two kinds), parametric map."""

DICOM_ROOT = "1.2.840.10008."
"""What identifiers of the standard start with. DICOM PS3.6 annex A."""

DIRECTION_TOLERANCE = 1e-2
"""How far the length of a direction may be from 1: cosines are written with two decimals at the least."""

ANGLE_TOLERANCE = 2e-3
"""Largest cosine between rows and columns, which the standard puts at right angles: that of directions written with three
decimals is up to 0.0017. What they say is kept, as a shear."""

KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType",
    "AcquisitionNumber", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "LossyImageCompression", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
"""All that is read of a header."""


@dataclass(frozen=True)
class PixelLayout:
    """How one file stores its voxels.

    Attributes:
        path: The file.
        syntax: Transfer syntax UID.
        start: Where the value of Pixel Data starts, in the unpacked file [bytes].
        num_bytes: Its length [bytes]; None where it is compressed, in fragments.
        is_little_endian: Byte order of the numbers.
        shape_ji: Rows and columns.
        num_frames: Images in this file.
        bits_allocated: Size of a number in the file: 8, 16 or 32.
        bits_stored: How many of these bits are meant.
        high_bit: Place of the highest of them.
        is_signed: Two's complement.
        padding: Stored values, first and last, that mean "nothing was measured here"; None where there are none.
        is_inverted: Meant to be shown white for low values (MONOCHROME1); the numbers mean the same.
        is_lossy: Was compressed with loss, now or earlier.
    """

    path: Path
    syntax: str
    start: int
    num_bytes: int | None
    is_little_endian: bool
    shape_ji: tuple[int, int]
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    padding: tuple[int, int] | None
    is_inverted: bool
    is_lossy: bool

    @property
    def frame_bytes(self) -> int:
        """Size of one image as it is stored uncompressed [bytes]."""
        return self.shape_ji[0] * self.shape_ji[1] * self.bits_allocated // 8


@dataclass(frozen=True)
class SliceHeader:
    """One slice: where it lies, what its numbers mean, what it belongs to.

    Attributes:
        layout: How its file stores voxels.
        frame: Which image of that file, from 0.
        position_lps_mm: Centre of its first voxel.
        row_lps: Unit vector along which the column index grows: axis I.
        column_lps: Unit vector along which the row index grows: axis J.
        spacing_ij_mm: Distance of voxels along I and along J.
        slope, intercept: From stored values to HU (CT), Bq/ml (PET), and so on; None where the header has none.
        rescale_type: What they give, by the header; empty where it says nothing.
        modality: ``CT``, ``MR``, ``PT``, ...
        image_type: As the header has it, upper case.
        sop_class_uid, sop_instance_uid, series_uid, frame_of_reference_uid: Empty where missing.
        patient_id: Never shown.
        acquisition: Number of the acquisition, 0 where missing.
    """

    layout: PixelLayout
    frame: int
    position_lps_mm: Vector3
    row_lps: Vector3
    column_lps: Vector3
    spacing_ij_mm: tuple[float, float]
    slope: float | None
    intercept: float | None
    rescale_type: str
    modality: str
    image_type: tuple[str, ...]
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    frame_of_reference_uid: str
    patient_id: str = field(repr=False)
    acquisition: int

    @property
    def name(self) -> str:
        """The file's name, and which frame where it has several."""
        path = self.layout.path
        return path.name if self.layout.num_frames == 1 else f"{path.name} frame {self.frame + 1}"

    @property
    def is_scout(self) -> bool:
        """An overview on which the scan was planned. DICOM PS3.3 C.8.2.1.1.1."""
        return "LOCALIZER" in self.image_type


def read_headers(path: Path) -> tuple[SliceHeader, ...]:
    """The slices of one DICOM file; none where it holds something else than images with a place in the body.

    Raises:
        ReadError: It is damaged, truncated, lacks what a scan must say, or holds colours.
    """
    parsed = open_dicom(path, KEYWORDS)
    try:
        with quiet():
            return _slices(parsed, path)
    except CaseError:
        raise
    except Exception as error:  # pydicom converts when asked, and raises whatever it meets in a damaged header
        raise damaged(path, f"its header makes no sense ({type(error).__name__})") from error


def _slices(parsed: DicomFile, path: Path) -> tuple[SliceHeader, ...]:
    dataset, sop_class = parsed.dataset, parsed.sop_class_uid
    if not sop_class:
        raise damaged(path, "it does not say what kind of DICOM object it is")
    image_type = tuple(text.strip().upper() for text in _texts(dataset, "ImageType"))
    num_frames = _integer(dataset, "NumberOfFrames", path, 1)
    is_enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    has_place = is_enhanced or all(
        dataset.get(keyword) for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    is_slice = has_place and parsed.start > 0 and (is_enhanced or num_frames == 1)
    is_candidate = is_slice and not _is_coloured(dataset, path)
    if sop_class in NO_SCAN or (not is_candidate and ("LOCALIZER" in image_type or _is_no_scan(parsed))):
        return ()
    if not has_place:
        raise damaged(path, "it does not say where in the body it lies, or how large its voxels are")
    if not parsed.start:
        raise ReadError(f"{path.name} holds no voxels, or ends before them: copy it again", code="dicom.truncated")
    if not is_slice:
        raise damaged(path, f"it announces {num_frames} images and does not say where they lie")
    layout = _layout(parsed, path, num_frames)
    if not is_enhanced:
        return (_slice(parsed, layout, 0, image_type, (dataset,)),)
    shared, frames = dataset.get("SharedFunctionalGroupsSequence") or (), dataset.PerFrameFunctionalGroupsSequence
    if len(frames) != num_frames:
        raise damaged(path, f"it announces {num_frames} frames and describes {len(frames)}")
    return tuple(
        _slice(parsed, layout, frame, image_type, _groups((groups, *shared), dataset))
        for frame, groups in enumerate(frames)
    )


def _is_no_scan(parsed: DicomFile) -> bool:
    """Whether it is a kind of object that is no scan: a known one, or a vendor's own; both places that say so agree."""
    from pydicom._uid_dict import UID_dictionary

    kind, media = parsed.sop_class_uid, parsed.media_sop_class_uid
    if kind in MODALITY_OF_CLASS:
        return False
    if kind in UID_dictionary:
        return media in ("", kind)
    is_vendors = re.fullmatch(r"[0-9.]{10,64}", kind) is not None and not kind.startswith(DICOM_ROOT)
    return is_vendors and media == kind == str(parsed.dataset.get("SOPClassUID"))


def _photometric(dataset: Any) -> str:
    return str(dataset.get("PhotometricInterpretation")).strip()


def _is_coloured(dataset: Any, path: Path) -> bool:
    is_grey = _photometric(dataset) in ("MONOCHROME1", "MONOCHROME2")
    return _integer(dataset, "SamplesPerPixel", path, 1) != 1 or not is_grey


def _groups(holders: Sequence[Any], dataset: Any) -> tuple[Any, ...]:
    """The functional groups that say where a frame lies and what its numbers mean; those of the frame come first."""
    names = (
        "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )  # fmt: skip
    items = [holder[name][0] for holder in holders for name in names if holder.get(name)]
    return (*items, dataset)


def _layout(parsed: DicomFile, path: Path, num_frames: int) -> PixelLayout:
    dataset = parsed.dataset
    if _is_coloured(dataset, path):
        raise ReadError(f"{path.name} holds colours, not a scan: leave it out", code="dicom.colour")
    if dataset.get("ModalityLUTSequence"):
        raise ReadError(f"{path.name} scales its voxels by a table, which is not supported", code="dicom.rescale")
    rows, columns = _integer(dataset, "Rows", path), _integer(dataset, "Columns", path)
    allocated = _integer(dataset, "BitsAllocated", path)
    stored = _integer(dataset, "BitsStored", path, allocated)
    high_bit = _integer(dataset, "HighBit", path, stored - 1)
    sign = _integer(dataset, "PixelRepresentation", path)
    if allocated not in (8, 16, 32) or not 1 <= stored <= high_bit + 1 <= allocated or sign not in (0, 1):
        raise damaged(path, f"{stored} of {allocated} bits up to bit {high_bit} are no way to store voxels")
    if allocated == 8 and not parsed.is_little_endian:
        raise ReadError(
            f"{path.name} stores single bytes in big-endian order: convert it", code="dicom.transfer_syntax"
        )
    if min(rows, columns, num_frames) < 1:
        raise damaged(path, f"it announces {num_frames} × {rows} × {columns} voxels")
    layout = PixelLayout(
        path, parsed.syntax, parsed.start, parsed.num_bytes, parsed.is_little_endian, (rows, columns), num_frames,
        allocated, stored, high_bit, sign == 1, _padding(dataset, path), _photometric(dataset) == "MONOCHROME1",
        parsed.syntax in LOSSY or str(dataset.get("LossyImageCompression") or "").strip() == "01",
    )  # fmt: skip
    _check_length(layout, parsed.num_available)
    return layout


def _check_length(layout: PixelLayout, num_available: int) -> None:
    """Whether the file really holds what its header promises, before anything is allocated for it."""
    if layout.syntax not in NATIVE:
        if layout.num_bytes is not None:
            raise damaged(layout.path, "its compressed voxels are not in fragments")
        return
    expected, found = layout.frame_bytes * layout.num_frames, layout.num_bytes
    # Values have even lengths: one byte may follow.
    if found is None or found > expected + 1:
        raise damaged(layout.path, f"expected {expected} bytes of voxels, its header announces {found}")
    # A deflated file is counted when it is unpacked.
    num_left = found if layout.syntax == DEFLATED else min(found, num_available)
    if num_left < expected:
        raise truncated(layout.path, expected, num_left)


def _slice(
    parsed: DicomFile, layout: PixelLayout, frame: int, image_type: tuple[str, ...], groups: Sequence[Any]
) -> SliceHeader:
    dataset, path = parsed.dataset, layout.path
    spacing_ji = _numbers(groups, "PixelSpacing", 2, path)
    if min(spacing_ji) <= 0:
        raise damaged(path, "its voxels have no size")
    row, column = _directions(groups, path)
    x, y, z = _numbers(groups, "ImagePositionPatient", 3, path)
    return SliceHeader(
        layout=layout,
        frame=frame,
        position_lps_mm=(x, y, z),
        row_lps=row,
        column_lps=column,
        spacing_ij_mm=(spacing_ji[1], spacing_ji[0]),
        slope=_number(groups, "RescaleSlope", path),
        intercept=_number(groups, "RescaleIntercept", path),
        rescale_type=next((str(group.RescaleType).strip() for group in groups if group.get("RescaleType")), ""),
        modality=str(dataset.get("Modality") or MODALITY_OF_CLASS.get(parsed.sop_class_uid, "")).strip(),
        image_type=image_type,
        sop_class_uid=parsed.sop_class_uid,
        sop_instance_uid=parsed.sop_instance_uid,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        patient_id=str(dataset.get("PatientID") or "").strip(),
        acquisition=_integer(dataset, "AcquisitionNumber", path, 0),
    )


def _directions(groups: Sequence[Any], path: Path) -> tuple[Vector3, Vector3]:
    """Unit vectors along rows and columns."""
    pair = np.array(_numbers(groups, "ImageOrientationPatient", 6, path)).reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if np.abs(lengths - 1).max() > DIRECTION_TOLERANCE:
        raise damaged(path, "its ImageOrientationPatient holds no directions")
    (a, b, c), (d, e, f) = (pair / lengths[:, None]).tolist()
    if abs(a * d + b * e + c * f) > ANGLE_TOLERANCE:
        raise damaged(path, "its rows and columns do not stand at right angles")
    return (a, b, c), (d, e, f)


def _padding(dataset: Any, path: Path) -> tuple[int, int] | None:
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = _integer(dataset, "PixelPaddingValue", path)
    return first, _integer(dataset, "PixelPaddingRangeLimit", path, first)


def _texts(dataset: Any, keyword: str) -> list[str]:
    value = dataset.get(keyword) or ()
    return [value] if isinstance(value, str) else [str(part) for part in value]


def _numbers(groups: Sequence[Any], keyword: str, count: int, path: Path) -> list[float]:
    """Finite numbers of an attribute, from the first group that has it."""
    value = next((group.get(keyword) for group in groups if group.get(keyword) is not None), None)
    parts = [] if value is None else [value] if isinstance(value, int | float) else list(value)
    numbers = [float(part) for part in parts]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise damaged(path, f"expected {count} numbers as its {keyword}, found {len(numbers)} or some that are none")
    return numbers


def _number(groups: Sequence[Any], keyword: str, path: Path) -> float | None:
    is_told = any(group.get(keyword) is not None for group in groups)
    return _numbers(groups, keyword, 1, path)[0] if is_told else None


def _integer(dataset: Any, keyword: str, path: Path, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise damaged(path, f"it has no {keyword}")
        return default
    if not isinstance(value, int):
        raise damaged(path, f"its {keyword} is no whole number")
    return int(value)
