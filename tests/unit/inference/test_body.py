"""The body in a CT: found without its couch, never cut, and only where a model does not label air."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.patch import PatchLocation
from medseg.data.config import WindowNormalisation, ZScoreNormalisation
from medseg.data.plan import DataFacts, Plan, StructureFacts
from medseg.data.prepare import prepare
from medseg.inference.body import find_body, labels_air
from medseg.io.case import read_case
from medseg.io.dataset import read_dataset

HOW = WindowNormalisation(low=-1000, high=1000, mean=0, std=200)


def scan(shape=(60, 50, 70)) -> np.ndarray:
    """Air with noise, an ellipsoid of water, and a couch: a shell of one voxel below it."""
    image = np.full(shape, -1000.0) + np.abs(np.random.default_rng(0).normal(0, 60, shape))
    i, j, k = np.indices(shape)
    image[((i - 30) / 16) ** 2 + ((j - 30) / 12) ** 2 + ((k - 40) / 24) ** 2 <= 1] = 0
    image[5:55, 4:5] = 200
    return ((image - HOW.mean) / HOW.std).astype(np.float32)[None]


def test_the_box_holds_the_body_and_not_the_couch() -> None:
    body = find_body(scan(), (3.0, 3.0, 3.0), ("CT",), (HOW,))
    assert body is not None
    box = body.box((8, 8, 8))
    for axis, (first, stop) in enumerate(((14, 47), (18, 43), (16, 65))):
        assert first - 12 <= box.start_ijk[axis] <= first
        assert stop <= box.stop_ijk[axis] <= stop + 12
    assert box.start_ijk[1] >= 6


def test_windows_beside_the_body_need_no_network() -> None:
    body = find_body(scan(), (3.0, 3.0, 3.0), ("CT",), (HOW,))
    assert body is not None
    assert body.is_in(PatchLocation((26, 26, 36), (8, 8, 8)))
    assert not body.is_in(PatchLocation((0, 0, 0), (6, 6, 6)))


@given(st.tuples(*[st.integers(1, 90)] * 3))
@settings(max_examples=30)
def test_the_box_is_no_smaller_than_a_window_and_lies_in_the_image(window) -> None:
    image = scan()
    body = find_body(image, (3.0, 3.0, 3.0), ("CT",), (HOW,))
    assert body is not None
    box = body.box(window)
    for start, stop, size, edge in zip(box.start_ijk, box.stop_ijk, image.shape[1:], window, strict=True):
        assert 0 <= start < stop <= size
        assert stop - start >= min(size, edge)


def test_every_structure_of_real_scans_lies_in_the_box_and_in_no_window_that_is_skipped(sample: Path) -> None:
    dataset = read_dataset(sample)
    how = WindowNormalisation(low=-974, high=1577, mean=194, std=432)
    for record in dataset.cases:
        prepared = prepare(read_case(record, dataset), dataset.labels, (4.0, 4.0, 3.0), [how])
        body = find_body(prepared.image, (4.0, 4.0, 3.0), ("CT",), (how,))
        assert body is not None
        box = body.box((8, 8, 8))
        assert prepared.classes is not None
        found = prepared.classes > 0
        assert found.sum() == found[box.to_slices()].sum()
        assert all(body.is_in(PatchLocation((i, j, k), (1, 1, 1))) for i, j, k in np.argwhere(found)[::97].tolist())


def test_windows_inside_a_lung_are_looked_at_although_they_hold_air() -> None:
    """A nodule may lie there."""
    image = np.full((80, 80, 60), -1000.0)
    i, j, _ = np.indices(image.shape)
    trunk = ((i - 40) / 34) ** 2 + ((j - 40) / 34) ** 2 <= 1
    image[trunk] = 40
    image[((i - 40) / 28) ** 2 + ((j - 40) / 28) ** 2 <= 1] = -850  # cut open at both ends of the scan
    body = find_body(((image - HOW.mean) / HOW.std).astype(np.float32)[None], (3.0, 3.0, 3.0), ("CT",), (HOW,))
    assert body is not None
    assert body.is_in(PatchLocation((38, 38, 28), (4, 4, 4)))
    assert not body.is_in(PatchLocation((0, 0, 0), (2, 2, 2)))


def test_a_lung_that_the_side_of_the_scan_cuts_open_is_looked_at() -> None:
    image = np.full((80, 80, 60), -850.0)
    image[:12] = 40  # a chest wall on one side only
    body = find_body(((image - HOW.mean) / HOW.std).astype(np.float32)[None], (3.0, 3.0, 3.0), ("CT",), (HOW,))
    assert body is not None
    assert body.box((8, 8, 8)) == PatchLocation((0, 0, 0), (80, 80, 60))
    assert body.is_in(PatchLocation((60, 38, 28), (4, 4, 4)))


def test_a_window_of_bone_says_too_little_of_the_body() -> None:
    bone = WindowNormalisation(low=150, high=1500, mean=400, std=200)
    assert find_body(scan(), (3.0, 3.0, 3.0), ("CT",), (bone,)) is None


def test_what_is_no_ct_or_holds_no_body_is_looked_at_whole() -> None:
    assert find_body(scan(), (3.0, 3.0, 3.0), ("MR",), (HOW,)) is None
    assert find_body(scan(), (3.0, 3.0, 3.0), ("CT",), (ZScoreNormalisation(),)) is None
    assert find_body(np.full((1, 30, 30, 30), -5.0, np.float32), (3.0, 3.0, 3.0), ("CT",), (HOW,)) is None


def plan(*medians: float | None) -> Plan:
    structures = {
        str(number): StructureFacts(
            num_annotated=1, num_found=1, median_volume_ml=1.0, median_thickness_mm=5.0,
            percentiles=() if median is None else ((median - 50, median, median + 50),),
        )
        for number, median in enumerate(medians)
    }  # fmt: skip
    facts = DataFacts(
        num_cases=1, median_spacing_mm=(1, 1, 1), median_extent_mm=(9, 9, 9), total_volume_ml=1.0, structures=structures
    )
    return Plan(
        spacing_ijk_mm=(1, 1, 1), patch_ijk=(8, 8, 8), strides=((1, 1, 1),), normalisation=(HOW,), batch_size=1,
        fingerprint=facts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("medians", "is_air"), [((30, 60), False), ((30, -800), True), ((30, None), True), ((-100,), False)]
)
def test_a_model_of_lungs_looks_at_air(medians, is_air: bool) -> None:
    assert labels_air(plan(*medians), ("CT",)) == is_air


def test_a_model_of_which_nothing_is_known_looks_at_everything() -> None:
    assert labels_air(plan(), ("CT",))
    assert labels_air(plan(30).model_copy(update={"fingerprint": None}), ("CT",))
