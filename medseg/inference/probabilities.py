"""Probabilities on the file's grid, one volume for each structure, of which never more than one is held.

The label of a voxel is decided by its interpolated logits (:mod:`medseg.inference.resolve`), and so are the probabilities: the
softmax, or the sigmoids, of these very logits. Interpolating probabilities instead would give another largest one.

Planes come with all structures at once, in the order in which the network's grid is walked; a file wants one structure after
the other, in its own order. Between them lies a spool: an unnamed file to which each piece of a plane goes as it is finished,
packed, and that vanishes with the process. Most structures are absent from most planes, and what is 0 everywhere is not kept.

A probability is kept as an integer, ``round(p * 65535)``: steps of 1.5e-5 are finer than any network is sure of itself, half
of float32's size, and far from a structure exact zeros, which pack to nothing where floats leave noise.
"""

from __future__ import annotations

import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt16
from scipy import ndimage

from medseg.core.patch import PatchLocation
from medseg.core.shapes import ANY, IJK
from medseg.data.restore import GridMapping
from medseg.data.shear import Shear
from medseg.inference.description import ModelDescription
from medseg.inference.resolve import Activation, walked_first
from medseg.io.atomic import explained

BACKGROUND = "background"

SURE = 65535
"""What a probability of 1 is kept as."""

CHUNK_BYTES = 2**23
"""Size of the logits interpolated at a time [bytes]; with temporaries they take about three times as much."""

PACKING_LEVEL = 1
"""Of zlib: the spool is read once and thrown away."""


def probabilities_of(
    logits_CN: Float[np.ndarray, "logits ..."], activation: Activation
) -> UInt16[np.ndarray, "logits ..."]:
    """Probabilities as whole numbers up to :data:`SURE`.

    Where all logits are exactly 0 no window lay, and nothing was asked: it is background for certain.
    """
    unseen = ~logits_CN.any(axis=0)
    with np.errstate(
        over="ignore"
    ):  # of what is far from each other: exp(-infinity) is 0, and so is 1 / (1 + infinity)
        if activation == "softmax":
            shares = np.exp(logits_CN - logits_CN.max(axis=0))
            shares /= shares.sum(axis=0)
        else:
            shares = 1 / (1 + np.exp(-logits_CN))
    shares[:, unseen] = 0
    if activation == "softmax":
        shares[0, unseen] = 1
    shares *= SURE
    whole: np.ndarray = np.rint(shares).astype(np.uint16)
    return whole


class _Spool:
    """Arrays in an unnamed file: nothing is left of it, however the process ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.end = folder, 0
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise explained(error, folder) from error

    def put(self, arrays: Iterable[np.ndarray]) -> Integer[np.ndarray, " places"]:
        """Where each array begins, and where the last one ends; one that is 0 everywhere takes no room."""
        places = [self.end]
        try:
            self.file.seek(self.end)
            for array in arrays:
                content = zlib.compress(array.tobytes(), PACKING_LEVEL) if array.any() else b""
                self.file.write(content)
                places.append(places[-1] + len(content))
            self.file.flush()
        except OSError as error:
            raise explained(error, self.folder) from error
        self.end = places[-1]
        return np.array(places)

    def get(self, start: int, stop: int, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
        """One array again."""
        if start == stop:
            return np.zeros(shape, dtype)
        self.file.seek(start)
        return np.frombuffer(zlib.decompress(self.file.read(stop - start)), dtype).reshape(shape)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some voxels of the file.

    Attributes:
        where: Their place, as each kind of grid has it.
        shape: Of their values.
        places: In the spool, of the values of each structure.
    """

    where: Any
    shape: tuple[int, ...]
    places: Integer[np.ndarray, " places"]


class Probabilities(ABC):
    """Collects the probabilities of a case, plane after plane, and gives them structure after structure.

    Args:
        description: Of the networks.
        structures: Names of those whose probabilities are kept, in the schema's order.
        shape_ijk: Of the file's grid.
        folder: In which the spool lies.

    Attributes:
        names: Of the volumes: the structures, after ``background`` where the network has a logit of it.
    """

    def __init__(
        self, description: ModelDescription, structures: Sequence[str], shape_ijk: tuple[int, ...], folder: Path
    ) -> None:
        self.activation, self.shape_ijk = description.activation, shape_ijk
        lead = (BACKGROUND,) if self.activation == "softmax" else ()
        self.names = (*lead, *structures)
        self.kept = [(*lead, *description.labels.names).index(name) for name in self.names]
        self.spool = _Spool(folder)
        self.pieces: list[_Piece] = []
        self.before: Any = None  # the plane before; None at first

    @abstractmethod
    def add(self, number: int, logits_CRK: Float[np.ndarray, "channels rows columns"]) -> None:
        """The next plane of the network's grid; what lies between it and the one before is kept."""

    @abstractmethod
    def _insert(self, where: Any, values: UInt16[np.ndarray, ANY], volume_IJK: UInt16[np.ndarray, IJK]) -> None:
        """Write a piece to its place in a volume of the file's grid."""

    def _keep(self, where: Any, values: UInt16[np.ndarray, "logits ..."]) -> None:
        """Put the structures that are kept into the spool."""
        places = self.spool.put(values[number] for number in self.kept)
        self.pieces.append(_Piece(where, values.shape[1:], places))

    def volumes(self) -> Iterator[UInt16[np.ndarray, IJK]]:
        """The volume of each of :attr:`names`, one after the other, on the file's grid. Where no plane came: background."""
        self.before = None
        for number, name in enumerate(self.names):
            volume = np.full(self.shape_ijk, SURE if name == BACKGROUND else 0, np.uint16)
            for piece in self.pieces:
                start, stop = piece.places[number : number + 2].tolist()
                if start < stop or name == BACKGROUND:
                    self._insert(piece.where, self.spool.get(start, stop, np.uint16, piece.shape), volume)
            yield volume

    def close(self) -> None:
        """Forget all of it."""
        self.spool.file.close()


class UprightProbabilities(Probabilities):
    """Where the file's axes are those of the network's grid: a piece is some rows of a plane across the walked axis."""

    def __init__(
        self, mapping: GridMapping, walk_axis: int, box: PatchLocation, shape_ijk: tuple[int, ...], **given: Any
    ) -> None:
        super().__init__(shape_ijk=mapping.file_shape_ijk, **given)
        parts = [
            weights.within(first, size, whole)
            for weights, first, size, whole in zip(
                mapping.weights, box.start_ijk, box.shape_ijk, shape_ijk, strict=True
            )
        ]
        self.mapping, self.walk_axis, self.inside = mapping, walk_axis, tuple(rows for rows, _ in parts)
        self.walk, self.rows, self.columns = (parts[axis][1] for axis in walked_first(walk_axis))
        self.last = np.where(self.walk.weights > 0, self.walk.indices, -1).max(axis=1)

    def add(self, number: int, logits_CRK: Float[np.ndarray, "channels rows columns"]) -> None:
        """The next plane; the file's planes between it and the one before are kept."""
        for index in np.flatnonzero(self.last == number).tolist():
            plane = self._plane(index, number, logits_CRK)
            num_columns, num_rows = len(self.columns.indices), len(self.rows.indices)
            step = max(1, CHUNK_BYTES // (4 * len(plane) * max(1, num_columns)))
            for start in range(0, num_rows, step):
                rows = slice(start, min(start + step, num_rows))
                # The walked axis first, then rows, then columns, as labels are decided: the same sums.
                part = self.columns.apply(self.rows.rows(rows).apply(plane, 1), 2)
                self._keep((index, rows), probabilities_of(part, self.activation))
        self.before = logits_CRK

    def _plane(self, index: int, number: int, logits_CRK: np.ndarray) -> np.ndarray:
        """Logits of one plane of the file, still with the rows and columns of the network's grid."""
        plane = np.zeros_like(logits_CRK)
        for source, weight in zip(self.walk.indices[index].tolist(), self.walk.weights[index], strict=True):
            if weight > 0:
                plane += weight * (logits_CRK if source == number else self.before)
        return plane

    def _insert(self, where: Any, values: UInt16[np.ndarray, ANY], volume_IJK: UInt16[np.ndarray, IJK]) -> None:
        planes = np.moveaxis(self.mapping.in_network_axes(volume_IJK)[self.inside], self.walk_axis, 0)
        planes[where] = values


class ShearedProbabilities(Probabilities):
    """Where the file's grid is sheared against the network's: a piece is some voxels of one of the file's planes."""

    def __init__(
        self, shear: Shear, walk_axis: int, box: PatchLocation, shape_ijk: tuple[int, ...], **given: Any
    ) -> None:
        super().__init__(shape_ijk=shear.shape_ijk, **given)
        order = list(walked_first(walk_axis))
        start, self.size = np.array(box.start_ijk)[order], np.array(box.shape_ijk)[order]
        self.matrix = shear.to_network[order].copy()
        self.matrix[:, 3] -= start
        self.low = np.where(start > 0, -0.5, -np.inf)
        self.high = np.where(start + self.size < np.array(shape_ijk)[order], self.size - 0.5, np.inf)
        i, j = np.ogrid[: self.shape_ijk[0], : self.shape_ijk[1]]
        self.walked_IJ = self.matrix[0, 0] * i + self.matrix[0, 1] * j + self.matrix[0, 3]
        self.lowest, self.highest = float(self.walked_IJ.min()), float(self.walked_IJ.max())

    def add(self, number: int, logits_CRK: Float[np.ndarray, "channels rows columns"]) -> None:
        """The next plane; the file's voxels between it and the one before are kept."""
        low = -np.inf if self.before is None else number - 1
        high = np.inf if number == self.size[0] - 1 else number
        pair_C2RK = np.stack([logits_CRK if self.before is None else self.before, logits_CRK], axis=1)
        for k in range(self.shape_ijk[2]):
            step = float(self.matrix[0, 2] * k)
            if self.highest + step <= low or self.lowest + step > high:
                continue
            walked_IJ = self.walked_IJ + step
            self._add_points(k, np.stack(np.nonzero((walked_IJ > low) & (walked_IJ <= high))), number, pair_C2RK)
        self.before = logits_CRK

    def _add_points(self, k: int, points_2N: np.ndarray, number: int, pair_C2RK: np.ndarray) -> None:
        places_3N = self.matrix[:, :2] @ points_2N + (self.matrix[:, 2] * k + self.matrix[:, 3])[:, None]
        is_inside = ((places_3N >= self.low[:, None]) & (places_3N < self.high[:, None])).all(axis=0)
        points_2N, places_3N = points_2N[:, is_inside], places_3N[:, is_inside]
        places_3N[0] = np.clip(places_3N[0] - (number - 1), 0, 1)
        step = max(1, CHUNK_BYTES // (4 * len(pair_C2RK)))
        for start in range(0, points_2N.shape[1], step):
            part = slice(start, start + step)
            logits_CN = np.stack(
                [
                    ndimage.map_coordinates(of_one, places_3N[:, part], order=1, mode="nearest", prefilter=False)
                    for of_one in pair_C2RK
                ]
            )
            place = self.spool.put([points_2N[:, part].astype(np.int32)]).tolist()
            self._keep((k, *place, logits_CN.shape[1]), probabilities_of(logits_CN, self.activation))

    def _insert(self, where: Any, values: UInt16[np.ndarray, ANY], volume_IJK: UInt16[np.ndarray, IJK]) -> None:
        k, start, stop, num_points = where
        i, j = self.spool.get(start, stop, np.int32, (2, num_points))
        volume_IJK[i, j, k] = values


def collect_probabilities(
    description: ModelDescription,
    structures: Sequence[str],
    folder: Path,
    mapping: GridMapping,
    walk_axis: int,
    box: PatchLocation,
    shape_ijk: tuple[int, int, int],
) -> Probabilities:
    """What collects the probabilities of planes of a box of the network's grid.

    Args:
        description: Of the networks.
        structures: Names of those whose probabilities are kept, in the schema's order.
        folder: For the spool.
        mapping: From the network's grid to the file's.
        walk_axis: The axis of the network's grid across which planes come.
        box: The part of the network's grid that has logits.
        shape_ijk: Of the network's grid.
    """
    given = {"description": description, "structures": structures, "folder": folder}
    if mapping.shear is not None:
        return ShearedProbabilities(mapping.shear, walk_axis, box, shape_ijk, **given)
    return UprightProbabilities(mapping, walk_axis, box, shape_ijk, **given)
