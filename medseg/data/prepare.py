"""From a case to the network's grid: orientation, window, resampling, normalisation. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from jaxtyping import Float, Integer, Shaped

from medseg.core.case import Case, CompactCase, CompactChannel, PreparedCase
from medseg.core.errors import ReadError
from medseg.core.geometry import Geometry, Spacing3
from medseg.core.labels import LabelSchema
from medseg.core.shapes import CIJK, IJK
from medseg.data.config import (
    NoNormalisation,
    NonzeroZScoreNormalisation,
    Normalisation,
    RangeNormalisation,
    WindowNormalisation,
    ZScoreNormalisation,
)
from medseg.data.resample import AxisWeights, grid_weights, resample, resample_classes, resampling_order
from medseg.data.shear import straightened

SMALLEST_STD = 1e-6
"""An image with a smaller standard deviation is constant; dividing by it would only blow up rounding."""

SMALLEST_RANGE = 1e-8
"""The same for the difference between the smallest and the largest value. nnU-Net's number."""

SMALLEST_ROUNDED_STD = 10.0
"""Windowed intensities are kept as whole numbers where their standard deviation is at least this [HU for CT]: rounding
then moves no normalised voxel by more than 0.05, far less than the noise of a CT."""

SLAB_VOXELS = 2**22
"""Of the file, resampled at a time: 16 MiB as floats, and a few times that while an axis is resampled."""


def prepare(
    case: Case, schema: LabelSchema, spacing_ijk_mm: Spacing3, normalisation: Sequence[Normalisation]
) -> PreparedCase:
    """Bring a case onto the network's grid.

    The grid keeps the file's own directions (turned to R, A, S order without interpolation) and its centre; only the
    spacing changes, so that the preparation is undone axis by axis. A sheared grid (gantry tilt) is straightened first.

    Args:
        case: As read.
        schema: The dataset's structures.
        spacing_ijk_mm: Of the network's grid, along R, A, S [mm].
        normalisation: One for each image channel.

    Raises:
        ReadError: The image has another number of channels than the plan.
    """
    image, classes, grid = _on_grid(case, schema, spacing_ijk_mm, normalisation)
    for index, how in enumerate(normalisation):
        mean, std = scale_of(image[index], how)
        image[index] -= mean
        image[index] /= std
    return PreparedCase(
        id=case.id,
        image=image,
        classes=classes,
        annotated=case.annotated,
        geometry=grid,
        file_geometry=case.image.geometry,
        file_record=case.image.record,
    )


def prepare_compact(
    case: Case, schema: LabelSchema, spacing_ijk_mm: Spacing3, normalisation: Sequence[Normalisation]
) -> CompactCase:
    """Bring a labelled case onto the network's grid in the form that is kept; see :func:`prepare`.

    CT is rounded to whole HU, which is what scanners write. Relative units (MR, PET) are normalised first and kept in
    half precision: its 11 bits are finer than any image's noise, and z-scores, at most the square root of the number
    of voxels, lie within its range.
    """
    assert case.label is not None  # those that train and validate are labelled, see divide()
    image, classes, grid = _on_grid(case, schema, spacing_ijk_mm, normalisation)
    assert classes is not None
    return CompactCase(
        id=case.id,
        channels=tuple(_compact(channel, how) for channel, how in zip(image, normalisation, strict=True)),
        classes=classes.astype(np.int8 if classes.max() <= np.iinfo(np.int8).max else np.int16, copy=False),
        annotated=case.annotated,
        geometry=grid,
        file_geometry=case.image.geometry,
    )


def expanded(compact: CompactCase) -> PreparedCase:
    """A case that was kept as the network sees it."""
    channels = compact.channels
    return PreparedCase(
        id=compact.id,
        image=np.stack([normalised(channel.values, channel.mean, channel.std) for channel in channels]),
        classes=compact.classes.astype(np.int16),
        annotated=compact.annotated,
        geometry=compact.geometry,
        file_geometry=compact.file_geometry,
        file_record=None,
    )


def normalised(values: Shaped[np.ndarray, "*axes"], mean: float, std: float) -> Float[np.ndarray, "*axes"]:
    """What was kept as float32, centred and scaled; the same voxel gives the same bits, whatever is read with it."""
    result = values.astype(np.float32)
    result -= mean
    result /= std
    return result


def clipped(image: Shaped[np.ndarray, CIJK], normalisation: Sequence[Normalisation]) -> Float[np.ndarray, CIJK]:
    """Intensities cut to each channel's window, float32.

    Before any interpolation: padding of -3024 HU must not bleed into the skin beside it.
    """
    result = image.astype(np.float32)
    for channel, how in zip(result, normalisation, strict=True):
        if isinstance(how, WindowNormalisation):
            np.clip(channel, how.low, how.high, out=channel)
    return result


def _on_grid(
    case: Case, schema: LabelSchema, spacing_ijk_mm: Spacing3, normalisation: Sequence[Normalisation]
) -> tuple[Float[np.ndarray, CIJK], Integer[np.ndarray, IJK] | None, Geometry]:
    """Clipped intensities and class numbers on the network's grid, and that grid."""
    require_channels(case, len(normalisation))
    file_grid = case.image.geometry
    upright = file_grid.orthogonal
    grid = upright.canonical.resampled(spacing_ijk_mm)
    weights = grid_weights(upright.canonical, grid, smooth=True)
    if upright is file_grid:
        image = _resampled(upright.axes.to_canonical(case.image.array), weights, normalisation)
    else:
        whole = clipped(case.image.array, normalisation)
        lowest = (float(channel.min()) for channel in whole)
        straight = [
            straightened(channel, file_grid, upright, is_smooth=True, outside=low)
            for channel, low in zip(whole, lowest, strict=True)
        ]
        image = np.ascontiguousarray(resample(upright.axes.to_canonical(np.stack(straight)), weights))
    if case.label is None:
        return image, None, grid
    labels = schema.to_classes(case.label.array)
    if upright is not file_grid:
        labels = straightened(labels, file_grid, upright, is_smooth=False, outside=0.0)
    labels = upright.axes.to_canonical(labels)
    # Not smoothed: a structure just thicker than two voxels of this grid would fall below one half everywhere.
    return image, resample_classes(labels, grid_weights(upright.canonical, grid, smooth=False)), grid


def _resampled(
    image_CIJK: Shaped[np.ndarray, CIJK], weights: Sequence[AxisWeights], normalisation: Sequence[Normalisation]
) -> Float[np.ndarray, "channels new_i new_j new_k"]:
    """Clipped and resampled, a few planes at a time: as floats, a whole scan takes twice what its file's numbers take."""
    order = resampling_order(weights, image_CIJK.shape[1:])
    across, num_planes = weights[2], len(weights[2].indices)
    result = np.empty((len(image_CIJK), *(len(axis.indices) for axis in weights)), np.float32)
    source_voxels = image_CIJK.size / num_planes  # of the file, for one plane of the network's grid
    step = max(1, int(SLAB_VOXELS / max(source_voxels, image_CIJK[..., 0].size)))
    for start in range(0, num_planes, step):
        rows = slice(start, min(start + step, num_planes))
        first, stop = int(across.indices[rows].min()), int(across.indices[rows].max()) + 1
        slab = clipped(image_CIJK[..., first:stop], normalisation)
        here = AxisWeights(across.indices[rows] - first, across.weights[rows])
        result[..., rows] = resample(slab, (weights[0], weights[1], here), order)
    return result


def require_channels(case: Case, num_channels: int) -> None:
    """Raise ReadError where an image has another number of channels than the plan."""
    if len(case.image.array) != num_channels:
        raise ReadError(f"expected {num_channels} image channels, found {len(case.image.array)}", code="read.channels")


def scale_of(values: Float[np.ndarray, "*axes"], how: Normalisation) -> tuple[float, float]:
    """What is subtracted from a channel's values, and divided by."""
    match how:
        case WindowNormalisation(mean=mean, std=std):
            return mean, std
        case ZScoreNormalisation() | NonzeroZScoreNormalisation():
            return float(values.mean(dtype=np.float64)), max(float(values.std(dtype=np.float64)), SMALLEST_STD)
        case RangeNormalisation():
            lowest = float(values.min())
            return lowest, max(float(values.max()) - lowest, SMALLEST_RANGE)
        case NoNormalisation():
            return 0.0, 1.0
        case _:
            assert_never(how)


def _compact(channel: Float[np.ndarray, IJK], how: Normalisation) -> CompactChannel:
    whole = np.iinfo(np.int16)
    if (
        isinstance(how, WindowNormalisation)
        and how.std >= SMALLEST_ROUNDED_STD
        and whole.min <= how.low < how.high <= whole.max
    ):
        return CompactChannel(np.rint(channel).astype(np.int16), how.mean, how.std)
    scores = normalised(channel, *scale_of(channel, how))
    fits = np.abs(scores).max() <= np.finfo(np.float16).max
    return CompactChannel(scores.astype(np.float16) if fits else scores, 0.0, 1.0)
