"""Probabilities as a NIfTI file of four axes: the grid of the scan, and one volume for each structure."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from medseg.core.errors import CaseError, WriteError
from medseg.core.geometry import Geometry
from medseg.core.shapes import IJK
from medseg.core.volume import GridRecord
from medseg.io.atomic import write_atomically
from medseg.io.nifti import packed_file, result_header
from medseg.io.unpacking import unpacked

ENDING = "_probabilities"
"""Of the file's name, after that of the case."""

SUFFIX = f"{ENDING}.nii.gz"


def write_probabilities(
    path: Path,
    volumes: Iterable[UInt16[np.ndarray, IJK]],
    num_volumes: int,
    geometry: Geometry,
    record: GridRecord | None,
    *,
    largest: int,
    overwrite: bool = False,
) -> None:
    """Write volumes one after the other, so that only one of them is needed at a time; the header scales them to 0 to 1.

    A file that is there already is accepted where it is the same, as a killed run may have left it.

    Args:
        path: Ends with :data:`SUFFIX`.
        volumes: Whole numbers.
        num_volumes: How many.
        geometry: Of the scan.
        record: The scan's own words on its grid.
        largest: The number that stands for a probability of 1.
        overwrite: Whether another file of that name may be replaced.

    Raises:
        WriteError: Another file is there, or it cannot be written, or did not come back as it was written.
        ResourceError: The disk is full.
    """
    header = result_header((*geometry.shape_ijk, num_volumes), np.dtype("<u2"), geometry, record, path)
    header["scl_slope"] = 1 / largest
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as raw, packed_file(path, raw) as file:
            for content in _contents(bytes(header.binaryblock), volumes):
                digest.update(content)
                file.write(content)

    def check(written: Path) -> None:
        if _digest(written) != digest.digest():
            raise WriteError(f"{path.name} did not come back as it was written: check the disk", code="write.altered")
        if path.exists() and not overwrite and not filecmp.cmp(written, path, shallow=False):
            raise WriteError(
                f"{path.name} is there already and differs: give --overwrite, or another --out", code="write.exists"
            )

    write_atomically(path, write, check=check, overwrite=True)


def _contents(header: bytes, volumes: Iterable[UInt16[np.ndarray, IJK]]) -> Iterator[bytes]:
    no_extensions = bytes(4)
    yield header + no_extensions
    for volume in volumes:
        for plane in range(volume.shape[2]):
            yield volume[..., plane].astype("<u2", copy=False).tobytes(order="F")


def _digest(path: Path) -> bytes | None:
    """Of what is packed in a file, read to its very end; None where that is damaged."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            stream = unpacked(file, "gzip", path)
            while block := stream.read(2**20):
                digest.update(block)
    except CaseError:
        return None
    return digest.digest()
