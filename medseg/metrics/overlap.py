"""How much two masks have in common, and how much bigger one is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

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
