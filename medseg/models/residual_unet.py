"""nnU-Net's residual-encoder U-Net, in two or three dimensions from one class.

Legend: B batch · C channels · the rest are the spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.shapes import BC_SPATIAL
from medseg.models.config import of_stages
from medseg.models.layers import average_pool
from medseg.models.unet import USUAL_DECODER, ConvolutionBlock, DecoderRule, EncoderDecoder, Stride, kernels_of_stages


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to the block's input.

    The way around averages where the block has a stride, and is a 1³ convolution where the channels change (ResNet-D).

    Args:
        in_channels, out_channels: Channels before and after.
        kernel: Odd kernel size of each axis.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Stride) -> None:
        super().__init__()
        ones = [1] * len(kernel)
        self.first = ConvolutionBlock(in_channels, out_channels, kernel, stride)
        self.second = ConvolutionBlock(out_channels, out_channels, kernel, ones, activated=False)
        around: list[nn.Module] = []
        if max(stride) > 1:
            around.append(average_pool(len(kernel))(tuple(stride)))
        if in_channels != out_channels:
            around.append(ConvolutionBlock(in_channels, out_channels, ones, ones, activated=False))
        self.around = nn.Sequential(*around)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features_BC: Float[Tensor, BC_SPATIAL]) -> Tensor:
        """Features after the block."""
        return cast(Tensor, self.activation(self.second(self.first(features_BC)) + self.around(features_BC)))


class ResidualUNet(EncoderDecoder):
    """Residual blocks in the encoder, plain convolutions in the decoder, one a stage unless its rule says otherwise.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        features: Channels of each stage, finest first.
        strides: Stride on the way into each stage; a first stride of 2 works on half the resolution, as in the U-Net.
        kernels: Kernel of each stage; 3 on every axis unless given.
        num_blocks: Residual blocks of each stage; deeper stages have as many as the last given.
        rule: Of the decoder.

    Source:
        Isensee et al. 2024, "nnU-Net Revisited" (ResEnc; blocks of He et al. 2019, ResNet-D). A block begins as its way
        around, because the scale of its last normalisation begins at 0. Deviation: a first stride above 1 is the stem's,
        and ends in a transposed convolution straight to the logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Stride],
        kernels: Sequence[Sequence[int]] | None = None,
        num_blocks: Sequence[int] = (1, 3, 4, 6),
        rule: DecoderRule = USUAL_DECODER,
    ) -> None:
        ones = [1] * len(strides[0])
        kernels = kernels_of_stages(features, strides, kernels)
        stem = ConvolutionBlock(in_channels, features[0], kernels[0], strides[0])
        widths = pairwise([features[0], *features])
        encoder = []
        counts = of_stages(num_blocks, len(features))
        for stage, ((before, after), kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
            blocks: list[nn.Module] = [ResidualBlock(before, after, kernel, stride if stage else ones)]
            blocks += [ResidualBlock(after, after, kernel, ones) for _ in range(counts[stage] - 1)]
            encoder.append(nn.Sequential(*blocks) if stage else nn.Sequential(stem, *blocks))
        rule = rule if rule.num_convolutions is not None else rule._replace(num_convolutions=1)
        super().__init__(encoder, out_channels, features, strides, kernels, rule)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.second.norm.get_parameter("weight"))
