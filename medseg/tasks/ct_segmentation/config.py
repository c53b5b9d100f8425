"""The config of a CT segmentation run. Torch-free."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase
from medseg.data.config import AugmentationConfig, CacheConfig, LoaderConfig, PlanChoices, SamplingConfig, SplitsConfig
from medseg.engine.config import TrainerConfig
from medseg.losses.config import DiceCrossEntropyConfig, LossConfig
from medseg.models.config import NetworkConfig, UNetConfig, UniformConfig


class CtSegmentationConfig(ConfigBase):
    """One complete run."""

    task: Literal["ct_segmentation"] = "ct_segmentation"
    """The task."""
    name: str = Field("ct_segmentation", pattern=r"^[\w.-]+$", max_length=100)
    """Of the run: names its folder and its bundle."""
    dataset: Path | None = None
    """Folder or dataset.json; --data sets it."""
    start_from: str | None = None
    """Bundle, run folder or bundled model that is trained further: its network, plan and weights; --from sets it."""
    splits: SplitsConfig = SplitsConfig()
    """Which cases train and which validate."""
    plan: PlanChoices = PlanChoices()
    """What the planner is told."""
    network: NetworkConfig = UNetConfig()
    """kind unet, residual_unet, vnet, segresnet, dynunet, attention_unet, swin_unetr or mednext."""
    loss: LossConfig = DiceCrossEntropyConfig()
    """kind dice, bce, cross_entropy, focal, dice_bce, dice_ce, dice_focal, tversky, focal_tversky or tversky_ce."""
    sampling: SamplingConfig = SamplingConfig()
    """Where patches are cut."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of patches."""
    loader: LoaderConfig = LoaderConfig()
    """How patches reach the network."""
    cache: CacheConfig = CacheConfig()
    """Prepared cases, kept for the next run."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""

    @model_validator(mode="after")
    def _patch_suits_the_network(self) -> CtSegmentationConfig:
        if self.plan.patch_ijk and isinstance(self.network, UniformConfig):
            total = prod(self.network.strides)
            if any(size % total for size in self.plan.patch_ijk) or max(self.plan.patch_ijk) == total:
                raise ValueError(
                    f"plan.patch_ijk must be multiples of {total} for this {self.network.kind}, not all of them {total}"
                )
        return self
