"""Networks from MONAI, made to give what ours give (:mod:`~medseg.models.outputs`).

Those with deep supervision are joined here from MONAI's parts: MONAI's own ``forward`` also computes the coarser stages' logits when it
predicts (SegResNetDS, MedNeXt), or enlarges and stacks them and holds each part twice, which would double a bundle (DynUNet).

MONAI takes seconds to import, so it is imported where one of its networks is built.

Legend: B batch · C channels · the rest are the spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.shapes import BC_SPATIAL
from medseg.models.layers import convolution
from medseg.models.outputs import Outputs, with_deep_logits


class SegResNet(nn.Module):
    """The parts of MONAI's SegResNetDS with instance normalisation; every stride is 2.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        width: Channels of the finest stage, doubled at each stage.
        num_blocks: Residual blocks of each stage of the encoder, finest first; the decoder has one a stage.
        num_axes: 2 or 3.
        deep_supervision: In training, also give the logits of the coarser stages.

    Source: Myronenko 2018, arXiv:1810.11654, without the autoencoder; its variant in Auto3DSeg.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        num_blocks: Sequence[int],
        num_axes: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        from monai.networks.nets.segresnet_ds import SegResNetDS

        parts = SegResNetDS(
            spatial_dims=num_axes,
            init_filters=width,
            in_channels=in_channels,
            out_channels=out_channels,
            norm="instance",
            blocks_down=tuple(num_blocks),
        )
        self.encoder, self.decoder = parts.encoder, parts.up_layers
        self.deep_heads = _deep_heads(width, len(num_blocks), out_channels, num_axes, deep_supervision)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Outputs:
        """Logits; each axis must be a multiple of 2 to the number of strides."""
        *skips, features_BC = self.encoder(image_BC)
        stages = []
        for stage, skip_BC in zip(self.decoder, reversed(skips), strict=True):
            features_BC = stage["blocks"](stage["upsample"](features_BC) + skip_BC)
            stages.append(features_BC)
        return with_deep_logits(self.decoder[-1]["head"](features_BC), self.deep_heads, stages, self.training)


class DynUNet(nn.Module):
    """The parts of MONAI's DynUNet.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        features: Channels of each stage, finest first; at least three.
        strides: Stride on the way into each stage, the first 1.
        kernels: Kernel of each stage; 3 on every axis unless given.
        residual_blocks: Residual blocks instead of plain convolutions.
        deep_supervision: In training, also give the logits of the coarser stages.

    Source: Isensee et al. 2021 (nnU-Net), as MONAI's ``DynUNet`` has it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]] | None = None,
        residual_blocks: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet

        num_axes = len(strides[0])
        parts = MonaiDynUNet(
            spatial_dims=num_axes,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels or [[3] * num_axes for _ in features],
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=features,
            res_block=residual_blocks,
        )
        self.encoder = nn.ModuleList([parts.input_block, *parts.downsamples, parts.bottleneck])
        self.decoder, self.head = parts.upsamples, parts.output_block
        coarse_stages = features[1:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(convolution(num_axes)(width, out_channels, 1) for width in coarse_stages)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Outputs:
        """Logits; each axis must be a multiple of the product of its strides."""
        skips, stages = [], []
        features_BC = image_BC
        for stage in self.encoder:
            features_BC = stage(features_BC)
            skips.append(features_BC)
        for stage, skip_BC in zip(self.decoder, reversed(skips[:-1]), strict=True):
            features_BC = stage(features_BC, skip_BC)
            stages.append(features_BC)
        return with_deep_logits(self.head(features_BC), self.deep_heads, stages, self.training)


def attention_unet(
    in_channels: int, out_channels: int, features: Sequence[int], strides: Sequence[Sequence[int]]
) -> nn.Module:
    """MONAI's AttentionUnet (Oktay et al. 2018, arXiv:1804.03999), with batch normalisation.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        features: Channels of each stage, finest first.
        strides: Stride on the way into each stage, the first 1.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    steps = [tuple(stride) for stride in strides[1:]]
    return cast(nn.Module, AttentionUnet(len(strides[0]), in_channels, out_channels, features, steps))


def swin_unetr(in_channels: int, out_channels: int, width: int, num_axes: int) -> nn.Module:
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022, arXiv:2201.01266). Each axis of the image must be a multiple of 32.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        width: Channels of the finest stage, a multiple of 12.
        num_axes: 2 or 3.
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    # It reads values of tensors while it is built, so it cannot be built on torch's device of shapes without values.
    with torch.device("cpu"):
        network: nn.Module = SwinUNETR(in_channels, out_channels, feature_size=width, spatial_dims=num_axes)
    for module in network.modules():
        table = dict(module.named_buffers(recurse=False)).get("relative_position_index")
        if table is not None:  # it follows from the size of the window, and would put 8 MB into every bundle
            module.register_buffer("relative_position_index", table, persistent=False)
    return network


class MedNeXt(nn.Module):
    """The parts of MONAI's MedNeXt with residual connections; every stride is 2.

    Args:
        in_channels: Image channels.
        out_channels: Logits a voxel.
        width: Channels of the finest stage, doubled at each stage.
        num_blocks: Blocks of each stage, finest first, in the encoder as in the decoder.
        expansion: How much wider a block is inside.
        kernel: Odd kernel size of each axis, the same for all.
        deep_supervision: In training, also give the logits of the coarser stages.

    Source: Roy et al. 2023, arXiv:2303.09975.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        num_blocks: Sequence[int],
        expansion: int,
        kernel: Sequence[int],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt

        parts = MonaiMedNeXt(
            spatial_dims=len(kernel),
            init_filters=width,
            in_channels=in_channels,
            out_channels=out_channels,
            encoder_expansion_ratio=expansion,
            decoder_expansion_ratio=expansion,
            bottleneck_expansion_ratio=expansion,
            kernel_size=kernel[0],
            use_residual_connection=True,
            blocks_down=num_blocks[:-1],
            blocks_bottleneck=num_blocks[-1],
            blocks_up=num_blocks[-2::-1],
        )
        self.stem, self.encoder, self.downsampling = parts.stem, parts.enc_stages, parts.down_blocks
        self.bottleneck = parts.bottleneck
        self.upsampling, self.decoder, self.head = parts.up_blocks, parts.dec_stages, parts.out_0
        self.deep_heads = _deep_heads(width, len(num_blocks), out_channels, len(kernel), deep_supervision)

    def forward(self, image_BC: Float[Tensor, BC_SPATIAL]) -> Outputs:
        """Logits; each axis must be a multiple of 2 to the number of strides."""
        features_BC = self.stem(image_BC)
        skips, stages = [], []
        for stage, down in zip(self.encoder, self.downsampling, strict=True):
            skips.append(stage(features_BC))
            features_BC = down(skips[-1])
        features_BC = self.bottleneck(features_BC)
        for up, stage, skip_BC in zip(self.upsampling, self.decoder, reversed(skips), strict=True):
            features_BC = stage(up(features_BC) + skip_BC)
            stages.append(features_BC)
        return with_deep_logits(self.head(features_BC), self.deep_heads, stages, self.training)


def _deep_heads(width: int, num_stages: int, out_channels: int, num_axes: int, wanted: bool) -> nn.ModuleList:
    """Of a network that doubles its width at each stage: for all stages but the finest and the coarsest."""
    widths = [width * 2**stage for stage in range(1, num_stages - 1)] if wanted else []
    return nn.ModuleList(convolution(num_axes)(channels, out_channels, 1) for channels in widths)
