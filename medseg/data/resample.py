"""Separable linear resampling between two grids that share their axes and their centre.

Each target voxel of an axis is a weighted sum of a few source voxels of that axis, so a volume is resampled one axis after
the other. All of it is plain NumPy: the way from file to label map needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import IGNORED
from medseg.core.shapes import ANY, IJK


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """How the voxels of one target axis are made of source voxels.

    Attributes:
        indices: ``indices[t]`` are the source voxels of target voxel ``t``, each inside the axis.
        weights: Their weights; each row sums to 1, all are non-negative.
    """

    indices: Integer[np.ndarray, "target taps"]
    weights: Float[np.ndarray, "target taps"]

    @property
    def is_identity(self) -> bool:
        """True where voxels are copied: all of the axis, or some of its rows."""
        return bool(self.weights.shape[1] == 1)

    def rows(self, rows: slice) -> AxisWeights:
        """The weights of some target voxels only."""
        return AxisWeights(self.indices[rows], self.weights[rows])

    def within(self, first: int, size: int, num_source: int) -> tuple[slice, AxisWeights]:
        """The target voxels that lie in a part of the source axis, and their weights over that part alone.

        A target voxel lies there if its centre is nearest to a source voxel of the part. At an end of the part its value is
        held, as it is at an end of the axis.

        Args:
            first, size: The part.
            num_source: Voxels of the whole source axis; what lies beyond an end of it belongs to the voxel at that end.
        """
        centres = (self.indices * self.weights.astype(np.float64)).sum(axis=1)
        low = first - 0.5 if first > 0 else -np.inf
        high = first + size - 0.5 if first + size < num_source else np.inf
        inside = np.flatnonzero((centres >= low) & (centres < high))
        rows = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
        return rows, AxisWeights(np.clip(self.indices[rows] - first, 0, size - 1), self.weights[rows])

    def apply(self, array: Shaped[np.ndarray, ANY], axis: int) -> Float[np.ndarray, ANY]:
        """Resample one axis of a floating-point array."""
        if self.is_identity:
            return array.take(self.indices[:, 0], axis=axis)
        array = array.astype(np.result_type(array, self.weights), copy=False)
        shape = [1] * array.ndim
        shape[axis] = len(self.indices)
        # Two arrays for all taps: fresh ones cost as much as the sums. The indices lie inside; "raise" would copy again.
        total = np.empty([*array.shape[:axis], len(self.indices), *array.shape[axis + 1 :]], array.dtype)
        part = np.empty_like(total)
        for tap in range(self.indices.shape[1]):
            target = part if tap else total
            array.take(self.indices[:, tap], axis=axis, out=target, mode="clip")
            target *= self.weights[:, tap].reshape(shape)
            if tap:
                total += part
        return total


def axis_weights(num_source: int, num_target: int, scale: float, *, smooth: bool) -> AxisWeights:
    """Weights between two axes that share their centre.

    Args:
        num_source, num_target: Voxels of each.
        scale: Target spacing over source spacing.
        smooth: Widen the triangle to the target's spacing where that is coarser, so that nothing between two target
            voxels is lost (a low-pass filter against aliasing). Without, it is plain linear interpolation.

    Beyond the outermost source voxel its value is held.
    """
    if num_source == num_target and scale == 1.0:
        return AxisWeights(np.arange(num_source)[:, None], np.ones((num_source, 1), np.float32))
    centres = (np.arange(num_target) - (num_target - 1) / 2) * scale + (num_source - 1) / 2
    support = max(scale, 1.0) if smooth else 1.0
    centres = np.clip(centres, 0, num_source - 1)
    first = np.floor(centres - support).astype(np.int64) + 1
    num_taps = int(np.ceil(2 * support))
    indices = first[:, None] + np.arange(num_taps)
    weights = np.maximum(0.0, 1.0 - np.abs(indices - centres[:, None]) / support)
    weights[(indices < 0) | (indices >= num_source)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return AxisWeights(np.clip(indices, 0, num_source - 1), weights.astype(np.float32))


def grid_weights(source: Geometry, target: Geometry, *, smooth: bool) -> tuple[AxisWeights, AxisWeights, AxisWeights]:
    """Weights for the three axes of two grids, one made by ``resampled`` from the other."""
    pairs = zip(source.shape_ijk, target.shape_ijk, source.spacing_ijk_mm, target.spacing_ijk_mm, strict=True)
    i, j, k = (
        # Counts and spacings that agree mean that `resampled` left the axis alone; the division only adds rounding.
        axis_weights(num_s, num_t, 1.0 if num_s == num_t and abs(to / of - 1) < 1e-6 else to / of, smooth=smooth)
        for num_s, num_t, of, to in pairs
    )
    return i, j, k


def resample(
    array: Float[np.ndarray, ANY], weights: Sequence[AxisWeights], order: Sequence[int] | None = None
) -> Float[np.ndarray, ANY]:
    """Resample the last three axes one after the other: in an order of :func:`resampling_order`, or of one's own."""
    lead = array.ndim - len(weights)
    for axis in resampling_order(weights, array.shape[lead:]) if order is None else order:
        untouched = weights[axis].is_identity and len(weights[axis].indices) == array.shape[lead + axis]
        array = array if untouched else weights[axis].apply(array, lead + axis)
    return array


def resampling_order(weights: Sequence[AxisWeights], shape: Sequence[int]) -> list[int]:
    """The axes, the one that shrinks most first, so that the others have less to do."""
    return sorted(range(len(weights)), key=lambda axis: len(weights[axis].indices) / shape[axis])


def resample_classes(
    classes: Integer[np.ndarray, IJK], weights: Sequence[AxisWeights]
) -> Integer[np.ndarray, "new_i new_j new_k"]:
    """Resample a map of class numbers: each class's mask linearly, then the largest share wins.

    Only the box of each class is touched. Equal shares go to the lower class number, and to :data:`IGNORED` last.
    """
    if all(axis.is_identity for axis in weights):
        return classes.copy()
    undecided = classes == IGNORED
    if not undecided.any():
        return _largest_share(classes, weights)
    last = int(classes.max()) + 1
    resampled = _largest_share(np.where(undecided, classes.dtype.type(last), classes), weights)
    resampled[resampled == last] = IGNORED
    return resampled


def _largest_share(classes: np.ndarray, weights: Sequence[AxisWeights]) -> np.ndarray:
    shape = tuple(len(axis.indices) for axis in weights)
    best = np.zeros(shape, np.float32)
    covered = np.zeros(shape, np.float32)
    winner = np.zeros(shape, classes.dtype)
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(classes)
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        rows = tuple(_touched(axis, part) for axis, part in zip(weights, box, strict=True))
        share = (classes[box] == number).astype(np.float32)
        for axis, (of_axis, part, row) in enumerate(zip(weights, box, rows, strict=True)):
            share = _cropped(of_axis.rows(row), part).apply(share, axis)
        covered[rows] += share
        wins = share > best[rows]
        best[rows] = np.where(wins, share, best[rows])
        winner[rows] = np.where(wins, number, winner[rows])
    winner[1.0 - covered >= best] = 0
    return winner


def _touched(weights: AxisWeights, part: slice) -> slice:
    """The target voxels that take anything from source voxels ``part``."""
    takes = ((weights.indices >= part.start) & (weights.indices < part.stop) & (weights.weights > 0)).any(axis=1)
    touched = np.flatnonzero(takes)
    return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)


def _cropped(weights: AxisWeights, part: slice) -> AxisWeights:
    """The same sums over an axis cut to ``part``, where all else is zero."""
    inside = (weights.indices >= part.start) & (weights.indices < part.stop)
    indices = np.clip(weights.indices - part.start, 0, part.stop - part.start - 1)
    return AxisWeights(indices, np.where(inside, weights.weights, np.float32(0)))
