"""Prediction: from a bundle and scans to label maps on the scans' own grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.core.case import CaseRecord
from medseg.core.errors import ConfigError
from medseg.core.progress import Listener, silent
from medseg.core.selection import Selection
from medseg.inference.ensemble import open_ensemble
from medseg.inference.mirroring import mirrorings
from medseg.inference.runtimes.choice import Choice, choose_runtime
from medseg.io.case import chosen_cases
from medseg.io.exclusive import exclusive
from medseg.io.label_tables import write_label_tables
from medseg.io.manifest import Manifest
from medseg.io.volume import ALLOWABLE
from pipelines.outcome import Outcome, exit_code_of
from pipelines.predict_cases import Job, PredictOptions, outputs, predict_all


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
        choice = choose_runtime(ensemble, options.runtime, options.device, options.threads, listener)
        manifest = Manifest.open(options.out, ensemble.hash, settings(options, choice))
        write_label_tables(options.out, labels)
        predict_all(Job(ensemble, choice, manifest, options), records, listener)
    return outcome(manifest, records, options.out)


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


def outcome(manifest: Manifest, records: Sequence[CaseRecord], out: Path) -> Outcome:
    """Counts, and the exit code that follows from them."""
    entries = [manifest.entries[record.id] for record in records]
    counts = {status: sum(entry.status == status for entry in entries) for status in ("done", "skipped", "failed")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; label maps in {out}"
    failures = {entry.id: entry.error for entry in entries if entry.error}
    result = {"out": str(out), **counts, "errors": failures}
    return Outcome(exit_code_of(counts["failed"], len(entries)), result, text)
