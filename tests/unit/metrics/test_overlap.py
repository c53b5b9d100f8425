from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.metrics.overlap import OverlapCounts, count_overlaps, dice


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9))
def test_dice_agrees_with_sets_and_does_not_care_for_order(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 5, 6, 7)) < density
    a[0, 0, 0] = True
    voxels_a, voxels_b = (set(map(tuple, np.argwhere(mask))) for mask in (a, b))
    assert dice(a, b) == pytest.approx(2 * len(voxels_a & voxels_b) / (len(voxels_a) + len(voxels_b)), abs=1e-12)
    assert dice(a, b) == dice(b, a)
    assert dice(a, a) == 1.0


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_counts_of_all_structures_agree_with_masks(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (
        np.where(rng.random((5, 6, 7)) < density, rng.integers(1, 4, (5, 6, 7)), 0).astype(np.uint8) for _ in range(2)
    )
    counts = count_overlaps(prediction, reference, 4)
    assert len(counts) == 4
    for number, found in enumerate(counts, start=1):
        a, b = prediction == number, reference == number
        assert found == OverlapCounts(int(a.sum()), int(b.sum()), int((a & b).sum()))
        if a.any() or b.any():
            assert found.dice == pytest.approx(dice(a, b), abs=1e-12)
            assert found.iou == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-12)
            assert found.iou == pytest.approx(found.dice / (2 - found.dice), abs=1e-12)


def test_volume_difference_is_positive_where_too_much_was_found() -> None:
    assert OverlapCounts(4, 2, 2).volume_difference_ml(0.5) == 1.0
    assert OverlapCounts(2, 4, 2).volume_difference_ml(0.5) == -1.0
