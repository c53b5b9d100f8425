from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import CaseError, GeometryError, LabelError, ReadError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.volume import LabelMap
from medseg.io.nifti import GRID_FIELDS, write_label_map
from medseg.io.volume import read_label_map, read_volume

AFFINE = np.array([[-2.0, 0, 0, 10], [0, -2.5, 0, 20], [0, 0, 3.0, -30], [0, 0, 0, 1]])


def saved(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def altered(path: Path, **fields: object) -> Path:
    """A good file but for some fields of its header, written without nibabel's corrections."""
    header = nib.Nifti1Image(noise(), AFFINE).header
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + noise().tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def noise(shape=(6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64", ">i2", ">f4"])
def test_voxels_and_affine_come_back(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = np.abs(noise() % 200).astype(dtype)
    volume = read_volume(saved(tmp_path / f"Müller 影像{suffix}", array))
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_allclose(volume.geometry.affine_ras, AFFINE)
    assert volume.array.dtype.isnative


def test_scaled_integers_are_scaled(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").array[0], nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_one_frame_in_four_dimensions_is_a_volume(tmp_path: Path) -> None:
    assert read_volume(saved(tmp_path / "a.nii", noise((4, 5, 6, 1)))).array.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: None, "read.missing"),
        (lambda path: path.write_bytes(b""), "read.empty"),
        (lambda path: path.write_bytes(b"hello world" * 100), "read.format"),
        (lambda path: path.write_bytes(gzip.compress(b"hello world" * 100)), "read.format"),
        (lambda path: path.write_bytes(gzip.compress(b"x")), "read.format"),
        (os.mkfifo, "read.failed"),
        (lambda path: saved(path, noise((4, 5, 6, 2))), "read.dimensions"),
        (lambda path: saved(path, noise((4, 5))), "read.dimensions"),
        (lambda path: saved(path, noise().astype(np.complex64)), "read.type"),
        (lambda path: altered(path, datatype=1536, bitpix=128), "read.type"),
        (lambda path: saved(path, np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "read.type"),
        (lambda path: altered(path, datatype=0), "read.type"),
        (lambda path: altered(path, bitpix=8), "read.header"),
        (lambda path: altered(path, vox_offset=100), "read.header"),
        (lambda path: altered(path, vox_offset=352.5), "read.header"),
        (lambda path: altered(path, vox_offset=np.nan), "read.header"),
        (lambda path: altered(path, scl_slope=np.inf), "read.header"),
        (lambda path: altered(path, scl_slope=1, scl_inter=np.nan), "read.header"),
        (lambda path: altered(path, xyzt_units=4), "read.header"),
        (lambda path: altered(path, sform_code=9), "read.header"),
        (lambda path: altered(path, qform_code=-1), "read.header"),
        (lambda path: altered(path, srow_x=[np.nan, 0, 0, 0]), "geometry.affine"),
        (lambda path: altered(path, sform_code=0, qform_code=1, quatern_b=2), "geometry.affine"),
        (lambda path: altered(path, sform_code=0, qform_code=1, pixdim=[3, 1, 1, 1, 0, 0, 0, 0]), "geometry.affine"),
        (lambda path: altered(path, sform_code=0, qform_code=0, pixdim=[1, -1, 1, 1, 0, 0, 0, 0]), "geometry.affine"),
        (lambda path: altered(path, xyzt_units=1), "geometry.spacing"),
        (lambda path: saved(path, np.full((4, 4, 4), np.nan, np.float32)), "read.nonfinite"),
        (lambda path: saved(path, noise(), np.diag([0.001, 1, 1, 1])), "geometry.spacing"),
        (lambda path: saved(path, noise(), np.diag([90.0, 1, 1, 1])), "geometry.spacing"),
    ],
)
def test_what_cannot_be_read_truly_is_refused(tmp_path: Path, make, code: str) -> None:
    path = tmp_path / "scan.nii.gz"
    make(path)
    with pytest.raises(CaseError) as raised:
        read_volume(path)
    assert raised.value.code == code
    assert "scan.nii.gz" in raised.value.message
    assert str(tmp_path.parent.parent) not in raised.value.message or code == "read.missing"


def test_a_truncated_uncompressed_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", noise())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ReadError) as raised:
        read_volume(path)
    assert raised.value.code == "read.truncated"


def test_no_flip_and_no_cut_of_a_packed_file_gives_other_voxels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", noise())
    whole, content = read_volume(path), path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        flipped = bytearray(content)
        flipped[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = read_volume(path)
        except CaseError:
            continue
        np.testing.assert_array_equal(found.array, whole.array)
        np.testing.assert_array_equal(found.geometry.affine_ras, whole.geometry.affine_ras)
    for end in rng.integers(1, len(content), 50):
        path.write_bytes(content[:end])
        with pytest.raises(CaseError):
            read_volume(path)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), AFFINE).header
    header["dim"] = [3, 1500, 1500, 900, 1, 1, 1, 1]
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(10_000)))
    with pytest.raises(ReadError) as raised:
        read_volume(tmp_path / "bomb.nii.gz")
    assert raised.value.code == "read.length"


@pytest.mark.parametrize(("value", "code"), [(0.5, "label.noninteger"), (-1.0, "label.range"), (1e5, "label.range")])
def test_impossible_label_values_are_refused(tmp_path: Path, value: float, code: str) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(LabelError) as raised:
        read_label_map(saved(tmp_path / "a.nii.gz", array))
    assert raised.value.code == code


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), np.float64)
    array[1, 1, 1] = 300
    assert read_label_map(saved(tmp_path / "a.nii.gz", array)).array.dtype == np.uint16


@pytest.mark.parametrize(("qcode", "scode"), [(1, 1), (0, 2), (1, 0), (2, 4), (0, 0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_results_carry_the_inputs_grid_unchanged(tmp_path: Path, qcode: int, scode: int, suffix: str) -> None:
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(AFFINE, qcode)
    image.set_sform(AFFINE + (np.eye(4, k=3) * 0.25), scode)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    label = LabelMap(np.ones((6, 7, 8), np.uint8), volume.geometry, volume.record)
    write_label_map(tmp_path / f"out{suffix}", label)
    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / f"out{suffix}")
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    for key in (
        "qform_code",
        "sform_code",
        "xyzt_units",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "srow_z",
        "pixdim",
    ):
        np.testing.assert_array_equal(after.header[key], before.header[key], err_msg=key)


def test_the_same_label_map_gives_the_same_bytes_and_is_not_overwritten(tmp_path: Path) -> None:
    label = LabelMap(np.ones((3, 3, 3), np.uint8), Geometry(AFFINE, (3, 3, 3)))
    write_label_map(tmp_path / "a.nii.gz", label)
    write_label_map(tmp_path / "b.nii.gz", label)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    with pytest.raises(WriteError) as raised:
        write_label_map(tmp_path / "a.nii.gz", label)
    assert raised.value.code == "write.exists"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    singular = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = nib.Nifti1Image(noise(), AFFINE)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = singular[:3]
    content = image.header.binaryblock + bytes(4) + noise().tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(GeometryError) as raised:
        read_volume(tmp_path / "a.nii")
    assert raised.value.code == "geometry.affine"


def test_monai_reads_through_the_same_door(tmp_path: Path) -> None:
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

    from medseg.data.reader import CheckedReader

    path = saved(tmp_path / "a.nii.gz", noise())
    ours = {"image": str(path)}
    pipeline = [EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None)]
    checked = Compose([LoadImaged("image", reader=CheckedReader()), *pipeline])(dict(ours))["image"]
    plain = Compose([LoadImaged("image", reader="NibabelReader"), *pipeline])(dict(ours))["image"]
    np.testing.assert_array_equal(checked.numpy(), plain.numpy())
    np.testing.assert_allclose(checked.affine.numpy(), plain.affine.numpy())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="applying transform") as raised:
        Compose([LoadImaged("image", reader=CheckedReader())])(dict(ours))
    assert isinstance(raised.value.__cause__, ReadError)


def codes_of_notes(path: Path) -> list[str]:
    return [note.code for note in read_volume(path).notes]


def test_a_qform_that_lies_elsewhere_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    for shift_mm, wanted in ((0.9, []), (1.1, ["geometry.qform"])):  # the smallest spacing is 2 mm
        image.set_sform(AFFINE, 1)
        image.set_qform(AFFINE + np.eye(4, k=3) * shift_mm, 1)
        nib.save(image, tmp_path / "a.nii")
        assert codes_of_notes(tmp_path / "a.nii") == wanted
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").geometry.affine_ras, AFFINE)
    assert "1.1 mm" in read_volume(tmp_path / "a.nii").notes[0].message
    for code in ("qform_code", "sform_code"):  # with one of them there is nothing to differ from
        image.header[code] = 0
        nib.save(image, tmp_path / "a.nii")
        image.header[code] = 1
        assert codes_of_notes(tmp_path / "a.nii") == []
    assert codes_of_notes(altered(tmp_path / "b.nii", qform_code=1, quatern_b=2)) == ["geometry.qform"]


def test_a_file_that_knows_no_left_and_right_is_told(tmp_path: Path) -> None:
    path = altered(tmp_path / "a.nii", sform_code=0, qform_code=0)
    assert codes_of_notes(path) == ["geometry.unoriented"]
    np.testing.assert_allclose(read_volume(path).geometry.affine_ras, nib.load(path).affine)


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [0, 2, 2.5, 3, 7, 0, 0, 0], "qform_code": 1, "sform_code": 0},
        {"sform_code": 0, "qform_code": 0},
        {"xyzt_units": 3, "srow_x": [2000, 0, 0, 1], "srow_y": [0, 2500, 0, 1], "srow_z": [0, 0, 3000, 1]},
        {"xyzt_units": 8 + 2, "pixdim": [1, -2, 2.5, 3, 7, 1, 1, 1]},
    ],
)
def test_odd_headers_are_written_back_as_they_were(tmp_path: Path, fields: dict[str, object]) -> None:
    volume = read_volume(altered(tmp_path / "in.nii", **fields))
    write_label_map(tmp_path / "out.nii", LabelMap(np.ones((6, 7, 8), np.uint8), volume.geometry, volume.record))
    before, after = (
        nib.Nifti1Header((tmp_path / name).read_bytes()[:348], check=False) for name in ("in.nii", "out.nii")
    )
    for key in GRID_FIELDS:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


def test_a_qfac_of_zero_counts_as_one(tmp_path: Path) -> None:
    fields = {"qform_code": 1, "sform_code": 0, "quatern_b": 0.5, "quatern_c": 0, "quatern_d": 0, "qoffset_x": 7}
    affines = [
        read_volume(altered(tmp_path / "a.nii", pixdim=[qfac, 2, 2.5, 3, 0, 0, 0, 0], **fields)).geometry.affine_ras
        for qfac in (0, 1)
    ]
    np.testing.assert_array_equal(*affines)


def test_stored_numbers_beyond_float32_are_kept_as_integers(tmp_path: Path) -> None:
    array = np.full((3, 4, 5), 2**40 + 1, np.int64)
    nib.save(nib.Nifti1Image(array, AFFINE, dtype=np.int64), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[0], array)
