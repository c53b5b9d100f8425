"""A place in a volume is an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from medseg.core.geometry import Shape3
from medseg.core.shapes import CIJK


@dataclass(frozen=True)
class PatchLocation:
    """A box of voxels. It may reach beyond the volume: readers pad what lies outside.

    Attributes:
        start_ijk: First voxel along each axis; negative where the box starts before the volume.
        shape_ijk: Number of voxels along each axis.
    """

    start_ijk: Shape3
    shape_ijk: Shape3

    @property
    def stop_ijk(self) -> Shape3:
        """First voxel beyond the box along each axis."""
        i, j, k = (start + size for start, size in zip(self.start_ijk, self.shape_ijk, strict=True))
        return i, j, k

    def to_slices(self) -> tuple[slice, slice, slice]:
        """Slices of the three spatial axes, for a box inside the volume."""
        i, j, k = (slice(start, stop) for start, stop in zip(self.start_ijk, self.stop_ijk, strict=True))
        return i, j, k

    def moved(self, by_ijk: Shape3) -> PatchLocation:
        """The same box further on."""
        i, j, k = (start + step for start, step in zip(self.start_ijk, by_ijk, strict=True))
        return PatchLocation((i, j, k), self.shape_ijk)

    def inside(self, shape_ijk: Shape3) -> PatchLocation:
        """The part of the box that lies in a volume of this shape."""
        start = [min(max(first, 0), size) for first, size in zip(self.start_ijk, shape_ijk, strict=True)]
        stop = [min(max(last, 0), size) for last, size in zip(self.stop_ijk, shape_ijk, strict=True)]
        i, j, k = (last - first for first, last in zip(start, stop, strict=True))
        return PatchLocation((start[0], start[1], start[2]), (i, j, k))

    def padding(self, shape_ijk: Shape3) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Voxels to add before and after each axis of :meth:`inside` to get the whole box."""
        inner = self.inside(shape_ijk)
        before = [
            min(first_in - first, size)
            for first_in, first, size in zip(inner.start_ijk, self.start_ijk, self.shape_ijk, strict=True)
        ]
        i, j, k = (
            (lead, size - lead - kept) for lead, size, kept in zip(before, self.shape_ijk, inner.shape_ijk, strict=True)
        )
        return i, j, k


def cut_out(
    array_CIJK: Shaped[np.ndarray, CIJK], place: PatchLocation, outside: Sequence[float]
) -> Shaped[np.ndarray, "channels i j k"]:
    """The voxels of a place; beyond the volume each channel has its ``outside``."""
    shape = (array_CIJK.shape[1], array_CIJK.shape[2], array_CIJK.shape[3])
    return surrounded(array_CIJK[(slice(None), *place.inside(shape).to_slices())], place, shape, outside)


def surrounded(
    inner_CIJK: Shaped[np.ndarray, CIJK], place: PatchLocation, shape_ijk: Shape3, outside: Sequence[float]
) -> Shaped[np.ndarray, "channels i j k"]:
    """A whole place from the part of it that lies in a volume of this shape; beyond, each channel has its ``outside``."""
    if inner_CIJK.shape[1:] == place.shape_ijk:
        return inner_CIJK.copy()
    patch = np.empty((len(inner_CIJK), *place.shape_ijk), inner_CIJK.dtype)
    for channel, value in zip(patch, outside, strict=True):
        channel[...] = value
    before = [pad[0] for pad in place.padding(shape_ijk)]
    target = tuple(slice(lead, lead + size) for lead, size in zip(before, inner_CIJK.shape[1:], strict=True))
    patch[(slice(None), *target)] = inner_CIJK
    return patch
