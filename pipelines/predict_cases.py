"""The cases of a prediction, one after the other: the next is read and the last one written while the network works."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from medseg.core.case import Case, CaseRecord, Split
from medseg.core.errors import CaseError, InferenceError, ReadError
from medseg.core.memory import free_memory_bytes
from medseg.core.progress import Listener, Progress
from medseg.inference.ensemble import Ensemble
from medseg.inference.files import Outputs, ReadCase, read_for_prediction, write_prediction
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.runtimes.choice import Choice, Wanted
from medseg.io.manifest import Entry, Manifest

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


def outputs(options: PredictOptions) -> Outputs:
    """What is written of each case."""
    return Outputs(options.out, options.one_file_each, options.probabilities, options.overwrite)


@dataclass
class Job:
    """What is to be done, and with what.

    Attributes:
        ensemble, choice: What predicts, and what runs it.
        manifest: Of the results; only the writer changes it.
        options: Of the command line.
    """

    ensemble: Ensemble
    choice: Choice
    manifest: Manifest
    options: PredictOptions

    @cached_property
    def predictor(self) -> Predictor:
        """Loaded when it is first needed: that takes seconds, which a run that skips all need not pay."""
        options = self.options
        return Predictor.of(
            self.ensemble,
            self.choice,
            options.overlap,
            options.tile_batch,
            options.skip_air,
            options.structures,
            options.tta,
        )


def predict_all(job: Job, records: Sequence[CaseRecord], listener: Listener) -> None:
    """Predict what is not done yet; a case that fails is recorded, and the others go on.

    Args:
        job: What predicts, and where results go.
        records: The cases.
        listener: Hears of each.
    """
    with ThreadPoolExecutor(1, "writing") as writer, closing(read_ahead(job, records)) as cases:
        written: Future[str] | None = None
        for done, (record, reading) in enumerate(cases):
            listener(Progress("cases", done, len(records)))
            labelled = label(job, record, reading)
            tell(written, done, len(records), listener)  # no more than one waits, and a full disk ends it all
            written = writer.submit(labelled)
            del labelled  # the writer's alone now: a case is gone when it is written
            if not has_room_beside(reading):
                tell(written, done, len(records), listener)
                written = None
        tell(written, len(records), len(records), listener)


def read_ahead(
    job: Job, records: Sequence[CaseRecord]
) -> Generator[tuple[CaseRecord, Future[ReadCase | None]], None, None]:
    """Cases that were read, in order; while one is worked on, the next is read, where there is room."""
    with ThreadPoolExecutor(1, "reading") as reader:
        following: Future[ReadCase | None] | None = None
        for number, record in enumerate(records, start=1):
            reading = following or reader.submit(read, job, record)
            wait([reading])
            goes_on = number < len(records) and has_room_beside(reading)
            following = reader.submit(read, job, records[number]) if goes_on else None
            yield record, reading


def read(job: Job, record: CaseRecord) -> ReadCase | None:
    """One case; None where it is done already.

    Raises:
        CaseError: It cannot be read.
    """
    if job.manifest.is_done(record) and not job.options.overwrite:
        return None
    try:
        return read_for_prediction(job.ensemble.description, record, job.options.allow)
    except MemoryError:
        raise ReadError(f"{record.id} does not fit into memory", code="read.memory") from None


def has_room_beside(reading: Future[ReadCase | None]) -> bool:
    """Whether another case like this one may be read while this one is predicted and another one written."""
    case = None if reading.exception() else reading.result()
    return case is None or free_memory_bytes() > ROOM * case.num_bytes


def label(job: Job, record: CaseRecord, reading: Future[ReadCase | None]) -> Callable[[], str]:
    """What is left to do once the network has been at a case: to write, and to say what there is to tell."""
    try:
        case = reading.result()
        if case is None:
            return partial(skip, job, record)
        spool = job.options.out if job.options.probabilities else None
        prediction = job.predictor.predict_prepared(case.case, case.prepared, probabilities_in=spool)
        return partial(write, job, record, case, prediction)
    except CaseError as error:
        return partial(fail, job, record, error)
    except MemoryError:
        short = InferenceError(f"{record.id} needs more memory than is free", code="inference.memory")
        return partial(fail, job, record, short)


def skip(job: Job, record: CaseRecord) -> str:
    """An earlier run did it."""
    job.manifest.skip(record)
    return ""


def fail(job: Job, record: CaseRecord, error: CaseError) -> str:
    """Record a failure; what to tell of it."""
    problem = {"code": error.code, "message": error.message}
    job.manifest.add(Entry(record.id, tuple(path.name for path in record.images), "failed", error=problem))
    return f"{record.id} failed: {error.message}"


def write(job: Job, record: CaseRecord, case: ReadCase, prediction: Prediction) -> str:
    """Write a prediction; what to tell of it."""
    options, schema, modality = job.options, job.predictor.labels, job.ensemble.description.modalities[0]

    def draw(case: Case, prediction: Prediction) -> None:
        from medseg.report.preview import draw_preview

        draw_preview(options.out / "previews" / f"{case.id}.png", case, prediction.label_map, schema, modality)

    drawing = draw if options.preview else None
    try:
        job.manifest.add(write_prediction(record, case, prediction, schema, outputs(options), drawing))
    except CaseError as error:
        return fail(job, record, error)
    return ""


def tell(written: Future[str] | None, done: int, total: int, listener: Listener) -> None:
    """Wait until the last case is written, and pass on what there is to say of it."""
    message = written.result() if written is not None else ""
    if message or done == total:
        listener(Progress("cases", done, total, message=message))
