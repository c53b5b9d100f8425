from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.geometry import Geometry
from medseg.data.resample import axis_weights, grid_weights, resample
from medseg.data.restore import GridMapping
from medseg.inference import resolve as module
from medseg.inference.resolve import decide, resolve


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


@pytest.mark.parametrize("slab_bytes", [1, 10_000, 10**9])
def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch, slab_bytes: int) -> None:
    file_grid = Geometry(np.array([[0, -1.2, 0, 3], [2.0, 0, 0, 4], [0, 0, 0.9, 5], [0, 0, 0, 1]]), (9, 8, 11))
    grid = file_grid.canonical.resampled((1.7, 1.6, 1.8))
    mapping = GridMapping(grid_weights(grid, file_grid.canonical, smooth=False), file_grid.axes)
    logits = np.random.default_rng(0).standard_normal((4, *grid.shape_ijk)).astype(np.float32)
    whole = file_grid.axes.from_canonical(resample(logits, mapping.weights).argmax(axis=0))
    monkeypatch.setattr(module, "SLAB_BYTES", slab_bytes)
    resolved = resolve(logits, mapping, "softmax")
    assert resolved.shape == file_grid.shape_ijk
    np.testing.assert_array_equal(resolved, whole)


@given(st.integers(1, 40), st.floats(0.2, 5), st.booleans())
def test_weights_are_convex(num_source: int, scale: float, smooth: bool) -> None:
    weights = axis_weights(num_source, max(1, round(num_source / scale)), scale, smooth=smooth)
    assert (weights.weights >= 0).all()
    np.testing.assert_allclose(weights.weights.sum(axis=1), 1, atol=1e-5)
    assert weights.indices.min() >= 0
    assert weights.indices.max() < num_source
