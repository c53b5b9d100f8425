"""One image to label: as a dataset lists it, as read, and as prepared for a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.shapes import CIJK, IJK
from medseg.core.volume import GridRecord, LabelMap, Volume

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class CaseRecord:
    """A line of a dataset: where the files of one case are and what is known of them. Nothing is read yet.

    Attributes:
        id: Unique in its dataset; the name of its outputs.
        patient: Cases of one patient are never divided between splits.
        images: One file a channel.
        label: The reference label map, where there is one.
        annotated: Structures that somebody looked for; None means all. The others are unknown, not absent.
        split: As the dataset gives it.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Dataset:
    """What a dataset's description says.

    Attributes:
        name: For people.
        channels: Modality of each image channel: ``("CT",)``, ``("CT", "PET")``, ``("MR",)``.
        labels: The structures.
        cases: In the order of the description.
        source: The file that was read.
    """

    name: str
    channels: tuple[str, ...]
    labels: LabelSchema
    cases: tuple[CaseRecord, ...]
    source: Path

    def of_split(self, split: Split) -> tuple[CaseRecord, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == split)


@dataclass(frozen=True, eq=False)
class Case:
    """One case, read.

    Attributes:
        id: Unique in its dataset.
        image: All channels on one grid.
        label: On the image's grid, with the dataset's values; None where nobody contoured.
        annotated: Per channel (background first), whether somebody looked for it.
    """

    id: str
    image: Volume
    label: LabelMap | None
    annotated: Bool[np.ndarray, " classes"]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on the network's grid, with all that is needed to undo the preparation.

    Attributes:
        id: Unique in its dataset.
        image: Normalised intensities, float32, axes in R, A, S order.
        classes: Class number of each voxel, :data:`~medseg.core.labels.IGNORED` where nobody decided; None without a
            reference.
        annotated: Per channel, whether somebody looked for it.
        geometry: The network's grid.
        file_geometry: The grid of the file that the result goes back to.
        file_record: The file header's own words on its grid.
    """

    id: str
    image: Float[np.ndarray, CIJK]
    classes: Integer[np.ndarray, IJK] | None
    annotated: Bool[np.ndarray, " classes"]
    geometry: Geometry
    file_geometry: Geometry
    file_record: GridRecord | None


@dataclass(frozen=True, eq=False)
class CompactChannel:
    """One image channel on the network's grid, in the form that is kept.

    Attributes:
        values: Whole HU (int16), or what is normalised already (float16; float32 beyond its range).
        mean, std: Subtracted, and divided by, when it is read.
    """

    values: Shaped[np.ndarray, IJK]
    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class CompactCase:
    """A labelled case on the network's grid in the form that is kept, which any number of readers normalise alike.

    Attributes:
        id: Unique in its dataset.
        channels: Of the image.
        classes: Class number of each voxel, in the smallest signed type.
        annotated: Per channel, whether somebody looked for it.
        geometry: The network's grid.
        file_geometry: The grid of the file.
    """

    id: str
    channels: tuple[CompactChannel, ...]
    classes: Integer[np.ndarray, IJK]
    annotated: Bool[np.ndarray, " classes"]
    geometry: Geometry
    file_geometry: Geometry
