"""Learning from partly annotated cases: what nobody looked for is unknown, not absent.

In each case some structures are annotated and the others are not. Where a structure is not annotated, its voxels carry
the label 0 although it is there. Taken as background they would teach the network not to find it.

**Sigmoid** networks decide each structure for itself, so the channel of a structure that is not annotated in a case is
simply left out there: no loss, no gradient.

**Softmax** networks share one probability among all, so nothing can be left out. Instead, the structures that are not
annotated are *merged* with background into one group: the loss sees only the group's summed probability, and a voxel
labelled 0 says "one of the group". With logits x and the group G,

    log p(G) = logsumexp(x[c], c in G) - logsumexp(x[c], all c).

How the network shares the group's probability among its members changes no loss; and each member's gradient is its
share of the group's. Where all is annotated, G is background alone, and it is the ordinary cross-entropy.

Source: the marginal loss of Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ
segmentation" (without their exclusion term).

Legend: B batch · C classes, background first · S structures (classes without background) · then the spatial axes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.core.shapes import ANY, B_SPATIAL, BL_SPATIAL

BC = "batch classes"


def full_precision(logits: Float[Tensor, BL_SPATIAL]) -> Float[Tensor, BL_SPATIAL]:
    """At least float32: sums over a volume overflow in float16 and lose digits in bfloat16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log_probability_of_target(
    logits_BC: Float[Tensor, BL_SPATIAL], channels_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
) -> Float[Tensor, B_SPATIAL]:
    """Softmax: log of the probability that each voxel's label has, unannotated classes merged with background."""
    target_B1 = channels_B.long().unsqueeze(1)
    log_total_B1 = logits_BC.logsumexp(dim=1, keepdim=True)
    log_target_B1 = logits_BC.gather(1, target_B1)
    if not bool(annotated_BC.all()):
        group_BC = ~annotated_BC
        group_BC[:, 0] = True
        log_group_B1 = _log_sum_of_group(logits_BC, group_BC)
        in_group_B1 = group_BC.gather(1, target_B1.flatten(1)).view_as(target_B1)
        log_target_B1 = torch.where(in_group_B1, log_group_B1, log_target_B1)
    return (log_target_B1 - log_total_B1).squeeze(1)


def _log_sum_of_group(logits_BC: Tensor, group_BC: Tensor) -> Tensor:
    """Log-sum-exp of the group's logits. Case by case: the group is a few channels, masking would copy all of them."""
    cases = zip(logits_BC.unbind(), group_BC, strict=True)
    members = [logits_C.index_select(0, group_C.nonzero().squeeze(1)) for logits_C, group_C in cases]
    return torch.stack([logits_C.logsumexp(dim=0, keepdim=True) for logits_C in members])


def supervised_cases(annotated_BC: Bool[Tensor, BC]) -> Bool[Tensor, " batch"]:
    """Cases in which at least one structure is annotated; the others teach nothing and dilute no mean."""
    return annotated_BC[:, 1:].any(dim=1)


def structure_targets(
    channels_B: Integer[Tensor, B_SPATIAL], num_structures: int, dtype: torch.dtype
) -> Float[Tensor, BL_SPATIAL]:
    """1 where a voxel is labelled with a structure, else 0; one channel a structure."""
    numbers = torch.arange(1, num_structures + 1, device=channels_B.device, dtype=channels_B.dtype)
    spread = (1, num_structures, *(1,) * (channels_B.ndim - 1))
    return (channels_B.unsqueeze(1) == numbers.view(spread)).to(dtype)


def weighted_mean(values: Tensor, weights: Bool[Tensor, ANY]) -> Float[Tensor, ""]:
    """Mean of the values whose weight is true; 0, with a gradient of exactly 0, where none is."""
    counts = weights.to(values.dtype)
    return (values * counts).sum() / counts.sum().clamp_min(1)
