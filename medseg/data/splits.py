"""Which cases train and which validate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError, TrainingError

VALIDATION_PART = 5
"""One patient in so many validates where the dataset gives no splits."""

Fold = int | Literal["each", "none"] | None
"""A number: that fold's patients validate. ``none``: every case trains. ``each``: what all folds have in common, again every
case. None: the dataset's own splits decide.
"""


@dataclass(frozen=True)
class Division:
    """The labelled cases of a dataset, divided; no patient on both sides.

    Attributes:
        training, validation: In the dataset's order.
        reason: For people.
    """

    training: tuple[CaseRecord, ...]
    validation: tuple[CaseRecord, ...]
    reason: str


def divide(dataset: Dataset, seed: int, fold: Fold = None, num_folds: int = 5) -> Division:
    """Divide the labelled cases.

    Without a fold, the dataset's own splits decide; where it has none, one fifth of the patients by hash(seed, patient)
    validates. With one, all cases but those of the test split take part.

    Args:
        dataset: Its cases are not read.
        seed: Orders the patients.
        fold: Whose patients validate, counted from 0; ``none`` and ``each``: nobody's.
        num_folds: Into how many folds the patients are divided.

    Raises:
        ConfigError: There is no such fold, or there are fewer patients than folds.
        TrainingError: No labelled case is left to train on, or a patient stands in two splits.
    """
    labelled = [case for case in dataset.cases if case.label is not None]
    if fold is not None:
        cases = [case for case in labelled if case.split != "test"]
        _refuse_both_sides(cases, dataset.of_split("test"), "the test split and outside it")
        validating, reason = _chosen_by_fold(cases, dataset, seed, fold, num_folds)
    elif any(case.split is not None for case in dataset.cases):
        cases = [case for case in labelled if case.split != "test"]
        validation = [case for case in cases if case.split == "validation"]
        others = [case for case in cases if case.split != "validation"]
        _refuse_both_sides(others, validation, "the training and the validation split")
        validating, reason = {case.patient for case in validation}, "the dataset's own splits"
    else:
        cases = labelled
        validating, reason = _chosen_by_hash({case.patient for case in cases}, seed)
    training = tuple(case for case in cases if case.patient not in validating)
    validation = [case for case in cases if case.patient in validating]
    if not training:
        raise TrainingError(f"{dataset.source.name} has no labelled case to train on", code="training.no_data")
    reason = f"{len(training)} cases train, {len(validation)} validate: {reason}"
    return Division(training, tuple(validation), reason)


def folds_of(structures: Mapping[str, Collection[str]], seed: int, num_folds: int) -> dict[str, int]:
    """The fold of each patient, so that every fold has its share of the annotations of every structure.

    Of the structures, that with the fewest patients left is dealt out first; each patient goes to the fold that lacks the
    structure most, or patients most where folds lack it alike. Sizes are within one patient of each other. The order in
    which patients are listed plays no part.

    Args:
        structures: By patient, what is annotated in its cases.
        seed: Orders the patients.
        num_folds: At most the number of patients.

    Source:
        Sechidis et al. 2011, "On the stratification of multi-label data", algorithm 1. Deviations: no fold gets more patients
        than its share, rounded; ties are settled by the hash of seed and patient, which orders the patients, not by chance.
    """
    waiting = sorted(structures, key=lambda patient: _hash(patient, seed))
    room = [len(waiting) // num_folds + (fold < len(waiting) % num_folds) for fold in range(num_folds)]
    counts = Counter(name for patient in waiting for name in structures[patient])
    lacking = [{name: count * size / len(waiting) for name, count in counts.items()} for size in room]
    found: dict[str, int] = {}
    while waiting:
        left = Counter(name for patient in waiting for name in structures[patient])
        rarest = min(left, key=lambda name: (left[name], name)) if left else None
        for patient in waiting:
            if rarest is not None and rarest not in structures[patient]:
                continue
            fold = max(
                (fold for fold in range(num_folds) if room[fold]),
                key=lambda fold: (lacking[fold][rarest] if rarest is not None else 0.0, room[fold], -fold),
            )
            found[patient] = fold
            room[fold] -= 1
            for name in structures[patient]:
                lacking[fold][name] -= 1
        waiting = [patient for patient in waiting if patient not in found]
    return found


def _chosen_by_fold(
    cases: Sequence[CaseRecord], dataset: Dataset, seed: int, fold: int | Literal["each", "none"], num_folds: int
) -> tuple[set[str], str]:
    """The patients that validate, and why."""
    if fold == "none" or not cases:
        return set(), "none is set aside, and the last weights are the result"
    structures: dict[str, set[str]] = {}
    for case in cases:
        annotated = dataset.labels.names if case.annotated is None else case.annotated
        structures.setdefault(case.patient, set()).update(annotated)
    if len(structures) < num_folds:
        raise ConfigError(
            f"{num_folds} folds need as many labelled patients, and {dataset.source.name} has {len(structures)}: "
            "give fewer with --set splits.num_folds=N"
        )
    if fold == "each":
        return set(), f"each of {num_folds} folds validates in turn, and all cases are planned for together"
    if fold not in range(num_folds):
        raise ConfigError(f"expected a fold from 0 to {num_folds - 1} (splits.num_folds is {num_folds}), found {fold}")
    folds = folds_of(structures, seed, num_folds)
    reason = f"fold {fold} of 0 to {num_folds - 1}, patients dealt out by annotated structures and seed {seed}"
    return {patient for patient, number in folds.items() if number == fold}, reason


def _chosen_by_hash(patients: Collection[str], seed: int) -> tuple[set[str], str]:
    """A fifth of the patients, each by its own hash, so that a patient who joins later moves no other."""
    chosen = {patient for patient in patients if _hash(patient, seed) % VALIDATION_PART == 0}
    if 0 < len(chosen) < len(patients):
        return chosen, f"no splits given: one fifth of the patients by hash of seed {seed} and patient"
    ordered = sorted(patients, key=lambda patient: _hash(patient, seed))  # so few that the hash leaves one side empty
    num_chosen = min(max(1, round(len(ordered) / VALIDATION_PART)), len(ordered) - 1)
    reason = (
        f"no splits given, few patients: the first {num_chosen} of {len(ordered)} by hash of seed {seed} and patient"
    )
    return set(ordered[:num_chosen]), reason


def _refuse_both_sides(one: Sequence[CaseRecord], other: Sequence[CaseRecord], where: str) -> None:
    both = {case.patient for case in one} & {case.patient for case in other}
    if both:
        raise TrainingError(f"{len(both)} patients stand in {where}: correct the dataset")


def _hash(patient: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8], "big")
