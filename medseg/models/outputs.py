"""What a network gives: its logits, and in training with deep supervision also those of its coarser stages.

Every network of :func:`~medseg.models.build.build_model` keeps to it: in evaluation one tensor of the image's size. In
training the same, or where it has deep supervision a tuple: full resolution first, then coarser and coarser.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Outputs = Tensor | tuple[Tensor, ...]


def with_deep_logits(logits_BC: Tensor, heads: nn.ModuleList, stages: Sequence[Tensor], training: bool) -> Outputs:
    """The logits, and where there are heads and the network is being trained those of its coarser stages.

    Args:
        logits_BC: At full resolution.
        heads: Of the decoder's stages but the finest, finest first; empty without deep supervision.
        stages: Features of the decoder's stages, coarsest first.
        training: Whether the network is being trained.
    """
    if not (training and heads):
        return logits_BC
    return logits_BC, *(head(features_BC) for head, features_BC in zip(heads, reversed(stages[:-1]), strict=True))
