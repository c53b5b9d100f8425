"""Deep supervision: a loss of each resolution at which a network answers.

Legend: B batch · C channels · then the spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from medseg.core.shapes import ANY, B_SPATIAL
from medseg.core.task import StepLoss
from medseg.losses.partial import BC

Loss = Callable[[Tensor, Tensor, Tensor], StepLoss]


def deep_loss(
    loss: Loss,
    outputs: Tensor | tuple[Tensor, ...],
    classes_B: Integer[Tensor, B_SPATIAL],
    annotated_BC: Bool[Tensor, BC],
) -> StepLoss:
    """The weighted sum of the losses of all resolutions.

    Args:
        loss: ``loss(logits, classes, annotated)``.
        outputs: Logits at full resolution, or a tuple of them and of coarser and coarser ones.
        classes_B: Class number of each voxel at full resolution. A coarse voxel has the class of the voxel in its middle, also
            where that is ignored, so that nothing is learnt from what nobody decided.
        annotated_BC: Which channels somebody looked for, in each case.

    Returns:
        The total, and the terms at full resolution: they compare with those of a network without deep supervision.

    Source: Isensee et al. 2021 (nnU-Net).
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, classes_B, annotated_BC)
    weights = deep_weights(len(outputs))
    losses = [
        loss(logits, at_shape(classes_B, logits.shape[2:]), annotated_BC)
        for logits, weight in zip(outputs, weights, strict=True)
        if weight > 0
    ]
    total = torch.stack([weight * each.total for weight, each in zip(weights, losses, strict=False)]).sum()
    return StepLoss(total, losses[0].terms)


def deep_weights(num_outputs: int) -> tuple[float, ...]:
    """1, ½, ¼, ... with 0 for the coarsest of three or more, which sees too little; their sum is 1."""
    weights = [0.5**level for level in range(num_outputs)]
    if num_outputs > 2:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def at_shape(classes_B: Integer[Tensor, B_SPATIAL], shape: Sequence[int]) -> Integer[Tensor, ANY]:
    """Class numbers on a coarser grid of the same extent: those of the nearest voxels."""
    for axis, (size, wanted) in enumerate(zip(classes_B.shape[1:], shape, strict=True), start=1):
        if size != wanted:
            middles = (2 * torch.arange(wanted, device=classes_B.device) + 1) * size // (2 * wanted)
            classes_B = classes_B.index_select(axis, middles)
    return classes_B
