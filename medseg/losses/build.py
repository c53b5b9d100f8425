"""From a config to a loss."""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Bool
from torch import Tensor, nn

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
    FocalTverskyConfig,
    LossConfig,
    TverskyConfig,
    TverskyCrossEntropyConfig,
    require_activation,
)
from medseg.losses.cross_entropy import CrossEntropyLoss
from medseg.losses.dice import DiceLoss
from medseg.losses.partial import KC
from medseg.losses.tversky import TverskyLoss


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
    def cross_entropy(gamma: float = 0.0) -> CrossEntropyLoss:
        return CrossEntropyLoss(config.activation, gamma, membership)

    ce = "ce" if config.activation == "softmax" else "bce"
    terms: dict[str, tuple[nn.Module, float]]
    match config:
        case DiceConfig():
            terms = {"dice": (_dice(config, membership), 1.0)}
        case BinaryCrossEntropyConfig() | CrossEntropyConfig():
            terms = {ce: (cross_entropy(), 1.0)}
        case FocalConfig():
            terms = {"focal": (cross_entropy(config.gamma), 1.0)}
        case TverskyConfig() | FocalTverskyConfig():
            terms = {config.kind: (_tversky(config, membership), 1.0)}
        case DiceBinaryCrossEntropyConfig() | DiceCrossEntropyConfig():
            terms = {ce: (cross_entropy(), 1.0), "dice": (_dice(config, membership), config.dice_weight)}
        case DiceFocalConfig():
            dice = _dice(config, membership)
            terms = {"focal": (cross_entropy(config.gamma), 1.0), "dice": (dice, config.dice_weight)}
        case TverskyCrossEntropyConfig():
            terms = {ce: (cross_entropy(), 1.0), "tversky": (_tversky(config, membership), config.tversky_weight)}
        case _:
            assert_never(config)
    return WeightedSum(
        {name: loss for name, (loss, _) in terms.items()}, {name: weight for name, (_, weight) in terms.items()}
    )


def _dice(
    config: DiceConfig | DiceBinaryCrossEntropyConfig | DiceCrossEntropyConfig | DiceFocalConfig,
    membership: Bool[Tensor, KC] | None,
) -> DiceLoss:
    return DiceLoss(config.activation, config.over, config.smooth, membership)


def _tversky(
    config: TverskyConfig | FocalTverskyConfig | TverskyCrossEntropyConfig, membership: Bool[Tensor, KC] | None
) -> TverskyLoss:
    gamma = config.gamma if isinstance(config, FocalTverskyConfig) else 1.0
    return TverskyLoss(config.activation, config.alpha, config.beta, gamma, config.over, config.smooth, membership)
