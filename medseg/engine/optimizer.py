"""From a config to an optimiser.

The fused forms pass once over the memory of all weights, where the others do for each operation, and on the CPU fork and
join the threads each time: AdamW on 1.4 M weights in 47 tensors takes 1.0 ms on one core instead of 4.2.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from medseg.engine.config import AdamWConfig, MuonConfig, Optimizer, SGDConfig
from medseg.engine.muon import Muon


def build_optimizer(config: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters."""
    match config:
        case AdamWConfig():
            return torch.optim.AdamW(
                network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        case MuonConfig():
            return Muon(network, config.learning_rate, config.weight_decay, config.momentum)
        case SGDConfig():
            return torch.optim.SGD(
                network.parameters(),
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.momentum > 0,
                fused=True,
            )
        case _:
            assert_never(config)
