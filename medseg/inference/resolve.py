"""Resolving: logits are interpolated onto the exact grid of the file and decided there, in one step.

Deciding first and interpolating afterwards gives another answer: argmax and interpolation do not commute
(docs/decisions/0002). It is done plane by plane of the file, so no array of all classes on the file's grid ever exists.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

from medseg.core.shapes import CIJK, IJK
from medseg.data.resample import resample
from medseg.data.restore import GridMapping
from medseg.data.shear import Shear, sample_plane

Activation = Literal["softmax", "sigmoid"]

Decision = Literal["softmax", "sigmoid", "regions"]
"""How logits become channel numbers; see :func:`decide`."""

SLAB_BYTES = 4 * 2**20
"""Size of the interpolated logits held at a time [bytes]; temporaries take four times as much. Eight times the size
saves a tenth of the time (``benchmarks/restore_against_torch.py``)."""


def decide(logits_CIJK: Float[np.ndarray, CIJK], decision: Decision) -> Integer[np.ndarray, IJK]:
    """Channel number of each voxel.

    softmax: the largest logit. sigmoid: the largest of the structures' logits where it is positive (probability above
    one half), else background; the result counts background as channel 0 although it has no logit. regions: as sigmoid,
    but the last structure whose logit is positive, however large the others are: regions come before those inside them.

    Source: nnU-Net's ``convert_logits_to_segmentation`` for regions.
    """
    if decision == "regions":
        last = np.zeros(logits_CIJK.shape[1:], np.int16)
        for channel, logits_IJK in enumerate(logits_CIJK, start=1):
            last[logits_IJK > 0] = channel
        return last
    winner: np.ndarray = logits_CIJK.argmax(axis=0).astype(np.int16)
    if decision == "sigmoid":
        winner += 1
        winner[logits_CIJK.max(axis=0) <= 0] = 0
    return winner


def resolve(
    logits_CIJK: Float[np.ndarray, CIJK], mapping: GridMapping, decision: Decision
) -> Integer[np.ndarray, "file_i file_j file_k"]:
    """Channel numbers on the file's grid, in the file's own axes.

    Args:
        logits_CIJK: On the network's grid.
        mapping: From that grid to the file's.
        decision: How a voxel is decided.
    """
    if mapping.shear is not None:
        return _resolve_sheared(logits_CIJK, mapping.shear, decision)
    weights_r, weights_a, weights_s = mapping.weights
    shape = tuple(len(axis.indices) for axis in mapping.weights)
    channels = np.empty(shape, np.int16)
    plane_bytes = 4 * len(logits_CIJK) * shape[0] * shape[1]
    num_planes = max(1, SLAB_BYTES // plane_bytes)
    for start in range(0, shape[2], num_planes):
        planes = slice(start, min(start + num_planes, shape[2]))
        slab = resample(logits_CIJK, (weights_r, weights_a, weights_s.rows(planes)))
        channels[:, :, planes] = decide(slab, decision)
    return mapping.to_file_axes(channels)


def _resolve_sheared(
    logits_CIJK: Float[np.ndarray, CIJK], shear: Shear, decision: Decision
) -> Integer[np.ndarray, "file_i file_j file_k"]:
    channels = np.empty(shear.shape_ijk, np.int16)
    for plane in range(shear.shape_ijk[2]):
        logits_CIJ = sample_plane(logits_CIJK, shear, plane)
        channels[:, :, plane] = decide(logits_CIJ[..., None], decision)[..., 0]
    return channels
