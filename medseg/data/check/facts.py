"""What is kept of a case while a dataset is checked: a few hundred numbers, so that thousands of cases fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from medseg.core.findings import Finding
from medseg.core.geometry import Shape3, Spacing3

AIR_HU = -1000.0

MAX_OFFSET_HU = 200.0
"""Air lies within this of −1000: lung and poor calibration stay below, a forgotten intercept (1000 to 1024) above."""

CONSTANT_SHARE = 0.9995
"""Part of an image that has one value where nothing is in it."""

UNKNOWN = "unknown"
"""Modality of images of which nobody says what they are."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Landmarks:
    """The two values that every CT with body and air shows.

    Attributes:
        air_hu: Where air lies; −1000 if the scale is right.
        tissue_hu: Where soft tissue and fat lie; about 0.
    """

    air_hu: float
    tissue_hu: float

    @property
    def is_hu(self) -> bool:
        """Whether air lies where it should."""
        return abs(self.air_hu - AIR_HU) <= MAX_OFFSET_HU


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """One channel of a case.

    Attributes:
        file: As the dataset names it.
        modality: Of the channel.
        shape: Number of voxels, axes in R, A, S order.
        spacing_mm: In the same order.
        digest: Of the voxels' values in that order, whatever type and file they came in.
        thumbnail: Means of 8 × 8 × 8 blocks, centred and of unit length; zeros where all are equal.
        low, high: Smallest and largest value.
        percentiles: The 0.5th, 1st, 50th, 95th and 99.9th.
        low_share: Part of the voxels that have the smallest value.
        commonest, commonest_share: The value that most voxels have (rounded to whole numbers), and their part.
        tissue_mode: The commonest value of what is neither the smallest value nor near it.
        landmarks: Of CT; None where there are none.
    """

    file: str
    modality: str
    shape: Shape3
    spacing_mm: Spacing3
    digest: bytes
    thumbnail: Float[np.ndarray, " blocks"]
    low: float
    high: float
    percentiles: tuple[float, float, float, float, float]
    low_share: float
    commonest: float
    commonest_share: float
    tissue_mode: float
    landmarks: Landmarks | None

    @property
    def is_ct(self) -> bool:
        """Whether its values are HU."""
        return self.modality.upper() == "CT"

    @property
    def is_constant(self) -> bool:
        """Whether nothing is in it."""
        return self.low == self.high or self.commonest_share >= CONSTANT_SHARE

    @property
    def extent_mm(self) -> Point:
        """Of the whole grid along R, A, S."""
        i, j, k = (size * mm for size, mm in zip(self.shape, self.spacing_mm, strict=True))
        return i, j, k


@dataclass(frozen=True)
class StructureFacts:
    """One structure in one label map.

    Attributes:
        volume_ml: Of all its voxels.
        centre_mm: RAS.
        spread_mm: Standard deviation of its voxels along R, A, S.
        is_cut: Whether it reaches the edge of the image's grid.
        air_share: Part of it that lies in air (CT).
        blank_share: Part that has exactly the value of the image's background.
        outside_share: Part that lies in slices where the CT has been cut away, but for what was kept around contours.
        void_share: Part that lies in such slices where not even that was kept: on the background's value, or in slices of
            one value.
        mean_hu: Of the image in it; None where that could not be read or is no CT in HU.
    """

    volume_ml: float
    centre_mm: Point
    spread_mm: Point
    is_cut: bool
    air_share: float = 0.0
    blank_share: float = 0.0
    outside_share: float = 0.0
    void_share: float = 0.0
    mean_hu: float | None = None


@dataclass(frozen=True)
class LabelFacts:
    """The label map of a case.

    Attributes:
        file: As the dataset names it.
        digest: Of its values.
        strange_values: That the schema does not know, with the number of voxels.
        structures: Of those that are drawn, by name.
    """

    file: str
    digest: bytes
    strange_values: dict[int, int]
    structures: dict[str, StructureFacts]


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Attributes:
        id: Unique in its dataset.
        images: The channels that could be read.
        label: Where there is one and it could be read.
        problems: What kept a file from being read, or was met while it was.
    """

    id: str
    images: tuple[ImageFacts, ...] = ()
    label: LabelFacts | None = None
    problems: tuple[Finding, ...] = field(default=())
