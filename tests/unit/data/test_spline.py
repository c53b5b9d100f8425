"""Resizing along one axis gives what SciPy gives, which is what skimage's resize and nnU-Net call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.data.spline import edge_weights, resize_axis

ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}


@given(st.tuples(*[st.integers(1, 30)] * 2), st.sampled_from(["linear", "cubic"]), st.integers(0, 2))
def test_resizing_is_scipys_zoom(sizes: tuple[int, int], interpolation: str, axis: int) -> None:
    num_source, num_target = sizes
    shape, zoom = [3, 3, 3], [1.0, 1.0, 1.0]
    shape[axis], zoom[axis] = num_source, num_target / num_source
    array = np.random.default_rng(num_source).standard_normal(shape).astype(np.float32)
    found = resize_axis(array, axis, num_target, interpolation)  # type: ignore[arg-type]
    expected = ndimage.zoom(array.astype(float), zoom, order=ORDERS[interpolation], mode="nearest", grid_mode=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_all_axes_one_after_the_other_are_scipys_zoom_of_the_volume() -> None:
    array = np.random.default_rng(0).standard_normal((11, 14, 9)).astype(np.float32)
    found, shape = array, (17, 10, 9)
    for axis, size in enumerate(shape):
        found = resize_axis(found, axis, size, "cubic")
    zoom = [new / old for new, old in zip(shape, array.shape, strict=True)]
    expected = ndimage.zoom(array.astype(float), zoom, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_nearest_voxel_is_the_one_that_map_coordinates_takes(num_source: int, num_target: int) -> None:
    """With nnU-Net's own arithmetic, because centres on a border of two voxels are decided by rounding."""
    coordinates = float(num_source) / num_target * (np.mgrid[:num_target] + 0.5) - 0.5
    expected = ndimage.map_coordinates(np.arange(float(num_source)), [coordinates], order=0, mode="nearest")
    weights = edge_weights(num_source, num_target, "nearest")
    np.testing.assert_array_equal(weights.indices[:, 0], expected)


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_as_many_voxels_as_before_are_the_same_voxels(interpolation: str) -> None:
    array = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    assert resize_axis(array, 1, 5, interpolation) is array  # type: ignore[arg-type]
    assert edge_weights(5, 5, "nearest").is_identity
