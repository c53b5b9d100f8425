"""The Tversky loss, which weighs what is found too much and what is missed, and its focal form.

Legend: B batch · then the spatial axes.
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

SMALLEST = 1e-7
"""About the rounding of 1 - index in float32. Below it a root has no slope, which would grow without bound towards 0."""


class TverskyLoss(nn.Module):
    """(1 − T)^(1/gamma), T = (Σ p·t + smooth) / (Σ p·t + alpha·Σ p·(1−t) + beta·Σ (1−p)·t + smooth), mean over structures.

    What is said of Dice holds here: background has none of its own, a structure counts in the cases where it is annotated, and
    ignored voxels are in no sum.

    Args:
        activation: Turns logits into the probabilities p.
        alpha: Weight of what is predicted and not there. With alpha and beta at ½ it is Dice (of twice the smooth).
        beta: Weight of what is there and not predicted.
        gamma: 1: plain. Above: structures that are already found well keep more of their pull.
        over: Sums run over the whole batch, or over each sample.
        smooth: Added to both sides of the fraction, positive.
        membership: Where structures are regions (sigmoid only), which classes belong to which.

    Source: Salehi et al. 2017, arXiv:1706.05721; Abraham and Khan 2018, arXiv:1810.07842, for gamma. MONAI's
    ``TverskyLoss`` is the same where all is annotated and gamma is 1.
    """

    def __init__(
        self,
        activation: Literal["softmax", "sigmoid"],
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 1.0,
        over: Literal["batch", "sample"] = "batch",
        smooth: float = 1e-5,
        membership: Bool[Tensor, KC] | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.over, self.smooth, self.membership = activation, over, smooth, membership
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

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
        too_much, missed = counts.predicted - counts.common, counts.reference - counts.common
        both = torch.stack([counts.common, self.alpha * too_much + self.beta * missed])
        (common, wrong), known = over_cases(both, counts.known, self.over)
        loss = 1 - (common + self.smooth) / (common + wrong + self.smooth)
        return weighted_mean(loss if self.gamma == 1 else loss.clamp_min(SMALLEST) ** (1 / self.gamma), known)
