"""``manifest.json``: what became of each case of a prediction, written after every case so that a kill loses none."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medseg.core.case import CaseRecord
from medseg.core.version import VERSION
from medseg.io.atomic import write_json_atomically
from medseg.io.volume import files_of

MANIFEST = "manifest.json"

Status = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class Entry:
    """One case.

    Attributes:
        id: Of the case.
        input: Names of the input files.
        status: ``skipped``: an earlier run made the output from the same input, bundle and settings.
        output: Name of the label map; None where there is none.
        masks: Of each structure, where masks were asked for: name of the file, from the folder of the manifest.
        probabilities: Where they were asked for: ``output``, the name of the file, and ``volumes``, whose they are in order.
        error: ``code`` and ``message`` of a failure.
        seconds: Wall clock of each stage [s].
        peak_memory_bytes: Of the process until then.
        volume_ml: Of each structure [ml].
        mean_hu: Of each structure in the scan's first CT channel; None where it was not found, or nothing is CT.
        truncated: Whether each structure touches an edge of the scan.
        notes: What the reader met and dealt with, each with ``code`` and ``message``.
        input_sha256: Of the input files together.
        output_sha256: Of the label map.
        further_sha256: Of each other output that a later run looks at again, by its name.
    """

    id: str
    input: tuple[str, ...]
    status: Status
    output: str | None = None
    masks: Mapping[str, str] = field(default_factory=dict)
    probabilities: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    volume_ml: Mapping[str, float] = field(default_factory=dict)
    mean_hu: Mapping[str, float | None] = field(default_factory=dict)
    truncated: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[Mapping[str, str], ...] = ()
    input_sha256: str | None = None
    output_sha256: str | None = None
    further_sha256: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Manifest:
    """The manifest of one output folder.

    Attributes:
        folder: That holds the outputs.
        bundle_hash: Of the bundle that predicts now.
        settings: Everything else that decides the bytes of an output.
        entries: By case.
    """

    folder: Path
    bundle_hash: str
    settings: Mapping[str, Any]
    entries: dict[str, Entry]

    @classmethod
    def open(cls, folder: Path, bundle_hash: str, settings: Mapping[str, Any]) -> Manifest:
        """Open a folder, keeping the entries of earlier runs with the same bundle and settings."""
        manifest = cls(folder, bundle_hash, settings, {})
        try:
            old = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if old["bundle_hash"] == bundle_hash and old["settings"] == dict(settings):
                lists = ("input", "notes")
                manifest.entries = {
                    entry["id"]: Entry(**{**entry, **{name: tuple(entry[name]) for name in lists}})
                    for entry in old["cases"]
                }
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # no manifest, or not one of ours: nothing is known to be done
        return manifest

    def is_done(self, record: CaseRecord) -> bool:
        """Whether all outputs of a case are there, made from this very input, and unchanged since."""
        entry = self.entries.get(record.id)
        if entry is None or entry.status == "failed" or entry.output is None:
            return False
        outputs = {entry.output: entry.output_sha256, **entry.further_sha256}
        return (
            all((self.folder / name).is_file() for name in outputs)
            and entry.input_sha256 == sha256_of(record.images)
            and all(sha256_of([self.folder / name]) == digest for name, digest in outputs.items())
        )

    def skip(self, record: CaseRecord) -> None:
        """Mark a case as done by an earlier run."""
        self.add(replace(self.entries[record.id], status="skipped"))

    def add(self, entry: Entry) -> None:
        """Record a case and write the file."""
        self.entries[entry.id] = entry
        document = {
            "medseg_version": VERSION,
            "bundle_hash": self.bundle_hash,
            "settings": dict(self.settings),
            "cases": [asdict(self.entries[case]) for case in sorted(self.entries)],
        }
        write_json_atomically(self.folder / MANIFEST, document)


def sha256_of(paths: Iterable[Path]) -> str | None:
    """SHA-256 of inputs, file after file; None where one cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in (file for given in paths for file in files_of(given)):
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
