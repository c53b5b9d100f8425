from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import CaseError, ConfigError
from medseg.io.case import input_cases, read_case
from medseg.io.dataset import read_dataset

LABELS = {"background": 0, "Kidney left": 1, "Kidney right": {"value": 4, "tolerance_mm": 3.0, "color": "#00ff00"}}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def native(folder: Path, **changes: object) -> Path:
    document = {
        "name": "kidneys",
        "modality": "CT",
        "labels": LABELS,
        "cases": [
            {"id": "a", "image": "a.nii.gz", "label": "a_label.nii.gz", "annotated": ["Kidney left"], "split": "train"},
            {"id": "b", "patient": "p", "image": "../b.nii.gz", "split": "validation"},
        ],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_native(tmp_path: Path) -> None:
    dataset = read_dataset(native(tmp_path / "d"))
    assert dataset == read_dataset(tmp_path / "d" / "dataset.json")
    assert (dataset.name, dataset.channels) == ("kidneys", ("CT",))
    left, right = dataset.labels.structures
    assert (left.value, left.side, left.mirror) == (1, "left", "Kidney right")
    assert (right.value, right.side, right.mirror, right.tolerance_mm) == (4, "right", "Kidney left", 3.0)
    assert dataset.labels.mirrored_channels == (0, 2, 1)
    first, second = dataset.cases
    assert (first.patient, first.annotated, second.patient, second.annotated) == ("a", ("Kidney left",), "p", None)
    assert [case.id for case in dataset.of_split("validation")] == ["b"]


def test_all_mistakes_come_in_one_message(tmp_path: Path) -> None:
    cases = [
        {"id": "a", "image": "a.nii.gz", "split": "tran"},
        {"id": "b", "image": ["b.nii.gz", "c.nii.gz"]},
        {"id": "c", "image": "c.nii.gz", "annotated": ["Liver"]},
        {"image": "d.nii.gz"},
        {"id": "e", "image": "e.nii.gz"},
        {"id": "e", "image": "e.nii.gz"},
        {"id": "../f", "image": "f.nii.gz"},
    ]
    with pytest.raises(ConfigError) as raised:
        read_dataset(native(tmp_path, cases=cases))
    for words in (
        "6 mistakes",
        "'tran'",
        "expected 1 files, found 2",
        "'Liver'",
        "cases.3",
        "'e' stands 2 times",
        "'../f' cannot name a file",
    ):
        assert words in raised.value.message


@pytest.mark.parametrize(
    "labels", [{"background": 1}, {"a": "x"}, {"a": 1, "b": 1}, {"a": 0}, {}, {"a": {"value": 1, "colour": "red"}}]
)
def test_impossible_labels_are_refused(tmp_path: Path, labels: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        read_dataset(native(tmp_path, labels=labels))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"cases": 3, "labels": {"a": 1}}'])
def test_what_is_no_dataset_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ConfigError):
        read_dataset(tmp_path)


def test_nnunet_raw_with_two_channels(tmp_path: Path) -> None:
    document = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    for channel in range(2):
        save(tmp_path / "imagesTr" / f"STS_{channel:04d}.nii.gz", np.full((3, 4, 5), channel, np.int16))
        save(tmp_path / "imagesTs" / f"new_{channel:04d}.nii.gz", np.zeros((3, 4, 5), np.int16))
    save(tmp_path / "labelsTr" / "STS.nii.gz", np.ones((3, 4, 5), np.uint8))
    dataset = read_dataset(tmp_path)
    assert [(case.id, case.split) for case in dataset.cases] == [("STS", None), ("new", "test")]
    case = read_case(dataset.cases[0], dataset)
    assert case.image.array[:, 0, 0, 0].tolist() == [0, 1]
    assert case.label is not None
    assert case.annotated.all()


def test_decathlon(tmp_path: Path) -> None:
    document = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/h_001.nii.gz", "label": "./labelsTr/h_001.nii.gz"}],
        "test": ["./imagesTs/h_002.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    save(tmp_path / "imagesTr" / "h_001.nii.gz", np.zeros((3, 4, 5), np.int16))
    save(tmp_path / "labelsTr" / "h_001.nii.gz", np.zeros((3, 4, 5), np.uint8))
    dataset = read_dataset(tmp_path)
    assert dataset.channels == ("MR",)
    assert dataset.labels.names == ("Anterior", "Posterior")
    assert [case.id for case in dataset.cases] == ["h_001"], "test cases without a file are left out"
    assert read_case(dataset.cases[0], dataset).label is not None


@pytest.mark.parametrize(
    ("image", "label", "code"),
    [
        (np.zeros((3, 4, 5)), np.zeros((3, 4, 6)), "geometry.label"),
        (np.zeros((3, 4, 5)), np.full((3, 4, 5), 2), "label.value"),
    ],
)
def test_image_and_label_that_do_not_fit_are_refused(tmp_path: Path, image, label, code: str) -> None:
    dataset = read_dataset(native(tmp_path))
    save(tmp_path / "a.nii.gz", image.astype(np.int16))
    save(tmp_path / "a_label.nii.gz", label.astype(np.uint8))
    with pytest.raises(CaseError) as raised:
        read_case(dataset.cases[0], dataset)
    assert raised.value.code == code


def test_a_label_somewhere_else_is_refused(tmp_path: Path) -> None:
    dataset = read_dataset(native(tmp_path))
    save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    save(tmp_path / "a_label.nii.gz", np.zeros((3, 4, 5), np.uint8), np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(CaseError, match="mm apart"):
        read_case(dataset.cases[0], dataset)


def test_inputs(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "notes.txt", "p_0000.nii.gz", "p_0001.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert [case.id for case in input_cases([tmp_path], 1)] == ["a", "b", "p_0000", "p_0001"]
    pair = input_cases([tmp_path / "p_0000.nii.gz", tmp_path / "p_0001.nii.gz"], 2)
    assert [(case.id, [path.name for path in case.images]) for case in pair] == [
        ("p", ["p_0000.nii.gz", "p_0001.nii.gz"])
    ]
    assert [path.name for path in input_cases([tmp_path / "q_0001.nii.gz"], 2)[0].images] == [
        "q_0000.nii.gz",
        "q_0001.nii.gz",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no"):
        input_cases([tmp_path / "empty"], 1)


TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_a_label_on_the_same_voxels_in_other_axes_is_turned(tmp_path: Path, order, signs) -> None:
    """nibabel turns the label as another program may have stored it; it comes back on its image's axes."""
    affine = np.array([[0.9, 0.1, 0, 5], [-0.1, 0.9, 0, 7], [0, 0, 3, -20], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.uint8)
    save(tmp_path / "i.nii.gz", np.zeros((4, 5, 6), np.int16), affine)
    turned = nib.Nifti1Image(values, affine).as_reoriented(np.array(list(zip(order, signs, strict=True))))
    nib.save(turned, tmp_path / "l.nii.gz")
    document = {"labels": {"a": 1}, "cases": [{"id": "c", "image": "i.nii.gz", "label": "l.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = read_dataset(tmp_path)
    label = read_case(dataset.cases[0], dataset).label
    assert label is not None
    np.testing.assert_array_equal(label.array, values)
    is_same = order == (0, 1, 2) and signs == (1, 1, 1)
    assert [note.code for note in label.notes] == ([] if is_same else ["geometry.turned"])


def test_the_real_label_map_reversed_beside_its_series(shared_data: Path, tmp_path: Path) -> None:
    """``ct_slab_20``: the NIfTI label is reversed in J; each voxel lies where its own affine puts it."""
    folder = shared_data / "dicom"
    path = folder / "ct_slab_20_labels.nii.gz"
    names = {f"s{value}": int(value) for value in np.unique(np.asarray(nib.load(path).dataobj)) if value}
    case = {"id": "slab", "image": str(folder / "ct_slab_20"), "label": str(path)}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, "cases": [case]}))
    dataset = read_dataset(tmp_path)
    read = read_case(dataset.cases[0], dataset)
    assert read.label is not None
    reference = nib.load(path)
    for value in list(names.values())[:10]:
        mine = read.image.geometry.affine_ras @ [*np.argwhere(read.label.array == value).mean(axis=0), 1]
        theirs = reference.affine @ [*np.argwhere(np.asarray(reference.dataobj) == value).mean(axis=0), 1]
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
    assert read.label.geometry is read.image.geometry
