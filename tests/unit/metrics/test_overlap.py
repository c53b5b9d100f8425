from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.metrics.overlap import dice, volume_difference_ml


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9))
def test_dice_agrees_with_sets_and_does_not_care_for_order(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 5, 6, 7)) < density
    a[0, 0, 0] = True
    voxels_a, voxels_b = (set(map(tuple, np.argwhere(mask))) for mask in (a, b))
    assert dice(a, b) == pytest.approx(2 * len(voxels_a & voxels_b) / (len(voxels_a) + len(voxels_b)), abs=1e-12)
    assert dice(a, b) == dice(b, a)
    assert dice(a, a) == 1.0


def test_volume_difference_is_positive_where_too_much_was_found() -> None:
    small, large = np.zeros((2, 4, 4, 4), bool)
    small[0, 0, :2] = large[0, 0, :] = True
    assert volume_difference_ml(large, small, 0.5) == 1.0
    assert volume_difference_ml(small, large, 0.5) == -1.0
