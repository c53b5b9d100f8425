"""Surfaces as marching cubes draws them: one element in each cell of 2x2x2 voxels that a structure's surface crosses.

Voxel borders count a slanted surface and a flat one by their voxels; elements weigh each place by the area [mm²] that
the surface has there. Source: Nikolov et al. 2018, arXiv:1809.04430, and DeepMind's ``surface-distance``, with which
the numbers agree.

A cell's *code* has a bit for each of its corners that is of the structure. The surface cuts the edges of the cell in
their middle, so its patches depend on the code alone. On each side of 4 corners the rarer ones are cut off; those that
are joined by edges of the cell share a patch, which is one of six:

    =================  =================================================================================
    1 corner           a triangle
    2                  a rectangle along their edge
    3                  half a face of the cell, and a trapezoid across
    4, a face          a rectangle as large as the face
    4, around one      a regular hexagon
    4, a chain         four triangles: two are diagonal to the cell, two lean along the chain's first and last edge
    =================  =================================================================================
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float, Integer

from medseg.core.geometry import Spacing3
from medseg.core.shapes import IJK
from medseg.metrics.surface import Surface, split_by_structure

Corner = tuple[int, ...]

CORNERS: tuple[Corner, ...] = tuple(product((0, 1), repeat=3))
"""Of a cell, in the order of the code's bits."""

NUM_CODES = 256

NORMALS = np.array([(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
"""Directions of all patches, without signs; as an area: that of a parallelogram with this normal, in faces of the cell."""

DIAGONAL, ALONG, FACE = 0, slice(1, 4), slice(4, 7)
"""Where in ``NORMALS``: the diagonal one, those at right angles to each axis, those of each axis."""


def element_surfaces(labels: Integer[np.ndarray, IJK], num_structures: int, spacing_ijk_mm: Spacing3) -> list[Surface]:
    """Surface elements of the structures 1 to ``num_structures`` of a label map whose outermost voxels are 0.

    Places are those of the cells' first corners: half a voxel off on each axis, for all alike. On a sheared grid, the
    areas are those of the upright grid of the same spacing.
    """
    cells = _mixed_cells(labels)
    strides = np.array([labels.shape[1] * labels.shape[2], labels.shape[2], 1])
    flat = labels.reshape(-1)
    corners = [flat[cells + int(step)] for step in np.array(CORNERS) @ strides]
    numbers, places, codes = [], [], []
    for bit, number in enumerate(corners):
        code = np.zeros(len(cells), dtype=np.uint8)
        for other_bit, other in enumerate(corners):
            code |= (number == other).view(np.uint8) << np.uint8(other_bit)
        # A structure's first corner in the cell speaks for it.
        own = np.flatnonzero((number > 0) & ((code & np.uint8((1 << bit) - 1)) == 0))
        numbers.append(number[own])
        places.append(cells[own])
        codes.append(code[own])
    of_structures = split_by_structure(np.concatenate(numbers), num_structures)
    all_places, all_codes, areas_mm2 = np.concatenate(places), np.concatenate(codes), element_areas_mm2(spacing_ijk_mm)
    return [Surface(all_places[own], areas_mm2[all_codes[own]]) for own in of_structures]


def element_areas_mm2(spacing_ijk_mm: Spacing3) -> Float[np.ndarray, " codes"]:
    """Area of the surface in a cell, by its code [mm²].

    Source: Lorensen & Cline 1987, "Marching cubes"; the four triangles of a chain as in DeepMind's ``surface-distance``.
    """
    i, j, k = spacing_ijk_mm
    areas: np.ndarray = _patches() @ np.linalg.norm(NORMALS * np.array([j * k, i * k, i * j]), axis=1)
    return areas


def _mixed_cells(labels: Integer[np.ndarray, IJK]) -> Integer[np.ndarray, " cells"]:
    """Flat indices of the first corners of cells that hold more than one number."""
    differs = labels[..., 1:] != labels[..., :-1]
    differs = differs[:, 1:] | differs[:, :-1]
    differs |= labels[:, 1:, :-1] != labels[:, :-1, :-1]
    is_mixed = np.zeros(labels.shape, dtype=bool)
    np.logical_or(differs[1:], differs[:-1], out=is_mixed[:-1, :-1, :-1])
    is_mixed[:-1, :-1, :-1] |= labels[1:, :-1, :-1] != labels[:-1, :-1, :-1]
    places: np.ndarray = np.flatnonzero(is_mixed)
    return places


@lru_cache(maxsize=1)
def _patches() -> Float[np.ndarray, "codes normals"]:
    """How much of each of ``NORMALS`` the surface in a cell has, by its code."""
    patches = np.zeros((NUM_CODES, len(NORMALS)))
    for code in range(NUM_CODES):
        inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
        rarer = inside if len(inside) <= len(CORNERS) // 2 else set(CORNERS) - inside
        for part in _joined(rarer):
            patches[code] += _patch(part)
    return patches


def _joined(corners: set[Corner]) -> list[set[Corner]]:
    """Groups of corners that edges of the cell join."""
    left, parts = set(corners), []
    while left:
        part, front = set(), {min(left)}
        while front:
            part |= front
            front = {other for corner in front for other in _across(corner) if other in left} - part
        left -= part
        parts.append(part)
    return parts


def _patch(part: set[Corner]) -> Float[np.ndarray, " normals"]:
    """The table on top of this file, in numbers."""
    num_edges = np.array([sum(_across(corner)[axis] in part for corner in part) // 2 for axis in range(3)])
    patch = np.zeros(len(NORMALS))
    most = max(sum(other in part for other in _across(corner)) for corner in part)
    match len(part), most:
        case 1, _:
            patch[DIAGONAL] = 1 / 8
        case 2, _:
            patch[ALONG] = num_edges / 2
        case 3, _:
            patch[DIAGONAL], patch[FACE] = 3 / 8, (num_edges == 0) / 2
        case 4, 3:
            patch[DIAGONAL] = 6 / 8
        case 4, _ if 0 in num_edges:
            patch[FACE] = num_edges == 0
        case _:
            ends = [corner for corner in part if sum(other in part for other in _across(corner)) == 1]
            patch[DIAGONAL] = 1 / 2
            for end in ends:
                patch[ALONG] += np.array([other in part for other in _across(end)]) / 4
    return patch


def _across(corner: Corner) -> list[Corner]:
    """The other ends of a corner's edges along each axis."""
    return [tuple(1 - place if a == axis else place for a, place in enumerate(corner)) for axis in range(3)]
