"""Conversion: a dataset in another form, so that any program of the field can work on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import CaseError
from medseg.core.progress import Listener, Progress, silent
from medseg.io.atomic import write_json_atomically
from medseg.io.conversion import FORM_NAMES, Form, conversion_of
from medseg.io.convert import ConvertedCase, Converter
from medseg.io.dataset import read_dataset
from medseg.io.dataset_writer import JOURNAL, losses, open_folder, write_descriptions
from medseg.io.exclusive import exclusive
from pipelines.outcome import Outcome, exit_code_of


@dataclass(frozen=True)
class ConvertOptions:
    """Fields are the command's options."""

    to: Form
    out: Path


def run(dataset_path: Path, options: ConvertOptions, listener: Listener = silent) -> Outcome:
    """Convert.

    Args:
        dataset_path: Folder or dataset.json.
        options: Of the command line.
        listener: Hears of the progress and of what the new form cannot say.
    """
    dataset = read_dataset(dataset_path)
    converter = Converter(conversion_of(dataset, options.to), options.out)
    with exclusive(options.out):
        journal = open_folder(converter.conversion, options.out)
        cases, failed = convert_all(converter, listener)
        warnings = losses(converter.conversion, cases) if cases else []
        if cases:
            write_descriptions(converter.conversion, cases, options.out)
        result = {**journal, "warnings": warnings, "files": dict(converter.manners), "cases": entries(cases, failed)}
        write_json_atomically(options.out / JOURNAL, result)
    for warning in warnings:
        listener(Progress("converting", len(dataset.cases), None, message=f"warning: {warning}"))
    counted = f"{len(cases)} of {len(dataset.cases)} cases in {FORM_NAMES[options.to]}: {options.out}"
    files = ", ".join(f"{count} files {manner}" for manner, count in sorted(converter.manners.items()))
    return Outcome(exit_code_of(len(failed), len(dataset.cases)), result, f"{counted}\n{files}".rstrip())


def convert_all(converter: Converter, listener: Listener) -> tuple[list[ConvertedCase], dict[str, CaseError]]:
    """Convert case after case; one that fails is told, and the others go on."""
    records = converter.conversion.dataset.cases
    cases: list[ConvertedCase] = []
    failed: dict[str, CaseError] = {}
    listener(Progress("converting", 0, len(records)))
    for done, record in enumerate(records, start=1):
        message = ""
        try:
            cases.append(case := converter.convert(record))
        except CaseError as error:
            failed[record.id] = error
            message = f"{record.id} failed: {error.message}"
        else:
            message = "\n".join(f"{record.id}: {note.message}" for note in case.notes)
        listener(Progress("converting", done, len(records), message=message))
    return cases, failed


def entries(cases: list[ConvertedCase], failed: dict[str, CaseError]) -> list[dict[str, Any]]:
    """What became of each case."""
    done = [{"id": case.record.id, "name": case.name, "status": "done", "place": case.place} for case in cases]
    errors = [(name, {"code": error.code, "message": error.message}) for name, error in failed.items()]
    return done + [{"id": name, "status": "failed", "error": error} for name, error in errors]
