"""Soft Dice.

Legend: B batch · S structures · then the spatial axes.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from medseg.core.shapes import B_SPATIAL, BL_SPATIAL
from medseg.losses.overlap import over_cases, soft_counts
from medseg.losses.partial import BC, KC, weighted_mean
from medseg.losses.softmax_sums import SoftmaxSums


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

    @property
    def uses_sums(self) -> bool:
        """Whether ``sums`` are used where they are given."""
        return self.activation == "softmax"

    def forward(
        self,
        logits: Float[Tensor, BL_SPATIAL],
        classes_B: Integer[Tensor, B_SPATIAL],
        annotated_BC: Bool[Tensor, BC],
        sums: SoftmaxSums | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch; softmax logits have a channel for background, sigmoid ones do not.

        ``sums`` are the batch's, where another loss has asked for them already.
        """
        counts = soft_counts(logits, classes_B, annotated_BC, self.activation, self.membership, sums)
        both = torch.stack([counts.common, counts.predicted + counts.reference])
        (common, total), known = over_cases(both, counts.known, self.over)
        return weighted_mean(1 - (2 * common + self.smooth) / (total + self.smooth), known)
