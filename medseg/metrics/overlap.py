"""How much two masks have in common, and how much bigger one is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.shapes import IJK


def dice(prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK]) -> float:
    """2·|A∩B| / (|A|+|B|), 0 to 1, of two masks of which one at least is not empty."""
    common = np.count_nonzero(prediction & reference)
    return float(2 * common / (np.count_nonzero(prediction) + np.count_nonzero(reference)))


def volume_difference_ml(
    prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK], voxel_volume_ml: float
) -> float:
    """Prediction minus reference [ml]: positive where too much was found."""
    return (int(np.count_nonzero(prediction)) - int(np.count_nonzero(reference))) * voxel_volume_ml


def channel_dice(
    prediction: Integer[np.ndarray, IJK], reference: Integer[np.ndarray, IJK], annotated: Bool[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Dice of each channel number, background included; NaN where it is not annotated, or absent in both.

    One pass over the voxels for all channels: the figure that training watches on the network's grid.
    """
    num_channels = len(annotated)
    predicted = np.bincount(prediction.ravel(), minlength=num_channels)
    contoured = np.bincount(reference.ravel(), minlength=num_channels)
    common = np.bincount(reference[prediction == reference].ravel(), minlength=num_channels)
    total = (predicted + contoured).astype(np.float64)
    scores = np.full(num_channels, np.nan)
    known = annotated & (total > 0)
    scores[known] = 2 * common[known] / total[known]
    return scores
