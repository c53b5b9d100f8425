"""V-Net: residual stages of 5³ convolutions.

Legend: B batch · C channels · the rest are the spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.shapes import BC_SPATIAL
from medseg.models.layers import Layer, convolution, instance_norm, transposed_convolution
from medseg.models.outputs import Outputs, with_deep_logits

PRELU_SLOPE = 0.25
"""Of a PReLU before it has learnt anything, in torch as in He et al. 2015."""


class ResidualStage(nn.Module):
    """Several convolutions whose result is added to the stage's input.

    Args:
        in_channels: Channels of the features that enter the convolutions.
        out_channels: Channels of the stage.
        num_convolutions: How many convolutions.
        kernel: Odd kernel size of each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, num_convolutions: int, kernel: Sequence[int]) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        layers: list[nn.Module] = []
        for index in range(num_convolutions):
            width = in_channels if index == 0 else out_channels
            layers.append(convolution(len(kernel))(width, out_channels, tuple(kernel), padding=padding, bias=False))
            layers.append(instance_norm(out_channels))
            if index < num_convolutions - 1:
                layers.append(nn.PReLU(out_channels))
        self.convolutions = nn.Sequential(*layers)
        self.activation = nn.PReLU(out_channels)

    def forward(self, features_BC: Float[Tensor, BC_SPATIAL], residual_BC: Tensor | None = None) -> Tensor:
        """Features plus the residual (the input itself unless given; one channel is repeated to fit)."""
        residual_BC = features_BC if residual_BC is None else residual_BC
        return cast(Tensor, self.activation(self.convolutions(features_BC) + residual_BC))


class VNet(nn.Module):
    """The V-Net in two or three dimensions.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        width: Channels of the finest stage (16 in the paper), doubled at each stage.
        num_convolutions: Convolutions of each stage, finest first (1, 2, 3, 3, 3 in the paper).
        kernel: Odd kernel size of each axis (5 in the paper).
        stem_stride: Stride of the first convolution; above 1 the network works on a coarser grid and upsamples its
            logits by a transposed convolution.
        deep_supervision: In training, also give the logits of the coarser stages of the decoder.

    Source:
        Milletari et al. 2016, arXiv:1606.04797: 5³ convolutions, residual stages, PReLU, 2³ convolutions of stride 2 down
        and transposed ones up. Deviations: instance normalisation (the paper has none); the first convolution is explicit, so that several image channels fit
        where the paper repeats one; He initialisation for PReLU, because torch's default leaves the weights of large
        kernels so small that a step of Adam overwrites them; ``stem_stride`` and ``width`` for machines without a GPU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 16,
        num_convolutions: Sequence[int] = (1, 2, 3, 3, 3),
        kernel: Sequence[int] = (5, 5, 5),
        stem_stride: int = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        num_axes, padding = len(kernel), tuple(size // 2 for size in kernel)
        features = [width * 2**stage for stage in range(len(num_convolutions))]
        self.total_stride = (stem_stride * 2 ** (len(features) - 1),) * num_axes
        self.stem = nn.Sequential(
            convolution(num_axes)(in_channels, width, tuple(kernel), stem_stride, padding, bias=False),
            instance_norm(width),
            nn.PReLU(width),
        )
        self.encoder = nn.ModuleList(
            ResidualStage(channels, channels, count, kernel)
            for channels, count in zip(features, num_convolutions, strict=True)
        )
        self.downsampling, self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(features):
            self.downsampling.append(_rescaling(convolution(num_axes), fine, coarse))
        for (fine, coarse), count in reversed(list(zip(pairwise(features), num_convolutions[:-1], strict=True))):
            self.upsampling.append(_rescaling(transposed_convolution(num_axes), coarse, fine))
            self.decoder.append(ResidualStage(2 * fine, fine, count, kernel))
        if stem_stride > 1:
            self.head: nn.Module = transposed_convolution(num_axes)(width, out_channels, stem_stride, stem_stride)
        else:
            self.head = convolution(num_axes)(width, out_channels, 1)
        coarse_stages = features[1:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(convolution(num_axes)(channels, out_channels, 1) for channels in coarse_stages)
        self.apply(_initialise)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Outputs:
        """Logits of the same spatial size; each axis must be a multiple of ``total_stride``.

        In training with deep supervision also those of the coarser stages, as a tuple, finest first.
        """
        features_BC = self.stem(image_BC)
        skips = []
        for index, stage in enumerate(self.encoder):
            features_BC = stage(features_BC)
            skips.append(features_BC)
            if index < len(self.downsampling):
                features_BC = self.downsampling[index](features_BC)
        stages = []
        for up, stage, skip_BC in zip(self.upsampling, self.decoder, reversed(skips[:-1]), strict=True):
            raised_BC = up(features_BC)
            features_BC = stage(torch.cat([raised_BC, skip_BC], dim=1), raised_BC)
            stages.append(features_BC)
        return with_deep_logits(self.head(features_BC), self.deep_heads, stages, self.training)


def _rescaling(layer: Layer, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        layer(in_channels, out_channels, 2, 2, bias=False),
        instance_norm(out_channels),
        nn.PReLU(out_channels),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=PRELU_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
