"""Scans out: a volume of one or more channels as a NIfTI file, plane by plane, so that large ones need little memory."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medseg.core.errors import CaseError, WriteError
from medseg.core.volume import Volume
from medseg.io.atomic import write_atomically
from medseg.io.linking import GZIP_LEVEL
from medseg.io.nifti import read_nifti

HEADER_BYTES = 352
"""Of a one-file NIfTI-1: the header, and four zeros that say "no extension". nifti1.h."""


def write_volume(path: Path, volume: Volume, *, overwrite: bool = False) -> None:
    """Write a volume as .nii.gz; several channels lie along the fourth axis, as in the Decathlon.

    Numbers keep their type and value, the grid its affine, codes and units. The file is read back before it gets its
    name.

    Raises:
        WriteError: It exists, cannot be written or be NIfTI, or did not come back as it was written.
        ResourceError: The disk is full.
    """
    try:
        header = _header(volume)
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise WriteError(f"{path.name} cannot be a NIfTI file: {error}", code="write.header") from error

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file, gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
            packed.write(header.binaryblock.ljust(HEADER_BYTES, b"\0"))
            for channel in volume.array:
                for plane in range(channel.shape[2]):
                    packed.write(channel[..., plane].tobytes(order="F"))

    def check(temporary: Path) -> None:
        if not is_written(temporary, volume):
            raise WriteError(f"{path.name} did not come back as it was written: check the disk", code="write.altered")

    write_atomically(path, write, check=check, overwrite=overwrite)


def is_written(path: Path, volume: Volume) -> bool:
    """Whether a NIfTI file holds a volume: the same numbers of the same type on the same grid."""
    try:
        back = read_nifti(path, num_channels=len(volume.array))
    except CaseError:
        return False
    if back.geometry.difference(volume.geometry) or back.array.dtype != volume.array.dtype:
        return False
    return np.array_equal(back.array, volume.array)


def _header(volume: Volume) -> nib.Nifti1Header:
    num_channels, *shape_ijk = volume.array.shape
    header = nib.Nifti1Header()
    header.set_data_dtype(volume.array.dtype)
    header.set_data_shape(shape_ijk if num_channels == 1 else (*shape_ijk, num_channels))
    if volume.record is None:
        header.set_xyzt_units("mm")
        header.set_qform(volume.geometry.affine_ras, 1)
        header.set_sform(volume.geometry.affine_ras, 1)
    else:
        for field, value in volume.record.fields.items():
            header[field] = value
    header["magic"], header["vox_offset"] = b"n+1", HEADER_BYTES
    header.set_slope_inter(1, 0)
    return header
