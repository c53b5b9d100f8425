"""One case from its files to the network's grid, and from its prediction to files and what the manifest says of it; and label maps
beside their references."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.case import Case, CaseRecord, Dataset, PreparedCase
from medseg.core.errors import CaseError, ConfigError, WriteError
from medseg.core.labels import LabelSchema
from medseg.core.volume import LabelMap
from medseg.data.preparation import prepare_as_planned
from medseg.inference.components import ComparedCase
from medseg.inference.description import ModelDescription
from medseg.inference.predictor import Prediction
from medseg.inference.probabilities import SURE
from medseg.io.case import read_case
from medseg.io.manifest import Entry, peak_memory_bytes, sha256_of
from medseg.io.masks import mask_names, masks_of
from medseg.io.nifti import write_label_map
from medseg.io.probabilities import ENDING, SUFFIX, write_probabilities
from medseg.io.references import PredictionFolder, read_prediction, read_reference
from medseg.io.volume import read_label_map


@dataclass(frozen=True)
class Outputs:
    """What is written of each case.

    Attributes:
        folder: Of all results.
        masks: A binary mask for each structure too.
        probabilities: The probabilities of all structures too.
        overwrite: Whether files of these names that differ may be replaced.
    """

    folder: Path
    masks: bool = False
    probabilities: bool = False
    overwrite: bool = False

    def label_map(self, case: str) -> Path:
        """The label map of a case."""
        return self.folder / f"{case}.nii.gz"

    def check(self, records: Sequence[CaseRecord], labels: LabelSchema) -> None:
        """Refuse files that would fall on each other, or among the slices of a scan, before any work.

        Args:
            records: The cases.
            labels: The structures that will be written.

        Raises:
            ConfigError: Two have one name, or masks would lie where a scan is.
        """
        names = {record.id for record in records}
        if self.probabilities and (clashing := sorted(names & {f"{name}{ENDING}" for name in names})):
            raise ConfigError(
                f"the label map of {clashing[0]} and the probabilities of another case would have one name: use two runs"
            )
        if self.masks:
            mask_names(labels)
            for record in records:
                _check_folder((self.folder / record.id).resolve(), record)


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case in memory.

    Attributes:
        case: On the grid of its files.
        prepared: On the network's.
        seconds: Wall clock of both [s].
    """

    case: Case
    prepared: PreparedCase
    seconds: Mapping[str, float]

    @property
    def num_bytes(self) -> int:
        """What both take."""
        return self.case.image.array.nbytes + self.prepared.image.nbytes


def read_for_prediction(description: ModelDescription, record: CaseRecord, allow: Collection[str] = ()) -> ReadCase:
    """Read a case and bring it to the network's grid.

    Args:
        description: Of the model.
        record: Where the case's files are; its reference, if it has one, is not read.
        allow: Codes of problems to go on with when reading.

    Raises:
        CaseError: It cannot be read or prepared.
    """
    marks = [time.perf_counter()]
    unlabelled = CaseRecord(record.id, record.patient, record.images)
    dataset = Dataset(description.name, description.modalities, description.labels, (unlabelled,), record.images[0])
    case = read_case(unlabelled, dataset, allow=allow)
    marks.append(time.perf_counter())
    prepared = prepare_as_planned(case, description.labels, description.plan)
    marks.append(time.perf_counter())
    read_s, prepare_s = np.diff(marks).tolist()
    return ReadCase(case, prepared, {"read": round(read_s, 3), "prepare": round(prepare_s, 3)})


def write_prediction(
    record: CaseRecord,
    read: ReadCase,
    prediction: Prediction,
    schema: LabelSchema,
    outputs: Outputs,
    draw: Callable[[Case, Prediction], None] | None = None,
) -> Entry:
    """Write what is wanted of a prediction.

    Args:
        record: Where the case's files are.
        read: The case.
        prediction: Of it.
        schema: The structures of the label map.
        outputs: What to write.
        draw: Called with the case and its prediction.

    Returns:
        What the manifest says of it.

    Raises:
        CaseError: It cannot be written.
    """
    began = time.perf_counter()
    output = outputs.label_map(record.id)
    _write(output, prediction.label_map, overwrite=outputs.overwrite)
    masks = _write_masks(outputs, record.id, prediction.label_map, schema) if outputs.masks else {}
    probabilities = _write_probabilities(outputs, record.id, prediction)
    if draw is not None:
        draw(read.case, prediction)
    further = (*masks.values(), *([probabilities["output"]] if probabilities else []))
    hashes = {name: sha256_of([outputs.folder / name]) for name in further}
    output_sha256, input_sha256 = sha256_of([output]), sha256_of(record.images)
    seconds = {**read.seconds, **prediction.seconds, "write": round(time.perf_counter() - began, 3)}
    return Entry(
        id=record.id,
        input=tuple(path.name for path in record.images),
        status="done",
        output=output.name,
        masks=masks,
        probabilities=probabilities,
        seconds={**seconds, "total": round(sum(seconds.values()), 3)},
        peak_memory_bytes=peak_memory_bytes(),
        volume_ml=prediction.volumes_ml,
        mean_hu=prediction.mean_hu,
        truncated={name: name in prediction.truncated for name in schema.names},
        notes=tuple(asdict(note) for note in read.case.image.notes),
        input_sha256=input_sha256,
        output_sha256=output_sha256,
        further_sha256=hashes,
    )


def _check_folder(folder: Path, record: CaseRecord) -> None:
    if any(folder in (image.resolve(), image.resolve().parent) for image in record.images):
        raise ConfigError(
            f"the masks of {record.id} would be written into {folder}, where its scan is: give another --out"
        )


def compared_cases(dataset: Dataset, predictions: PredictionFolder) -> Iterator[ComparedCase]:
    """Predictions beside their references, on the grids of the files, one after the other.

    A case is left out where one of both is missing or cannot be read: it says nothing about connected parts.

    Args:
        dataset: The cases, with their references.
        predictions: Label maps with all their parts.
    """
    for record in dataset.cases:
        try:
            reference = read_reference(record, dataset)
        except CaseError:
            continue
        prediction, problem = read_prediction(predictions, reference)
        if not problem:
            yield ComparedCase(
                channels=dataset.labels.to_channels(prediction.array),
                classes=dataset.labels.to_classes(reference.label.array),
                annotated=reference.annotated,
                voxel_volume_ml=reference.label.geometry.voxel_volume_ml,
            )


def _write_masks(outputs: Outputs, case: str, label_map: LabelMap, schema: LabelSchema) -> dict[str, str]:
    """The mask of each structure, by its name in the folder of results."""
    files = {name: f"{case}/{file}" for name, file in mask_names(schema).items()}
    for name, mask in masks_of(label_map, schema):
        _write(outputs.folder / files[name], mask, overwrite=outputs.overwrite)
    return files


def _write_probabilities(outputs: Outputs, case: str, prediction: Prediction) -> dict[str, Any] | None:
    """The file, by its name in the folder of results, and what its volumes are; None where they are not wanted."""
    if prediction.probabilities is None:
        return None
    with closing(prediction.probabilities) as probabilities:
        path, grid = outputs.folder / f"{case}{SUFFIX}", prediction.label_map
        write_probabilities(
            path, probabilities.volumes(), len(probabilities.names), grid.geometry, grid.record, largest=SURE,
            overwrite=outputs.overwrite,
        )  # fmt: skip
        return {"output": path.name, "volumes": list(probabilities.names)}


def _write(output: Path, label_map: LabelMap, *, overwrite: bool) -> None:
    """What a killed run left there is accepted where it is the same."""
    if output.exists() and not overwrite:
        if np.array_equal(read_label_map(output).array, label_map.array):
            return
        raise WriteError(
            f"{output.name} is there already and differs: give --overwrite, or another --out", code="write.exists"
        )
    write_label_map(output, label_map, overwrite=overwrite)
