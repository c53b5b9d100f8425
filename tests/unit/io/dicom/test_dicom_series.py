from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from scipy.spatial.transform import Rotation

from medseg.core.errors import CaseError, GeometryError, ReadError
from medseg.io.dicom_series import (
    ALLOWABLE,
    is_dicom_file,
    is_series_folder,
    read_dicom_series,
    read_series_header,
)

AFFINE = np.diag([-2.0, -1.5, 2.5, 1.0])
AFFINE[:3, 3] = 20, 30, -100
CORONAL = np.array([[-2.0, 0, 0, 20], [0, 0, 2.5, -30], [0, -1.5, 0, 60], [0, 0, 0, 1]])
STORED = np.random.default_rng(0).integers(0, 3000, (11, 9, 7)).astype(np.uint16)
HU = STORED.astype(np.int16) - 1024


def refused(folder: Path, code: str, **options: Any) -> str:
    with pytest.raises(CaseError) as raised:
        read_dicom_series(folder, **options)
    assert raised.value.code == code
    message = raised.value.message
    assert str(folder.parent) not in message
    assert "Doe" not in message and "P1" not in message
    return message


def codes(folder: Path, **options: Any) -> list[str]:
    return [note.code for note in read_dicom_series(folder, **options).notes]


def test_a_series_is_one_volume(tmp_path: Path, write_series: Any) -> None:
    write_series(tmp_path / "a", STORED, AFFINE)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE, atol=1e-9)
    assert volume.array.dtype == np.int16
    assert volume.notes == ()


def test_the_header_names_its_sources_in_order(tmp_path: Path, write_series: Any) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE, names=[f"{9 - k}.dcm" for k in range(7)])
    header = read_series_header(tmp_path / "a")
    assert [item.layout.path for item in header.slices] == paths
    assert [item.sop_instance_uid for item in header.slices] == [f"1.2.3.4.{k + 1}" for k in range(7)]
    assert "P1" not in repr(header)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_missing_slice_is_refused_or_interpolated(tmp_path: Path, write_series: Any, k: int) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE)
    paths[k].unlink()
    message = refused(tmp_path / "a", "dicom.missing_slice")
    assert paths[k - 1].name in message and paths[k + 1].name in message
    assert "5.00 mm" in message and "2.50 mm" in message and f"{AFFINE[2, 3] + 2.5 * (k - 1):.2f} mm" in message
    volume = read_dicom_series(tmp_path / "a", allow={"dicom.missing_slice"})
    expected = HU.astype(np.float64)
    expected[:, :, k] = np.rint((expected[:, :, k - 1] + expected[:, :, k + 1]) / 2)
    np.testing.assert_array_equal(volume.array[0], expected)
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE, atol=1e-9)
    assert [note.code for note in volume.notes] == ["dicom.missing_slice"]
    assert "1 of 7 planes" in volume.notes[0].message


def test_more_is_not_made_up_than_there_is(tmp_path: Path, write_series: Any) -> None:
    paths = write_series(tmp_path / "a", np.repeat(STORED, 3, axis=2), AFFINE)
    for path in paths[3:-1]:
        path.unlink()
    refused(tmp_path / "a", "dicom.missing_slice", allow=ALLOWABLE)


@pytest.mark.parametrize("same", [True, False])
def test_a_double_slice_is_refused_or_dropped(tmp_path: Path, write_series: Any, same: bool) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE)
    double = pydicom.dcmread(paths[3])
    double.SOPInstanceUID = "1.2.3.4.999"
    if not same:
        double.PixelData = bytes(len(double.PixelData))
    double.save_as(tmp_path / "a" / "000.dcm")
    message = refused(tmp_path / "a", "dicom.duplicate_slice")
    assert "000.dcm" in message and paths[3].name in message and f"{AFFINE[2, 3] + 7.5:.2f} mm" in message
    assert ("the same voxels" if same else "different voxels") in message
    volume = read_dicom_series(tmp_path / "a", allow={"dicom.duplicate_slice"})
    np.testing.assert_array_equal(volume.array[0], HU)
    assert [note.code for note in volume.notes] == ["dicom.duplicate_slice"]


def test_of_two_acquisitions_the_first_is_kept_throughout(tmp_path: Path, write_series: Any) -> None:
    def later(k: int, dataset: Dataset) -> None:
        dataset.AcquisitionNumber, dataset.SOPInstanceUID = 2, f"1.2.3.0.{k}"

    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED + 1, AFFINE, names=[f"{k}.dcm" for k in range(7)], change=later)
    message = refused(tmp_path / "a", "dicom.duplicate_slice")
    assert message.startswith("7 of 7 positions in a have several acquisitions")
    volume = read_dicom_series(tmp_path / "a", allow={"dicom.duplicate_slice"})
    np.testing.assert_array_equal(volume.array[0], HU)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_scout_is_split_off(tmp_path: Path, write_series: Any, is_named: bool) -> None:
    def scout(_: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if is_named else "OTHER"]

    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED[:, :, :1], CORONAL, names=["0.dcm"], change=scout)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE, atol=1e-9)
    assert [note.code for note in volume.notes] == ["dicom.scout" if is_named else "dicom.other_stack"]
    assert "1 coronal" in volume.notes[0].message and "0.dcm" in volume.notes[0].message


def test_scouts_in_the_same_plane_are_split_off_too(tmp_path: Path, write_series: Any) -> None:
    def scout(_: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED[:, :, :2], AFFINE, names=["0.dcm", "1.dcm"], change=scout)
    assert codes(tmp_path / "a") == ["dicom.scout"]


def test_reformats_are_split_off_unless_they_are_all_there_is(tmp_path: Path, write_series: Any) -> None:
    def reformat(_: int, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]

    names = [f"{k}.dcm" for k in range(7)]
    write_series(tmp_path / "b", STORED, CORONAL, names=names, change=reformat)
    assert codes(tmp_path / "b") == []
    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED, CORONAL, names=names, change=reformat, series="1.2.3.5")
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    assert [note.code for note in volume.notes] == ["dicom.reformat"]


def test_two_orientations_are_several_volumes(tmp_path: Path, write_series: Any) -> None:
    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED[:, :, :5], CORONAL, names=[f"{k}.dcm" for k in range(5)])
    message = refused(tmp_path / "a", "dicom.several_volumes", allow=ALLOWABLE)
    assert "7 axial CT images of 11 × 9 voxels" in message and "5 coronal CT images of 11 × 9 voxels" in message


def test_two_series_are_several_volumes(tmp_path: Path, write_series: Any) -> None:
    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED, AFFINE, series="1.2.3.5")
    refused(tmp_path / "a", "dicom.several_volumes")


def test_half_a_series_in_a_deeper_folder_is_not_forgotten(tmp_path: Path, write_series: Any) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE)
    (tmp_path / "a" / "more").mkdir()
    for path in paths[4:]:
        path.rename(tmp_path / "a" / "more" / path.name)
    assert "more" in refused(tmp_path / "a", "dicom.several_volumes")


@pytest.mark.parametrize("shift_mm", [0.3, 1.2, -0.3])
def test_uneven_gaps_are_refused_or_interpolated(tmp_path: Path, write_series: Any, shift_mm: float) -> None:
    def move(k: int, dataset: Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z + (shift_mm if k == 3 else 0)]

    heights_mm = 2.5 * np.arange(7) + np.where(np.arange(7) == 3, shift_mm, 0)
    linear = np.broadcast_to(np.rint(100 * heights_mm), (11, 9, 7)).astype(np.uint16)
    paths = write_series(tmp_path / "a", linear, AFFINE, change=move)
    message = refused(tmp_path / "a", "dicom.uneven_gaps", allow={"dicom.missing_slice"})
    assert paths[3].name in message and f"{2.5 + shift_mm:.2f} mm between" in message
    volume = read_dicom_series(tmp_path / "a", allow={"dicom.uneven_gaps"})
    expected = np.broadcast_to(100 * 2.5 * np.arange(7) - 1024, (11, 9, 7))
    np.testing.assert_allclose(volume.array[0], expected, atol=1)
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE, atol=1e-9)
    assert [note.code for note in volume.notes] == ["dicom.uneven_gaps"]


def test_a_body_keeps_its_size_where_spacing_changes_on_the_way(tmp_path: Path, write_series: Any) -> None:
    heights_mm = np.array([0, 2, 4, 6, 8, 11, 14.0])

    def move(k: int, dataset: Dataset) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, heights_mm[k]]

    linear = np.broadcast_to(100 * heights_mm, (11, 9, 7)).astype(np.uint16)
    write_series(tmp_path / "a", linear, AFFINE, change=move)
    refused(tmp_path / "a", "dicom.uneven_gaps")
    volume = read_dicom_series(tmp_path / "a", allow={"dicom.uneven_gaps"})
    assert volume.geometry.shape_ijk == (11, 9, 8)
    np.testing.assert_allclose(volume.geometry.spacing_ijk_mm, (2, 1.5, 2))
    np.testing.assert_array_equal(volume.array[0, 0, 0] + 1024, 200 * np.arange(8))


@pytest.mark.parametrize("spacing_mm", [0.625, 0.75, 1.25, 3.27])
def test_positions_rounded_to_one_decimal_are_even(tmp_path: Path, write_series: Any, spacing_mm: float) -> None:
    def rounded(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [-20, -30, f"{k * spacing_mm:.1f}"]

    write_series(tmp_path / "a", np.repeat(STORED, 4, axis=2), AFFINE, change=rounded)
    volume = read_dicom_series(tmp_path / "a")
    assert volume.geometry.spacing_ijk_mm[2] == pytest.approx(spacing_mm, abs=0.1 / 27)


def test_directions_of_three_decimals_need_not_stand_quite_at_right_angles(tmp_path: Path, write_series: Any) -> None:
    def rounded(_: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [f"{float(cosine):.3f}" for cosine in dataset.ImageOrientationPatient]

    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, :3] @= Rotation.from_rotvec([-2.44, -1.01, -1.35]).as_matrix() * [2, 1.5, 2.5]
    write_series(tmp_path / "a", STORED, affine, change=rounded)
    along_i, along_j, _ = read_dicom_series(tmp_path / "a").geometry.affine_ras[:3, :3].T / [[2], [1.5], [2.5]]
    assert 1e-3 < abs(along_i @ along_j) < 2e-3
    np.testing.assert_allclose([along_i, along_j], affine[:3, :2].T / [[2], [1.5]], atol=1e-3)


def test_slices_shifted_within_their_plane_have_no_grid(tmp_path: Path, write_series: Any) -> None:
    def move(k: int, dataset: Dataset) -> None:
        if k > 3:
            dataset.ImagePositionPatient[0] += 4

    write_series(tmp_path / "a", STORED, AFFINE, change=move)
    refused(tmp_path / "a", "dicom.shifted_slices", allow=ALLOWABLE)


def test_each_slice_has_its_own_slope(tmp_path: Path, write_series: Any) -> None:
    def scale(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + 0.25 * k, -1000 - k

    write_series(tmp_path / "a", STORED, AFFINE, change=scale)
    volume = read_dicom_series(tmp_path / "a")
    expected = STORED * (0.5 + 0.25 * np.arange(7)) - 1000 - np.arange(7)
    np.testing.assert_allclose(volume.array[0], expected, rtol=1e-6)
    assert volume.array.dtype == np.float32
    assert [note.code for note in volume.notes] == ["dicom.rescale_per_slice"]


def test_a_slope_in_some_slices_only_is_refused(tmp_path: Path, write_series: Any) -> None:
    def drop(k: int, dataset: Dataset) -> None:
        if k == 2:
            del dataset.RescaleSlope

    write_series(tmp_path / "a", STORED, AFFINE, change=drop)
    refused(tmp_path / "a", "dicom.rescale")


def test_numbers_that_are_no_hu_are_told(tmp_path: Path, write_series: Any) -> None:
    def unscaled(_: int, dataset: Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.RescaleType = "Z_EFF"

    write_series(tmp_path / "a", STORED, AFFINE, change=unscaled)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], STORED)
    assert [note.code for note in volume.notes] == ["dicom.no_rescale", "dicom.not_hu"]


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("PatientID", "P2", "dicom.several_patients"),
        ("FrameOfReferenceUID", "1.2.3.8", "dicom.frames_of_reference"),
        ("PhotometricInterpretation", "RGB", "dicom.colour"),
        ("RescaleSlope", 0, "dicom.damaged"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0, 0], "dicom.damaged"),
        ("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0], "dicom.damaged"),
        ("PixelSpacing", [0, 2], "dicom.damaged"),
        ("Rows", 8, "dicom.damaged"),
        ("Rows", 60000, "dicom.truncated"),
        ("BitsStored", 17, "dicom.damaged"),
        ("NumberOfFrames", 2, "dicom.damaged"),
    ],
)
def test_one_strange_slice_refuses_the_series(
    tmp_path: Path, write_series: Any, keyword: str, value: Any, code: str
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if k == 6:
            setattr(dataset, keyword, value)

    write_series(tmp_path / "a", STORED, AFFINE, change=change)
    refused(tmp_path / "a", code, allow=ALLOWABLE)


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "BitsAllocated"]
)
def test_what_a_scan_must_say_is_asked_for(tmp_path: Path, write_series: Any, keyword: str) -> None:
    write_series(tmp_path / "a", STORED, AFFINE, change=lambda k, dataset: dataset.pop(keyword) if k == 6 else None)
    refused(tmp_path / "a", "dicom.damaged", allow=ALLOWABLE)


def test_optional_attributes_may_be_missing(tmp_path: Path, write_series: Any) -> None:
    def sparse(_: int, dataset: Dataset) -> None:
        for keyword in ("ImageType", "PatientID", "FrameOfReferenceUID", "AcquisitionNumber", "HighBit", "Modality"):
            delattr(dataset, keyword)
        dataset.add_new(0x00091010, "UN", b"\x01\x02private\xff")

    write_series(tmp_path / "a", STORED, AFFINE, change=sparse)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "a").array[0], HU)
    assert codes(tmp_path / "a") == []


def test_a_single_slice_is_no_volume(tmp_path: Path, write_series: Any) -> None:
    paths = write_series(tmp_path / "a", STORED[:, :, :1], AFFINE)
    assert "at least 2" in refused(tmp_path / "a", "dicom.too_few_slices")
    assert "whole series" in refused(paths[0], "dicom.too_few_slices")


def test_what_is_no_slice_is_left_out_and_told(tmp_path: Path, write_series: Any) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE)
    (tmp_path / "a" / "README").write_text("an export")
    (tmp_path / "a" / "preview.jpg").write_bytes(b"\xff\xd8\x00")
    (tmp_path / "a" / ".DS_Store").write_bytes(bytes(100))
    plan = pydicom.dcmread(paths[0])
    plan.SOPClassUID = plan.file_meta.MediaStorageSOPClassUID = pydicom.uid.RTPlanStorage
    for keyword in ("PixelData", "ImagePositionPatient"):
        delattr(plan, keyword)
    plan.save_as(tmp_path / "a" / "plan.dcm")
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    (note,) = volume.notes
    assert note.code == "dicom.other_files"
    assert all(name in note.message for name in ("README", "preview.jpg", "plan.dcm"))


def test_a_screenshot_is_left_out_and_told(tmp_path: Path, write_series: Any) -> None:
    def screenshot(_: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PlanarConfiguration = "RGB", 3, 0
        dataset.PixelData = bytes(3 * len(dataset.PixelData))

    write_series(tmp_path / "a", STORED, AFFINE)
    write_series(tmp_path / "a", STORED[:, :, :1], CORONAL, names=["report.dcm"], change=screenshot)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    assert "report.dcm" in volume.notes[0].message


@pytest.mark.parametrize("content", [b"", b"\0" * 900, b"hello"])
def test_a_file_that_should_be_a_slice_is_never_dropped(tmp_path: Path, write_series: Any, content: bytes) -> None:
    paths = write_series(tmp_path / "a", STORED, AFFINE)
    paths[-1].write_bytes(content)
    assert paths[-1].name in refused(tmp_path / "a", "dicom.damaged", allow=ALLOWABLE)


def test_slices_need_neither_suffix_nor_prefix(tmp_path: Path, write_series: Any) -> None:
    names = [f"IM{k}" for k in range(7)]
    paths = write_series(tmp_path / "a", STORED, AFFINE, names=names, syntax=ImplicitVRLittleEndian)
    for path in paths:
        path.write_bytes(path.read_bytes()[path.read_bytes().index(b"\x08\x00\x08\x00") :])
    assert all(is_dicom_file(path) for path in paths)
    assert is_series_folder(tmp_path / "a")
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "a").array[0], HU)
    paths[3].write_bytes(b"")
    refused(tmp_path / "a", "dicom.damaged")


def test_what_is_a_series_folder(tmp_path: Path, write_series: Any, shared_data: Path) -> None:
    write_series(tmp_path / "a" / "b", STORED, AFFINE)
    for number in range(40):
        (tmp_path / "a" / "b" / f"0{number}.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    assert is_series_folder(tmp_path / "a" / "b")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "empty", tmp_path / "missing", shared_data / "dicom"):
        assert not is_series_folder(folder)
    for contours in ("STS_002/CT/mask", "dcmqi_segmentations"):
        assert not is_series_folder(shared_data / "dicom" / contours)
    assert not is_dicom_file(shared_data / "dicom" / "ct_slab_20_labels.nii.gz")


def test_a_missing_path_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "read.missing")
    refused(tmp_path, "dicom.no_images")


def test_nothing_is_printed(tmp_path: Path, write_series: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def odd(_: int, dataset: Dataset) -> None:
        dataset.StudyDate = "2020"
        dataset["SOPInstanceUID"]._value = "not a uid"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path / "a", STORED, AFFINE, change=odd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_dicom_series(tmp_path / "a")
    assert caught == []
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def multiframe(tmp_path: Path, shared_data: Path) -> Path:
    source = shared_data / "dicom" / "dcmqi_segmentations" / "24x38x3" / "multiframe" / "mf.dcm"
    return Path(shutil.copy(source, tmp_path / "mf.dcm"))


def test_an_enhanced_file_is_its_classic_series(multiframe: Path, shared_data: Path) -> None:
    classic = read_dicom_series(shared_data / "dicom" / "dcmqi_segmentations" / "24x38x3" / "image")
    enhanced = read_dicom_series(multiframe)
    np.testing.assert_array_equal(enhanced.array, classic.array)
    assert classic.array.any()
    assert enhanced.geometry.difference(classic.geometry) is None


def test_each_frame_has_its_own_place_and_slope(multiframe: Path) -> None:
    before = read_dicom_series(multiframe)
    dataset = pydicom.dcmread(multiframe)
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    stored = dataset.pixel_array
    for slope, frame in zip((2, 3, 4), frames, strict=True):
        scale = copy.deepcopy(dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0])
        scale.RescaleSlope = slope
        frame.PixelValueTransformationSequence = DicomSequence([scale])
    order = [2, 0, 1]
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence([frames[index] for index in order])
    dataset.PixelData = (stored[order] + 1).tobytes()
    dataset.save_as(multiframe)
    after = read_dicom_series(multiframe)
    expected = (stored + 1) * np.array([2, 3, 4])[:, None, None]
    np.testing.assert_array_equal(after.array[0], expected.transpose(2, 1, 0))
    assert after.geometry.difference(before.geometry) is None


def test_a_frame_too_many_or_few_is_refused(multiframe: Path) -> None:
    dataset = pydicom.dcmread(multiframe)
    del dataset.PerFrameFunctionalGroupsSequence[1]
    dataset.save_as(multiframe)
    with pytest.raises(ReadError, match="3 frames and describes 2"):
        read_dicom_series(multiframe)
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) * 2 // 3]
    dataset.save_as(multiframe)
    assert read_dicom_series(multiframe).geometry.shape_ijk[2] == 2


def test_the_grid_must_be_possible(tmp_path: Path, write_series: Any) -> None:
    write_series(tmp_path / "a", STORED, np.diag([-2.0, -1.5, 25.0, 1.0]))
    with pytest.raises(GeometryError, match="spacing"):
        read_dicom_series(tmp_path / "a")
