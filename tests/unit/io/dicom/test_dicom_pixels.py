from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPIPHTJ2KReferenced,
    RLELossless,
)

from medseg.core.errors import CaseError
from medseg.io import dicom_codec
from medseg.io.dicom_series import read_dicom_series

AFFINE = np.diag([-2.0, -1.5, 2.5, 1.0])
HU = np.random.default_rng(0).integers(-1024, 1024, (11, 9, 4)).astype(np.int16)
SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless,
]  # fmt: skip
COMPRESSED = [syntax for syntax in SYNTAXES if syntax.is_encapsulated]


def refused(folder: Path, code: str) -> str:
    with pytest.raises(CaseError) as raised:
        read_dicom_series(folder)
    assert raised.value.code == code
    return raised.value.message


def stored(dtype: Any, bits: int) -> tuple[np.ndarray, Any]:
    """HU as they are stored, and what to change in the header for that."""

    def change(_: int, dataset: Dataset) -> None:
        dataset.RescaleIntercept = 0 if np.dtype(dtype).kind == "i" else -1024
        dataset.BitsStored, dataset.HighBit = bits, bits - 1

    return (HU if np.dtype(dtype).kind == "i" else HU + 1024).astype(dtype), change


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(("dtype", "bits"), [(np.int16, 16), (np.uint16, 16), (np.int16, 12), (np.uint16, 12)])
def test_every_syntax_gives_the_same_hu(tmp_path: Path, write_series: Any, syntax: Any, dtype: Any, bits: int) -> None:
    values, change = stored(dtype, bits)
    write_series(tmp_path / "a", values, AFFINE, syntax=syntax, change=change)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in (tmp_path / "a").iterdir()} == {syntax}
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    assert volume.array.dtype == np.int16
    assert volume.notes == ()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda s: s.keyword)
def test_single_bytes(tmp_path: Path, write_series: Any, syntax: Any) -> None:
    values = (HU + 1024).astype(np.uint8)
    write_series(tmp_path / "a", values, AFFINE, syntax=syntax)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "a").array[0], values.astype(np.int16) - 1024)


def test_what_int16_does_not_hold_becomes_int32(tmp_path: Path, write_series: Any) -> None:
    values = (HU + 1024).astype(np.uint16)
    values[3, 4, 2] = 65535
    write_series(tmp_path / "a", values, AFFINE)
    array = read_dicom_series(tmp_path / "a").array[0]
    assert array.dtype == np.int32
    np.testing.assert_array_equal(array, values.astype(np.int32) - 1024)


@pytest.mark.parametrize(("dtype", "bits"), [(np.int16, 12), (np.uint16, 12), (np.uint16, 15)])
@pytest.mark.parametrize("garbage", [0x8000, 0xF000])
def test_bits_that_are_not_meant_are_ignored(
    tmp_path: Path, write_series: Any, dtype: Any, bits: int, garbage: int
) -> None:
    values, change = stored(dtype, bits)
    unmeant = garbage & ~(2**bits - 1)
    overlaid = values.view(np.uint16).copy()
    overlaid[::2] ^= np.uint16(unmeant)
    write_series(tmp_path / "a", overlaid.view(dtype), AFFINE, change=change)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    assert [note.code for note in volume.notes] == ["dicom.unused_bits"]


def test_the_bits_that_are_meant_may_be_the_upper_ones(tmp_path: Path, write_series: Any) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 15

    write_series(tmp_path / "a", (HU + 1024).astype(np.uint16) << 4, AFFINE, change=change)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "a").array[0], HU)


@pytest.mark.parametrize(
    ("dtype", "bits", "value", "limit", "written"),
    [
        (np.int16, 16, -2000, None, "SS"),
        (np.int16, 16, 63536, None, "US"),  # -2000, written unsigned
        (np.uint16, 16, 63536, None, "US"),
        (np.uint16, 12, 63536, None, "US"),  # does not fit 12 bits, and 2096 is a real value
        (np.int16, 12, -2000, None, "SS"),
        (np.int16, 16, -3000, -2000, "SS"),
        (np.int16, 16, -2000, -3000, "SS"),
        (np.uint16, 16, 0, None, "US"),
    ],
)
def test_padding_becomes_air(
    tmp_path: Path, write_series: Any, dtype: Any, bits: int, value: int, limit: int | None, written: str
) -> None:
    def pad(k: int, dataset: Dataset) -> None:
        change(k, dataset)
        dataset.add_new("PixelPaddingValue", written, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", written, limit)

    values, change = stored(dtype, bits)
    expected = HU.copy()
    values[5, 5, 1] = 2096 if dtype == np.uint16 else values[5, 5, 1]
    expected[5, 5, 1] = 2096 - 1024 if dtype == np.uint16 else expected[5, 5, 1]
    corner = values.view(np.uint16)
    corner[:3, :3], expected[:3, :3] = value & 0xFFFF, -1024
    if limit is not None:
        corner[0, 0], corner[1, 1] = limit & 0xFFFF, -2500 & 0xFFFF
    expected[(values == 0) & (value == 0)] = -1024
    write_series(tmp_path / "a", values, AFFINE, change=pad)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], expected)
    (note,) = (note for note in volume.notes if note.code == "dicom.padding")
    assert "36 voxels" in note.message or value == 0


def test_padding_of_a_pet_is_a_number(tmp_path: Path, write_series: Any) -> None:
    def pad(_: int, dataset: Dataset) -> None:
        dataset.Modality, dataset.RescaleIntercept, dataset.RescaleSlope = "PT", 0, 0.5
        dataset.add_new("PixelPaddingValue", "US", 7)

    values = np.full((5, 5, 3), 7, np.uint16)
    write_series(tmp_path / "a", values, AFFINE, change=pad)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], np.float32(3.5))
    assert volume.notes == ()


def test_inverted_display_changes_no_number(tmp_path: Path, write_series: Any) -> None:
    def invert(_: int, dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.LossyImageCompression = "01"

    write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, change=invert)
    volume = read_dicom_series(tmp_path / "a")
    np.testing.assert_array_equal(volume.array[0], HU)
    assert [note.code for note in volume.notes] == ["dicom.lossy", "dicom.monochrome1"]


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.keyword)
def test_a_missing_decoder_names_the_extra(
    tmp_path: Path, write_series: Any, syntax: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, syntax=syntax)
    monkeypatch.setattr(dicom_codec, "PLUGINS", ())
    assert "pip install 'medseg[dicom-codecs]'" in refused(tmp_path / "a", "dicom.codec")


@pytest.mark.parametrize("uid", [MPEG2MPML, JPIPHTJ2KReferenced])
def test_an_unknown_syntax_is_named(tmp_path: Path, write_series: Any, uid: str) -> None:
    for path in write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, syntax=RLELossless):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = uid
        dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert uid in refused(tmp_path / "a", "dicom.transfer_syntax")


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_every_cut_file_is_refused(tmp_path: Path, write_series: Any, syntax: Any) -> None:
    paths = write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, syntax=syntax)
    whole = paths[-1].read_bytes()
    tail = 8 if syntax.is_encapsulated else 1  # a delimiter ends compressed voxels
    for length in {*range(0, len(whole) - tail, 37), len(whole) - tail - 1}:
        paths[-1].write_bytes(whole[:length])
        with pytest.raises(CaseError) as raised:
            read_dicom_series(tmp_path / "a")
        assert raised.value.code in {"dicom.damaged", "dicom.truncated"}, length
        assert paths[-1].name in raised.value.message


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.keyword)
def test_another_size_in_the_compressed_image_is_refused(tmp_path: Path, write_series: Any, syntax: Any) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.RescaleIntercept = 0

    for path in write_series(tmp_path / "a", HU, AFFINE, syntax=syntax, change=change):
        dataset = pydicom.dcmread(path)
        dataset.Rows = 60000
        dataset.save_as(path)
    assert refused(tmp_path / "a", "dicom.damaged" if syntax != RLELossless else "dicom.truncated")


def test_a_decoder_that_dies_is_one_damaged_file(tmp_path: Path, write_series: Any) -> None:
    """GDCM throws through its C code when a marker is broken, which ends the process."""
    paths = write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, syntax=JPEGLosslessSV1)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole.replace(b"\xff\xc4", b"\x5e\xc4"))
    assert paths[1].name in refused(tmp_path / "a", "dicom.damaged")
    paths[1].write_bytes(whole)
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "a").array[0], HU)


def test_a_deflated_bomb_is_refused(tmp_path: Path, write_series: Any) -> None:
    import resource

    paths = write_series(tmp_path / "a", (HU + 1024).astype(np.uint16), AFFINE, syntax=DeflatedExplicitVRLittleEndian)
    whole = paths[1].read_bytes()
    dataset = pydicom.dcmread(paths[1])
    start = 144 + dataset.file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS))
    bomb += b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    paths[1].write_bytes(whole[:start] + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a", "dicom.damaged")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
