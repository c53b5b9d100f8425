"""Sheared grids, as gantry tilt makes them: straightened for the network, and the way back to the file's voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

from medseg.core.geometry import Geometry, Shape3
from medseg.core.shapes import IJK


@dataclass(frozen=True, eq=False)
class Shear:
    """The way from the voxels of a sheared file to the network's grid, where no axis can be undone for itself.

    Attributes:
        to_network: Maps the homogeneous index of a voxel of the file to the index of its place on the network's grid.
        shape_ijk: Of the file's grid.
    """

    to_network: Float[np.ndarray, "3 4"]
    shape_ijk: Shape3


def straightened(
    array: Shaped[np.ndarray, IJK], source: Geometry, target: Geometry, *, is_smooth: bool, outside: float
) -> Shaped[np.ndarray, "new_i new_j new_k"]:
    """An array of a sheared grid on an orthogonal one.

    Args:
        array: On the grid ``source``.
        source: Any grid.
        target: Usually ``source.orthogonal``.
        is_smooth: Linear interpolation (intensities), else the nearest voxel (class numbers).
        outside: Value of target voxels that lie beyond the source.
    """
    to_source = index_map(target, source)
    result: np.ndarray = ndimage.affine_transform(
        array,
        to_source[:, :3],
        offset=to_source[:, 3],
        output_shape=target.shape_ijk,
        order=1 if is_smooth else 0,
        mode="constant",
        cval=outside,
        prefilter=False,
    )
    return result


def index_map(source: Geometry, target: Geometry) -> Float[np.ndarray, "3 4"]:
    """Maps the homogeneous index of a voxel of one grid to the (fractional) index of the same place in another."""
    matrix: np.ndarray = np.linalg.solve(target.affine_ras, source.affine_ras)[:3]
    return matrix
