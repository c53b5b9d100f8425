"""What an evaluation reads: references, and the predictions of the same names, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.core.errors import CaseError, ConfigError, GeometryError, LabelError
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap
from medseg.io.case import read_case
from medseg.io.dataset import is_dataset, labels_of, read_dataset
from medseg.io.dataset_document import mistaken, read_json
from medseg.io.dataset_nnunet import labels_of_nnunet
from medseg.io.label_tables import JSON, read_label_schema
from medseg.io.probabilities import ENDING
from medseg.io.volume import MAX_LABEL, has_volume_suffix, read_label_map, stem_of


@dataclass(frozen=True, eq=False)
class Reference:
    """What a person contoured in a case, and the image below it where there is one.

    Attributes:
        id: Of the case.
        label: Values of the dataset's schema.
        annotated: Per channel, background first, whether somebody looked for it.
        image: The first channel on the same grid; None where the references are label maps alone.
    """

    id: str
    label: LabelMap
    annotated: Bool[np.ndarray, " classes"]
    image: Shaped[np.ndarray, IJK] | None


@dataclass(frozen=True, eq=False)
class PredictionFolder:
    """The label maps of one model.

    Attributes:
        name: Of the folder, with as much of its path as tells it from another model's.
        files: By case.
        meanings: What each value of these label maps is in the references' schema; 0 where that does not know it.
        unnamed: Structures of the references that these label maps have no value for.
    """

    name: str
    files: Mapping[str, Path]
    meanings: Mapping[int, int]
    unnamed: tuple[str, ...]


def what_to_compare(
    references: Path, folders: Sequence[Path], split: Split | None, labels: Path | None
) -> tuple[Dataset, list[PredictionFolder]]:
    """The labelled cases, and the predictions of one model or several for them.

    A dataset names its structures itself, and predictions may have a ``labels.json`` beside them; for what does not,
    ``labels`` does. Beside a dataset, it is about the predictions, whatever these say.

    Args:
        references: A dataset, or a folder of label maps.
        folders: Of predictions, named by case.
        split: The cases of a dataset to take; None: all.
        labels: A ``labels.json``, or the description of a dataset.

    Raises:
        ConfigError: There is nothing to compare, or it does not go together.
    """
    given = read_labels(labels) if labels else None
    explicit = given if is_dataset(references) else None
    dataset = references_of(references, split, given or own_schema(folders[0]))
    schemas = [explicit or own_schema(folder) or given or dataset.labels for folder in folders]
    names = _telling_names(folders)
    return dataset, [
        predictions_of(folder, dataset, schema, name)
        for folder, schema, name in zip(folders, schemas, names, strict=True)
    ]


def references_of(references: Path, split: Split | None, schema: LabelSchema | None) -> Dataset:
    """The labelled cases of a dataset, or a folder of label maps as a dataset without images.

    Args:
        references: A dataset, or a folder.
        split: The cases of a dataset to take; None: all.
        schema: Names the structures of a folder, which does not say.

    Raises:
        ConfigError: There is nothing to compare with, or nobody names the structures.
    """
    if is_dataset(references):
        dataset = read_dataset(references)
        chosen = dataset.cases if split is None else dataset.of_split(split)
        cases = tuple(case for case in chosen if case.label is not None)
    elif split is not None:
        raise ConfigError(f"--split {split} needs a dataset, and {references.name} is none")
    elif schema is None:
        raise ConfigError(f"nothing names the structures of {references.name}: give --labels, or a dataset")
    else:
        files = label_maps_in(references)
        cases = tuple(CaseRecord(name, name, (), label=_only(found)) for name, found in files.items())
        dataset = Dataset(references.absolute().name, (), schema, (), references)
    if not cases:
        raise ConfigError(f"{references.name} holds no reference label map" + (f" of split {split}" if split else ""))
    if "mean" in dataset.labels.names:
        raise ConfigError("a structure is called 'mean', which is the name of the mean of all: rename it")
    return replace(dataset, cases=cases)


def label_maps_in(folder: Path) -> dict[str, list[Path]]:
    """Volume files by their name without suffix, in alphabetical order; hidden files are none, nor probabilities beside theirs.

    Raises:
        ConfigError: There is no such folder.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if has_volume_suffix(path) and path.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"expected a folder of label maps, found {folder}: {error.strerror or error}") from error
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(stem_of(path), []).append(path)
    beside = {f"{case}{ENDING}" for case in files}
    return {case: found for case, found in files.items() if case not in beside}


def read_labels(path: Path) -> LabelSchema:
    """The structures that a ``labels.json`` or the description of a dataset names.

    nnU-Net puts the description of its dataset beside models and predictions, where it has no cases.

    Raises:
        ConfigError: It cannot be read, or names none.
    """
    document = read_json(path)
    if "channel_names" in document:
        schema, mistakes = labels_of_nnunet(document)
        if schema is None:
            raise mistaken(path, mistakes)
        return schema
    return read_dataset(path).labels if {"cases", "training"} & set(document) else labels_of(document)


def own_schema(predictions: Path) -> LabelSchema | None:
    """What predictions say of their values: ``labels.json`` beside them, which medseg writes; None without."""
    return read_label_schema(predictions) if (predictions / JSON).exists() else None


def predictions_of(folder: Path, dataset: Dataset, schema: LabelSchema, name: str) -> PredictionFolder:
    """The label maps of one model for the cases of the references.

    Args:
        folder: Of label maps, named by case.
        dataset: The references.
        schema: Of the predictions.
        name: For people.

    Raises:
        ConfigError: There is no such folder, a case has two files, or the two schemas do not go together.
    """
    wanted = {case.id for case in dataset.cases}
    files = {case: _only(found) for case, found in label_maps_in(folder).items() if case in wanted}
    unnamed = tuple(name for name in dataset.labels.names if name not in schema.names)
    return PredictionFolder(name, files, _meanings(schema, dataset.labels), unnamed)


def read_reference(record: CaseRecord, dataset: Dataset) -> Reference:
    """The reference of a case, with its image where there is one.

    Raises:
        CaseError: It cannot be read, or disagrees with the schema.
    """
    annotated = dataset.labels.annotated_channels(record.annotated)
    if record.images:
        case = read_case(record, dataset)
        assert case.label is not None  # references_of() keeps labelled cases only
        return Reference(case.id, case.label, annotated, case.image.array[0])
    assert record.label is not None
    label = read_label_map(record.label)
    dataset.labels.to_classes(label.array)
    return Reference(record.id, label, annotated, None)


def read_prediction(predictions: PredictionFolder, reference: Reference) -> tuple[LabelMap, str]:
    """The prediction of a case with the references' values; a missing or unusable one is empty, and told."""
    empty = LabelMap(np.zeros(reference.label.array.shape, np.uint8), reference.label.geometry)
    path = predictions.files.get(reference.id)
    if path is None:
        return empty, f"{reference.id} has no prediction in {predictions.name}: it counts as empty"
    try:
        prediction = read_label_map(path)
        turned = prediction.turned_to(reference.label.geometry)
        if turned is None:
            difference = reference.label.geometry.difference(prediction.geometry)
            raise GeometryError(f"{path.name} is not on the reference's grid: {difference}", code="geometry.prediction")
        array = _understood(turned.array, predictions.meanings, path)
    except CaseError as error:
        return empty, f"{reference.id}'s prediction counts as empty: {error.message}"
    return LabelMap(array, reference.label.geometry), ""


def _telling_names(folders: Sequence[Path]) -> list[str]:
    """The ends of paths that tell them apart: two models' folders may both be called ``predictions``."""
    parts = [folder.absolute().parts for folder in folders]
    ends: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(names[-length:]) for names in parts]
        if len(set(ends)) == len(set(parts)):
            break
    return ends


def _only(files: list[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ConfigError(f"{names} in {files[0].parent} are one case: keep one of them")
    return files[0]


def _meanings(predicted: LabelSchema, wanted: LabelSchema) -> dict[int, int]:
    """From the values of one schema to those of another, by the structures' names."""
    same = {int(value): int(value) for value in (*wanted.values, *wanted.class_values)}
    theirs = {structure.name: structure for structure in predicted.structures}
    common = [(theirs[structure.name], structure) for structure in wanted.structures if structure.name in theirs]
    if not common:
        raise ConfigError(
            f"the predictions name {list(predicted.names)}, the references {list(wanted.names)}: no structure is common; "
            "name those of the predictions with --labels"
        )
    if predicted.has_regions or wanted.has_regions:
        if any(a.value != b.value or a.reference_values != b.reference_values for a, b in common):
            raise ConfigError("predictions and references have regions that differ: give both the same labels")
        return same
    known = {a.value: b.value for a, b in common}
    return {0: 0, **{structure.value: known.get(structure.value, 0) for structure in predicted.structures}}


def _understood(array: Integer[np.ndarray, IJK], meanings: Mapping[int, int], path: Path) -> Integer[np.ndarray, IJK]:
    """The label map in the references' values.

    Raises:
        LabelError: A value has no meaning.
    """
    is_present, planes = np.zeros(MAX_LABEL + 1, dtype=bool), range(array.shape[2])
    for plane in planes:  # NumPy turns what it indexes with into 64 bits: not the whole volume at once
        is_present[array[..., plane]] = True
    present = [int(value) for value in np.flatnonzero(is_present)]
    if strange := [value for value in present if value not in meanings]:
        raise LabelError(
            f"expected the label values {sorted(meanings)} in {path.name}, found also {strange[:5]}: name them with "
            "--labels, or correct the label map",
            code="label.value",
        )
    if all(meanings[value] == value for value in present):
        return array
    lookup = np.zeros(max(present) + 1, dtype=np.uint16)
    for value in present:
        lookup[value] = meanings[value]
    translated = np.empty_like(array, dtype=np.uint16)
    for plane in planes:
        translated[..., plane] = lookup[array[..., plane]]
    return translated
