"""The descriptions of a converted dataset: the form's own, and beside it what the form cannot hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError
from medseg.core.version import VERSION
from medseg.io.atomic import explained, write_json_atomically, write_text_atomically
from medseg.io.conversion import ENDING, FORM_NAMES, Conversion, unknown_values
from medseg.io.convert import ORIGINALS, ConvertedCase
from medseg.io.dataset import ADDITION
from medseg.io.dataset_document import DESCRIPTION
from medseg.io.dataset_native import case_entry, native_document

JOURNAL = "conversion.json"
"""What a folder was converted from; it makes a folder that a killed conversion left ours to finish."""

SPLITS = "splits_final.json"
"""nnU-Net copies it from the raw folder when it plans; its first entry is fold 0."""


def open_folder(conversion: Conversion, folder: Path) -> dict[str, Any]:
    """Begin a folder, or take up one that an interrupted conversion of the same dataset left; returns its journal.

    Raises:
        ConfigError: Something else lies there.
    """
    dataset = conversion.dataset
    described = native_document(dataset, [case_entry(case, dataset.source.parent.absolute()) for case in dataset.cases])
    digest = hashlib.sha256(json.dumps(described).encode(errors="backslashreplace")).hexdigest()
    journal = {"medseg_version": VERSION, "form": conversion.form, "source": dataset.name, "source_sha256": digest}
    there = {path.name for path in folder.iterdir() if path.name[0] != "."}
    if there and JOURNAL not in there:
        raise ConfigError(f"{folder} holds other files: give --out a folder that is empty or not there yet")
    if there and not _is_same(folder / JOURNAL, journal):
        raise ConfigError(
            f"{folder} was converted from another dataset, to another form, or by another medseg: give another --out"
        )
    write_json_atomically(folder / JOURNAL, journal)
    try:
        (folder / DESCRIPTION).unlink(missing_ok=True)  # until all is there again, the folder is no dataset
    except OSError as error:
        raise explained(error, folder / DESCRIPTION) from error
    return journal


def write_descriptions(conversion: Conversion, cases: Sequence[ConvertedCase], folder: Path) -> None:
    """Write ``dataset.json``, last of all, and what belongs to it."""
    full = native_document(conversion.dataset, [case.entry for case in cases])
    if conversion.form == "native":
        write_json_atomically(folder / DESCRIPTION, full)
        return
    document = _nnunet(conversion, cases) if conversion.form == "nnunet" else _decathlon(conversion, cases)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    write_json_atomically(folder / ADDITION, {**full, "form": conversion.form, "sha256": digest})
    if conversion.form == "nnunet" and (folds := _folds(cases)):
        write_json_atomically(folder / SPLITS, folds)
    write_text_atomically(folder / DESCRIPTION, text, overwrite=True)


def losses(conversion: Conversion, cases: Sequence[ConvertedCase]) -> list[str]:
    """What a user of the new dataset has to know, in sentences."""
    form = FORM_NAMES[conversion.form]
    if conversion.form == "native":
        return []
    told = []
    if lost := conversion.lost():
        told.append(f"{form} cannot hold {_listed(lost)}: they stand in {ADDITION}, which medseg reads back")
    labelled = [case for case in cases if case.place != "aside" and case.record.label is not None]
    partial = [case for case in labelled if unknown_values(conversion.dataset.labels, case.record.annotated)]
    if partial and conversion.ignore is not None:
        told.append(
            f"undecided in part: {_cases(partial)}; voxels of which nobody said what {form} would say have the ignore "
            f"label {conversion.ignore}"
        )
    training = [case for case in cases if case.place == "Tr"]
    if training and all(0 in conversion.undecided(case.record) for case in training):
        told.append(f"no training case has all structures annotated: {form} has no voxel of background to learn from")
    if aside := [case for case in cases if case.place == "aside"]:
        told.append(
            f"left out, because {form} cannot say that something in them is unknown: {_cases(aside)}; they lie in "
            f"{ORIGINALS}"
        )
    if unlabelled := [case for case in cases if case.place == "Ts" and case.record.split != "test"]:
        told.append(f"without a label: {_cases(unlabelled)}; {form} lists them with the test cases")
    if conversion.form == "nnunet" and _folds(cases):
        told.append(f"{SPLITS} holds the split as fold 0: nnU-Net copies it from here when it plans")
    if not training:
        told.append(f"{form} has no training case of this dataset")
    return told


def _is_same(path: Path, journal: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return all(found.get(key) == value for key, value in journal.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _nnunet(conversion: Conversion, cases: Sequence[ConvertedCase]) -> dict[str, Any]:
    return {
        "name": conversion.dataset.name,
        "channel_names": _channels(conversion),
        **conversion.labels(),
        "numTraining": sum(case.place == "Tr" for case in cases),
        "file_ending": ENDING,
    }


def _decathlon(conversion: Conversion, cases: Sequence[ConvertedCase]) -> dict[str, Any]:
    training = [case.name for case in cases if case.place == "Tr"]
    test = [case.name for case in cases if case.place == "Ts"]
    return {
        "name": conversion.dataset.name,
        "tensorImageSize": "3D" if len(conversion.dataset.channels) == 1 else "4D",
        "modality": _channels(conversion),
        **conversion.labels(),
        "numTraining": len(training),
        "numTest": len(test),
        "training": [
            {"image": f"./imagesTr/{name}{ENDING}", "label": f"./labelsTr/{name}{ENDING}"} for name in training
        ],
        "test": [f"./imagesTs/{name}{ENDING}" for name in test],
    }


def _channels(conversion: Conversion) -> dict[str, str]:
    names = ("MRI" if name == "MR" else name for name in conversion.dataset.channels)
    return {str(number): name for number, name in enumerate(names)}


def _folds(cases: Sequence[ConvertedCase]) -> list[dict[str, list[str]]]:
    """nnU-Net's one fold, where the dataset has a validation split."""
    training = [case for case in cases if case.place == "Tr"]
    validation = [case.name for case in training if case.record.split == "validation"]
    train = [case.name for case in training if case.record.split != "validation"]
    return [{"train": train, "val": validation}] if validation and train else []


def _cases(cases: Sequence[ConvertedCase]) -> str:
    ids = [case.record.id for case in cases]
    return f"{len(ids)} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
