"""From a config to a loss."""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Bool
from torch import Tensor

from medseg.core.labels import LabelSchema
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
    require_activation,
)
from medseg.losses.cross_entropy import CrossEntropyLoss
from medseg.losses.dice import DiceLoss
from medseg.losses.partial import KC


def build_loss(config: LossConfig, schema: LabelSchema | None = None) -> WeightedSum:
    """Build the loss: ``loss(logits, classes, annotated) -> StepLoss``.

    Args:
        config: Which.
        schema: Where structures are regions, it says which classes belong to which; None: each class is a structure.

    Raises:
        ConfigError: Structures overlap, and the loss lets a voxel be one thing only.
    """
    membership = None
    if schema is not None and schema.has_regions:
        require_activation(config, schema)
        membership = torch.from_numpy(schema.membership)
    return _built(config, membership)


def _built(config: LossConfig, membership: Bool[Tensor, KC] | None) -> WeightedSum:
    match config:
        case DiceConfig():
            dice = DiceLoss(config.activation, config.over, config.smooth, membership)
            return WeightedSum({"dice": dice}, {"dice": 1.0})
        case BinaryCrossEntropyConfig():
            return WeightedSum({"bce": CrossEntropyLoss("sigmoid", membership=membership)}, {"bce": 1.0})
        case CrossEntropyConfig():
            return WeightedSum({"ce": CrossEntropyLoss("softmax")}, {"ce": 1.0})
        case FocalConfig():
            return WeightedSum({"focal": CrossEntropyLoss(config.activation, config.gamma, membership)}, {"focal": 1.0})
        case DiceBinaryCrossEntropyConfig():
            name, term = "bce", CrossEntropyLoss("sigmoid", membership=membership)
        case DiceCrossEntropyConfig():
            name, term = "ce", CrossEntropyLoss("softmax")
        case DiceFocalConfig():
            name, term = "focal", CrossEntropyLoss(config.activation, config.gamma, membership)
        case _:
            assert_never(config)
    dice = DiceLoss(config.activation, config.over, config.smooth, membership)
    return WeightedSum({name: term, "dice": dice}, {name: 1.0, "dice": config.dice_weight})
