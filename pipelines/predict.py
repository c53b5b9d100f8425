"""Prediction: from a bundle and scans to label maps on the scans' own grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.case import Case, CaseRecord, Split
from medseg.core.errors import CaseError, ConfigError
from medseg.core.progress import Listener, Progress, silent
from medseg.core.selection import Selection
from medseg.inference.ensemble import Ensemble, open_ensemble
from medseg.inference.files import Outputs, predict_files
from medseg.inference.mirroring import mirrorings
from medseg.inference.predictor import Prediction, Predictor
from medseg.io.case import chosen_cases
from medseg.io.exclusive import exclusive
from medseg.io.label_tables import write_label_tables
from medseg.io.manifest import Entry, Manifest
from medseg.io.volume import ALLOWABLE
from pipelines.outcome import Outcome, exit_code_of


@dataclass(frozen=True)
class PredictOptions:
    """Fields are the command's options."""

    out: Path
    split: Split | None = None
    structures: tuple[str, ...] | None = None
    device: str = "auto"
    threads: int | None = None
    tile_batch: int = 1
    overlap: float = 0.5
    skip_air: bool = True
    tta: bool = False
    one_file_each: bool = False
    probabilities: bool = False
    allow: frozenset[str] = frozenset()
    preview: bool = False
    overwrite: bool = False


def run(bundle: str | Path, inputs: Sequence[Path], options: PredictOptions, listener: Listener = silent) -> Outcome:
    """Predict.

    Args:
        bundle: Bundle folder, run folder, or the name of a bundled model; several joined by commas are an ensemble.
        inputs: Volume files, folders of them, or datasets.
        options: Of the command line.
        listener: Hears of the progress.
    """
    if unknown := sorted(options.allow - set(ALLOWABLE)):
        raise ConfigError(f"--allow {', '.join(unknown)}: expected some of {', '.join(ALLOWABLE)}")
    ensemble = open_ensemble(bundle)
    description = ensemble.description
    if options.tta:
        mirrorings(ensemble.descriptions)  # refused before anything is made
    labels = Selection.of(description.labels, options.structures).labels
    records = chosen_cases(inputs, options.split, len(description.modalities))
    outputs(options).check(records, labels)
    with exclusive(options.out):
        write_label_tables(options.out, labels)
        manifest = Manifest.open(options.out, ensemble.hash, settings(options))
        predict_all(ensemble, records, manifest, options, listener)
    return outcome(manifest, records, options.out)


def check_mask_folders(labels: LabelSchema, records: Sequence[CaseRecord], out: Path) -> None:
    """Refuse masks that would fall on each other, or among the slices of a scan."""
    mask_names(labels)
    for record in records:
        folder = (out / record.id).resolve()
        if any(folder in (image.resolve(), image.resolve().parent) for image in record.images):
            raise ConfigError(
                f"the masks of {record.id} would be written into {folder}, where its scan is: give another --out"
            )


def predict_all(
    ensemble: Ensemble, records: Sequence[CaseRecord], manifest: Manifest, options: PredictOptions, listener: Listener
) -> None:
    """Predict what is not done yet; a case that fails is recorded, and the others go on."""
    predictor: Predictor | None = None
    for done, record in enumerate(records):
        listener(Progress("cases", done, len(records)))
        if manifest.is_done(record) and not options.overwrite:
            manifest.skip(record)
            continue
        predictor = predictor or load(ensemble, options)  # torch takes seconds that an all-skipped run need not pay
        try:
            entry = predict_one(predictor, record, options)
        except CaseError as error:
            problem = {"code": error.code, "message": error.message}
            entry = Entry(record.id, tuple(path.name for path in record.images), "failed", error=problem)
            listener(Progress("cases", done, len(records), message=f"{record.id} failed: {error.message}"))
        manifest.add(entry)
    listener(Progress("cases", len(records), len(records)))


def predict_one(predictor: Predictor, record: CaseRecord, options: PredictOptions) -> Entry:
    """One case from file to file."""

    def draw(case: Case, prediction: Prediction) -> None:
        from medseg.report.preview import draw_preview

        path = options.out / "previews" / f"{case.id}.png"
        modality = predictor.description.modalities[0]
        draw_preview(path, case, prediction.label_map, predictor.labels, modality)

    return predict_files(
        predictor,
        record,
        outputs(options),
        allow=options.allow,
        draw=draw if options.preview else None,
    )


def outputs(options: PredictOptions) -> Outputs:
    """What is written of each case."""
    return Outputs(options.out, options.one_file_each, options.probabilities, options.overwrite)


def settings(options: PredictOptions) -> dict[str, Any]:
    """What decides the bytes of an output besides the input and the bundle."""
    return {
        "structures": None if options.structures is None else sorted(set(options.structures)),
        "overlap": options.overlap,
        "tile_batch": options.tile_batch,
        "skip_air": options.skip_air,
        "tta": options.tta,
        "one_file_each": options.one_file_each,
        "probabilities": options.probabilities,
        "threads": options.threads,
        "device": options.device,
        "allow": sorted(options.allow),
    }


def load(ensemble: Ensemble, options: PredictOptions) -> Predictor:
    """The networks, ready to predict."""
    from medseg.engine.seeding import use_threads

    use_threads(options.threads)
    return Predictor.of(
        ensemble, options.device, options.overlap, options.tile_batch, options.skip_air, options.structures, options.tta
    )


def outcome(manifest: Manifest, records: Sequence[CaseRecord], out: Path) -> Outcome:
    """Counts, and the exit code that follows from them."""
    entries = [manifest.entries[record.id] for record in records]
    counts = {status: sum(entry.status == status for entry in entries) for status in ("done", "skipped", "failed")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; label maps in {out}"
    failures = {entry.id: entry.error for entry in entries if entry.error}
    result = {"out": str(out), **counts, "errors": failures}
    return Outcome(exit_code_of(counts["failed"], len(entries)), result, text)
