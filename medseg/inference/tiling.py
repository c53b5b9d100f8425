"""Where the windows of a sliding window lie, and how much each of their voxels counts. No torch."""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float

from medseg.core.errors import ConfigError
from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import IJK

SIGMA_PART = 1 / 8
"""Standard deviation of the Gaussian as a part of the window, as nnU-Net and MONAI have it."""

SMALLEST_WEIGHT = 1e-3
"""Smallest weight of a window's voxel relative to its centre: corners must count, or a sum of weights could vanish."""


def window_locations(shape_ijk: Shape3, window_ijk: Shape3, overlap: float) -> tuple[PatchLocation, ...]:
    """Windows that cover a volume, evenly spread along each axis, i slowest.

    Args:
        shape_ijk: Of the volume.
        window_ijk: Of the window. Along an axis where the volume is smaller there is one window, centred on it.
        overlap: Smallest part of a window that its neighbour covers too, at least 0 and below 1.

    Raises:
        ConfigError: The overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"expected an overlap of at least 0 and below 1, found {overlap}")
    starts = [_starts(size, window, overlap) for size, window in zip(shape_ijk, window_ijk, strict=True)]
    return tuple(PatchLocation((i, j, k), window_ijk) for i, j, k in product(*starts))


def gaussian_weights(window_ijk: Shape3) -> Float[np.ndarray, IJK]:
    """Weight of each voxel of a window: a Gaussian about its centre, 1 there, float32.

    Source: nnU-Net's importance map (Isensee et al. 2021), sigma of 1/8 of the window.
    """
    profiles = []
    for size in window_ijk:
        offsets = np.arange(size) - (size - 1) / 2
        profiles.append(np.exp(-0.5 * (offsets / (size * SIGMA_PART)) ** 2))
    i, j, k = profiles
    weights: np.ndarray = i[:, None, None] * j[None, :, None] * k[None, None, :]
    floored: np.ndarray = np.maximum(weights / weights.max(), SMALLEST_WEIGHT)
    return floored.astype(np.float32)


def _starts(size: int, window: int, overlap: float) -> list[int]:
    if size <= window:
        return [-((window - size) // 2)]
    step = max(1, int(window * (1 - overlap)))
    num_windows = -(-(size - window) // step) + 1
    return [int(index * (size - window) / (num_windows - 1) + 0.5) for index in range(num_windows)]
