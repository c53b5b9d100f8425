from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medseg.core.errors import CaseError
from medseg.io.volume import read_volume

VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)
PLAIN = VOXELS.tobytes(order="F")

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "2 3 4",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "1 2 3",
    "DimSize": "2 3 4",
    "ElementType": "MET_SHORT",
}


def nrrd(voxels: bytes = PLAIN, **changes: str | None) -> bytes:
    fields = NRRD | {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    return "\n".join(["NRRD0004", "# a comment", *lines, "a key:=a: value", "", ""]).encode() + voxels


def meta(voxels: bytes = PLAIN, data: str = "LOCAL", **changes: str | None) -> bytes:
    fields = {**META, **changes, "ElementDataFile": data}
    return "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None).encode() + voxels


def code_of(path: Path) -> str:
    with pytest.raises(CaseError) as raised:
        read_volume(path)
    assert path.name in raised.value.message or path.stem in raised.value.message
    assert str(path.parent) not in raised.value.message
    return raised.value.code


def check(path: Path) -> None:
    """As written above, and as SimpleITK reads it."""
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    np.testing.assert_allclose(volume.geometry.affine_ras[:3], [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30]])
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), VOXELS)
    assert image.GetOrigin() == (10.0, 20.0, 30.0)


@pytest.mark.parametrize(
    "content",
    [
        nrrd(),
        nrrd(b"").replace(b"\n", b"\r\n") + PLAIN,
        nrrd(gzip.compress(PLAIN), encoding="gzip"),
        nrrd(gzip.compress(PLAIN), encoding="gz", space="LPS"),
        nrrd(VOXELS.astype(">i2").tobytes(order="F"), endian="big"),
        nrrd(bytes(7) + PLAIN, byte_skip="7"),
        nrrd(bytes(7) + PLAIN, byte_skip="-1"),
        nrrd(PLAIN + bytes(100)),
        nrrd().replace(b"a key:=a: value", b"a:b:=c"),
        nrrd(type="signed short int", kinds="domain domain domain", space_units='"mm" "mm" "mm"'),
        nrrd(dimension="4", sizes="1 2 3 4", space_directions="none (1,0,0) (0,2,0) (0,0,3)"),
    ],
)
def test_nrrd_of_all_sorts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nrrd").write_bytes(content)
    if b"1 2 3 4" in content:  # SimpleITK gives that another shape
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").array[0], VOXELS)
    else:
        check(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (nrrd(PLAIN[:-1]), "read.truncated"),
        (nrrd(PLAIN + b"\1"), "read.length"),
        (nrrd(PLAIN + bytes(5000)), "read.length"),
        (nrrd(gzip.compress(PLAIN)[:-1], encoding="gzip"), "read.truncated"),
        (nrrd(gzip.compress(PLAIN)[:-8] + bytes(8), encoding="gzip"), "read.crc"),
        (nrrd(PLAIN, encoding="gzip"), "read.crc"),
        (nrrd(encoding="bzip2"), "read.format"),
        (nrrd(encoding="ascii"), "read.format"),
        (nrrd(line_skip="2"), "read.format"),
        (nrrd(gzip.compress(PLAIN), encoding="gzip", byte_skip="2"), "read.header"),
        (nrrd(byte_skip="-2"), "read.header"),
        (nrrd(endian=None), "read.header"),
        (nrrd(type="block"), "read.type"),
        (nrrd(type=None), "read.header"),
        (nrrd(sizes="2 3"), "read.header"),
        (nrrd(sizes="2 3 x"), "read.header"),
        (nrrd(sizes="2 0 4"), "read.dimensions"),
        (nrrd(sizes="2 -3 4"), "read.dimensions"),
        (nrrd(sizes="99999 99999 99999"), "read.dimensions"),
        (nrrd(dimension="99999999"), "read.header"),
        (nrrd(dimension="4", sizes="2 2 3 4", space_directions="none (1,0,0) (0,2,0) (0,0,3)"), "read.dimensions"),
        (nrrd(space_directions="none (1,0,0) (0,2,0)"), "read.dimensions"),
        (nrrd(space=None), "geometry.space"),
        (nrrd(space="scanner-xyz"), "geometry.space"),
        (nrrd(space=None, space_dimension="3"), "geometry.space"),
        (nrrd(space_origin=None), "geometry.space"),
        (nrrd(space_directions=None, spacings="1 2 3"), "geometry.space"),
        (nrrd(space_directions="(nan,0,0) (0,2,0) (0,0,3)"), "geometry.affine"),
        (nrrd(space_directions="(1,0,0) (1,0,0) (0,0,3)"), "geometry.affine"),
        (nrrd(space_directions="(1,0,0) (0,99,0) (0,0,3)"), "geometry.spacing"),
        (nrrd(space_directions="(1,0,0) (0,2) (0,0,3)"), "read.header"),
        (nrrd(space_directions="(1,0,0) junk (0,2,0) (0,0,3)"), "read.header"),
        (nrrd(space_origin="10 20 30"), "read.header"),
        (nrrd(space_units='"m" "m" "m"'), "geometry.units"),
        (nrrd().replace(b"endian", b"emdian"), "read.header"),
        (nrrd().replace(b"endian: little", b"endian: little\nendian: big"), "read.header"),
        (nrrd().replace(b"NRRD0004", b"NRRD0009"), "read.format"),
        (nrrd()[: nrrd().index(b"a key")], "read.header"),
        (b"NRRD0004\n" + b"#" * 2**21, "read.header"),
    ],
)
def test_nrrd_that_cannot_be_read_truly(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "a.nrrd").write_bytes(content)
    assert code_of(tmp_path / "a.nrrd") == code


@pytest.mark.parametrize(
    "content",
    [
        meta(),
        meta(zlib.compress(PLAIN), CompressedData="True", CompressedDataSize=str(len(zlib.compress(PLAIN)))),
        meta(VOXELS.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB="True"),
        meta(VOXELS.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB=None, ElementByteOrderMSB="True"),
        meta(TransformMatrix=None, Rotation="1 0 0 0 1 0 0 0 1", Offset=None, Origin="10 20 30"),
        meta(AnatomicalOrientation="RAI", Modality="MET_MOD_CT", ElementNumberOfChannels="1"),
        meta(PLAIN + bytes(100)),
    ],
)
def test_metaimage_of_all_sorts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    check(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (meta(PLAIN[:-1]), "read.truncated"),
        (meta(PLAIN + b"\1"), "read.length"),
        (meta(zlib.compress(PLAIN)[:-1], CompressedData="True"), "read.truncated"),
        (meta(zlib.compress(PLAIN)[:-4] + bytes(4), CompressedData="True"), "read.crc"),
        (meta(zlib.compress(PLAIN) + b"more", CompressedData="True"), "read.crc"),
        (meta(CompressedData="True"), "read.crc"),
        (meta(zlib.compress(PLAIN), CompressedData="True", HeaderSize="4"), "read.header"),
        (meta(CompressedData="Maybe"), "read.header"),
        (meta(BinaryData="False"), "read.format"),
        (meta(ElementToIntensityFunctionSlope="2"), "read.format"),
        (meta(BinaryDataByteOrderMSB=None), "read.header"),
        (meta(ElementType="MET_LONG"), "read.type"),
        (meta(ElementType=None), "read.header"),
        (meta(ObjectType="Tube"), "read.format"),
        (meta(ElementNumberOfChannels="3"), "read.dimensions"),
        (meta(NDims="2", DimSize="6 4"), "read.dimensions"),
        (meta(NDims="4", DimSize="2 3 2 2"), "read.dimensions"),
        (meta(DimSize="2 3 0"), "read.dimensions"),
        (meta(DimSize="99999 99999 99999"), "read.dimensions"),
        (meta(NDims="-3"), "read.header"),
        (meta(DimSize="2 3"), "read.header"),
        (meta(TransformMatrix=None), "geometry.space"),
        (meta(Offset=None), "geometry.space"),
        (meta(ElementSpacing=None), "geometry.space"),
        (meta(TransformMatrix="nan 0 0 0 1 0 0 0 1"), "geometry.affine"),
        (meta(TransformMatrix="2 0 0 0 1 0 0 0 1"), "geometry.affine"),
        (meta(TransformMatrix="1 0 0 1 0 0 0 0 1"), "geometry.affine"),
        (meta(TransformMatrix="1 0 0"), "read.header"),
        (meta(ElementSpacing="1 -2 3"), "geometry.affine"),
        (meta(ElementSpacing="1 2 300"), "geometry.spacing"),
        (meta(Offset="10 inf 30"), "geometry.affine"),
        (meta() + meta(), "read.length"),
        (meta(data="LIST"), "read.missing"),
        (b"just a text\n" * 10, "read.format"),
        (meta().replace(b"NDims", b"Offset", 1), "read.header"),
    ],
)
def test_metaimage_that_cannot_be_read_truly(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    assert code_of(tmp_path / "a.mha") == code


def test_data_beside_the_header(tmp_path: Path) -> None:
    (tmp_path / "voxels 影.raw").write_bytes(PLAIN)
    (tmp_path / "a.nhdr").write_bytes(nrrd(b"", data_file="voxels 影.raw"))
    (tmp_path / "a.mhd").write_bytes(meta(b"", data="voxels 影.raw"))
    (tmp_path / "skipping.raw").write_bytes(bytes(9) + PLAIN)
    (tmp_path / "b.mhd").write_bytes(meta(b"", data="skipping.raw", HeaderSize="9"))
    (tmp_path / "c.mhd").write_bytes(meta(b"", data="skipping.raw", HeaderSize="-1"))
    (tmp_path / "d.nhdr").write_bytes(nrrd(b"", data_file="./voxels 影.raw"))
    for name in ("a.nhdr", "a.mhd", "b.mhd", "c.mhd", "d.nhdr"):
        check(tmp_path / name)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.mhd").symlink_to(tmp_path / "a.mhd")
    np.testing.assert_array_equal(read_volume(tmp_path / "links" / "a.mhd").array[0], VOXELS)
    (tmp_path / "voxels 影.raw").write_bytes(PLAIN[:-2])
    for name in ("a.nhdr", "a.mhd"):
        with pytest.raises(CaseError) as raised:
            read_volume(tmp_path / name)
        assert raised.value.code == "read.truncated"
    (tmp_path / "voxels 影.raw").unlink()
    assert code_of(tmp_path / "a.nhdr") == "read.missing"


@pytest.mark.parametrize(
    "name",
    ["../x.raw", "/etc/passwd", "sub/x.raw", "..", "C:\\x.raw", "\\\\host\\x.raw", "a\0b", "x%03d.raw 1 3 1", "LIST"],
)
def test_data_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    for path in (tmp_path / "x.raw", tmp_path / "here" / "sub" / "x.raw"):
        path.write_bytes(PLAIN)
    (tmp_path / "here" / "a.nhdr").write_bytes(nrrd(b"", data_file=name))
    (tmp_path / "here" / "a.mhd").write_bytes(meta(b"", data=name))
    for suffix in ("nhdr", "mhd"):
        assert code_of(tmp_path / "here" / f"a.{suffix}") in {"read.outside", "read.missing"}


def test_a_pipe_in_place_of_a_data_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.raw")
    (tmp_path / "a.mhd").write_bytes(meta(b"", data="x.raw"))
    assert code_of(tmp_path / "a.mhd") == "read.missing"


def test_values_of_several_channels(tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.int16).reshape(4, 3, 2, 2)  # k, j, i, channel
    image = SimpleITK.GetImageFromArray(array, isVector=True)
    for name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        volume = read_volume(tmp_path / name, num_channels=2)
        np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))
        assert code_of(tmp_path / name) == "read.dimensions"
    frames = SimpleITK.GetImageFromArray(array.transpose(3, 0, 1, 2).copy(), isVector=False)  # frame, k, j, i
    SimpleITK.WriteImage(frames, str(tmp_path / "b.mha"))
    volume = read_volume(tmp_path / "b.mha", num_channels=2)
    np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))
    one = SimpleITK.GetImageFromArray(array.transpose(3, 0, 1, 2)[:1].copy(), isVector=False)
    SimpleITK.WriteImage(one, str(tmp_path / "c.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "c.mha").array[0], array[..., 0].transpose(2, 1, 0))


def test_no_patient_stands_in_a_message(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(nrrd().replace(b"a key:=a: value", b"PatientName=Doe^Jane"))
    (tmp_path / "a.mha").write_bytes(meta(PatientName="Doe^Jane").replace(b"Name = Doe", b"Name: Doe"))
    for name in ("a.nrrd", "a.mha"):
        with pytest.raises(CaseError) as raised:
            read_volume(tmp_path / name)
        assert raised.value.code == "read.header"
        assert "Doe" not in raised.value.message
