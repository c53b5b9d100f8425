"""NIfTI files: what the header says is checked before it is believed, and results carry it unchanged.

Callers read through :mod:`medseg.io.volume`, the one door for all formats.
"""

from __future__ import annotations

import gzip
import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.spatialimages import HeaderDataError

from medseg.core.errors import CaseError, GeometryError, ReadError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.shapes import AFFINE
from medseg.core.volume import GridRecord, LabelMap, Note, Volume
from medseg.io.atomic import write_atomically
from medseg.io.linking import GZIP_LEVEL
from medseg.io.unpacking import Layout, Packing, check_promise, opened, read_voxels, size_of, truncated, unpacked

SUFFIXES = (".nii.gz", ".nii")

GZIP_MAGIC = b"\x1f\x8b"

FORMATS = {348: (nib.Nifti1Header, b"n+1\x00", 344), 540: (nib.Nifti2Header, b"n+2\x00", 4)}
"""By header size [bytes]: class, magic of the one-file form, and where the magic stands. nifti1.h, nifti2.h."""

MAX_OFFSET_BYTES = 2**24
"""Where the voxels may start at the latest: extensions of a header are notes, not data."""

GRID_FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
"""The header's fields that say where the grid lies. nifti1.h; NIfTI-2 has the same names."""

TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""Types of voxels by their code in the header; complex, coloured and 128-bit ones are not read. nifti1.h."""

FORM_CODES = range(6)
"""NIFTI_XFORM_UNKNOWN to NIFTI_XFORM_TEMPLATE_OTHER. nifti1.h and its amendment of 2019."""

UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the unit of length, by the lowest three bits of xyzt_units: unknown, m, mm, µm. nifti1.h."""

SAME_FORM_TOLERANCE_VOXELS = 0.5
"""Corners of sform and qform that lie further apart are worth a note."""


def read_nifti(path: Path, *, num_channels: int = 1) -> Volume:
    """Read a one-file NIfTI image, packed or not, as it is stored.

    Args:
        path: A .nii or .nii.gz file.
        num_channels: Frames that the file must have along its fourth axis, as the Decathlon stores several channels.

    Returns:
        The stored integers where the header does not scale them, else float32, which may hold NaN.

    Raises:
        ReadError: Missing, empty, truncated, damaged, not NIfTI, or of other dimensions.
        GeometryError: The header's grid is impossible.
    """
    with opened(path) as file:
        packing = _packing(file, path)
        stream = unpacked(file, packing, path)
        header, num_read = _read_header(stream, path)
        layout = _layout(header, path, num_channels)
        offset = _offset(header, path)
        check_promise(offset + layout.num_bytes, size_of(file), packing, layout, path)
        if len(stream.read(offset - num_read)) < offset - num_read:
            raise truncated(path, offset + layout.num_bytes, num_read)
        array = read_voxels(stream, layout, path)
    # After the voxels: a damaged file is told as such, not as its affine.
    geometry, notes = _grid(header, path)
    channels = np.moveaxis(array.reshape((*geometry.shape_ijk, num_channels), order="F"), -1, 0)
    return Volume(channels, geometry, GridRecord({field: np.array(header[field]) for field in GRID_FIELDS}), notes)


def write_label_map(path: str | Path, label_map: LabelMap, *, overwrite: bool = False) -> None:
    """Write a label map with exactly its grid: shape, affine, qform and sform with their codes, units.

    The same label map gives the same bytes: no time and no name is stored. The file is read back before it gets its
    name.

    Raises:
        WriteError: It exists, cannot be written, or did not come back as it was written.
        ResourceError: The disk is full.
    """
    path = Path(path)
    header = _label_header(label_map, path)
    array = label_map.array.astype(label_map.array.dtype.newbyteorder("<"), copy=False)

    def write(temporary: Path) -> None:
        """Plane by plane: packed at once, a whole label map would lie in memory three times more."""
        no_extensions = bytes(4)
        with temporary.open("wb") as file, packed_file(path, file) as packed:
            packed.write(bytes(header.binaryblock) + no_extensions)
            for plane in range(array.shape[2]):
                packed.write(array[..., plane].tobytes(order="F"))

    def check(written: Path) -> None:
        try:
            same = _agree(read_nifti(written), label_map)
        except CaseError:
            same = False
        if not same:
            raise WriteError(f"{path.name} did not come back as it was written: check the disk", code="write.altered")

    write_atomically(path, write, check=check, overwrite=overwrite)


def packed_file(path: Path, file: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """What packs the bytes of a file, if its name says that they are packed."""
    if path.name.lower().endswith(".gz"):
        return cast(AbstractContextManager[IO[bytes]], gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0))
    return nullcontext(file)


def _label_header(label_map: LabelMap, path: Path) -> Any:
    if label_map.array.min() < 0:
        raise WriteError(f"{path.name} would hold negative labels", code="write.header")
    return result_header(label_map.array.shape, label_map.array.dtype, label_map.geometry, label_map.record, path)


def result_header(
    shape: tuple[int, ...], dtype: np.dtype[Any], geometry: Geometry, record: GridRecord | None, path: Path
) -> Any:
    """The header of a result on a scan's grid, by hand: nibabel's images correct odd headers, which here are to stay as they are.

    Args:
        shape: Of the array: the grid's, and perhaps a fourth axis.
        dtype: Of the array.
        geometry: The grid.
        record: The scan's own words on it.
        path: For messages.

    Raises:
        WriteError: A NIfTI file cannot hold such an array.
    """
    affine = geometry.affine_ras
    header = nib.Nifti1Header(endianness="<")
    try:
        header.set_data_shape(shape)
        header.set_data_dtype(dtype)
        if record is None:
            header.set_zooms((*geometry.spacing_ijk_mm, 1.0)[: len(shape)])
            header.set_xyzt_units("mm")
            header.set_qform(affine, 1)
            header.set_sform(affine, 1)
        else:
            for field, value in record.fields.items():
                header[field] = value
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise WriteError(f"{path.name} cannot be a NIfTI file: {error}", code="write.header") from error
    header["magic"], header["vox_offset"] = FORMATS[348][1], 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _agree(back: Volume, wanted: LabelMap) -> bool:
    planes = (np.moveaxis(array, -1, 0) for array in (back.array[0], wanted.array))
    if back.geometry.difference(wanted.geometry) or not all(map(np.array_equal, *planes)):
        return False
    if back.record is None or wanted.record is None:
        return True
    fields = ("qform_code", "sform_code", "xyzt_units")
    return all(back.record.fields[field] == wanted.record.fields[field] for field in fields)


def _packing(file: io.BufferedReader, path: Path) -> Packing | None:
    if file.peek(2)[:2] == GZIP_MAGIC:
        return "gzip"
    if path.name.lower().endswith(".gz"):
        raise ReadError(
            f"{path.name} is not gzipped, although its name says so: rename it, or copy it again", code="read.format"
        )
    return None


def _read_header(stream: io.BufferedReader, path: Path) -> tuple[Any, int]:
    """The header as it stands, and how many bytes were taken from the stream for it."""
    start = stream.read(4)  # the header's size is its first number, and tells the byte order
    for size, (header_class, magic, place) in FORMATS.items():
        for order, endianness in (("little", "<"), ("big", ">")):
            if start != size.to_bytes(4, order):  # type: ignore[arg-type]  # a list loses its literals
                continue
            content = start + stream.read(size - 4)
            if len(content) < size:
                raise truncated(path, size, len(content))
            if content[place:].startswith(magic):
                # Unchecked: nibabel's checks mend silently what they find, and results shall carry it as it is.
                return header_class(content, endianness=endianness, check=False), size
    raise ReadError(
        f"{path.name} is not a one-file NIfTI (.nii, .nii.gz): convert it, or leave it out", code="read.format"
    )


def _damaged_header(path: Path, reason: object) -> ReadError:
    return ReadError(f"{path.name} has a damaged NIfTI header ({reason}): copy it again", code="read.header")


def _layout(header: Any, path: Path, num_channels: int) -> Layout:
    """What the header says of the voxels, once it describes something to read."""
    code = int(header["datatype"])
    if code not in TYPES:
        raise ReadError(
            f"expected integers or floats of at most 64 bits in {path.name}, found voxels of data type {code}: convert "
            "it to one of them",
            code="read.type",
        )
    stored = np.dtype(header.endianness + TYPES[code])
    try:
        scaling = header.get_slope_inter()
    except HeaderDataError as error:
        raise _damaged_header(path, error) from error
    if int(header["bitpix"]) != 8 * stored.itemsize:
        raise _damaged_header(path, f"{header['bitpix']} bits for voxels of {8 * stored.itemsize}")
    if np.isinf(header["scl_slope"]):
        raise _damaged_header(path, "an infinite slope")
    shape = _shape(header, path)
    found = (*shape[:3], *(size for size in shape[3:] if size != 1))
    wanted = 3 if num_channels == 1 else 4
    if len(found) != wanted or min(found) < 1 or (wanted == 4 and found[3] != num_channels):
        frames = "" if num_channels == 1 else f" and {num_channels} channels along the fourth"
        raise ReadError(
            f"expected three axes{frames} in {path.name}, found the shape {shape}: store one image a file",
            code="read.dimensions",
        )
    is_scaled = scaling[0] is not None and scaling != (1.0, 0.0)
    return Layout(found, stored, scaling if is_scaled else None)


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    dim = [int(size) for size in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise _damaged_header(path, f"{dim[0]} dimensions")
    return tuple(dim[1 : dim[0] + 1])


def _offset(header: Any, path: Path) -> int:
    """Where the voxels start; 0 stands for right behind the header and its four bytes of extension flags."""
    offset, first = float(header["vox_offset"]), header.sizeof_hdr + 4
    if offset == 0:
        return int(first)
    if not (first <= offset <= MAX_OFFSET_BYTES and offset.is_integer()):
        raise _damaged_header(path, f"voxels from byte {offset:g} on")
    return int(offset)


def _grid(header: Any, path: Path) -> tuple[Geometry, tuple[Note, ...]]:
    """The grid by the standard's rule: the sform where it has a code, else the qform where it has one."""
    i, j, k, *_ = _shape(header, path)
    codes = int(header["sform_code"]), int(header["qform_code"])
    unit = int(header["xyzt_units"]) & 7
    if not set(codes) <= set(FORM_CODES) or unit not in UNIT_MM:
        raise _damaged_header(path, f"sform and qform codes {codes}, unit of length {unit}")
    try:
        with np.errstate(all="ignore"):  # an absurd affine overflows, and is then refused in words
            affine, notes = _affine(header, path)
            affine[:3] *= UNIT_MM[unit]
            return Geometry(affine, (i, j, k)), notes
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path.name} has a damaged orientation ({error}): copy it again", code="geometry.affine"
        ) from error
    except GeometryError as error:
        told = "" if UNIT_MM[unit] == 1.0 else f" (its unit of length is {'m' if unit == 1 else 'µm'})"
        raise GeometryError(f"{path.name}: {error.message}{told}", code=error.code) from error


def _affine(header: Any, path: Path) -> tuple[Float[np.ndarray, AFFINE], tuple[Note, ...]]:
    """In the header's unit of length, and what is odd about it."""
    if int(header["sform_code"]) > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
        return affine, _qform_notes(header, affine, path)
    if int(header["qform_code"]) > 0:
        return _qform(header), ()
    if (header["pixdim"][1:4] < 0).any():
        raise HeaderDataError("a negative spacing")
    # nibabel's reading of what ANALYZE left open, which is SPM's: x runs to the left, the centre is the origin.
    unoriented = Note(
        "geometry.unoriented",
        f"{path.name} does not say where left and right are (no sform, no qform): read as left, anterior, superior",
    )
    return np.asarray(header.get_base_affine(), dtype=np.float64), (unoriented,)


def _qform(header: Any) -> Float[np.ndarray, AFFINE]:
    if header["pixdim"][0] == 0:  # "qfac = 0 is to be taken as 1", nifti1.h
        header = header.copy()
        header["pixdim"][0] = 1
    return np.asarray(header.get_qform(), dtype=np.float64)


def _qform_notes(header: Any, sform: Float[np.ndarray, AFFINE], path: Path) -> tuple[Note, ...]:
    """Where a qform has a code too and lies elsewhere: other programs may show the patient there."""
    if int(header["qform_code"]) == 0:
        return ()
    told = "its qform is damaged"
    try:
        qform = _qform(header)
    except (HeaderDataError, ValueError):
        qform = None
    if qform is not None:
        i, j, k = (size - 1 for size in _shape(header, path)[:3])
        corners = np.array([[x, y, z, 1.0] for x in (0, i) for y in (0, j) for z in (0, k)])
        apart = float(np.linalg.norm((corners @ (sform - qform).T)[:, :3], axis=1).max())
        if apart <= SAME_FORM_TOLERANCE_VOXELS * np.linalg.norm(sform[:3, :3], axis=0).min():
            return ()
        unit_mm = UNIT_MM[int(header["xyzt_units"]) & 7]
        told = f"its qform lies up to {apart * unit_mm:.1f} mm away"
    return (Note("geometry.qform", f"{path.name} was read by its sform; {told}: other programs may place it there"),)
