"""From a config to a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from torch import nn

from medseg.models.config import NetworkConfig, UNetConfig, VNetConfig
from medseg.models.unet import UNet
from medseg.models.vnet import VNet


def build_model(
    config: NetworkConfig, in_channels: int, out_channels: int, strides: Sequence[Sequence[int]]
) -> nn.Module:
    """Build the network.

    Args:
        config: Which network and how wide.
        in_channels: Image channels.
        out_channels: Logits a voxel.
        strides: Stride into each stage of a U-Net, from the plan; its length is the number of stages and the
            entries give the number of spatial axes. A V-Net halves every axis at every stage.
    """
    match config:
        case UNetConfig():
            return UNet(in_channels, out_channels, config.features, strides, num_convolutions=config.num_convolutions)
        case VNetConfig():
            return VNet(
                in_channels,
                out_channels,
                config.width,
                config.num_convolutions,
                config.kernel_size,
                config.stem_stride,
                num_axes=len(strides[0]),
            )
        case _:
            assert_never(config)
