from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.case import Case
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap, Volume
from medseg.data.config import PlanChoices
from medseg.data.fingerprint import MAX_THICKNESSES, fingerprint, thickness_mm
from medseg.data.plan import make_plan
from medseg.data.topology import StageRule

SCHEMA = LabelSchema((Structure("left", 1, mirror="right"), Structure("right", 2, mirror="left"), Structure("none", 7)))


def case(label: np.ndarray, spacing=(2.0, 2.0, 2.0), image: np.ndarray | None = None) -> Case:
    grid = Geometry.from_spacing(label.shape, spacing)
    image = np.zeros((1, *label.shape), np.int16) if image is None else image
    return Case("x", Volume(image, grid), LabelMap(label, grid), np.array([True, True, True, False]))


def ball(radius_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    halves = [int(radius_mm / step) + 2 for step in spacing]
    axes = np.meshgrid(
        *[np.arange(-half, half + 1) * step for half, step in zip(halves, spacing, strict=True)], indexing="ij"
    )
    return sum(axis**2 for axis in axes) <= radius_mm**2


@given(st.floats(6.0, 20.0), st.tuples(*[st.floats(0.8, 2.5)] * 3))
def test_a_ball_is_as_thick_as_its_diameter(radius_mm: float, spacing) -> None:
    assert thickness_mm(ball(radius_mm, spacing), spacing) == pytest.approx(2 * radius_mm, abs=2 * max(spacing))


@pytest.mark.parametrize("radius_mm", [31.0, 50.0, 90.0])
def test_large_structures_are_measured_on_fewer_voxels_to_a_tenth(radius_mm: float) -> None:
    assert thickness_mm(ball(radius_mm, (1.0, 1.0, 1.0)), (1.0, 1.0, 1.0)) == pytest.approx(2 * radius_mm, rel=0.1)


@pytest.mark.parametrize("num_voxels", [1, 2, 3, 4, 7])
def test_a_slab_is_as_thick_as_its_voxels(num_voxels: int) -> None:
    slab = np.ones((num_voxels, 40, 40), bool)
    assert thickness_mm(slab, (2.0, 1.0, 1.0)) == pytest.approx(2.0 * num_voxels, abs=2.0)


def test_a_thin_arm_does_not_hide_a_thick_body_nor_scattered_voxels_an_answer() -> None:
    mask = np.zeros((200, 30, 30), bool)
    mask[:20, 5:25, 5:25], mask[20:, 14:16, 14:16] = True, True
    assert thickness_mm(mask, (1.0, 1.0, 1.0)) == pytest.approx(20, abs=4)
    scattered = np.zeros((200, 200, 200), bool)
    scattered[1, 1, 1] = scattered[199, 199, 199] = True
    assert thickness_mm(scattered, (1.0, 1.0, 1.0)) == 1.0


def test_structures_are_measured_one_by_one() -> None:
    label, image = np.zeros((20, 20, 20), np.uint8), np.full((1, 20, 20, 20), -1000, np.int16)
    label[2:8, 2:8, 2:8], label[12:14, 2:18, 2:18] = 1, 2
    image[0][label == 1], image[0][label == 2] = 40, 300
    found = fingerprint([case(label, image=image)] * 3, SCHEMA)
    left, right, none = (found.structures[name] for name in SCHEMA.names)
    assert (left.num_found, right.num_found, none.num_found) == (3, 3, 0)
    assert left.percentiles == ((40.0, 40.0, 40.0),)
    assert right.percentiles == ((300.0, 300.0, 300.0),)
    assert left.median_thickness_mm == pytest.approx(12, abs=2)
    assert right.median_thickness_mm == pytest.approx(4, abs=2)
    assert (none.median_thickness_mm, none.percentiles) == (None, ())
    assert found.median_volume_ml == {"left": pytest.approx(1.728), "right": pytest.approx(4.096), "none": None}
    assert found.left_right == (("left", "right"),)


def test_a_region_is_measured_whole() -> None:
    schema = LabelSchema((Structure("whole", 1, region=(1, 2)), Structure("core", 2)))
    label = np.zeros((24, 24, 24), np.uint8)
    label[2:22, 2:22, 2:22], label[10:14, 10:14, 10:14] = 1, 2
    grid = Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0))
    whole = Case("x", Volume(np.zeros((1, 24, 24, 24), np.int16), grid), LabelMap(label, grid), np.ones(3, bool))
    found = fingerprint([whole], schema)
    assert found.structures["whole"].median_thickness_mm == pytest.approx(20, abs=2)
    assert found.structures["core"].median_thickness_mm == pytest.approx(4, abs=2)


def test_only_so_many_cases_are_measured_for_thickness() -> None:
    thin, thick = np.zeros((12, 12, 12), np.uint8), np.ones((12, 12, 12), np.uint8)
    thin[5] = 1
    found = fingerprint([case(thin)] * MAX_THICKNESSES + [case(thick)] * 60, SCHEMA)
    assert found.structures["left"].median_thickness_mm == 2.0
    assert found.structures["left"].num_found == MAX_THICKNESSES + 60


def planned(thickness_voxels: int, spacings):
    cases = []
    for spacing in spacings:
        label = np.zeros((40, 40, 40), np.uint8)
        label[5 : 5 + thickness_voxels, 5:35, 5:35] = 1
        cases.append(case(label, spacing))
    return make_plan(fingerprint(cases, SCHEMA), ["CT"], PlanChoices(), StageRule(3, 1, False), 2)


def test_the_grid_follows_structures_of_a_few_voxels() -> None:
    """1 voxel thick on the median grid: as fine as two voxels need, but no finer than the finest tenth of the cases."""
    spacings = [(4.0, 4.0, 4.0)] * 8 + [(2.0, 2.0, 2.0)] * 3
    assert planned(8, spacings).spacing_ijk_mm == (4.0, 4.0, 4.0)
    thin = planned(1, spacings)
    assert thin.spacing_ijk_mm == (2.0, 2.0, 2.0)
    assert any("left 2.0" in reason for reason in thin.reasons)
    assert not any("thick on this grid" in reason for reason in planned(8, spacings).reasons)


def test_a_plan_keeps_the_fingerprint_in_a_few_numbers() -> None:
    facts = planned(8, [(4.0, 4.0, 4.0), (2.0, 2.0, 2.0), (4.0, 4.0, 4.0)]).fingerprint
    assert facts.num_cases == 3
    assert facts.median_spacing_mm == (4.0, 4.0, 4.0)
    assert facts.median_extent_mm == (160.0, 160.0, 160.0)
    assert facts.total_volume_ml == pytest.approx(2 * 4096 + 512)
    assert facts.left_right == (("left", "right"),)
    assert facts.structures["left"].num_annotated == 3
