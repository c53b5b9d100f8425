"""Which cases train and which validate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import TrainingError

VALIDATION_PART = 5
"""One patient in so many validates where the dataset gives no splits."""


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


def divide(dataset: Dataset, seed: int) -> Division:
    """Divide by the dataset's own splits; without any, one fifth of the patients by hash(seed, patient) validates.

    Raises:
        TrainingError: No labelled case is left to train on, or a patient stands in two splits.
    """
    labelled = [case for case in dataset.cases if case.label is not None]
    if any(case.split is not None for case in dataset.cases):
        training = tuple(case for case in labelled if case.split in ("train", None))
        validation = tuple(case for case in labelled if case.split == "validation")
        reason = "the dataset's own splits"
    else:
        validation = tuple(case for case in labelled if _validates(case.patient, seed))
        training = tuple(case for case in labelled if not _validates(case.patient, seed))
        reason = f"no splits given: one fifth of the patients by hash of seed {seed} and patient"
    both = {case.patient for case in training} & {case.patient for case in validation}
    if both:
        raise TrainingError(f"{len(both)} patients stand in the training and the validation split: correct the dataset")
    if not training:
        raise TrainingError(f"{dataset.source.name} has no labelled case to train on", code="training.no_data")
    return Division(training, validation, f"{len(training)} cases train, {len(validation)} validate: {reason}")


def _validates(patient: str, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % VALIDATION_PART == 0
