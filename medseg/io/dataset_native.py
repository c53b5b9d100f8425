"""The native form: every case a line, with what somebody looked for in it. The only form that can say all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.io.dataset_document import described_dataset, id_mistakes, is_path, mistaken
from medseg.io.label_names import IGNORE, label_entries, labels_and_mistakes

CASE_KEYS = ("id", "patient", "image", "label", "annotated", "split")


def read_native(document: Mapping[str, Any], source: Path) -> Dataset:
    """A native description, already parsed.

    Raises:
        ConfigError: With every mistake in one message.
    """
    labels, mistakes = labels_and_mistakes(document.get("labels"), document.get(IGNORE), document.get("priority"))
    channels = document.get("channels") or [document.get("modality", "CT")]
    if not isinstance(channels, list) or not all(isinstance(channel, str) and channel for channel in channels):
        mistakes.append(f"channels: expected a list of names, found {channels!r}")
    entries = document["cases"]
    if not isinstance(entries, list):
        raise mistaken(source, [*mistakes, f"cases: expected a list, found {type(entries).__name__}"])
    for number, entry in enumerate(entries):
        mistakes += _case_mistakes(entry, number, None if labels is None else labels.names, len(channels))
    mistakes += id_mistakes(entry.get("id") for entry in entries if isinstance(entry, Mapping))
    if mistakes or labels is None:
        raise mistaken(source, mistakes)
    cases = [_case(entry, source.parent) for entry in entries]
    return described_dataset(document, channels, labels, cases, source)


def native_document(dataset: Dataset, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The description of a dataset in this form.

    Args:
        dataset: For everything but the cases.
        cases: As :func:`case_entry` gives them.
    """
    entries = label_entries(dataset.labels)
    document: dict[str, Any] = {"name": dataset.name, "channels": list(dataset.channels), "labels": entries}
    if (ignore := entries.pop(IGNORE, None)) is not None:
        document[IGNORE] = ignore
    if dataset.labels.priority:
        document["priority"] = list(dataset.labels.priority)
    return {**document, "cases": list(cases)}


def case_entry(record: CaseRecord, folder: Path) -> dict[str, Any]:
    """A case as a native description in ``folder`` says it."""

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    images = [relative(path) for path in record.images]
    entry: dict[str, Any] = {"id": record.id, "image": images[0] if len(images) == 1 else images}
    if record.patient != record.id:
        entry["patient"] = record.patient
    if record.label is not None:
        entry["label"] = relative(record.label)
    if record.annotated is not None:
        entry["annotated"] = list(record.annotated)
    if record.split is not None:
        entry["split"] = record.split
    return entry


def _case(entry: Mapping[str, Any], folder: Path) -> CaseRecord:
    annotated = entry.get("annotated")
    return CaseRecord(
        id=entry["id"],
        patient=str(entry.get("patient", entry["id"])),
        images=tuple(folder / image for image in _listed(entry["image"])),
        label=folder / entry["label"] if entry.get("label") else None,
        annotated=None if annotated is None else tuple(annotated),
        split=entry.get("split"),
    )


def _case_mistakes(entry: Any, number: int, names: Sequence[str] | None, num_channels: int) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str) or not entry.get("image"):
        return [f"cases.{number}: expected an object with 'id' and 'image'"]
    where = f"cases.{number} ({entry['id'][:40]})"
    mistakes = []
    images, annotated = _listed(entry["image"]), entry.get("annotated")
    # One file alone, not in a list, may hold all channels along its fourth axis.
    if isinstance(entry["image"], list) and len(images) != num_channels:
        mistakes.append(f"{where}.image: expected {num_channels} files, found {len(images)}")
    if not all(map(is_path, images)) or not (not entry.get("label") or is_path(entry["label"])):
        mistakes.append(f"{where}: image and label must be file names")
    if entry.get("split") not in (None, *get_args(Split)):
        mistakes.append(f"{where}.split: expected one of {list(get_args(Split))}, found {entry['split']!r}")
    if annotated is not None and not (isinstance(annotated, list) and all(isinstance(name, str) for name in annotated)):
        mistakes.append(f"{where}.annotated: expected a list of names, found {annotated!r}")
    elif names is not None and (unknown := sorted(set(annotated or ()) - set(names))):
        mistakes.append(f"{where}.annotated: {unknown} are not among the labels {list(names)}")
    # Other keys are the owner's notes, but a misspelt one would silently drop a label or a split.
    for key in set(entry) - set(CASE_KEYS):
        if near := difflib.get_close_matches(key, CASE_KEYS, n=1, cutoff=0.8):
            mistakes.append(f"{where}: unknown key '{key}'; did you mean '{near[0]}'?")
    return mistakes


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
