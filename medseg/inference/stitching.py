"""Joining the logits of overlapping windows: a weighted mean, kept as two running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation
from medseg.inference.runtime import Runtime
from medseg.inference.tiling import WindowRule, gaussian_weights


class Stitcher:
    """Sums weighted logits of windows over one volume, in the runtime's own arrays.

    Args:
        runtime: Whose arrays are summed.
        shape_ijk: Of the volume.
        window_ijk: Of the windows.
        rule: Who weighs their voxels.
    """

    def __init__(self, runtime: Runtime, shape_ijk: Shape3, window_ijk: Shape3, rule: WindowRule = "medseg") -> None:
        self.shape_ijk = shape_ijk
        self.weights = runtime.from_numpy(gaussian_weights(window_ijk, rule))
        self.sum_CIJK = runtime.from_numpy(np.zeros((runtime.num_outputs, *shape_ijk), np.float32))
        self.sum_of_weights_IJK = runtime.from_numpy(np.zeros(shape_ijk, np.float32))

    def add(self, place: PatchLocation, logits_CIJK: Any) -> None:
        """Add one window's logits; what reaches beyond the volume is dropped."""
        target = place.inside(self.shape_ijk).to_slices()
        source = tuple(
            slice(lead, size - trail)
            for (lead, trail), size in zip(place.padding(self.shape_ijk), place.shape_ijk, strict=True)
        )
        weights = self.weights[source]
        self.sum_CIJK[(slice(None), *target)] += logits_CIJK[(slice(None), *source)] * weights
        self.sum_of_weights_IJK[target] += weights

    def mean(self) -> Any:
        """The stitched logits, in place of the sums; every voxel must lie in a window."""
        self.sum_CIJK /= self.sum_of_weights_IJK
        return self.sum_CIJK
