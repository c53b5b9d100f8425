"""Where the windows of a sliding window lie, and how much each of their voxels counts. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float

from medseg.core.errors import ConfigError
from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import IJK

SIGMA_PART = 1 / 8
"""Standard deviation of the Gaussian as a part of the window, as nnU-Net and MONAI have it."""

SMALLEST_WEIGHT = 1e-3
"""Smallest weight of a window's voxel, beside about 1 at its centre: corners must count, or a sum of weights could vanish. MONAI's."""

NNUNET_SCALE = 10
"""nnU-Net's weights are kept in half precision as this at the centre: what falls below its smallest number gets that."""

WindowRule = Literal["medseg", "nnunet"]
"""Who places and weighs windows; they differ in rounding, in where an even window has its centre, and at its corners."""


@dataclass(frozen=True)
class WindowGrid:
    """Windows that cover a volume, and the axis along which they are walked.

    Attributes:
        shape_ijk: Of the volume.
        window_ijk: Of the window.
        starts: First voxels of the windows along each axis, ascending: a step apart, as MONAI places them, the last one moved back
            to end with the volume; nnU-Net's are evenly spread. Where the volume is smaller than the window there is one, centred on it.
        walk_axis: The windows that share a start along this axis are a layer; layers follow each other.
        rule: Who placed the windows, and weighs their voxels.
    """

    shape_ijk: Shape3
    window_ijk: Shape3
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    walk_axis: int
    rule: WindowRule = "medseg"

    @classmethod
    def over(cls, shape_ijk: Shape3, window_ijk: Shape3, overlap: float, rule: WindowRule = "medseg") -> WindowGrid:
        """The grid over a volume, walked along the axis on which the fewest voxels are unfinished at a time.

        Args:
            shape_ijk: Of the volume.
            window_ijk: Of the window.
            overlap: Smallest part of a window that its neighbour covers too, at least 0 and below 1.
            rule: How starts are rounded.

        Raises:
            ConfigError: The overlap is out of range.

        Source: for nnU-Net, its ``compute_steps_for_sliding_window``.
        """
        if not 0 <= overlap < 1:
            raise ConfigError(f"expected an overlap of at least 0 and below 1, found {overlap}")
        place = _starts if rule == "medseg" else _nnunet_starts
        i, j, k = (tuple(place(size, window, overlap)) for size, window in zip(shape_ijk, window_ijk, strict=True))
        depths = [min(size, window) / size for size, window in zip(shape_ijk, window_ijk, strict=True)]
        return cls(shape_ijk, window_ijk, (i, j, k), depths.index(min(depths)), rule)

    @property
    def num_windows(self) -> int:
        """In all layers together."""
        i, j, k = self.starts
        return len(i) * len(j) * len(k)

    @property
    def num_unfinished_planes(self) -> int:
        """Planes across the walked axis on which logits are summed at a time."""
        return min(self.shape_ijk[self.walk_axis], self.window_ijk[self.walk_axis])

    def windows(self) -> Iterator[PatchLocation]:
        """All windows, layer after layer."""
        for _, layer in self.layers():
            yield from layer

    def layers(self) -> Iterator[tuple[int, tuple[PatchLocation, ...]]]:
        """Each layer's windows, and the plane up to which all is finished once they are summed."""
        of_layers = self.starts[self.walk_axis]
        for start, after in zip(of_layers, (*of_layers[1:], self.shape_ijk[self.walk_axis]), strict=True):
            chosen = list(self.starts)
            chosen[self.walk_axis] = (start,)
            yield after, tuple(PatchLocation((i, j, k), self.window_ijk) for i, j, k in product(*chosen))


def gaussian_weights(window_ijk: Shape3, rule: WindowRule = "medseg") -> Float[np.ndarray, IJK]:
    """Weight of each voxel of a window: a Gaussian about its centre, largest there, float32.

    Source: MONAI's ``compute_importance_map``, and nnU-Net's (Isensee et al. 2021; its ``compute_gaussian``); sigma of 1/8 of the window.
    """
    profiles = []
    for size in window_ijk:
        centre = (size - 1) / 2 if rule == "medseg" else size // 2
        profiles.append(np.exp(-0.5 * ((np.arange(size) - centre) / (size * SIGMA_PART)) ** 2))
    i, j, k = profiles
    weights: np.ndarray = i[:, None, None] * j[None, :, None] * k[None, None, :]
    if rule == "nnunet":
        halves: np.ndarray = (weights / weights.max() * NNUNET_SCALE).astype(np.float16)
        positive: np.ndarray = np.maximum(halves, halves[halves > 0].min())
        return positive.astype(np.float32)
    floored: np.ndarray = np.maximum(weights, SMALLEST_WEIGHT)
    return floored.astype(np.float32)


def _starts(size: int, window: int, overlap: float) -> list[int]:
    if size <= window:
        return [-((window - size) // 2)]
    step = max(1, int(window * (1 - overlap)))
    num_windows = -(-(size - window) // step) + 1
    return [min(index * step, size - window) for index in range(num_windows)]


def _nnunet_starts(size: int, window: int, overlap: float) -> list[int]:
    if size <= window:
        return _starts(size, window, overlap)
    num_windows = int(np.ceil((size - window) / (window * (1 - overlap)))) + 1
    step = (size - window) / (num_windows - 1)
    return [int(np.round(step * index)) for index in range(num_windows)]  # halves go to even numbers
