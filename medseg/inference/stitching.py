"""Joining the logits of overlapping windows: a weighted mean, kept as two running sums, plane by plane as they are finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.patch import PatchLocation
from medseg.inference.runtime import Runtime
from medseg.inference.tiling import WindowGrid, gaussian_weights

SMALLEST_SUM = 1e-30
"""Below any sum of weights: a voxel that no window covers is divided by this, not by 0, and its logits stay 0."""


class Stitcher:
    """Sums weighted logits of windows in the runtime's own arrays, only of the planes that are not finished.

    These planes follow each other along the walked axis, and there are never more of them than a window is deep: plane ``p``
    is kept at place ``p % num_planes``, and the place of a finished plane is taken by the one that comes into reach.

    Args:
        runtime: Whose arrays are summed.
        grid: Of the windows.
    """

    def __init__(self, runtime: Runtime, grid: WindowGrid) -> None:
        self.runtime, self.grid, self.axis = runtime, grid, grid.walk_axis
        self.num_planes, self.next_plane = grid.num_unfinished_planes, 0
        self.weights = runtime.from_numpy(gaussian_weights(grid.window_ijk, grid.rule))
        shape = list(grid.shape_ijk)
        shape[self.axis] = self.num_planes
        self.sum_CIJK = runtime.from_numpy(np.zeros((runtime.num_outputs, *shape), np.float32))
        self.sum_of_weights_IJK = runtime.from_numpy(np.zeros(shape, np.float32))

    def add(self, place: PatchLocation, logits_CIJK: Any) -> None:
        """Add one window's logits; what reaches beyond the volume is dropped. No voxel of it may be finished."""
        shape_ijk = self.grid.shape_ijk
        target = list(place.inside(shape_ijk).to_slices())
        source = [
            slice(lead, size - trail)
            for (lead, trail), size in zip(place.padding(shape_ijk), place.shape_ijk, strict=True)
        ]
        first, depth = target[self.axis].start, target[self.axis].stop - target[self.axis].start
        lead, slot = source[self.axis].start, first % self.num_planes
        until_end = min(depth, self.num_planes - slot)  # the others begin again at the first place
        for begin, size, at in ((0, until_end, slot), (until_end, depth - until_end, 0)):
            if size:
                source[self.axis], target[self.axis] = slice(lead + begin, lead + begin + size), slice(at, at + size)
                weights = self.weights[tuple(source)]
                self.sum_CIJK[(slice(None), *target)] += logits_CIJK[(slice(None), *source)] * weights
                self.sum_of_weights_IJK[tuple(target)] += weights

    def finish(self, until: int) -> Iterator[tuple[int, Float[np.ndarray, "logits rows columns"]]]:
        """Give the mean logits of each plane before ``until``, with its number, and forget it.

        Rows and columns are the other two axes in their order. Where no window lies, all logits are 0.
        """
        for plane in range(self.next_plane, until):
            at: list[slice | int] = [slice(None)] * 3
            at[self.axis] = plane % self.num_planes
            sums, weights = self.sum_CIJK[(slice(None), *at)], self.sum_of_weights_IJK[tuple(at)]
            mean = self.runtime.to_numpy(sums / weights.clip(SMALLEST_SUM))
            sums[...] = 0.0
            weights[...] = 0.0
            self.next_plane = plane + 1
            yield plane, mean
