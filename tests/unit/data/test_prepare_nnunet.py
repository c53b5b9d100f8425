"""nnU-Net's preparation: its grids say where voxels lie, and the way back leads there; what it gives is compared in interop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from medseg.core.case import Case
from medseg.core.errors import ReadError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import Volume
from medseg.data.config import (
    NnunetPreparation,
    NoNormalisation,
    NonzeroZScoreNormalisation,
    PlanewiseInterpolation,
    RangeNormalisation,
)
from medseg.data.plan import Plan
from medseg.data.preparation import prepare_as_planned
from medseg.data.prepare import prepare
from medseg.data.prepare_nnunet import new_shape, plane_axis
from medseg.data.resample import resample
from medseg.data.restore import GridMapping

SCHEMA = LabelSchema((Structure("a", 1),))
SPACING_MM = (1.7, 2.1, 2.6)
AFFINE = np.array([[0.0, 0, -2.5, 30], [-1.5, 0, 0, 12], [0, 2.0, 0, -50], [0, 0, 0, 1]])
"""Columns run to P, S, L: axes and directions of a file that is not in R, A, S order."""


def planned(normalisation=None, patch=(8, 8, 8), **preparation) -> Plan:
    return Plan(
        spacing_ijk_mm=SPACING_MM,
        patch_ijk=patch,
        strides=((1, 1, 1),),
        normalisation=(normalisation or NoNormalisation(),),
        preparation=NnunetPreparation(**preparation),
        batch_size=1,
    )


def scan(array: np.ndarray, affine: np.ndarray = AFFINE) -> Case:
    volume = Volume(array[None], Geometry(affine, array.shape))
    return Case("x", volume, None, SCHEMA.annotated_channels(None))


def world(grid: Geometry) -> np.ndarray:
    """A linear function of the place of each voxel, which splines reproduce."""
    indices = np.stack([*np.indices(grid.shape_ijk), np.ones(grid.shape_ijk)])
    x, y, z = np.tensordot(grid.affine_ras[:3], indices, axes=1)
    return (1000 + 2 * x - 3 * y + 5 * z).astype(np.float32)


@pytest.mark.parametrize("orientation", ["file", "patient"])
def test_the_networks_grid_says_where_its_voxels_lie(orientation: str) -> None:
    whole = np.zeros((30, 26, 34), np.float32)
    whole[2:27, 3:26, 1:30] = world(Geometry(AFFINE, whole.shape))[2:27, 3:26, 1:30]
    prepared = prepare_as_planned(scan(whole), SCHEMA, planned(patch=(60, 8, 8), orientation=orientation))
    assert prepared.image.shape == (1, *prepared.geometry.shape_ijk)
    assert prepared.image.shape[1] == 60
    inside = ndimage.binary_erosion(prepared.image[0] != 0, iterations=6)  # splines feel the edges
    assert inside.sum() > 500
    np.testing.assert_allclose(prepared.image[0][inside], world(prepared.geometry)[inside], rtol=1e-3)
    assert (prepared.geometry.axes.flips == (False, False, False)) == (orientation == "patient")


@pytest.mark.parametrize("orientation", ["file", "patient"])
def test_the_way_back_leads_to_the_files_voxels_and_to_none_that_was_cropped(orientation: str) -> None:
    whole = np.zeros((30, 26, 34), np.float32)
    whole[2:27, 3:26, 1:30] = 7
    prepared = prepare_as_planned(scan(whole), SCHEMA, planned(patch=(40, 40, 40), orientation=orientation))
    mapping = GridMapping.of(prepared)
    assert mapping.file_shape_ijk == whole.shape
    back = np.zeros(whole.shape, np.float32)
    mapping.in_network_axes(back)[...] = resample(world(prepared.geometry), mapping.weights)
    np.testing.assert_array_equal(back[whole == 0], 0)
    inner = (slice(4, 25), slice(5, 24), slice(3, 28))
    np.testing.assert_allclose(back[inner], world(Geometry(AFFINE, whole.shape))[inner], rtol=1e-4)
    assert mapping.crop is not None
    assert mapping.crop.of(whole).min() == 7


def test_a_scan_without_zeros_is_not_cropped_and_one_of_zeros_neither() -> None:
    for array in (np.ones((9, 8, 7)), np.zeros((9, 8, 7))):
        prepared = prepare_as_planned(scan(array), SCHEMA, planned())
        assert GridMapping.of(prepared).crop is None
        np.testing.assert_allclose(prepared.image[0, :, 1:-1].max(), array.max())


def test_splines_stay_in_the_range_of_the_image() -> None:
    noise = np.random.default_rng(0).integers(1, 100, (20, 18, 16)).astype(np.float32)
    prepared = prepare_as_planned(scan(noise), SCHEMA, planned(RangeNormalisation()))
    assert (prepared.image.min(), prepared.image.max()) == (0, 1)


def test_another_number_of_channels_is_refused() -> None:
    volume = Volume(np.zeros((2, 4, 4, 4)), Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0)))
    with pytest.raises(ReadError, match="expected 1 image channels, found 2"):
        prepare_as_planned(Case("x", volume, None, SCHEMA.annotated_channels(None)), SCHEMA, planned())


def test_without_it_a_plan_prepares_as_ever() -> None:
    noise = np.random.default_rng(0).standard_normal((9, 8, 7)).astype(np.float32)
    plan = planned().model_copy(update={"preparation": None})
    found = prepare_as_planned(scan(noise), SCHEMA, plan)
    expected = prepare(scan(noise), SCHEMA, SPACING_MM, plan.normalisation)
    np.testing.assert_array_equal(found.image, expected.image)


@given(st.floats(0.5, 6), st.floats(0.5, 6), st.integers(1, 300))
def test_a_grid_has_the_nearest_number_of_voxels(old: float, new: float, size: int) -> None:
    found, *_ = new_shape((size, 1, 1), (old, 1.0, 1.0), (new, 1.0, 1.0))
    assert abs(found - old / new * size) <= 0.5 or found == 1


@pytest.mark.parametrize(
    ("source", "target", "axis"),
    [
        ((1.0, 1.0, 3.5), (1.0, 1.0, 1.0), 2),
        ((1.0, 1.0, 1.0), (3.5, 1.0, 1.0), 0),
        ((1.0, 4.0, 1.0), (9.0, 1.0, 1.0), 1),  # the old grid is asked first
        ((1.0, 1.0, 3.0), (1.0, 1.0, 1.0), None),
        ((1.0, 4.0, 4.0), (1.0, 1.0, 9.0), None),  # two thick axes are none
    ],
)
def test_planes_are_treated_one_by_one_across_the_one_thick_axis(source, target, axis) -> None:
    def rule(planes: str) -> PlanewiseInterpolation:
        return PlanewiseInterpolation(within="cubic", across="nearest", planes=planes)

    assert plane_axis(rule("where_anisotropic"), source, target) == axis
    assert plane_axis(rule("never"), source, target) is None
    assert plane_axis(rule("always"), (1.0, 2.0, 1.0), target) == 1


def test_what_a_plan_cannot_mean_is_refused() -> None:
    with pytest.raises(ValidationError, match="nonzero_zscore needs"):
        Plan(**{**planned(NonzeroZScoreNormalisation()).model_dump(), "preparation": None})
    with pytest.raises(ValidationError, match="linearly"):
        planned(logits=PlanewiseInterpolation(within="cubic", across="nearest"))
