"""The one checked door for volumes: every format into the same :class:`~medseg.core.volume.Volume`.

What cannot be read truly is refused in one sentence. A problem whose code the caller allows is dealt with, and told as
a note on the volume.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Num

from medseg.core.errors import GeometryError, LabelError, ReadError
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap, Note, Volume
from medseg.io import metaimage, nrrd
from medseg.io.nifti import SUFFIXES as NIFTI_SUFFIXES
from medseg.io.nifti import read_nifti
from medseg.io.unpacking import opened

NRRD_SUFFIXES, METAIMAGE_SUFFIXES = (".nrrd", ".nhdr"), (".mha", ".mhd")

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *METAIMAGE_SUFFIXES)
"""Names of volume files end so, in any case. DICOM files are known by their content, whatever they are called."""

MAX_LABEL = 65535
"""Largest label value that is read and written."""

WHOLE_TOLERANCE = 1e-3
"""How far a label may be from a whole number: headers store slopes as float32, so 255 · (1/255) is 1.00000006."""


ALLOWABLE = ("read.nonfinite", "dicom.duplicate_slice", "dicom.missing_slice", "dicom.uneven_gaps")
"""Codes of the problems that a caller may allow."""


def has_volume_suffix(path: Path) -> bool:
    """Whether a name ends as that of a volume file."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without the suffix of its format; a folder keeps its name."""
    if is_folder(path):
        return path.name if path.name not in ("", "..") else path.resolve().name
    for suffix in VOLUME_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; a name that the file system does not take is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder, which can only be a DICOM series, or a DICOM file."""
    if is_folder(path):
        return True
    try:
        if has_volume_suffix(path) or not path.is_file():
            return False
    except OSError:
        return False
    from medseg.io.dicom_file import is_dicom_file

    return is_dicom_file(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that an input is made of: of a series its folder's, of a header also the data file beside it."""
    name = path.name.lower()
    try:
        if is_folder(path):
            return tuple(sorted(file for file in path.iterdir() if file.is_file()))
        data = None
        if name.endswith(NRRD_SUFFIXES):
            data = nrrd.data_file_of(path)
        elif name.endswith(METAIMAGE_SUFFIXES):
            data = metaimage.data_file_of(path)
    except (OSError, ReadError):  # whoever reads it tells why
        data = None
    return (path,) if data is None else (path, data)


def read_volume(path: str | Path, *, num_channels: int = 1, allow: Collection[str] = ()) -> Volume:
    """Read a scan.

    Args:
        path: A volume file, a DICOM file of several frames, or the folder of a DICOM series.
        num_channels: Channels that the file must hold.
        allow: Codes of problems to go on with. ``read.nonfinite``: voxels that are NaN or infinite become the smallest
            finite value of their channel. More of them: :mod:`medseg.io.dicom_series`.

    Returns:
        The stored integers where the file does not scale them, else float32, all finite.

    Raises:
        ReadError: Missing, empty, truncated, damaged, of an unknown format, of other dimensions, or not finite.
        GeometryError: The grid is impossible, or not told.
    """
    path = Path(path)
    volume = _as_stored(path, num_channels, allow)
    if len(volume.array) != num_channels:
        raise ReadError(
            f"expected {num_channels} channels in {path.name}, found {len(volume.array)}", code="read.dimensions"
        )
    if volume.array.dtype.kind != "f":
        return volume
    notes = [_made_finite(channel, path, allow) for channel in volume.array]
    told = tuple(note for note in notes if note is not None)
    return Volume(volume.array, volume.geometry, volume.record, volume.notes + told)


def read_channels(paths: Sequence[Path], *, allow: Collection[str] = ()) -> Volume:
    """Read several files, of any formats, as the channels of one volume; the first one's grid counts.

    Raises:
        ReadError, GeometryError: As :func:`read_volume`; or two of them lie on different grids (``geometry.channels``).
    """
    volumes = [read_volume(path, allow=allow) for path in paths]
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        difference = first.geometry.difference(volume.geometry)
        if difference:
            raise GeometryError(
                f"{path.name} is not on the grid of {paths[0].name}: {difference}; resample it first",
                code="geometry.channels",
            )
    if len(volumes) == 1:
        return first
    dtype = np.result_type(*(volume.array for volume in volumes))
    dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
    array = np.concatenate([volume.array for volume in volumes], dtype=dtype, casting="same_kind")
    notes = tuple(note for volume in volumes for note in volume.notes)
    return Volume(array, first.geometry, first.record, notes)


def read_label_map(path: str | Path, *, allow: Collection[str] = ()) -> LabelMap:
    """Read a label map; its numbers come back in the smallest unsigned type that holds them.

    DICOM SEG and RTSTRUCT, which need a schema, are read by :mod:`medseg.io.dicom_labels`.

    Raises:
        ReadError, GeometryError: As :func:`read_volume`.
        LabelError: A value is not a whole number, negative, or above 65535.
    """
    path = Path(path)
    if is_dicom(path):
        raise ReadError(
            f"{path.name} is DICOM, whose labels need a dataset that names the structures: list it there as a label",
            code="read.format",
        )
    volume = _as_stored(path, 1, allow)
    array = volume.array[0]
    # Seen plane by plane, so that a large label map is held once.
    if array.dtype.kind == "f" and not all(_is_whole(array[..., plane]) for plane in range(array.shape[2])):
        raise LabelError(
            f"expected whole numbers in {path.name}, found fractions or NaN: it is no label map, or was "
            "interpolated; export it again",
            code="label.noninteger",
        )
    low, high = array.min(), array.max()
    if low <= -0.5 or high >= MAX_LABEL + 0.5:
        raise LabelError(
            f"expected label values 0 to {MAX_LABEL} in {path.name}, found {low} to {high}: correct the label map",
            code="label.range",
        )
    return LabelMap(_whole(array, np.uint8 if high < 255.5 else np.uint16), volume.geometry, volume.record)


def _as_stored(path: Path, num_channels: int, allow: Collection[str]) -> Volume:
    """By the reader of the format, which the name tells."""
    name = path.name.lower()
    if is_dicom(path):
        from medseg.io.dicom_series import read_dicom_series

        return read_dicom_series(path, allow=allow)
    if name.endswith(NRRD_SUFFIXES):
        return nrrd.read_nrrd(path, num_channels=num_channels)
    if name.endswith(METAIMAGE_SUFFIXES):
        return metaimage.read_metaimage(path, num_channels=num_channels)
    if name.endswith(NIFTI_SUFFIXES):
        return read_nifti(path, num_channels=num_channels)
    with opened(path):
        raise ReadError(
            f"{path.name} is no volume: expected {', '.join(VOLUME_SUFFIXES)} or DICOM; convert it, or leave it out",
            code="read.format",
        )


def _made_finite(channel: Num[np.ndarray, IJK], path: Path, allow: Collection[str]) -> Note | None:
    """Replace in place what is NaN or infinite, where that is allowed."""
    planes = [channel[..., plane] for plane in range(channel.shape[2])]  # views: a mask of all would be a second volume
    strange = [np.flatnonzero(~np.isfinite(plane)).size for plane in planes]
    num_strange = sum(strange)
    if num_strange == 0:
        return None
    counted = f"{path.name} holds {num_strange} voxels that are NaN or infinite, of {channel.size}"
    if num_strange == channel.size or "read.nonfinite" not in allow:
        raise ReadError(f"{counted}: export the scan again", code="read.nonfinite")
    smallest = min(float(plane[np.isfinite(plane)].min()) for plane in planes if np.isfinite(plane).any())
    for plane in planes:
        plane[~np.isfinite(plane)] = smallest
    return Note("read.nonfinite", f"{counted}: they became its smallest finite value, {smallest:g}")


def _is_whole(plane: Num[np.ndarray, "size_i size_j"]) -> bool:
    return bool(np.isfinite(plane).all() and (np.abs(plane - np.round(plane)) < WHOLE_TOLERANCE).all())


def _whole(array: Num[np.ndarray, IJK], target: type[np.uint8 | np.uint16]) -> Integer[np.ndarray, IJK]:
    if array.dtype.kind in "iu" and array.dtype.itemsize == np.dtype(target).itemsize:
        return array.view(target)  # the same bits: none is negative
    labels: np.ndarray = np.empty_like(array, dtype=target)
    for plane in range(array.shape[2]):
        labels[..., plane] = np.round(array[..., plane])
    return labels
