"""A case on the network's grid, in the form that is kept: rounded no further than it says, labels exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.core.case import Case
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap, Volume
from medseg.data.config import WindowNormalisation, ZScoreNormalisation
from medseg.data.prepare import expanded, prepare, prepare_compact
from medseg.io.case import read_case
from medseg.io.dataset import read_dataset

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 200)))
SPACING_MM = (3.1, 2.2, 2.7)


def case(image: np.ndarray, label: np.ndarray | None = None) -> Case:
    grid = Geometry.from_spacing(image.shape[1:], (2.0, 2.0, 2.0))
    label = np.zeros(image.shape[1:], np.uint8) if label is None else label
    return Case("x", Volume(image, grid), LabelMap(label, grid), SCHEMA.annotated_channels(None))


def test_real_ct_is_kept_to_half_a_hounsfield_unit_and_its_labels_exactly(sample: Path) -> None:
    dataset = read_dataset(sample)
    how = WindowNormalisation(low=-973.4, high=1418, mean=-20.5, std=211.7)
    for record in dataset.cases[:2]:
        read = read_case(record, dataset)
        exact = prepare(read, dataset.labels, SPACING_MM, [how])
        compact = prepare_compact(read, dataset.labels, SPACING_MM, [how])
        assert compact.channels[0].values.dtype == np.int16
        assert compact.classes.dtype == np.int8
        kept = expanded(compact)
        assert np.abs(kept.image - exact.image).max() * how.std <= 0.5 + 1e-3  # float32 at 1000 HU is good to 1e-4
        np.testing.assert_array_equal(kept.classes, exact.classes)
        assert kept.classes.dtype == exact.classes.dtype
        assert kept.image.dtype == exact.image.dtype
        assert kept.geometry.difference(exact.geometry) is None


def test_relative_units_are_normalised_and_kept_in_half_precision() -> None:
    image = np.random.default_rng(0).gamma(2.0, 400.0, (1, 20, 18, 16)).astype(np.float32)
    exact = prepare(case(image), SCHEMA, SPACING_MM, [ZScoreNormalisation()])
    compact = prepare_compact(case(image), SCHEMA, SPACING_MM, [ZScoreNormalisation()])
    assert compact.channels[0].values.dtype == np.float16
    np.testing.assert_allclose(expanded(compact).image, exact.image, rtol=2.0**-11, atol=2.0**-24)


@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        (WindowNormalisation(low=0, high=20, mean=2, std=3), np.float16),  # SUV: whole numbers would be too coarse
        (WindowNormalisation(low=-4e4, high=4e4, mean=0, std=100), np.float16),  # beyond 16 bits
        (WindowNormalisation(low=0, high=1e6, mean=0, std=1), np.float32),  # beyond half precision
        (WindowNormalisation(low=-1024, high=3071, mean=0, std=400), np.int16),
    ],
)
def test_what_whole_numbers_cannot_hold_is_kept_otherwise(how: WindowNormalisation, dtype: type) -> None:
    image = np.linspace(how.low, how.high, 1000, dtype=np.float32).reshape(1, 10, 10, 10)
    compact = prepare_compact(case(image), SCHEMA, (2.0, 2.0, 2.0), [how])
    assert compact.channels[0].values.dtype == dtype
    exact = prepare(case(image), SCHEMA, (2.0, 2.0, 2.0), [how]).image
    step = 0.5 / how.std if dtype == np.int16 else np.abs(exact).max() / 2000
    np.testing.assert_allclose(expanded(compact).image, exact, atol=step * 1.001)


def test_classes_take_the_smallest_signed_type_that_holds_them() -> None:
    many = LabelSchema(tuple(Structure(str(value), value) for value in range(1, 200)))
    label = np.arange(200, dtype=np.uint8).reshape(1, 10, 20)
    read = case(np.zeros((1, 1, 10, 20), np.int16), label)
    compact = prepare_compact(read, many, (2.0, 2.0, 2.0), [ZScoreNormalisation()])
    assert compact.classes.dtype == np.int16
    np.testing.assert_array_equal(compact.classes, label)


def test_a_constant_image_becomes_zeros() -> None:
    compact = prepare_compact(case(np.full((1, 4, 4, 4), 7)), SCHEMA, (2.0, 2.0, 2.0), [ZScoreNormalisation()])
    np.testing.assert_array_equal(expanded(compact).image, 0)
