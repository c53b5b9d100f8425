"""The exponential moving average of a network's weights: the network that validates and is kept."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float) -> float:
    """Share of the old average that step number ``step`` (counted from 0) keeps.

    While (1 + step) / (10 + step) is smaller than ``decay``, it is taken instead: the average then spans about the last
    ninth of what has been trained. So a run of 200 steps is not weighed down by its first weights, and a decay of .999
    comes into its own from step 9000 on.

    Source: the ``num_updates`` rule of TensorFlow's ``ExponentialMovingAverage``.
    """
    return min(decay, (1 + step) / (10 + step))


def averaged_copy(network: nn.Module) -> nn.Module:
    """A network of its own, to hold the average; it starts at the network's weights and never asks for gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network, by ``1 - decay`` of the way.

    Buffers (running statistics, counters) are copied: they are averages already, or no weights at all.
    """
    weights = cast(list[Tensor], list(average.parameters()))
    torch._foreach_lerp_(weights, cast(list[Tensor], list(network.parameters())), 1 - decay)
    for kept, new in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(new)
