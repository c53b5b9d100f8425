"""Lesion-wise scores: how many of a structure's separate parts were found, and how many of those found are real."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from medseg.core.shapes import IJK

MIN_OVERLAP_VOXELS = 1
"""A lesion is found where so many of its voxels are predicted: any overlap counts, as in most challenges of the field
(LiTS, autoPET). Dice tells how well the found ones are drawn."""

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner belong to one lesion (26 neighbours)."""


@dataclass(frozen=True)
class LesionMatches:
    """Separate parts of a structure, counted.

    Attributes:
        num_lesions, num_found: In the reference, and those among them that the prediction overlaps.
        num_predicted, num_true: In the prediction, and those among them that the reference overlaps.
    """

    num_lesions: int
    num_found: int
    num_predicted: int
    num_true: int

    @property
    def sensitivity(self) -> float | None:
        """Share of lesions that were found, 0 to 1; None without lesions."""
        return self.num_found / self.num_lesions if self.num_lesions else None

    @property
    def precision(self) -> float | None:
        """Share of predicted lesions that are real, 0 to 1; None without predicted ones."""
        return self.num_true / self.num_predicted if self.num_predicted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both, 0 to 1; 0 where one side has no lesions, None where neither has."""
        if self.sensitivity is None and self.precision is None:
            return None
        if not self.sensitivity or not self.precision:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def match_lesions(
    prediction: Bool[np.ndarray, IJK],
    reference: Bool[np.ndarray, IJK],
    min_overlap_voxels: int = MIN_OVERLAP_VOXELS,
) -> LesionMatches:
    """Match the connected parts of two masks by their overlap.

    Args:
        prediction, reference: Masks, also empty ones.
        min_overlap_voxels: A part counts as found where the other mask covers at least so many of its voxels.
    """
    num_lesions, num_found = _covered_parts(reference, prediction, min_overlap_voxels)
    num_predicted, num_true = _covered_parts(prediction, reference, min_overlap_voxels)
    return LesionMatches(num_lesions, num_found, num_predicted, num_true)


def _covered_parts(mask: Bool[np.ndarray, IJK], other: Bool[np.ndarray, IJK], min_voxels: int) -> tuple[int, int]:
    """How many connected parts a mask has, and how many of them the other one covers by enough voxels."""
    parts: Integer[np.ndarray, IJK]
    parts, num_parts = ndimage.label(mask, TOUCHING)
    covered = np.bincount(parts[other], minlength=num_parts + 1)[1:]
    return num_parts, int(np.count_nonzero(covered >= min_voxels))
