"""Datasets as they come: native, nnU-Net raw, Medical Segmentation Decathlon. Only their description is read here."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.core.errors import ConfigError
from medseg.core.labels import PALETTE, LabelSchema, Structure, mirrored_name, side_of
from medseg.core.units import DEFAULT_TOLERANCE_MM
from medseg.io.nifti import MAX_LABEL, SUFFIXES, stem_of

DESCRIPTION = "dataset.json"

CASE_KEYS = ("id", "patient", "image", "label", "annotated", "split")

LABEL_KEYS = ("value", "side", "mirror", "tolerance_mm", "color", "code")

MAX_ID_BYTES = 200
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


def labels_of(names: Any) -> LabelSchema:
    """The schema of ``{"background": 0, "Liver": 1, "Kidney left": {"value": 2, "side": "left", ...}}``.

    Side and mirror are read off the name where they are not given; ``"mirror": null`` says that there is none.

    Raises:
        ConfigError: With every mistake in one message.
    """
    schema, mistakes = _labels_and_mistakes(names)
    if schema is None:
        raise ConfigError("the labels are not as they should be\n" + "\n".join(f"  {line}" for line in mistakes))
    return schema


def is_file_name(name: str) -> bool:
    """Whether an id can name a file in an output folder and leads nowhere else."""
    # Lone surrogates, which JSON can spell, are no text that a file system takes.
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f\ud800-\udfff]", name):
        return False
    return len(name.encode()) <= MAX_ID_BYTES


def _read_json(source: Path) -> dict[str, Any]:
    try:
        document = json.loads(source.read_text(encoding="utf-8-sig"))  # some Windows editors write a byte order mark
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {source.name} in {source.parent}: give a dataset's folder or its description"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {source.name}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"expected an object in {source.name}, found {type(document).__name__}")
    return document


def _native(document: Mapping[str, Any], source: Path) -> Dataset:
    labels, mistakes = _labels_and_mistakes(document.get("labels"))
    channels = document.get("channels") or [document.get("modality", "CT")]
    if not isinstance(channels, list) or not all(isinstance(channel, str) and channel for channel in channels):
        mistakes.append(f"channels: expected a list of names, found {channels!r}")
    entries = document["cases"]
    if not isinstance(entries, list):
        raise _mistaken(source, [*mistakes, f"cases: expected a list, found {type(entries).__name__}"])
    for number, entry in enumerate(entries):
        mistakes += _case_mistakes(entry, number, None if labels is None else labels.names, len(channels))
    mistakes += _id_mistakes(entry.get("id") for entry in entries if isinstance(entry, Mapping))
    if mistakes or labels is None:
        raise _mistaken(source, mistakes)
    cases = [_native_case(entry, source.parent) for entry in entries]
    return _dataset(document, channels, labels, cases, source)


def _native_case(entry: Mapping[str, Any], folder: Path) -> CaseRecord:
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
    if len(images) != num_channels:
        mistakes.append(f"{where}.image: expected {num_channels} files, found {len(images)}")
    if not all(isinstance(file, str) and "\0" not in file for file in [*images, entry.get("label") or ""]):
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


def _decathlon(document: Mapping[str, Any], source: Path) -> Dataset:
    channels, mistakes = _indexed(document.get("modality"), "modality")
    names, more = _indexed_labels(document.get("labels"))
    labels, of_labels = _labels_and_mistakes(names)
    mistakes += more or of_labels
    entries = document["training"] if isinstance(document["training"], list) else [document["training"]]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            mistakes.append(f"training.{number}: expected an object with file names for 'image' and 'label'")
    if mistakes or labels is None:
        raise _mistaken(source, mistakes)
    tests = [entry.get("image") if isinstance(entry, Mapping) else entry for entry in document.get("test") or ()]
    cases = [_decathlon_case(source.parent, entry["image"], entry["label"], None) for entry in entries]
    unlabelled = [_decathlon_case(source.parent, image, None, "test") for image in tests if isinstance(image, str)]
    cases += [case for case in unlabelled if case.images[0].is_file()]
    return _dataset(document, channels, labels, cases, source)


def _decathlon_case(folder: Path, image: str, label: str | None, split: Split | None) -> CaseRecord:
    """One file holds all channels, along its fourth axis."""
    path = folder / PurePosixPath(image)
    return CaseRecord(
        stem_of(path), stem_of(path), (path,), folder / PurePosixPath(label) if label else None, None, split
    )


def _nnunet(document: Mapping[str, Any], source: Path) -> Dataset:
    names = document.get("labels")
    given = names if isinstance(names, Mapping) else {}
    if "regions_class_order" in document or "ignore" in given or any(isinstance(v, list) for v in given.values()):
        raise ConfigError(f"{source.name} uses nnU-Net's regions or ignore label, which are not supported yet")
    channels, mistakes = _indexed(document["channel_names"], "channel_names")
    labels, of_labels = _labels_and_mistakes(names)
    mistakes += of_labels
    ending = document["file_ending"]
    if ending not in SUFFIXES:
        mistakes.append(f"file_ending: expected one of {list(SUFFIXES)}, found {ending!r}; convert the files")
    if mistakes or labels is None:
        raise _mistaken(source, mistakes)
    cases = [*_nnunet_cases(source.parent, ending, len(channels), None)]
    cases += _nnunet_cases(source.parent, ending, len(channels), "test")
    return _dataset(document, channels, labels, cases, source)


def _nnunet_cases(folder: Path, ending: str, num_channels: int, split: Split | None) -> list[CaseRecord]:
    images = folder / ("imagesTs" if split == "test" else "imagesTr")
    first = f"_0000{ending}"
    cases = []
    for name in sorted(path.name.removesuffix(first) for path in images.glob(f"?*{first}")):
        files = tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(num_channels))
        label = None if split == "test" else folder / "labelsTr" / f"{name}{ending}"
        cases.append(CaseRecord(name, name, files, label, split=split))
    return cases


def _indexed(names: Any, key: str) -> tuple[tuple[str, ...], list[str]]:
    """The channels of ``{"0": "CT", "1": "PET"}``, in order; MR is called MRI there."""
    count = len(names) if isinstance(names, Mapping) else 0
    if not count or set(names) != {str(number) for number in range(count)}:
        return (), [f'{key}: expected {{"0": name, "1": name, …}}, found {names!r}'[:300]]
    channels = (str(names[str(number)]) for number in range(count))
    return tuple("MR" if name.upper() == "MRI" else name for name in channels), []


def _indexed_labels(names: Any) -> tuple[dict[str, int], list[str]]:
    """``{"0": "background", "1": "Liver"}`` turned round; whatever 0 is called there is background."""
    if not isinstance(names, Mapping) or not all(str(value).isdecimal() for value in names):
        return {}, [f'labels: expected {{"0": "background", "1": name, …}}, found {names!r}'[:300]]
    turned = {"background": 0, **{str(name): int(value) for value, name in names.items() if int(value) != 0}}
    if len(turned) < len({*names, "0"}):
        return {}, [f"labels: the names must be distinct and none but 0 is background, found {dict(names)}"]
    return turned, []


def _id_mistakes(found: Iterable[Any]) -> list[str]:
    ids = [name for name in found if isinstance(name, str)]
    twice = [f"the id '{name}' stands {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1]
    return twice + [f"the id {name!r} cannot name a file" for name in ids if not is_file_name(name)]


def _dataset(
    document: Mapping[str, Any],
    channels: Sequence[str],
    labels: LabelSchema,
    cases: Sequence[CaseRecord],
    source: Path,
) -> Dataset:
    mistakes = _id_mistakes(case.id for case in cases)
    if not cases:
        mistakes.append("there is no case")
    if mistakes:
        raise _mistaken(source, mistakes)
    name = str(document.get("name", source.absolute().parent.name))
    return Dataset(name, tuple(channels), labels, tuple(cases), source)


def _mistaken(source: Path, mistakes: Sequence[str]) -> ConfigError:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return ConfigError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in mistakes))


def _labels_and_mistakes(names: Any) -> tuple[LabelSchema | None, list[str]]:
    """The schema, or None and what is wrong with it."""
    if not isinstance(names, Mapping):
        return None, [f"labels: expected an object of names and values, found {names!r}"[:300]]
    entries = {name: dict(entry) if isinstance(entry, Mapping) else {"value": entry} for name, entry in names.items()}
    background = entries.pop("background", {"value": 0})
    mistakes = []
    if background != {"value": 0} or background["value"] is False:
        mistakes.append(f"labels.background: expected 0, found {names['background']!r}")
    for name, entry in entries.items():
        mistakes += [f"labels.{name[:40]}{mistake}" for mistake in _label_mistakes(name, entry)]
    if mistakes:
        return None, mistakes
    mirrors = _mirrors(entries)
    for name, mirror in mirrors.items():
        if mirror is not None and mirrors.get(mirror) != name:
            mistakes.append(f"labels.{name}.mirror: expected a structure that is mirrored back to it, found {mirror!r}")
    if mistakes:
        return None, mistakes
    try:
        structures = (_structure(name, entries[name], mirrors[name], n) for n, name in enumerate(entries))
        return LabelSchema(tuple(structures)), []
    except ConfigError as error:
        return None, [f"labels: {error.message}"]


def _label_mistakes(name: str, entry: Mapping[str, Any]) -> list[str]:
    value, tolerance_mm = entry.get("value"), entry.get("tolerance_mm", DEFAULT_TOLERANCE_MM)
    is_tolerance = type(tolerance_mm) in (int, float) and math.isfinite(tolerance_mm) and tolerance_mm > 0
    color, text_or_null = entry.get("color", PALETTE[0]), [entry.get("mirror"), entry.get("code")]
    checks = {
        ": a name is one line of text": bool(name.strip()) and name.isprintable(),
        f": expected an integer from 1 to {MAX_LABEL}, found {value!r}": type(value) is int and 0 < value <= MAX_LABEL,
        f": unknown keys {sorted(set(entry) - set(LABEL_KEYS))}": set(entry) <= set(LABEL_KEYS),
        ".side: expected left or right": entry.get("side") in (None, "left", "right"),
        f".tolerance_mm: expected a positive number, found {tolerance_mm!r}": is_tolerance,
        f".color: expected #rrggbb, found {color!r}": isinstance(color, str)
        and re.fullmatch("#[0-9a-fA-F]{6}", color) is not None,
        ": mirror and code are texts": all(text is None or isinstance(text, str) for text in text_or_null),
    }
    return [mistake for mistake, holds in checks.items() if not holds]


def _mirrors(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """The counterpart of each structure; one that only the other side names counts for both."""
    mirrors: dict[str, str | None] = {
        name: entry["mirror"] if "mirror" in entry else mirrored_name(name, entries) for name, entry in entries.items()
    }
    for name, mirror in list(mirrors.items()):
        if mirror is not None and mirror in entries and mirrors[mirror] is None and "mirror" not in entries[mirror]:
            mirrors[mirror] = name
    return mirrors


def _structure(name: str, entry: Mapping[str, Any], mirror: str | None, number: int) -> Structure:
    return Structure(
        name,
        entry["value"],
        side=entry.get("side", side_of(name)),
        mirror=mirror,
        tolerance_mm=float(entry.get("tolerance_mm", DEFAULT_TOLERANCE_MM)),
        color=entry.get("color", PALETTE[number % len(PALETTE)]),
        code=entry.get("code"),
    )
