"""From a line of a dataset, or from loose files, to a case."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from medseg.core.case import Case, CaseRecord, Dataset, Split
from medseg.core.errors import ConfigError, GeometryError, LabelError, ReadError
from medseg.core.labels import LabelSchema
from medseg.core.volume import LabelMap, Volume
from medseg.io.dataset import is_dataset, is_file_name, read_dataset
from medseg.io.volume import (
    VOLUME_SUFFIXES,
    has_volume_suffix,
    is_dicom,
    is_folder,
    read_channels,
    read_label_map,
    read_volume,
    stem_of,
)


def read_case(record: CaseRecord, dataset: Dataset, *, allow: Collection[str] = ()) -> Case:
    """Read a case: all channels on one grid, the label on the same, its values in the schema.

    Args:
        record: Where its files are.
        dataset: For its channels and labels.
        allow: Codes of problems to go on with, as :func:`~medseg.io.volume.read_volume` has them.

    Raises:
        CaseError: One of these does not hold, or a file cannot be read.
    """
    image = _read_image(record, len(dataset.channels), allow)
    label = None if record.label is None else _read_label(record.label, image, dataset.labels, allow)
    return Case(record.id, image, label, dataset.labels.annotated_channels(record.annotated))


def input_cases(inputs: Sequence[Path], num_channels: int) -> tuple[CaseRecord, ...]:
    """The cases of volume files, DICOM files and series folders, and folders of them, in the order given.

    A folder whose files are DICOM is one case of its name; of any other folder, the volume files and those sub-folders
    that are DICOM series are taken. Files of several channels are one case by their names: ``CASE_0000.nii.gz``,
    ``CASE_0001.nii.gz``. A named file that is missing or no volume stays a case, whose reading then fails by itself.

    Raises:
        ConfigError: A folder holds no volume, two inputs would give one output name, or a name cannot be that of an
            output.
    """
    cases: dict[str, dict[int, Path]] = {}
    for path in (found for given in inputs for found in (_volumes_in(given) if is_folder(given) else [given])):
        name, channel = _case_and_channel(stem_of(path), num_channels)
        if not is_file_name(name):
            raise ConfigError(f"the input {path.name!r} cannot give its name to an output: rename it")
        channels = cases.setdefault(name, {})
        if channel in channels or (channels and next(iter(channels.values())).parent != path.parent):
            raise ConfigError(
                f"{path.name} and another input would both be written to {name}.nii.gz: rename one, or use two runs"
            )
        channels[channel] = path
    return tuple(_record(name, channels, num_channels) for name, channels in cases.items())


def chosen_cases(inputs: Sequence[Path], split: Split | None, num_channels: int) -> list[CaseRecord]:
    """The cases of datasets (one split of them) and of plain files and folders.

    Raises:
        ConfigError: There is none, or two would have one output name.
    """
    records: list[CaseRecord] = []
    for path in inputs:
        if is_dataset(path):
            dataset = read_dataset(path)
            records += dataset.cases if split is None else dataset.of_split(split)
        elif split is not None:
            raise ConfigError(f"--split {split} needs a dataset, and {path.name} is none")
        else:
            records += input_cases([path], num_channels)
    names = [record.id for record in records]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"several inputs would be written to one name: {', '.join(twice)}; rename them or use two runs"
        )
    if not records:
        raise ConfigError("the inputs hold no case" + (f" of split {split}" if split else ""))
    return records


def _volumes_in(folder: Path) -> list[Path]:
    from medseg.io.dicom_series import is_series_folder

    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"cannot look into the folder {folder}: {error.strerror or error}") from error
    found = [entry for entry in entries if (is_series_folder(entry) if entry.is_dir() else has_volume_suffix(entry))]
    if not is_series_folder(folder):
        if not found:
            raise ConfigError(
                f"the folder {folder} holds no volume: expected {', '.join(VOLUME_SUFFIXES)}, DICOM files, or folders of "
                "them"
            )
        return found
    if found:
        raise ConfigError(
            f"the folder {folder} holds DICOM files and also {found[0].name}: give what is meant by itself"
        )
    return [folder]


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


def _read_image(record: CaseRecord, num_channels: int, allow: Collection[str]) -> Volume:
    if len(record.images) == 1:
        return read_volume(record.images[0], num_channels=num_channels, allow=allow)
    if len(record.images) != num_channels:
        raise ReadError(
            f"expected {num_channels} channels of {record.id}, found {[path.name for path in record.images]}",
            code="read.channels",
        )
    return read_channels(record.images, allow=allow)


def _read_label(path: Path, image: Volume, labels: LabelSchema, allow: Collection[str]) -> LabelMap:
    if is_dicom(path):
        from medseg.io.dicom_labels import read_dicom_labels

        label = read_dicom_labels(path, image.geometry, labels)
    else:
        label = read_label_map(path, allow=allow)
    turned = label.turned_to(image.geometry)
    if turned is None:
        difference = image.geometry.difference(label.geometry)
        raise GeometryError(
            f"the label {path.name} is not on its image's grid: {difference}; export both again together",
            code="geometry.label",
        )
    try:
        labels.to_classes(turned.array)
    except LabelError as error:
        raise LabelError(f"{path.name}: {error.message}", code=error.code) from error
    # The image's header counts: the two may differ by rounding, and results are written on the image's grid.
    return LabelMap(turned.array, image.geometry, image.record, turned.notes)
