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

Box = tuple[slice, ...]
Status = Literal["scored", "missing", "spurious", "absent"]

HD_PERCENTILE = 95.0
"""Of the surface distances; the plain maximum hangs on a single voxel."""


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


def dice(prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK]) -> float:
    """2·|A∩B| / (|A|+|B|) of two masks, of which one at least is not empty."""
    return float(
        2 * np.count_nonzero(prediction & reference) / (np.count_nonzero(prediction) + np.count_nonzero(reference))
    )


def surface_distances_mm(
    prediction: Bool[np.ndarray, IJK], reference: Bool[np.ndarray, IJK], spacing_ijk_mm: Spacing3
) -> tuple[Float[np.ndarray, " border"], Float[np.ndarray, " border_too"]]:
    """Distance of each border voxel of one mask to the nearest of the other [mm], both ways; neither mask is empty."""
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    far = [ndimage.distance_transform_edt(~border, sampling=spacing_ijk_mm) for border in borders]
    return far[1][borders[0]], far[0][borders[1]]


def _score(masks: list[np.ndarray], geometry: Geometry, tolerance_mm: float) -> StructureScore:
    if not masks:
        return StructureScore(None, None, None, None, "absent")
    num_predicted, num_contoured = (int(np.count_nonzero(mask)) for mask in masks)
    difference_ml = (num_predicted - num_contoured) * geometry.voxel_volume_ml
    if not num_predicted or not num_contoured:
        return StructureScore(0.0, 0.0, None, difference_ml, "spurious" if num_predicted else "missing")
    there, back = surface_distances_mm(masks[0], masks[1], geometry.spacing_ijk_mm)
    hd95_mm = max(np.percentile(there, HD_PERCENTILE), np.percentile(back, HD_PERCENTILE))
    near = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    nsd = near / (len(there) + len(back))
    return StructureScore(dice(masks[0], masks[1]), float(nsd), float(hd95_mm), float(difference_ml), "scored")


def _around(boxes: list[Box | None], shape: Shape3) -> Box | None:
    """One box around both, a voxel wider where the volume allows: a border needs to see what is beyond it."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(max(min(box[axis].start for box in found) - 1, 0), min(max(box[axis].stop for box in found) + 1, size))
        for axis, size in enumerate(shape)
    )
