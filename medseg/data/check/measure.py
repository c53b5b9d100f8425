"""From the files of one case to what is kept of it. One bad file never hides what the others say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medseg.core.case import CaseRecord
from medseg.core.errors import CaseError
from medseg.core.findings import Finding
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.volume import LabelMap
from medseg.data.check.contours import Ground, measure_label
from medseg.data.check.facts import CaseFacts, ImageFacts, LabelFacts
from medseg.data.check.intensities import KJI, measure_image
from medseg.data.check.remedies import found
from medseg.io.volume import is_dicom, read_label_map, read_volume


@dataclass(frozen=True)
class CheckedDataset:
    """What a worker must know of the dataset.

    Attributes:
        folder: That file names are told relative to.
        channels: Modality of each.
        labels: The structures.
        allow: Codes of problems that reading goes on with.
    """

    folder: Path
    channels: tuple[str, ...]
    labels: LabelSchema
    allow: frozenset[str] = frozenset()

    def name_of(self, path: Path) -> str:
        """A file as the dataset names it."""
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)


@dataclass(frozen=True, eq=False)
class _Channel:
    """One channel, axes in S, A, R order, with the grid as the file has it."""

    voxels: Shaped[np.ndarray, KJI] | None
    grid: Geometry
    facts: ImageFacts


def measure_case(record: CaseRecord, dataset: CheckedDataset) -> CaseFacts:
    """Read a case's files, one at a time, and keep what the rules ask for."""
    problems: list[Finding] = []
    channels = _measure_images(record, dataset, problems)
    label = None if record.label is None else _measure_label(record, channels, dataset, problems)
    return CaseFacts(record.id, tuple(channel.facts for channel in channels), label, tuple(problems))


def _measure_images(record: CaseRecord, dataset: CheckedDataset, problems: list[Finding]) -> list[_Channel]:
    """The channels that can be read; the voxels of the first alone are kept, which the label is laid on."""
    wanted = len(dataset.channels)
    if len(record.images) not in (1, wanted):
        message = f"expected {wanted} channels, found {[path.name for path in record.images]}"
        problems.append(found("read.channels", "error", record.id, dataset.name_of(record.images[0]), message))
        return []
    each = wanted if len(record.images) == 1 else 1
    measured: list[_Channel] = []
    for number, path in enumerate(record.images):
        file = dataset.name_of(path)
        try:
            volume = read_volume(path, num_channels=each, allow=dataset.allow)
        except CaseError as error:
            problems.append(found(error.code, "error", record.id, file, error.message))
            continue
        problems += [
            found(note.code, "warning", record.id, file, note.message)
            for note in volume.notes
            if note.code in dataset.allow
        ]
        if measured and (difference := measured[0].grid.difference(volume.geometry)):
            message = f"{path.name} is not on the grid of {record.images[0].name}: {difference}"
            problems.append(found("geometry.channels", "error", record.id, file, message))
        for place, array in enumerate(volume.array, start=number):
            turned = volume.geometry.axes.to_canonical(array).T
            facts = measure_image(turned, volume.geometry.canonical, file, dataset.channels[place])
            measured.append(_Channel(None if measured else turned, volume.geometry, facts))
    return measured


def _measure_label(
    record: CaseRecord, channels: list[_Channel], dataset: CheckedDataset, problems: list[Finding]
) -> LabelFacts | None:
    assert record.label is not None
    file = dataset.name_of(record.label)
    try:
        label = _read_label(record.label, channels, dataset)
    except CaseError as error:
        problems.append(found(error.code, "error", record.id, file, error.message))
        return None
    if label is None:
        return None
    image = channels[0] if channels else None
    if image is not None and (turned := label.turned_to(image.grid)) is not None:
        label = turned
    elif image is not None:
        difference = image.grid.difference(label.geometry)
        message = f"the label {record.label.name} is not on its image's grid: {difference}"
        problems.append(found("geometry.label", "error", record.id, file, message))
        image = None
    if image is None or image.voxels is None or image.facts.is_constant:
        return measure_label(label, dataset.labels, file, None)
    return measure_label(label, dataset.labels, file, Ground(image.voxels, image.facts))


def _read_label(path: Path, channels: list[_Channel], dataset: CheckedDataset) -> LabelMap | None:
    """None where contours cannot be drawn for want of a grid, which the image's own finding says."""
    if not is_dicom(path):
        return read_label_map(path, allow=dataset.allow)
    if not channels:
        return None
    from medseg.io.dicom_labels import read_dicom_labels

    return read_dicom_labels(path, channels[0].grid, dataset.labels)
