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
    KC,
    decided_voxels,
    full_precision,
    log_probability_of_target,
    mean_over_voxels,
    structure_targets,
    supervised_cases,
    without_ignored,
)
from medseg.losses.softmax_sums import SoftmaxSums, softmax_sums


class CrossEntropyLoss(nn.Module):
    """−log p of each voxel's label, (1 − p)^gamma times; gamma 0 is plain cross-entropy.

    Args:
        activation: softmax: the mean over voxels of cases with anything annotated, unannotated structures merged with
            background. sigmoid: binary cross-entropy, the mean over voxels and annotated structures.
        gamma: 0 for cross-entropy; from 1 on, the focal loss.
        membership: Where structures are regions (sigmoid only), which classes belong to which.

    Ignored voxels are in no mean.

    Source: Lin et al. 2017 for gamma. Where all is annotated it equals torch's ``cross_entropy`` (``ignore_index=-1``
    for ignored voxels) and ``binary_cross_entropy_with_logits`` (gamma 0), and MONAI's ``FocalLoss``; with softmax that
    one also divides by the number of classes.
    """

    def __init__(
        self,
        activation: Literal["softmax", "sigmoid"],
        gamma: float = 0.0,
        membership: Bool[Tensor, KC] | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.gamma, self.membership = activation, gamma, membership

    @property
    def uses_sums(self) -> bool:
        """Whether ``sums`` are used where they are given."""
        return self.activation == "softmax" and self.gamma == 0

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
        if self.uses_sums:
            sums = sums or softmax_sums(logits, classes_B, annotated_BC)
            supervised = supervised_cases(annotated_BC)
            num_voxels = (sums.reference.sum(dim=1) * supervised).sum()
            return (sums.cross_entropy * supervised).sum() / num_voxels.clamp_min(1)
        logits = full_precision(logits)
        decided_B = decided_voxels(classes_B)
        if decided_B is not None:
            logits, classes_B = without_ignored(logits, decided_B), classes_B.clamp_min(0)
        if self.activation == "softmax":
            log_p = log_probability_of_target(logits, classes_B, annotated_BC)
            counts = supervised_cases(annotated_BC)
        else:
            target_BS = structure_targets(classes_B, logits.shape[1], logits.dtype, self.membership)
            log_p = -F.binary_cross_entropy_with_logits(logits, target_BS, reduction="none")
            counts = annotated_BC[:, 1:]
        loss = -log_p if self.gamma == 0 else -log_p * (-torch.expm1(log_p)).clamp_min(0) ** self.gamma
        return mean_over_voxels(loss, counts, decided_B)
