"""The soft counts of voxels that Dice and Tversky are made of.

Legend: B batch · S structures · then the spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.core.shapes import ANY, B_SPATIAL, BL_SPATIAL
from medseg.losses.partial import (
    BC,
    KC,
    decided_voxels,
    full_precision,
    structure_targets,
    without_ignored,
)
from medseg.losses.softmax_sums import SoftmaxSums, softmax_sums

BS = "batch structures"


@dataclass(frozen=True, eq=False)
class SoftCounts:
    """Voxels of each structure in each case, as sums of probabilities p and targets t.

    Attributes:
        common: Σ p·t.
        predicted: Σ p.
        reference: Σ t.
        known: Which to believe: the structure is annotated in the case, and somebody decided on a voxel of it.
    """

    common: Float[Tensor, BS]
    predicted: Float[Tensor, BS]
    reference: Float[Tensor, BS]
    known: Bool[Tensor, BS]


def soft_counts(
    logits: Float[Tensor, BL_SPATIAL],
    classes_B: Integer[Tensor, B_SPATIAL],
    annotated_BC: Bool[Tensor, BC],
    activation: Literal["softmax", "sigmoid"],
    membership: Bool[Tensor, KC] | None,
    sums: SoftmaxSums | None = None,
) -> SoftCounts:
    """Count over the decided voxels; background is not counted.

    Args:
        logits: With softmax, the first channel is background; sigmoid logits have none for it.
        classes_B: Class number of each voxel, or ignored.
        annotated_BC: Which channels somebody looked for, in each case.
        activation: Turns logits into probabilities.
        membership: Where structures are regions (sigmoid only), which classes belong to which.
        sums: With softmax, of this batch, where they are there already.
    """
    if activation == "softmax":
        sums = sums or softmax_sums(logits, classes_B, annotated_BC)
        known_BS = annotated_BC[:, 1:] & (sums.reference.sum(dim=1, keepdim=True) > 0)
        return SoftCounts(sums.common[:, 1:], sums.predicted[:, 1:], sums.reference[:, 1:], known_BS)
    logits = full_precision(logits)
    decided_B, known_BS = decided_voxels(classes_B), annotated_BC[:, 1:]
    if decided_B is not None:
        logits = without_ignored(logits, decided_B)
        known_BS = known_BS & decided_B.flatten(1).any(dim=1, keepdim=True)
    probability_BS = logits.sigmoid()
    if decided_B is not None:
        probability_BS = probability_BS * decided_B.unsqueeze(1)
    target_BS = structure_targets(classes_B, probability_BS.shape[1], probability_BS.dtype, membership)
    axes = tuple(range(2, logits.ndim))
    return SoftCounts((probability_BS * target_BS).sum(axes), probability_BS.sum(axes), target_BS.sum(axes), known_BS)


def over_cases(
    sums: Float[Tensor, "sums batch structures"], known_BS: Bool[Tensor, BS], over: Literal["batch", "sample"]
) -> tuple[Float[Tensor, ANY], Bool[Tensor, ANY]]:
    """Sums of the whole batch, ``(sums, structures)``, or as they are; and which of them to believe."""
    if over == "sample":
        return sums, known_BS
    return (sums * known_BS).sum(dim=1), known_BS.any(dim=0)
