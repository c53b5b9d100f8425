"""From a config to an optimiser."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from medseg.engine.config import AdamWConfig, Optimizer, SGDConfig


def build_optimizer(config: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters."""
    match config:
        case AdamWConfig():
            return torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        case SGDConfig():
            return torch.optim.SGD(
                network.parameters(),
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.momentum > 0,
            )
        case _:
            assert_never(config)
