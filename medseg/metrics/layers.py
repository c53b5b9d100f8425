"""The structures of a case as label maps of the numbers 1, 2, …, cut to where they are: what the measures work on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from medseg.core.geometry import Geometry, Spacing3
from medseg.core.labels import Structure
from medseg.core.shapes import IJK
from medseg.metrics.surface import search_margin

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """Structures that share no voxel, and their label maps: a voxel of ``structures[n - 1]`` holds ``n``.

    Attributes:
        structures: As in the schema.
        prediction, reference: Cut to what is labelled, with empty voxels around; axes in the order of memory.
        axes_mm: One voxel along each of these axes, as columns [mm].
    """

    structures: tuple[Structure, ...]
    prediction: Integer[np.ndarray, IJK]
    reference: Integer[np.ndarray, IJK]
    axes_mm: Float[np.ndarray, "3 3"]

    @property
    def spacing_mm(self) -> Spacing3:
        """Along each axis."""
        i, j, k = (float(length) for length in np.linalg.norm(self.axes_mm, axis=0))
        return i, j, k


def build_layers(
    prediction: Integer[np.ndarray, IJK],
    reference: Integer[np.ndarray, IJK],
    geometry: Geometry,
    structures: Sequence[Structure],
    ignore_value: int | None,
) -> Iterator[Layer]:
    """One layer for all structures, or several where regions overlap.

    A voxel that the reference ignores is of no structure in either map, so a surface ends there in both.

    Args:
        prediction, reference: Label values.
        geometry: The grid of both.
        structures: Those that are wanted.
        ignore_value: Of the reference.
    """
    # Files give arrays in Fortran order: along memory everything is several times faster.
    order = sorted(range(3), key=lambda axis: -abs(reference.strides[axis]))
    maps = [array.transpose(order) for array in (prediction, reference)]
    columns = geometry.affine_ras[:3, :3] if not geometry.is_orthogonal else np.diag(geometry.spacing_ijk_mm)
    axes_mm = columns[:, order]
    box = _labelled_box(maps)
    prediction, reference = (array[box] for array in maps)
    for together in _disjoint(structures):
        predicted_values = [_values(structure) for structure in together]
        contoured_values = [set(structure.reference_values) for structure in together]
        margin = search_margin(axes_mm)
        predicted, contoured = (
            _numbered(array, values, margin)
            for array, values in ((prediction, predicted_values), (reference, contoured_values))
        )
        if ignore_value is not None:
            core = tuple(slice(width, -width) for width in margin)
            predicted[core][reference == ignore_value] = 0
        yield Layer(together, predicted, contoured, axes_mm)


def _disjoint(structures: Sequence[Structure]) -> list[tuple[Structure, ...]]:
    """Groups of structures whose values differ."""
    groups: list[list[Structure]] = []
    for structure in structures:
        values = _values(structure)
        fitting = (group for group in groups if all(values.isdisjoint(_values(other)) for other in group))
        group = next(fitting, None)
        if group is None:
            groups.append([structure])
        else:
            group.append(structure)
    return [tuple(group) for group in groups]


def _values(structure: Structure) -> set[int]:
    """What a voxel of it may hold in either map: a prediction is written with the structure's own value too."""
    return {structure.value, *structure.reference_values}


def _labelled_box(maps: list[np.ndarray]) -> Box:
    """Around all voxels of either map that are not background; empty where there are none."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(maps[0].any(axis=others) | maps[1].any(axis=others))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0))
    return tuple(box)


def _numbered(
    array: Integer[np.ndarray, IJK], values: Sequence[set[int]], margin: tuple[int, int, int]
) -> Integer[np.ndarray, "wide_i wide_j wide_k"]:
    """The number of the structure that a voxel's value is of, 0 for none and in the margin."""
    dtype = np.dtype(np.uint8 if len(values) < 256 else np.uint16)
    table = np.zeros(max(max(of_structure) for of_structure in values) + 2, dtype=dtype)
    for number, of_structure in enumerate(values, start=1):
        table[list(of_structure)] = number
    size_i, size_j, size_k = (size + 2 * width for size, width in zip(array.shape, margin, strict=True))
    numbers = np.zeros((size_i, size_j, size_k), dtype=dtype)
    core = numbers[tuple(slice(width, -width) for width in margin)]
    for plane, of_plane in zip(core, array, strict=True):  # at once, the indices would take 8 bytes a voxel
        # Values beyond the table are of no structure.
        plane[:] = np.take(table, of_plane.astype(np.intp), mode="clip")
    return numbers
