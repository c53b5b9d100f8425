"""From a config to a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from torch import nn

from medseg.core.errors import ConfigError
from medseg.models.config import (
    AttentionUNetConfig,
    DynUNetConfig,
    MedNeXtConfig,
    NetworkConfig,
    ResidualUNetConfig,
    SegResNetConfig,
    SwinUNETRConfig,
    UNetConfig,
    VNetConfig,
)
from medseg.models.from_monai import DynUNet, MedNeXt, SegResNet, attention_unet, swin_unetr
from medseg.models.residual_unet import ResidualUNet
from medseg.models.unet import DecoderRule, UNet
from medseg.models.vnet import VNet


def build_model(
    config: NetworkConfig,
    in_channels: int,
    out_channels: int,
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None = None,
) -> nn.Module:
    """Build the network. What it gives: :mod:`~medseg.models.outputs`.

    Args:
        config: Which network and how wide.
        in_channels: Image channels.
        out_channels: Logits a voxel.
        strides: Stride into each stage, from the plan; its length is the number of stages and the entries give the number
            of spatial axes. V-Net, SegResNet, MedNeXt and SwinUNETR halve every axis at every stage.
        kernels: Kernel of each stage of a U-Net, residual U-Net or DynUNet; 3 on every axis unless given.

    Raises:
        ConfigError: The features are left to the planner, and it has not chosen yet.
        ValueError: Features and strides do not have the same number of stages.
    """
    num_axes = len(strides[0])
    network: nn.Module
    match config:
        case UNetConfig(num_convolutions=count):
            rule = _decoder_rule(config)
            network = UNet(in_channels, out_channels, _chosen(config.features), strides, kernels, count, rule)
        case ResidualUNetConfig(num_blocks=blocks):
            rule = _decoder_rule(config)
            network = ResidualUNet(in_channels, out_channels, _chosen(config.features), strides, kernels, blocks, rule)
        case VNetConfig(num_convolutions=counts, deep_supervision=deep):
            cube: list[int] = [config.kernel_size] * num_axes
            network = VNet(in_channels, out_channels, config.width, counts, cube, config.stem_stride, deep)
        case SegResNetConfig(width=width, num_blocks=blocks, deep_supervision=deep):
            network = SegResNet(in_channels, out_channels, width, blocks, num_axes, deep)
        case DynUNetConfig(features=features, residual_blocks=residual, deep_supervision=deep):
            network = DynUNet(in_channels, out_channels, features, strides, kernels, residual, deep)
        case AttentionUNetConfig(features=features):
            network = attention_unet(in_channels, out_channels, features, strides)
        case SwinUNETRConfig(width=width):
            network = swin_unetr(in_channels, out_channels, width, num_axes)
        case MedNeXtConfig(width=width, num_blocks=blocks, deep_supervision=deep):
            cube = [config.kernel_size] * num_axes
            network = MedNeXt(in_channels, out_channels, width, blocks, config.expansion, cube, deep)
        case _:
            assert_never(config)
    return network


def _chosen(features: tuple[int, ...] | None) -> tuple[int, ...]:
    if features is None:
        raise ConfigError(
            "network.features is null, which leaves the choice to the planner: build from its plan, or give it"
        )
    return features


def _decoder_rule(config: UNetConfig | ResidualUNetConfig) -> DecoderRule:
    return DecoderRule(config.decoder_convolutions, config.upsampling_bias, config.deep_supervision)
