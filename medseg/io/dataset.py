"""Datasets as they come: native, nnU-Net raw, Medical Segmentation Decathlon. Only their description is read here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.core.errors import ConfigError
from medseg.core.labels import PALETTE, LabelSchema, Structure, mirrored_name, side_of
from medseg.io.nifti import stem_of

DESCRIPTION = "dataset.json"

MAX_ID_LENGTH = 200
"""Of a case's id, which names its outputs: file systems allow 255 bytes for a name with its suffix."""


def is_dataset(path: Path) -> bool:
    """Whether a path is a dataset's folder or its description, by name alone."""
    return (path / DESCRIPTION).is_file() or (path.suffix == ".json" and path.is_file())


def read_dataset(path: Path) -> Dataset:
    """Read a dataset's description.

    Args:
        path: Its folder, or the JSON file in it.

    Raises:
        ConfigError: With every mistake of the description in one message.
    """
    source = path / DESCRIPTION if path.is_dir() else path
    document = _read_json(source)
    if "cases" in document:
        return _native(document, source)
    if "training" in document:
        return _decathlon(document, source)
    if "channel_names" in document and "file_ending" in document:
        return _nnunet(document, source)
    raise ConfigError(
        f"{source.name} is no dataset that medseg knows: expected 'cases' (native), 'training' (Decathlon) or "
        "'channel_names' and 'file_ending' (nnU-Net raw)"
    )


def labels_of(names: Mapping[str, Any]) -> LabelSchema:
    """The schema of ``{"background": 0, "Liver": 1, "Kidney left": {"value": 2, "side": "left", ...}}``.

    Raises:
        ConfigError: Background is not 0, or an entry is no label.
    """
    entries = {name: dict(entry) if isinstance(entry, Mapping) else {"value": entry} for name, entry in names.items()}
    background = entries.pop("background", {"value": 0})
    if background != {"value": 0}:
        raise ConfigError(f"labels.background must be 0, found {names['background']!r}")
    for name, entry in entries.items():
        if not isinstance(entry.get("value"), int) or isinstance(entry.get("value"), bool):
            raise ConfigError(f"labels.{name}: expected an integer, found {names[name]!r}")
        unknown = set(entry) - {"value", "side", "mirror", "tolerance_mm", "color", "code"}
        if unknown:
            raise ConfigError(f"labels.{name}: unknown keys {sorted(unknown)}")
    return LabelSchema(tuple(_structure(name, entry, entries, n) for n, (name, entry) in enumerate(entries.items())))


def _structure(name: str, entry: Mapping[str, Any], entries: Mapping[str, Any], number: int) -> Structure:
    defaults = {
        "side": side_of(name),
        "mirror": mirrored_name(name, entries),
        "color": PALETTE[number % len(PALETTE)],
    }
    return Structure(name, **{**defaults, **entry})


def _read_json(source: Path) -> dict[str, Any]:
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {source.name} in {source.parent}: give a dataset's folder or its description"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read {source.name}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"expected an object in {source.name}, found {type(document).__name__}")
    return document


def _native(document: Mapping[str, Any], source: Path) -> Dataset:
    labels = labels_of(_object(document, "labels", source))
    channels = tuple(str(name) for name in document.get("channels") or [document.get("modality", "CT")])
    mistakes: list[str] = []
    cases = []
    for number, entry in enumerate(document["cases"] if isinstance(document["cases"], list) else [None]):
        found = _native_mistakes(entry, number, labels, len(channels))
        mistakes += found
        if not found:
            cases.append(_native_case(entry, source.parent))
    return _dataset(document, channels, labels, cases, mistakes, source)


def _native_case(entry: Mapping[str, Any], folder: Path) -> CaseRecord:
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    annotated = entry.get("annotated")
    return CaseRecord(
        id=entry["id"],
        patient=str(entry.get("patient", entry["id"])),
        images=tuple(folder / image for image in images),
        label=folder / entry["label"] if entry.get("label") else None,
        annotated=None if annotated is None else tuple(annotated),
        split=entry.get("split"),
    )


def _native_mistakes(entry: Any, number: int, labels: LabelSchema, num_channels: int) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str) or not entry.get("image"):
        return [f"cases.{number}: expected an object with 'id' and 'image'"]
    where = f"cases.{number} ({entry['id'][:40]})"
    mistakes = []
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if len(images) != num_channels:
        mistakes.append(f"{where}.image: expected {num_channels} files, found {len(images)}")
    if not all(isinstance(image, str) for image in [*images, entry.get("label") or ""]):
        mistakes.append(f"{where}: image and label must be file names")
    if entry.get("split") not in (None, *get_args(Split)):
        mistakes.append(f"{where}.split: expected one of {list(get_args(Split))}, found {entry['split']!r}")
    unknown = set(entry.get("annotated") or ()) - set(labels.names)
    if unknown:
        mistakes.append(f"{where}.annotated: {sorted(unknown)} are not among the labels {list(labels.names)}")
    return mistakes


def _decathlon(document: Mapping[str, Any], source: Path) -> Dataset:
    names = {str(name): int(value) for value, name in _object(document, "labels", source).items()}
    modality = _object(document, "modality", source)
    channels = tuple(_modality(str(modality[key])) for key in sorted(modality, key=int))
    if len(channels) > 1:
        raise ConfigError(f"{source.name} has {len(channels)} channels in one file: convert it to one file a channel")
    folder = source.parent
    cases = [_decathlon_case(entry, folder, None) for entry in document["training"]]
    tests = [{"image": name} for name in document.get("test", ()) if isinstance(name, str)]
    cases += [case for entry in tests if (case := _decathlon_case(entry, folder, "test")).images[0].is_file()]
    return _dataset(document, channels, labels_of(names), cases, [], source)


def _decathlon_case(entry: Mapping[str, str], folder: Path, split: Split | None) -> CaseRecord:
    image = folder / PurePosixPath(entry["image"])
    label = folder / PurePosixPath(entry["label"]) if "label" in entry else None
    return CaseRecord(stem_of(image), stem_of(image), (image,), label, split=split)


def _nnunet(document: Mapping[str, Any], source: Path) -> Dataset:
    names = _object(document, "labels", source)
    if "regions_class_order" in document or "ignore" in names or any(isinstance(v, list) for v in names.values()):
        raise ConfigError(f"{source.name} uses nnU-Net's regions or ignore label, which are not supported yet")
    channel_names = _object(document, "channel_names", source)
    channels = tuple(_modality(str(channel_names[key])) for key in sorted(channel_names, key=int))
    ending, folder = str(document["file_ending"]), source.parent
    cases = []
    for images, split in (("imagesTr", None), ("imagesTs", "test")):
        first = re.compile(rf"(.+)_0000{re.escape(ending)}")
        ids = sorted(
            match[1] for path in (folder / images).glob(f"*_0000{ending}") if (match := first.fullmatch(path.name))
        )
        for case in ids:
            files = tuple(folder / images / f"{case}_{channel:04d}{ending}" for channel in range(len(channels)))
            label = folder / "labelsTr" / f"{case}{ending}" if split is None else None
            cases.append(CaseRecord(case, case, files, label, split="test" if split else None))
    return _dataset(document, channels, labels_of({n: int(v) for n, v in names.items()}), cases, [], source)


def _dataset(
    document: Mapping[str, Any],
    channels: tuple[str, ...],
    labels: LabelSchema,
    cases: list[CaseRecord],
    mistakes: list[str],
    source: Path,
) -> Dataset:
    ids = [case.id for case in cases]
    mistakes += [f"the id '{name}' stands {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1]
    mistakes += [f"the id {name!r} cannot name a file" for name in ids if not is_file_name(name)]
    if not cases and not mistakes:
        mistakes.append("there is no case")
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in mistakes))
    return Dataset(str(document.get("name", source.parent.name)), channels, labels, tuple(cases), source)


def is_file_name(name: str) -> bool:
    """Whether an id can name a file in an output folder and leads nowhere else."""
    return (
        bool(name) and len(name) <= MAX_ID_LENGTH and not re.search(r"[/\\\x00-\x1f]", name) and name not in (".", "..")
    )


def _object(document: Mapping[str, Any], key: str, source: Path) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source.name}: expected an object under '{key}', found {value!r}"[:300])
    return value


def _modality(name: str) -> str:
    """nnU-Net and the Decathlon call MR "MRI"."""
    return "MR" if name.upper() == "MRI" else name
