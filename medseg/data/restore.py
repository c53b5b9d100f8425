"""The way back from the network's grid to the file's: the mapping only; :mod:`medseg.inference.resolve` decides on it."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.core.case import PreparedCase
from medseg.core.geometry import Axes, Shape3
from medseg.data.resample import AxisWeights, grid_weights
from medseg.data.shear import Shear, index_map


@dataclass(frozen=True, eq=False)
class GridMapping:
    """How each voxel of the file is made of voxels of the network's grid.

    Attributes:
        weights: One for each axis R, A, S: linear interpolation of the network's voxels at the file's voxel centres.
        axes: The turn between R, A, S order and the file's own axes.
        shear: Where the file's grid is sheared: the way back instead of the weights. Else None.
    """

    weights: tuple[AxisWeights, AxisWeights, AxisWeights]
    axes: Axes
    shear: Shear | None = None

    @classmethod
    def of(cls, prepared: PreparedCase) -> GridMapping:
        """The mapping that undoes a case's preparation."""
        file_grid = prepared.file_geometry
        upright = file_grid.orthogonal
        is_sheared = upright is not file_grid
        shear = Shear(index_map(file_grid, prepared.geometry), file_grid.shape_ijk) if is_sheared else None
        weights = grid_weights(prepared.geometry, upright.canonical, smooth=False)
        return cls(weights, upright.axes, shear)

    @property
    def file_shape_ijk(self) -> Shape3:
        """Of the file's grid, in the file's own axes."""
        if self.shear is not None:
            return self.shear.shape_ijk
        sizes = {axis: len(weights.indices) for axis, weights in zip(self.axes.order, self.weights, strict=True)}
        return sizes[0], sizes[1], sizes[2]
