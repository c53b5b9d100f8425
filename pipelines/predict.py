"""Prediction: from a bundle and scans to label maps on the scans' own grids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.case import Case, CaseRecord, Dataset, Split
from medseg.core.errors import CaseError, ConfigError, WriteError
from medseg.core.progress import Listener, Progress, silent
from medseg.inference.description import ModelDescription, describe
from medseg.inference.predictor import Prediction, Predictor
from medseg.io.bundle import read_bundle
from medseg.io.case import input_cases, read_case
from medseg.io.dataset import is_dataset, read_dataset
from medseg.io.exclusive import exclusive
from medseg.io.label_tables import write_label_tables
from medseg.io.manifest import Entry, Manifest, peak_memory_bytes, sha256_of
from medseg.io.nifti import write_label_map
from medseg.io.volume import ALLOWABLE, read_label_map
from pipelines.outcome import Outcome, exit_code_of

SOFT_TISSUE_HU = (-160.0, 240.0)
"""The usual window to look at organs in CT [HU]: level 40, width 400."""


@dataclass(frozen=True)
class PredictOptions:
    """Fields are the command's options."""

    out: Path
    split: Split | None = None
    device: str = "auto"
    threads: int | None = None
    tile_batch: int = 1
    overlap: float = 0.5
    allow: frozenset[str] = frozenset()
    preview: bool = False
    overwrite: bool = False


def run(bundle: Path, inputs: Sequence[Path], options: PredictOptions, listener: Listener = silent) -> Outcome:
    """Predict.

    Args:
        bundle: Bundle folder or run folder.
        inputs: Volume files, folders of them, or datasets.
        options: Of the command line.
        listener: Hears of the progress.
    """
    if unknown := sorted(options.allow - set(ALLOWABLE)):
        raise ConfigError(f"--allow {', '.join(unknown)}: expected some of {', '.join(ALLOWABLE)}")
    opened = read_bundle(bundle)
    description = describe(opened)
    records = cases_of(inputs, options.split, len(description.modalities))
    with exclusive(options.out):
        write_label_tables(options.out, description.labels)
        manifest = Manifest.open(options.out, opened.hash, settings(options))
        predict_all(bundle, records, manifest, options, listener)
    return outcome(manifest, records, options.out)


def predict_all(
    bundle: Path, records: Sequence[CaseRecord], manifest: Manifest, options: PredictOptions, listener: Listener
) -> None:
    """Predict what is not done yet; a case that fails is recorded, and the others go on."""
    predictor: Predictor | None = None
    for done, record in enumerate(records):
        listener(Progress("cases", done, len(records)))
        if manifest.is_done(record) and not options.overwrite:
            manifest.skip(record)
            continue
        predictor = predictor or load(bundle, options)  # torch takes seconds that an all-skipped run need not pay
        try:
            entry = predict_one(predictor, record, options)
        except CaseError as error:
            problem = {"code": error.code, "message": error.message}
            entry = Entry(record.id, tuple(path.name for path in record.images), "failed", error=problem)
            listener(Progress("cases", done, len(records), message=f"{record.id} failed: {error.message}"))
        manifest.add(entry)
    listener(Progress("cases", len(records), len(records)))


def cases_of(inputs: Sequence[Path], split: Split | None, num_channels: int) -> list[CaseRecord]:
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


def settings(options: PredictOptions) -> dict[str, Any]:
    """What decides the bytes of an output besides the input and the bundle."""
    return {
        "overlap": options.overlap,
        "tile_batch": options.tile_batch,
        "threads": options.threads,
        "device": options.device,
        "allow": sorted(options.allow),
    }


def load(bundle: Path, options: PredictOptions) -> Predictor:
    """The bundle, ready to predict."""
    from medseg.engine.seeding import use_threads

    use_threads(options.threads)
    return Predictor.load(bundle, options.device, options.overlap, options.tile_batch)


def predict_one(predictor: Predictor, record: CaseRecord, options: PredictOptions) -> Entry:
    """One case from file to file."""
    output = options.out / f"{record.id}.nii.gz"
    marks = [time.perf_counter()]
    description = predictor.description
    unlabelled = CaseRecord(record.id, record.patient, record.images)
    dataset = Dataset(description.name, description.modalities, description.labels, (unlabelled,), output)
    case = read_case(unlabelled, dataset, allow=options.allow)
    marks.append(time.perf_counter())
    prediction = predictor.predict_case(case)
    write_result(output, prediction, options)
    if options.preview:
        draw_preview(options.out / "previews" / f"{record.id}.png", case, prediction, description)
    total_s, read_s = time.perf_counter() - marks[0], marks[1] - marks[0]
    return Entry(
        id=record.id,
        input=tuple(path.name for path in record.images),
        status="done",
        output=output.name,
        seconds={"read": round(read_s, 3), **prediction.seconds, "total": round(total_s, 3)},
        peak_memory_bytes=peak_memory_bytes(),
        volume_ml=prediction.volumes_ml,
        truncated={name: name in prediction.truncated for name in description.labels.names},
        notes=tuple(asdict(note) for note in case.image.notes),
        input_sha256=sha256_of(record.images),
        output_sha256=sha256_of([output]),
    )


def write_result(output: Path, prediction: Prediction, options: PredictOptions) -> None:
    """Write the label map; what a killed run left there is accepted where it is the same."""
    if output.exists() and not options.overwrite:
        if np.array_equal(read_label_map(output).array, prediction.label_map.array):
            return
        raise WriteError(
            f"{output.name} is there already and differs: give --overwrite, or another --out", code="write.exists"
        )
    write_label_map(output, prediction.label_map, overwrite=options.overwrite)


def draw_preview(path: Path, case: Case, prediction: Prediction, description: ModelDescription) -> None:
    """A picture of the contours on the scan."""
    from medseg.report.overlays import draw_overlay

    grid = case.image.geometry
    image, labels = (grid.axes.to_canonical(array) for array in (case.image.array[0], prediction.label_map.array))
    draw_overlay(path, image, grid.canonical, description.labels, labels, None, case.id, window_of(description))


def window_of(description: ModelDescription) -> tuple[float, float] | None:
    """How the first channel is shown: soft tissue for CT, else by the image's own range."""
    return SOFT_TISSUE_HU if description.modalities[0].upper() == "CT" else None


def outcome(manifest: Manifest, records: Sequence[CaseRecord], out: Path) -> Outcome:
    """Counts, and the exit code that follows from them."""
    entries = [manifest.entries[record.id] for record in records]
    counts = {status: sum(entry.status == status for entry in entries) for status in ("done", "skipped", "failed")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; label maps in {out}"
    failures = {entry.id: entry.error for entry in entries if entry.error}
    result = {"out": str(out), **counts, "errors": failures}
    return Outcome(exit_code_of(counts["failed"], len(entries)), result, text)
