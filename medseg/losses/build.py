"""From a config to a loss."""

from __future__ import annotations

from typing import assert_never

from medseg.losses.compound import WeightedSum
from medseg.losses.config import (
    BinaryCrossEntropyConfig,
    CrossEntropyConfig,
    DiceBinaryCrossEntropyConfig,
    DiceConfig,
    DiceCrossEntropyConfig,
    DiceFocalConfig,
    FocalConfig,
    LossConfig,
)
from medseg.losses.cross_entropy import CrossEntropyLoss
from medseg.losses.dice import DiceLoss


def build_loss(config: LossConfig) -> WeightedSum:
    """Build the loss: ``loss(logits, channels, annotated) -> StepLoss``."""
    match config:
        case DiceConfig():
            return WeightedSum({"dice": DiceLoss(config.activation, config.over, config.smooth)}, {"dice": 1.0})
        case BinaryCrossEntropyConfig():
            return WeightedSum({"bce": CrossEntropyLoss("sigmoid")}, {"bce": 1.0})
        case CrossEntropyConfig():
            return WeightedSum({"ce": CrossEntropyLoss("softmax")}, {"ce": 1.0})
        case FocalConfig():
            return WeightedSum({"focal": CrossEntropyLoss(config.activation, config.gamma)}, {"focal": 1.0})
        case DiceBinaryCrossEntropyConfig():
            name, term = "bce", CrossEntropyLoss("sigmoid")
        case DiceCrossEntropyConfig():
            name, term = "ce", CrossEntropyLoss("softmax")
        case DiceFocalConfig():
            name, term = "focal", CrossEntropyLoss(config.activation, config.gamma)
        case _:
            assert_never(config)
    dice = DiceLoss(config.activation, config.over, config.smooth)
    return WeightedSum({name: term, "dice": dice}, {name: 1.0, "dice": config.dice_weight})
