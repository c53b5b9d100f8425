"""The config of a CT segmentation run. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase
from medseg.data.config import AugmentationConfig, LoaderConfig, PlanChoices, SamplingConfig
from medseg.engine.config import TrainerConfig
from medseg.losses.config import DiceCrossEntropyConfig, LossConfig
from medseg.models.config import NetworkConfig, UNetConfig


class CtSegmentationConfig(ConfigBase):
    """One complete run."""

    task: Literal["ct_segmentation"] = "ct_segmentation"
    """The task."""
    name: str = Field("ct_segmentation", pattern=r"^[\w.-]+$", max_length=100)
    """Of the run: names its folder and its bundle."""
    dataset: Path | None = None
    """Folder or dataset.json; --data sets it."""
    plan: PlanChoices = PlanChoices()
    """What the planner is told."""
    network: NetworkConfig = UNetConfig()
    """kind unet or vnet."""
    loss: LossConfig = DiceCrossEntropyConfig()
    """kind dice, bce, cross_entropy, focal, dice_bce, dice_ce or dice_focal."""
    sampling: SamplingConfig = SamplingConfig()
    """Where patches are cut."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of patches."""
    loader: LoaderConfig = LoaderConfig()
    """How patches reach the network."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""

    @model_validator(mode="after")
    def _patch_suits_the_network(self) -> CtSegmentationConfig:
        if self.plan.patch_ijk and self.network.kind == "vnet":
            stages = len(self.network.num_convolutions) - 1
            total = self.network.stem_stride * 2**stages
            if any(size % total for size in self.plan.patch_ijk):
                raise ValueError(f"plan.patch_ijk must be multiples of {total} for this V-Net")
        return self
