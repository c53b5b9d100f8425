"""Dice of channel numbers on the network's grid: the quick figure that training watches."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.shapes import IJK


def channel_dice(
    prediction: Integer[np.ndarray, IJK], reference: Integer[np.ndarray, IJK], annotated: Bool[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Dice of each channel, background included; NaN where it is not annotated, or absent in both."""
    num_channels = len(annotated)
    predicted = np.bincount(prediction.ravel(), minlength=num_channels)
    contoured = np.bincount(reference.ravel(), minlength=num_channels)
    common = np.bincount(reference[prediction == reference].ravel(), minlength=num_channels)
    total = (predicted + contoured).astype(np.float64)
    dice = np.full(num_channels, np.nan)
    known = annotated & (total > 0)
    dice[known] = 2 * common[known] / total[known]
    return dice
