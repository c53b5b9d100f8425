"""A U-Net in the style of nnU-Net, in two or three dimensions from one class.

Legend: B batch · C channels · the rest are one, two or three spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.shapes import BC_SPATIAL
from medseg.models.config import of_stages
from medseg.models.layers import convolution, instance_norm, transposed_convolution
from medseg.models.outputs import Outputs, with_deep_logits

Stride = Sequence[int]


class ConvolutionBlock(nn.Module):
    """Convolution, instance normalisation, LeakyReLU.

    Args:
        in_channels, out_channels: Channels before and after.
        kernel: Odd kernel size of each axis; padding keeps the size.
        stride: Stride of each axis.
        activated: Whether the LeakyReLU is there.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Stride, activated: bool = True
    ) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        self.convolution = convolution(len(kernel))(
            in_channels, out_channels, tuple(kernel), tuple(stride), padding, bias=False
        )
        self.norm = instance_norm(out_channels)
        self.activation: nn.Module = nn.LeakyReLU(0.01, inplace=True) if activated else nn.Identity()

    def forward(self, features_BC: Float[Tensor, BC_SPATIAL]) -> Tensor:
        """Features after the block."""
        return cast(Tensor, self.activation(self.norm(self.convolution(features_BC))))


class DecoderRule(NamedTuple):
    """What a decoder is made of, besides features, strides and kernels.

    Attributes:
        num_convolutions: Of each stage, finest first, deeper ones with as many as the last; None: as many as the encoder's.
        upsampling_bias: Whether the transposed convolutions add a constant to each channel.
        deep_supervision: In training, also give the logits of the coarser stages.
    """

    num_convolutions: int | Sequence[int] | None = None
    upsampling_bias: bool = False
    deep_supervision: bool = False


USUAL_DECODER = DecoderRule()


class EncoderDecoder(nn.Module):
    """Any encoder, and a decoder of plain convolutions, joined by skip connections.

    Args:
        encoder: Its stages, finest first, each with its stride.
        out_channels: Logits a voxel.
        features: Channels of each stage.
        strides: Stride of each stage. Where the first is above 1, a transposed convolution leads straight to the logits.
        kernels: Kernel of each stage.
        rule: Of the decoder, with the number of its convolutions.
    """

    def __init__(
        self,
        encoder: Iterable[nn.Module],
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Stride],
        kernels: Sequence[Sequence[int]],
        rule: DecoderRule,
    ) -> None:
        super().__init__()
        assert rule.num_convolutions is not None
        counts = of_stages(rule.num_convolutions, len(features))
        num_axes = len(strides[0])
        self.total_stride = tuple(math.prod(stride[axis] for stride in strides) for axis in range(num_axes))
        self.encoder = nn.ModuleList(encoder)
        self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList()
        ways_up = list(zip(pairwise(features), strides[1:], kernels[:-1], counts[:-1], strict=True))
        upsample, bias = transposed_convolution(num_axes), rule.upsampling_bias
        for (fine, coarse), stride, kernel, count in reversed(ways_up):
            self.upsampling.append(upsample(coarse, fine, tuple(stride), tuple(stride), bias=bias))
            self.decoder.append(plain_stage(2 * fine, fine, kernel, [1] * num_axes, count))
        stem = tuple(strides[0])
        self.head: nn.Module
        if max(stem) > 1:
            self.head = transposed_convolution(num_axes)(features[0], out_channels, stem, stem)
        else:
            self.head = convolution(num_axes)(features[0], out_channels, (1,) * num_axes)
        coarse_stages = features[1:-1] if rule.deep_supervision else ()
        self.deep_heads = nn.ModuleList(convolution(num_axes)(width, out_channels, 1) for width in coarse_stages)
        self.apply(_initialise)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Outputs:
        """Logits of the same spatial size; each axis must be a multiple of ``total_stride``.

        In training with deep supervision also those of the coarser stages, as a tuple, finest first.
        """
        skips = []
        features_BC = image_BC
        for stage in self.encoder:
            features_BC = stage(features_BC)
            skips.append(features_BC)
        stages = []
        for up, stage, skip_BC in zip(self.upsampling, self.decoder, reversed(skips[:-1]), strict=True):
            features_BC = stage(torch.cat([up(features_BC), skip_BC], dim=1))
            stages.append(features_BC)
        return with_deep_logits(self.head(features_BC), self.deep_heads, stages, self.training)


class UNet(EncoderDecoder):
    """Encoder and decoder of plain convolutions.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        features: Channels of each stage, finest first.
        strides: Stride on the way into each stage; the first is usually 1. A first stride of 2 makes a network
            that works on half the resolution and upsamples its logits at the end: several times the patches a second.
        kernels: Kernel of each stage; 3 on every axis unless given.
        num_convolutions: Convolutions a stage, in the encoder and in the decoder; or of each stage, finest first, deeper ones with
            as many as the last. One at full resolution costs half as much as two, and most of a network's time is spent there.
        rule: Of the decoder.

    Source:
        Ronneberger et al. 2015 (U-Net), Isensee et al. 2021 (nnU-Net: instance norm, LeakyReLU 0.01, strided
        convolutions down, transposed convolutions up). Deviations: no bias where a normalisation takes it away again, and of
        the upsampling only if it is asked for; a first stride above 1 ends in a transposed
        convolution straight to the logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Stride],
        kernels: Sequence[Sequence[int]] | None = None,
        num_convolutions: int | Sequence[int] = 2,
        rule: DecoderRule = USUAL_DECODER,
    ) -> None:
        kernels = kernels_of_stages(features, strides, kernels)
        widths, counts = pairwise([in_channels, *features]), of_stages(num_convolutions, len(features))
        encoder = [
            plain_stage(before, after, kernel, stride, count)
            for (before, after), kernel, stride, count in zip(widths, kernels, strides, counts, strict=True)
        ]
        rule = rule if rule.num_convolutions is not None else rule._replace(num_convolutions=counts)
        super().__init__(encoder, out_channels, features, strides, kernels, rule)


def kernels_of_stages(
    features: Sequence[int], strides: Sequence[Stride], kernels: Sequence[Sequence[int]] | None
) -> Sequence[Sequence[int]]:
    """The kernels, 3 on every axis unless given; raises ValueError where features, strides and kernels don't fit together."""
    kernels = kernels or [[3] * len(stride) for stride in strides]
    if not len(features) == len(strides) == len(kernels):
        counts = f"{len(features)} features, {len(strides)} strides and {len(kernels)} kernels"
        raise ValueError(f"expected one entry a stage, found {counts}")
    return kernels


def plain_stage(
    in_channels: int, out_channels: int, kernel: Sequence[int], stride: Stride, num_convolutions: int
) -> nn.Sequential:
    """Convolution blocks in a row, the first with the stride."""
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
