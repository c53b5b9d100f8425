"""Laws of conversion: nothing lost on the way back, and unknown never written as absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError
from medseg.io.case import read_case
from medseg.io.conversion import Conversion, Form, conversion_of, unknown_values
from medseg.io.convert import Converter
from medseg.io.dataset import labels_of, read_dataset
from medseg.io.dataset_writer import losses, open_folder, write_descriptions
from medseg.io.linking import link, pack

SHAPE = (4, 5, 6)
FORMS: tuple[Form, ...] = ("nnunet", "msd", "native")
PLAIN = {"Liver": 10, "Spleen": {"value": 3, "tolerance_mm": 1.5, "code": "78961009"}, "Kidney left": 200}
NESTED = {"whole": {"value": 5, "region": [2, 5, 9]}, "core": {"value": 9, "region": [5, 9]}, "vessel": 7}


def save(path: Path, array: np.ndarray, **header: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.array([[-2.0, 0.1, 0, 9], [0, 1.5, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]]))
    image.set_sform(image.affine, code=2)
    nib.save(image, path)
    return path


def label(values: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), SHAPE)


def source(
    folder: Path, labels: dict[str, Any] = PLAIN, channels: int = 1, joined: bool = False, **more: Any
) -> Dataset:
    """Cases of all kinds: fully and partly annotated, all splits, one without a label, one of another patient.

    ``joined``: all channels in one file.
    """
    values = [0, *sorted({v for s in labels_of(labels).structures for v in s.reference_values})]
    first = next(iter(labels))
    cases: list[dict[str, Any]] = [
        {"id": "full", "split": "train"},
        {"id": "full nr. 2-3", "patient": "p", "split": "validation"},
        {"id": "partial", "annotated": [first], "split": "train"},
        {"id": "Partial", "annotated": list(labels)[:2]},
        {"id": "nobody", "annotated": []},
        {"id": "x_seg", "split": "test"},
        {"id": "tested in part", "split": "test", "annotated": [first], "patient": "full"},
        {"id": "unlabelled", "split": "train"},
    ]
    for number, case in enumerate(cases):
        images = [f"i/{number}_{channel}.nii.gz" for channel in range(channels)]
        for channel, image in enumerate(images):
            save(folder / image, np.full(SHAPE, channel + 0.25, np.float32) if channel else label(list(range(99))))
        case["image"] = images if channels > 1 else images[0]
        if joined:
            case["image"] = f"i/{number}.nii.gz"
            save(folder / case["image"], np.stack([nib.load(folder / image).get_fdata() for image in images], axis=-1))
        if case["id"] != "unlabelled":
            case["label"] = f"l/{number}.nii.gz"
            held = [0] if case.get("annotated") == [] else [0, 10] if case.get("annotated") == ["Liver"] else values
            save(folder / case["label"], label(held, number))
    document = {"name": "abdomen", "channels": ["CT", "PET"][:channels], "labels": labels, "cases": cases, **more}
    (folder / "dataset.json").write_text(json.dumps(document))
    return read_dataset(folder)


def converted(dataset: Dataset, form: Form, folder: Path) -> list[str]:
    folder.mkdir()
    converter = Converter(conversion_of(dataset, form), folder)
    open_folder(converter.conversion, folder)
    cases = [converter.convert(record) for record in dataset.cases]
    write_descriptions(converter.conversion, cases, folder)
    return losses(converter.conversion, cases)


def files_of(record: CaseRecord) -> Iterator[bytes]:
    for path in (*record.images, record.label):
        if path is not None:
            yield path.read_bytes()


def assert_same(one: Dataset, other: Dataset) -> None:
    """Names, patients, splits, annotations, schema, channels, and the bytes of every file."""
    assert (one.name, one.channels, one.labels) == (other.name, other.channels, other.labels)
    assert [case.id for case in one.cases] == [case.id for case in other.cases]
    for left, right in zip(one.cases, other.cases, strict=True):
        assert (left.patient, left.annotated, left.split) == (right.patient, right.annotated, right.split)
        assert list(files_of(left)) == list(files_of(right)), left.id
        read_case(right, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "channels", "more"),
    [
        (PLAIN, 1, {}),
        (PLAIN, 2, {"priority": ["Spleen", "Liver"]}),
        (PLAIN, 2, {"joined": True}),
        (NESTED, 1, {"ignore": 10}),
    ],
)
def test_nothing_is_lost_on_the_way_there_and_back(
    tmp_path: Path, form: Form, labels: dict[str, Any], channels: int, more: dict[str, Any]
) -> None:
    dataset = source(tmp_path / "source", labels, channels, **more)
    converted(dataset, form, tmp_path / "there")
    there = read_dataset(tmp_path / "there")
    assert_same(dataset, there)
    for other in FORMS:
        converted(there, other, tmp_path / other)
        assert_same(dataset, read_dataset(tmp_path / other))


def plain(folder: Path) -> Dataset:
    """As any other program sees it."""
    (folder / "medseg.json").unlink()
    return read_dataset(folder)


@pytest.mark.parametrize(("labels", "left_out"), [(PLAIN, {"nobody"}), (NESTED, {"nobody", "partial"})])
def test_nnunet_gets_consecutive_values_and_ignores_what_is_unknown(
    tmp_path: Path, labels: dict[str, Any], left_out: set[str]
) -> None:
    dataset = source(tmp_path / "source", labels)
    warnings = converted(dataset, "nnunet", tmp_path / "there")
    there = plain(tmp_path / "there")
    values = [int(value) for value in there.labels.class_values]
    assert sorted(values) == list(range(len(values)))
    assert there.labels.ignore_value == len(values)
    names = Conversion(dataset, "nnunet").names
    by_name = {case.id: case for case in there.cases}
    assert {name: by_name[name].split for case, name in names.items() if name in by_name} == {
        name: "test" if case in ("x_seg", "tested in part", "unlabelled") else None
        for case, name in names.items()
        if case not in left_out
    }
    for record in dataset.cases:
        if record.label is None or record.id == "nobody":
            continue
        ours = read_case(record, dataset)
        assert ours.label is not None
        undecided = np.isin(ours.label.array, list(unknown_values(dataset.labels, record.annotated)))
        if undecided.all():  # such a case teaches nothing, and has no label there
            assert record.split == "test" or record.id in left_out
            continue
        theirs = read_case(by_name[names[record.id]], there)
        assert theirs.label is not None
        classes = there.labels.to_classes(theirs.label.array)
        np.testing.assert_array_equal(classes < 0, undecided)
        belongs = dataset.labels.membership[dataset.labels.to_classes(ours.label.array)]
        np.testing.assert_array_equal(there.labels.membership[classes[~undecided]], belongs[~undecided])
    folds = json.loads((tmp_path / "there" / "splits_final.json").read_text())
    train = {names[case] for case in ("full", "partial", "Partial") if case not in left_out}
    assert [(set(fold["train"]), fold["val"]) for fold in folds] == [(train, [names["full nr. 2-3"]])]
    told = " ".join(warnings)
    for words in (
        "ids, patients, splits, annotated",
        "ignore label",
        "they lie in originals",
        "without a label: 1 (unlabelled)",
    ):
        assert words in told


def test_channels_of_one_file_are_files_of_their_own_in_nnunets_form(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source", channels=2, joined=True)
    converted(dataset, "nnunet", tmp_path / "there")
    there = plain(tmp_path / "there")
    by_name = {case.id: case for case in there.cases}
    ours, theirs = read_case(dataset.cases[0], dataset), read_case(by_name["full"], there)
    assert [path.name for path in by_name["full"].images] == ["full_0000.nii.gz", "full_0001.nii.gz"]
    np.testing.assert_array_equal(ours.image.array, theirs.image.array)


def test_the_datasets_own_ignore_label_is_no_reason_to_warn(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source", ignore=255)
    full = replace(dataset, cases=dataset.cases[:1])
    warnings = converted(full, "nnunet", tmp_path / "there")
    assert plain(tmp_path / "there").labels.ignore_value == 4
    assert "ignore" not in " ".join(warnings)


def test_msd_lists_only_what_it_can_say(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source", channels=2)
    warnings = converted(dataset, "msd", tmp_path / "there")
    document = json.loads((tmp_path / "there" / "dataset.json").read_text())
    assert document["labels"] == {"0": "background", "3": "Spleen", "10": "Liver", "200": "Kidney left"}
    assert [Path(entry["label"]).name for entry in document["training"]] == ["full.nii.gz", "full_nr._2-3.nii.gz"]
    assert [Path(image).name for image in document["test"]] == [
        "x_seg_.nii.gz",
        "tested_in_part.nii.gz",
        "unlabelled.nii.gz",
    ]
    assert any("unknown: 3 (partial, Partial, nobody)" in warning for warning in warnings)
    there = plain(tmp_path / "there")
    case, original = read_case(there.cases[0], there), read_case(dataset.cases[0], dataset)
    np.testing.assert_array_equal(case.image.array, original.image.array)
    np.testing.assert_array_equal(case.image.geometry.affine_ras, original.image.geometry.affine_ras)
    header = nib.load(there.cases[0].images[0]).header
    assert (header.get_data_shape(), int(header["sform_code"])) == ((*SHAPE, 2), 2)


def test_what_is_ignored_is_no_class_of_msd(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source", NESTED, ignore=100)
    full = dataset.cases[0].label
    assert full is not None
    save(full, np.where(label([0, 1], 9) == 1, 100, nib.load(full).get_fdata()).astype(np.uint8))
    converted(dataset, "msd", tmp_path / "there")
    document = json.loads((tmp_path / "there" / "dataset.json").read_text())
    assert [Path(entry["image"]).name for entry in document["training"]] == ["full_nr._2-3.nii.gz"]
    assert document["labels"] == {"0": "background", "2": "whole", "5": "whole + core", "7": "vessel",
                                  "9": "whole + core (9)"}  # fmt: skip
    assert_same(dataset, read_dataset(tmp_path / "there"))


@given(
    rows=st.lists(st.sets(st.integers(1, 5), min_size=1), min_size=1, max_size=4),
    looked_for=st.sets(st.integers(0, 3)),
)
def test_a_known_value_fixes_every_structure(rows: list[set[int]], looked_for: set[int]) -> None:
    """By enumeration: no other value is the same to who sees only the annotated structures, and means another thing."""
    schema = labels_of({f"s{n}": {"value": n + 1, "region": sorted(row)} for n, row in enumerate(rows)})
    annotated = [f"s{n}" for n in looked_for if n < len(rows)]
    unknown = unknown_values(schema, annotated)
    held = {int(value): {n for n, row in enumerate(rows) if int(value) in row} for value in schema.class_values}
    for value, members in held.items():
        twins = [other for other in held.values() if other & looked_for == members & looked_for]
        assert (value in unknown) == any(other != members for other in twins)


def test_names_that_other_programs_stumble_over(tmp_path: Path) -> None:
    ids = ["a", "A", "a_2", "é", "x_seg", ".hidden", "-rf", "..a", "影", "$HOME", "a b"]
    cases = tuple(CaseRecord(name, name, (tmp_path / "i.nii.gz",)) for name in ids)
    dataset = Dataset("d", ("CT",), labels_of({"Liver": 1}), cases, tmp_path / "dataset.json")
    names = list(Conversion(dataset, "nnunet").names.values())
    assert len({name.lower() for name in names}) == len(ids)
    assert not any(name.endswith("_seg") or name[0] in ".-" or set(name) & set("$/ é影") for name in names)
    assert names[0] == "a"


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("form", FORMS)
def test_other_formats_become_nifti(tmp_path: Path, form: Form, ending: str) -> None:
    import SimpleITK

    folder = tmp_path / "source"
    folder.mkdir()
    values = np.arange(120, dtype=np.int16).reshape(SHAPE)
    for name, array in (("i", values), ("l", (values % 2 * 4).astype(np.uint8))):
        image = SimpleITK.GetImageFromArray(array.T)
        image.SetSpacing((1.25, 2, 3))
        image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
        SimpleITK.WriteImage(image, str(folder / f"{name}{ending}"))
    cases = [{"id": "a", "image": f"i{ending}", "label": f"l{ending}"}]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"Liver": 4}, "cases": cases}))
    dataset = read_dataset(folder)
    converted(dataset, form, tmp_path / "there")
    datasets = [read_dataset(tmp_path / "there")]
    if form != "native":
        datasets.append(plain(tmp_path / "there"))
    for there, value in zip(datasets, (4, 1 if form == "nnunet" else 4), strict=False):
        case, original = read_case(there.cases[0], there), read_case(dataset.cases[0], dataset)
        assert case.label is not None
        np.testing.assert_array_equal(case.image.array, original.image.array)
        np.testing.assert_array_equal(case.label.array, values % 2 * value)
        assert case.image.geometry.difference(original.image.geometry) is None


def test_an_addition_that_speaks_of_other_files_is_not_believed(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source")
    for number, form in enumerate(("nnunet", "msd")):
        folder = tmp_path / f"{number}"
        converted(dataset, form, folder)
        description = folder / "dataset.json"
        text = description.read_text()
        description.write_text(text.replace("Liver", "Lever"))
        with pytest.raises(ConfigError, match=r"delete medseg\.json"):
            read_dataset(folder)
        description.write_text(text)
        assert read_dataset(folder).labels == dataset.labels
    folder = tmp_path / "0"
    corrected = folder / "labelsTr" / "full.nii.gz"
    content = corrected.read_bytes()
    save(corrected, np.zeros(SHAPE, np.uint8))
    with pytest.raises(ConfigError, match=r"full\.nii\.gz was changed"):
        read_dataset(folder)
    corrected.write_bytes(content)
    os.link(folder / "imagesTr" / "full_0000.nii.gz", folder / "imagesTs" / "more_0000.nii.gz")
    with pytest.raises(ConfigError, match="'more' was added"):
        read_dataset(folder / "medseg.json")
    (folder / "medseg.json").unlink()
    assert "more" in [case.id for case in read_dataset(folder).cases]


def test_a_region_that_nnunet_cannot_write_is_refused(tmp_path: Path) -> None:
    dataset = source(tmp_path / "source", {"whole": {"value": 4, "region": [1, 2]}, "core": 2})
    with pytest.raises(ConfigError, match="one of its values"):
        conversion_of(dataset, "nnunet")
    conversion_of(dataset, "msd")


def test_a_link_is_the_same_file_and_does_not_touch_protected_ones(tmp_path: Path) -> None:
    own, protected = tmp_path / "own", tmp_path / "protected"
    own.write_bytes(b"1")
    protected.write_bytes(b"2")
    protected.chmod(0o444)
    assert (link(own, tmp_path / "d" / "a"), link(own, tmp_path / "d" / "a")) == ("linked", "kept")
    assert link(protected, tmp_path / "d" / "b") == "linked"
    assert (own.stat().st_nlink, protected.stat().st_nlink) == (2, 1)
    assert (tmp_path / "d" / "b").readlink() == protected
    (tmp_path / "d" / "c").write_bytes(b"old")
    assert link(tmp_path / "d" / "a", tmp_path / "d" / "c") == "linked"
    assert [(tmp_path / "d" / name).read_bytes() for name in "abc"] == [b"1", b"2", b"1"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["a", "b", "c"]


def test_where_the_file_system_has_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(os, "link", refuse)
    assert link(tmp_path / "a", tmp_path / "b") == "linked"
    assert (tmp_path / "b").is_symlink()
    monkeypatch.setattr(os, "symlink", refuse)
    assert (link(tmp_path / "a", tmp_path / "c"), link(tmp_path / "a", tmp_path / "c")) == ("copied", "kept")
    assert (tmp_path / "c").read_bytes() == b"1" and not (tmp_path / "c").is_symlink()


def test_packing_keeps_the_header_and_recognises_what_is_packed(tmp_path: Path) -> None:
    scan = save(tmp_path / "a.nii", np.ones(SHAPE, np.float64))
    assert pack(scan, tmp_path / "b.nii.gz") == "written"
    assert nib.load(tmp_path / "b.nii.gz").header == nib.load(scan).header
    renamed = tmp_path / "c.nii"
    renamed.write_bytes((tmp_path / "b.nii.gz").read_bytes())
    assert pack(renamed, tmp_path / "d.nii.gz") == "linked"
