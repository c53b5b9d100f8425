"""Dice of all channels at once, as training watches it, against the masks of each structure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.labels import IGNORED, LabelSchema, Structure
from medseg.metrics.overlap import channel_dice

NESTED = LabelSchema(
    (Structure("whole", 2, region=(1, 2, 4)), Structure("core", 1, region=(1, 4)), Structure("x", 4)), 9
)
PLAIN = LabelSchema((Structure("a", 2), Structure("b", 1), Structure("c", 4)), 9)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("schema", [PLAIN, NESTED], ids=["structures", "regions"])
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=3, max_size=3), st.booleans())
def test_dice_of_channels_is_that_of_their_masks(schema, seed: int, looked_for: list[bool], ignoring: bool) -> None:
    """Masks as in the files: every voxel whose value is of the structure, in the decided part."""
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 0, 1, 2, 4, 9] if ignoring else [0, 1, 2, 4], (5, 6, 7))
    predicted = rng.integers(0, 4 if seed % 2 else 3, reference.shape).astype(np.int16)  # sometimes never the last one
    annotated = np.array([True, *looked_for])
    classes = schema.to_classes(reference)
    assert (classes == IGNORED).any() == ignoring
    found = channel_dice(predicted, classes, annotated, schema)
    decided, values = reference != 9, schema.to_values(predicted)
    for structure, known, score in zip(schema.structures, looked_for, found[1:], strict=True):
        masks = [np.isin(array, structure.reference_values) & decided for array in (values, reference)]
        assert score == pytest.approx(dice(*masks)) if known else np.isnan(score)
    background = [(values == 0) & decided, reference == 0]
    assert found[0] == pytest.approx(dice(*background))


def test_dice_of_channels_where_neither_has_the_structure_or_nobody_decided() -> None:
    empty = np.zeros((3, 3, 3), np.int16)
    assert np.isnan(channel_dice(empty, empty, np.ones(4, bool), PLAIN)[1:]).all()
    everywhere = channel_dice(empty + 1, np.full_like(empty, IGNORED), np.ones(4, bool), PLAIN)
    assert np.isnan(everywhere).all()
