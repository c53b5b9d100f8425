"""Soft Dice.

Legend: B batch · S structures · then the spatial axes.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from medseg.core.shapes import B_SPATIAL, BL_SPATIAL
from medseg.losses.partial import (
    BC,
    KC,
    decided_voxels,
    full_precision,
    structure_targets,
    weighted_mean,
    without_ignored,
)


class DiceLoss(nn.Module):
    """1 − (2·Σ p·t + smooth) / (Σ p + Σ t + smooth), averaged over the annotated structures.

    Background has no Dice of its own (as in nnU-Net). A structure counts in the cases where it is annotated; one that
    is annotated nowhere in the batch is left out of the mean.

    Args:
        activation: Turns logits into the probabilities p. Dice of logits is no Dice: they are negative where the
            network is sure of background, the fraction has no bound, and its minimum is not at the reference.
        over: Sums run over the whole batch, or over each sample (and then the mean over samples is taken).
        smooth: Added to both sides of the fraction, positive; an absent structure that is not predicted costs nothing.
        membership: Where structures are regions (sigmoid only), which classes belong to which.

    Ignored voxels are in no sum; a case of nothing else is left out as one without annotation is.

    Source: Milletari et al. 2016 in the form without squares. MONAI's ``DiceLoss(include_background=False,
    softmax=True, to_onehot_y=True, smooth_nr=smooth, smooth_dr=smooth, batch=over == "batch")`` is the same
    where all is annotated.
    """

    def __init__(
        self,
        activation: Literal["softmax", "sigmoid"],
        over: Literal["batch", "sample"] = "batch",
        smooth: float = 1e-5,
        membership: Bool[Tensor, KC] | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.over, self.smooth, self.membership = activation, over, smooth, membership

    def forward(
        self, logits: Float[Tensor, BL_SPATIAL], classes_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
    ) -> Float[Tensor, ""]:
        """Loss of a batch; softmax logits have a channel for background, sigmoid ones do not."""
        logits = full_precision(logits)
        decided_B, annotated_BS = decided_voxels(classes_B), annotated_BC[:, 1:]
        if decided_B is not None:
            logits = without_ignored(logits, decided_B)
            annotated_BS = annotated_BS & decided_B.flatten(1).any(dim=1, keepdim=True)
        probability_BS = logits.softmax(dim=1)[:, 1:] if self.activation == "softmax" else logits.sigmoid()
        if decided_B is not None:
            probability_BS = probability_BS * decided_B.unsqueeze(1)
        target_BS = structure_targets(classes_B, probability_BS.shape[1], probability_BS.dtype, self.membership)
        axes = tuple(range(2, logits.ndim))
        sums = torch.stack(
            [
                (probability_BS * target_BS).sum(axes),
                probability_BS.sum(axes) + target_BS.sum(axes),
            ]
        )
        if self.over == "batch":
            sums = (sums * annotated_BS).sum(dim=1)
            annotated_BS = annotated_BS.any(dim=0)
        common, total = sums
        return weighted_mean(1 - (2 * common + self.smooth) / (total + self.smooth), annotated_BS)
