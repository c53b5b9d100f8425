"""Regions and the ignore label in the schema: what mirroring and nesting make of classes and channels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.labels import IGNORED, LabelSchema, Structure

TUMOUR = LabelSchema(
    (
        Structure("whole", 1, region=(1, 2, 3)),
        Structure("core", 2, region=(2, 3)),
        Structure("enhancing", 3),
    ),
    ignore_value=4,
)
LUNGS = LabelSchema(
    (
        Structure("lung left", 1, mirror="lung right", region=(1, 5)),
        Structure("lung right", 2, mirror="lung left", region=(2, 6)),
        Structure("tumour", 5, region=(5, 6)),
    )
)


def test_without_regions_mirroring_and_counting_are_those_of_channels() -> None:
    schema = LabelSchema((Structure("a", 7, mirror="b"), Structure("b", 3, mirror="a"), Structure("c", 9)), 20)
    assert schema.mirrored_classes == schema.mirrored_channels == (0, 2, 1, 3)
    assert (schema.counts_as == np.eye(4)).all()


def test_a_voxel_counts_for_the_regions_around_it() -> None:
    assert TUMOUR.counts_as.astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_classes_mirror_to_the_class_of_the_mirrored_structures() -> None:
    assert TUMOUR.mirrored_classes == (0, 1, 2, 3)
    assert LUNGS.class_values.tolist() == [0, 1, 2, 5, 6]
    assert LUNGS.mirrored_classes == (0, 2, 1, 4, 3)


def test_a_class_without_counterpart_is_ignored_when_mirrored() -> None:
    one_sided = LabelSchema((*LUNGS.structures[:1], Structure("lung right", 2, mirror="lung left"), Structure("x", 5)))
    assert one_sided.mirrored_classes == (0, 2, 1, IGNORED)  # nobody can be "right lung and x"


regions = st.lists(st.integers(1, 5), min_size=1, max_size=4, unique=True).map(tuple)


@given(st.lists(regions, min_size=4, max_size=4), st.booleans())
def test_mirroring_swaps_memberships_as_it_swaps_structures(given_regions, paired: bool) -> None:
    mirrors = ["b", "a", None, None] if paired else [None] * 4
    names = zip("abcd", mirrors, given_regions, strict=True)
    schema = LabelSchema(tuple(Structure(n, v, mirror=m, region=r) for v, (n, m, r) in enumerate(names, start=1)))
    for number, turned in enumerate(schema.mirrored_classes):
        expected = schema.membership[number, list(schema.mirrored_channels)]
        if turned == IGNORED:
            assert not (schema.membership == expected).all(axis=1).any()
        else:
            assert (schema.membership[turned] == expected).all()
