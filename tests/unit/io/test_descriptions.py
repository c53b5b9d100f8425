from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import CaseError, ConfigError
from medseg.io.case import input_cases, read_case
from medseg.io.dataset import is_file_name, labels_of, read_dataset

CASE = {"id": "a", "image": "a.nii.gz"}
LABELS = {"background": 0, "Liver": 1}
NATIVE = {"labels": LABELS, "cases": [CASE]}
DECATHLON = {
    "modality": {"0": "T2", "1": "ADC"},
    "labels": {"0": "Background", "1": "Liver"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}
NNUNET = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}


def described(folder: Path, document: Any) -> Dataset:
    (folder / "dataset.json").write_text(json.dumps(document))
    return read_dataset(folder)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**NATIVE, "labels": [1]}, ["labels: expected an object"]),
        ({**NATIVE, "labels": {"background": False, "Liver": 1}}, ["labels.background"]),
        ({**NATIVE, "labels": {"A": "x", "B": 70000}, "cases": [3]}, ["labels.A", "labels.B", "cases.0"]),
        ({**NATIVE, "channels": "CT"}, ["channels"]),
        ({**NATIVE, "cases": [{**CASE, "annotated": [["Liver"]]}]}, ["annotated"]),
        ({**NATIVE, "cases": [{**CASE, "annotated": "Liver"}]}, ["annotated"]),
        ({**NATIVE, "cases": [{**CASE, "labels": "l.nii.gz"}]}, ["did you mean 'label'?"]),
        ({**NATIVE, "cases": [{**CASE, "image": "a\0.nii"}]}, ["file names"]),
        ({**NATIVE, "cases": [{**CASE, "image": 3}]}, ["file names"]),
        ({**NATIVE, "cases": [{**CASE, "split": ["train"]}]}, ["split"]),
        ({**NATIVE, "cases": [{**CASE, "id": "\ud800"}]}, ["cannot name a file"]),
        ({**NATIVE, "cases": [CASE, {**CASE, "split": "tran"}]}, ["'tran'", "'a' stands 2 times"]),
        ({**NATIVE, "cases": []}, ["there is no case"]),
        ({**DECATHLON, "modality": {"a": "T2"}, "training": [3]}, ["modality", "training.0"]),
        ({**DECATHLON, "modality": None}, ["modality"]),
        ({**DECATHLON, "labels": {"0": "background", "x": "Liver"}}, ["labels"]),
        ({**DECATHLON, "labels": {"0": "background", "1": "Liver", "2": "Liver"}}, ["distinct"]),
        ({**DECATHLON, "labels": {"1": "background", "2": "Liver"}}, ["none but 0 is background"]),
        ({**DECATHLON, "training": [{"image": "a.nii.gz"}]}, ["training.0"]),
        ({**NNUNET, "file_ending": ".png"}, ["file_ending"]),
        ({**NNUNET, "labels": {"background": 0, "Liver": "one"}}, ["labels.Liver"]),
        ({**NNUNET, "channel_names": {"0": "CT", "2": "PET"}}, ["channel_names"]),
        ({**NNUNET, "labels": {"background": 0, "Liver": 2, "ignore": 1}}, ["labels.ignore: expected the highest"]),
        ({**NNUNET, "labels": {"background": 0, "Liver": 1, "ignore": 1}}, ["ignore"]),
        ({**NNUNET, "labels": {"background": 0, "Liver": 1, "ignore": [2]}}, ["ignore"]),
        ({**NNUNET, "labels": {"background": 0, "A": [1, 2], "B": 2}}, ["regions_class_order: expected 2 values"]),
        ({**NNUNET, "labels": {"background": 0, "A": [1, 2]}, "regions_class_order": [1, 2]}, ["expected 1 values"]),
        ({**NNUNET, "labels": {"background": 0, "A": [1, 2], "B": 2}, "regions_class_order": [2, 2]}, ["distinct"]),
        ({**NNUNET, "labels": {"background": 0, "A": [0, 1], "B": []}}, ["labels.A", "labels.B"]),
        ({**NNUNET, "dataset": []}, ["dataset: expected an object"]),
        ({**NNUNET, "dataset": {"a": {"images": "a.nii.gz", "label": "l"}, "b": 3}}, ["dataset.a", "dataset.b"]),
        ({**NNUNET, "dataset": {"a": {"images": ["a", "b"], "label": "l"}}}, ["expected 1 files, found 2"]),
        ({**NNUNET, "dataset": {"a": {"images": ["a"], "label": "l"}}, "numTraining": 2}, ["numTraining: expected 2"]),
        ({**NATIVE, "ignore": 1}, ["ignore"]),
        ({**NATIVE, "ignore": True, "priority": "Liver"}, ["ignore: expected an integer", "priority: expected a list"]),
        ({**NATIVE, "ignore": 3, "labels": {**LABELS, "ignore": 4}}, ["3 beside the labels, 4 among them"]),
        ({**NATIVE, "priority": ["Spleen"]}, ["Spleen"]),
        (NNUNET, ["there is no case"]),
    ],
)
def test_every_mistake_is_told_in_words(tmp_path: Path, document: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        described(tmp_path, document)
    for word in words:
        assert word in raised.value.message


@pytest.mark.parametrize(
    "entry",
    [
        {"value": 0},
        {"value": True},
        {"value": 1.0},
        {"value": 1, "side": "top"},
        {"value": 1, "color": "red"},
        {"value": 1, "tolerance_mm": 0},
        {"value": 1, "tolerance_mm": float("nan")},
        {"value": 1, "mirror": "nobody"},
        {"value": 1, "mirror": 2},
        {"value": 1, "code": 10200004},
        {"value": 1, "region": []},
        {"value": 1, "region": [0, 1]},
        {"value": 1, "region": [1, 1]},
        {"value": 1, "region": 1},
        {"side": "left"},
    ],
)
def test_an_impossible_label_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Liver"):
        labels_of({"background": 0, "Liver": entry})


def test_mirrors_belong_to_each_other() -> None:
    one_sided = labels_of({"A": {"value": 1, "mirror": "B"}, "B": 2})
    assert one_sided.mirrored_channels == (0, 2, 1)
    switched_off = labels_of(
        {"Kidney left": {"value": 1, "mirror": None}, "Kidney right": {"value": 2, "mirror": None}}
    )
    assert switched_off.mirrored_channels == (0, 1, 2)
    with pytest.raises(ConfigError, match="mirrored back"):
        labels_of({"A": {"value": 1, "mirror": "B"}, "B": {"value": 2, "mirror": "C"}, "C": 3})


def test_notes_of_the_owner_are_allowed(tmp_path: Path) -> None:
    dataset = described(tmp_path, {**NATIVE, "licence": "CC0", "cases": [{**CASE, "age": 60, "comment": "x"}]})
    assert [case.id for case in dataset.cases] == ["a"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(NATIVE), encoding="utf-8-sig")
    assert read_dataset(tmp_path).labels.names == ("Liver",)


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [("pt_1", True), ("Müller 影像", True), ("a..b", True), ("", False), ("..", False), ("a/b", False), ("a\\b", False),
     ("a\0", False), ("a\nb", False), ("x" * 200, True), ("x" * 201, False), ("影" * 100, False)],
)  # fmt: skip
def test_ids_lead_nowhere_else(name: str, is_allowed: bool) -> None:
    assert is_file_name(name) is is_allowed


def test_a_decathlon_file_holds_its_channels(tmp_path: Path) -> None:
    frames = np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2)
    save(tmp_path / "imagesTr" / "a.nii.gz", frames)
    save(tmp_path / "labelsTr" / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    save(tmp_path / "imagesTs" / "b.nii.gz", frames)
    dataset = described(tmp_path, {**DECATHLON, "test": ["./imagesTs/b.nii.gz", {"image": "./imagesTs/absent.nii.gz"}]})
    assert (dataset.channels, dataset.labels.names) == (("T2", "ADC"), ("Liver",))
    assert [(case.id, case.split) for case in dataset.cases] == [("a", None), ("b", "test")]
    case = read_case(dataset.cases[0], dataset)
    np.testing.assert_array_equal(case.image.array, np.moveaxis(frames, -1, 0))
    (by_hand,) = input_cases([tmp_path / "imagesTs" / "b.nii.gz"], 2)
    assert read_case(by_hand, dataset).image.array.shape == (2, 3, 4, 5)


def test_channels_on_other_grids_and_too_few_channels_are_refused(tmp_path: Path) -> None:
    dataset = described(tmp_path, {**NATIVE, "channels": ["CT", "PET"], "cases": [{**CASE, "image": ["c", "d"]}]})
    first = save(tmp_path / "p_0000.nii", np.zeros((3, 4, 5), np.int32))
    second = save(tmp_path / "p_0001.nii", np.full((3, 4, 5), 0.5, np.float32))
    other = save(tmp_path / "q_0001.nii", np.zeros((3, 4, 6), np.int16))
    array = read_case(CaseRecord("p", "p", (first, second)), dataset).image.array
    assert (array.dtype, array[:, 0, 0, 0].tolist()) == (np.float32, [0.0, 0.5])
    for images, code in (
        ((first, other), "geometry.channels"),
        ((first, second, second), "read.channels"),
        ((first,), "read.dimensions"),
        ((first, tmp_path / "absent.nii"), "read.missing"),
        ((), "read.channels"),
    ):
        with pytest.raises(CaseError) as raised:
            read_case(CaseRecord("p", "p", images), dataset)
        assert raised.value.code == code


@pytest.mark.parametrize("num_channels", [1, 2])
def test_two_inputs_of_one_output_name_are_refused(tmp_path: Path, num_channels: int) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"written to a\.nii\.gz"):
        input_cases([tmp_path], num_channels)
    with pytest.raises(ConfigError):
        input_cases([tmp_path / "a.nii", tmp_path / "a.nii"], num_channels)
    with pytest.raises(ConfigError):
        input_cases([tmp_path / "x" / "p_0000.nii", tmp_path / "y" / "p_0000.nii"], num_channels)


def test_named_files_stay_cases_in_the_order_given(tmp_path: Path) -> None:
    given = [tmp_path / "z.nii.gz", tmp_path / "notes.txt", tmp_path / "absent.nii"]
    given[1].write_text("no scan")
    records = input_cases(given, 1)
    assert [record.id for record in records] == ["z", "notes", "absent"]
    dataset = described(tmp_path, NATIVE)
    codes = []
    for record in records:
        with pytest.raises(CaseError) as raised:
            read_case(record, dataset)
        codes.append(raised.value.code)
    assert codes == ["read.missing", "read.format", "read.missing"]


def test_the_sample_is_read(sample: Path) -> None:
    dataset = read_dataset(sample)
    for record in dataset.cases:
        case = read_case(record, dataset)
        assert case.label is not None
        found = set(np.unique(dataset.labels.to_classes(case.label.array)))
        assert found <= set(np.flatnonzero(case.annotated)), "what nobody looked for is not labelled"
        assert found - {0}
