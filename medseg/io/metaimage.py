"""MetaImage files (.mha, and .mhd with its data file beside it).

Source: the MetaIO documentation, itk.org/Wiki/MetaIO/Documentation. World coordinates are LPS millimetres, as ITK reads
and writes them, whatever ``AnatomicalOrientation`` says. Read here are raw and zlib data in one file; all else is refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.core.errors import GeometryError, ReadError
from medseg.core.volume import Volume
from medseg.io.text_header import beside, damaged_header, header_lines, numbers, placed, read_behind, read_beside
from medseg.io.unpacking import Layout, Packing, opened

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""MET_LONG is missing on purpose: programs differ on how many bytes it has."""

ALIASES = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
"""Older names of the same. MetaIO documentation."""

LOCAL = {"LOCAL", "Local", "local"}
"""In place of a file's name: the voxels follow."""

UNIT_LENGTH_TOLERANCE = 1e-3
"""How far a direction may be from length 1: what is longer contradicts the spacing."""


def read_metaimage(path: Path, *, num_channels: int = 1) -> Volume:
    """Read a MetaImage file, as it is stored.

    Args:
        path: A .mha or .mhd file.
        num_channels: Of each voxel, or frames along a fourth axis.

    Raises:
        ReadError: Missing, empty, truncated, damaged, no MetaImage, of other dimensions, or of a kind that is not read.
        GeometryError: The grid is impossible, or the file does not say where it lies in the patient.
    """
    with opened(path) as file:
        fields = _fields(file, path)
        layout = _layout(fields, num_channels, path)
        packing: Packing | None = "zlib" if _truth(fields, "CompressedData", path) else None
        (skip,) = numbers(fields.get("HeaderSize", "0"), int, 1, "HeaderSize", path)
        name = fields["ElementDataFile"]
        if name in LOCAL:
            array = read_behind(file, layout, packing, skip, path)
        else:
            array = read_beside(path, name, layout, packing, skip)
    _, i, j, k, *_ = layout.shape
    # Interleaved values are the first axis, frames the last; one of them has length 1.
    channels = np.moveaxis(array.reshape(layout.shape[0], i, j, k, -1, order="F"), -1, 1)
    return Volume(channels.reshape(num_channels, i, j, k), placed(_affine(fields, path), (i, j, k), path))


def data_file_of(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None where they are in the same file.

    Raises:
        ReadError: The header cannot be read, or names no file beside it.
    """
    with opened(path) as file:
        name = _fields(file, path)["ElementDataFile"]
    return None if name in LOCAL else beside(path, name)


def _fields(file: io.BufferedReader, path: Path) -> dict[str, str]:
    """The header's fields, of which ElementDataFile is the last."""
    fields: dict[str, str] = {}
    for number, line in enumerate(header_lines(file, path), start=1):
        key, equals, value = (part.strip() for part in line.partition("="))
        key = ALIASES.get(key, key)
        if not equals and not fields:
            break
        if not equals or key in fields:
            raise damaged_header(path, f"line {number} is no field, or stands twice")
        fields[key] = value
        if key == "ElementDataFile":
            break
    if fields.get("ObjectType") != "Image":
        raise ReadError(f"{path.name} is no MetaImage file: convert it, or leave it out", code="read.format")
    for key in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if key not in fields:
            raise damaged_header(path, f"no {key}")
    return fields


def _layout(fields: Mapping[str, str], num_channels: int, path: Path) -> Layout:
    """Shape: values of one voxel, the three axes, and frames where there is a fourth."""
    (num_axes,) = numbers(fields["NDims"], int, 1, "NDims", path)
    if not 1 <= num_axes <= 10:  # METAIO's own limit
        raise damaged_header(path, f"{num_axes} dimensions")
    sizes = numbers(fields["DimSize"], int, num_axes, "DimSize", path)
    (num_values,) = numbers(fields.get("ElementNumberOfChannels", "1"), int, 1, "ElementNumberOfChannels", path)
    frames = sizes[3] if num_axes == 4 else 1
    if num_axes not in (3, 4) or min(*sizes, num_values) < 1 or {num_values, frames} != {num_channels, 1}:
        raise ReadError(
            f"expected three axes and {num_channels} channels in {path.name}, found the sizes {sizes} and {num_values} "
            "values a voxel: store one image a file",
            code="read.dimensions",
        )
    stored = TYPES.get(fields["ElementType"])
    if stored is None:
        raise ReadError(
            f"expected one of {', '.join(TYPES)} in {path.name}, found {fields['ElementType'][:40]!r}: save it as one "
            "of them",
            code="read.type",
        )
    if not _truth(fields, "BinaryData", path, default="True") or _is_scaled(fields, path):
        raise ReadError(f"{path.name} holds text, or scaled values: save it as plain binary", code="read.format")
    has_order = np.dtype(stored).itemsize > 1
    is_big = _truth(fields, "BinaryDataByteOrderMSB", path, default=None if has_order else "False")
    return Layout((num_values, *sizes), np.dtype(stored).newbyteorder(">" if is_big else "<"))


def _is_scaled(fields: Mapping[str, str], path: Path) -> bool:
    """MetaIO has a slope and an offset that readers differ in applying."""
    (slope,) = numbers(fields.get("ElementToIntensityFunctionSlope", "1"), float, 1, "slope", path)
    (offset,) = numbers(fields.get("ElementToIntensityFunctionOffset", "0"), float, 1, "offset", path)
    return (slope, offset) != (1.0, 0.0)


def _truth(fields: Mapping[str, str], key: str, path: Path, default: str | None = "False") -> bool:
    text = fields.get(key, default)
    truth = {"true": True, "1": True, "false": False, "0": False}.get((text or "").lower())
    if truth is None:
        raise damaged_header(path, f"{key} is {(text or '')[:20]!r}")
    return truth


def _affine(fields: Mapping[str, str], path: Path) -> np.ndarray:
    """Index to RAS [mm]."""
    missing = [key for key in ("TransformMatrix", "Offset", "ElementSpacing") if key not in fields]
    if missing:
        raise GeometryError(
            f"{path.name} does not say how it lies in the patient (no {', '.join(missing)}): export it again with its "
            "orientation",
            code="geometry.space",
        )
    num_axes = len(fields["DimSize"].split())
    rows = np.array(numbers(fields["TransformMatrix"], float, num_axes**2, "TransformMatrix", path))
    rows = rows.reshape(num_axes, num_axes)  # each row is the direction of one axis of the array
    spacing = np.array(numbers(fields["ElementSpacing"], float, num_axes, "ElementSpacing", path))
    is_mixed = num_axes == 4 and (rows[3, :3].any() or rows[:3, 3].any())
    lengths = np.linalg.norm(rows[:3, :3], axis=1)
    if is_mixed or not (np.abs(lengths - 1) < UNIT_LENGTH_TOLERANCE).all() or not (spacing > 0).all():
        raise GeometryError(
            f"expected directions of length 1 and positive spacings in {path.name}, found "
            f"{fields['TransformMatrix'][:80]!r} and {fields['ElementSpacing'][:40]!r}: export it again",
            code="geometry.affine",
        )
    affine = np.eye(4)
    affine[:3, :3] = rows[:3, :3].T * spacing[:3]
    affine[:3, 3] = numbers(fields["Offset"], float, num_axes, "Offset", path)[:3]
    affine[:2] *= -1  # LPS to RAS
    return affine
