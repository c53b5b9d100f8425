from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.patch import PatchLocation
from medseg.data.resample import AxisWeights, axis_weights, grid_weights, resample
from medseg.data.restore import GridMapping
from medseg.data.shear import Shear, index_map
from medseg.inference import resolve as module
from medseg.inference.resolve import decide, make_resolver, resolve, walked_first


def test_sigmoid_is_background_where_no_structure_is_likely() -> None:
    logits = np.array([[-1.0, 0.5, -2.0, 0.1], [-3.0, 0.7, 1.0, 0.1]], np.float32).reshape(2, 4, 1, 1)
    assert decide(logits, "sigmoid").ravel().tolist() == [0, 2, 2, 1]
    assert decide(logits, "softmax").ravel().tolist() == [0, 1, 1, 0]


@given(st.integers(2, 9), st.integers(2, 30))
def test_upsampling_by_whole_numbers_agrees_with_torch(size: int, factor: int) -> None:
    """Where grids share their extent, ours is torch's interpolation with align_corners=False."""
    source = np.random.default_rng(size).standard_normal((1, size, 3, 4)).astype(np.float32)
    weights = [axis_weights(n, n * factor, 1 / factor, smooth=False) for n in source.shape[1:]]
    target = [n * factor for n in source.shape[1:]]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(source)[None], target, mode="trilinear", align_corners=False
    )
    np.testing.assert_allclose(resample(source, weights), theirs[0].numpy(), atol=1e-5)


OBLIQUE = np.array([[0, -1.2, 0, 3], [2.0, 0, 0, 4], [0, 0, 0.9, 5], [0, 0, 0, 1]])


def smooth_logits(num_channels: int, shape, seed: int) -> np.ndarray:
    """As of a network that is mostly sure: large regions, and boundaries between them."""
    noise = np.random.default_rng(seed).standard_normal((num_channels, *shape))
    return np.stack([ndimage.gaussian_filter(channel, 1.5) * 20 for channel in noise]).astype(np.float32)


def plainly(logits: np.ndarray, weights: tuple[AxisWeights, ...], walk_axis: int, decision: str) -> np.ndarray:
    """All logits interpolated everywhere, the walked axis first, then decided."""
    for axis in walked_first(walk_axis):
        logits = weights[axis].apply(logits, 1 + axis)
    return decide(logits, decision)


def streamed(logits, mapping, walk_axis, decision, box=None) -> np.ndarray:
    shape = logits.shape[1:]
    box = box or PatchLocation((0, 0, 0), shape)
    channels = np.zeros(mapping.file_shape_ijk, np.uint8)
    resolver = make_resolver(mapping, decision, walk_axis, box, shape, channels)
    inside = logits[(slice(None), *box.to_slices())]
    for number, plane in enumerate(np.moveaxis(inside, 1 + walk_axis, 0)):
        resolver.add(number, plane)
    return channels


@pytest.mark.parametrize("decision", ["softmax", "sigmoid", "regions"])
@pytest.mark.parametrize("walk_axis", [0, 1, 2])
@given(st.integers(1, 9), st.tuples(*[st.floats(0.4, 3.0)] * 3), st.integers(0, 9))
@settings(max_examples=25)
def test_streamed_is_plain_to_the_last_voxel(walk_axis, decision, num_channels, spacing, seed) -> None:
    file_grid = Geometry(OBLIQUE, (9, 8, 11))
    grid = file_grid.canonical.resampled(spacing)
    mapping = GridMapping(grid_weights(grid, file_grid.canonical, smooth=False), file_grid.axes)
    logits = smooth_logits(num_channels, grid.shape_ijk, seed)
    expected = file_grid.axes.from_canonical(plainly(logits, mapping.weights, walk_axis, decision))
    np.testing.assert_array_equal(streamed(logits, mapping, walk_axis, decision), expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, file_grid = Geometry.from_spacing((8, 9, 7), (2.0, 2.0, 2.0)), Geometry.from_spacing((20, 23, 18), (0.8,) * 3)
    mapping = GridMapping(grid_weights(grid, file_grid, smooth=False), file_grid.axes)
    logits = np.random.default_rng(0).standard_normal((4, 8, 9, 7)).astype(np.float32)
    whole = resolve(logits, mapping, "softmax")
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(resolve(logits, mapping, "softmax"), whole)


def test_a_mapping_that_copies_planes_along_an_axis_copies_them() -> None:
    """Nearest along one axis, as nnU-Net does where slices are thick."""
    nearest = AxisWeights(np.array([[0], [0], [1], [1], [2]]), np.ones((5, 1), np.float32))
    linear = axis_weights(6, 11, 0.5, smooth=False)
    logits = smooth_logits(3, (3, 6, 6), 0)
    axes = Geometry.from_spacing((5, 11, 11), (1.0,) * 3).axes
    for walk_axis in range(3):
        found = streamed(logits, GridMapping((nearest, linear, linear), axes), walk_axis, "softmax")
        np.testing.assert_array_equal(found, plainly(logits, (nearest, linear, linear), walk_axis, "softmax"))


@pytest.mark.parametrize("walk_axis", [0, 1, 2])
def test_outside_a_box_nothing_is_written_and_inside_nothing_changes(walk_axis: int) -> None:
    file_grid = Geometry.from_spacing((30, 28, 26), (1.0, 1.0, 1.0))
    grid = file_grid.resampled((2.1, 1.7, 2.0))
    mapping = GridMapping(grid_weights(grid, file_grid, smooth=False), file_grid.axes)
    logits = smooth_logits(3, grid.shape_ijk, 1) - np.array([20, 0, 0], np.float32).reshape(3, 1, 1, 1)
    box = PatchLocation((3, 0, 2), (8, grid.shape_ijk[1], 9))
    whole, found = (streamed(logits, mapping, walk_axis, "softmax", part) for part in (None, box))
    centres = [np.sum(axis.indices * axis.weights.astype(float), axis=1) for axis in mapping.weights]
    inside = np.ones(file_grid.shape_ijk, dtype=bool)
    surely = inside.copy()
    for axis, (centre, start, size) in enumerate(zip(centres, box.start_ijk, box.shape_ijk, strict=True)):
        shape = [-1 if axis == other else 1 for other in range(3)]
        stop, whole_size = start + size, grid.shape_ijk[axis]
        inside &= (
            (centre >= start - 0.5 if start else centre > -9) & ((centre < stop - 0.5) | (stop == whole_size))
        ).reshape(shape)
        surely &= (((centre >= start) | (start == 0)) & ((centre <= stop - 1) | (stop == whole_size))).reshape(shape)
    assert (found[~inside] == 0).all()
    assert (found[inside] > 0).all()
    np.testing.assert_array_equal(found[surely], whole[surely])


@pytest.mark.parametrize("walk_axis", [0, 1, 2])
def test_a_sheared_grid_is_resolved_as_it_is_sampled_whole(walk_axis: int) -> None:
    affine = np.diag([1.1, 1.2, 2.5, 1.0])
    affine[1, 2] = 0.9  # a tilted gantry
    file_grid = Geometry(affine, (24, 22, 12))
    grid = file_grid.orthogonal.canonical.resampled((2.0, 1.9, 2.2))
    shear = Shear(index_map(file_grid, grid), file_grid.shape_ijk)
    mapping = GridMapping(
        grid_weights(grid, file_grid.orthogonal.canonical, smooth=False), file_grid.orthogonal.axes, shear
    )
    logits = smooth_logits(4, grid.shape_ijk, 2)
    index = np.indices(file_grid.shape_ijk).reshape(3, -1)
    places = shear.to_network @ np.vstack([index, np.ones(index.shape[1])])
    sampled = np.stack(
        [ndimage.map_coordinates(one, places, order=1, mode="nearest", prefilter=False) for one in logits]
    )
    sampled = sampled.reshape(-1, *file_grid.shape_ijk)
    found = streamed(logits, mapping, walk_axis, "softmax")
    best = np.sort(sampled, axis=0)
    differs = found != decide(sampled, "softmax")
    assert (best[-1] - best[-2])[differs].max(initial=0) < 1e-4  # another order of sums, in float32
    assert differs.mean() < 1e-3


@given(st.integers(1, 40), st.floats(0.2, 5), st.booleans())
def test_weights_are_convex(num_source: int, scale: float, smooth: bool) -> None:
    weights = axis_weights(num_source, max(1, round(num_source / scale)), scale, smooth=smooth)
    assert (weights.weights >= 0).all()
    np.testing.assert_allclose(weights.weights.sum(axis=1), 1, atol=1e-5)
    assert weights.indices.min() >= 0
    assert weights.indices.max() < num_source
