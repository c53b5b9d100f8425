"""NIfTI files: one checked door in, one checked door out.

What cannot be read truly is refused. Readers of this field stop before the gzip trailer and so return altered voxels
without a word; here a file is unpacked to its end, so CRC and length are checked, before a voxel of it is believed.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medseg.core.errors import GeometryError, LabelError, ReadError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.volume import GridRecord, LabelMap, Volume
from medseg.io.atomic import write_atomically

SUFFIXES = (".nii.gz", ".nii")

HEADER_BYTES = 348
"""Of a NIfTI-1 header. nifti1.h."""

MAX_VOXELS = 2**31
"""More voxels than any scanner makes (2048 × 1024 × 1024): a header that asks for more is damaged."""

MAX_RATIO = 1100
"""Deflate cannot pack tighter than about 1030 to 1; a file that unpacks further is no image."""

GRID_FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
"""The header's fields that say where the grid lies. nifti1.h; NIfTI-2 has the same names."""

REAL_KINDS = "iuf"
"""NumPy kinds of the voxel types that are read: integers and floats. Complex and RGB are no scans."""


def has_nifti_suffix(path: Path) -> bool:
    """Whether a name ends in .nii or .nii.gz, in any case."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path) -> Volume:
    """Read a scan.

    Returns:
        One channel: the stored integers where the header does not scale them, else float32.

    Raises:
        ReadError: Missing, empty, truncated, damaged, not NIfTI, not three-dimensional, or with NaN or infinite voxels.
        GeometryError: The header's grid is impossible.
    """
    image = _open(path)
    geometry, record = _grid(image, path)
    array = _voxels(image, path)
    if array.dtype.kind == "f":
        strange = int(np.count_nonzero(~np.isfinite(array)))
        if strange:
            raise ReadError(
                f"{path.name} holds {strange} voxels that are NaN or infinite, of {array.size}: export the scan again",
                code="read.nonfinite",
            )
        array = array.astype(np.float32, copy=False)
    return Volume(array[None], geometry, record)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map; its numbers come back in the smallest unsigned type that holds them.

    Raises:
        ReadError, GeometryError: As :func:`read_volume`.
        LabelError: A value is not a whole number, negative, or above 65535.
    """
    image = _open(path)
    geometry, record = _grid(image, path)
    array = _voxels(image, path)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise LabelError(
            f"{path.name} holds values that are not whole numbers: it is no label map", code="label.noninteger"
        )
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise LabelError(f"expected label values 0 to 65535 in {path.name}, found {low} to {high}", code="label.range")
    return LabelMap(array.astype(np.uint8 if high < 256 else np.uint16), geometry, record)


def write_label_map(path: Path, label_map: LabelMap, *, overwrite: bool = False) -> None:
    """Write a label map with exactly its grid: shape, affine, qform and sform with their codes, units.

    The same label map gives the same bytes: no time and no name is stored. The file is read back before it gets its name.

    Raises:
        WriteError: It exists, cannot be written, or did not come back as it was written.
        ResourceError: The disk is full.
    """
    image = nib.Nifti1Image(label_map.array, label_map.geometry.affine_ras, dtype=label_map.array.dtype)
    record = label_map.record
    if record is not None:
        for field, value in record.fields.items():
            image.header[field] = value
    else:
        image.header.set_xyzt_units("mm")
        image.set_sform(label_map.geometry.affine_ras, 1)
        image.set_qform(label_map.geometry.affine_ras, 1)
    content = image.to_bytes()
    packed = gzip.compress(content, compresslevel=6, mtime=0) if path.name.endswith(".gz") else content

    def check(written: Path) -> None:
        back = read_label_map(written)
        if back.geometry.difference(label_map.geometry) or not np.array_equal(back.array, label_map.array):
            raise WriteError(f"{path.name} did not come back as it was written: check the disk", code="write.altered")

    write_atomically(path, lambda temporary: _write_bytes(temporary, packed), check=check, overwrite=overwrite)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _open(path: Path) -> Any:
    """The image behind a file whose bytes are whole."""
    content = _content(path)
    if len(content) < HEADER_BYTES:
        raise ReadError(
            f"{path.name} holds {len(content)} bytes, fewer than a NIfTI header: copy it again", code="read.truncated"
        )
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(content):
            try:
                image = kind.from_bytes(content)
                _check_header(image, len(content), path)
            except (ImageFileError, HeaderDataError, ValueError, OverflowError, TypeError, EOFError, OSError) as error:
                raise ReadError(
                    f"{path.name} has a damaged NIfTI header ({error}): copy it again", code="read.header"
                ) from error
            return image
    raise ReadError(f"{path.name} is not a NIfTI file: convert it, or leave it out", code="read.format")


def _content(path: Path) -> bytes:
    """All bytes of a file, unpacked to the end where it is gzipped."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise ReadError(f"there is no file {path.name} in {path.parent}: check the name", code="read.missing") from None
    except OSError as error:
        raise ReadError(f"cannot read {path.name}: {error.strerror or error}", code="read.failed") from error
    if not packed:
        raise ReadError(f"{path.name} is empty: copy it again", code="read.empty")
    if packed[:2] != b"\x1f\x8b":
        if path.name.lower().endswith(".gz"):
            raise ReadError(f"{path.name} is not gzipped, although its name says so", code="read.format")
        return packed
    return _unpacked(packed, path)


def _unpacked(packed: bytes, path: Path) -> bytes:
    limit = _expected_bytes(packed, path)
    try:
        unpacker = zlib.decompressobj(wbits=31)
        content = unpacker.decompress(packed, limit + 1)
        if len(content) > limit:
            raise ReadError(f"{path.name} unpacks to more than its header says: copy it again", code="read.length")
        content += unpacker.flush()
    except zlib.error as error:
        raise ReadError(f"{path.name} is damaged ({error}): copy it again", code="read.crc") from error
    if not unpacker.eof:
        raise ReadError(
            f"{path.name} is truncated, the end of its gzip stream is missing: copy it again", code="read.truncated"
        )
    return content


def _expected_bytes(packed: bytes, path: Path) -> int:
    """How many bytes the header promises, so that a file that unpacks to gigabytes is refused before it does."""
    try:
        head = zlib.decompressobj(wbits=31).decompress(packed, 540)
        kind = nib.Nifti2Header if nib.Nifti2Image.header_class.may_contain_header(head) else nib.Nifti1Header
        if not kind.may_contain_header(head):
            raise ReadError(f"{path.name} is not a NIfTI file: convert it, or leave it out", code="read.format")
        size = 348 if kind is nib.Nifti1Header else 540
        header = kind(head[:size], check=False)
        promised = (
            int(header["vox_offset"])
            + int(np.prod([max(1, int(n)) for n in header["dim"][1:8]])) * int(header["bitpix"]) // 8
        )
    except zlib.error as error:
        raise ReadError(f"{path.name} is damaged ({error}): copy it again", code="read.crc") from error
    except (HeaderDataError, ValueError, OverflowError, TypeError) as error:
        raise ReadError(
            f"{path.name} has a damaged NIfTI header ({error}): copy it again", code="read.header"
        ) from error
    if promised > MAX_RATIO * len(packed) + 1000:
        raise ReadError(
            f"{path.name} holds {len(packed)} bytes, its header promises {promised}: it is damaged, copy it again",
            code="read.length",
        )
    return max(promised, 0) + 4096


def _check_header(image: Any, num_bytes: int, path: Path) -> None:
    shape = image.shape
    dtype = image.get_data_dtype()
    if dtype.kind not in REAL_KINDS:
        raise ReadError(f"expected numbers in {path.name}, found the voxel type {dtype}", code="read.type")
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise ReadError(f"expected three axes in {path.name}, found the shape {image.shape}", code="read.dimensions")
    num_voxels = int(np.prod([int(size) for size in shape]))
    if num_voxels > MAX_VOXELS:
        raise ReadError(f"{path.name} claims {num_voxels} voxels: its header is damaged", code="read.dimensions")
    needed = int(image.dataobj.offset) + num_voxels * dtype.itemsize
    if needed > num_bytes:
        raise ReadError(
            f"{path.name} is truncated: expected {needed} bytes, found {num_bytes}; copy it again",
            code="read.truncated",
        )


def _grid(image: Any, path: Path) -> tuple[Geometry, GridRecord]:
    try:
        affine = np.asarray(image.affine, dtype=np.float64)
        i, j, k = (int(size) for size in image.shape[:3])
        geometry = Geometry(affine, (i, j, k))
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error.message}", code=error.code) from error
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path.name} has a damaged orientation ({error}): copy it again", code="geometry.affine"
        ) from error
    return geometry, GridRecord({field: np.array(image.header[field]) for field in GRID_FIELDS})


def _voxels(image: Any, path: Path) -> np.ndarray:
    try:
        slope, inter = image.dataobj.slope, image.dataobj.inter
        raw = np.asarray(image.dataobj.get_unscaled()) if (slope, inter) == (1, 0) else np.asarray(image.dataobj)
    except (ValueError, OSError, EOFError) as error:
        raise ReadError(
            f"the voxels of {path.name} cannot be read ({error}): copy it again", code="read.voxels"
        ) from error
    array: np.ndarray = raw.reshape(image.shape[:3])
    return array.astype(array.dtype.newbyteorder("="), copy=False)
