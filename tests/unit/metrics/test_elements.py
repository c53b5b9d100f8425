"""Surface elements: laws of the area, on single cells and on bodies."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from medseg.metrics.elements import CORNERS, NUM_CODES, element_areas_mm2, element_surfaces

SPACING = (0.7, 1.9, 3.1)


def code_of(corners: set[tuple[int, ...]]) -> int:
    return sum(1 << bit for bit, corner in enumerate(CORNERS) if corner in corners)


def corners_of(code: int) -> set[tuple[int, ...]]:
    return {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}


def test_only_empty_and_full_cells_have_no_surface() -> None:
    areas = element_areas_mm2(SPACING)
    assert set(np.flatnonzero(areas == 0)) == {0, NUM_CODES - 1}
    assert (areas >= 0).all()


def test_inside_and_outside_have_the_same_surface() -> None:
    areas = element_areas_mm2(SPACING)
    assert areas == pytest.approx(areas[::-1], abs=1e-12)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_turning_and_mirroring_a_cell_turns_its_spacing(order: tuple[int, int, int]) -> None:
    areas = element_areas_mm2(SPACING)
    i, j, k = (SPACING[axis] for axis in order)
    turned = element_areas_mm2((i, j, k))
    for flips in product((0, 1), repeat=3):
        for code in range(NUM_CODES):
            corners = {
                tuple(corner[axis] ^ flip for axis, flip in zip(order, flips, strict=True))
                for corner in corners_of(code)
            }
            assert turned[code_of(corners)] == pytest.approx(areas[code])


def test_patches_by_hand() -> None:
    areas = element_areas_mm2((1.0, 2.0, 3.0))
    assert areas[code_of({(0, 0, 0)})] == pytest.approx(np.linalg.norm(np.cross([-0.5, 1, 0], [-0.5, 0, 1.5])) / 2)
    assert areas[code_of({(0, 0, 0), (1, 0, 0)})] == pytest.approx(1.0 * np.hypot(1.0, 1.5)), "a rectangle along axis 0"
    assert areas[code_of({(0, 0, 0), (1, 1, 1)})] == pytest.approx(2 * areas[code_of({(0, 0, 0)})]), "two corners"
    assert areas[code_of({c for c in CORNERS if c[2] == 0})] == pytest.approx(1.0 * 2.0), "flat"
    hexagon = element_areas_mm2((1.0, 1.0, 1.0))[code_of({(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)})]
    assert hexagon == pytest.approx(1.5 * np.sqrt(3) * 0.5), "regular, with sides of sqrt(1/2)"


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 4), (2, 5, 7)])
def test_a_block_has_flat_faces_and_cut_edges(shape: tuple[int, int, int]) -> None:
    labels = np.pad(np.ones(shape, np.uint8), 1)
    (surface,) = element_surfaces(labels, 1, SPACING)
    i, j, k = (size - 1 for size in shape)
    x, y, z = SPACING
    faces = 2 * (i * j * x * y + j * k * y * z + i * k * x * z)
    edges = 2 * (i * x * np.hypot(y, z) + j * y * np.hypot(x, z) + k * z * np.hypot(x, y))
    corners = np.linalg.norm([x * y, y * z, x * z])
    assert surface.weights.sum() == pytest.approx(faces + edges + corners)
    assert len(surface.places) == np.prod(np.add(shape, 1)) - np.prod(np.subtract(shape, 1))


@pytest.mark.parametrize("radius", [12, 25])
def test_a_ball_has_nearly_its_area(radius: int) -> None:
    centre = np.indices([2 * radius + 5] * 3) - (radius + 2)
    ball = np.linalg.norm(centre, axis=0) <= radius
    (surface,) = element_surfaces(ball.astype(np.uint8), 1, (1.0, 1.0, 1.0))
    # Cut half-way between voxels, a slanted surface has steps: 9 % more on a ball, whatever its size.
    assert surface.weights.sum() == pytest.approx(1.09 * 4 * np.pi * radius**2, rel=0.02)


def test_structures_of_a_map_have_the_elements_that_they_have_alone() -> None:
    rng = np.random.default_rng(4)
    labels = np.pad(rng.choice([0, 1, 2, 3, 300], (9, 8, 7)).astype(np.uint16), 1)
    together = element_surfaces(labels, 300, SPACING)
    for number in (1, 2, 3, 300):
        (alone,) = element_surfaces((labels == number).astype(np.uint8), 1, SPACING)
        found = together[number - 1]
        order, order_alone = np.argsort(found.places), np.argsort(alone.places)
        assert (found.places[order] == alone.places[order_alone]).all()
        assert found.weights[order] == pytest.approx(alone.weights[order_alone])
    assert len(together[99].places) == 0
