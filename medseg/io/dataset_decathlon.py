"""Medical Segmentation Decathlon: a list of image and label; all channels of an image lie in one file.

Source: medicaldecathlon.com, and the ``dataset.json`` of its ten tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.core.case import CaseRecord, Dataset, Split
from medseg.io.dataset_document import described_dataset, indexed_channels, is_path, mistaken
from medseg.io.label_names import labels_and_mistakes
from medseg.io.volume import stem_of


def read_decathlon(document: Mapping[str, Any], source: Path) -> Dataset:
    """A Decathlon description, already parsed; test cases whose files are not there are left out.

    Raises:
        ConfigError: With every mistake in one message.
    """
    channels, mistakes = indexed_channels(document.get("modality"), "modality")
    names, more = _labels(document.get("labels"))
    labels, of_labels = labels_and_mistakes(names)
    mistakes += more or of_labels
    entries = document["training"] if isinstance(document["training"], list) else [document["training"]]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not all(is_path(entry.get(key)) for key in ("image", "label")):
            mistakes.append(f"training.{number}: expected an object with file names for 'image' and 'label'")
    if mistakes or labels is None:
        raise mistaken(source, mistakes)
    tests = [entry.get("image") if isinstance(entry, Mapping) else entry for entry in document.get("test") or ()]
    cases = [_case(source.parent, entry["image"], entry["label"], None) for entry in entries]
    unlabelled = [_case(source.parent, image, None, "test") for image in tests if is_path(image)]
    cases += [case for case in unlabelled if case.images[0].is_file()]
    return described_dataset(document, channels, labels, cases, source)


def _case(folder: Path, image: str, label: str | None, split: Split | None) -> CaseRecord:
    """One file holds all channels, along its fourth axis."""
    path = folder / PurePosixPath(image)
    name = stem_of(path)
    return CaseRecord(name, name, (path,), folder / PurePosixPath(label) if label else None, None, split)


def _labels(names: Any) -> tuple[dict[str, int], list[str]]:
    """``{"0": "background", "1": "Liver"}`` turned round; whatever 0 is called there is background."""
    if not isinstance(names, Mapping) or not all(str(value).isdecimal() for value in names):
        return {}, [f'labels: expected {{"0": "background", "1": name, …}}, found {names!r}'[:300]]
    turned = {"background": 0, **{str(name): int(value) for value, name in names.items() if int(value) != 0}}
    if len(turned) < len({*names, "0"}):
        return {}, [f"labels: the names must be distinct and none but 0 is background, found {dict(names)}"]
    return turned, []
