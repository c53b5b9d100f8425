"""How much two masks have in common, and how much bigger one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.labels import IGNORED, LabelSchema
from medseg.core.shapes import IJK


def dice(prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK]) -> float:
    """2·|A∩B| / (|A|+|B|), 0 to 1, of two masks of which one at least is not empty."""
    common = np.count_nonzero(prediction & reference)
    return float(2 * common / (np.count_nonzero(prediction) + np.count_nonzero(reference)))


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels of one structure: in the prediction, in the reference, and in both."""

    num_predicted: int
    num_contoured: int
    num_common: int

    @property
    def dice(self) -> float:
        """2·|A∩B| / (|A|+|B|), 0 to 1; one of both at least is not empty."""
        return 2 * self.num_common / (self.num_predicted + self.num_contoured)

    @property
    def iou(self) -> float:
        """|A∩B| / |A∪B|, 0 to 1; one of both at least is not empty."""
        return self.num_common / (self.num_predicted + self.num_contoured - self.num_common)

    def volume_difference_ml(self, voxel_volume_ml: float) -> float:
        """Prediction minus reference [ml]: positive where too much was found."""
        return (self.num_predicted - self.num_contoured) * voxel_volume_ml


def count_overlaps(
    prediction: Integer[np.ndarray, IJK], reference: Integer[np.ndarray, IJK], num_structures: int
) -> list[OverlapCounts]:
    """Of the structures 1 to ``num_structures`` of two label maps, in one pass."""
    counts = np.zeros((3, num_structures + 1), dtype=np.int64)
    for predicted, contoured in zip(prediction, reference, strict=True):  # at once, bincount takes 8 bytes a voxel
        common = predicted[predicted == contoured]
        columns = (predicted.ravel(), contoured.ravel(), common)
        counts += [np.bincount(numbers, minlength=num_structures + 1) for numbers in columns]
    return [OverlapCounts(*of_structure) for of_structure in counts.T[1:].tolist()]


def channel_dice(
    prediction: Integer[np.ndarray, IJK],
    reference: Integer[np.ndarray, IJK],
    annotated: Bool[np.ndarray, " classes"],
    schema: LabelSchema,
) -> Float[np.ndarray, " classes"]:
    """Dice of each channel, background included; NaN where it is not annotated, or absent in both.

    One pass over the voxels for all channels: the figure that training watches on the network's grid.

    Args:
        prediction: Channel numbers.
        reference: Class numbers; ignored voxels count nowhere.
        annotated: Per channel, background first.
        schema: Says which channels a class belongs to.
    """
    membership, counts_as = schema.membership.astype(np.int64), schema.counts_as.astype(np.int64)
    pairs = reference.astype(np.int32) * schema.num_channels + prediction
    pairs = pairs[reference != IGNORED] if (reference == IGNORED).any() else pairs.ravel()
    voxels = np.bincount(pairs, minlength=membership.shape[0] * schema.num_channels)
    voxels = voxels.reshape(len(membership), schema.num_channels)
    predicted, contoured = voxels.sum(axis=0) @ counts_as, voxels.sum(axis=1) @ membership
    common = ((membership.T @ voxels) * counts_as.T).sum(axis=1)
    total = (predicted + contoured).astype(np.float64)
    scores = np.full(schema.num_channels, np.nan)
    known = annotated & (total > 0)
    scores[known] = 2 * common[known] / total[known]
    return scores
