"""Scores of one case: Dice, surface Dice, Hausdorff distance, volume difference, in one pass over all structures.

Surfaces are voxel borders: voxels of a mask that its erosion by one voxel (6 neighbours) takes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from medseg.core.geometry import Geometry, Shape3, Spacing3
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.metrics.overlap import dice, volume_difference_ml

Box = tuple[slice, ...]
Status = Literal["scored", "missing", "spurious", "absent"]

HD_PERCENTILE = 95.0
"""Of the surface distances; the plain maximum hangs on a single voxel."""

ROUNDING_MM = 1e-4
"""Headers hold float32: a distance of two 1 mm voxels may read 2.0000002 mm, and is within 2 mm all the same."""


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case was found.

    Attributes:
        dice: Overlap, 0 to 1.
        nsd: Surface Dice at the structure's tolerance, 0 to 1.
        hd95_mm: 95th percentile of the surface distances, the larger of both directions [mm].
        volume_difference_ml: Prediction minus reference [ml].
        status: ``missing``: the reference has it, the prediction not; ``spurious``: the other way round (both score
            0 with no distance); ``absent``: neither has it, and nothing is scored.
    """

    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    volume_difference_ml: float | None
    status: Status


def measure_structures(
    prediction: Integer[np.ndarray, IJK],
    reference: Integer[np.ndarray, IJK],
    geometry: Geometry,
    schema: LabelSchema,
    annotated: Bool[np.ndarray, " classes"],
) -> dict[str, StructureScore]:
    """Score every structure that somebody looked for in this case.

    Args:
        prediction, reference: Label values.
        geometry: The grid of both.
        schema: The structures.
        annotated: Per channel, background first.

    Returns:
        By name, only for annotated structures, in the order of the schema.
    """
    boxes = [
        ndimage.find_objects(array.astype(np.int32), max_label=int(schema.values.max()))
        for array in (prediction, reference)
    ]
    scores = {}
    for structure, known in zip(schema.structures, annotated[1:], strict=True):
        if known:
            found: list[Box | None] = [of_array[structure.value - 1] for of_array in boxes]
            box = _around(found, geometry.shape_ijk)
            masks = [array[box] == structure.value for array in (prediction, reference)] if box else []
            scores[structure.name] = _score(masks, geometry, structure.tolerance_mm)
    return scores


def surface_distances_mm(
    prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK], spacing_ijk_mm: Spacing3
) -> tuple[Float[np.ndarray, " border"], Float[np.ndarray, " border_too"]]:
    """Distance of each border voxel of one mask to the nearest of the other [mm], both ways; neither mask is empty.

    What lies beyond the volume counts as outside the mask, as in MONAI.
    """
    predicted, contoured = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference))
    return (
        _distances_mm(predicted, contoured, spacing_ijk_mm),
        _distances_mm(contoured, predicted, spacing_ijk_mm),
    )


def hd95_mm(there_mm: Float[np.ndarray, " border"], back_mm: Float[np.ndarray, " border_too"]) -> float:
    """The larger of the 95th percentiles of the distances in both directions [mm].

    Source: MONAI 1.6, ``compute_hausdorff_distance(percentile=95, directed=False)``.
    """
    return float(max(np.percentile(there_mm, HD_PERCENTILE), np.percentile(back_mm, HD_PERCENTILE)))


def surface_dice(
    there_mm: Float[np.ndarray, " border"], back_mm: Float[np.ndarray, " border_too"], tolerance_mm: float
) -> float:
    """Part of both borders that lies within the tolerance of the other one, 0 to 1.

    Source: Nikolov et al. 2018, arXiv:1809.04430, with border voxels in place of surface elements, as MONAI 1.6's
    ``compute_surface_dice``; deviation: ``ROUNDING_MM``.
    """
    limit_mm = tolerance_mm + ROUNDING_MM
    near = np.count_nonzero(there_mm <= limit_mm) + np.count_nonzero(back_mm <= limit_mm)
    return float(near / (len(there_mm) + len(back_mm)))


def _distances_mm(
    from_border: Bool[np.ndarray, IJK], to_border: Bool[np.ndarray, IJK], spacing_ijk_mm: Spacing3
) -> Float[np.ndarray, " border"]:
    # The nearest voxel's indices alone: SciPy's distances would cost six times the memory, for voxels nobody asks for.
    nearest = ndimage.distance_transform_edt(
        ~to_border, sampling=spacing_ijk_mm, return_distances=False, return_indices=True
    )
    offsets = nearest[:, from_border] - np.stack(np.nonzero(from_border))
    distances: np.ndarray = np.linalg.norm(offsets * np.array(spacing_ijk_mm)[:, None], axis=0)
    return distances


def _score(masks: list[np.ndarray], geometry: Geometry, tolerance_mm: float) -> StructureScore:
    if not masks:
        return StructureScore(None, None, None, None, "absent")
    prediction, reference = masks
    difference_ml = volume_difference_ml(prediction, reference, geometry.voxel_volume_ml)
    is_predicted, is_contoured = bool(prediction.any()), bool(reference.any())
    if not (is_predicted and is_contoured):
        return StructureScore(0.0, 0.0, None, difference_ml, "spurious" if is_predicted else "missing")
    distances = surface_distances_mm(prediction, reference, geometry.spacing_ijk_mm)
    nsd = surface_dice(*distances, tolerance_mm)
    return StructureScore(dice(prediction, reference), nsd, hd95_mm(*distances), difference_ml, "scored")


def _around(boxes: list[Box | None], shape: Shape3) -> Box | None:
    """One box around both, a voxel wider where the volume allows: a border needs to see what is beyond it."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(max(min(box[axis].start for box in found) - 1, 0), min(max(box[axis].stop for box in found) + 1, size))
        for axis, size in enumerate(shape)
    )
