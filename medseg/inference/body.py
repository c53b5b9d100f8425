"""Where the body lies in a CT: half of a scan is air and couch, and windows there need no network.

The body is what is denser than air in blocks of about a centimetre that are mostly filled, and hangs together, with all that it
encloses, lungs and bowel gas among it: a couch is a thin shell, noise and padding are no blocks. Where the body is cut off at a
side of the scan, nobody can tell what it encloses, so there all of the plane counts. Both the box and the list of windows to skip keep a wide margin around it, because
a structure that is cut off costs more than a few windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from medseg.core.geometry import Shape3, Spacing3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import CIJK, IJK
from medseg.data.config import Normalisation, WindowNormalisation
from medseg.data.plan import Plan

BODY_HU = -500.0
"""Denser than this is body, not air or lung: halfway between air and water, as in common body masks."""

AIR_STRUCTURE_HU = -300.0
"""A structure whose median is below this is air or lung: where a model labels such, no window is left out."""

BLOCK_MM = 10.0
"""Edge of a block: wider than a couch's shell, narrower than a finger's breadth of a child's limb."""

FILLED = 0.4
"""Part of a block's voxels that are body, at least: a shell of 3 mm fills less."""

SMALLEST_PART = 0.01
"""Of the largest part that hangs together; smaller parts are crumbs. Arms and legs are several hundredths of a trunk."""

HIGHEST_LOW_HU = 0.0
"""Where a window begins above this, as for bone or contrast, it shows too little of the body to tell where that ends."""

MARGIN_BLOCKS = 2
"""Blocks around the body that belong to it: noses, ears and fingers, which fill no block."""


@dataclass(frozen=True, eq=False)
class Body:
    """The body in a prepared image.

    Attributes:
        blocks: Whether each block holds body, or lies within the margin around it.
        block_ijk: Edges of a block [voxels]; the last one along an axis may be cut.
        shape_ijk: Of the image.
    """

    blocks: Bool[np.ndarray, IJK]
    block_ijk: Shape3
    shape_ijk: Shape3

    def box(self, window_ijk: Shape3) -> PatchLocation:
        """The box around the body, at least as large as a window as far as the image goes."""
        start, size = [], []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            found = np.flatnonzero(self.blocks.any(axis=others))
            first = int(found[0]) * self.block_ijk[axis]
            stop = min(self.shape_ijk[axis], int(found[-1] + 1) * self.block_ijk[axis])
            wanted = min(self.shape_ijk[axis], max(stop - first, window_ijk[axis]))
            first = min(max(0, first - (wanted - (stop - first)) // 2), self.shape_ijk[axis] - wanted)
            start.append(first)
            size.append(wanted)
        return PatchLocation((start[0], start[1], start[2]), (size[0], size[1], size[2]))

    def is_in(self, place: PatchLocation) -> bool:
        """Whether a place in the image holds body, or what lies within the margin around it."""
        inner = place.inside(self.shape_ijk)
        blocks = tuple(
            slice(first // edge, -(-stop // edge))
            for first, stop, edge in zip(inner.start_ijk, inner.stop_ijk, self.block_ijk, strict=True)
        )
        return bool(self.blocks[blocks].any())


def whole_image(shape_ijk: Shape3) -> PatchLocation:
    """The box that leaves nothing out."""
    return PatchLocation((0, 0, 0), shape_ijk)


def labels_air(plan: Plan, modalities: Sequence[str]) -> bool:
    """Whether a model's structures may be air: one is, or nothing is known of them.

    Imported models count as such: their windows lie where they lay at home.
    """
    facts = plan.fingerprint
    if plan.preparation is not None or facts is None or not facts.structures or "CT" not in modalities:
        return True
    channel = modalities.index("CT")
    medians = [
        structure.percentiles[channel][1] if structure.percentiles else None for structure in facts.structures.values()
    ]
    return any(median is None or median < AIR_STRUCTURE_HU for median in medians)


def find_body(
    image_CIJK: Float[np.ndarray, CIJK],
    spacing_ijk_mm: Spacing3,
    modalities: Sequence[str],
    normalisation: Sequence[Normalisation],
) -> Body | None:
    """The body in a prepared CT; None where there is no CT, its window shows only bone, or nothing looks like a body.

    Args:
        image_CIJK: Prepared.
        spacing_ijk_mm: Of its grid [mm].
        modalities: Of each channel.
        normalisation: Of each channel.
    """
    if "CT" not in modalities:
        return None
    channel = modalities.index("CT")
    how = normalisation[channel]
    if not isinstance(how, WindowNormalisation) or how.low > HIGHEST_LOW_HU:
        return None
    # What the window cuts off below looks like air to the network too, so body is what lies above its lower end.
    threshold = (max(BODY_HU, how.low + 1.0) - how.mean) / how.std
    i, j, k = (max(1, round(BLOCK_MM / spacing)) for spacing in spacing_ijk_mm)
    filled = _share_filled(image_CIJK[channel], threshold, (i, j, k)) >= FILLED
    parts, num_parts = ndimage.label(filled)
    if not num_parts:
        return None
    sizes = np.bincount(parts.ravel())
    kept = sizes >= SMALLEST_PART * sizes[1:].max()
    kept[0] = False
    blocks = ndimage.binary_dilation(
        _with_enclosed(kept[parts]), np.ones((3, 3, 3), dtype=bool), iterations=MARGIN_BLOCKS
    )
    return Body(blocks, (i, j, k), (image_CIJK.shape[1], image_CIJK.shape[2], image_CIJK.shape[3]))


def _with_enclosed(blocks: Bool[np.ndarray, IJK]) -> Bool[np.ndarray, IJK]:
    """Blocks and what they enclose in a plane across any axis: lungs are open in space where a scan cuts them.

    An axial plane whose blocks reach one of its sides is taken whole: a lung that the scan cuts there is open in every plane.
    """
    filled = blocks.copy()
    is_cut = np.logical_or(blocks[[0, -1]].any(axis=(0, 1)), blocks[:, [0, -1]].any(axis=(0, 1)))
    filled[:, :, is_cut] = True
    for axis in range(3):
        for plane, target in zip(np.moveaxis(blocks, axis, 0), np.moveaxis(filled, axis, 0), strict=True):
            np.logical_or(target, ndimage.binary_fill_holes(plane), out=target)
    return filled


def _share_filled(image_IJK: np.ndarray, threshold: float, block_ijk: Shape3) -> Float[np.ndarray, IJK]:
    """Of each block, the part of its voxels above a threshold; one layer of blocks at a time."""
    edges = [np.arange(0, size, edge) for size, edge in zip(image_IJK.shape, block_ijk, strict=True)]
    share = np.empty([len(axis) for axis in edges], np.float32)
    for layer, start in enumerate(edges[0].tolist()):
        inside = (image_IJK[start : start + block_ijk[0]] > threshold).sum(axis=0, dtype=np.int32)
        counts = np.add.reduceat(np.add.reduceat(inside, edges[1], axis=0), edges[2], axis=1)
        depth = min(block_ijk[0], image_IJK.shape[0] - start)
        areas = _lengths(edges[1], image_IJK.shape[1])[:, None] * _lengths(edges[2], image_IJK.shape[2])
        share[layer] = counts / (depth * areas)
    return share


def _lengths(starts: np.ndarray, size: int) -> np.ndarray:
    return np.diff(np.append(starts, size))
