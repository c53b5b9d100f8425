"""All that the softmax losses need of a batch's voxels, in one pass: sums, not maps.

Dice, Tversky and cross-entropy are functions of a few sums over the voxels, and the gradient of a sum with respect to a
voxel's logits is a short formula. So neither probabilities nor one-hot targets are ever held for the whole batch: a chunk
of voxels at a time goes through a dozen operations while it is in the processor's cache, forward and again backward.

Legend: B batch · C channels, background first · V voxels, all spatial axes as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.core.shapes import B_SPATIAL, BL_SPATIAL
from medseg.losses.partial import BC

CHUNK_VOXELS = 2**15
"""Voxels worked on at once on a CPU; a GPU takes a whole case. With eight channels each array is a megabyte."""


class SoftmaxSums(NamedTuple):
    """Sums over the decided voxels of each case, of probabilities p and one-hot targets t.

    Attributes:
        common: Σ p·t of each channel.
        predicted: Σ p of each channel.
        reference: Σ t of each channel; all channels together are the decided voxels.
        cross_entropy: Σ −log p of each voxel's label, unannotated classes merged with background.
    """

    common: Float[Tensor, BC]
    predicted: Float[Tensor, BC]
    reference: Float[Tensor, BC]
    cross_entropy: Float[Tensor, " batch"]


def softmax_sums(
    logits: Float[Tensor, BL_SPATIAL], classes_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
) -> SoftmaxSums:
    """Count over the decided voxels; what an ignored voxel's logits are, even NaN, reaches no sum and no gradient.

    Args:
        logits: Background first; summed in float32 at least, whatever they are stored in.
        classes_B: Class number of each voxel, or ignored (-1).
        annotated_BC: Which channels somebody looked for, in each case: the others are merged with background in
            :attr:`SoftmaxSums.cross_entropy`, see :mod:`medseg.losses.partial`.
    """
    group_BC = ~annotated_BC
    group_BC[:, 0] = True
    sums: SoftmaxSums = SoftmaxSums(*_SoftmaxSums.apply(logits.flatten(2), classes_B.flatten(1), group_BC))
    return sums


class _Chunk:
    """Some voxels of one case.

    Attributes:
        p_CV: Softmax.
        target_V: Class number, 0 where ignored.
        p_target_V, log_p_target_V: Softmax of the target, and its logarithm.
        decided_V: 1, and 0 where ignored; None where nothing is.
        members_G: Channels that are merged: background and what is not annotated.
        share_GV: Each member's share of the group's probability, where there are more than one.
        in_group_V: Where the target is one of them; None where background is merged with nothing.
    """

    def __init__(self, logits_CV: Tensor, classes_V: Tensor, group_C: Tensor, has_ignored: bool) -> None:
        logits_CV = logits_CV.to(_sum_type(logits_CV))
        self.decided_V = None
        if has_ignored:
            is_ignored_V = classes_V < 0
            logits_CV = logits_CV.masked_fill(is_ignored_V, 0.0)
            self.decided_V = (~is_ignored_V).to(logits_CV.dtype)
        self.target_V = classes_V.long().clamp_min(0)
        peak_V = logits_CV.amax(dim=0)
        self.p_CV = (logits_CV - peak_V).exp_()
        total_V = self.p_CV.sum(dim=0)
        self.p_CV /= total_V
        self.p_target_V = self._of_target(self.p_CV)
        log_total_V = total_V.log_().add_(peak_V)
        log_target_V = self._of_target(logits_CV)
        self.in_group_V: Tensor | None = None
        self.members_G = group_C.nonzero().squeeze(1)
        if len(self.members_G) > 1:
            group_GV = logits_CV.index_select(0, self.members_G)
            log_group_V = group_GV.logsumexp(dim=0)
            self.share_GV = (group_GV - log_group_V).exp_()
            self.in_group_V = group_C.index_select(0, self.target_V)
            log_target_V = torch.where(self.in_group_V, log_group_V, log_target_V)
        self.log_p_target_V = log_target_V - log_total_V

    def _of_target(self, values_CV: Tensor) -> Tensor:
        return values_CV.gather(0, self.target_V.unsqueeze(0)).squeeze(0)

    def by_target(self, values_V: Tensor) -> Tensor:
        """Sum over the decided voxels of each class; of a chunk alone, so that large sums don't swallow small values."""
        return values_V.new_zeros(len(self.p_CV)).index_add_(0, self.target_V, self.decided(values_V))

    def decided(self, values: Tensor) -> Tensor:
        """Values of voxels, 0 where ignored."""
        return values if self.decided_V is None else values * self.decided_V


class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BCV: Tensor, classes_BV: Tensor, group_BC: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits_BCV, classes_BV, group_BC)
        ctx.has_ignored = bool((classes_BV < 0).any())
        dtype = _sum_type(logits_BCV)
        common, predicted, reference = logits_BCV.new_zeros((3, *logits_BCV.shape[:2]), dtype=dtype)
        entropy = logits_BCV.new_zeros(len(logits_BCV), dtype=dtype)
        for case, _, chunk in _chunks(logits_BCV, classes_BV, group_BC, ctx.has_ignored):
            common[case] += chunk.by_target(chunk.p_target_V)
            predicted[case] += chunk.decided(chunk.p_CV).sum(dim=1)
            reference[case] += chunk.by_target(torch.ones_like(chunk.p_target_V))
            entropy[case] -= chunk.decided(chunk.log_p_target_V).sum()
        ctx.mark_non_differentiable(reference)
        return common, predicted, reference, entropy

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        logits_BCV, classes_BV, group_BC = ctx.saved_tensors
        result = torch.empty_like(logits_BCV)
        of_common_BC, of_predicted_BC, _, of_entropy_B = slopes
        for case, voxels, chunk in _chunks(logits_BCV, classes_BV, group_BC, ctx.has_ignored):
            of_predicted_C1, of_entropy = of_predicted_BC[case].unsqueeze(1), of_entropy_B[case]
            # Of a sum of w*p, the slope along a logit is p*(w - sum over the channels of w*p); w has a part for the target alone.
            target_V = chunk.p_target_V * of_common_BC[case].index_select(0, chunk.target_V)
            mean_V = (chunk.p_CV * of_predicted_C1).sum(dim=0).add_(target_V)
            # Of -log p(target), it is p less 1 at the target; of -log p(group), p less each member's share.
            slope_CV = (of_predicted_C1 - mean_V.sub_(of_entropy)).mul_(chunk.p_CV)
            if chunk.in_group_V is None:
                target_V -= of_entropy
            else:
                target_V -= of_entropy * ~chunk.in_group_V
                slope_CV.index_add_(0, chunk.members_G, chunk.share_GV * (chunk.in_group_V * -of_entropy))
            at_target = chunk.target_V.unsqueeze(0)  # each voxel has one; scatter_add_ is not deterministic on a GPU
            slope_CV.scatter_(0, at_target, slope_CV.gather(0, at_target) + target_V)
            result[case, :, voxels] = chunk.decided(slope_CV)
        return result, None, None


def _sum_type(logits: Tensor) -> torch.dtype:
    """At least float32: sums over a volume overflow in float16 and lose digits in bfloat16."""
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(
    logits_BCV: Tensor, classes_BV: Tensor, group_BC: Tensor, has_ignored: bool
) -> Iterator[tuple[int, slice, _Chunk]]:
    """All voxels, some at a time: the number of their case, where they lie in it, and themselves."""
    num_voxels = logits_BCV.shape[2]
    size = CHUNK_VOXELS if logits_BCV.device.type == "cpu" else num_voxels
    for case, group_C in enumerate(group_BC):
        for first in range(0, num_voxels, size):
            voxels = slice(first, first + size)
            yield case, voxels, _Chunk(logits_BCV[case, :, voxels], classes_BV[case, voxels], group_C, has_ignored)
