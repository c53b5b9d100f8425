"""Where patches are cut: a patch's place follows from (seed, step, index) alone, whoever draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from medseg.core.case import CompactCase, PreparedCase
from medseg.core.geometry import Shape3
from medseg.core.labels import IGNORED
from medseg.core.patch import PatchLocation

MAX_LOCATIONS = 10_000
"""Voxels kept a class and case to centre patches on: enough that no place of an organ is missed."""


@dataclass(frozen=True)
class PatchRequest:
    """One patch of one step."""

    step: int
    index: int


@dataclass(frozen=True, eq=False)
class ForegroundVoxels:
    """Voxels of a case that a patch may be centred on.

    Attributes:
        by_class: Class number → indices ``(n, 3)``; classes without a voxel, background and ignored ones are left out.
        decided: Indices ``(n, 3)`` of voxels that are not ignored; None where any place will do.
    """

    by_class: dict[int, Integer[np.ndarray, "voxels 3"]]
    decided: Integer[np.ndarray, "decided 3"] | None = None

    @classmethod
    def of(cls, prepared: PreparedCase | CompactCase) -> ForegroundVoxels:
        """Find them; at most :data:`MAX_LOCATIONS` a class, evenly spread."""
        if prepared.classes is None:
            return cls({})
        shape, flat = prepared.classes.shape, prepared.classes.ravel()
        inside = np.flatnonzero(flat > 0)
        inside = inside[np.argsort(flat[inside], kind="stable")]
        numbers, first = np.unique(flat[inside], return_index=True)
        ends = [*first[1:], len(inside)]
        voxels = {
            int(number): _spread(inside[start:end], shape)
            for number, start, end in zip(numbers, first, ends[: len(numbers)], strict=True)
        }
        is_decided = flat != IGNORED
        some_are_not = is_decided.any() and not is_decided.all()
        return cls(voxels, _spread(np.flatnonzero(is_decided), shape) if some_are_not else None)


def _spread(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    kept = places[:: max(1, -(-len(places) // MAX_LOCATIONS))]
    small = max(shape) <= np.iinfo(np.int16).max
    return np.stack(np.unravel_index(kept, shape), axis=1).astype(np.int16 if small else np.int32)


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
        foreground_fraction: Probability of centring on a class (drawn uniformly) rather than anywhere. Where voxels are
            ignored, "anywhere" is around one that is not, as in nnU-Net: a patch of ignored voxels teaches nothing.
    """
    voxels = foreground.decided
    if foreground.by_class and rng.random() < foreground_fraction:
        numbers = sorted(foreground.by_class)
        voxels = foreground.by_class[numbers[int(rng.integers(len(numbers)))]]
    if voxels is not None:
        centre = voxels[int(rng.integers(len(voxels)))]
        start = [int(middle) - size // 2 for middle, size in zip(centre, patch_ijk, strict=True)]
    else:
        start = [int(rng.integers(max(1, have - size + 1))) for have, size in zip(shape_ijk, patch_ijk, strict=True)]
    i, j, k = (
        -((size - have) // 2) if have <= size else min(max(first, 0), have - size)
        for first, have, size in zip(start, shape_ijk, patch_ijk, strict=True)
    )
    return PatchLocation((i, j, k), patch_ijk)
