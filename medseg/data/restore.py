"""The way back from the network's grid to the file's: the mapping only; :mod:`medseg.inference.resolve` decides on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from medseg.core.case import PreparedCase
from medseg.core.geometry import Axes, Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import ANY, IJK
from medseg.data.resample import AxisWeights, grid_weights
from medseg.data.shear import Shear, index_map


@dataclass(frozen=True)
class Crop:
    """The part of a file that was prepared; all around it is background.

    Attributes:
        place: In the file's own axes.
        shape_ijk: Of the file's grid.
    """

    place: PatchLocation
    shape_ijk: Shape3

    def of(self, whole: Shaped[np.ndarray, IJK]) -> Shaped[np.ndarray, "part_i part_j part_k"]:
        """A view of the part in an array of the file's grid."""
        return whole[self.place.to_slices()]

    def surrounded(self, part: Shaped[np.ndarray, IJK]) -> Shaped[np.ndarray, "file_i file_j file_k"]:
        """An array of the file's grid that is 0 around the part."""
        whole = np.zeros(self.shape_ijk, part.dtype)
        self.of(whole)[...] = part
        return whole


@dataclass(frozen=True, eq=False)
class GridMapping:
    """How each voxel of the file is made of voxels of the network's grid.

    Attributes:
        weights: One for each axis of the network's grid (R, A, S): linear interpolation of its voxels at the file's voxel
            centres.
        axes: The turn between the network's axes and the file's own.
        shear: Where the file's grid is sheared: the way back instead of the weights. Else None.
        crop: Where only a part of the file was prepared: the weights lead to that part. Else None.
    """

    weights: tuple[AxisWeights, AxisWeights, AxisWeights]
    axes: Axes
    shear: Shear | None = None
    crop: Crop | None = None

    @classmethod
    def of(cls, prepared: PreparedCase) -> GridMapping:
        """The mapping that undoes a case's preparation."""
        if isinstance(prepared, MappedCase):
            return prepared.mapping
        file_grid = prepared.file_geometry
        upright = file_grid.orthogonal
        is_sheared = upright is not file_grid
        shear = Shear(index_map(file_grid, prepared.geometry), file_grid.shape_ijk) if is_sheared else None
        weights = grid_weights(prepared.geometry, upright.canonical, smooth=False)
        return cls(weights, upright.axes, shear)

    def to_file_axes(self, array: Shaped[np.ndarray, ANY]) -> Shaped[np.ndarray, ANY]:
        """An array of the file's grid in R, A, S order, turned to the file's own axes (contiguous)."""
        return np.ascontiguousarray(self.axes.from_canonical(array))

    def to_whole_file(self, array: Shaped[np.ndarray, IJK]) -> Shaped[np.ndarray, "file_i file_j file_k"]:
        """What the weights lead to, in the file's own axes, with the background around it."""
        return array if self.crop is None else self.crop.surrounded(array)


@dataclass(frozen=True, eq=False)
class MappedCase(PreparedCase):
    """A prepared case that brings the way back along, because it does not follow from its grids.

    Attributes:
        mapping: The way back.
    """

    mapping: GridMapping
