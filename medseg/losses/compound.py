"""Sums of losses, with their terms kept apart for the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from medseg.core.shapes import B_SPATIAL, BL_SPATIAL
from medseg.core.task import StepLoss
from medseg.losses.partial import BC
from medseg.losses.softmax_sums import softmax_sums


class WeightedSum(nn.Module):
    """The sum of losses, each with its weight.

    Args:
        terms: Losses by the name that the log shows; the softmax ones share one pass over the voxels.
        weights: Their weights, by the same names.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms, self.weights = nn.ModuleDict(dict(terms)), dict(weights)

    def forward(
        self, logits: Float[Tensor, BL_SPATIAL], classes_B: Integer[Tensor, B_SPATIAL], annotated_BC: Bool[Tensor, BC]
    ) -> StepLoss:
        """The weighted sum, and each term without its weight."""
        uses_sums = any(loss.uses_sums for loss in self.terms.values())
        sums = softmax_sums(logits, classes_B, annotated_BC) if uses_sums else None
        terms = {name: loss(logits, classes_B, annotated_BC, sums) for name, loss in self.terms.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return StepLoss(total, terms)
