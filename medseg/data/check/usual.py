"""What is usual among cases, robustly: medians, and how many deviations away something is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

MIN_CASES = 8
"""With fewer cases nothing is called unusual: a median absolute deviation of so few says little."""

MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: standard deviation over median absolute deviation."""


def deviations(values: Float[np.ndarray, " cases"], smallest: float) -> Float[np.ndarray, " cases"]:
    """Robust z-scores: distance from the median in standard deviations estimated from the median absolute deviation.

    Few cases know their scatter badly, so it is taken larger: by 2 / √n of itself.

    Args:
        values: One a case; NaN where a case has none.
        smallest: Standard deviation to assume at least.

    Returns:
        NaN where a case has no value; all 0 where fewer than :data:`MIN_CASES` have one.
    """
    known = np.isfinite(values)
    count = int(known.sum())
    if count < MIN_CASES:
        return np.where(known, 0.0, np.nan)
    distance = values - np.median(values[known])
    scatter = max(MAD_TO_SIGMA * float(np.median(np.abs(distance[known]))), smallest)
    scored: np.ndarray = distance / (scatter * (1 + 2 / np.sqrt(count)))
    return scored
