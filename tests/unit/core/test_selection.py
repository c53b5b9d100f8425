"""Some structures of all: who keeps a voxel, and names that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema, Structure
from medseg.core.selection import Selection

NESTED = LabelSchema(
    (
        Structure("whole", 2, region=(1, 2, 4)),
        Structure("core", 1, region=(1, 4)),
        Structure("enhancing", 4),
        Structure("cyst", 9),
    )
)
KIDNEYS = LabelSchema(
    (
        Structure("Kidney left", 5, side="left", mirror="Kidney right"),
        Structure("Kidney right", 300, side="right", mirror="Kidney left"),
        Structure("Liver", 7),
    ),
    priority=("Liver", "Kidney left"),
)


@given(st.sets(st.sampled_from(NESTED.names), min_size=1))
def test_each_structure_keeps_all_that_belongs_to_it_and_nothing_else(names: set[str]) -> None:
    channels = np.random.default_rng(0).integers(0, 5, (6, 5, 4)).astype(np.uint8)
    selection = Selection.of(NESTED, names)
    found = channels.copy()
    selection.apply(found)
    assert selection.labels.names == tuple(name for name in NESTED.names if name in names)
    for number, name in enumerate(selection.labels.names, start=1):
        before = NESTED.counts_as[channels, 1 + NESTED.names.index(name)]
        np.testing.assert_array_equal(selection.labels.counts_as[found, number], before)
    values = {structure.name: structure.value for structure in NESTED.structures}
    assert set(np.unique(selection.labels.to_values(found))) <= {0, *(values[name] for name in names)}


def test_all_or_none_named_change_nothing() -> None:
    channels = np.random.default_rng(0).integers(0, 4, (3, 3, 3)).astype(np.uint8)
    for names in (None, KIDNEYS.names, KIDNEYS.names[::-1]):
        selection, found = Selection.of(KIDNEYS, names), channels.copy()
        selection.apply(found)
        assert selection.labels == KIDNEYS
        np.testing.assert_array_equal(found, channels)


def test_what_is_not_asked_for_is_background_and_no_counterpart() -> None:
    selection = Selection.of(KIDNEYS, ["Liver", "Kidney left"])
    assert selection.numbers.tolist() == [0, 1, 0, 2]
    kidney, liver = selection.labels.structures
    assert (kidney.side, kidney.mirror, liver.value) == ("left", None, 7)
    assert selection.labels.label_dtype() == np.uint8, "300 is not there any more"


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no structure 'Spleen', 'liver' \(did you mean 'Liver'\?\); it has Kidney"):
        Selection.of(KIDNEYS, ["liver", "Spleen", "Kidney left"])
    with pytest.raises(ConfigError, match="at least one"):
        Selection.of(KIDNEYS, [])
