"""What the manifest says of each structure in a label map: its volume, its mean HU, whether the scan cuts it off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.core.volume import Volume


def volumes_ml(channels: Integer[np.ndarray, IJK], geometry: Geometry, schema: LabelSchema) -> dict[str, float]:
    """Volume of each structure [ml], 0 where it was not found."""
    planes = np.moveaxis(channels, -1, 0)  # one at a time: counting takes eight bytes a voxel
    written = sum((np.bincount(plane.ravel(), minlength=schema.num_channels) for plane in planes), start=0)
    counts = written @ schema.counts_as
    return {
        name: round(float(count) * geometry.voxel_volume_ml, 4)
        for name, count in zip(schema.names, counts[1:], strict=True)
    }


def mean_hu(
    channels: Integer[np.ndarray, IJK], image: Volume, modalities: Sequence[str], schema: LabelSchema
) -> dict[str, float | None]:
    """Mean HU of each structure's voxels in the scan as it was read; None where it was not found, and all None without CT.

    Args:
        channels: Channel numbers on the image's grid.
        image: As read.
        modalities: Of its channels; the first that is CT is measured.
        schema: Of the channel numbers.
    """
    if "CT" not in modalities:
        return dict.fromkeys(schema.names)
    hu = image.array[modalities.index("CT")]
    written, sums = np.zeros(schema.num_channels), np.zeros(schema.num_channels)
    for plane, hu_of_plane in zip(np.moveaxis(channels, -1, 0), np.moveaxis(hu, -1, 0), strict=True):
        numbers = plane.ravel()
        written += np.bincount(numbers, minlength=schema.num_channels)
        sums += np.bincount(numbers, weights=hu_of_plane.ravel(), minlength=schema.num_channels)
    counts, totals = written @ schema.counts_as, sums @ schema.counts_as
    return {
        name: round(float(total / count), 2) if count else None
        for name, total, count in zip(schema.names, totals[1:], counts[1:], strict=True)
    }


def truncated(channels: Integer[np.ndarray, IJK], schema: LabelSchema) -> tuple[str, ...]:
    """Structures with a voxel on the first or last plane of any axis."""
    faces = [channels.take(plane, axis).ravel() for axis in range(3) for plane in (0, -1)]
    touching = schema.counts_as[np.unique(np.concatenate(faces))].any(axis=0)
    return tuple(name for name, touches in zip(schema.names, touching[1:], strict=True) if touches)
