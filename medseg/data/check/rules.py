"""What one case's facts say by themselves, without looking at the others."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.core.case import CaseRecord
from medseg.core.findings import Finding, Level
from medseg.core.labels import LabelSchema
from medseg.data.check.facts import AIR_HU, CaseFacts, ImageFacts, LabelFacts
from medseg.data.check.remedies import found

NUM_ENOUGH_SLICES = 8
"""Along each axis: with fewer there is little for a network to see in three dimensions."""

MIN_CT_RANGE_HU = 300.0
"""From air to bone a CT spans thousands of HU, and even a piece of soft tissue with some bone and fat several hundred."""

MAX_CT_HU, MAX_95_PERCENTILE_HU = 40_000.0, 2000.0
"""Metal in extended scales ends at 30 710 HU; and no more than a few percent of a body are as dense as 2000 HU."""

MIN_SCALED_HU = -1250.0
"""Reconstruction undershoots air by some 100 HU, in a few voxels; padding apart, nothing lies lower."""

FILLED_SHARE, MAX_FLOOR_HU = 0.1, -850.0
"""A CT in which so many voxels have its smallest value was filled or cut off there, and that should be air or below."""

TISSUE_HU = (-300.0, 300.0)
"""Where most of a body without air lies."""

MAX_VOID_SHARE = 0.05
"""Part of a structure that may lie on cut-away background without a word."""

MAX_BLANK_SHARE = 0.85
"""Part of a structure that may have the background's value anywhere: in a windpipe, half may be clipped to it."""

WRONG_VOID_SHARE = 0.5
"""From here on the contours teach something wrong."""


def findings_of_case(facts: CaseFacts, record: CaseRecord, schema: LabelSchema) -> Iterator[Finding]:
    """All of one case."""
    yield from facts.problems
    for image in facts.images:
        yield from _of_image(facts.id, image)
    if facts.label is not None:
        yield from _of_values(facts.id, facts.label, record, schema)
        yield from _outside(facts.id, facts.label)


def _of_image(case: str, image: ImageFacts) -> Iterator[Finding]:
    if image.is_constant:
        message = f"{image.commonest_share:.2%} of the voxels have the value {image.commonest:g}: nothing is in it"
        yield found("image.constant", "error", case, image.file, message)
        return
    if min(image.shape) < NUM_ENOUGH_SLICES:
        message = f"only {min(image.shape)} slices along an axis: shape {image.shape} (right, anterior, superior)"
        yield found("image.few_slices", "warning", case, image.file, message)
    if image.is_ct:
        yield from _scale(case, image)


def _scale(case: str, image: ImageFacts) -> Iterator[Finding]:
    reason = _wrong_scale(image)
    if reason:
        message = f"this is not HU: {reason} (values {image.low:g} to {image.high:g})"
        yield found("image.hu_scale", "error", case, image.file, message)
    elif image.landmarks is not None and not image.landmarks.is_hu:
        message = (
            f"air lies at {image.landmarks.air_hu:.0f} and soft tissue at {image.landmarks.tissue_hu:.0f}, expected "
            f"−1000 and about 0: everything is shifted by about {image.landmarks.air_hu - AIR_HU:.0f} HU"
        )
        yield found("image.hu_offset", "error", case, image.file, message)


def _wrong_scale(image: ImageFacts) -> str:
    """Why the values cannot be HU; empty where they can."""
    lowest, _, _, percentile_95, percentile_99_9 = image.percentiles
    if percentile_99_9 - lowest < MIN_CT_RANGE_HU and image.high - image.low < 2 * MIN_CT_RANGE_HU:
        kind = "8-bit grey values" if image.high - image.low > 100 else "normalised values"
        return f"a range of {image.high - image.low:.4g}, as {kind} have"
    if image.high > MAX_CT_HU or percentile_95 > MAX_95_PERCENTILE_HU:
        return "too many values are too large, as where negative numbers were read as unsigned"
    return "" if image.landmarks is not None else _wrong_without_landmarks(image)


def _wrong_without_landmarks(image: ImageFacts) -> str:
    """The same, where air and tissue do not lie as far apart as in HU; a piece of a body may hold no air."""
    if image.low_share >= FILLED_SHARE and image.low > MAX_FLOOR_HU:
        return f"{image.low_share:.0%} of the voxels have the smallest value, which is far above air"
    if image.percentiles[0] < MIN_SCALED_HU:
        return "much lies below air"
    if not TISSUE_HU[0] <= image.tissue_mode <= TISSUE_HU[1]:
        return f"neither air at −1000 nor soft tissue near 0; most lies at {image.tissue_mode:.0f}"
    return ""


def _of_values(case: str, label: LabelFacts, record: CaseRecord, schema: LabelSchema) -> Iterator[Finding]:
    if label.strange_values:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(label.strange_values.items())[:5])
        message = f"expected the values {sorted(int(value) for value in schema.class_values)}, found also {shown}"
        yield found("label.value", "error", case, label.file, message)
    listed = set(schema.names if record.annotated is None else record.annotated)
    if empty := [name for name in schema.names if name in listed and name not in label.structures]:
        message = f"listed as annotated, but not drawn: {', '.join(empty)}"
        yield found("label.empty", "warning", case, label.file, message, empty)
    if unlisted := [name for name in label.structures if name not in listed]:
        message = f"drawn, but not listed as annotated: {', '.join(unlisted)}"
        yield found("label.unlisted", "warning", case, label.file, message, unlisted)


def _outside(case: str, label: LabelFacts) -> Iterator[Finding]:
    """Contours on what is background and nothing else."""
    shares = {}
    for name, facts in label.structures.items():
        if facts.void_share > MAX_VOID_SHARE or facts.blank_share > MAX_BLANK_SHARE:
            shares[name] = max(facts.void_share, facts.blank_share)
    if shares:
        told = ", ".join(f"{name} ({share:.0%} of it)" for name, share in shares.items())
        level: Level = "error" if max(shares.values()) >= WRONG_VOID_SHARE else "warning"
        message = f"drawn where the image holds nothing but background: {told}"
        yield found("label.outside_image", level, case, label.file, message, list(shares))
