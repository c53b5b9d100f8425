"""What the three forms of a dataset's description share: reading the JSON, telling mistakes, making the dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema

DESCRIPTION = "dataset.json"

MAX_ID_BYTES = 200
"""Of a case's id, which names its outputs: file systems allow 255 bytes for a name with its suffix."""


def read_json(source: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: It is missing, damaged, or holds something else.
    """
    try:
        document = json.loads(source.read_text(encoding="utf-8-sig"))  # some Windows editors write a byte order mark
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {source.name} in {source.parent}: give a dataset's folder or its description"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {source.name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"expected JSON in {source.name}, the description of a dataset or of its labels: {error}"
        ) from error
    if not isinstance(document, dict):
        raise ConfigError(f"expected an object in {source.name}, found {type(document).__name__}")
    return document


def is_file_name(name: str) -> bool:
    """Whether an id can name a file in an output folder and leads nowhere else."""
    # Lone surrogates, which JSON can spell, are no text that a file system takes.
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f\ud800-\udfff]", name):
        return False
    return len(name.encode()) <= MAX_ID_BYTES


def is_path(text: Any) -> TypeGuard[str]:
    """Whether something in a description can be the path of a file."""
    return isinstance(text, str) and text != "" and "\0" not in text


def id_mistakes(found: Iterable[Any]) -> list[str]:
    """What is wrong with the ids of cases."""
    ids = [name for name in found if isinstance(name, str)]
    twice = [f"the id '{name}' stands {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1]
    return twice + [f"the id {name!r} cannot name a file" for name in ids if not is_file_name(name)]


def indexed_channels(names: Any, key: str) -> tuple[tuple[str, ...], list[str]]:
    """The channels of ``{"0": "CT", "1": "PET"}``, in order, or what is wrong with them; MR is called MRI there."""
    count = len(names) if isinstance(names, Mapping) else 0
    if not count or set(names) != {str(number) for number in range(count)}:
        return (), [f'{key}: expected {{"0": name, "1": name, …}}, found {names!r}'[:300]]
    channels = (str(names[str(number)]) for number in range(count))
    return tuple("MR" if name.upper() == "MRI" else name for name in channels), []


def described_dataset(
    document: Mapping[str, Any],
    channels: Sequence[str],
    labels: LabelSchema,
    cases: Sequence[CaseRecord],
    source: Path,
) -> Dataset:
    """The dataset that a description tells of.

    Raises:
        ConfigError: Two cases have one id, an id can name no file, or there is no case.
    """
    mistakes = id_mistakes(case.id for case in cases)
    if not cases:
        mistakes.append("there is no case")
    if mistakes:
        raise mistaken(source, mistakes)
    name = str(document.get("name", source.absolute().parent.name))
    return Dataset(name, tuple(channels), labels, tuple(cases), source)


def mistaken(source: Path, mistakes: Sequence[str]) -> ConfigError:
    """All mistakes of a description in one error."""
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return ConfigError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in mistakes))
