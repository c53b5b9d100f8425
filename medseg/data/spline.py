"""Resampling to another number of voxels over the same extent: the grids share their outer edges. No torch.

This is what ``skimage.transform.resize`` and nnU-Net do. Cubic interpolation is separable, so a volume is resampled one
axis after the other with four taps each, where ``scipy.ndimage.zoom`` takes 64 of each voxel at once; the values are the
same to rounding.
"""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from medseg.core.shapes import IJK
from medseg.data.resample import AxisWeights, axis_weights

Interpolation = Literal["nearest", "linear", "cubic"]

EDGE_VOXELS = 12
"""Copies of the outermost voxel that a cubic spline sees beyond each end of an axis. SciPy's number for mode "nearest"; its
influence falls by 3.7 a voxel, so more would change nothing."""


def edge_weights(num_source: int, num_target: int, interpolation: Literal["nearest", "linear"]) -> AxisWeights:
    """Weights between two axes of the same extent.

    Args:
        num_source, num_target: Voxels of each.
        interpolation: The source voxel around the target's centre, or linear between centres; beyond the outermost centre
            its value is held.
    """
    if num_source == num_target or interpolation == "linear":
        return axis_weights(num_source, num_target, num_source / num_target, smooth=False)
    centres = num_source / num_target * (np.arange(num_target) + 0.5) - 0.5
    # Rounded as scipy.ndimage.map_coordinates does: a centre on the border of two voxels belongs to the upper one.
    nearest = np.clip(np.floor(centres + 0.5).astype(np.int64), 0, num_source - 1)
    return AxisWeights(nearest[:, None], np.ones((num_target, 1), np.float32))


def resize_axis(
    array: Float[np.ndarray, IJK], axis: int, num_target: int, interpolation: Interpolation
) -> Float[np.ndarray, "new_i new_j new_k"]:
    """An array with another number of voxels along one axis, over the same extent.

    Cubic may overshoot beyond the array's own range, as splines do.

    Source: ``scipy.ndimage.zoom`` with ``order=3, mode="nearest", grid_mode=True``.
    """
    if num_target == array.shape[axis]:
        return array
    match interpolation:
        case "nearest" | "linear":
            return edge_weights(array.shape[axis], num_target, interpolation).apply(array, axis)
        case "cubic":
            return _cubic_weights(array.shape[axis], num_target).apply(_coefficients(array, axis), axis)
        case _:
            assert_never(interpolation)


def _coefficients(array: Float[np.ndarray, IJK], axis: int) -> Float[np.ndarray, "i j k"]:
    """Those of the cubic B-splines that go through the voxels of an axis, with :data:`EDGE_VOXELS` more at each end."""
    margin = [(EDGE_VOXELS, EDGE_VOXELS) if axis == other else (0, 0) for other in range(array.ndim)]
    padded = np.pad(array, margin, mode="edge")
    coefficients: np.ndarray = ndimage.spline_filter1d(padded, 3, axis, output=array.dtype, mode="nearest")
    return coefficients


def _cubic_weights(num_source: int, num_target: int) -> AxisWeights:
    """Values of the four B-splines around each target voxel's centre; indices are those of :func:`_coefficients`."""
    centres = num_source / num_target * (np.arange(num_target) + 0.5) - 0.5 + EDGE_VOXELS
    first = np.floor(centres).astype(np.int64) - 1
    part = centres - first - 1
    weights = np.stack(
        [(1 - part) ** 3, 4 + 3 * part**3 - 6 * part**2, 4 + 3 * (1 - part) ** 3 - 6 * (1 - part) ** 2, part**3], axis=1
    )
    return AxisWeights(first[:, None] + np.arange(4), (weights / 6).astype(np.float32))
