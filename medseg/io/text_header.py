"""What NRRD and MetaImage have in common: a header of text lines, and voxels behind it or in a file beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Num

from medseg.core.errors import GeometryError, ReadError
from medseg.core.geometry import Geometry, Shape3
from medseg.io.unpacking import Layout, Packing, check_promise, opened, read_voxels, size_of, unpacked

MAX_HEADER_BYTES = 2**20
"""A segmentation of hundreds of structures, each with its codes, has a header of 200 kB."""

Number = TypeVar("Number", int, float)


def header_lines(file: io.BufferedReader, path: Path) -> Iterator[str]:
    """The lines at a file's beginning, without their ends.

    Raises:
        ReadError: They go on for more than a megabyte.
    """
    num_left = MAX_HEADER_BYTES
    while line := file.readline(num_left):
        num_left -= len(line)
        if num_left <= 0:
            raise ReadError(f"the header of {path.name} does not end: it is damaged", code="read.header")
        yield os.fsdecode(line).rstrip("\r\n")  # names of files in it are in the file system's own encoding


def damaged_header(path: Path, reason: str) -> ReadError:
    """The error of a header that contradicts itself or its format.

    Headers hold names of patients: of their texts, only numbers and words of the format belong into ``reason``.
    """
    return ReadError(f"{path.name} has a damaged header ({reason}): export it again", code="read.header")


def numbers(text: str, kind: Callable[[str], Number], count: int, where: str, path: Path) -> tuple[Number, ...]:
    """So many numbers, as they stand behind a header's key.

    Raises:
        ReadError: There are more or fewer, or they are none.
    """
    try:
        found = tuple(kind(word) for word in text.split())
    except (ValueError, OverflowError):
        found = ()
    if len(found) != count:
        raise damaged_header(path, f"expected {count} numbers for {where}, found {text[:60]!r}")
    return found


def placed(affine: np.ndarray, shape_ijk: Shape3, path: Path) -> Geometry:
    """The grid; its error names the file.

    Raises:
        GeometryError: It is impossible.
    """
    try:
        with np.errstate(all="ignore"):  # an absurd affine overflows, and is then refused in words
            return Geometry(affine, shape_ijk)
    except GeometryError as error:
        raise GeometryError(f"{path.name}: {error.message}", code=error.code) from error


def read_behind(
    file: io.BufferedReader, layout: Layout, packing: Packing | None, skip: int, path: Path
) -> Num[np.ndarray, "*axes"]:
    """The voxels from where an open file stands to its end.

    Args:
        file: Open, behind its header.
        layout: Of the voxels.
        packing: How they are packed.
        skip: Bytes to leave out first, only where nothing is packed; -1: all but the voxels.
        path: For messages.

    Raises:
        ReadError: They are cut, damaged, or cannot be there.
    """
    if skip < -1 or (skip and packing is not None):
        raise damaged_header(path, f"{skip} bytes to skip")
    num_there = size_of(file) - file.tell()
    skip = max(num_there - layout.num_bytes, 0) if skip == -1 else skip
    check_promise(skip + layout.num_bytes, num_there, packing, layout, path)
    file.seek(skip, io.SEEK_CUR)
    return read_voxels(unpacked(file, packing, path), layout, path)


def beside(path: Path, name: str) -> Path:
    """The data file that a header names, in the header's own folder; that of a linked header is where the header is.

    Raises:
        ReadError: It is elsewhere (``read.outside``) or missing.
    """
    plain = name.removeprefix("./")
    if plain in ("", "..") or any(character in plain for character in "/\\:\0"):
        raise ReadError(
            f"{path.name} names a data file in another folder, {name[:60]!r}: put it beside its header",
            code="read.outside",
        )
    data = path.resolve().parent / plain
    if not data.is_file():
        raise ReadError(f"the data file {data.name} of {path.name} is missing: copy both", code="read.missing")
    return data


def read_beside(path: Path, name: str, layout: Layout, packing: Packing | None, skip: int) -> Num[np.ndarray, "*axes"]:
    """The voxels of the file that a header names.

    Raises:
        ReadError: As :func:`beside` and :func:`read_behind` do.
    """
    data = beside(path, name)
    with opened(data) as file:
        return read_behind(file, layout, packing, skip, data)
