from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.core.errors import ConfigError, InferenceError
from medseg.core.patch import PatchLocation, cut_out
from medseg.inference.sliding import SlidingWindow, predict_logits, predict_planes
from medseg.inference.tiling import WindowGrid, gaussian_weights


class PointwiseRuntime:
    """A network without context: logits are functions of a voxel's own value, so stitching must change nothing."""

    num_outputs = 2

    def __call__(self, windows_BCIJK: np.ndarray) -> np.ndarray:
        value = windows_BCIJK[:, :1]
        return np.concatenate([value * 2, 1 - value], axis=1).astype(np.float32)

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array


sizes = st.tuples(*[st.integers(1, 19)] * 3)


@given(sizes, st.tuples(*[st.integers(1, 9)] * 3), st.floats(0, 0.9))
def test_windows_cover_every_voxel_and_overlap_enough(shape, window, overlap) -> None:
    counts = np.zeros(shape, int)
    places = list(WindowGrid.over(shape, window, overlap).windows())
    assert len(places) == WindowGrid.over(shape, window, overlap).num_windows
    for place in places:
        counts[place.inside(shape).to_slices()] += 1
    assert counts.min() >= 1
    for axis in range(3):
        starts = sorted({place.start_ijk[axis] for place in places})
        assert all(b - a <= max(1, int(window[axis] * (1 - overlap))) for a, b in itertools.pairwise(starts))


def test_overlap_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap"):
        WindowGrid.over((4, 4, 4), (2, 2, 2), 1.0)


@given(sizes, st.tuples(*[st.integers(1, 9)] * 3), st.floats(0, 0.9))
def test_no_window_reaches_a_plane_that_was_finished(shape, window, overlap) -> None:
    grid = WindowGrid.over(shape, window, overlap)
    axis, finished = grid.walk_axis, 0
    for until, layer in grid.layers():
        for place in layer:
            inner = place.inside(shape)
            assert inner.start_ijk[axis] >= finished
            assert inner.stop_ijk[axis] - finished <= grid.num_unfinished_planes
        finished = until
    assert finished == shape[axis]


def test_the_axis_with_the_fewest_unfinished_voxels_is_walked() -> None:
    assert WindowGrid.over((300, 200, 800), (96, 96, 96), 0.5).walk_axis == 2
    assert WindowGrid.over((300, 200, 40), (96, 96, 96), 0.5).walk_axis == 0


@given(sizes, st.tuples(*[st.integers(4, 9)] * 3), st.integers(1, 4))
@settings(max_examples=30)
def test_stitching_a_pointwise_network_gives_its_values(shape, window, tile_batch) -> None:
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    runtime = PointwiseRuntime()
    logits = predict_logits(image, runtime, SlidingWindow(window, 0.5, tile_batch))
    np.testing.assert_allclose(logits, runtime(image[None])[0], atol=1e-5)


class Blurring(PointwiseRuntime):
    """A network with context, so that overlapping windows disagree."""

    def __call__(self, windows_BCIJK: np.ndarray) -> np.ndarray:
        value = windows_BCIJK[:, :1] - windows_BCIJK.mean(axis=(2, 3, 4), keepdims=True)
        return np.concatenate([value * 2, 1 - value], axis=1).astype(np.float32)


def stitched_whole(image: np.ndarray, grid: WindowGrid, skipped=()) -> np.ndarray:
    """The plain method: the same windows in the same order, summed over the whole volume, divided at the end."""
    shape, weights = grid.shape_ijk, gaussian_weights(grid.window_ijk)
    sums, totals = np.zeros((2, *shape), np.float32), np.zeros(shape, np.float32)
    outside = image.min(axis=(1, 2, 3)).tolist()
    for place in grid.windows():
        if place in skipped:
            continue
        logits = Blurring()(cut_out(image, place, outside)[None])[0]
        target = place.inside(shape).to_slices()
        source = tuple(slice(a, n - b) for (a, b), n in zip(place.padding(shape), place.shape_ijk, strict=True))
        sums[(slice(None), *target)] += logits[(slice(None), *source)] * weights[source]
        totals[target] += weights[source]
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1), 0)


@given(st.tuples(*[st.integers(1, 14)] * 3), st.tuples(*[st.integers(3, 9)] * 3), st.floats(0, 0.6), st.integers(0, 3))
@settings(max_examples=30)
def test_planes_are_to_the_bit_those_of_the_whole_volume(shape, window, overlap, num_skipped) -> None:
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    grid = WindowGrid.over(shape, window, overlap)
    skipped = set(list(grid.windows())[:num_skipped])
    whole = np.moveaxis(stitched_whole(image, grid, skipped), 1 + grid.walk_axis, 0)
    found = list(predict_planes(image, Blurring(), grid, skipped=skipped))
    assert [number for number, _ in found] == list(range(shape[grid.walk_axis]))
    np.testing.assert_array_equal(np.stack([plane for _, plane in found]), whole)


def test_progress_counts_every_window_once_and_ends_with_all_of_them() -> None:
    grid, told = WindowGrid.over((20, 9, 9), (8, 8, 8), 0.5), []
    layers = [layer for _, layer in grid.layers()]
    for skipped in ((), layers[0][:1], layers[-1]):
        told.clear()
        list(
            predict_planes(np.zeros((1, 20, 9, 9), np.float32), Blurring(), grid, skipped=skipped, listener=told.append)
        )
        counts = [event.done for event in told]
        assert counts == sorted(set(counts))
        assert counts[-1] == grid.num_windows


def test_nonfinite_logits_are_an_error() -> None:
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 1, 1, 1] = np.inf
    with pytest.raises(InferenceError) as raised:
        predict_logits(image, PointwiseRuntime(), SlidingWindow((4, 4, 4)))
    assert raised.value.code == "inference.nonfinite"


def test_a_network_that_cannot_run_fails_its_case_only() -> None:
    class Full(PointwiseRuntime):
        def __call__(self, windows_BCIJK: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of memory")

    with pytest.raises(InferenceError, match="out of memory") as raised:
        predict_logits(np.zeros((1, 4, 4, 4), np.float32), Full(), SlidingWindow((4, 4, 4)))
    assert raised.value.code == "inference.failed"


def test_gaussian_agrees_with_monai() -> None:
    from monai.data.utils import compute_importance_map

    for window in ((8, 12, 16), (15, 9, 33)):
        theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).numpy()
        np.testing.assert_allclose(gaussian_weights(window), theirs, atol=1e-6)


@given(st.integers(0, 200), st.integers(1, 64), st.sampled_from([0.5, 0.25]))
def test_windows_of_imported_models_lie_where_nnunets_do(extra: int, window: int, overlap: float) -> None:
    """Written down from the documentation of its ``compute_steps_for_sliding_window``."""
    size, step = window + extra, window * (1 - overlap)
    count = math.ceil(extra / step) + 1
    expected = [int(np.round(extra / max(1, count - 1) * number)) for number in range(count)]
    assert list(WindowGrid.over((size, 4, 4), (window, 4, 4), overlap, "nnunet").starts[0]) == expected


@pytest.mark.parametrize("window", [(8, 12, 16), (7, 9, 33), (1, 2, 3), (20, 64, 48)])
def test_windows_of_imported_models_weigh_as_nnunets_do(window) -> None:
    """nnU-Net filters a single voxel with SciPy's Gaussian and keeps ten times the result in half precision."""
    voxel = np.zeros(window)
    voxel[tuple(size // 2 for size in window)] = 1
    filtered = ndimage.gaussian_filter(voxel, [size / 8 for size in window], mode="constant")
    expected = (filtered / filtered.max() * 10).astype(np.float16)
    expected[expected == 0] = expected[expected > 0].min()
    np.testing.assert_allclose(gaussian_weights(window, "nnunet"), expected, rtol=1e-3, atol=6e-8)


@given(st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_cut_out_is_a_window_into_the_padded_volume(start, shape) -> None:
    array = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32)
    padded = np.stack([np.pad(channel, 20, constant_values=-5.0) for channel in array])
    expected = padded[(slice(None), *(slice(s + 20, s + 20 + n) for s, n in zip(start, shape, strict=True)))]
    np.testing.assert_array_equal(cut_out(array, PatchLocation(start, shape), [-5.0, -5.0]), expected)
