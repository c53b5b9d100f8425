"""Images against each other: grids, orientation, where air lies, and which of them are the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import permutations, product

import numpy as np
from jaxtyping import Float

from medseg.core.findings import Finding, Level
from medseg.core.geometry import Spacing3
from medseg.data.check.facts import CaseFacts, ImageFacts
from medseg.data.check.intensities import NUM_BLOCKS
from medseg.data.check.remedies import found
from medseg.data.check.usual import MIN_CASES, deviations

SPACING_DEVIATIONS, SMALLEST_SPACING_SCATTER = 3.0, 0.1
"""Of the spacing along an axis, natural logarithm."""

EXTENT_DEVIATIONS, SMALLEST_EXTENT_SCATTER, SHORT_FACTOR = 4.0, 0.1, 0.35
"""Of the length of the scan along an axis, natural logarithm; and it must be so small a part of the usual."""

ODD_SPACING_FACTOR, WRONG_SPACING_FACTOR = 2.5, 5.0
"""Slices of half or double thickness are another protocol; from the first on that is worth a look, and from the second
it is another unit."""

SUSPECT_SPACING_FACTOR, SIZE_TOLERANCE = 1.6, 0.4
"""Another protocol leaves organs their size: where that changes with the spacing, within this part of it, less is odd."""

AIR_DEVIATIONS, SMALLEST_AIR_SCATTER_HU = 5.0, 10.0
"""Of where air lies in a CT."""

SAME_DISTANCE, DISTANCE_DEVIATIONS, SMALLEST_DISTANCE_SCATTER = 1e-4, 4.0, 0.5
"""1 − correlation of thumbnails below which two scans may be one (aligned heads of different patients: 0.02), and how
unusual that must be on the scale of natural logarithms: phantoms, and images registered to one, are all alike."""

SMALLEST_DISTANCE = 1e-7
"""What single precision can tell."""

TURNED_GAIN, TURNED_CORRELATION = 0.25, 0.75
"""Correlation with the usual thumbnail that a turned scan gains by being turned, and then has."""

AXES = ("left-right", "back-front", "foot-head")

Image = tuple[str, ImageFacts]
"""With the case it belongs to."""


def findings_of_scans(cases: Sequence[CaseFacts], sizes: Mapping[str, float]) -> Iterator[Finding]:
    """Each channel by itself, and duplicates among all of them.

    Args:
        cases: All.
        sizes: By case, how many times the usual volume its structures have.
    """
    modalities = dict.fromkeys(image.modality for case in cases for image in case.images)
    for modality in modalities:
        images = [(case.id, image) for case in cases for image in case.images if image.modality == modality]
        if len(images) >= MIN_CASES:
            yield from _grids(images, sizes)
            yield from _orientations(images)
            yield from _air_levels(images)
        yield from _near_duplicates(images)
    yield from _duplicates([(case.id, image) for case in cases for image in case.images])
    yield from _same_labels(cases)


def _grids(images: Sequence[Image], sizes: Mapping[str, float]) -> Iterator[Finding]:
    spacings, extents = (np.array([values(image) for _, image in images]) for values in (_spacing, _extent))
    odd_spacings = _column_scores(np.log(spacings), SMALLEST_SPACING_SCATTER)
    odd_extents = _column_scores(np.log(extents), SMALLEST_EXTENT_SCATTER)
    usual_spacing, usual_extent = np.median(spacings, axis=0), np.median(extents, axis=0)
    for number, (case, image) in enumerate(images):
        is_odd = np.abs(odd_spacings[number]) > SPACING_DEVIATIONS
        factors = spacings[number] / usual_spacing
        odd = np.flatnonzero(is_odd & (np.abs(np.log(factors)) > _least_factor(sizes.get(case), factors)))
        short = (odd_extents[number] < -EXTENT_DEVIATIONS) & (extents[number] < SHORT_FACTOR * usual_extent)
        if len(odd):
            told = ", ".join(f"{spacings[number, a]:.3g} mm {AXES[a]} (usual {usual_spacing[a]:.3g})" for a in odd)
            is_wrong = np.abs(np.log(factors)).max() >= np.log(WRONG_SPACING_FACTOR)
            level: Level = "error" if is_wrong else "warning"
            yield found("geometry.spacing_outlier", level, case, image.file, f"unusual spacing: {told}")
        elif short.any():
            told = ", ".join(
                f"{image.shape[a]} slices {AXES[a]}, {extents[number, a]:.0f} mm (usual {usual_extent[a]:.0f} mm)"
                for a in np.flatnonzero(short)
            )
            yield found("image.few_slices", "warning", case, image.file, f"a short scan: {told}")


def _least_factor(size: float | None, factors: Float[np.ndarray, " 3"]) -> float:
    """Logarithm of what a spacing must differ by: little, where the structures have grown or shrunk with it."""
    volume_factor = float(np.log(factors).sum())
    goes_with_it = size is not None and abs(np.log(size) - volume_factor) < SIZE_TOLERANCE * abs(volume_factor)
    return float(np.log(SUSPECT_SPACING_FACTOR if goes_with_it else ODD_SPACING_FACTOR))


def _spacing(image: ImageFacts) -> Spacing3:
    return image.spacing_mm


def _extent(image: ImageFacts) -> Spacing3:
    return image.extent_mm


def _column_scores(values: Float[np.ndarray, "cases 3"], smallest: float) -> Float[np.ndarray, "cases 3"]:
    return np.stack([deviations(column, smallest) for column in values.T], axis=1)


def _orientations(images: Sequence[Image]) -> Iterator[Finding]:
    thumbnails = np.array([image.thumbnail for _, image in images])
    usual = np.median(thumbnails, axis=0)
    usual /= np.linalg.norm(usual) or 1.0
    names, turns = zip(*_turns(usual), strict=True)
    likeness = thumbnails @ np.stack(turns, axis=1)
    plain = likeness[:, [not name for name in names]].max(axis=1)
    if np.median(plain) < TURNED_CORRELATION:
        return  # the scans show different parts of the body
    best = likeness.argmax(axis=1)
    for number in np.flatnonzero(likeness.max(axis=1) > np.maximum(TURNED_CORRELATION, plain + TURNED_GAIN)):
        case, image = images[int(number)]
        message = f"the image looks like the others once it is {names[best[number]]}"
        yield found("geometry.orientation", "warning", case, image.file, message)


def _turns(thumbnail: Float[np.ndarray, " blocks"]) -> Iterator[tuple[str, Float[np.ndarray, " blocks"]]]:
    """A thumbnail in all 48 orientations, with words for each.

    There are none for the right one and its mirror image: left and right look too much alike to be told apart.
    """
    blocks = thumbnail.reshape((NUM_BLOCKS,) * 3)
    for order, foot, back, left in product(permutations(range(3)), (1, -1), (1, -1), (1, -1)):
        words = ["turned onto another axis"] if order != (0, 1, 2) else []
        words += ["turned upside down"] * (foot < 0) + ["turned back to front"] * (back < 0)
        yield " and ".join(words), blocks.transpose(order)[::foot, ::back, ::left].ravel()


def _air_levels(images: Sequence[Image]) -> Iterator[Finding]:
    """Offsets too small to be wrong by themselves."""
    levels = np.array([np.nan if image.landmarks is None else image.landmarks.air_hu for _, image in images])
    if np.isfinite(levels).sum() < MIN_CASES:
        return
    usual = np.nanmedian(levels)
    for number in np.flatnonzero(np.abs(deviations(levels, SMALLEST_AIR_SCATTER_HU)) > AIR_DEVIATIONS):
        case, image = images[int(number)]
        if image.landmarks is not None and image.landmarks.is_hu:  # what is far off is told already
            message = f"air lies at {levels[number]:.0f} HU, in the median case at {usual:.0f} HU"
            yield found("image.hu_offset", "warning", case, image.file, message)


def _duplicates(images: Sequence[Image]) -> Iterator[Finding]:
    groups: dict[bytes, list[Image]] = {}
    for case, image in images:
        if not image.is_constant:
            groups.setdefault(image.digest, []).append((case, image))
    for group in groups.values():
        for case, image in group if len(group) > 1 else ():
            others = [other.file for _, other in group if other is not image]
            message = f"the same voxels as {', '.join(others[:3])}" + (" and others" if len(others) > 3 else "")
            yield found("image.duplicate", "error", case, image.file, message)


def _near_duplicates(images: Sequence[Image]) -> Iterator[Finding]:
    """Not the same voxels, but nearer than two patients come to each other: an offset, noise, or stored with loss."""
    thumbnails = np.array([image.thumbnail for _, image in images])
    digests, shapes = (_numbered([key(image) for _, image in images]) for key in (_digest, _shape))
    nearest, distances = [], []
    for number, (_, image) in enumerate(images):
        likeness = thumbnails @ image.thumbnail
        likeness[(digests == digests[number]) | (shapes != shapes[number])] = 0.0
        nearest.append(int(likeness.argmax()))
        distances.append(max(1.0 - float(likeness.max()), SMALLEST_DISTANCE))
    logs = np.log(distances)
    unusual = deviations(logs, SMALLEST_DISTANCE_SCATTER) < -DISTANCE_DEVIATIONS if len(logs) >= MIN_CASES else logs < 0
    for odd in np.flatnonzero(unusual & (np.array(distances) < SAME_DISTANCE)).tolist():
        case, image = images[odd]
        message = f"hardly to be told from {images[nearest[odd]][1].file}"
        yield found("image.near_duplicate", "warning", case, image.file, message)


def _digest(image: ImageFacts) -> Hashable:
    return image.digest


def _shape(image: ImageFacts) -> Hashable:
    return image.shape


def _numbered(keys: Sequence[Hashable]) -> np.ndarray:
    """The same number for the same key."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _same_labels(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    groups: dict[bytes, list[CaseFacts]] = {}
    for case in cases:
        if case.label is not None and case.label.structures:
            groups.setdefault(case.label.digest, []).append(case)
    for group in groups.values():
        images = {image.digest for case in group for image in case.images[:1]}
        for case in group if len(group) > 1 and len(images) > 1 else ():
            assert case.label is not None
            others = [other.id for other in group if other is not case]
            message = f"exactly the contours of {', '.join(others[:3])}, whose image is another"
            yield found("label.duplicate", "warning", case.id, case.label.file, message)
