"""From a line of a dataset, or from loose files, to a case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import CaseError, ConfigError, GeometryError, LabelError
from medseg.core.volume import LabelMap, Volume
from medseg.io.nifti import has_nifti_suffix, read_label_map, read_volume, stem_of


def read_case(record: CaseRecord, dataset: Dataset) -> Case:
    """Read a case: all channels on one grid, the label on the same, its values in the schema.

    Raises:
        CaseError: One of these does not hold, or a file cannot be read.
    """
    volumes = [read_volume(path) for path in record.images]
    image = _stacked(volumes, record)
    label = None
    if record.label is not None:
        label = read_label_map(record.label)
        difference = image.geometry.difference(label.geometry)
        if difference:
            raise GeometryError(
                f"image and label of {record.id} are on different grids: {difference}; export them again together",
                code="geometry.label",
            )
        # The image's header counts: the two may differ by rounding, and results are written on the image's grid.
        label = LabelMap(label.array, image.geometry, image.record)
        try:
            dataset.labels.to_channels(label.array)
        except LabelError as error:
            raise LabelError(f"{record.label.name}: {error.message}", code=error.code) from error
    return Case(record.id, image, label, dataset.labels.annotated_channels(record.annotated))


def input_cases(inputs: Sequence[Path], num_channels: int) -> tuple[CaseRecord, ...]:
    """The cases of volume files and folders of them.

    Files of several channels are one case by their names: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``. A named file that
    is missing or no volume stays a case, whose reading then fails by itself.

    Raises:
        ConfigError: A folder holds no volume.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(
                entry for entry in path.iterdir() if has_nifti_suffix(entry) and not entry.name.startswith(".")
            )
            if not inside:
                raise ConfigError(f"the folder {path} holds no .nii or .nii.gz file")
            files += inside
        else:
            files.append(path)
    if num_channels == 1:
        return tuple(CaseRecord(stem_of(path), stem_of(path), (path,)) for path in files)
    return _grouped(files, num_channels)


def _grouped(files: Sequence[Path], num_channels: int) -> tuple[CaseRecord, ...]:
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", stem_of(path))
        name, channel = (match[1], int(match[2])) if match else (stem_of(path), 0)
        groups.setdefault((path.parent, name), {})[channel] = path
    records = []
    for (folder, name), channels in sorted(groups.items()):
        suffix = next(iter(channels.values())).name.removeprefix(name)[5:]
        images = tuple(channels.get(c, folder / f"{name}_{c:04d}{suffix}") for c in range(num_channels))
        records.append(CaseRecord(name, name, images))
    return tuple(records)


def _stacked(volumes: Sequence[Volume], record: CaseRecord) -> Volume:
    if not volumes:
        raise CaseError(f"{record.id} has no image", code="read.missing")
    first = volumes[0]
    for path, volume in zip(record.images[1:], volumes[1:], strict=True):
        difference = first.geometry.difference(volume.geometry)
        if difference:
            raise GeometryError(
                f"{path.name} is not on the grid of {record.images[0].name}: {difference}; resample it first",
                code="geometry.channels",
            )
    if len(volumes) == 1:
        return first
    return Volume(np.concatenate([volume.array for volume in volumes]), first.geometry, first.record)
