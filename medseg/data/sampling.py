"""Where patches are cut: a patch's place follows from (seed, step, index) alone, whoever draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from medseg.core.case import PreparedCase
from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation

MAX_LOCATIONS = 10_000
"""Voxels kept a structure and case to centre patches on: enough that no place of an organ is missed."""


@dataclass(frozen=True)
class PatchRequest:
    """One patch of one step."""

    step: int
    index: int


@dataclass(frozen=True, eq=False)
class ForegroundVoxels:
    """Voxels of each structure of a case that a patch may be centred on.

    Attributes:
        by_channel: Channel number → indices ``(n, 3)``; structures without a voxel are left out.
    """

    by_channel: dict[int, Integer[np.ndarray, "voxels 3"]]

    @classmethod
    def of(cls, prepared: PreparedCase) -> ForegroundVoxels:
        """Find them; at most :data:`MAX_LOCATIONS` a structure, evenly spread."""
        if prepared.channels is None:
            return cls({})
        voxels: dict[int, np.ndarray] = {}
        flat = prepared.channels.ravel()
        inside = np.flatnonzero(flat)
        for channel in np.unique(flat[inside]):
            places = inside[flat[inside] == channel]
            kept = places[:: max(1, len(places) // MAX_LOCATIONS)]
            voxels[int(channel)] = np.stack(np.unravel_index(kept, prepared.channels.shape), axis=1).astype(np.int32)
        return cls(voxels)


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """A random generator that depends on these numbers alone."""
    return np.random.default_rng([seed, *numbers])


def case_of(request: PatchRequest, seed: int, batch_size: int, num_cases: int) -> int:
    """The case of a patch: every case once before any comes again, in an order drawn anew each time round."""
    place = request.step * batch_size + request.index
    order = generator(seed, 1, place // num_cases).permutation(num_cases)
    return int(order[place % num_cases])


def patch_location(
    rng: np.random.Generator,
    foreground: ForegroundVoxels,
    shape_ijk: Shape3,
    patch_ijk: Shape3,
    foreground_fraction: float,
) -> PatchLocation:
    """Draw a place for a patch.

    Args:
        rng: Of this patch.
        foreground: Voxels to centre on.
        shape_ijk: Of the prepared case.
        patch_ijk: Of the patch. Along an axis where the case is smaller, the case is centred in it.
        foreground_fraction: Probability of centring on a structure (drawn uniformly) rather than anywhere.
    """
    if foreground.by_channel and rng.random() < foreground_fraction:
        channels = sorted(foreground.by_channel)
        voxels = foreground.by_channel[channels[int(rng.integers(len(channels)))]]
        centre = voxels[int(rng.integers(len(voxels)))]
        start = [int(middle) - size // 2 for middle, size in zip(centre, patch_ijk, strict=True)]
    else:
        start = [int(rng.integers(max(1, have - size + 1))) for have, size in zip(shape_ijk, patch_ijk, strict=True)]
    i, j, k = (
        -((size - have) // 2) if have <= size else min(max(first, 0), have - size)
        for first, have, size in zip(start, shape_ijk, patch_ijk, strict=True)
    )
    return PatchLocation((i, j, k), patch_ijk)
