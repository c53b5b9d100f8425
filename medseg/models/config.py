"""What a config says of a network. Torch-free; :mod:`medseg.models.build` makes the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase

Stride3 = tuple[int, int, int]


class UNetConfig(ConfigBase):
    """nnU-Net style: plain convolutions, instance norm, LeakyReLU."""

    kind: Literal["unet"] = "unet"
    features: tuple[int, ...] = Field((16, 32, 64, 128), min_length=2, max_length=8)
    """Channels of each stage, finest first."""
    stem_stride: Literal[1, 2] = 2
    """2: work on half the resolution and upsample the logits, about five times the patches a second; 1: full resolution."""
    num_convolutions: int = Field(2, ge=1, le=4)
    """Convolutions of each stage."""

    @model_validator(mode="after")
    def _features_are_positive(self) -> UNetConfig:
        if min(self.features) < 1:
            raise ValueError("features must be positive")
        return self


class VNetConfig(ConfigBase):
    """Milletari 2016: residual stages, PReLU."""

    kind: Literal["vnet"] = "vnet"
    width: int = Field(16, ge=1, le=64)
    """Channels of the finest stage (16 in the paper), doubled at each stage."""
    num_convolutions: tuple[int, ...] = Field((1, 2, 3, 3, 3), min_length=2, max_length=6)
    """Convolutions of each stage, finest first (1, 2, 3, 3, 3 in the paper)."""
    kernel_size: Literal[3, 5] = 5
    """Edge of the kernels (5 in the paper)."""
    stem_stride: Literal[1, 2] = 1
    """2: work on half the resolution (1 in the paper)."""


NetworkConfig = Annotated[UNetConfig | VNetConfig, Field(discriminator="kind")]
