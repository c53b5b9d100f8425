"""NRRD files (.nrrd, and .nhdr with its data file beside it).

Source: the NRRD format, teem.sourceforge.net/nrrd/format.html. Read here are encodings raw and gzip, one data file, and
the three spaces that say where the patient's left, front and head are; all else is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.core.errors import GeometryError, ReadError
from medseg.core.volume import Volume
from medseg.io.text_header import beside, damaged_header, header_lines, numbers, placed, read_behind, read_beside
from medseg.io.unpacking import Layout, Packing, opened

MAGIC = re.compile(r"NRRD000[1-5]")

FIELDS = {
    "dimension", "type", "blocksize", "encoding", "endian", "content", "min", "max", "oldmin", "oldmax", "datafile",
    "lineskip", "byteskip", "number", "sampleunits", "sizes", "spacings", "thicknesses", "axismins", "axismaxs",
    "centers", "centerings", "labels", "units", "kinds", "space", "spacedimension", "spaceunits", "spaceorigin",
    "spacedirections", "measurementframe",
}  # fmt: skip
"""All that the format has, without the spaces in their names."""

TYPES = {
    name: np.dtype(code)
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}

PACKINGS: Mapping[str, Packing | None] = {"raw": None, "gzip": "gzip", "gz": "gzip"}

SPACES = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
"""By space: what turns its coordinates into RAS."""

MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}


def read_nrrd(path: Path, *, num_channels: int = 1) -> Volume:
    """Read an NRRD file, as it is stored.

    Args:
        path: A .nrrd or .nhdr file.
        num_channels: Size of its one axis that is none of space; 1 allows there to be none.

    Raises:
        ReadError: Missing, empty, truncated, damaged, no NRRD, of other dimensions, or of a kind that is not read.
        GeometryError: The grid is impossible, or the file does not say where it lies in the patient.
    """
    with opened(path) as file:
        fields = _fields(file, path)
        layout, spatial, others = _layout(fields, num_channels, path)
        packing, skip = _packing(fields, path)
        name = fields.get("datafile")
        if name is None:
            array = read_behind(file, layout, packing, skip, path)
        else:
            array = read_beside(path, name, layout, packing, skip)
    i, j, k = (layout.shape[axis] for axis in spatial)
    channels = array.transpose(*others, *spatial).reshape(num_channels, i, j, k)
    return Volume(channels, placed(_affine(fields, path), (i, j, k), path))


def data_file_of(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None where they are in the same file.

    Raises:
        ReadError: The header cannot be read, or names no file beside it.
    """
    with opened(path) as file:
        name = _fields(file, path).get("datafile")
    return None if name is None else beside(path, name)


def _fields(file: io.BufferedReader, path: Path) -> dict[str, str]:
    """The header's fields; the empty line that ends it is taken from the file too."""
    lines = header_lines(file, path)
    if not MAGIC.fullmatch(next(lines, "")):
        raise ReadError(f"{path.name} is no NRRD file: convert it, or leave it out", code="read.format")
    fields: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if not line:
            return fields
        # Comments, and "key:=value" pairs, which mean nothing here and whose key may hold a colon.
        if line.startswith("#") or ":=" in line.split(": ")[0]:
            continue
        field, colon, value = line.partition(":")
        name = field.lower().replace(" ", "")
        if not colon or name not in FIELDS:
            raise damaged_header(path, f"line {number} is no field of NRRD")
        if name in fields:
            raise damaged_header(path, f"the field {name} stands twice")
        fields[name] = value.strip()
    if "datafile" not in fields:
        raise damaged_header(path, "no empty line ends it")
    return fields


def _layout(fields: Mapping[str, str], num_channels: int, path: Path) -> tuple[Layout, list[int], list[int]]:
    """The voxels, and which axes are of space and which are not."""
    for name in ("dimension", "type", "sizes", "encoding"):
        if name not in fields:
            raise damaged_header(path, f"no field '{name}'")
    (num_axes,) = numbers(fields["dimension"], int, 1, "dimension", path)
    if not 1 <= num_axes <= 16:  # NRRD_DIM_MAX
        raise damaged_header(path, f"{num_axes} dimensions")
    sizes = numbers(fields["sizes"], int, num_axes, "sizes", path)
    spatial = [axis for axis, direction in enumerate(_directions(fields, num_axes, path)) if direction is not None]
    others = [axis for axis in range(num_axes) if axis not in spatial]
    found = [sizes[axis] for axis in others if sizes[axis] != 1]
    if len(spatial) != 3 or min(sizes) < 1 or found != ([] if num_channels == 1 else [num_channels]):
        raise ReadError(
            f"expected three axes of space and {num_channels} channels in {path.name}, found the sizes {sizes}, of "
            f"which {len(spatial)} are of space: store one image a file",
            code="read.dimensions",
        )
    stored = TYPES.get(fields["type"].lower())
    if stored is None:
        raise ReadError(f"expected integers or floats in {path.name}, found {fields['type'][:40]!r}", code="read.type")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and stored.itemsize > 1:
        raise damaged_header(path, f"endian is {endian[:20]!r}")
    return Layout(sizes, stored.newbyteorder(">" if endian == "big" else "<")), spatial, others


def _packing(fields: Mapping[str, str], path: Path) -> tuple[Packing | None, int]:
    """How the voxels are packed, and how many bytes lie before them."""
    encoding = fields["encoding"].lower()
    (line_skip,) = numbers(fields.get("lineskip", "0"), int, 1, "line skip", path)
    (byte_skip,) = numbers(fields.get("byteskip", "0"), int, 1, "byte skip", path)
    if encoding not in PACKINGS or line_skip != 0:
        raise ReadError(
            f"expected the encoding raw or gzip and no lines to skip in {path.name}, found {encoding[:20]!r} and "
            f"{line_skip}: save it again so",
            code="read.format",
        )
    return PACKINGS[encoding], byte_skip


def _directions(fields: Mapping[str, str], num_axes: int, path: Path) -> list[tuple[float, ...] | None]:
    """World direction of a step along each axis, in the file's space; None along what is no axis of space."""
    text = fields.get("spacedirections")
    if text is None:
        raise GeometryError(
            f"{path.name} does not say how it lies in the patient (no 'space directions'): export it again with its "
            "orientation",
            code="geometry.space",
        )
    words = re.findall(r"none|\([^()]*\)", text)
    if len(words) != num_axes or re.sub(r"none|\([^()]*\)", "", text).strip():
        raise damaged_header(path, f"space directions {text[:60]!r} for {num_axes} axes")
    return [None if word == "none" else _vector(word, "space directions", path) for word in words]


def _vector(word: str, where: str, path: Path) -> tuple[float, ...]:
    if not re.fullmatch(r"\([^()]*\)", word):
        raise damaged_header(path, f"{where} {word[:40]!r}")
    return numbers(word[1:-1].replace(",", " "), float, 3, where, path)


def _affine(fields: Mapping[str, str], path: Path) -> np.ndarray:
    """Index to RAS [mm]."""
    space, origin = fields.get("space", "none").lower(), fields.get("spaceorigin")
    if space not in SPACES or origin is None:
        raise GeometryError(
            f"expected a space such as left-posterior-superior and a space origin in {path.name}, found "
            f"{space[:40]!r} and {(origin or 'none')[:40]!r}: export it again with its orientation",
            code="geometry.space",
        )
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
    if not {unit.strip().lower() for unit in units} <= MILLIMETRES:
        raise GeometryError(
            f"expected millimetres in {path.name}, found {units}: export it again in mm", code="geometry.units"
        )
    directions = [d for d in _directions(fields, len(fields["sizes"].split()), path) if d is not None]
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions).T
    affine[:3, 3] = _vector(origin, "space origin", path)
    affine[:3] *= np.array(SPACES[space])[:, None]
    return affine
