"""Strides, kernels and patches, beside nnU-Net 2.8's own functions where its numbers are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.topology import SMALLEST_MAP, STRIDE_RATIO, StageRule, growing_stages, layout, layouts

SIZES = st.tuples(*[st.integers(8, 400)] * 3)
SPACINGS = st.tuples(*[st.floats(0.4, 6.0)] * 3)


def rule(stem: int = 1, num_stages: int | None = None, uniform: bool = False) -> StageRule:
    return StageRule(num_stages, stem, uniform)


# nnunetv2 2.8.1: get_pool_and_conv_props(spacing, patch, 4, 999999), axes as given here.
NNUNET = [
    ((4.609, 4.609, 3.0), (112, 64, 112), [(1, 1, 1)] + [(2, 2, 2)] * 4, [(3, 3, 3)] * 5),
    ((1.0, 1.0, 1.0), (40, 56, 40), [(1, 1, 1)] + [(2, 2, 2)] * 3, [(3, 3, 3)] * 4),
    ((1.953125, 1.953125, 3.27), (96, 96, 64), [(1, 1, 1)] + [(2, 2, 2)] * 4, [(3, 3, 3)] * 5),
    (
        (0.8, 0.8, 5.0),
        (448, 448, 40),
        [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 1)],
        [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    ),
    (
        (5.0, 0.7, 0.7),
        (20, 320, 256),
        [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
        [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    ),
]


@pytest.mark.parametrize(("spacing", "patch", "strides", "kernels"), NNUNET)
def test_stages_are_nnunets(spacing, patch, strides, kernels) -> None:
    assert growing_stages(np.array(patch), spacing, 1) == (tuple(strides), tuple(kernels))


@given(SIZES, SPACINGS, st.sampled_from([1, 2]))
def test_stages_stop_before_a_map_gets_too_small(size, spacing, stem: int) -> None:
    strides, kernels = growing_stages(np.array(size), spacing, stem)
    assert len(strides) == len(kernels)
    assert kernels[-1] == (3, 3, 3)
    remaining = np.array(size, dtype=float)
    coarseness = np.array(spacing)
    for stride in strides:
        for axis in range(3):
            if stride[axis] > 1:
                assert remaining[axis] >= 2 * SMALLEST_MAP
                assert coarseness[axis] < STRIDE_RATIO * coarseness[remaining >= 2 * SMALLEST_MAP].min()
        remaining, coarseness = np.ceil(remaining / stride), coarseness * stride
    for axis in range(3):
        thickness = [kernel[axis] for kernel in kernels]
        assert thickness == sorted(thickness), "once 3, a kernel stays so"


@given(SIZES, SPACINGS, st.sampled_from([1, 2]), st.sampled_from([None, 3, 4]), st.booleans())
def test_patches_shrink_step_by_step_and_fit_their_networks(size, spacing, stem, num_stages, uniform) -> None:
    found = list(layouts(np.array(size), spacing, rule(stem, num_stages, uniform)))
    assert found
    for each in found:
        total = np.prod(np.array(each.strides), axis=0)
        assert (np.array(each.patch_ijk) % total == 0).all()
    for larger, smaller in pairwise(found):
        changed = [axis for axis in range(3) if larger.patch_ijk[axis] != smaller.patch_ijk[axis]]
        assert smaller.num_voxels < larger.num_voxels
        assert len(changed) >= 1
    assert found[0].num_voxels <= 8 * 256**3


def test_no_size_between_the_largest_and_the_smallest_is_skipped() -> None:
    found = [each.patch_ijk for each in layouts(np.array((110, 64, 107)), (4.609, 4.609, 3.0), rule())]
    assert found[:4] == [(112, 64, 112), (112, 64, 96), (96, 64, 96), (96, 56, 96)]
    assert found[-1] == (16, 16, 16)


def test_a_given_patch_is_kept_where_the_strides_allow_it() -> None:
    assert layout(np.array((80, 40, 80)), (4.6, 4.6, 2.5), rule(2)).patch_ijk == (80, 40, 80)
    assert layout(np.array((81, 40, 80)), (4.6, 4.6, 2.5), rule(2)).patch_ijk == (96, 40, 80)
    assert layout(np.array((33, 33, 33)), (1.0, 1.0, 1.0), rule(2, 4, True)).patch_ijk == (48, 48, 48)
