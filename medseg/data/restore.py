"""The way back from the network's grid to the file's: the mapping only; :mod:`medseg.inference.resolve` decides on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from medseg.core.case import PreparedCase
from medseg.core.geometry import Axes, Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import IJK
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

    @property
    def file_shape_ijk(self) -> Shape3:
        """Of the file's grid, in the file's own axes."""
        if self.crop is not None:
            return self.crop.shape_ijk
        if self.shear is not None:
            return self.shear.shape_ijk
        sizes = {axis: len(weights.indices) for axis, weights in zip(self.axes.order, self.weights, strict=True)}
        return sizes[0], sizes[1], sizes[2]

    def in_network_axes(self, array: Shaped[np.ndarray, IJK]) -> Shaped[np.ndarray, "part_i part_j part_k"]:
        """A view of what the weights lead to, in an array of the file's grid, turned to the network's axes."""
        return self.axes.to_canonical(array if self.crop is None else self.crop.of(array))


@dataclass(frozen=True, eq=False)
class MappedCase(PreparedCase):
    """A prepared case that brings the way back along, because it does not follow from its grids.

    Attributes:
        mapping: The way back.
    """

    mapping: GridMapping
