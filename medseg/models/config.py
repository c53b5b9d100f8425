"""What a config says of a network. Torch-free; :mod:`medseg.models.build` makes the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from medseg.core.config import ConfigBase

Count = Annotated[int, Field(ge=1, le=16)]
Few = Annotated[int, Field(ge=1, le=4)]
Width = Annotated[int, Field(ge=1)]


def of_stages(numbers: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """A number for each stage, finest first: one for all, or those given, of which the last is for all deeper ones."""
    given = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return tuple(given[min(stage, len(given) - 1)] for stage in range(num_stages))


class UNetConfig(ConfigBase):
    """nnU-Net style: plain convolutions, instance norm, LeakyReLU."""

    kind: Literal["unet"] = "unet"
    features: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] | None = None
    """Channels of each stage, finest first; null: the planner chooses."""
    stem_stride: Literal[1, 2] | None = None
    """2: work on half the resolution and upsample the logits, about five times the patches a second; 1: full resolution; null: the planner chooses."""
    num_convolutions: Few | Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] = 2
    """Convolutions of each stage; or a number for each, finest first, deeper stages with as many as the last."""
    decoder_convolutions: Few | Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] | None = None
    """The same for the decoder; null: as many as in the encoder."""
    upsampling_bias: bool = False
    """Add a constant to each upsampled channel, as nnU-Net does; imported networks have it."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""


class ResidualUNetConfig(ConfigBase):
    """nnU-Net's residual-encoder U-Net: residual blocks down, one convolution a stage up."""

    kind: Literal["residual_unet"] = "residual_unet"
    features: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] | None = None
    """Channels of each stage, finest first; null: the planner chooses."""
    stem_stride: Literal[1, 2] | None = None
    """2: work on half the resolution and upsample the logits, about five times the patches a second; 1: full resolution; null: the planner chooses."""
    num_blocks: tuple[Count, ...] = Field((1, 2, 2, 2), min_length=1, max_length=8)
    """Residual blocks of each stage, finest first; deeper stages have as many as the last (nnU-Net's M has 1, 3, 4, 6)."""
    decoder_convolutions: Few | Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] = 1
    """Convolutions of each stage of the decoder; or a number for each, finest first, deeper stages with as many as the last."""
    upsampling_bias: bool = False
    """Add a constant to each upsampled channel, as nnU-Net does; imported networks have it."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""


class VNetConfig(ConfigBase):
    """Milletari 2016: residual stages, PReLU."""

    kind: Literal["vnet"] = "vnet"
    width: int = Field(8, ge=1, le=64)
    """Channels of the finest stage (16 in the paper), doubled at each stage."""
    num_convolutions: tuple[int, ...] = Field((1, 2, 3, 3, 3), min_length=2, max_length=6)
    """Convolutions of each stage, finest first (1, 2, 3, 3, 3 in the paper)."""
    kernel_size: Literal[3, 5] = 5
    """Edge of the kernels (5 in the paper)."""
    stem_stride: Literal[1, 2] = 1
    """2: work on half the resolution (1 in the paper)."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Into each stage, along every axis."""
        return (self.stem_stride, *[2] * (len(self.num_convolutions) - 1))


class SegResNetConfig(ConfigBase):
    """Myronenko 2018, as MONAI's Auto3DSeg has it (SegResNetDS): residual blocks, sums instead of concatenations."""

    kind: Literal["segresnet"] = "segresnet"
    width: int = Field(8, ge=1, le=128)
    """Channels of the finest stage (32 in Auto3DSeg), doubled at each stage."""
    num_blocks: tuple[Count, ...] = Field((1, 2, 2, 4), min_length=2, max_length=8)
    """Residual blocks of each stage of the encoder, finest first (1, 2, 2, 4, 4 in Auto3DSeg); the decoder has one."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Into each stage, along every axis."""
        return (1, *[2] * (len(self.num_blocks) - 1))


class DynUNetConfig(ConfigBase):
    """MONAI's reimplementation of nnU-Net's network (DynUNet), at full resolution."""

    kind: Literal["dynunet"] = "dynunet"
    features: Annotated[tuple[Width, ...], Field(min_length=3, max_length=8)] = (8, 16, 32, 64)
    """Channels of each stage, finest first."""
    residual_blocks: bool = False
    """Residual blocks instead of plain convolutions."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""


class AttentionUNetConfig(ConfigBase):
    """Oktay 2018 (MONAI's AttentionUnet): skip connections are weighted by what the coarser stage looks for."""

    kind: Literal["attention_unet"] = "attention_unet"
    features: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] = (8, 16, 32, 64)
    """Channels of each stage, finest first."""


class SwinUNETRConfig(ConfigBase):
    """Hatamizadeh 2022 (MONAI's SwinUNETR): windows of attention in the encoder. Patches are multiples of 32."""

    kind: Literal["swin_unetr"] = "swin_unetr"
    width: int = Field(12, multiple_of=12, ge=12, le=96)
    """Channels of the finest stage, a multiple of 12 (48 in the paper)."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Into each stage, along every axis: patches of 2, and four times two patches become one."""
        return (1, 2, 2, 2, 2, 2)


class MedNeXtConfig(ConfigBase):
    """Roy 2023 (MONAI's MedNeXt): blocks as in ConvNeXt, depthwise convolutions and an inverted bottleneck."""

    kind: Literal["mednext"] = "mednext"
    width: int = Field(8, ge=1, le=64)
    """Channels of the finest stage (32 in the paper), doubled at each stage."""
    num_blocks: tuple[Count, ...] = Field((1, 1, 1, 1), min_length=2, max_length=8)
    """Blocks of each stage, finest first, in the encoder as in the decoder (2, 2, 2, 2, 2 in the paper's S)."""
    expansion: int = Field(2, ge=1, le=8)
    """How much wider a block is inside (2 in the paper's S)."""
    kernel_size: Literal[3, 5, 7] = 3
    """Edge of the depthwise kernels (3 or 5 in the paper)."""
    deep_supervision: bool = False
    """Learn from the coarser stages of the decoder too; costs nothing when predicting."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Into each stage, along every axis."""
        return (1, *[2] * (len(self.num_blocks) - 1))


UniformConfig = VNetConfig | SegResNetConfig | SwinUNETRConfig | MedNeXtConfig
"""Networks that stride all axes alike at every stage, whatever their spacing."""

NetworkConfig = Annotated[
    UNetConfig
    | ResidualUNetConfig
    | VNetConfig
    | SegResNetConfig
    | DynUNetConfig
    | AttentionUNetConfig
    | SwinUNETRConfig
    | MedNeXtConfig,
    Field(discriminator="kind"),
]
