"""Scores of one case: which voxels count, and which way they may lie."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.case import StructureScore, measure_structures

SCHEMA = LabelSchema((Structure("a", 2), Structure("b", 60_000, tolerance_mm=1.0)))
ALL = SCHEMA.annotated_channels(None)

both_kinds = pytest.mark.parametrize("surface", ["elements", "borders"])


def box(shape: tuple[int, int, int], start: tuple[int, int, int], size: int, value: int = 2) -> np.ndarray:
    labels = np.zeros(shape, np.uint16)
    labels[tuple(slice(first, first + size) for first in start)] = value
    return labels


def assert_same(found: StructureScore, expected: StructureScore) -> None:
    assert asdict(found) == pytest.approx(asdict(expected), nan_ok=False)


@both_kinds
def test_a_shift_along_each_axis_is_measured_in_its_millimetres(surface: str) -> None:
    spacing = (1.0, 2.0, 3.5)
    grid = Geometry.from_spacing((12, 12, 12), spacing)
    reference = box(grid.shape_ijk, (3, 3, 3), 5)
    for axis, mm in enumerate(spacing):
        score = measure_structures(np.roll(reference, 1, axis), reference, grid, SCHEMA, ALL, surface=surface)["a"]
        assert score.hd95_mm == pytest.approx(mm)
        assert score.volume_difference_ml == 0.0
        assert (score.nsd == 1.0) == (mm <= 2.0)
        assert score.dice == pytest.approx(4 / 5)
        assert score.iou == pytest.approx(4 / 6)


@both_kinds
def test_perfect_at_the_edge_of_the_volume(surface: str) -> None:
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    full = np.full(grid.shape_ijk, 60_000, np.uint16)
    score = measure_structures(full, full, grid, SCHEMA, ALL, surface=surface)["b"]
    assert score == StructureScore(1.0, 1.0, 0.0, 0.0, "scored", 1.0, 0.0, 1.0, 1.0, 1.0, 1)


@both_kinds
@pytest.mark.parametrize("order", [(2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_scores_are_the_same_whichever_way_the_array_lies(
    surface: str, order: tuple[int, int, int], layout: str
) -> None:
    shape, spacing = (9, 11, 13), (1.0, 2.0, 0.7)
    prediction, reference = box(shape, (2, 3, 4), 4), box(shape, (3, 3, 5), 5)
    grid = Geometry.from_spacing(shape, spacing)
    straight = measure_structures(prediction, reference, grid, SCHEMA, ALL, surface=surface)["a"]
    i, j, k = (shape[axis] for axis in order)
    x, y, z = (spacing[axis] for axis in order)
    turned = [np.asarray(labels.transpose(order)[::-1], order=layout) for labels in (prediction, reference)]
    turned_grid = Geometry.from_spacing((i, j, k), (x, y, z))
    assert_same(measure_structures(*turned, turned_grid, SCHEMA, ALL, surface=surface)["a"], straight)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_of_the_header_does_not_move_a_distance_over_the_tolerance(seed: int) -> None:
    """Two voxels of 1 mm are within 2 mm, also where an oblique float32 affine makes them 2.0000002 mm."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix().astype(np.float32)
    grid = Geometry(affine, (12, 12, 12))
    reference = box(grid.shape_ijk, (3, 3, 3), 5)
    assert measure_structures(np.roll(reference, 2, 0), reference, grid, SCHEMA, ALL)["a"].nsd == 1.0


def test_a_tilted_grid_is_measured_in_the_body() -> None:
    """Gantry tilt: a step along the slices' axis is longer than the slices are apart, and leans."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.5
    grid = Geometry(affine, (40, 40, 40))
    assert not grid.is_orthogonal
    one, other = np.zeros((2, 40, 40, 40), np.uint16)
    one[20, 20, 20], other[20, 18, 21] = 2, 2
    score = measure_structures(one, other, grid, SCHEMA, ALL, surface="borders")["a"]
    assert score.hd95_mm == pytest.approx(np.hypot(2 - 1.5, 2.0))


@both_kinds
def test_structures_do_not_disturb_each_other(surface: str) -> None:
    grid = Geometry.from_spacing((30, 30, 30), (1.0, 1.0, 1.0))
    alone = box(grid.shape_ijk, (2, 2, 2), 4)
    both = np.where(alone, alone, box(grid.shape_ijk, (2, 2, 5), 6, value=60_000))
    moved = np.roll(alone, 1, 2)
    options = {"geometry": grid, "schema": SCHEMA, "annotated": ALL, "surface": surface}
    assert (
        measure_structures(moved, both, **options)["a"]
        == measure_structures(moved, np.where(both == 2, both, 0), **options)["a"]
    )


@both_kinds
def test_absent_missing_spurious_and_unannotated(surface: str) -> None:
    grid = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    empty, a, b = np.zeros((3, 4, 4, 4), np.uint16)
    a[1, 1, 1], b[2, 2, 2] = 2, 60_000
    scores = measure_structures(a, b, grid, SCHEMA, ALL, surface=surface)
    assert scores["a"] == StructureScore(0.0, 0.0, None, 0.001, "spurious", 0.0, None, None, 0.0, 0.0, 0)
    assert scores["b"] == StructureScore(0.0, 0.0, None, -0.001, "missing", 0.0, None, 0.0, None, 0.0, 1)
    absent = StructureScore(None, None, None, None, "absent", num_lesions=0)
    assert measure_structures(empty, empty, grid, SCHEMA, ALL, surface=surface) == {"a": absent, "b": absent}
    assert list(measure_structures(a, b, grid, SCHEMA, np.array([True, False, True]), surface=surface)) == ["b"]
    assert measure_structures(a, b, grid, SCHEMA, np.array([True, False, False]), surface=surface) == {}


@both_kinds
def test_regions_are_scored_as_masks_of_their_values(surface: str) -> None:
    """nnU-Net's regions overlap: each one scores as its own mask does."""
    rng = np.random.default_rng(2)
    fields = [ndimage.gaussian_filter(rng.standard_normal((20, 20, 20)), 2) for _ in range(2)]
    prediction, reference = (np.digitize(field, [0.02, 0.06, 0.1]).astype(np.uint8) for field in fields)
    regions = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    schema = LabelSchema(
        tuple(Structure(name, value, region=values) for value, (name, values) in enumerate(regions.items(), start=1))
    )
    grid = Geometry.from_spacing((20, 20, 20), (1.0, 1.5, 2.0))
    options = {"geometry": grid, "annotated": np.ones(4, bool), "surface": surface}
    scores = measure_structures(prediction, reference, schema=schema, **options)
    assert list(scores) == list(regions)
    for name, values in regions.items():
        masks = (np.isin(labels, values).astype(np.uint8) for labels in (prediction, reference))
        plain = LabelSchema((Structure(name, 1),))
        alone = measure_structures(*masks, grid, plain, np.ones(2, bool), surface=surface)[name]
        assert_same(scores[name], alone)
        assert alone.status == "scored"


@both_kinds
def test_ignored_voxels_are_of_no_structure(surface: str) -> None:
    grid = Geometry.from_spacing((16, 16, 16), (1.0, 1.0, 1.0))
    schema = LabelSchema(SCHEMA.structures, ignore_value=9)
    reference = box(grid.shape_ijk, (3, 3, 3), 6)
    prediction = box(grid.shape_ijk, (3, 3, 3), 8)
    ignored = np.zeros(grid.shape_ijk, bool)
    ignored[8:, 5:] = True
    cut = [np.where(ignored, 0, labels).astype(np.uint16) for labels in (prediction, reference)]
    reference[ignored] = 9
    options = {"geometry": grid, "annotated": ALL, "surface": surface}
    found = measure_structures(prediction, reference, schema=schema, **options)
    assert found == measure_structures(*cut, schema=SCHEMA, **options)
    assert found["a"].dice != measure_structures(prediction, reference, schema=SCHEMA, **options)["a"].dice


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int32", "uint64"])
def test_the_type_of_the_voxels_does_not_matter(dtype: str) -> None:
    grid = Geometry.from_spacing((12, 12, 12), (1.0, 1.0, 1.0))
    reference = box(grid.shape_ijk, (3, 3, 3), 5)
    prediction = np.roll(reference, 1, 0)
    expected = measure_structures(prediction, reference, grid, SCHEMA, ALL)
    strange = prediction.astype(dtype)
    strange[0, 0, 0] = 77 if strange.dtype.kind == "u" else -1
    assert measure_structures(strange, reference.astype(dtype), grid, SCHEMA, ALL) == expected


def test_more_structures_than_a_byte_holds() -> None:
    grid = Geometry.from_spacing((8, 8, 8), (1.0, 1.0, 1.0))
    schema = LabelSchema(tuple(Structure(str(value), value) for value in range(1, 401)))
    labels = np.arange(512, dtype=np.uint16).reshape(8, 8, 8) % 401
    scores = measure_structures(labels, np.roll(labels, 1, 2), grid, schema, np.ones(401, bool))
    assert scores["300"].hd95_mm == pytest.approx(1.0)
    assert scores["300"].dice == 0.0
