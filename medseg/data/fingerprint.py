"""What a planner must know of the training cases, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from medseg.core.case import Case
from medseg.core.geometry import Shape3, Spacing3
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK

MAX_INTENSITIES_PER_CASE = 10_000
"""Foreground voxels kept a case for percentiles, as in nnU-Net: 200 cases give 2 M numbers, exact to far below 1 HU."""

MAX_INTENSITIES_PER_STRUCTURE = 1_000
"""The same for the percentiles of each structure by itself, which only people read."""

MAX_THICKNESSES = 25
"""Cases in which a structure is measured: the median of so many patients lies within a few per cent of that of all."""

MAX_EDGE_VOXELS = 64
"""Structures with a longer edge are thinned before they are measured: of a liver, a few per cent are exact enough."""


@dataclass(frozen=True)
class ChannelIntensities:
    """Intensities inside the structures, over all training cases (units of the modality)."""

    percentile_00_5: float
    percentile_99_5: float
    mean: float
    std: float


@dataclass(frozen=True)
class StructureMeasure:
    """One structure over the cases where it was found.

    Attributes:
        num_found: Cases with at least one voxel of it.
        median_thickness_mm: Median diameter of the largest ball that fits inside; None where it was never found.
        percentiles: 0.5, 50 and 99.5 percentile of each image channel inside it (units of the modality).
    """

    num_found: int
    median_thickness_mm: float | None
    percentiles: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Fingerprint:
    """The training cases in numbers; axes in R, A, S order.

    Attributes:
        shapes: Of each case [voxels].
        spacings_mm: Of each case.
        channels: Intensities of each image channel inside the structures.
        num_annotated: Cases in which somebody looked for each structure.
        median_volume_ml: Of each structure over the cases where it was found; None where it never was.
        structures: More of each structure.
        left_right: Structures that are each other's mirror image.
    """

    shapes: tuple[Shape3, ...]
    spacings_mm: tuple[Spacing3, ...]
    channels: tuple[ChannelIntensities, ...]
    num_annotated: dict[str, int]
    median_volume_ml: dict[str, float | None]
    structures: dict[str, StructureMeasure] = field(default_factory=dict)
    left_right: tuple[tuple[str, str], ...] = ()


@dataclass
class _Found:
    """What was seen of one structure so far."""

    volumes_ml: list[float] = field(default_factory=list)
    thicknesses_mm: list[float] = field(default_factory=list)
    intensities: list[Float[np.ndarray, "channels voxels"]] = field(default_factory=list)

    def measure(self) -> StructureMeasure:
        percentiles: tuple[tuple[float, float, float], ...] = ()
        if self.intensities:
            values = np.percentile(np.concatenate(self.intensities, axis=1), [0.5, 50.0, 99.5], axis=1)
            percentiles = tuple((float(low), float(middle), float(high)) for low, middle, high in values.T)
        thickness = float(np.median(self.thicknesses_mm)) if self.thicknesses_mm else None
        return StructureMeasure(len(self.volumes_ml), thickness, percentiles)


def fingerprint(cases: Iterable[Case], schema: LabelSchema) -> Fingerprint:
    """Measure the training cases, one at a time.

    Args:
        cases: With labels; at least one.
        schema: The dataset's structures.
    """
    shapes: list[Shape3] = []
    spacings: list[Spacing3] = []
    intensities: list[np.ndarray] = []
    annotated = np.zeros(schema.num_channels, dtype=np.int64)
    found = {name: _Found() for name in schema.names}
    for number, case in enumerate(cases):
        canonical = case.image.geometry.canonical
        shapes.append(canonical.shape_ijk)
        spacings.append(canonical.spacing_ijk_mm)
        rng = np.random.default_rng(number)
        intensities.append(_foreground_intensities(case, schema, rng))
        annotated += case.annotated
        for name, box, mask in _masks(case, schema):
            _add(found[name], case, box, mask, rng)
    return Fingerprint(
        shapes=tuple(shapes),
        spacings_mm=tuple(spacings),
        channels=tuple(_summary(values) for values in np.concatenate(intensities, axis=1)),
        num_annotated={name: int(count) for name, count in zip(schema.names, annotated[1:], strict=True)},
        median_volume_ml={
            name: float(np.median(seen.volumes_ml)) if seen.volumes_ml else None for name, seen in found.items()
        },
        structures={name: seen.measure() for name, seen in found.items()},
        left_right=_pairs(schema),
    )


def thickness_mm(mask: Bool[np.ndarray, IJK], spacing_ijk_mm: Spacing3) -> float:
    """Diameter of the largest ball that fits into a structure [mm].

    Args:
        mask: The structure, at least one voxel; what lies beyond the array counts as outside.
        spacing_ijk_mm: Of its voxels.
    """
    from scipy.ndimage import distance_transform_edt

    step = [-(-size // MAX_EDGE_VOXELS) for size in mask.shape]
    thinned = np.pad(mask[:: step[0], :: step[1], :: step[2]], 1)
    if not thinned.any():  # scattered voxels may fall between those that were kept
        thinned, step = np.pad(mask, 1), [1, 1, 1]
    spacing = np.array(spacing_ijk_mm) * step
    # From the centre of the innermost voxel to the centre of the nearest one outside: half a voxel too far at each end.
    distance = float(distance_transform_edt(thinned, sampling=spacing).max())
    return 2 * distance - float(spacing.min())


def _masks(case: Case, schema: LabelSchema) -> Iterator[tuple[str, tuple[slice, slice, slice], np.ndarray]]:
    """Each structure of a case with its box and its mask in there; structures without a voxel are left out."""
    if case.label is None:
        return
    from scipy.ndimage import find_objects

    labels = case.label.array
    boxes = find_objects(labels, max_label=int(schema.class_values.max()))
    for structure in schema.structures:
        own = [boxes[value - 1] for value in structure.reference_values if boxes[value - 1] is not None]
        if own:
            i, j, k = (slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*own, strict=True))
            yield structure.name, (i, j, k), np.isin(labels[i, j, k], list(structure.reference_values))


def _add(seen: _Found, case: Case, box: tuple[slice, slice, slice], mask: np.ndarray, rng: np.random.Generator) -> None:
    inside = np.flatnonzero(mask)
    seen.volumes_ml.append(len(inside) * case.image.geometry.voxel_volume_ml)
    if len(seen.thicknesses_mm) < MAX_THICKNESSES:
        seen.thicknesses_mm.append(thickness_mm(mask, case.image.geometry.spacing_ijk_mm))
    if len(inside) > MAX_INTENSITIES_PER_STRUCTURE:
        inside = rng.choice(inside, MAX_INTENSITIES_PER_STRUCTURE, replace=False)
    channels = case.image.array[:, *box].reshape(len(case.image.array), -1)
    seen.intensities.append(channels[:, inside].astype(np.float32))


def _foreground_intensities(case: Case, schema: LabelSchema, rng: np.random.Generator) -> np.ndarray:
    """Intensities in the structures, ``(channels, voxels)``; of the whole image where nothing is labelled."""
    inside = np.empty(0, np.int64)
    if case.label is not None:
        inside = np.flatnonzero(case.label.array)
        if schema.ignore_value is not None:
            inside = inside[case.label.array.ravel()[inside] != schema.ignore_value]
    if len(inside) == 0:
        inside = np.arange(case.image.geometry.num_voxels)
    if len(inside) > MAX_INTENSITIES_PER_CASE:
        inside = rng.choice(inside, MAX_INTENSITIES_PER_CASE, replace=False)
    flat = case.image.array.reshape(len(case.image.array), -1)
    return flat[:, inside].astype(np.float32)


def _pairs(schema: LabelSchema) -> tuple[tuple[str, str], ...]:
    """Structures that change places when the patient is mirrored, each pair once."""
    channels = schema.mirrored_channels
    pairs = [(channel - 1, mirrored - 1) for channel, mirrored in enumerate(channels) if 0 < channel < mirrored]
    return tuple((schema.names[one], schema.names[other]) for one, other in pairs)


def _summary(values: np.ndarray) -> ChannelIntensities:
    low, high = np.percentile(values, [0.5, 99.5])
    clipped = np.clip(values, low, high)
    return ChannelIntensities(float(low), float(high), float(clipped.mean()), float(clipped.std()))
