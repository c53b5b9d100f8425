from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import CaseError, ConfigError, GeometryError, LabelError, ReadError
from medseg.core.labels import LabelSchema, Structure
from medseg.io.case import input_cases, read_case
from medseg.io.manifest import sha256_of
from medseg.io.volume import (
    VOLUME_SUFFIXES,
    files_of,
    has_volume_suffix,
    is_dicom,
    read_channels,
    read_label_map,
    read_volume,
    stem_of,
)

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
FORMATS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")


def saved(path: Path, array: np.ndarray) -> Path:
    """On one grid in every format: steps of 1, 1, 2 mm to the left, to the back and up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), path)
    else:
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing([1.0, 1.0, 2.0])
        SimpleITK.WriteImage(image, str(path))
    return path


def write_series(folder: Path, stored: np.ndarray) -> list[Path]:
    """A plain CT series on the same grid, of HU that are 1024 less than what is stored."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(stored.shape[2]):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{number + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.5"
        dataset.Modality, dataset.InstanceNumber, dataset.PatientID = "CT", number + 1, "p"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [1, 1], 1, -1024
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Columns, dataset.Rows = stored.shape[:2]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = stored[:, :, number].T.astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def counted(dtype: str = "int16") -> np.ndarray:
    return np.arange(60).reshape(3, 4, 5).astype(dtype)


def code_of(read: Callable[[], object]) -> str:
    with pytest.raises(CaseError) as raised:
        read()
    return raised.value.code


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float32", "float64"])
def test_every_format_gives_the_same_volume(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = saved(tmp_path / f"Müller 影像.{suffix}", counted(dtype))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], counted())
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE)
    assert volume.array.dtype == ("float32" if dtype.startswith("float") else dtype)
    assert volume.notes == ()
    labels = read_label_map(str(path))
    np.testing.assert_array_equal(labels.array, counted())
    assert labels.array.dtype == np.uint8


@pytest.mark.parametrize("suffix", FORMATS)
def test_values_that_are_not_finite(tmp_path: Path, suffix: str) -> None:
    array = counted("float32") - 30
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, -np.inf
    path = saved(tmp_path / f"a.{suffix}", array)
    assert code_of(lambda: read_volume(path)) == "read.nonfinite"
    volume = read_volume(path, allow={"read.nonfinite"})
    wanted = np.where(np.isfinite(array), array, -29.0)
    np.testing.assert_array_equal(volume.array[0], wanted)
    (note,) = volume.notes
    assert note.code == "read.nonfinite"
    assert "3 voxels" in note.message
    assert "of 60" in note.message
    assert "-29" in note.message
    assert code_of(lambda: read_label_map(path)) == "label.noninteger"
    nothing = saved(tmp_path / f"b.{suffix}", np.full((3, 4, 5), np.nan, np.float32))
    assert code_of(lambda: read_volume(nothing, allow={"read.nonfinite"})) == "read.nonfinite"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("value", "code"), [(0.5, "label.noninteger"), (-1.0, "label.range"), (65536.0, "label.range")]
)
def test_impossible_label_values_in_every_format(tmp_path: Path, suffix: str, value: float, code: str) -> None:
    for dtype in ("float32", "int32") if value != 0.5 else ("float64",):
        array = counted(dtype)
        array[1, 2, 3] = value
        path = saved(tmp_path / f"a.{suffix}", array)
        assert code_of(lambda path=path: read_label_map(path)) == code


def test_large_labels_and_signed_types(tmp_path: Path) -> None:
    for dtype, largest, wanted in (("int16", 300, "uint16"), ("uint16", 65535, "uint16"), ("int16", 255, "uint8")):
        array = counted(dtype)
        array[0, 0, 0] = largest
        labels = read_label_map(saved(tmp_path / "a.nii", array)).array
        np.testing.assert_array_equal(labels, array)
        assert labels.dtype == wanted


def test_names() -> None:
    assert all(has_volume_suffix(Path(f"x{suffix.upper()}")) for suffix in VOLUME_SUFFIXES)
    assert not has_volume_suffix(Path("x.gz"))
    names = ["a.nii.gz", "a.NII", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.dcm", "a"]
    assert {stem_of(Path(name)) for name in names} == {"a"}
    assert stem_of(Path("a.seg.nrrd")) == "a.seg"


def test_a_folder_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan.nii").mkdir()
    assert stem_of(tmp_path / "scan.nii") == "scan.nii"
    monkeypatch.chdir(tmp_path / "scan.nii")
    assert stem_of(Path()) == "scan.nii"
    assert stem_of(Path("..")) == tmp_path.name


def test_what_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "empty.mha").touch()
    for name, code in (
        ("notes.txt", "read.format"),
        ("absent", "read.missing"),
        ("absent.mhd", "read.missing"),
        ("empty.mha", "read.empty"),
        ("a\0.nii", "read.failed"),
        ("x" * 300 + ".nii", "read.failed"),
    ):
        path = tmp_path / name
        assert code_of(lambda path=path: read_volume(path)) == code
        assert code_of(lambda path=path: read_label_map(path)) == code
    assert not is_dicom(tmp_path / "notes.txt")


def test_channels_of_any_formats_on_one_grid(tmp_path: Path) -> None:
    array = counted("float32")
    array[0, 0, 0] = np.nan
    paths = [saved(tmp_path / "a.nrrd", array), saved(tmp_path / "b.nii.gz", counted())]
    volume = read_channels(paths, allow={"read.nonfinite"})
    assert (volume.array.shape, volume.array.dtype) == ((2, 3, 4, 5), np.float32)
    assert [note.code for note in volume.notes] == ["read.nonfinite"]
    nib.save(nib.Nifti1Image(counted(), np.diag([1.0, -1.0, 2.0, 1.0])), tmp_path / "c.nii")
    with pytest.raises(GeometryError) as raised:
        read_channels([paths[1], tmp_path / "c.nii"])
    assert raised.value.code == "geometry.channels"


DATASET = Dataset("d", ("CT",), LabelSchema((Structure("Liver", 1),)), (), Path("dataset.json"))


def test_cases_of_every_format(tmp_path: Path) -> None:
    for number, suffix in enumerate(FORMATS):
        saved(tmp_path / f"{number}.{suffix}", counted())
    records = input_cases([tmp_path], 1)
    assert [record.id for record in records] == ["0", "1", "2", "3", "4", "5"], "data files beside headers are no cases"
    assert all(read_case(record, DATASET).image.array.shape == (1, 3, 4, 5) for record in records)


@pytest.mark.parametrize(("first", "second"), [("a.nii.gz", "a.nrrd"), ("a.mha", "a.mhd"), ("a.nii", "a.nhdr")])
def test_formats_that_would_give_one_output_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second):
        saved(tmp_path / name, counted())
    with pytest.raises(ConfigError, match=r"written to a\.nii\.gz"):
        input_cases([tmp_path], 1)


def test_names_that_cannot_be_an_output(tmp_path: Path) -> None:
    for name in ("a\nb.nii", ".nii", "x" * 240 + ".nii"):
        with pytest.raises(ConfigError, match="rename"):
            input_cases([tmp_path / name], 1)


def test_a_series_is_one_case_and_so_is_each_of_several(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2000, (6, 5, 4)).astype(np.uint16)
    for name in ("p1", "p2"):
        write_series(tmp_path / "all" / name, stored)
    (tmp_path / "all" / "notes").mkdir()
    saved(tmp_path / "all" / "p3.mha", counted())
    (one,) = input_cases([tmp_path / "all" / "p1"], 1)
    assert (one.id, one.images) == ("p1", (tmp_path / "all" / "p1",))
    case = read_case(one, DATASET)
    np.testing.assert_array_equal(case.image.array[0], stored.astype(int) - 1024)
    np.testing.assert_allclose(case.image.geometry.affine_ras, AFFINE, atol=1e-6)
    assert [record.id for record in input_cases([tmp_path / "all"], 1)] == ["p1", "p2", "p3"]
    saved(tmp_path / "all" / "p1" / "export.nii", counted())
    with pytest.raises(ConfigError, match=r"also export\.nii"):
        input_cases([tmp_path / "all" / "p1"], 1)
    (file,) = input_cases([next((tmp_path / "all" / "p2").iterdir())], 1)
    assert is_dicom(file.images[0])
    assert code_of(lambda: read_volume(tmp_path / "all" / "notes")) == "dicom.no_images"
    assert code_of(lambda: read_label_map(tmp_path / "all" / "p2")) == "read.format"


def test_channels_of_a_case_may_mix_formats(tmp_path: Path) -> None:
    stored = np.full((3, 4, 5), 1024, np.uint16)
    write_series(tmp_path / "p_0000", stored)
    saved(tmp_path / "p_0001.nrrd", counted())
    (record,) = input_cases([tmp_path], 2)
    assert [path.name for path in record.images] == ["p_0000", "p_0001.nrrd"]
    two = Dataset("d", ("CT", "PET"), DATASET.labels, (), DATASET.source)
    np.testing.assert_array_equal(read_case(record, two).image.array[:, 0, 0, 1], [0, 1])


def test_a_label_in_another_format_than_its_image(tmp_path: Path) -> None:
    label = (counted() > 30).astype(np.uint8)
    image, contour = saved(tmp_path / "a.mha", counted()), saved(tmp_path / "a_label.nrrd", label)
    case = read_case(CaseRecord("a", "a", (image,), contour), DATASET)
    assert case.label is not None
    np.testing.assert_array_equal(case.label.array, label)
    strange = saved(tmp_path / "b_label.nrrd", 2 * label)
    with pytest.raises(LabelError, match=r"b_label\.nrrd"):
        read_case(CaseRecord("a", "a", (image,), strange), DATASET)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz"])
def test_monai_reads_every_format_through_the_door(tmp_path: Path, name: str) -> None:
    from monai.transforms import LoadImage

    from medseg.data.reader import CheckedReader

    path = saved(tmp_path / name, counted("float32"))
    image = LoadImage(reader=CheckedReader(), ensure_channel_first=True)(path)
    np.testing.assert_array_equal(image.numpy()[0], counted())
    np.testing.assert_allclose(image.affine.numpy(), AFFINE)
    both = LoadImage(reader=CheckedReader(), ensure_channel_first=True)([path, path])
    assert tuple(both.shape) == (2, 3, 4, 5)
    strange = counted("float32")
    strange[0, 0, 0] = np.nan
    saved(path, strange)
    with pytest.raises(ReadError):
        LoadImage(reader=CheckedReader())(path)
    assert np.isfinite(LoadImage(reader=CheckedReader(allow={"read.nonfinite"}))(path).numpy()).all()


def test_all_files_of_an_input(tmp_path: Path) -> None:
    for name, wanted in (
        ("a.nii", ["a.nii"]),
        ("b.mha", ["b.mha"]),
        ("c.mhd", ["c.mhd", "c.raw"]),
        ("d.nhdr", ["d.nhdr", "d.raw"]),
        ("e.nrrd", ["e.nrrd"]),
    ):
        assert [path.name for path in files_of(saved(tmp_path / name, counted()))] == wanted
    slices = write_series(tmp_path / "series", np.zeros((3, 4, 5), np.uint16))
    assert files_of(tmp_path / "series") == tuple(sorted(slices))
    before = sha256_of([tmp_path / "c.mhd"])
    (tmp_path / "c.raw").write_bytes(bytes(120))
    assert sha256_of([tmp_path / "c.mhd"]) != before
    assert sha256_of([tmp_path / "series"])
    for name, content in (("f.mhd", b"ElementDataFile = ../c.raw\n"), ("g.nrrd", b"?")):
        (tmp_path / name).write_bytes(content)
        assert files_of(tmp_path / name) == (tmp_path / name,)
    assert files_of(tmp_path / "absent.mhd") == (tmp_path / "absent.mhd",)
