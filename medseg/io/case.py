"""From a line of a dataset, or from loose files, to a case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import ConfigError, GeometryError, LabelError, ReadError
from medseg.core.labels import LabelSchema
from medseg.core.volume import LabelMap, Volume
from medseg.io.nifti import has_nifti_suffix, read_label_map, read_volume, stem_of


def read_case(record: CaseRecord, dataset: Dataset) -> Case:
    """Read a case: all channels on one grid, the label on the same, its values in the schema.

    Raises:
        CaseError: One of these does not hold, or a file cannot be read.
    """
    image = _read_image(record, len(dataset.channels))
    label = None if record.label is None else _read_label(record.label, image, dataset.labels)
    return Case(record.id, image, label, dataset.labels.annotated_channels(record.annotated))


def input_cases(inputs: Sequence[Path], num_channels: int) -> tuple[CaseRecord, ...]:
    """The cases of volume files and folders of them, in the order given.

    Files of several channels are one case by their names: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``. A named file that
    is missing or no volume stays a case, whose reading then fails by itself.

    Raises:
        ConfigError: A folder holds no volume, or two files would give one output name.
    """
    files = [file for path in inputs for file in (_volumes_in(path) if path.is_dir() else [path])]
    cases: dict[str, dict[int, Path]] = {}
    for path in files:
        name, channel = _case_and_channel(stem_of(path), num_channels)
        channels = cases.setdefault(name, {})
        if channel in channels or (channels and next(iter(channels.values())).parent != path.parent):
            raise ConfigError(
                f"{path.name} and another input would both be written to {name}.nii.gz: rename one, or use two runs"
            )
        channels[channel] = path
    return tuple(_record(name, channels, num_channels) for name, channels in cases.items())


def _volumes_in(folder: Path) -> list[Path]:
    try:
        names = sorted(entry for entry in folder.iterdir() if has_nifti_suffix(entry) and entry.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"cannot look into the folder {folder}: {error.strerror or error}") from error
    if not names:
        raise ConfigError(f"the folder {folder} holds no .nii or .nii.gz file")
    return names


def _case_and_channel(stem: str, num_channels: int) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)_(\d{4})", stem) if num_channels > 1 else None
    return (match[1], int(match[2])) if match else (stem, 0)


def _record(name: str, channels: dict[int, Path], num_channels: int) -> CaseRecord:
    """A channel that is missing keeps its place under the name it should have, so that reading names it."""
    first = next(iter(channels.values()))
    if stem_of(first) == name:  # one file, which holds all channels or fails when it is read
        return CaseRecord(name, name, (first,))
    suffix = first.name[len(stem_of(first)) :]
    numbers = sorted({*range(num_channels), *channels})
    images = tuple(channels.get(number, first.with_name(f"{name}_{number:04d}{suffix}")) for number in numbers)
    return CaseRecord(name, name, images)


def _read_image(record: CaseRecord, num_channels: int) -> Volume:
    if len(record.images) == 1:
        return read_volume(record.images[0], num_channels=num_channels)
    if len(record.images) != num_channels:
        raise ReadError(
            f"expected {num_channels} channels of {record.id}, found {[path.name for path in record.images]}",
            code="read.channels",
        )
    volumes = [read_volume(path) for path in record.images]
    first = volumes[0]
    for path, volume in zip(record.images[1:], volumes[1:], strict=True):
        difference = first.geometry.difference(volume.geometry)
        if difference:
            raise GeometryError(
                f"{path.name} is not on the grid of {record.images[0].name}: {difference}; resample it first",
                code="geometry.channels",
            )
    dtype = np.result_type(*(volume.array for volume in volumes))
    dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
    array = np.concatenate([volume.array for volume in volumes], dtype=dtype, casting="same_kind")
    return Volume(array, first.geometry, first.record)


def _read_label(path: Path, image: Volume, labels: LabelSchema) -> LabelMap:
    label = read_label_map(path)
    difference = image.geometry.difference(label.geometry)
    if difference:
        raise GeometryError(
            f"the label {path.name} is not on its image's grid: {difference}; export both again together",
            code="geometry.label",
        )
    try:
        labels.to_classes(label.array)
    except LabelError as error:
        raise LabelError(f"{path.name}: {error.message}", code=error.code) from error
    # The image's header counts: the two may differ by rounding, and results are written on the image's grid.
    return LabelMap(label.array, image.geometry, image.record)
