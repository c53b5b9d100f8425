"""What a config says of data: how they are normalised, sampled and augmented. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase

Probability = Annotated[float, Field(ge=0, le=1)]


class WindowNormalisation(ConfigBase):
    """Clip to a window, subtract a mean, divide by a standard deviation: for CT, whose numbers mean the same everywhere."""

    kind: Literal["window"] = "window"
    low: float
    """Lower end of the window [HU for CT]."""
    high: float
    """Upper end of the window [HU for CT]."""
    mean: float
    """Subtracted after clipping."""
    std: float = Field(gt=0)
    """Divided by, last."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> WindowNormalisation:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class ZScoreNormalisation(ConfigBase):
    """Subtract each image's own mean, divide by its own standard deviation: for MR and other relative units."""

    kind: Literal["zscore"] = "zscore"


Normalisation = Annotated[WindowNormalisation | ZScoreNormalisation, Field(discriminator="kind")]


class PlanChoices(ConfigBase):
    """What the planner is told; what is null it decides from the data."""

    spacing_mm: tuple[float, float, float] | None = None
    """Spacing of the network's grid along R, A, S [mm]; null: the median of the training cases."""
    patch_ijk: tuple[int, int, int] | None = None
    """Patch along R, A, S [voxels]; null: the shape of a median case, scaled to patch_voxels."""
    patch_voxels: int = Field(262_144, ge=512)
    """About how many voxels a patch has where patch_ijk is null (262144 is 64 cubed)."""
    window_hu: tuple[float, float] | None = None
    """Intensity window of CT channels [HU]; null: the 0.5 and 99.5 percentile inside the structures."""

    @model_validator(mode="after")
    def _are_possible(self) -> PlanChoices:
        if self.spacing_mm and not all(0.05 <= spacing <= 20 for spacing in self.spacing_mm):
            raise ValueError("spacing_mm must lie between 0.05 and 20")
        if self.patch_ijk and min(self.patch_ijk) < 4:
            raise ValueError("patch_ijk must be at least 4 voxels along each axis")
        if self.window_hu and self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu must be [low, high] with low below high")
        return self


class SamplingConfig(ConfigBase):
    """Where patches are cut."""

    foreground_fraction: Probability = 0.5
    """Share of patches centred on a structure: one drawn uniformly among those of the case, then one of its voxels."""


class AugmentationConfig(ConfigBase):
    """Random changes of patches, each with its probability and range."""

    mirror: Literal["none", "left_right", "all_axes"] = "left_right"
    """left_right: mirror the patient and swap left and right structures; all_axes: also front-back and head-foot."""
    noise_probability: Probability = 0.1
    """Add Gaussian noise."""
    noise_std: tuple[float, float] = (0.0, 0.1)
    """Its standard deviation, in units of normalised intensity."""
    brightness_probability: Probability = 0.15
    """Multiply by a factor."""
    brightness_factor: tuple[float, float] = (0.75, 1.25)
    """The factor."""
    contrast_probability: Probability = 0.15
    """Multiply the distance from the patch's mean by a factor, within the patch's old range."""
    contrast_factor: tuple[float, float] = (0.75, 1.25)
    """The factor."""
    gamma_probability: Probability = 0.3
    """Raise intensities, scaled to 0..1, to a power; mean and standard deviation are kept."""
    gamma_exponent: tuple[float, float] = (0.7, 1.5)
    """The power."""

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> AugmentationConfig:
        for name in ("noise_std", "brightness_factor", "contrast_factor", "gamma_exponent"):
            low, high = getattr(self, name)
            if low > high or low < 0:
                raise ValueError(f"{name} must be [low, high] with 0 <= low <= high")
        return self


class LoaderConfig(ConfigBase):
    """How patches reach the network."""

    num_workers: int = Field(0, ge=0, le=64)
    """Processes that cut and augment patches beside the network; 0: in between its steps. The patches are the same."""
