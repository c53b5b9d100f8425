"""Labels from DICOM: contours (RTSTRUCT) or masks (SEG) that somebody drew, burnt onto the image's grid as one label map.

Structures are found by name. A voxel carries one label, so where two structures claim one, the dataset has to say who
wins; nothing is decided in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Integer

from medseg.core.errors import GeometryError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap, Note
from medseg.io.dicom_file import open_dicom
from medseg.io.dicom_rtstruct import RTSTRUCT_CLASS, StructureSet, read_rtstruct
from medseg.io.dicom_seg import SEG_CLASSES, Segmentation, read_dicom_seg

Drawn: TypeAlias = Segmentation | StructureSet

MAX_BORDER_SHARE = 0.01
"""Part of the smaller of two structures' voxels that contours may share without a stated priority: borders drawn twice
agree to the rounding of their coordinates, not to the bit."""

MAX_NAMES, MAX_NAME_LETTERS = 12, 40
"""Of the file's structures that a message lists."""


def read_dicom_labels(path: Path, geometry: Geometry, schema: LabelSchema) -> LabelMap:
    """Read the structures of a schema from a DICOM SEG or RTSTRUCT.

    Names are compared without regard to case, spaces, underscores and hyphens. What the schema does not name is left
    out, what the file does not hold stays empty, several segments of one name count together; each is told as a note.

    Args:
        path: The file.
        geometry: The image's grid.
        schema: What to look for; its ``priority`` says who keeps a voxel that two structures claim. A structure that
            the priority names wins over one that it does not. Without, contours may share up to 1 % of the smaller
            structure at a common border, which goes to the earlier one in the schema; masks may share nothing.

    Returns:
        The schema's values on the image's grid, with what was met.

    Raises:
        ReadError: The file is missing, damaged, truncated, or neither of the two.
        LabelError: Structures overlap (``label.overlap``), none is found or one not beyond doubt (``label.name``),
            contours lie in no planes of the image (``label.contour_plane``), or coordinates are damaged.
        GeometryError: Masks do not lie on the image's voxels, or all structures outside it (``geometry.label``).
    """
    if schema.has_regions:
        raise LabelError(
            f"{path.name} holds structures, but the dataset's labels are regions of several values: give label maps",
            code="label.regions",
        )
    drawn = _read(path)
    numbers = _matched(drawn, schema)
    canvas = _Canvas(geometry, schema, path.name, MAX_BORDER_SHARE if isinstance(drawn, StructureSet) else 0.0)
    notes = _naming_notes(drawn, numbers, schema)
    for name in canvas.painting_order:
        mask, met = _burnt(drawn, numbers.get(name, ()), geometry)
        canvas.paint(name, mask)
        notes += met
    if not canvas.array.any() and any(note.code == "label.outside" for note in notes):
        raise GeometryError(
            f"all structures of {path.name} lie outside the image: it belongs to another scan, or frame of reference",
            code="geometry.label",
        )
    return LabelMap(canvas.array, geometry, notes=(*notes, *canvas.settle()))


def _read(path: Path) -> Drawn:
    sop_class = open_dicom(path, ("SOPClassUID",)).sop_class_uid
    if sop_class in SEG_CLASSES:
        return read_dicom_seg(path)
    if sop_class == RTSTRUCT_CLASS:
        return read_rtstruct(path)
    raise ReadError(
        f"expected a DICOM SEG or RTSTRUCT as labels, {path.name} is another object: name the right file",
        code="read.format",
    )


def _key(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()


def _matched(drawn: Drawn, schema: LabelSchema) -> dict[str, tuple[int, ...]]:
    """Numbers in the file by the structure's name: those spelled the same, else those of the one spelling that is alike."""
    spellings = sorted(set(drawn.names.values()))
    chosen: dict[str, str] = {}
    for name in schema.names:
        alike = [found for found in spellings if _key(found) == _key(name) and found not in set(schema.names) - {name}]
        if name in alike:
            alike = [name]
        if len(alike) > 1 or (alike and alike[0] in chosen.values()):
            raise LabelError(
                f"expected one structure like '{name}' in {drawn.file_name}, found {_listed(alike)}: name it in the "
                "dataset's labels exactly as the file does",
                code="label.name",
            )
        if alike:
            chosen[name] = alike[0]
    if not chosen:
        raise LabelError(
            f"{drawn.file_name} holds none of {_listed(schema.names)}; it names {_listed(spellings)}: correct the "
            "dataset's labels",
            code="label.name",
        )
    return {
        name: tuple(number for number, found in drawn.names.items() if found == spelling)
        for name, spelling in chosen.items()
    }


def _listed(names: Sequence[str]) -> str:
    cut = ["".join(letter if letter.isprintable() else "?" for letter in name[:MAX_NAME_LETTERS]) for name in names]
    shown = [f"'{name}'" for name in cut[:MAX_NAMES]]
    return ", ".join(shown) + (", …" if len(names) > MAX_NAMES else "")


def _naming_notes(drawn: Drawn, numbers: Mapping[str, tuple[int, ...]], schema: LabelSchema) -> list[Note]:
    used = {number for chosen in numbers.values() for number in chosen}
    others = [name for number, name in drawn.names.items() if number not in used and _key(name) != "background"]
    missing = [name for name in schema.names if name not in numbers]
    notes = [
        Note("label.joined", f"{drawn.file_name} holds {len(chosen)} structures '{name}', which count together")
        for name, chosen in numbers.items()
        if len(chosen) > 1
    ]
    if others:
        told = f"{drawn.file_name} also holds {_listed(others)}, which the dataset does not name"
        notes.append(Note("label.unknown_structure", told))
    if missing:
        notes.append(Note("label.missing_structure", f"{drawn.file_name} does not hold {_listed(missing)}: left empty"))
    return notes


def _burnt(drawn: Drawn, numbers: Sequence[int], geometry: Geometry) -> tuple[Bool[np.ndarray, IJK], list[Note]]:
    mask = np.zeros(geometry.shape_ijk, dtype=bool)
    notes: list[Note] = []
    for number in numbers:
        burnt, met = drawn.burn(number, geometry)
        mask |= burnt
        notes += met
    return mask, notes


class _Canvas:
    """A label map that remembers who was painted over.

    Args:
        geometry: Of the image.
        schema: Values, and who wins.
        file_name: For messages.
        border_share: Part of the smaller structure that two may share without a priority.
    """

    def __init__(self, geometry: Geometry, schema: LabelSchema, file_name: str, border_share: float) -> None:
        self.array: Integer[np.ndarray, IJK] = np.zeros(geometry.shape_ijk, dtype=schema.label_dtype())
        self._schema, self._file_name, self._border_share = schema, file_name, border_share
        self._values = {structure.name: structure.value for structure in schema.structures}
        self._num_voxels: dict[str, int] = {}
        self._shared: dict[tuple[str, str], int] = {}

    @property
    def painting_order(self) -> tuple[str, ...]:
        """Who wins comes last: structures of the priority, and of the others the earlier ones of the schema."""
        others = [name for name in self._schema.names if name not in self._schema.priority]
        return tuple(reversed((*self._schema.priority, *others)))

    def paint(self, name: str, mask: Bool[np.ndarray, IJK]) -> None:
        covered = self.array[mask]
        counts = np.bincount(covered, minlength=max(self._values.values()) + 1)
        for other in self._num_voxels:
            if num_shared := int(counts[self._values[other]]):
                self._shared[other, name] = num_shared
        self._num_voxels[name] = len(covered)
        self.array[mask] = self._values[name]

    def settle(self) -> list[Note]:
        """Notes on overlaps that are decided.

        Raises:
            LabelError: One is not.
        """
        notes = []
        for (loser, winner), num_shared in self._shared.items():
            told = f"'{winner}' and '{loser}' of {self._file_name} share {num_shared} voxels"
            smaller = min(self._num_voxels[loser], self._num_voxels[winner])
            if winner in self._schema.priority:
                notes.append(Note("label.overlap", f"{told}: they go to '{winner}', which has priority"))
            elif num_shared <= self._border_share * smaller:
                notes.append(Note("label.border", f"{told} at their border: they go to '{winner}'"))
            else:
                raise LabelError(
                    f"{told}, and a voxel has one label: state a priority in the dataset's labels, or correct the file",
                    code="label.overlap",
                )
        return notes
