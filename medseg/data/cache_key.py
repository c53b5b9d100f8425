"""What a prepared case depends on, as one key: where the key is the same, so are the voxels. No torch."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from medseg.core.case import CaseRecord, Dataset
from medseg.core.geometry import Spacing3
from medseg.core.version import VERSION
from medseg.data.config import Normalisation
from medseg.io.volume import files_of

CODE = (
    *("../core/*.py", "../io/*.py", "cache_key.py", "config.py", "container.py"),
    *("prepare.py", "resample.py", "sampling.py", "shear.py"),
)
"""Modules between a file and what is kept of it, seen from this room."""


@dataclass(frozen=True)
class Preparation:
    """All that is done to the cases of a run.

    Attributes:
        dataset: They belong to.
        spacing_ijk_mm: Of the network's grid.
        normalisation: Of each image channel.
    """

    dataset: Dataset
    spacing_ijk_mm: Spacing3
    normalisation: tuple[Normalisation, ...]


def case_key(record: CaseRecord, preparation: Preparation) -> str:
    """The key of a case: a hash over the bytes of its files, all that is done to them, and the code that does it.

    Names and times of files don't count: a copy has the same key, and a changed byte another.

    Raises:
        OSError: A file cannot be read.
    """
    document = {
        "code": _digest_of_code(),
        "files": [[_digest(file) for file in files_of(path)] for path in _inputs(record)],
        "is_labelled": record.label is not None,
        "annotated": None if record.annotated is None else sorted(record.annotated),
        "channels": preparation.dataset.channels,
        "labels": asdict(preparation.dataset.labels),
        "spacing_ijk_mm": preparation.spacing_ijk_mm,
        "normalisation": [how.model_dump(mode="json") for how in preparation.normalisation],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def file_marks(record: CaseRecord) -> list[tuple[object, ...]]:
    """What shows that a case's files were written to in the meantime: name, inode, size, times. Never raises."""
    marks: list[tuple[object, ...]] = []
    for file in (file for path in _inputs(record) for file in files_of(path)):
        with suppress(OSError):  # whoever reads it tells why
            status = file.stat()
            marks.append((file, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return marks


def _inputs(record: CaseRecord) -> list[Path]:
    return [*record.images, *([] if record.label is None else [record.label])]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _digest_of_code() -> str:
    """What the modules make may change with them, and nobody has to think of a number to raise."""
    digest = hashlib.sha256(VERSION.encode())
    for pattern in CODE:
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()
