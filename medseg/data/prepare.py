"""From a case to the network's grid: orientation, window, resampling, normalisation. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from medseg.core.case import Case, PreparedCase
from medseg.core.errors import ReadError
from medseg.core.geometry import Spacing3
from medseg.core.labels import LabelSchema
from medseg.core.shapes import CIJK
from medseg.data.config import Normalisation, WindowNormalisation
from medseg.data.resample import grid_weights, resample, resample_classes
from medseg.data.shear import straightened

SMALLEST_STD = 1e-6
"""An image with a smaller standard deviation is constant; dividing by it would only blow up rounding."""


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
    if len(case.image.array) != len(normalisation):
        raise ReadError(
            f"expected {len(normalisation)} image channels, found {len(case.image.array)}", code="read.channels"
        )
    file_grid = case.image.geometry
    upright = file_grid.orthogonal
    grid = upright.canonical.resampled(spacing_ijk_mm)
    weights = grid_weights(upright.canonical, grid, smooth=True)
    image = clipped(case.image.array, normalisation)
    if upright is not file_grid:
        lowest = (float(channel.min()) for channel in image)
        image = np.stack(
            [
                straightened(channel, file_grid, upright, is_smooth=True, outside=low)
                for channel, low in zip(image, lowest, strict=True)
            ]
        )
    image = np.ascontiguousarray(resample(upright.axes.to_canonical(image), weights))
    classes = None
    if case.label is not None:
        labels = schema.to_classes(case.label.array)
        if upright is not file_grid:
            labels = straightened(labels, file_grid, upright, is_smooth=False, outside=0.0)
        labels = upright.axes.to_canonical(labels)
        # Not smoothed: a structure just thicker than two voxels of this grid would fall below one half everywhere.
        classes = resample_classes(labels, grid_weights(upright.canonical, grid, smooth=False))
    return PreparedCase(
        id=case.id,
        image=normalised(image, normalisation),
        classes=classes,
        annotated=case.annotated,
        geometry=grid,
        file_geometry=file_grid,
        file_record=case.image.record,
    )


def clipped(image: Shaped[np.ndarray, CIJK], normalisation: Sequence[Normalisation]) -> Float[np.ndarray, CIJK]:
    """Intensities cut to each channel's window, float32.

    Before any interpolation: padding of -3024 HU must not bleed into the skin beside it.
    """
    result = image.astype(np.float32)
    for channel, how in zip(result, normalisation, strict=True):
        if isinstance(how, WindowNormalisation):
            np.clip(channel, how.low, how.high, out=channel)
    return result


def normalised(image: Float[np.ndarray, CIJK], normalisation: Sequence[Normalisation]) -> Float[np.ndarray, CIJK]:
    """Intensities centred and scaled, in place."""
    for index, how in enumerate(normalisation):
        if isinstance(how, WindowNormalisation):
            mean, std = how.mean, how.std
        else:
            mean = float(image[index].mean(dtype=np.float64))
            std = max(float(image[index].std(dtype=np.float64)), SMALLEST_STD)
        image[index] -= mean
        image[index] /= std
    return image
