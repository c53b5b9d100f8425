from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.surface import StructureScore, hd95_mm, measure_structures, surface_dice, surface_distances_mm

SCHEMA = LabelSchema((Structure("a", 2), Structure("b", 60_000, tolerance_mm=1.0)))
ALL = SCHEMA.annotated_channels(None)


def box(shape: tuple[int, int, int], start: tuple[int, int, int], size: int, value: int = 2) -> np.ndarray:
    labels = np.zeros(shape, np.uint16)
    labels[tuple(slice(first, first + size) for first in start)] = value
    return labels


def numbers(score: StructureScore) -> tuple[float | None, ...]:
    return score.dice, score.nsd, score.hd95_mm, score.volume_difference_ml


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.5, 5.0)] * 3))
@settings(max_examples=40)
def test_distances_agree_with_all_pairs(seed: int, spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 6, 7, 5)) < 0.4
    a[3, 3, 3] = b[2, 2, 2] = True
    borders = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        shifted = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (1, -1)]
        borders.append(np.argwhere(mask & ~np.logical_and.reduce(shifted)) * np.array(spacing))
    pairs = cdist(*borders)
    there, back = surface_distances_mm(a, b, spacing)
    assert there == pytest.approx(pairs.min(axis=1), abs=1e-9)
    assert back == pytest.approx(pairs.min(axis=0), abs=1e-9)


def test_a_shift_along_each_axis_is_measured_in_its_millimetres() -> None:
    spacing = (1.0, 2.0, 3.5)
    grid = Geometry.from_spacing((12, 12, 12), spacing)
    reference = box(grid.shape_ijk, (3, 3, 3), 5)
    for axis, mm in enumerate(spacing):
        score = measure_structures(np.roll(reference, 1, axis), reference, grid, SCHEMA, ALL)["a"]
        assert score.hd95_mm == pytest.approx(mm)
        assert score.volume_difference_ml == 0.0
        assert (score.nsd == 1.0) == (mm <= 2.0)


def test_perfect_at_the_edge_of_the_volume() -> None:
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    full = np.full(grid.shape_ijk, 60_000, np.uint16)
    assert numbers(measure_structures(full, full, grid, SCHEMA, ALL)["b"]) == (1.0, 1.0, 0.0, 0.0)


def test_scores_are_the_same_whichever_way_the_array_lies() -> None:
    shape, spacing = (9, 11, 13), (1.0, 2.0, 0.7)
    prediction, reference = box(shape, (2, 3, 4), 4), box(shape, (3, 3, 5), 5)
    straight = numbers(
        measure_structures(prediction, reference, Geometry.from_spacing(shape, spacing), SCHEMA, ALL)["a"]
    )
    order = (2, 0, 1)
    turned_grid = Geometry.from_spacing((13, 9, 11), (0.7, 1.0, 2.0))
    turned = (np.ascontiguousarray(labels.transpose(order)[::-1]) for labels in (prediction, reference))
    assert numbers(measure_structures(*turned, turned_grid, SCHEMA, ALL)["a"]) == pytest.approx(straight)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_of_the_header_does_not_move_a_distance_over_the_tolerance(seed: int) -> None:
    """Two voxels of 1 mm are within 2 mm, also where an oblique float32 affine makes them 2.0000002 mm."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix().astype(np.float32)
    grid = Geometry(affine, (12, 12, 12))
    reference = box(grid.shape_ijk, (3, 3, 3), 5)
    assert measure_structures(np.roll(reference, 2, 0), reference, grid, SCHEMA, ALL)["a"].nsd == 1.0


def test_scores_of_distances_by_hand() -> None:
    there, back = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 4.0])
    assert surface_dice(there, back, 2.0) == pytest.approx(4 / 6)
    assert hd95_mm(there, back) == pytest.approx(3.8), "95 % of the way from 0 to 4 is the larger one"
    assert surface_dice(there, back, 2.0) == surface_dice(back, there, 2.0)


def test_far_apart_structures_do_not_disturb_each_other() -> None:
    grid = Geometry.from_spacing((30, 30, 30), (1.0, 1.0, 1.0))
    alone = box(grid.shape_ijk, (2, 2, 2), 4)
    both = alone + box(grid.shape_ijk, (20, 20, 20), 6, value=60_000)
    moved = np.roll(alone, 1, 2)
    assert (
        measure_structures(moved, both, grid, SCHEMA, ALL)["a"]
        == measure_structures(moved, alone, grid, SCHEMA, ALL)["a"]
    )
