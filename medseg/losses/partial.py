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

**Ignored voxels** (class number -1), which nobody decided on, are left out one by one in the same spirit: they are in
no sum and no mean, and their logits have a gradient of exactly 0.

Legend: B batch · C channels, background first · S structures (channels without background) · K classes, the values of
label maps; they are the channels unless structures are regions · then the spatial axes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.core.shapes import ANY, B_SPATIAL, BL_SPATIAL

BC = "batch channels"
KC = "classes channels"


def full_precision(logits: Float[Tensor, BL_SPATIAL]) -> Float[Tensor, BL_SPATIAL]:
    """At least float32: sums over a volume overflow in float16 and lose digits in bfloat16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log_probability_of_target(
    logits_BC: Float[Tensor, BL_SPATIAL], classes_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
) -> Float[Tensor, B_SPATIAL]:
    """Softmax: log of the probability that each voxel's label has, unannotated classes merged with background."""
    target_B1 = classes_B.long().unsqueeze(1)
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
    classes_B: Integer[Tensor, B_SPATIAL],
    num_structures: int,
    dtype: torch.dtype,
    membership_KC: Bool[Tensor, KC] | None = None,
) -> Float[Tensor, BL_SPATIAL]:
    """1 where a voxel belongs to a structure, else 0, also where it is ignored; one channel a structure.

    Without ``membership_KC`` each class is one structure.
    """
    if membership_KC is not None:
        table_SK = membership_KC[:, 1:].T.to(classes_B.device, dtype)
        target_SB = table_SK[:, classes_B.clamp_min(0).flatten().long()]
        return target_SB.view(num_structures, *classes_B.shape).transpose(0, 1)
    numbers = torch.arange(1, num_structures + 1, device=classes_B.device, dtype=classes_B.dtype)
    spread = (1, num_structures, *(1,) * (classes_B.ndim - 1))
    return (classes_B.unsqueeze(1) == numbers.view(spread)).to(dtype)


def decided_voxels(classes_B: Integer[Tensor, B_SPATIAL]) -> Bool[Tensor, B_SPATIAL] | None:
    """Voxels that are not ignored; None where that is all of them, which then costs no more than before."""
    decided_B = classes_B >= 0
    return None if bool(decided_B.all()) else decided_B


def without_ignored(
    logits_BC: Float[Tensor, BL_SPATIAL], decided_B: Bool[Tensor, B_SPATIAL]
) -> Float[Tensor, BL_SPATIAL]:
    """Logits with zeros for ignored voxels: whatever they were, not even a NaN of theirs reaches a sum or a gradient."""
    return logits_BC.masked_fill(~decided_B.unsqueeze(1), 0.0)


def mean_over_voxels(
    values: Tensor, counts: Bool[Tensor, ANY], decided_B: Bool[Tensor, B_SPATIAL] | None
) -> Float[Tensor, ""]:
    """Mean over the decided voxels of what counts.

    Args:
        values: One a voxel, ``(batch, *spatial)`` or ``(batch, structures, *spatial)``.
        counts: Which cases, or which structures of which cases, ``(batch,)`` or ``(batch, structures)``.
        decided_B: None: all voxels.
    """
    values = values.flatten(counts.ndim)
    if decided_B is None:
        return weighted_mean(values.mean(dim=-1), counts)
    decided = decided_B.flatten(1) if counts.ndim == 1 else decided_B.flatten(1).unsqueeze(1)
    num_decided = decided.sum(dim=-1)
    return weighted_mean((values * decided).sum(dim=-1) / num_decided.clamp_min(1), counts * num_decided)


def weighted_mean(values: Tensor, weights: Bool[Tensor, ANY] | Integer[Tensor, ANY]) -> Float[Tensor, ""]:
    """Mean of the values by their weights; 0, with a gradient of exactly 0, where all weights are 0."""
    weights = weights.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1)
