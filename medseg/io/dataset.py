"""Datasets as they come: native, nnU-Net raw, Medical Segmentation Decathlon. Only their description is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.core.case import Dataset
from medseg.core.errors import ConfigError
from medseg.io.dataset_decathlon import read_decathlon
from medseg.io.dataset_document import DESCRIPTION, is_file_name, mistaken, read_json
from medseg.io.dataset_native import read_native
from medseg.io.dataset_nnunet import read_nnunet
from medseg.io.label_names import labels_of

__all__ = ["ADDITION", "DESCRIPTION", "is_dataset", "is_file_name", "labels_of", "read_dataset"]

ADDITION = "medseg.json"
"""Beside a dataset that medseg converted: all that the form itself cannot hold, as a native description."""


def is_dataset(path: Path) -> bool:
    """Whether a path is a dataset's folder or its description, by name alone."""
    try:
        return (path / DESCRIPTION).is_file() or (path.suffix == ".json" and path.is_file())
    except OSError:  # a name that the file system does not take
        return False


def read_dataset(path: Path) -> Dataset:
    """Read a dataset's description.

    Where :data:`ADDITION` lies beside it, that is what counts, once it is sure to belong to these files.

    Args:
        path: Its folder, or the JSON file in it.

    Raises:
        ConfigError: With every mistake of the description in one message.
    """
    source = path / DESCRIPTION if path.is_dir() else path
    if source.name == ADDITION:
        source = source.with_name(DESCRIPTION)
    document = read_json(source)
    if "cases" in document:
        return read_native(document, source)
    addition = source.with_name(ADDITION)
    if source.name == DESCRIPTION and addition.is_file():
        return _restored(document, source, addition)
    return _read_form(document, source)


def _read_form(document: Mapping[str, Any], source: Path) -> Dataset:
    if "training" in document:
        return read_decathlon(document, source)
    if "channel_names" in document and "file_ending" in document:
        return read_nnunet(document, source)
    raise ConfigError(
        f"{source.name} is no dataset that medseg knows: expected 'cases' (native), 'training' (Decathlon) or "
        "'channel_names' and 'file_ending' (nnU-Net raw)"
    )


def _restored(document: Mapping[str, Any], source: Path, addition: Path) -> Dataset:
    """What was converted, with everything that the form could not hold."""
    full = read_json(addition)
    if not isinstance(full.get("cases"), list):
        raise ConfigError(f"{addition} is no description that medseg wrote: delete it to read the folder without")
    dataset = read_native(full, addition)
    if changes := list(_changes(document, source, full)):
        remedy = f"convert again, or delete {ADDITION} to read the folder without what only that file holds"
        raise mistaken(addition, [*changes, f"since medseg converted it, the dataset was changed: {remedy}"])
    return dataset


def _changes(document: Mapping[str, Any], source: Path, full: Mapping[str, Any]) -> Iterator[str]:
    """What is no longer as the conversion left it: an addition that speaks of other files must not be believed."""
    if full.get("sha256") != hashlib.sha256(source.read_bytes()).hexdigest():
        yield f"{source.name} is not the one that this file belongs to"
        return
    known = {str(entry.get("name")) for entry in full["cases"] if entry.get("place") in ("Tr", "Ts")}
    found = {case.id for case in _read_form(document, source).cases} if known else set()
    for name in sorted(found ^ known):
        yield f"the case {name!r} was {'added' if name in found else 'taken away'}"
    for entry in full["cases"]:
        translated = entry.get("translated")
        if isinstance(translated, Mapping):
            path = source.parent / str(translated.get("file"))
            if not path.is_file() or path.stat().st_size != translated.get("num_bytes"):
                yield f"{path.name} was changed or taken away, and the addition names the label that it came from"
