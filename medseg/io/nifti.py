"""NIfTI files: one checked door in, one checked door out.

What cannot be read truly is refused. Readers of this field stop before the gzip trailer and so return altered voxels
without a word; here a file is unpacked to its end, so CRC and length are checked, before a voxel of it is believed.
The header comes first: nothing is allocated for voxels that the file cannot hold.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Num
from nibabel.spatialimages import HeaderDataError

from medseg.core.errors import CaseError, GeometryError, LabelError, ReadError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.shapes import CIJK
from medseg.core.volume import GridRecord, LabelMap, Volume
from medseg.io.atomic import write_bytes_atomically

SUFFIXES = (".nii.gz", ".nii")

GZIP_MAGIC = b"\x1f\x8b"

FORMATS = {348: (nib.Nifti1Header, b"n+1\x00", 344), 540: (nib.Nifti2Header, b"n+2\x00", 4)}
"""By header size [bytes]: class, magic of the one-file form, and where the magic stands. nifti1.h, nifti2.h."""

MAX_VOXELS = 2**31
"""More voxels than any scanner makes (2048 × 1024 × 1024): a header that asks for more is damaged."""

MAX_RATIO = 1100
"""Deflate packs no tighter than 1032 to 1 (zlib's technical notes): a header that promises more lies."""

GRID_FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
"""The header's fields that say where the grid lies. nifti1.h; NIfTI-2 has the same names."""

MAX_TRAILING_BYTES = 2**20
"""What may follow the voxels; more is no padding but another image, or a bomb."""

MAX_LABEL = 65535
"""Largest label value that is read and written."""

WHOLE_TOLERANCE = 1e-3
"""How far a label may be from a whole number: headers store slopes as float32, so 255 · (1/255) is 1.00000006."""


def has_nifti_suffix(path: Path) -> bool:
    """Whether a name ends in .nii or .nii.gz, in any case."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path, *, num_channels: int = 1) -> Volume:
    """Read a scan.

    Args:
        path: A .nii or .nii.gz file.
        num_channels: Frames that the file must have along its fourth axis, as the Decathlon stores several channels.

    Returns:
        The stored integers where the header does not scale them, else float32.

    Raises:
        ReadError: Missing, empty, truncated, damaged, not NIfTI, of other dimensions, or with NaN or infinite voxels.
        GeometryError: The header's grid is impossible.
    """
    array, geometry, record = _read(path, num_channels)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            array = array.astype(np.float32, copy=False)
        num_strange = int(np.count_nonzero(~np.isfinite(array)))
        if num_strange:
            raise ReadError(
                f"{path.name} holds {num_strange} voxels that are NaN or infinite, of {array.size}: "
                "export the scan again",
                code="read.nonfinite",
            )
    return Volume(array, geometry, record)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map; its numbers come back in the smallest unsigned type that holds them.

    Raises:
        ReadError, GeometryError: As :func:`read_volume`.
        LabelError: A value is not a whole number, negative, or above 65535.
    """
    channels, geometry, record = _read(path, num_channels=1)
    array = channels[0]
    if array.dtype.kind == "f":
        whole = np.round(array)
        if not (np.isfinite(array).all() and (np.abs(array - whole) < WHOLE_TOLERANCE).all()):
            raise LabelError(
                f"expected whole numbers in {path.name}, found fractions or NaN: it is no label map, or was "
                "interpolated; export it again",
                code="label.noninteger",
            )
        array = whole
    low, high = array.min(), array.max()
    if low < 0 or high > MAX_LABEL:
        raise LabelError(
            f"expected label values 0 to {MAX_LABEL} in {path.name}, found {low} to {high}: correct the label map",
            code="label.range",
        )
    return LabelMap(array.astype(np.uint8 if high < 256 else np.uint16), geometry, record)


def read_geometry(path: Path) -> tuple[Geometry, GridRecord]:
    """Read only the header: the grid, and the header's own words on it. Whether the voxels are whole is not checked.

    Raises:
        ReadError, GeometryError: As :func:`read_volume`.
    """
    with _opened(path) as stream:
        header, _ = _read_header(stream, path)
    return _grid(header, path)


def write_label_map(path: Path, label_map: LabelMap, *, overwrite: bool = False) -> None:
    """Write a label map with exactly its grid: shape, affine, qform and sform with their codes, units.

    The same label map gives the same bytes: no time and no name is stored. The file is read back before it gets its
    name.

    Raises:
        WriteError: It exists, cannot be written, or did not come back as it was written.
        ResourceError: The disk is full.
    """
    content = _packed(label_map, path)
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)

    def check(written: Path) -> None:
        try:
            same = _agree(read_label_map(written), label_map)
        except CaseError:
            same = False
        if not same:
            raise WriteError(f"{path.name} did not come back as it was written: check the disk", code="write.altered")

    write_bytes_atomically(path, content, check=check, overwrite=overwrite)


def _packed(label_map: LabelMap, path: Path) -> bytes:
    record = label_map.record
    affine = label_map.geometry.affine_ras
    try:
        image = nib.Nifti1Image(label_map.array, affine, dtype=label_map.array.dtype)
        if record is None:
            image.header.set_xyzt_units("mm")
            image.set_qform(affine, 1)
            image.set_sform(affine, 1)
        else:
            for field, value in record.fields.items():
                image.header[field] = value
        content: bytes = image.to_bytes()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise WriteError(f"{path.name} cannot be a NIfTI file: {error}", code="write.header") from error
    return content


def _agree(back: LabelMap, wanted: LabelMap) -> bool:
    if back.geometry.difference(wanted.geometry) or not np.array_equal(back.array, wanted.array):
        return False
    if back.record is None or wanted.record is None:
        return True
    fields = ("qform_code", "sform_code", "xyzt_units")
    return all(back.record.fields[field] == wanted.record.fields[field] for field in fields)


def _read(path: Path, num_channels: int) -> tuple[Num[np.ndarray, CIJK], Geometry, GridRecord]:
    """Channels first, scaled as the header says, in native byte order."""
    try:
        with _opened(path) as stream:
            header, num_header_bytes = _read_header(stream, path)
            num_promised = _promised_bytes(header, path, num_channels)
            _check_size(num_promised, isinstance(stream, gzip.GzipFile), path)
            raw = _read_voxels(stream, header, num_header_bytes, path)
        geometry, record = _grid(header, path)  # after the voxels: a damaged file is told as such, not as its affine
        channels = np.moveaxis(raw.reshape((*geometry.shape_ijk, num_channels), order="F"), -1, 0)
        return _scaled(channels, header, path), geometry, record
    except MemoryError as error:
        raise ReadError(f"{path.name} does not fit into this machine's memory", code="read.memory") from error


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The unpacked bytes of a file; whatever goes wrong while they are read becomes one clear error."""
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            if not magic:
                raise ReadError(f"{path.name} is empty: copy it again", code="read.empty")
            if magic == GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield unpacked
            elif path.name.lower().endswith(".gz"):
                raise ReadError(
                    f"{path.name} is not gzipped, although its name says so: rename it, or copy it again",
                    code="read.format",
                )
            else:
                yield file
    except FileNotFoundError:
        raise ReadError(f"there is no file {path.name}: check the name", code="read.missing") from None
    except EOFError as error:
        raise ReadError(
            f"{path.name} is truncated, the end of its gzip stream is missing: copy it again", code="read.truncated"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ReadError(f"{path.name} is damaged ({error}): copy it again", code="read.crc") from error
    except OSError as error:
        raise ReadError(f"cannot read {path.name}: {error.strerror or error}", code="read.failed") from error


def _read_header(stream: io.BufferedIOBase, path: Path) -> tuple[Any, int]:
    """The header, and how many bytes were taken from the stream for it."""
    start = stream.read(max(FORMATS))
    for size, (header_class, magic, place) in FORMATS.items():
        # The header's size is its first number, and tells the byte order.
        if start[:4] not in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            continue
        if len(start) < size:
            raise _truncated(path, size, len(start))
        if start[place:].startswith(magic):
            try:
                return header_class(start[:size], check=True), len(start)
            except (HeaderDataError, ValueError, OverflowError, TypeError) as error:
                raise _damaged_header(path, error) from error
    raise ReadError(
        f"{path.name} is not a one-file NIfTI (.nii, .nii.gz): convert it, or leave it out", code="read.format"
    )


def _damaged_header(path: Path, error: Exception) -> ReadError:
    return ReadError(f"{path.name} has a damaged NIfTI header ({error}): copy it again", code="read.header")


def _promised_bytes(header: Any, path: Path, num_channels: int) -> int:
    """Size of the unpacked file by its header, once that describes something to read."""
    try:
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise _damaged_header(path, error) from error
    if dtype.kind not in "iuf":
        raise ReadError(f"expected integers or floats in {path.name}, found voxels of {dtype}", code="read.type")
    found = (*shape[:3], *(size for size in shape[3:] if size != 1))
    wanted = 3 if num_channels == 1 else 4
    if len(found) != wanted or min(found) < 1 or (wanted == 4 and found[3] != num_channels):
        frames = "" if num_channels == 1 else f" and {num_channels} channels along the fourth"
        raise ReadError(
            f"expected three axes{frames} in {path.name}, found the shape {tuple(map(int, shape))}: "
            "store one image a file",
            code="read.dimensions",
        )
    num_voxels = _num_voxels(header)
    if num_voxels > MAX_VOXELS:
        raise ReadError(f"{path.name} claims {num_voxels} voxels: its header is damaged", code="read.dimensions")
    return offset + num_voxels * int(dtype.itemsize)


def _check_size(num_promised: int, is_packed: bool, path: Path) -> None:
    num_bytes = path.stat().st_size
    if is_packed and num_promised > MAX_RATIO * num_bytes:
        raise ReadError(
            f"{path.name} has {num_bytes} bytes, its header promises {num_promised}: it is damaged, copy it again",
            code="read.length",
        )
    if not is_packed and num_promised > num_bytes:
        raise _truncated(path, num_promised, num_bytes)


def _truncated(path: Path, expected: int, found: int) -> ReadError:
    return ReadError(
        f"{path.name} is truncated: expected {expected} bytes, found {found}; copy it again", code="read.truncated"
    )


def _num_voxels(header: Any) -> int:
    return int(np.prod([int(size) for size in header.get_data_shape()], dtype=object))


def _read_voxels(stream: io.BufferedIOBase, header: Any, num_read: int, path: Path) -> np.ndarray:
    """The stored numbers in the file's order; the stream is read to its end, so that gzip checks CRC and length."""
    num_voxels, dtype = _num_voxels(header), header.get_data_dtype()
    gap = int(header.get_data_offset()) - num_read
    # A NIfTI-1 header is shorter than what was read to recognise either kind.
    stream.seek(gap, 1)
    raw = np.empty(num_voxels, dtype)
    target = memoryview(raw.view(np.uint8).data)
    num_filled = 0
    while num_filled < len(target):
        count = stream.readinto(target[num_filled:])
        if not count:
            raise _truncated(path, len(target), num_filled)
        num_filled += count
    num_trailing = 0
    while block := stream.read(2**16):
        num_trailing += len(block)
        if num_trailing > MAX_TRAILING_BYTES:
            raise ReadError(f"{path.name} holds more than its header says: copy it again", code="read.length")
    return raw.astype(raw.dtype.newbyteorder("="), copy=False)


def _scaled(array: np.ndarray, header: Any, path: Path) -> np.ndarray:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise _damaged_header(path, error) from error
    if slope is None or (slope, inter) == (1.0, 0.0):
        return array
    scaled = np.empty_like(array, dtype=np.float32)
    with np.errstate(over="ignore"):
        for plane in range(array.shape[3]):  # in double precision, without a second volume of it
            scaled[..., plane] = array[..., plane] * np.float64(slope) + np.float64(inter)
    return scaled


def _grid(header: Any, path: Path) -> tuple[Geometry, GridRecord]:
    """The grid by nibabel's rule: the sform where it has a code, else the qform where it has one, else the spacing."""
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        shape = [int(size) for size in header.get_data_shape()]
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path.name} has a damaged orientation ({error}): copy it again", code="geometry.affine"
        ) from error
    if len(shape) < 3:
        raise ReadError(f"expected three axes in {path.name}, found the shape {tuple(shape)}", code="read.dimensions")
    try:
        with np.errstate(all="ignore"):  # an absurd affine overflows, and is then refused in words
            geometry = Geometry(affine, (shape[0], shape[1], shape[2]))
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error.message}", code=error.code) from error
    return geometry, GridRecord({field: np.array(header[field]) for field in GRID_FIELDS})
