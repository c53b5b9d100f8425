"""Arrays together with the grid they live on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.shapes import CIJK, IJK


@dataclass(frozen=True, eq=False)
class GridRecord:
    """What a NIfTI header says of its grid, kept as it stands so that results can carry it unchanged.

    Attributes:
        fields: The header's fields of qform, sform, their codes, pixdim and units, by the names of nifti1.h.
    """

    fields: Mapping[str, Any]


TURNED = "geometry.turned"
"""Code of the note on a label map whose axes were turned to those of its image."""


@dataclass(frozen=True)
class Note:
    """Something that a reader met and dealt with, which the user should know.

    Attributes:
        code: Stable identifier for programs, such as ``dicom.scout``.
        message: One sentence for a person: what, where, how it was dealt with.
    """

    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of one or more channels on one grid.

    Attributes:
        array: ``CIJK``, channels first, then the array axes of the file; HU where the modality is CT.
        geometry: The grid of the three spatial axes.
        record: The header's own words on the grid, where the file has any.
        notes: What the reader met and dealt with.
    """

    array: Shaped[np.ndarray, CIJK]
    geometry: Geometry
    record: GridRecord | None = None
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        if self.array.shape[1:] != self.geometry.shape_ijk:
            raise GeometryError(f"an array of shape {self.array.shape} does not fit the grid {self.geometry.shape_ijk}")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integers on a grid: each voxel's value names a structure of a :class:`~medseg.core.labels.LabelSchema`.

    Attributes:
        array: ``IJK`` in the array axes of the file.
        geometry: The grid.
        record: The header's own words on the grid, where the file has any.
        notes: What the reader met and dealt with.
    """

    array: Integer[np.ndarray, IJK]
    geometry: Geometry
    record: GridRecord | None = None
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape_ijk:
            raise GeometryError(f"an array of shape {self.array.shape} does not fit the grid {self.geometry.shape_ijk}")

    def turned_to(self, geometry: Geometry) -> LabelMap | None:
        """The same voxels in the axes of another grid; None where that grid lies elsewhere.

        Where the axes run otherwise (a NIfTI label beside a DICOM series is often reversed in J), they are turned by the
        two affines, without loss, and a note says so.
        """
        if geometry.difference(self.geometry) is None:
            return self
        if geometry.canonical.difference(self.geometry.canonical) is not None:
            return None
        array = geometry.axes.from_canonical(self.geometry.axes.to_canonical(self.array))
        note = Note(TURNED, "the label map's axes run otherwise than its image's: turned to them, without loss")
        return LabelMap(np.ascontiguousarray(array), geometry, notes=(*self.notes, note))
