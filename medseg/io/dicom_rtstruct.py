"""DICOM RTSTRUCT: what a physician outlined, read as it stands and burnt onto the image's grid.

Coordinates are in millimetres in the body, so nothing but the grid is needed: which image the file refers to is not
asked. Every number is checked; a file with one that makes no sense is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medseg.core.errors import CaseError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.shapes import IJK
from medseg.core.volume import Note
from medseg.io.contours import POINTS, rasterise
from medseg.io.dicom_file import damaged, open_dicom, quiet

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

KEYWORDS = ("SOPClassUID", "StructureSetROISequence", "ROIContourSequence")

CONTOUR_DATA = 0x30060050

CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
"""Contours that enclose something. DICOM PS3.3 C.8.8.6.3; points and open lines do not."""

MAX_COORDINATE_MM = 1e5
"""No room with a scanner is larger: a coordinate beyond it is damaged."""


@dataclass(frozen=True, eq=False)
class Roi:
    """One structure of the file.

    Attributes:
        number: Its number in the file.
        name: As the physician wrote it.
        contours_lps_mm: Corners of each closed contour, the last joined with the first.
        num_open: Points and open lines of it, which enclose nothing and are left out.
    """

    number: int
    name: str
    contours_lps_mm: tuple[Float[np.ndarray, POINTS], ...]
    num_open: int = 0


@dataclass(frozen=True, eq=False)
class StructureSet:
    """All structures of a file.

    Attributes:
        file_name: For messages.
        rois: In the order of the file.
    """

    file_name: str
    rois: tuple[Roi, ...]

    @property
    def names(self) -> dict[int, str]:
        """Name by number."""
        return {roi.number: roi.name for roi in self.rois}

    def mask(self, number: int, geometry: Geometry) -> Bool[np.ndarray, IJK]:
        """Where a structure is, on a grid. :meth:`burn` also tells what was met.

        Raises:
            LabelError: There is no such structure, or its contours lie in no planes of the grid.
        """
        return self.burn(number, geometry)[0]

    def burn(self, number: int, geometry: Geometry) -> tuple[Bool[np.ndarray, IJK], tuple[Note, ...]]:
        """The mask of a structure, and what was met: see :func:`~medseg.io.contours.rasterise`."""
        roi = next((roi for roi in self.rois if roi.number == number), None)
        if roi is None:
            raise LabelError(f"{self.file_name} has no structure of number {number}", code="label.name")
        place = f"'{roi.name}' in {self.file_name}"
        contours_ras = [points * (-1.0, -1.0, 1.0) for points in roi.contours_lps_mm]
        mask, notes = rasterise(contours_ras, geometry, place)
        if roi.num_open:
            open_note = Note("label.open_contour", f"{place}: {roi.num_open} points or open lines left out")
            notes = (*notes, open_note)
        return mask, notes


def read_rtstruct(path: Path) -> StructureSet:
    """Read a file of contours.

    Raises:
        ReadError: It is missing, damaged, truncated, or no RTSTRUCT.
        LabelError: A coordinate is no finite number or off any scale, or their count is wrong.
    """
    parsed = open_dicom(path, KEYWORDS)
    if parsed.sop_class_uid != RTSTRUCT_CLASS:
        raise ReadError(f"{path.name} is no DICOM RTSTRUCT: name the right file, or leave it out", code="read.format")
    try:
        with quiet():
            return StructureSet(path.name, _rois(parsed.dataset, path))
    except CaseError:
        raise
    except Exception as error:  # pydicom converts when asked, and raises whatever it meets in a damaged file
        raise damaged(path, f"its contours make no sense ({type(error).__name__})") from error


def _rois(dataset: Any, path: Path) -> tuple[Roi, ...]:
    described, contoured = (_sequence(dataset, keyword, path) for keyword in KEYWORDS[1:])
    names = {int(item.ROINumber): str(item.get("ROIName") or "").strip() for item in described}
    if len(names) < len(described):
        raise damaged(path, "two of its structures have one number")
    contours: dict[int, list[Float[np.ndarray, POINTS]]] = {number: [] for number in names}
    num_open = dict.fromkeys(names, 0)
    for roi in contoured:
        number = int(roi.ReferencedROINumber)
        if number not in names:
            raise damaged(path, "it has contours of a structure that it does not name")
        for item in roi.get("ContourSequence") or ():
            if str(item.get("ContourGeometricType") or "").strip().upper() in CLOSED:
                contours[number].append(_points(item, names[number], path))
            else:
                num_open[number] += 1
    return tuple(Roi(number, name, tuple(contours[number]), num_open[number]) for number, name in names.items())


def _sequence(dataset: Any, keyword: str, path: Path) -> Sequence[Any]:
    """A sequence that is there from its first byte to its last: pydicom reads on where a file ends."""
    if keyword not in dataset:
        raise damaged(path, f"it has no {keyword}, or ends before it")
    raw = dataset.get_item(keyword)
    length = getattr(raw, "length", None)  # only what is not converted yet has one
    if length is not None and length != 0xFFFFFFFF and length != len(raw.value or b""):
        raise ReadError(f"{path.name} is truncated: copy it again from the archive", code="dicom.truncated")
    items: Sequence[Any] = dataset[keyword].value
    return items


def _points(contour: Any, name: str, path: Path) -> Float[np.ndarray, POINTS]:
    """Corners of a contour, from the text as it stands: converting each number by pydicom takes ten times as long."""
    raw = contour.get_item(CONTOUR_DATA)
    text = raw.value if raw is not None else b""
    parts = text.strip(b" \0").split(b"\\") if isinstance(text, bytes) else list(text or ())
    wanted = contour.get("NumberOfContourPoints")
    try:
        numbers = np.array(parts if parts != [b""] else [], dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise _refused(f"coordinates of '{name}' that are no numbers", path) from error
    if len(numbers) % 3:
        raise _refused(f"{len(numbers)} coordinates in a contour of '{name}', not three a point", path)
    if wanted is not None and int(wanted) != len(numbers) // 3:
        raise _refused(f"{len(numbers) // 3} points in a contour of '{name}' that announces {wanted}", path)
    if not (np.abs(numbers) <= MAX_COORDINATE_MM).all():  # which NaN is not either
        raise _refused(f"coordinates of '{name}' that are NaN, infinite or further than 100 m away", path)
    return numbers.reshape(-1, 3)


def _refused(what: str, path: Path) -> LabelError:
    return LabelError(f"{path.name} holds {what}: export it again", code="label.contour_data")
