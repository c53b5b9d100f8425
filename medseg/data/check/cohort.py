"""What cases say of each other: whatever departs from the others, whichever way they are.

A structure is compared with the same structure of the other cases. Nothing here knows names or anatomy, and with few
cases nothing is called unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from medseg.core.findings import Finding
from medseg.core.labels import LabelSchema
from medseg.data.check.facts import CaseFacts, StructureFacts
from medseg.data.check.placement import agreement
from medseg.data.check.remedies import found
from medseg.data.check.usual import MAD_TO_SIGMA, MIN_CASES, deviations

VOLUME_DEVIATIONS, SMALLEST_VOLUME_SCATTER = 4.0, 0.2
"""On the scale of natural logarithms: patients differ by a fifth, however alike a few may be."""

ABSURD_FACTOR, ABSURD_DEVIATIONS = 15.0, 3.0
"""A volume that is so many times the usual, or so small a part of it, need not be so far out among a few, unlike cases."""

SPREAD_DEVIATIONS, SMALLEST_SPREAD_SCATTER, SPREAD_FACTOR = 3.5, 0.1, 2.0
"""Of a structure's standard deviation along an axis, natural logarithm; and it must be so many times the usual."""

SMALLEST_SPREAD_MM = 2.0
"""A structure of one voxel has none."""

TISSUE_DEVIATIONS, SMALLEST_TISSUE_SCATTER_HU, TISSUE_HU = 8.0, 15.0, 200.0
"""Of the mean in a structure; and it must be so far from the usual, because contrast agent alone makes 100 HU."""

EXTRA_AIR, EXTRA_BLANK, WRONG_BLANK = 0.45, 0.3, 0.5
"""Parts of a structure that lie in air, or on background, beyond what is usual for it: a larynx holds air, and contours
of a gullet take some of the windpipe. From the last on the contours teach something wrong."""

OUTSIDE_SHARE, HABIT_SHARE = 0.15, 0.08
"""Part of a structure that lies beyond the CT; where so many cases of a dataset show that, whoever cut the images did
it on purpose, and no case is remarkable for it."""

UNRELATED, UNRELATED_CERTAINTY, SMALLEST_CONTRAST_HU = 0.4, 3.0, 40.0
"""Agreement of the structures' mean intensities with the usual (1: as usual, 0: unrelated), and how sure that must be;
contrast agent and calibration move soft tissues by some 40 HU against each other."""

Drawn = Sequence[StructureFacts | None]

Words = dict[int, str]
"""What is odd about a structure, by the number of the case."""


def findings_of_structures(cases: Sequence[CaseFacts], schema: LabelSchema) -> Iterator[Finding]:
    """Volume, shape and what lies below the contours, each structure against the same one of the other cases."""
    labelled = [case for case in cases if case.label is not None]
    for code, odd in RULES.items():
        told: dict[int, Words] = {}
        for place, name in enumerate(schema.names):
            drawn = [case.label.structures.get(name) if case.label else None for case in labelled]
            if sum(facts is not None for facts in drawn) >= MIN_CASES:
                for number, words in odd(drawn).items():
                    told.setdefault(number, {})[place] = f"{name} {words}"
        for number in sorted(told):
            label = labelled[number].label
            assert label is not None
            names = [schema.names[place] for place in told[number]]
            yield found(code, "warning", labelled[number].id, label.file, "; ".join(told[number].values()), names)


def findings_of_labels(cases: Sequence[CaseFacts], schema: LabelSchema) -> Iterator[Finding]:
    """Label maps that lie over the wrong places, or over another patient: bright structures are no longer bright.

    Only differences between a case's structures count, so that contrast agent and calibration do not.
    """
    labelled = [(case.id, case.label) for case in cases if case.label is not None]
    drawn = [[label.structures.get(name) for label in (label for _, label in labelled)] for name in schema.names]
    means = np.array([_values(structure, lambda facts: facts.mean_hu) for structure in drawn]).T
    means[:, np.isfinite(means).sum(axis=0) < MIN_CASES] = np.nan
    if not np.isfinite(means).any():
        return
    usual = np.array([_median(column) for column in means.T])
    scatter = np.array([MAD_TO_SIGMA * _median(np.abs(column)) for column in (means - usual).T])
    scatter = np.maximum(scatter, SMALLEST_CONTRAST_HU)
    fit = agreement(means[..., None], usual[:, None], scatter[:, None])
    odd = (fit.slope < UNRELATED) & ((1 - fit.slope) * fit.certainty > UNRELATED_CERTAINTY)
    for number in np.flatnonzero(odd[:, 0]):
        case, label = labelled[int(number)]
        message = "the contours do not fit the image: what is bright and dark in other cases is not so here"
        yield found("label.mismatch", "warning", case, label.file, message, list(label.structures))


def _median(values: Float[np.ndarray, " cases"]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def sizes(cases: Sequence[CaseFacts], schema: LabelSchema) -> dict[str, float]:
    """By case: the volume of its structures over the usual, the median of them."""
    logs = np.full((len(cases), len(schema.names)), np.nan)
    for number, case in enumerate(cases):
        for place, name in enumerate(schema.names):
            if case.label is not None and name in case.label.structures:
                logs[number, place] = np.log(case.label.structures[name].volume_ml)
    common = logs[:, np.isfinite(logs).sum(axis=0) >= MIN_CASES]
    relative = common - np.nanmedian(common, axis=0)
    known = np.isfinite(relative).any(axis=1)
    middle = np.nanmedian(relative[known], axis=1)
    return {cases[int(n)].id: float(np.exp(size)) for n, size in zip(np.flatnonzero(known), middle, strict=True)}


def habits(cases: Sequence[CaseFacts], schema: LabelSchema) -> Iterator[str]:
    """What so many cases have in common that none is remarkable for it, in words for people."""
    for name in schema.names:
        drawn = [case.label.structures[name] for case in cases if case.label and name in case.label.structures]
        count = sum(facts.outside_share > OUTSIDE_SHARE for facts in drawn)
        if count and _is_habit(count, len(drawn)):
            yield f"{name} goes on where the CT was cut away in {count} of {len(drawn)} cases: a habit, not told of each"


def _is_habit(count: int, num_cases: int) -> bool:
    return num_cases >= MIN_CASES and count / num_cases > HABIT_SHARE


def _values(drawn: Drawn, value: Callable[[StructureFacts], float | None]) -> Float[np.ndarray, " cases"]:
    """One number a case; NaN where there is none."""
    values = [None if facts is None else value(facts) for facts in drawn]
    return np.array([np.nan if number is None else number for number in values], dtype=np.float64)


def _volumes(drawn: Drawn) -> Words:
    volumes = _values(drawn, lambda facts: facts.volume_ml)
    scores, usual = deviations(np.log(volumes), SMALLEST_VOLUME_SCATTER), np.nanmedian(volumes)
    is_cut = _values(drawn, lambda facts: facts.is_cut) > 0  # by the edge of the scan: it may well be small
    absurd = (np.abs(np.log(volumes / usual)) > np.log(ABSURD_FACTOR)) & (np.abs(scores) > ABSURD_DEVIATIONS)
    odd = ((np.abs(scores) > VOLUME_DEVIATIONS) | absurd) & ~(is_cut & (volumes < usual))
    return {int(n): f"has {volumes[n]:.3g} ml, in the median case {usual:.3g} ml" for n in np.flatnonzero(odd)}


def _spreads(drawn: Drawn) -> Words:
    words: Words = {}
    for axis, direction in enumerate(("left to right", "back to front", "foot to head")):
        spreads = np.array([np.nan if facts is None else facts.spread_mm[axis] for facts in drawn])
        spreads = np.maximum(spreads, SMALLEST_SPREAD_MM)
        scores, usual = deviations(np.log(spreads), SMALLEST_SPREAD_SCATTER), np.nanmedian(spreads)
        for number in np.flatnonzero((scores > SPREAD_DEVIATIONS) & (spreads > SPREAD_FACTOR * usual)):
            words[int(number)] = f"spreads {spreads[number] / usual:.1f} times as far as usual from {direction}"
    return words


def _tissues(drawn: Drawn) -> Words:
    means = _values(drawn, lambda facts: facts.mean_hu)
    if np.isfinite(means).sum() < MIN_CASES:
        return {}
    scores, usual = deviations(means, SMALLEST_TISSUE_SCATTER_HU), np.nanmedian(means)
    odd = (np.abs(scores) > TISSUE_DEVIATIONS) & (np.abs(means - usual) > TISSUE_HU)
    return {int(n): f"has a mean of {means[n]:.0f} HU, in the median case {usual:.0f} HU" for n in np.flatnonzero(odd)}


def _airs(drawn: Drawn) -> Words:
    shares = _values(drawn, lambda facts: facts.air_share)
    odd = shares > np.nanmedian(shares) + EXTRA_AIR
    return {int(n): f"lies in air, {shares[n]:.0%} of it" for n in np.flatnonzero(odd)}


def _outsides(drawn: Drawn) -> Words:
    outside, blank = (_values(drawn, value) for value in (lambda f: f.outside_share, lambda f: f.blank_share))
    words = {int(n): f"lies on mere background, {blank[n]:.0%} of it" for n in np.flatnonzero(_is_blank(blank))}
    beyond = np.flatnonzero(outside > OUTSIDE_SHARE)
    if not _is_habit(len(beyond), int(np.isfinite(outside).sum())):
        words |= {int(n): f"goes on where the CT ends, {outside[n]:.0%} of it" for n in beyond}
    return words


def _is_blank(shares: Float[np.ndarray, " cases"]) -> np.ndarray:
    odd: np.ndarray = shares > np.nanmedian(shares) + EXTRA_BLANK
    return odd


RULES: dict[str, Callable[[Drawn], Words]] = {
    "label.volume": _volumes,
    "label.spread": _spreads,
    "label.tissue": _tissues,
    "label.air": _airs,
    "label.outside_image": _outsides,
}
"""By the code of what they find."""
