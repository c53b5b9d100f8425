"""What a config says of data: how they are normalised, sampled and augmented. Torch-free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase

Probability = Annotated[float, Field(ge=0, le=1)]

SMALLEST_SCALING, LARGEST_SCALING = 0.25, 4.0
"""Of what a patch shows: beyond, it would show a few voxels, or more than memory holds (64 times the voxels at 4)."""

LARGEST_BLUR_VOXELS = 10.0
"""More leaves nothing to see."""


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


class NonzeroZScoreNormalisation(ConfigBase):
    """The same with mean and standard deviation of the voxels that are not 0 in all channels; those that are stay 0."""

    kind: Literal["nonzero_zscore"] = "nonzero_zscore"


class RangeNormalisation(ConfigBase):
    """Each image's own smallest value becomes 0, its own largest 1."""

    kind: Literal["range"] = "range"


class NoNormalisation(ConfigBase):
    """Intensities stay as they are."""

    kind: Literal["none"] = "none"


Normalisation = Annotated[
    WindowNormalisation | ZScoreNormalisation | NonzeroZScoreNormalisation | RangeNormalisation | NoNormalisation,
    Field(discriminator="kind"),
]


class PlanewiseInterpolation(ConfigBase):
    """Interpolation that may treat the planes of an anisotropic grid one by one."""

    within: Literal["nearest", "linear", "cubic"]
    """Along all axes; where planes are treated one by one, within them."""
    across: Literal["nearest", "linear", "cubic"]
    """From plane to plane, where they are treated one by one."""
    planes: Literal["where_anisotropic", "always", "never"] = "where_anisotropic"
    """When they are: where_anisotropic means that one axis of the old or the new grid is more than three times coarser than another."""


class NnunetPreparation(ConfigBase):
    """How nnU-Net brings a scan onto the grid of its networks, and their logits back: for networks that it trained.

    Cropped to what is not 0, normalised, and only then resampled to a grid that shares the edges of the crop.
    """

    kind: Literal["nnunet"] = "nnunet"
    orientation: Literal["file", "patient"] = "file"
    """Axes of the network's grid: the file's own, whichever way they run; or R, A, S."""
    image: PlanewiseInterpolation = PlanewiseInterpolation(within="cubic", across="nearest")
    """On the way to the network's grid."""
    logits: PlanewiseInterpolation = PlanewiseInterpolation(within="linear", across="nearest")
    """On the way back to the file's; cubic is not possible there."""

    @model_validator(mode="after")
    def _logits_are_means(self) -> NnunetPreparation:
        if "cubic" in (self.logits.within, self.logits.across):
            raise ValueError("logits are interpolated linearly, or taken from the nearest voxel")
        return self


class SplitsConfig(ConfigBase):
    """Which cases train and which validate."""

    fold: Annotated[int, Field(ge=0)] | Literal["each", "none"] | None = None
    """A number from 0: that fold validates; each: all folds in turn; none: every case trains; null: the dataset's splits. --fold sets it."""
    num_folds: int = Field(5, ge=2, le=100)
    """Folds that patients are dealt out to."""


class PlanChoices(ConfigBase):
    """What the planner is told; what is null it decides from the data."""

    spacing_mm: tuple[float, float, float] | None = None
    """Spacing of the network's grid along R, A, S [mm]; null: the median of the training cases, or coarser where time is short."""
    patch_ijk: tuple[int, int, int] | None = None
    """Patch along R, A, S [voxels]; null: the shape of a median case, scaled to patch_voxels."""
    patch_voxels: int | None = Field(None, ge=512)
    """About how many voxels a patch has where patch_ijk is null (262144 is 64 cubed); null: as time and memory allow."""
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
    rotation_probability: Probability = 0.2
    """Turn the patient about all three axes."""
    rotation_degrees: float = Field(30.0, ge=0, le=180)
    """The largest angle about each axis, either way [degrees]."""
    scaling_probability: Probability = 0.2
    """Show a larger or smaller part of the patient."""
    scaling_factor: tuple[float, float] = (0.7, 1.4)
    """Size of that part; above 1 structures look smaller."""
    scaling_is_per_axis: bool = False
    """Each axis has a factor of its own; else all have the same."""
    air_noise_probability: Probability = 0.3
    """Add positive noise to the air around the body. This and the next two are for CT with a window only."""
    air_noise_std_hu: tuple[float, float] = (0.0, 100.0)
    """Its standard deviation before what is negative is cut off [HU]."""
    couch_probability: Probability = 0.4
    """Draw a couch behind the patient, if the patch shows what is behind him."""
    padding_probability: Probability = 0.1
    """Fill what lies outside a round field of view with what scanners write there, -1024 to -3024 HU."""
    noise_probability: Probability = 0.1
    """Add Gaussian noise."""
    noise_std: tuple[float, float] = (0.0, 0.1)
    """Its standard deviation, in units of normalised intensity."""
    blur_probability: Probability = 0.2
    """Blur with a Gaussian; of such a patch, each channel with probability one half."""
    blur_sigma_voxels: tuple[float, float] = (0.5, 1.0)
    """Its standard deviation along each axis [voxels]."""
    brightness_probability: Probability = 0.15
    """Multiply by a factor."""
    brightness_factor: tuple[float, float] = (0.75, 1.25)
    """The factor, below 1 as often as above it."""
    contrast_probability: Probability = 0.15
    """Multiply the distance from the patch's mean by a factor, within the patch's old range."""
    contrast_factor: tuple[float, float] = (0.75, 1.25)
    """The factor, below 1 as often as above it."""
    low_resolution_probability: Probability = 0.25
    """Leave voxels out and interpolate them again; of such a patch, each channel with probability one half."""
    low_resolution_factor: tuple[float, float] = (0.5, 1.0)
    """Share of the voxels that is kept along each axis."""
    gamma_probability: Probability = 0.3
    """Raise intensities, scaled to 0..1, to a power; mean and standard deviation are kept."""
    inverted_gamma_probability: Probability = 0.1
    """The same to the negative image."""
    gamma_exponent: tuple[float, float] = (0.7, 1.5)
    """The power, below 1 as often as above it."""

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> AugmentationConfig:
        for name, smallest, largest in (
            ("scaling_factor", SMALLEST_SCALING, LARGEST_SCALING),
            ("air_noise_std_hu", 0, math.inf),
            ("noise_std", 0, math.inf),
            ("blur_sigma_voxels", 0, LARGEST_BLUR_VOXELS),
            ("brightness_factor", 0, math.inf),
            ("contrast_factor", 0, math.inf),
            ("low_resolution_factor", 0, 1),
            ("gamma_exponent", 0, math.inf),
        ):
            low, high = getattr(self, name)
            if not smallest <= low <= high <= largest:
                bound = "" if math.isinf(largest) else f" <= {largest}"
                raise ValueError(f"{name} must be [low, high] with {smallest} <= low <= high{bound}")
        return self


class LoaderConfig(ConfigBase):
    """How patches reach the network."""

    num_workers: int = Field(0, ge=0, le=64)
    """Processes that cut and augment patches beside the network; 0: one thread does. The patches are the same."""


class CacheConfig(ConfigBase):
    """Prepared cases are kept: the next run on the same data finds them, and one that does not fit into memory reads them patch by patch."""

    folder: Path | None = None
    """Where, for any number of runs at once; null: medseg in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    max_gb: float = Field(20.0, ge=0)
    """Largest size [GB]: what was unused for longest goes first, and never what a run at work uses. 0: nothing is kept."""
    memory_share: float = Field(0.3, ge=0, le=1)
    """Share of the free memory that training cases may take, unpacked; where they need more, patches are read from the cache. 0: always."""
