"""One pass over the voxels of a label map: where each structure lies, how large it is, and what the image shows there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.volume import LabelMap
from medseg.data.check.facts import ImageFacts, LabelFacts, StructureFacts
from medseg.data.check.intensities import KJI, slabs

AIR_MARGIN_HU = 150.0
"""Voxels up to this much above air count as air: noise, and a little of what lies beside."""

BODY_BELOW_TISSUE_HU = 500.0
"""Voxels down to this much below soft tissue count as body: between air and tissue."""

CUT_AWAY = 0.15
"""A slice with less than this part of the body's usual cross-section shows no body: what is left of the CT there was
kept around a contour, or is a table."""

USUAL_PERCENTILE = 75.0
"""Of the cross-sections of one scan: what is usual, even where half of the scan is empty."""

BLANK_SHARE = 0.1
"""Part of an image that its commonest value has at least where it is a background that somebody filled in."""

STRANGE, UNDECIDED = -1, -2
"""Instead of a class number: a value that the schema does not know; its ignore label."""

FEATURES = ("voxels", "i", "j", "k", "ii", "jj", "kk", "edge", "value", "air", "blank")
"""Summed over the voxels of each class."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The image that a label map is laid on.

    Attributes:
        voxels: Axes in S, A, R order.
        facts: What was measured of it.
    """

    voxels: Shaped[np.ndarray, KJI]
    facts: ImageFacts

    @property
    def is_hu(self) -> bool:
        """Whether its values are HU."""
        return self.facts.landmarks is not None and self.facts.landmarks.is_hu

    @property
    def blank(self) -> float:
        """The value that somebody filled its background with; NaN where nobody did."""
        return self.facts.low if self.facts.low_share >= BLANK_SHARE else float("nan")

    @property
    def air_below(self) -> float:
        """Values below are air [HU]; NaN where the image shows no scale of CT."""
        marks = self.facts.landmarks
        return marks.air_hu + AIR_MARGIN_HU if marks else float("nan")

    @property
    def body_above(self) -> float:
        """Values above are body [HU]; NaN where the image shows no scale of CT."""
        marks = self.facts.landmarks
        return marks.tissue_hu - BODY_BELOW_TISSUE_HU if marks else float("nan")


class _Sums:
    """What is added up, slab by slab."""

    def __init__(self, num_classes: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.features = np.zeros((len(FEATURES), num_classes))
        self.planes, self.blank_planes = np.zeros((2, num_classes, shape[0]))
        self.areas = np.zeros(shape[0])
        self.is_flat = np.zeros(shape[0], bool)

    def add(self, numbers: np.ndarray, places_KJI: tuple[np.ndarray, ...]) -> None:
        """Class numbers of drawn voxels, and where they are."""
        k, j, i = places_KJI
        edge = np.zeros(len(numbers), bool)
        for place, size in zip(places_KJI, self.shape, strict=True):
            edge |= (place == 0) | (place == size - 1)
        self._add(0, numbers, (None, i, j, k, i * i, j * j, k * k, edge))
        self.planes += self._in_planes(numbers, k)

    def add_ground(self, numbers: np.ndarray, k: np.ndarray, values: np.ndarray, ground: Ground) -> None:
        """What the image has under them."""
        is_blank = values == ground.blank
        self._add(8, numbers, (values, values < ground.air_below, is_blank))
        self.blank_planes += self._in_planes(numbers[is_blank], k[is_blank])

    def _in_planes(self, numbers: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.bincount(numbers * self.shape[0] + k, minlength=self.planes.size).reshape(self.planes.shape)

    def _add(self, first: int, numbers: np.ndarray, weights: tuple[np.ndarray | None, ...]) -> None:
        for row, weight in enumerate(weights, start=first):
            self.features[row] += np.bincount(numbers, weights=weight, minlength=self.features.shape[1])


def measure_label(label: LabelMap, schema: LabelSchema, file: str, ground: Ground | None) -> LabelFacts:
    """Look at every voxel of a label map once.

    Args:
        label: As read.
        schema: Of the dataset.
        file: As the dataset names it.
        ground: The image on the same grid; None where there is none.
    """
    labels_KJI = label.geometry.axes.to_canonical(label.array).T
    lookup = _lookup(schema, int(labels_KJI.max()))
    counts = np.zeros(len(lookup), np.int64)
    sums = _Sums(len(schema.class_values), labels_KJI.shape)
    digest = hashlib.sha256(repr(labels_KJI.shape).encode())
    for first, slab in slabs(labels_KJI):
        digest.update(slab.astype("<u2").tobytes())
        drawn = np.flatnonzero(slab)
        values = slab.ravel()[drawn]
        counts += np.bincount(values, minlength=len(counts))
        is_known = lookup[values] >= 0
        drawn, numbers = drawn[is_known], lookup[values[is_known]]
        k, j, i = np.unravel_index(drawn, slab.shape)
        k += first
        sums.add(numbers, (k, j, i))
        if ground is not None:
            piece = np.ascontiguousarray(ground.voxels[first : first + len(slab)])
            sums.add_ground(numbers, k, piece.ravel()[drawn], ground)
            here = slice(first, first + len(slab))
            sums.areas[here] = np.count_nonzero(piece > ground.body_above, axis=(1, 2))
            sums.is_flat[here] = piece.min(axis=(1, 2)) == piece.max(axis=(1, 2))
    strange = {int(value): int(counts[value]) for value in np.flatnonzero(counts) if lookup[value] == STRANGE}
    return LabelFacts(file, digest.digest(), strange, _structures(schema, sums, label.geometry.canonical, ground))


def _lookup(schema: LabelSchema, highest: int) -> np.ndarray:
    """Class number of each value."""
    lookup = np.full(max(highest, int(schema.class_values.max()), schema.ignore_value or 0) + 1, STRANGE)
    lookup[schema.class_values] = np.arange(len(schema.class_values))
    if schema.ignore_value is not None:
        lookup[schema.ignore_value] = UNDECIDED
    return lookup


def _structures(schema: LabelSchema, sums: _Sums, grid: Geometry, ground: Ground | None) -> dict[str, StructureFacts]:
    """Of the structures that are drawn; where they are regions, a class counts for several."""
    belongs = schema.membership.astype(np.float64)
    features = sums.features @ belongs
    cut_away = is_cut_away(np.where(sums.is_flat, 0.0, sums.areas)) | sums.is_flat
    empty = np.where(sums.is_flat, sums.planes, sums.blank_planes)  # whatever the one value of a plane is
    outside, void = ((planes @ cut_away) @ belongs for planes in (sums.planes, empty))
    found = {}
    for channel, name in enumerate(schema.names, start=1):
        values = dict(zip(FEATURES, features[:, channel], strict=True))
        count = values["voxels"]
        if count == 0:
            continue
        centre = np.array([values[axis] for axis in "ijk"]) / count
        squares = np.array([values[axis] for axis in ("ii", "jj", "kk")]) / count
        spread = np.sqrt(np.maximum(squares - centre**2, 0)) * grid.spacing_ijk_mm
        x, y, z = (grid.affine_ras @ np.append(centre, 1.0))[:3].tolist()
        found[name] = StructureFacts(
            volume_ml=float(count) * grid.voxel_volume_ml,
            centre_mm=(x, y, z),
            spread_mm=(float(spread[0]), float(spread[1]), float(spread[2])),
            is_cut=bool(values["edge"] > 0),
            air_share=float(values["air"] / count),
            blank_share=float(values["blank"] / count),
            outside_share=float(outside[channel] / count),
            void_share=float(void[channel] / count),
            mean_hu=float(values["value"] / count) if ground is not None and ground.is_hu else None,
        )
    return found


def is_cut_away(areas: Float[np.ndarray, " planes"]) -> Bool[np.ndarray, " planes"]:
    """Planes that show no body, though others do.

    Args:
        areas: Of the body in each plane, in any unit.
    """
    filled = areas[areas > 0]
    if len(filled) == 0:
        return np.zeros(len(areas), bool)
    usual: np.ndarray = areas < CUT_AWAY * np.percentile(filled, USUAL_PERCENTILE)
    return usual
