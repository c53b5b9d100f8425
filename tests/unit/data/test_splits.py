"""Folds: nobody on both sides, sizes alike, each structure's annotations shared out, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError, TrainingError
from medseg.core.labels import LabelSchema, Structure
from medseg.data.splits import divide, folds_of

NAMES = ("a", "b", "c")
SCHEMA = LabelSchema(tuple(Structure(name, value) for value, name in enumerate(NAMES, start=1)))


def record(number: int, patient: str | None = None, annotated=None, split=None, *, labelled: bool = True) -> CaseRecord:
    label = Path("label.nii.gz") if labelled else None
    return CaseRecord(f"c{number}", patient or f"p{number}", (Path("image.nii.gz"),), label, annotated, split)


def dataset(*records: CaseRecord) -> Dataset:
    return Dataset("d", ("CT",), SCHEMA, records, Path("dataset.json"))


@st.composite
def cohorts(draw) -> Dataset:
    """Patients with one to three scans, partly annotated."""
    num_patients, records = draw(st.integers(2, 40)), []
    for patient in range(num_patients):
        for _ in range(draw(st.integers(1, 3))):
            annotated = draw(st.none() | st.lists(st.sampled_from(NAMES), unique=True).map(tuple))
            records.append(record(len(records), f"p{patient}", annotated))
    return dataset(*records)


@settings(max_examples=30)
@given(cohorts(), st.integers(0, 5), st.integers(2, 10))
def test_folds_are_disjoint_complete_alike_in_size_and_repeatable(cohort, seed, num_folds) -> None:
    patients = {case.patient for case in cohort.cases}
    if len(patients) < num_folds:
        with pytest.raises(ConfigError, match=r"splits\.num_folds"):
            divide(cohort, seed, 0, num_folds)
        return
    divisions = [divide(cohort, seed, fold, num_folds) for fold in range(num_folds)]
    assert Counter(case.id for division in divisions for case in division.validation) == Counter(
        case.id for case in cohort.cases
    )
    sizes = []
    for division in divisions:
        training, validation = ({case.patient for case in side} for side in (division.training, division.validation))
        assert not training & validation
        assert training | validation == patients
        sizes.append(len(validation))
    assert max(sizes) - min(sizes) <= 1
    backwards = replace(cohort, cases=cohort.cases[::-1])
    for fold, division in enumerate(divisions):
        assert divide(cohort, seed, fold, num_folds) == division
        assert set(divide(backwards, seed, fold, num_folds).validation) == set(division.validation)


@given(
    st.lists(st.lists(st.sampled_from(NAMES), unique=True).map(frozenset), min_size=10, max_size=60), st.integers(0, 3)
)
def test_every_fold_has_its_share_of_the_rarest_structure(structures, seed) -> None:
    present = {f"p{number}": names for number, names in enumerate(structures)}
    folds = folds_of(present, seed, 5)
    counts = Counter(name for names in structures for name in names)
    if not counts:
        return
    rarest = min(counts, key=lambda name: (counts[name], name))
    shares = Counter(folds[patient] for patient, names in present.items() if rarest in names)
    assert max(shares.values()) - min(shares[fold] for fold in range(5)) <= 1


def test_the_other_structures_are_shared_out_better_than_by_chance() -> None:
    """Against dealing the same patients out in the order of their hash: what a shuffle with equal sizes would do."""
    rarities = {"a": 5, "b": 3, "c": 2}
    present = {
        f"p{number}": frozenset(name for name, every in rarities.items() if number % every == 0) for number in range(60)
    }

    def unevenness(folds: dict[str, int]) -> int:
        shares = {name: Counter(folds[p] for p, names in present.items() if name in names) for name in rarities}
        return sum(
            max(share[fold] for fold in range(5)) - min(share[fold] for fold in range(5)) for share in shares.values()
        )

    for seed in range(5):
        shuffled = folds_of(dict.fromkeys(present, frozenset()), seed, 5)
        assert unevenness(folds_of(present, seed, 5)) <= 3 < unevenness(shuffled)


def test_patients_are_dealt_out_anew_by_another_seed() -> None:
    cohort = dataset(*(record(number) for number in range(30)))
    assert divide(cohort, 0, 0).validation != divide(cohort, 1, 0).validation


def test_the_test_split_and_cases_without_reference_take_no_part() -> None:
    splits = ["train"] * 6 + ["validation"] * 4 + ["test"] * 3
    records = [record(number, split=split) for number, split in enumerate(splits)]
    cohort = dataset(*records, record(13, labelled=False))
    seen = [case.id for fold in range(5) for case in divide(cohort, 0, fold).validation]
    assert sorted(seen) == sorted(f"c{number}" for number in range(10))
    for fold in ("none", "each"):
        division = divide(cohort, 0, fold)
        assert [case.id for case in division.training] == [f"c{number}" for number in range(10)]
        assert division.validation == ()
    assert "fold 2 of 0 to 4" in divide(cohort, 0, 2).reason


def test_what_cannot_be_divided_is_refused() -> None:
    cohort = dataset(*(record(number) for number in range(6)))
    with pytest.raises(ConfigError, match="a fold from 0 to 4"):
        divide(cohort, 0, 5)
    with pytest.raises(ConfigError, match="7 folds need"):
        divide(cohort, 0, "each", 7)
    leaking = dataset(record(0, "p", split="train"), record(1, "p", split="test"), record(2, split="train"))
    with pytest.raises(TrainingError, match="1 patients stand in the test split and outside it"):
        divide(leaking, 0, "none")
    with pytest.raises(TrainingError, match="no labelled case"):
        divide(dataset(record(0, labelled=False)), 0, 0)


@pytest.mark.parametrize("num_patients", [2, 3, 4, 5, 9])
def test_of_few_patients_without_splits_at_least_one_stands_on_each_side(num_patients: int) -> None:
    for seed in range(40):
        division = divide(dataset(*(record(number) for number in range(num_patients))), seed)
        assert division.training
        assert division.validation
        assert len(division.validation) < num_patients


def test_a_single_patient_trains() -> None:
    for seed in range(10):
        division = divide(dataset(record(0, "p"), record(1, "p")), seed)
        assert (len(division.training), division.validation) == (2, ())
