"""Damaged volume files: each is refused in one sentence or read as it was, quickly and within its own size.

The files are read by a child process without the shape checks of the tests, so that a crash, a hang and the memory are
those of the program.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

NUM_FLIPS, NUM_CUTS = 600, 100
NUM_HEADERS, NUM_HEADERS_SLOW = 500, 2000
NUM_TEXTS, NUM_TEXTS_SLOW = 300, 2000
MAX_SECONDS, BOMB_SECONDS = 2.0, 0.2
MAX_SHARE, MAX_OVERHEAD_BYTES = 1.5, 50e6

CHILD = """
import hashlib, json, sys, time
from pathlib import Path
from medseg.core.errors import CaseError
from medseg.io.volume import read_label_map, read_volume

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

for line in sys.stdin:
    kind, _, name = line.rstrip("\\n").partition(" ")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, proc(5)
    baseline, start = memory("VmRSS"), time.perf_counter()
    try:
        volume = (read_label_map if kind == "label" else read_volume)(Path(name))
        seconds, peak = time.perf_counter() - start, memory("VmHWM")
        voxels = hashlib.sha256(volume.array.T.data).hexdigest()  # the file's own order: no copy
        answer = ["read", voxels, volume.geometry.affine_ras.tolist(), list(volume.geometry.shape_ijk)]
    except CaseError as error:
        seconds, peak = time.perf_counter() - start, memory("VmHWM")
        answer = ["refused", error.code, error.message]
    volume = None
    print(json.dumps({"seconds": seconds, "peak_bytes": peak - baseline, "answer": answer}), flush=True)
"""


class Reader:
    """Reads files in a child process; ``read`` fails where that crashes or takes too long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peak_bytes = 0

    def read(self, path: Path, *, kind: str = "volume", max_seconds: float = MAX_SECONDS) -> list[Any]:
        """Whether the file was read, with voxels and affine, or refused, with code and message."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{kind} {path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{path} crashed the reader with {self.process.wait()}"
        result = json.loads(line)
        answer: list[Any] = result["answer"]
        assert result["seconds"] < max_seconds, f"{path} took {result['seconds']:.2f} s: {answer[:2]}"
        self.peak_bytes = result["peak_bytes"]
        if answer[0] == "refused":
            assert path.name in answer[2]
            assert str(self.folder) not in answer[2]
        return answer

    def read_bytes(self, name: str, content: bytes, **how: Any) -> list[Any]:
        path = self.folder / name
        path.write_bytes(content)
        return self.read(path, **how)

    def assert_memory(self, num_bytes: float) -> None:
        assert self.peak_bytes <= MAX_SHARE * num_bytes + MAX_OVERHEAD_BYTES


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    child = Reader(tmp_path_factory.mktemp("damage"))
    yield child
    assert child.process.stdin and child.process.stdout
    child.process.stdin.close()
    child.process.stdout.close()
    assert child.process.wait() == 0, "the reader ends by itself"


@pytest.fixture(scope="module")
def scan(sample: Path) -> nib.Nifti1Image:
    """The middle of a real scan."""
    image = nib.load(sorted((sample / "images").glob("*.nii.gz"))[0])
    array = np.asarray(image.dataobj)[20:70, 10:50, 30:70].astype(np.int16)
    return nib.Nifti1Image(array, image.affine)


BOTH = pytest.mark.parametrize("share", ["some", pytest.param("all", marks=pytest.mark.slow)])


@pytest.mark.parametrize("region", ["header", "voxels"])
def test_no_flip_of_a_packed_nifti_goes_unnoticed(reader: Reader, scan: nib.Nifti1Image, region: str) -> None:
    content = gzip.compress(scan.to_bytes())
    # The first 348 bytes are packed into no more than so many.
    places = (0, 348) if region == "header" else (348, len(content))
    whole = reader.read_bytes("a.nii.gz", content)
    assert whole[0] == "read"
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(NUM_FLIPS):
        flipped = bytearray(content)
        flipped[int(rng.integers(*places))] ^= 1 << int(rng.integers(8))
        answer = reader.read_bytes("a.nii.gz", bytes(flipped))
        assert answer[0] == "refused" or answer == whole
        found[answer[1] if answer[0] == "refused" else "same"] += 1
    assert found["read.crc"] > NUM_FLIPS // 2


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_every_cut_is_refused(reader: Reader, scan: nib.Nifti1Image, name: str) -> None:
    content = as_file(scan, reader.folder / name)
    rng = np.random.default_rng(1)
    for end in [*rng.integers(0, len(content), NUM_CUTS - 2), len(content) - 1, len(content) - 8]:
        answer = reader.read_bytes(name, content[: int(end)])
        assert answer[0] == "refused"
        assert answer[1] in {"read.empty", "read.truncated", "read.format", "read.header"}


def as_file(scan: nib.Nifti1Image, path: Path) -> bytes:
    """The scan in the format of a name, written by nibabel or SimpleITK."""
    if ".nii" in path.name:
        return gzip.compress(scan.to_bytes()) if path.name.endswith(".gz") else scan.to_bytes()
    image = SimpleITK.GetImageFromArray(np.asarray(scan.dataobj).transpose(2, 1, 0))
    image.SetSpacing([float(size) for size in scan.header.get_zooms()])
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path.read_bytes()


ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 255, 256, 32767, -32768, 65535, 2**31 - 1, 2**40)
ODD_FLOATS = (0.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), float("-inf"), 0.01, 25.0, 351.0, 1e9)


def damaged_header(image: Any, rng: np.random.Generator) -> bytes:
    """One to three fields of the header overwritten: by odd values, random bytes, or a flipped bit."""
    header = image.header
    content = bytearray(image.to_bytes())
    fields = header.template_dtype.fields
    for _ in range(rng.integers(1, 4)):
        dtype, start, *_ = fields[str(rng.choice(list(fields)))]
        dtype = dtype.subdtype[0] if dtype.subdtype else dtype
        dtype = dtype.newbyteorder(header.endianness)
        start += dtype.itemsize * int(rng.integers(max(1, fields_length(fields, start, dtype))))
        how = rng.integers(3)
        if how == 0 and dtype.kind in "iuf":
            odd = rng.choice(ODD_FLOATS if dtype.kind == "f" else ODD_NUMBERS)
            with np.errstate(all="ignore"):
                value = np.array(odd).astype(dtype).tobytes()
            content[start : start + dtype.itemsize] = value
        elif how == 1:
            content[start] ^= 1 << int(rng.integers(8))
        else:
            content[start : start + dtype.itemsize] = rng.bytes(dtype.itemsize)
    return bytes(content)


def fields_length(fields: Any, start: int, dtype: np.dtype[Any]) -> int:
    return next(field[0].itemsize // dtype.itemsize for field in fields.values() if field[1] == start)


@BOTH
def test_no_header_of_nifti_leads_astray(reader: Reader, scan: nib.Nifti1Image, share: str) -> None:
    images = [kind(np.asarray(scan.dataobj), scan.affine) for kind in (nib.Nifti1Image, nib.Nifti2Image)]
    images.append(nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine, scan.header.as_byteswapped()))
    images.append(nib.Nifti1Image(scan.get_fdata(dtype=np.float32), scan.affine))
    rng = np.random.default_rng(2)
    found = Counter()
    for number in range(NUM_HEADERS_SLOW if share == "all" else NUM_HEADERS):
        content = damaged_header(images[number % len(images)], rng)
        is_packed = number % 3 > 0
        name = "a.nii.gz" if is_packed else "a.nii"
        kind = "label" if number % 7 == 0 else "volume"
        answer = reader.read_bytes(name, gzip.compress(content, 1) if is_packed else content, kind=kind)
        found[answer[1] if answer[0] == "refused" else "read"] += 1
        if answer[0] == "read":
            assert_plausible(answer, len(content))
        reader.assert_memory(len(content))
    assert {"read", "read.dimensions", "read.length", "read.header", "read.format", "geometry.spacing"} <= set(found)


def assert_plausible(answer: list[Any], num_bytes: int) -> None:
    affine, shape = np.array(answer[2]), answer[3]
    assert np.isfinite(affine).all()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    assert ((spacing >= 0.05) & (spacing <= 20)).all()
    assert abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-4
    assert 0 < np.prod(shape) <= num_bytes


def damaged_text(content: bytes, num_header_bytes: int, rng: np.random.Generator) -> bytes:
    """A text header with a number replaced, a line lost or doubled, a byte changed."""
    header, voxels = content[:num_header_bytes], content[num_header_bytes:]
    lines = header.split(b"\n")
    number = int(rng.integers(len(lines)))
    how = rng.integers(4)
    if how == 0:
        words = lines[number].split(b" ")
        words[int(rng.integers(len(words)))] = str(rng.choice([*ODD_NUMBERS, *ODD_FLOATS, "x", "(", ""])).encode()
        lines[number] = b" ".join(words)
    elif how == 1:
        del lines[number]
    elif how == 2:
        lines.insert(number, lines[number])
    else:
        line = bytearray(lines[number] or b"x")
        line[int(rng.integers(len(line)))] = int(rng.integers(256))
        lines[number] = bytes(line)
    return b"\n".join(lines) + voxels


@BOTH
@pytest.mark.parametrize(("name", "end"), [("a.nrrd", b"\n\n"), ("a.mha", b"LOCAL\n")])
def test_no_header_of_text_leads_astray(
    reader: Reader, scan: nib.Nifti1Image, name: str, end: bytes, share: str
) -> None:
    content = as_file(scan, reader.folder / name)
    num_header_bytes = content.index(end) + len(end)
    rng = np.random.default_rng(3)
    found = Counter()
    num_bytes = np.asarray(scan.dataobj).nbytes + num_header_bytes
    for _ in range(NUM_TEXTS_SLOW if share == "all" else NUM_TEXTS):
        answer = reader.read_bytes(name, damaged_text(content, num_header_bytes, rng))
        found[answer[1] if answer[0] == "refused" else "read"] += 1
        if answer[0] == "read":
            assert_plausible(answer, num_bytes)
        reader.assert_memory(num_bytes)
    assert {"read", "read.header", "read.format"} <= set(found)
    assert len(found) > 5


@pytest.mark.parametrize(("name", "end"), [("a.nrrd", b"\n\n"), ("a.mha", b"LOCAL\n")])
def test_no_flip_of_packed_voxels_goes_unnoticed(reader: Reader, scan: nib.Nifti1Image, name: str, end: bytes) -> None:
    content = as_file(scan, reader.folder / name)
    start = content.index(end) + len(end)
    whole = reader.read_bytes(name, content)
    assert whole[0] == "read"
    rng = np.random.default_rng(4)
    for _ in range(NUM_FLIPS // 2):
        flipped = bytearray(content)
        flipped[int(rng.integers(start, len(content)))] ^= 1 << int(rng.integers(8))
        answer = reader.read_bytes(name, bytes(flipped))
        assert answer[0] == "refused" or answer == whole


def header_of(shape: tuple[int, ...], stored: str, slope: float = 1.0) -> bytes:
    header = nib.Nifti1Header(endianness=">" if stored[0] == ">" else "<")
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(stored))
    header.set_sform(np.eye(4), 1)
    header["scl_slope"], header["vox_offset"], header["magic"] = slope, 352, b"n+1"
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("stored", "kind", "slope"),
    [("<i2", "volume", 1.0), (">i2", "volume", 1.0), ("<i2", "volume", 0.5), ("<f4", "volume", 1.0),
     ("<f8", "label", 1.0), ("<i8", "label", 1.0), ("|u1", "label", 1.0)],
)  # fmt: skip
def test_a_large_file_is_held_once(reader: Reader, name: str, stored: str, kind: str, slope: float) -> None:
    shape = (256, 256, 200)
    voxels = np.zeros(shape, stored)
    voxels[::2, ::3] = 7
    content = header_of(shape, stored, slope) + voxels.tobytes()
    packed = gzip.compress(content, 1) if name.endswith("gz") else content
    assert reader.read_bytes(name, packed, kind=kind, max_seconds=10.0)[0] == "read"
    reader.assert_memory(len(content))


def zeros(num_bytes: int, start: bytes = b"", wbits: int = 31) -> bytes:
    """A start and then zeros, packed as tightly as deflate can; the end of the stream, far away, is missing."""
    head = zlib.compressobj(9, wbits=wbits)
    block = zlib.compressobj(9, wbits=-15)  # a block by itself, which can be repeated
    packed = block.compress(bytes(2**22)) + block.flush(zlib.Z_FULL_FLUSH)
    return head.compress(start) + head.flush(zlib.Z_FULL_FLUSH) + packed * (num_bytes // 2**22 + 1)


SMALL = header_of((10, 10, 10), "<i2")
BOMBS: dict[str, Callable[[], bytes]] = {
    "voxels that are there": lambda: zeros(1290**3 * 2, header_of((1290, 1290, 1290), "<i2")),
    "voxels that are not there": lambda: gzip.compress(header_of((1500, 1500, 900), "<i2") + bytes(10_000)),
    "bytes behind the voxels": lambda: zeros(2**31, SMALL),
    "another member": lambda: gzip.compress(SMALL + bytes(2000)) + zeros(2**31),
    "a million empty members": lambda: gzip.compress(b"") * 10**6 + gzip.compress(SMALL + bytes(2000)),
    "a gap before the voxels": lambda: zeros(
        2**30, SMALL.replace(np.float32(352).tobytes(), np.float32(2**30).tobytes())
    ),
    "no header": lambda: zeros(2**31),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(reader: Reader, bomb: str) -> None:
    content = BOMBS[bomb]()
    assert reader.read_bytes("bomb.nii.gz", content, max_seconds=BOMB_SECONDS)[0] == "refused"
    reader.assert_memory(len(content))


@pytest.mark.parametrize(
    ("name", "header", "wbits"),
    [
        ("bomb.nrrd", "NRRD0004\ntype: short\ndimension: 3\nsizes: {size} {size} {size}\nendian: little\nencoding: gzip\n"
         "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n", 31),
        ("bomb.mha", "ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
         "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = {size} {size} {size}\n"
         "ElementType = MET_SHORT\nElementDataFile = LOCAL\n", 15),
    ],
)  # fmt: skip
def test_bombs_of_other_formats(reader: Reader, name: str, header: str, wbits: int) -> None:
    voxels = gzip.compress(bytes(2000)) if wbits == 31 else zlib.compress(bytes(2000))
    assert reader.read_bytes(name, header.format(size=10).encode() + voxels)[0] == "read"
    for size, num_bytes in ((1290, 1290**3 * 2), (1290, 10_000), (10, 2**30)):
        content = header.format(size=size).encode() + zeros(num_bytes, wbits=wbits)
        assert reader.read_bytes(name, content, max_seconds=BOMB_SECONDS)[:2] == ["refused", "read.length"]
        reader.assert_memory(len(content))
