"""Distances between surfaces, against every pair of points and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from medseg.metrics.surface import NearestSearch, Surface, SurfaceDistances, border_surfaces, search_margin


def padded(labels: np.ndarray, axes_mm: np.ndarray) -> np.ndarray:
    return np.pad(labels, [(width, width) for width in search_margin(axes_mm)])


def borders_by_hand(labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of voxels of a structure with one of 6 neighbours outside it."""
    mask = np.pad(labels == number, 1)
    neighbours = [np.roll(mask, step, axis) for axis in range(3) for step in (1, -1)]
    return np.argwhere((mask & ~np.logical_and.reduce(neighbours))[1:-1, 1:-1, 1:-1])


def axes_of(spacing: tuple[float, float, float], shear: float) -> np.ndarray:
    axes = np.diag(spacing)
    axes[0, 2] = shear * spacing[2]
    return axes


@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    shear=st.sampled_from([0.0, 0.3]),
    density=st.sampled_from([0.002, 0.05, 0.4, 0.95]),
)
@settings(max_examples=60)
def test_distances_of_all_structures_agree_with_all_pairs(
    seed: int, spacing: tuple[float, float, float], shear: float, density: float
) -> None:
    """Near ones, which the neighbours find, and far ones, for which the tree is asked."""
    rng = np.random.default_rng(seed)
    axes_mm = axes_of(spacing, shear)
    maps = [np.where(rng.random((14, 11, 17)) < density, rng.integers(1, 4, (14, 11, 17)), 0) for _ in range(2)]
    for labels in maps:
        labels[tuple(rng.integers(0, 11, 3))] = 2
    wide = [padded(labels.astype(np.uint8), axes_mm) for labels in maps]
    surfaces = zip(*(border_surfaces(labels, 3) for labels in wide), strict=True)
    search = NearestSearch(wide[0].shape, axes_mm)
    for number, pair in enumerate(surfaces, start=1):
        points = [borders_by_hand(labels, number) @ axes_mm.T for labels in maps]
        assert [len(surface.places) for surface in pair] == [len(of_map) for of_map in points]
        if all(len(of_map) for of_map in points):
            pairs = cdist(*points)
            found = search.between(*pair)
            assert found.there_mm == pytest.approx(pairs.min(axis=1), abs=1e-9)
            assert found.back_mm == pytest.approx(pairs.min(axis=0), abs=1e-9)


def test_points_on_near_and_far_from_the_other_surface() -> None:
    axes_mm, shape = np.diag([1.0, 2.0, 0.5]), (100, 100, 100)
    points = np.array([[10, 10, 10], [12, 10, 10], [10, 50, 10]])
    others = np.array([[10, 10, 10], [85, 85, 85]])
    places, other_places = (np.ravel_multi_index(of_side.T, shape) for of_side in (points, others))
    search = NearestSearch(shape, axes_mm)
    assert search.distances_mm(places, other_places) == pytest.approx([0.0, 2.0, 80.0])
    back_mm = [0.0, np.linalg.norm([75, 2 * 35, 75 / 2])]
    assert search.distances_mm(other_places, places) == pytest.approx(back_mm), "nothing of the first search is left"


def distances(there: list[float], back: list[float], areas: tuple[list[float], list[float]] | None) -> SurfaceDistances:
    surfaces = [
        Surface(np.arange(len(of_side)), None if areas is None else np.array(areas[side]))
        for side, of_side in enumerate((there, back))
    ]
    return SurfaceDistances(np.array(there), np.array(back), *surfaces)


def test_scores_of_borders_by_hand() -> None:
    found = distances([0.0, 1.0, 2.0, 3.0], [0.0, 4.0], None)
    assert found.surface_dice(2.0) == pytest.approx(4 / 6)
    assert found.hd95_mm() == pytest.approx(3.8), "95 % of the way from 0 to 4 is the larger one"
    assert found.assd_mm() == pytest.approx(10 / 6)


def test_scores_of_elements_by_hand() -> None:
    found = distances([3.0, 0.0, 1.0], [0.0, 9.0, 2.0], ([1.0, 18.0, 1.0], [10.0, 0.5, 9.5]))
    assert found.surface_dice(2.0) == pytest.approx((18 + 1 + 10 + 9.5) / 40)
    assert found.hd95_mm() == 2.0, "of the first 1 or 3 mm, of the second 2 mm: 97.5 % of its area is within"
    assert found.assd_mm() == pytest.approx((3 + 0 + 1 + 0 + 4.5 + 19) / 40)
    assert distances([3.0, 0.0], [0.0], ([2.0, 18.0], [1.0])).hd95_mm() == 3.0, "90 % are not 95 %"


def test_a_tolerance_forgives_the_rounding_of_a_header() -> None:
    assert distances([2.0000002], [2.0000002], None).surface_dice(2.0) == 1.0
    assert distances([2.001], [2.001], None).surface_dice(2.0) == 0.0


def test_borders_of_touching_structures_are_their_own() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 3:9, 3:6], labels[3:9, 3:9, 6:9] = 1, 2
    first, second, third = border_surfaces(labels, 3)
    assert len(first.places) == len(second.places) == 6 * 6 * 3 - 4 * 4 * 1
    assert len(third.places) == 0
    assert not set(first.places) & set(second.places)
