"""nnU-Net's raw form means here what it means there, and the native form can say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.core.case import Dataset
from medseg.core.errors import CaseError, ConfigError
from medseg.core.labels import IGNORED
from medseg.io.case import read_case
from medseg.io.dataset import labels_of, read_dataset
from medseg.io.label_names import label_entries
from medseg.io.label_tables import read_label_schema, write_label_tables

BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
NATIVE_BRATS = {
    "background": 0,
    "whole": {"value": 1, "region": [1, 2, 3]},
    "core": {"value": 2, "region": [2, 3]},
    "enhancing": {"value": 3, "region": [3]},
}
SHAPE = (3, 4, 5)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    else:
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(path))
    return path


def raw(folder: Path, channels: int = 1, names: tuple[str, ...] = ("a",), ending: str = ".nii.gz", **more: Any) -> Path:
    for name in names:
        for channel in range(channels):
            save(folder / "imagesTr" / f"{name}_{channel:04d}{ending}", np.full(SHAPE, channel, np.int16))
        save(folder / "labelsTr" / f"{name}{ending}", np.arange(60, dtype=np.uint8).reshape(SHAPE) % 2)
    document = {
        "channel_names": {str(channel): f"c{channel}" for channel in range(channels)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(names),
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_regions_and_the_ignore_label(tmp_path: Path) -> None:
    labels = read_dataset(raw(tmp_path, labels=BRATS, regions_class_order=[1, 2, 3])).labels
    assert labels.names == ("whole", "core", "enhancing")
    assert labels.values.tolist() == [0, 1, 2, 3]
    assert [structure.reference_values for structure in labels.structures] == [(1, 2, 3), (2, 3), (3,)]
    assert labels.to_classes(np.array([0, 1, 2, 3, 4])).tolist() == [0, 1, 2, 3, IGNORED]
    assert labels.membership[:, 1:].tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_each_region_is_written_as_its_value_of_the_class_order(tmp_path: Path) -> None:
    labels = read_dataset(raw(tmp_path, labels=BRATS, regions_class_order=[2, 3, 1])).labels
    assert labels.to_values(np.array([0, 1, 2, 3])).tolist() == [0, 2, 3, 1]


def test_a_region_of_one_value_is_a_plain_label_where_all_are(tmp_path: Path) -> None:
    labels = read_dataset(raw(tmp_path, labels={"background": 0, "a": [2], "b": 1}, regions_class_order=[9])).labels
    assert not labels.has_regions
    assert labels.values.tolist() == [0, 2, 1]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_every_format_of_the_door_and_several_channels(tmp_path: Path, ending: str) -> None:
    dataset = read_dataset(raw(tmp_path, channels=3, names=("a", "a_0001"), ending=ending))
    assert [case.id for case in dataset.cases] == ["a", "a_0001"]
    for record in dataset.cases:
        case = read_case(record, dataset)
        assert case.image.array[:, 0, 0, 0].tolist() == [0, 1, 2]
        assert case.label is not None and case.label.array.sum() == 30


def test_a_list_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    image = save(tmp_path / "elsewhere" / "x.nii.gz", np.zeros(SHAPE, np.int16))
    label = save(tmp_path / "folder" / "more" / "y.nii.gz", np.ones(SHAPE, np.uint8))
    files = {
        "one": {"images": ["$SCANS/x.nii.gz"], "label": "more/y.nii.gz"},
        "two": {"images": [str(image)], "label": "../folder/more/y.nii.gz"},
    }
    (tmp_path / "folder" / "imagesTr").mkdir()
    dataset = read_dataset(raw(tmp_path / "folder", names=(), dataset=files, numTraining=2))
    assert [case.id for case in dataset.cases] == ["one", "two"]
    for record in dataset.cases:
        assert record.images[0].samefile(image)
        assert record.label is not None and record.label.samefile(label)
        read_case(record, dataset)


def test_missing_files_are_not_passed_over(tmp_path: Path) -> None:
    folder = raw(tmp_path, channels=2, names=("a", "b"))
    (folder / "imagesTr" / "a_0000.nii.gz").unlink()
    dataset = read_dataset(folder)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    with pytest.raises(CaseError, match=r"a_0000\.nii\.gz"):
        read_case(dataset.cases[0], dataset)
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"numTraining: expected 2 .* found 1"):
        read_dataset(folder)


def test_test_cases_have_a_label_where_there_is_one(tmp_path: Path) -> None:
    folder = raw(tmp_path)
    for name in ("s", "t"):
        save(folder / "imagesTs" / f"{name}_0000.nii.gz", np.zeros(SHAPE, np.int16))
    label = save(folder / "labelsTs" / "t.nii.gz", np.zeros(SHAPE, np.uint8))
    found = [(case.id, case.split, case.label) for case in read_dataset(folder).cases[1:]]
    assert found == [("s", "test", None), ("t", "test", label)]


def native(folder: Path, **changes: Any) -> Dataset:
    cases = [{"id": "a", "image": "a.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"labels": NATIVE_BRATS, "cases": cases, **changes}))
    return read_dataset(folder)


def test_the_native_form_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "native").mkdir()
    theirs = read_dataset(raw(tmp_path / "raw", labels=BRATS, regions_class_order=[1, 2, 3])).labels
    assert native(tmp_path / "native", ignore=4).labels == theirs
    assert native(tmp_path / "native", labels={**NATIVE_BRATS, "ignore": 4}).labels == theirs
    assert native(tmp_path / "native", priority=["core", "whole"]).labels.priority == ("core", "whole")


def test_one_file_may_hold_all_channels(tmp_path: Path) -> None:
    frames = np.arange(120, dtype=np.int16).reshape(*SHAPE, 2)
    save(tmp_path / "a.nii.gz", frames)
    dataset = native(tmp_path, channels=["CT", "PET"])
    np.testing.assert_array_equal(read_case(dataset.cases[0], dataset).image.array, np.moveaxis(frames, -1, 0))
    with pytest.raises(ConfigError, match="expected 2 files, found 1"):
        native(tmp_path, channels=["CT", "PET"], cases=[{"id": "a", "image": ["a.nii.gz"]}])


@pytest.mark.parametrize(
    "labels",
    [
        {**NATIVE_BRATS, "ignore": 7},
        {"Kidney left": {"value": 3, "side": None, "mirror": None}, "Kidney right": {"value": 1, "mirror": None}},
        {"L": {"value": 3, "side": "right", "mirror": "R", "code": "1"}, "R": {"value": 1, "mirror": "L"}},
    ],
)
def test_schemas_come_back_from_labels_json(tmp_path: Path, labels: dict[str, Any]) -> None:
    schema = labels_of(labels)
    assert labels_of(label_entries(schema)) == schema
    write_label_tables(tmp_path, schema)
    assert read_label_schema(tmp_path) == schema
