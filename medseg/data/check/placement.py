"""Where structures lie relative to each other, and how far a case departs from what the others agree on.

Cases have origins of their own, so only differences count: each case is moved onto the places that its structures have
in the median case. Nothing here knows anatomy; what is usual follows from the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medseg.data.check.usual import MAD_TO_SIGMA

NUM_ROUNDS = 5
"""Of moving cases onto the median and taking the median again; two settle it, but for gross outliers."""

SMALLEST_SCATTER_MM = 5.0
"""Of a structure's place: where fewer or better aligned cases scatter less, that is luck."""


@dataclass(frozen=True, eq=False)
class Placement:
    """What the cases agree on.

    Attributes:
        usual_mm: Place of each structure in the median case, R, A, S; NaN where too few cases show it.
        scatter_mm: Standard deviation of it over the cases, robustly, along each axis; NaN likewise.
        places_mm: Of each structure in each case, moved onto the median case; NaN where it is not drawn.
    """

    usual_mm: Float[np.ndarray, "structures 3"]
    scatter_mm: Float[np.ndarray, "structures 3"]
    places_mm: Float[np.ndarray, "cases structures 3"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far cases follow what is usual, along each axis.

    Attributes:
        slope: 1 as usual, 0 no relation, −1 the opposite.
        correlation: How well that slope describes all structures, −1 to 1.
        certainty: 1 over the slope's standard deviation.
        misfit: Mean squared deviation of the structures from the usual; 1 is usual.
        mirrored_misfit: The same from the usual with this axis turned round.
    """

    slope: Float[np.ndarray, "cases axes"]
    correlation: Float[np.ndarray, "cases axes"]
    certainty: Float[np.ndarray, "cases axes"]
    misfit: Float[np.ndarray, "cases axes"]
    mirrored_misfit: Float[np.ndarray, "cases axes"]


def agreement(
    values: Float[np.ndarray, "cases structures axes"],
    usual: Float[np.ndarray, "structures axes"],
    scatter: Float[np.ndarray, "structures axes"],
) -> Agreement:
    """How far the differences between a case's structures follow the usual ones, by weighted least squares.

    Args:
        values: Of each structure in each case; NaN where there is none. A constant added to a case changes nothing.
        usual: Medians over the cases; NaN where too few show a structure.
        scatter: Standard deviations over the cases.
    """
    present = np.isfinite(values) & np.isfinite(usual)
    weights = np.where(present, 1.0 / scatter**2, 0.0)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    here, there = (np.where(present, numbers, 0.0) for numbers in (values, usual[None]))
    here = here - (weights * here).sum(axis=1, keepdims=True) / total
    there = there - (weights * there).sum(axis=1, keepdims=True) / total
    power, own = ((weights * numbers**2).sum(axis=1) for numbers in (there, here))
    common = (weights * there * here).sum(axis=1)
    count = np.maximum(present.sum(axis=1), 1)
    return Agreement(
        slope=common / np.maximum(power, 1e-12),
        correlation=common / np.maximum(np.sqrt(power * own), 1e-12),
        certainty=np.sqrt(power),
        misfit=(power + own - 2 * common) / count,
        mirrored_misfit=(power + own + 2 * common) / count,
    )


def place(centres_mm: Float[np.ndarray, "cases structures 3"], min_cases: int) -> Placement:
    """Move all cases onto each other.

    Args:
        centres_mm: Of each structure in each case; NaN where it is not drawn.
        min_cases: With fewer, a structure has no usual place.
    """
    known = np.isfinite(centres_mm[..., 0]).sum(axis=0) >= min_cases
    centres = np.where(known[None, :, None], centres_mm, np.nan)
    shift = _median(centres, axis=1)
    for _ in range(NUM_ROUNDS):
        usual = _median(centres - shift[:, None], axis=0)
        shift = _median(centres - usual[None], axis=1)
    places = centres - shift[:, None]
    scatter = np.maximum(MAD_TO_SIGMA * _median(np.abs(places - usual[None]), axis=0), SMALLEST_SCATTER_MM)
    return Placement(usual, scatter, places)


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    """NaN where all are NaN, without a warning."""
    empty = np.isnan(values).all(axis=axis)
    filled = np.where(np.expand_dims(empty, axis), 0.0, values)
    middle: np.ndarray = np.where(empty, np.nan, np.nanmedian(filled, axis=axis))
    return middle
