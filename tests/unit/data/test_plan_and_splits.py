from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import TrainingError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap, Volume
from medseg.data.config import PlanChoices, WindowNormalisation, ZScoreNormalisation
from medseg.data.fingerprint import ChannelIntensities, Fingerprint, fingerprint
from medseg.data.plan import StageRule, make_plan, steps_within
from medseg.data.prepare import prepare
from medseg.data.splits import divide

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 2)))


def measured(shapes, spacings, channels=1) -> Fingerprint:
    intensities = tuple(ChannelIntensities(-150.0, 250.0, 40.0, 90.0) for _ in range(channels))
    return Fingerprint(tuple(shapes), tuple(spacings), intensities, {"a": 1, "b": 1}, {"a": 1.0, "b": None})


def test_fingerprint_measures_the_foreground() -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3] = 1
    image = np.where(label == 1, 50, -1000).astype(np.int16)
    grid = Geometry(np.diag([-2.0, 2.0, 5.0, 1.0]), (4, 5, 6))
    case = Case("x", Volume(image[None], grid), LabelMap(label, grid), np.array([True, True, False]))
    found = fingerprint([case, case], SCHEMA)
    assert found.shapes == ((4, 5, 6),) * 2
    assert found.channels[0].mean == 50
    assert found.num_annotated == {"a": 2, "b": 0}
    assert found.median_volume_ml == {"a": pytest.approx(60 * 0.02), "b": None}


@pytest.mark.parametrize("ignored", [3, 255])
def test_fingerprint_counts_regions_whole_and_ignored_voxels_nowhere(ignored: int) -> None:
    schema = LabelSchema((Structure("whole", 1, region=(1, 2)), Structure("core", 2)), ignore_value=ignored)
    label = np.zeros((4, 5, 6), np.uint8)
    label[0], label[1], label[2] = 1, 2, ignored
    image = np.choose(np.minimum(label, 3), [-1000, 40, 60, 3000]).astype(np.int16)
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    case = Case("x", Volume(image[None], grid), LabelMap(label, grid), np.array([True, True, True]))
    found = fingerprint([case], schema)
    assert found.channels[0].mean == 50
    assert found.median_volume_ml == {"whole": pytest.approx(0.060), "core": pytest.approx(0.030)}


@given(
    st.lists(st.tuples(*[st.integers(8, 300)] * 3), min_size=1, max_size=5),
    st.tuples(*[st.floats(0.5, 6.0)] * 3),
    st.integers(2, 6),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_every_plan_fits_its_network(shapes, spacing, num_stages, stem, uniform) -> None:
    plan = make_plan(
        measured(shapes, [spacing] * len(shapes)), ["CT"], PlanChoices(), StageRule(num_stages, stem, uniform), 2
    )
    total = np.prod(np.array(plan.strides), axis=0)
    assert len(plan.strides) == num_stages
    assert (np.array(plan.patch_ijk) % total == 0).all()
    assert np.prod(plan.patch_ijk) <= 8 * max(262_144, np.prod(total))
    assert len(plan.reasons) == 3


def test_coarse_axes_are_strided_later_and_use_a_low_percentile() -> None:
    spacings = [(1.0, 1.0, z) for z in (3.0, 5.0, 5.0, 5.0, 5.0, 5.0)]
    plan = make_plan(measured([(200, 200, 40)] * 6, spacings), ["CT"], PlanChoices(), StageRule(4, 1, False), 2)
    assert plan.spacing_ijk_mm == (1.0, 1.0, 4.0)
    assert [stride[2] for stride in plan.strides][:2] == [1, 1]


def test_ct_gets_a_window_and_mr_its_own_scale() -> None:
    plan = make_plan(
        measured([(50, 50, 50)], [(1.0, 1.0, 1.0)], 2), ["CT", "MR"], PlanChoices(), StageRule(2, 1, False), 2
    )
    assert plan.normalisation == (WindowNormalisation(low=-150, high=250, mean=40, std=90), ZScoreNormalisation())


def test_choices_are_kept_and_said() -> None:
    choices = PlanChoices(spacing_mm=(2.0, 2.0, 3.0), patch_ijk=(32, 32, 16), window_hu=(-100, 300))
    plan = make_plan(measured([(50, 50, 50)], [(1.0, 1.0, 1.0)]), ["CT"], choices, StageRule(2, 1, False), 2)
    assert (plan.spacing_ijk_mm, plan.patch_ijk) == ((2.0, 2.0, 3.0), (32, 32, 16))
    assert (plan.normalisation[0].low, plan.normalisation[0].high) == (-100, 300)
    assert sum("given" in reason for reason in plan.reasons) == 3


def test_padding_outside_the_field_of_view_does_not_bleed_into_the_skin() -> None:
    image = np.full((1, 8, 8, 8), -3024, np.int16)
    image[0, :, :, 4:] = -1000
    grid = Geometry.from_spacing((8, 8, 8), (1.0, 1.0, 1.0))
    case = Case("x", Volume(image, grid), None, np.array([True, True, True]))
    how = WindowNormalisation(low=-1000, high=300, mean=0, std=1)
    assert np.unique(prepare(case, SCHEMA, (1.7, 1.7, 1.7), [how]).image).tolist() == [-1000]


def test_steps_within_a_budget() -> None:
    assert steps_within(100.0, 20.0, 0.5, 4.0, 5) == 120
    assert steps_within(10.0, 20.0, 0.5, 4.0, 5) == 1


def dataset(tmp_path, splits, patients=None) -> Dataset:
    cases = tuple(
        CaseRecord(f"c{n}", patients[n] if patients else f"c{n}", (tmp_path / "i",), tmp_path / "l", split=split)
        for n, split in enumerate(splits)
    )
    return Dataset("d", ("CT",), SCHEMA, cases, tmp_path / "dataset.json")


def test_the_datasets_own_splits_decide(tmp_path) -> None:
    division = divide(dataset(tmp_path, ["train", "validation", "test", "train"]), 0)
    assert [case.id for case in division.training] == ["c0", "c3"]
    assert [case.id for case in division.validation] == ["c1"]


def test_without_splits_a_fifth_of_the_patients_validates(tmp_path) -> None:
    patients = [f"p{n // 2}" for n in range(400)]
    division = divide(dataset(tmp_path, [None] * 400, patients), 0)
    assert 50 < len(division.validation) < 110
    assert not {case.patient for case in division.training} & {case.patient for case in division.validation}
    assert divide(dataset(tmp_path, [None] * 400, patients), 0) == division
    assert divide(dataset(tmp_path, [None] * 400, patients), 1) != division


def test_a_patient_on_both_sides_and_no_data_are_refused(tmp_path) -> None:
    with pytest.raises(TrainingError, match="1 patients"):
        divide(dataset(tmp_path, ["train", "validation"], ["p", "p"]), 0)
    with pytest.raises(TrainingError, match="no labelled case"):
        divide(dataset(tmp_path, ["test"]), 0)
