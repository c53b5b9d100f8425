"""nnU-Net's raw form, version 2: folders or a list of files, several channels, regions, the ignore label.

Source: nnunetv2 2.8.1, ``utilities/label_handling/label_handling.py``, ``utilities/utils.py`` and
``experiment_planning/verify_dataset_integrity.py``. Deviation: label values need not be consecutive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.core.environment import with_variables
from medseg.core.labels import LabelSchema
from medseg.io.dataset_document import described_dataset, indexed_channels, is_path, mistaken
from medseg.io.label_names import BACKGROUND, IGNORE, is_label_value, labels_and_mistakes
from medseg.io.volume import VOLUME_SUFFIXES

FILE_LIST = "dataset"
"""The key of the list of files, where they do not lie in imagesTr and labelsTr."""


def read_nnunet(document: Mapping[str, Any], source: Path) -> Dataset:
    """A description of nnU-Net's raw form, already parsed.

    Raises:
        ConfigError: With every mistake in one message.
    """
    channels, mistakes = indexed_channels(document["channel_names"], "channel_names")
    labels, of_labels = labels_of_nnunet(document)
    mistakes += of_labels
    ending, listed = document["file_ending"], document.get(FILE_LIST, {})
    if not isinstance(ending, str) or ending.lower() not in VOLUME_SUFFIXES:
        mistakes.append(f"file_ending: expected one of {list(VOLUME_SUFFIXES)}, found {ending!r}; convert the files")
    mistakes += _list_mistakes(listed, len(channels))
    if mistakes or labels is None:
        raise mistaken(source, mistakes)
    if FILE_LIST in document:
        training = [_listed_case(name, entry, source.parent) for name, entry in listed.items()]
    else:
        training = _cases_in(source.parent, ending, len(channels), None)
    promised = document.get("numTraining", len(training))
    if promised != len(training):  # some may not have been copied
        found = f"found {len(training)} cases; copy the missing ones, or correct it"
        raise mistaken(source, [f"numTraining: expected {promised!r} by the description, {found}"])
    cases = training + _cases_in(source.parent, ending, len(channels), "test")
    return described_dataset(document, channels, labels, cases, source)


def labels_of_nnunet(document: Mapping[str, Any]) -> tuple[LabelSchema | None, list[str]]:
    """``{"whole": [1, 2], "core": [2], "ignore": 3}`` and the value that each region is written as."""
    names = document.get("labels")
    if not isinstance(names, Mapping):
        return labels_and_mistakes(names)
    given = {name: value for name, value in names.items() if name not in (BACKGROUND, IGNORE)}
    mistakes = [
        f"labels.{name[:40]}: expected a value, or a list of distinct values of label maps, found {value!r}"
        for name, value in given.items()
        if isinstance(value, list) and not (value and all(map(is_label_value, value)) and len({*value}) == len(value))
    ]
    if mistakes:
        return None, mistakes
    if any(isinstance(value, list) and len(value) > 1 for value in given.values()):
        order = document.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(given):
            return None, [f"regions_class_order: expected {len(given)} values, one for each label, found {order!r}"]
        entries = {
            name: {"value": written, "region": value if isinstance(value, list) else [value]}
            for (name, value), written in zip(given.items(), order, strict=True)
        }
    else:
        entries = {name: value[0] if isinstance(value, list) else value for name, value in given.items()}
    apart = {name: names[name] for name in (BACKGROUND, IGNORE) if name in names}
    labels, mistakes = labels_and_mistakes({**apart, **entries})
    if labels is not None and labels.ignore_value is not None and labels.ignore_value < labels.class_values.max():
        return None, [f"labels.{IGNORE}: expected the highest value of all, found {labels.ignore_value}"]
    return labels, mistakes


def _list_mistakes(listed: Any, num_channels: int) -> list[str]:
    if not isinstance(listed, Mapping):
        return [f"{FILE_LIST}: expected an object of cases, found {type(listed).__name__}"]
    mistakes = []
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or not all(map(is_path, images)) or not is_path(entry.get("label")):
            mistakes.append(f"{FILE_LIST}.{name[:40]}: expected file names, a list for 'images' and one for 'label'")
        elif num_channels and len(images) != num_channels:
            mistakes.append(f"{FILE_LIST}.{name[:40]}.images: expected {num_channels} files, found {len(images)}")
    return mistakes


def _listed_case(name: str, entry: Mapping[str, Any], folder: Path) -> CaseRecord:
    images = tuple(folder / with_variables(image) for image in entry["images"])
    return CaseRecord(name, name, images, folder / with_variables(entry["label"]))


def _cases_in(folder: Path, ending: str, num_channels: int, split: Split | None) -> list[CaseRecord]:
    """The cases of imagesTr or imagesTs; a file that should be there and is not is told when the case is read."""
    images, labels = (folder / f"{kind}{'Ts' if split == 'test' else 'Tr'}" for kind in ("images", "labels"))
    of_case = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}", re.DOTALL)
    found = [of_case.fullmatch(path.name) for path in images.glob(f"*{ending}")]
    cases = []
    for name in sorted({match[1] for match in found if match is not None}):
        files = tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(num_channels))
        label = labels / f"{name}{ending}"
        has_label = split is None or label.is_file()  # of test cases nnU-Net needs none
        cases.append(CaseRecord(name, name, files, label if has_label else None, split=split))
    return cases
