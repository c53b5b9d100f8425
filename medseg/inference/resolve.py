"""Resolving: logits are interpolated onto the exact grid of the file and decided there, in one step.

Deciding first and interpolating afterwards gives another answer: argmax and interpolation do not commute
(docs/decisions/0002). Three things make the exact answer cheap:

- *Two planes at a time.* A voxel of the file lies between two neighbouring planes of the network's grid. Once both are
  finished it is decided, and the planes before them are forgotten: the logits of a whole volume are never held.
- *Corners that agree.* Between the eight network voxels around it, a logit is a weighted mean of the eight logits there, with
  weights that are the same for all channels. So if all eight corners decide alike, every voxel between them decides like
  them, and no logit is interpolated: only voxels near a boundary between structures need arithmetic.
- *One byte.* What is written is the decision.

Legend: C channels (logits) · rows and columns are the two axes across the walked one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.patch import PatchLocation
from medseg.core.shapes import ANY, CIJK
from medseg.data.resample import AxisWeights
from medseg.data.restore import GridMapping
from medseg.data.shear import Shear

Activation = Literal["softmax", "sigmoid"]

Decision = Literal["softmax", "sigmoid", "regions"]
"""How logits become channel numbers; see :func:`decide`."""

CHUNK_BYTES = 2**20
"""Size of the logits interpolated at a time [bytes]; with temporaries they take three times as much, which stays in a
processor's own cache. Between a quarter and four times the size nothing changes (``benchmarks/restore_against_torch.py``)."""


def decide(logits_CIJK: Float[np.ndarray, "channels ..."], decision: Decision) -> Integer[np.ndarray, ANY]:
    """Channel number of each voxel.

    softmax: the largest logit. sigmoid: the largest of the structures' logits where it is positive (probability above
    one half), else background; the result counts background as channel 0 although it has no logit. regions: as sigmoid,
    but the last structure whose logit is positive, however large the others are: regions come before those inside them.

    Where all logits are 0, as where no window lay, the answer is background each time.

    Source: nnU-Net's ``convert_logits_to_segmentation`` for regions.
    """
    if decision == "regions":
        last = np.zeros(logits_CIJK.shape[1:], np.int16)
        for channel, logits_IJK in enumerate(logits_CIJK, start=1):
            last[logits_IJK > 0] = channel
        return last
    winner: np.ndarray = logits_CIJK.argmax(axis=0).astype(np.int16)
    if decision == "sigmoid":
        winner += 1
        winner[logits_CIJK.max(axis=0) <= 0] = 0
    return winner


def resolve(
    logits_CIJK: Float[np.ndarray, CIJK], mapping: GridMapping, decision: Decision
) -> Integer[np.ndarray, "file_i file_j file_k"]:
    """Channel numbers on the file's grid, in the file's own axes, of logits that are all there.

    Args:
        logits_CIJK: On the network's grid.
        mapping: From that grid to the file's.
        decision: How a voxel is decided.
    """
    shape = (logits_CIJK.shape[1], logits_CIJK.shape[2], logits_CIJK.shape[3])
    channels = np.zeros(mapping.file_shape_ijk, channel_dtype(len(logits_CIJK) + 1))
    # Across the first axis, along which planes lie in one piece.
    resolver = make_resolver(mapping, decision, 0, PatchLocation((0, 0, 0), shape), shape, channels)
    for number in range(shape[0]):
        resolver.add(number, logits_CIJK[:, number])
    return channels


def channel_dtype(num_channels: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type for so many channel numbers."""
    return np.dtype(np.uint8 if num_channels <= 256 else np.uint16)


def make_resolver(
    mapping: GridMapping,
    decision: Decision,
    walk_axis: int,
    box: PatchLocation,
    shape_ijk: tuple[int, int, int],
    channels: Integer[np.ndarray, "file_i file_j file_k"],
) -> UprightResolver | ShearedResolver:
    """What resolves the planes of a box of the network's grid.

    Args:
        mapping: From the network's grid to the file's.
        decision: How a voxel is decided.
        walk_axis: The axis of the network's grid across which planes come.
        box: The part of the network's grid that has logits; voxels of the file outside it stay as they are.
        shape_ijk: Of the network's grid.
        channels: On the file's grid, in the file's own axes; written.
    """
    if mapping.shear is not None:
        return ShearedResolver(mapping.shear, decision, walk_axis, box, shape_ijk, channels)
    parts = [
        weights.within(first, size, whole)
        for weights, first, size, whole in zip(mapping.weights, box.start_ijk, box.shape_ijk, shape_ijk, strict=True)
    ]
    target = mapping.in_network_axes(channels)[tuple(rows for rows, _ in parts)]
    walk, rows, columns = (parts[axis][1] for axis in walked_first(walk_axis))
    return UprightResolver(walk, rows, columns, decision, np.moveaxis(target, walk_axis, 0))


def walked_first(walk_axis: int) -> tuple[int, int, int]:
    """The three axes with the walked one in front."""
    rows, columns = (axis for axis in range(3) if axis != walk_axis)
    return walk_axis, rows, columns


@dataclass(frozen=True, eq=False)
class _Plane:
    """A finished plane of the network's grid.

    Attributes:
        logits: Channels last, so that all logits of a voxel lie side by side.
        channels: What each voxel decides.
    """

    logits: Float[np.ndarray, "rows columns channels"]
    channels: Integer[np.ndarray, "rows columns"]

    @classmethod
    def of(cls, logits_CRK: Float[np.ndarray, "channels rows columns"], decision: Decision) -> _Plane:
        return cls(np.ascontiguousarray(np.moveaxis(logits_CRK, 0, -1)), decide(logits_CRK, decision))


@dataclass(frozen=True, eq=False)
class _Points:
    """Voxels of the file between two planes, each with its network voxels and their weights along each axis.

    Attributes:
        places: Of each voxel, its place in the file's plane or volume, flat.
        weights: Of the lower and the upper plane; ``(2, 1)`` where all voxels share them.
        rows, row_weights: Network rows before and behind, and their weights.
        columns, column_weights: The same of columns.
    """

    places: Integer[np.ndarray, " points"]
    weights: Float[np.ndarray, "2 _"]
    rows: Integer[np.ndarray, "2 points"]
    row_weights: Float[np.ndarray, "2 points"]
    columns: Integer[np.ndarray, "2 points"]
    column_weights: Float[np.ndarray, "2 points"]

    def chunks(self, size: int) -> Iterator[_Points]:
        for start in range(0, len(self.places), size):
            part = slice(start, start + size)
            weights = self.weights if self.weights.shape[1] == 1 else self.weights[:, part]
            yield _Points(
                self.places[part],
                weights,
                self.rows[:, part],
                self.row_weights[:, part],
                self.columns[:, part],
                self.column_weights[:, part],
            )


def _decide_points(planes: Sequence[_Plane], points: _Points, decision: Decision, target: np.ndarray) -> None:
    """Interpolate all logits at some voxels and write what they decide into the flat ``target``."""
    _, num_columns, num_channels = planes[0].logits.shape
    for part in points.chunks(max(1, CHUNK_BYTES // (4 * num_channels))):
        corners = part.rows[:, None] * num_columns + part.columns[None]  # (row, column, point)
        logits_NC = np.zeros((len(part.places), num_channels), np.float32)
        # First across planes, then rows, then columns, as when whole volumes are resampled axis by axis: the same sums.
        for column in range(2):
            of_column = np.zeros_like(logits_NC)
            for row in range(2):
                found = [plane.logits.reshape(-1, num_channels).take(corners[row, column], axis=0) for plane in planes]
                found[0] *= part.weights[0][:, None]
                found[1] *= part.weights[1][:, None]
                found[0] += found[1]
                found[0] *= part.row_weights[row][:, None]
                of_column += found[0]
            of_column *= part.column_weights[column][:, None]
            logits_NC += of_column
        target[part.places] = decide(logits_NC.T, decision)


class UprightResolver:
    """Resolves where the file's axes are those of the network's grid, so that each axis has weights of its own.

    Args:
        walk: Weights of the walked axis; of one or two voxels each, as all here.
        rows, columns: Weights of the other two.
        decision: How a voxel is decided.
        target: Written: on the file's grid, the walked axis first.
    """

    def __init__(
        self,
        walk: AxisWeights,
        rows: AxisWeights,
        columns: AxisWeights,
        decision: Decision,
        target: Integer[np.ndarray, "planes rows columns"],
    ) -> None:
        self.decision, self.target = decision, target
        self.walk, self.walk_weights = _two_taps(walk)
        self.rows, self.row_weights = _two_taps(rows)
        self.columns, self.column_weights = _two_taps(columns)
        self.before: _Plane | None = None

    def add(self, number: int, logits_CRK: Float[np.ndarray, "channels rows columns"]) -> None:
        """The next plane; the file's planes between it and the one before are decided."""
        plane = _Plane.of(logits_CRK, self.decision)
        for index in np.flatnonzero(self.walk[1] == number).tolist():
            if self.walk[0, index] == number or self.before is None:
                self._decide(index, plane, plane)
            else:
                self._decide(index, self.before, plane)
        self.before = plane

    def _decide(self, index: int, lower: _Plane, upper: _Plane) -> None:
        """One plane of the file."""
        channels, is_mixed = self._agreed(lower.channels, upper.channels)
        places = np.flatnonzero(is_mixed)
        if len(places):
            row, column = np.divmod(places, channels.shape[1])
            points = _Points(
                places,
                self.walk_weights[:, index, None],
                self.rows[:, row],
                self.row_weights[:, row],
                self.columns[:, column],
                self.column_weights[:, column],
            )
            _decide_points((lower, upper), points, self.decision, channels.reshape(-1))
        self.target[index] = channels

    def _agreed(
        self, lower_RK: Integer[np.ndarray, "rows columns"], upper_RK: Integer[np.ndarray, "rows columns"]
    ) -> tuple[Integer[np.ndarray, "file_rows file_columns"], Bool[np.ndarray, "file_rows file_columns"]]:
        """What the corners of each voxel decide, and where they don't all decide alike; first by rows, then by columns."""
        first, last = self.rows
        of_rows = lower_RK.take(first, axis=0)
        differs = of_rows != lower_RK.take(last, axis=0)
        if upper_RK is not lower_RK:
            apart = lower_RK != upper_RK
            differs |= apart.take(first, axis=0) | apart.take(last, axis=0)
        first, last = self.columns
        channels = of_rows.take(first, axis=1)
        is_mixed = channels != of_rows.take(last, axis=1)
        is_mixed |= differs.take(first, axis=1)
        is_mixed |= differs.take(last, axis=1)
        return channels, is_mixed


class ShearedResolver:
    """Resolves where the file's grid is sheared against the network's: each voxel has a place of its own.

    Args:
        shear: The way from the file's voxels to the network's grid.
        decision: How a voxel is decided.
        walk_axis: The axis of the network's grid across which planes come.
        box: The part of the network's grid that has logits.
        shape_ijk: Of the network's grid.
        channels: On the file's grid; written.
    """

    def __init__(
        self,
        shear: Shear,
        decision: Decision,
        walk_axis: int,
        box: PatchLocation,
        shape_ijk: tuple[int, int, int],
        channels: Integer[np.ndarray, "file_i file_j file_k"],
    ) -> None:
        self.decision, self.channels = decision, channels
        self.order = walked_first(walk_axis)
        self.matrix = shear.to_network[list(self.order)].copy()
        start = np.array(box.start_ijk)[list(self.order)]
        self.size = np.array(box.shape_ijk)[list(self.order)]
        whole = np.array(shape_ijk)[list(self.order)]
        self.matrix[:, 3] -= start
        self.low = np.where(start > 0, -0.5, -np.inf)
        self.high = np.where(start + self.size < whole, self.size - 0.5, np.inf)
        self.before: _Plane | None = None
        i, j = np.ogrid[: channels.shape[0], : channels.shape[1]]
        self.walked_IJ = self.matrix[0, 0] * i + self.matrix[0, 1] * j + self.matrix[0, 3]
        self.lowest, self.highest = float(self.walked_IJ.min()), float(self.walked_IJ.max())

    def add(self, number: int, logits_CRK: Float[np.ndarray, "channels rows columns"]) -> None:
        """The next plane; the file's voxels between it and the one before are decided."""
        plane = _Plane.of(logits_CRK, self.decision)
        low = number - 1 if self.before is not None else -np.inf
        high = number if number < self.size[0] - 1 else np.inf
        for k in range(self.channels.shape[2]):
            step = float(self.matrix[0, 2] * k)
            if self.highest + step <= low or self.lowest + step > high:
                continue
            walked_IJ = self.walked_IJ + step
            chosen = np.nonzero((walked_IJ > low) & (walked_IJ <= high))
            if len(chosen[0]):
                self._decide((self.before or plane, plane), number, k, chosen, walked_IJ[chosen])
        self.before = plane

    def _decide(
        self, planes: tuple[_Plane, _Plane], number: int, k: int, chosen: tuple[np.ndarray, ...], walked_N: np.ndarray
    ) -> None:
        """Some voxels of one plane of the file."""
        i, j = chosen
        rows_N, columns_N = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in self.matrix[1:])
        inside = np.ones(len(i), dtype=bool)
        for place_N, low, high in zip((walked_N, rows_N, columns_N), self.low, self.high, strict=True):
            inside &= (place_N >= low) & (place_N < high)
        i, j, walked_N, rows_N, columns_N = (values[inside] for values in (i, j, walked_N, rows_N, columns_N))
        upper = np.clip(walked_N - (number - 1), 0.0, 1.0).astype(np.float32)
        rows, row_weights = _neighbours(rows_N, int(self.size[1]))
        columns, column_weights = _neighbours(columns_N, int(self.size[2]))
        points = _Points(
            i * self.channels.shape[1] + j, np.stack([1 - upper, upper]), rows, row_weights, columns, column_weights
        )
        corners = [plane.channels[row, column] for plane in planes for row in rows for column in columns]
        found = corners[0].astype(np.int16)
        is_mixed = np.any([corner != found for corner in corners[1:]], axis=0)
        plane_IJ = self.channels[:, :, k].reshape(-1)  # a copy, for its voxels do not lie side by side
        plane_IJ[points.places] = found
        if is_mixed.any():
            mixed = _Points(
                points.places[is_mixed], points.weights[:, is_mixed], rows[:, is_mixed],
                row_weights[:, is_mixed], columns[:, is_mixed], column_weights[:, is_mixed],
            )  # fmt: skip
            _decide_points(planes, mixed, self.decision, plane_IJ)
        self.channels[:, :, k] = plane_IJ.reshape(self.channels.shape[:2])


def _neighbours(
    places_N: Float[np.ndarray, " points"], size: int
) -> tuple[Integer[np.ndarray, "2 points"], Float[np.ndarray, "2 points"]]:
    """The two voxels of an axis around each place, and their weights; beyond an end its value is held."""
    clipped = np.clip(places_N, 0, size - 1)
    first = np.floor(clipped).astype(np.int64)
    after = (clipped - first).astype(np.float32)
    return np.stack([first, np.minimum(first + 1, size - 1)]), np.stack([1 - after, after])


def _two_taps(axis: AxisWeights) -> tuple[Integer[np.ndarray, "2 target"], Float[np.ndarray, "2 target"]]:
    """The one or two source voxels of each target voxel that count, ascending, and their weights.

    A voxel of weight 0 is not waited for: the other one stands in its place.
    """
    if axis.is_identity:
        indices = np.repeat(axis.indices.T, 2, axis=0)
        return indices, np.array([[1.0], [0.0]], np.float32).repeat(len(axis.indices), axis=1)
    lower, upper = axis.indices.T
    weights = axis.weights.T
    lower, upper = np.where(weights[0] > 0, lower, upper), np.where(weights[1] > 0, upper, lower)
    return np.stack([lower, upper]), weights
