"""Cross-entropy and focal loss, which weighs it.

Legend: B batch · S structures · then the spatial axes.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.core.shapes import B_SPATIAL, BL_SPATIAL
from medseg.losses.partial import (
    BC,
    full_precision,
    log_probability_of_target,
    structure_targets,
    supervised_cases,
    weighted_mean,
)


class CrossEntropyLoss(nn.Module):
    """−log p of each voxel's label, (1 − p)^gamma times; gamma 0 is plain cross-entropy.

    Args:
        activation: softmax: the mean over voxels of cases with anything annotated, unannotated classes merged with
            background. sigmoid: binary cross-entropy, the mean over voxels and annotated structures.
        gamma: 0 for cross-entropy; from 1 on, the focal loss.

    Source: Lin et al. 2017 for gamma. Where all is annotated it equals torch's ``cross_entropy`` and
    ``binary_cross_entropy_with_logits`` (gamma 0), and MONAI's ``FocalLoss``; with softmax that one also divides by the
    number of classes.
    """

    def __init__(self, activation: Literal["softmax", "sigmoid"], gamma: float = 0.0) -> None:
        super().__init__()
        self.activation, self.gamma = activation, gamma

    def forward(
        self, logits: Float[Tensor, BL_SPATIAL], channels_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
    ) -> Float[Tensor, ""]:
        """Loss of a batch; softmax logits have a channel for background, sigmoid ones do not."""
        logits = full_precision(logits)
        if self.activation == "softmax":
            log_p = log_probability_of_target(logits, channels_B, annotated_BC)
            counts = supervised_cases(annotated_BC)
        else:
            target_BS = structure_targets(channels_B, logits.shape[1], logits.dtype)
            log_p = -F.binary_cross_entropy_with_logits(logits, target_BS, reduction="none")
            counts = annotated_BC[:, 1:]
        loss = -log_p if self.gamma == 0 else -log_p * (-torch.expm1(log_p)).clamp_min(0) ** self.gamma
        return weighted_mean(loss.flatten(counts.ndim).mean(dim=-1), counts)
