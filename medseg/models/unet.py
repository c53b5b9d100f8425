"""A U-Net in the style of nnU-Net, in two or three dimensions from one class.

Legend: B batch · C channels · the rest are one, two or three spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.shapes import BC_SPATIAL, BL_SPATIAL
from medseg.models.layers import convolution, instance_norm, transposed_convolution

Stride = Sequence[int]


class ConvolutionBlock(nn.Module):
    """Convolution, instance normalisation, LeakyReLU.

    Args:
        in_channels, out_channels: Channels before and after.
        kernel: Odd kernel size of each axis; padding keeps the size.
        stride: Stride of each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Stride) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        self.convolution = convolution(len(kernel))(
            in_channels, out_channels, tuple(kernel), tuple(stride), padding, bias=False
        )
        self.norm = instance_norm(len(kernel))(out_channels, affine=True)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features_BC: Float[Tensor, BC_SPATIAL]) -> Tensor:
        """Features after the block."""
        return cast(Tensor, self.activation(self.norm(self.convolution(features_BC))))


class UNet(nn.Module):
    """Encoder and decoder of plain convolutions, joined by skip connections.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        features: Channels of each stage, finest first.
        strides: Stride on the way into each stage; the first is usually 1. A first stride of 2 makes a network
            that works on half the resolution and upsamples its logits at the end: several times the patches a second.
        kernels: Kernel of each stage; 3 on every axis unless given.
        num_convolutions: Convolutions a stage, in the encoder and in the decoder.

    Source:
        Ronneberger et al. 2015 (U-Net), Isensee et al. 2021 (nnU-Net: instance norm, LeakyReLU 0.01, strided
        convolutions down, transposed convolutions up, no bias). Deviations: no deep supervision here; a first stride above
        1 ends in a transposed convolution straight to the logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Stride],
        kernels: Sequence[Sequence[int]] | None = None,
        num_convolutions: int = 2,
    ) -> None:
        super().__init__()
        num_axes = len(strides[0])
        kernels = kernels or [[3] * num_axes for _ in features]
        if not len(features) == len(strides) == len(kernels):
            raise ValueError("features, strides and kernels need one entry a stage")
        self.total_stride = tuple(math.prod(stride[axis] for stride in strides) for axis in range(num_axes))
        self.encoder = nn.ModuleList()
        width = in_channels
        for stage_features, kernel, stride in zip(features, kernels, strides, strict=True):
            self.encoder.append(_stage(width, stage_features, kernel, stride, num_convolutions))
            width = stage_features
        self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList()
        ways_up = list(zip(pairwise(features), strides[1:], kernels[:-1], strict=True))
        for (fine, coarse), stride, kernel in reversed(ways_up):
            up = transposed_convolution(num_axes)(coarse, fine, tuple(stride), tuple(stride), bias=False)
            self.upsampling.append(up)
            self.decoder.append(_stage(2 * fine, fine, kernel, [1] * num_axes, num_convolutions))
        self.head: nn.Module
        if max(strides[0]) > 1:
            stem = tuple(strides[0])
            self.head = transposed_convolution(num_axes)(features[0], out_channels, stem, stem)
        else:
            self.head = convolution(num_axes)(features[0], out_channels, (1,) * num_axes)
        self.apply(_initialise)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Float[Tensor, BL_SPATIAL]:
        """Logits of the same spatial size; each axis must be a multiple of ``total_stride``."""
        skips = []
        features_BC = image_BC
        for stage in self.encoder:
            features_BC = stage(features_BC)
            skips.append(features_BC)
        for up, stage, skip_BC in zip(self.upsampling, self.decoder, reversed(skips[:-1]), strict=True):
            features_BC = stage(torch.cat([up(features_BC), skip_BC], dim=1))
        return cast(Tensor, self.head(features_BC))


def _stage(
    in_channels: int, out_channels: int, kernel: Sequence[int], stride: Stride, num_convolutions: int
) -> nn.Sequential:
    blocks = [ConvolutionBlock(in_channels, out_channels, kernel, stride)]
    blocks += [
        ConvolutionBlock(out_channels, out_channels, kernel, [1] * len(kernel)) for _ in range(num_convolutions - 1)
    ]
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
