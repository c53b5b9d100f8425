"""Resampling class numbers: the largest share of a voxel wins, also where that is the ignored one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.labels import IGNORED
from medseg.data.resample import axis_weights, resample, resample_classes


@given(
    st.tuples(*[st.integers(2, 9)] * 3),
    st.tuples(*[st.floats(0.4, 2.5)] * 3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_largest_share_wins(shape, scales, some_ignored: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.choice([IGNORED, 0, 1, 4] if some_ignored else [0, 1, 4], shape).astype(np.int16)
    weights = [axis_weights(n, max(1, round(n / s)), s, smooth=False) for n, s in zip(shape, scales, strict=True)]
    found = resample_classes(classes, weights)
    shares = {n: resample((classes == n).astype(np.float32), weights) for n in (IGNORED, 0, 1, 4)}
    won = np.select([found == number for number in shares], list(shares.values()), np.nan)
    np.testing.assert_allclose(won, np.max(list(shares.values()), axis=0), atol=1e-5)
    assert found.dtype == classes.dtype


@pytest.mark.parametrize("other", [0, 1, 4])
def test_an_equal_share_is_decided(other: int) -> None:
    classes = np.array([other, IGNORED], np.int16).reshape(2, 1, 1)
    weights = [axis_weights(2, 1, 2.0, smooth=False), *[axis_weights(1, 1, 1.0, smooth=False)] * 2]
    assert resample_classes(classes, weights).item() == other


def test_a_grid_that_stays_changes_nothing() -> None:
    classes = np.array([IGNORED, 3, 0], np.int16).reshape(3, 1, 1)
    same = [axis_weights(n, n, 1.0, smooth=False) for n in classes.shape]
    np.testing.assert_array_equal(resample_classes(classes, same), classes)
