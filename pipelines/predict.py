"""Prediction: from a bundle and scans to label maps on the scans' own grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medseg.core.case import Case, CaseRecord, Split
from medseg.core.errors import CaseError, ConfigError
from medseg.core.memory import free_memory_bytes
from medseg.core.progress import Listener, Progress, silent
from medseg.core.selection import Selection
from medseg.inference.ensemble import Ensemble, open_ensemble
from medseg.inference.files import Outputs, ReadCase, read_for_prediction, write_prediction
from medseg.inference.mirroring import mirrorings
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.runtimes.choice import Choice, Wanted, choose_runtime
from medseg.io.case import chosen_cases
from medseg.io.exclusive import exclusive
from medseg.io.label_tables import write_label_tables
from medseg.io.manifest import Entry, Manifest
from medseg.io.volume import ALLOWABLE
from pipelines.outcome import Outcome, exit_code_of

ROOM = 4
"""Another case is read ahead where this many times the memory of the present one is free: it, its label map, and what is in work."""


@dataclass(frozen=True)
class PredictOptions:
    """Fields are the command's options."""

    out: Path
    split: Split | None = None
    structures: tuple[str, ...] | None = None
    device: str = "auto"
    runtime: Wanted = "auto"
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
        choice = choose_runtime(ensemble, options.runtime, options.device, options.threads, listener)
        manifest = Manifest.open(options.out, ensemble.hash, settings(options, choice))
        predict_all(ensemble, choice, records, manifest, options, listener)
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
    ensemble: Ensemble,
    choice: Choice,
    records: Sequence[CaseRecord],
    manifest: Manifest,
    options: PredictOptions,
    listener: Listener,
) -> None:
    """Predict what is not done yet; a case that fails is recorded, and the others go on.

    While the network is at one case, the next is read and prepared and the last one written, where memory allows. Only the
    writer's thread changes the manifest.
    """
    predictor: Predictor | None = None

    def read(record: CaseRecord) -> ReadCase | None:
        is_done = manifest.is_done(record) and not options.overwrite
        return None if is_done else read_for_prediction(ensemble.description, record, options.allow)

    with ThreadPoolExecutor(1, "writing") as writer:
        written: Future[str] | None = None
        for done, (record, reading) in enumerate(read_ahead(records, read)):
            listener(Progress("cases", done, len(records)))
            try:
                case = reading.result()
                if case is None:
                    job = partial(skip, record, manifest)
                else:  # loading takes seconds that an all-skipped run need not pay
                    predictor = predictor or load(ensemble, choice, options)
                    spool = options.out if options.probabilities else None
                    prediction = predictor.predict_prepared(case.case, case.prepared, probabilities_in=spool)
                    job = partial(write, record, case, prediction, predictor, manifest, options)
            except CaseError as error:
                job = partial(fail, record, error, manifest)
            tell(written, done, len(records), listener)  # no more than one waits, and a full disk ends it all
            written = writer.submit(job)
        tell(written, len(records), len(records), listener)


def read_ahead(
    records: Sequence[CaseRecord], read: Callable[[CaseRecord], ReadCase | None]
) -> Iterator[tuple[CaseRecord, Future[ReadCase | None]]]:
    """Cases that were read, in order; while one is worked on, the next is read, where there is room for both."""
    with ThreadPoolExecutor(1, "reading") as reader:
        following: Future[ReadCase | None] | None = None
        for number, record in enumerate(records, start=1):
            reading = following or reader.submit(read, record)
            wait([reading])
            goes_on = number < len(records) and has_room_beside(reading)
            following = reader.submit(read, records[number]) if goes_on else None
            yield record, reading


def has_room_beside(reading: Future[ReadCase | None]) -> bool:
    """Whether another case like this one may be read while this one is predicted and another one written."""
    case = None if reading.exception() else reading.result()
    return case is None or free_memory_bytes() > ROOM * case.num_bytes


def skip(record: CaseRecord, manifest: Manifest) -> str:
    """An earlier run did it."""
    manifest.skip(record)
    return ""


def fail(record: CaseRecord, error: CaseError, manifest: Manifest) -> str:
    """Record a failure; what to tell of it."""
    problem = {"code": error.code, "message": error.message}
    manifest.add(Entry(record.id, tuple(path.name for path in record.images), "failed", error=problem))
    return f"{record.id} failed: {error.message}"


def write(
    record: CaseRecord,
    case: ReadCase,
    prediction: Prediction,
    predictor: Predictor,
    manifest: Manifest,
    options: PredictOptions,
) -> str:
    """Write a prediction; what to tell of it."""

    def draw(case: Case, prediction: Prediction) -> None:
        from medseg.report.preview import draw_preview

        path = options.out / "previews" / f"{case.id}.png"
        draw_preview(path, case, prediction.label_map, predictor.labels, predictor.description.modalities[0])

    drawing = draw if options.preview else None
    try:
        manifest.add(write_prediction(record, case, prediction, predictor.labels, outputs(options), drawing))
    except CaseError as error:
        return fail(record, error, manifest)
    return ""


def tell(written: Future[str] | None, done: int, total: int, listener: Listener) -> None:
    """Wait until the last case is written, and pass on what there is to say of it."""
    message = written.result() if written is not None else ""
    if message or done == total:
        listener(Progress("cases", done, total, message=message))


def outputs(options: PredictOptions) -> Outputs:
    """What is written of each case."""
    return Outputs(options.out, options.one_file_each, options.probabilities, options.overwrite)


def settings(options: PredictOptions, choice: Choice) -> dict[str, Any]:
    """What decides the bytes of an output besides the input and the bundle."""
    return {
        "structures": None if options.structures is None else sorted(set(options.structures)),
        "overlap": options.overlap,
        "tile_batch": options.tile_batch,
        "skip_air": options.skip_air,
        "tta": options.tta,
        "one_file_each": options.one_file_each,
        "probabilities": options.probabilities,
        "runtime": choice.title,
        "device": choice.device,
        "threads": choice.num_threads,
        "allow": sorted(options.allow),
    }


def load(ensemble: Ensemble, choice: Choice, options: PredictOptions) -> Predictor:
    """The networks, ready to predict."""
    return Predictor.of(
        ensemble, choice, options.overlap, options.tile_batch, options.skip_air, options.structures, options.tta
    )


def outcome(manifest: Manifest, records: Sequence[CaseRecord], out: Path) -> Outcome:
    """Counts, and the exit code that follows from them."""
    entries = [manifest.entries[record.id] for record in records]
    counts = {status: sum(entry.status == status for entry in entries) for status in ("done", "skipped", "failed")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; label maps in {out}"
    failures = {entry.id: entry.error for entry in entries if entry.error}
    result = {"out": str(out), **counts, "errors": failures}
    return Outcome(exit_code_of(counts["failed"], len(entries)), result, text)
