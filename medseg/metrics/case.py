"""Scores of one case: overlap, distances between surfaces, volume and lesions, in one pass over all structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.shapes import IJK
from medseg.metrics.elements import element_surfaces
from medseg.metrics.layers import Box, Layer, build_layers
from medseg.metrics.lesions import LesionMatches, match_lesions
from medseg.metrics.overlap import OverlapCounts, count_overlaps
from medseg.metrics.surface import NearestSearch, Surface, SurfaceDistances, border_surfaces

Status = Literal["scored", "missing", "spurious", "absent"]
SurfaceKind = Literal["elements", "borders"]


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case was found; None stands for what has no value.

    Attributes:
        dice: Overlap, 0 to 1.
        nsd: Surface Dice at the structure's tolerance, 0 to 1.
        hd95_mm: 95th percentile of the surface distances, the larger of both directions [mm].
        volume_difference_ml: Prediction minus reference [ml].
        status: ``missing``: the reference has it, the prediction not; ``spurious``: the other way round (both score
            0 with no distance); ``absent``: neither has it, and nothing is scored.
        iou: Overlap as intersection over union, 0 to 1.
        assd_mm: Average of the surface distances in both directions together [mm].
        lesion_sensitivity: Share of the reference's separate parts that the prediction overlaps, 0 to 1.
        lesion_precision: Share of the prediction's separate parts that the reference overlaps, 0 to 1.
        lesion_f1: Harmonic mean of both.
        num_lesions: Separate parts in the reference.
    """

    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    volume_difference_ml: float | None
    status: Status
    iou: float | None = None
    assd_mm: float | None = None
    lesion_sensitivity: float | None = None
    lesion_precision: float | None = None
    lesion_f1: float | None = None
    num_lesions: int | None = None


def measure_structures(
    prediction: Integer[np.ndarray, IJK],
    reference: Integer[np.ndarray, IJK],
    geometry: Geometry,
    schema: LabelSchema,
    annotated: Bool[np.ndarray, " classes"],
    *,
    surface: SurfaceKind = "elements",
) -> dict[str, StructureScore]:
    """Score every structure that somebody looked for in this case.

    Voxels that the reference ignores count nowhere: they are of no structure in either map.

    Args:
        prediction, reference: Label values.
        geometry: The grid of both.
        schema: The structures.
        annotated: Per channel, background first.
        surface: ``elements``: weighted by area, as DeepMind's ``surface-distance``; ``borders``: voxels that have a
            neighbour outside, as MONAI.

    Returns:
        By name, only for annotated structures, in the order of the schema.
    """
    wanted = [structure for structure, known in zip(schema.structures, annotated[1:], strict=True) if known]
    scores: dict[str, StructureScore] = {}
    if wanted:
        for layer in build_layers(prediction, reference, geometry, wanted, schema.ignore_value):
            scores |= _measure_layer(layer, geometry.voxel_volume_ml, surface)
    return {structure.name: scores[structure.name] for structure in wanted}


def _measure_layer(layer: Layer, voxel_volume_ml: float, surface: SurfaceKind) -> dict[str, StructureScore]:
    maps, num_structures = (layer.prediction, layer.reference), len(layer.structures)
    overlaps = count_overlaps(*maps, num_structures)
    surfaces = zip(*(_surfaces(array, layer, surface) for array in maps), strict=True)
    boxes = zip(*(ndimage.find_objects(array, max_label=num_structures) for array in maps), strict=True)
    search = NearestSearch(layer.prediction.shape, layer.axes_mm)
    scores = {}
    for number, (structure, overlap, pair, found) in enumerate(
        zip(layer.structures, overlaps, surfaces, boxes, strict=True), start=1
    ):
        is_scored = overlap.num_predicted > 0 and overlap.num_contoured > 0
        distances = search.between(*pair) if is_scored else None
        lesions = _lesions(layer, number, [box for box in found if box is not None])
        scores[structure.name] = _score(structure, overlap, distances, lesions, voxel_volume_ml)
    return scores


def _surfaces(array: Integer[np.ndarray, IJK], layer: Layer, surface: SurfaceKind) -> list[Surface]:
    match surface:
        case "elements":
            return element_surfaces(array, len(layer.structures), layer.spacing_mm)
        case "borders":
            return border_surfaces(array, len(layer.structures))
        case _:
            assert_never(surface)


def _lesions(layer: Layer, number: int, boxes: list[Box]) -> LesionMatches:
    """Within the box around both masks."""
    if not boxes:
        return LesionMatches(0, 0, 0, 0)
    around = tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )
    return match_lesions(layer.prediction[around] == number, layer.reference[around] == number)


def _score(
    structure: Structure,
    overlap: OverlapCounts,
    distances: SurfaceDistances | None,
    lesions: LesionMatches,
    voxel_volume_ml: float,
) -> StructureScore:
    if not (overlap.num_predicted or overlap.num_contoured):
        return StructureScore(None, None, None, None, "absent", num_lesions=0)
    status: Status = "scored" if distances else "spurious" if overlap.num_predicted else "missing"
    return StructureScore(
        dice=overlap.dice,
        nsd=distances.surface_dice(structure.tolerance_mm) if distances else 0.0,
        hd95_mm=distances.hd95_mm() if distances else None,
        volume_difference_ml=overlap.volume_difference_ml(voxel_volume_ml),
        status=status,
        iou=overlap.iou,
        assd_mm=distances.assd_mm() if distances else None,
        lesion_sensitivity=lesions.sensitivity,
        lesion_precision=lesions.precision,
        lesion_f1=lesions.f1,
        num_lesions=lesions.num_lesions,
    )
