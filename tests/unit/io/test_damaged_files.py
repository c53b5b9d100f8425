from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import CaseError, ReadError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.volume import LabelMap
from medseg.io import nifti
from medseg.io.nifti import write_label_map
from medseg.io.unpacking import MAX_PADDING_BYTES
from medseg.io.volume import read_label_map, read_volume

VOXELS = np.arange(210).reshape(5, 6, 7).astype(np.int16)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def content(array: np.ndarray = VOXELS, kind: type = nib.Nifti1Image) -> bytes:
    return kind(array, AFFINE).to_bytes()


def code_of(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CaseError) as raised:
        read(path)
    assert path.name in raised.value.message
    assert str(path.parent) not in raised.value.message
    return raised.value.code


@pytest.mark.parametrize("cut", [1, 347, 700])
def test_a_gzip_file_of_several_members_is_one_file(tmp_path: Path, cut: int) -> None:
    whole = content()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:cut]) + gzip.compress(whole[cut:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[0], VOXELS)


def test_each_member_of_a_gzip_file_is_checked(tmp_path: Path) -> None:
    first, second = gzip.compress(content()[:500]), gzip.compress(content()[500:])
    for damaged in (first[:-8] + bytes(4) + first[-4:] + second, first + second[:-1], first + second + b"garbage"):
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        assert code_of(read_volume, tmp_path / "a.nii.gz") in {"read.crc", "read.truncated"}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("num_bytes", [20, 347, 351, 500])
def test_a_cut_file_is_truncated_whether_packed_or_not(tmp_path: Path, suffix: str, num_bytes: int) -> None:
    cut = content()[:num_bytes]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(cut) if suffix == ".nii.gz" else cut)
    assert code_of(read_volume, path) == "read.truncated"


def test_half_of_a_two_file_image_is_no_volume(tmp_path: Path) -> None:
    pair = bytearray(content())
    pair[344:348] = b"ni1\x00"
    (tmp_path / "a.nii").write_bytes(pair)
    assert code_of(read_volume, tmp_path / "a.nii") == "read.format"


def test_much_more_than_the_header_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content() + bytes(MAX_PADDING_BYTES + 1)))
    assert code_of(read_volume, tmp_path / "a.nii.gz") == "read.length"
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content() + bytes(100)))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[0], VOXELS)


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4))
    array[1, 2, 3] = 1e300
    (tmp_path / "a.nii").write_bytes(content(array))
    assert code_of(read_volume, tmp_path / "a.nii") == "read.nonfinite"


def test_zero_sized_axes_are_refused(tmp_path: Path) -> None:
    empty = bytearray(content())
    empty[42:44] = bytes(2)  # dim[1], nifti1.h
    (tmp_path / "a.nii").write_bytes(empty)
    assert code_of(read_volume, tmp_path / "a.nii") == "read.dimensions"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_no_damage_of_a_header_leads_to_anything_but_one_clear_error(tmp_path: Path, kind: type) -> None:
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    whole, path, rng = content(kind=kind), tmp_path / "a.nii", np.random.default_rng(0)
    codes = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole) - VOXELS.nbytes, size=2):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        for read in (read_volume, read_label_map):
            try:
                read(path)
            except CaseError as error:
                codes.add(error.code)
    assert {"read.format", "read.header", "read.dimensions", "read.truncated", "geometry.spacing"} <= codes


def test_labels_scaled_by_a_rounded_slope_are_whole(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((3, 3, 3), 255, np.uint8), AFFINE)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, tmp_path / "a.nii")
    assert np.asanyarray(nib.load(tmp_path / "a.nii").dataobj).max() > 1.0, "the slope is rounded"
    assert (read_label_map(tmp_path / "a.nii").array == 1).all()


def test_nifti2_and_frames_as_channels(tmp_path: Path) -> None:
    frames = np.stack([VOXELS, VOXELS + 1], axis=-1)
    for name, kind in (("a.nii", nib.Nifti1Image), ("b.nii.gz", nib.Nifti2Image)):
        nib.save(kind(frames, AFFINE), tmp_path / name)
        volume = read_volume(tmp_path / name, num_channels=2)
        np.testing.assert_array_equal(volume.array, np.moveaxis(frames, -1, 0))
        for wrong in (1, 3):
            with pytest.raises(ReadError) as raised:
                read_volume(tmp_path / name, num_channels=wrong)
            assert raised.value.code == "read.dimensions"


def test_sform_beats_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(np.diag([1.0, 1, 1, 1]), 1)
    image.set_sform(AFFINE, 2)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").geometry.affine_ras, AFFINE)
    image.set_sform(AFFINE, 0)
    nib.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii").geometry.affine_ras, nib.load(tmp_path / "b.nii").affine)


def test_a_label_map_that_comes_back_altered_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label_map = LabelMap(np.ones((3, 3, 3), np.uint8), Geometry(AFFINE, (3, 3, 3)))

    class Altering(gzip.GzipFile):
        def write(self, data: bytes) -> int:
            return super().write(data[:-1] + b"\x07" if len(data) == 9 else data)  # the planes, not the header

    monkeypatch.setattr(nifti.gzip, "GzipFile", Altering)
    with pytest.raises(WriteError) as raised:
        write_label_map(tmp_path / "a.nii.gz", label_map)
    assert raised.value.code == "write.altered"
    assert list(tmp_path.iterdir()) == []


def test_negative_labels_are_not_written(tmp_path: Path) -> None:
    label_map = LabelMap(np.full((3, 3, 3), -1, np.int16), Geometry(AFFINE, (3, 3, 3)))
    with pytest.raises(WriteError):
        write_label_map(tmp_path / "a.nii.gz", label_map)
    assert list(tmp_path.iterdir()) == []
