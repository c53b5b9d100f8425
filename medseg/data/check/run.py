"""The check of a dataset from beginning to end: measure every case in workers, then judge them together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from medseg.core.case import Dataset
from medseg.core.findings import Finding
from medseg.core.progress import Listener, Progress
from medseg.data.check.cohort import habits
from medseg.data.check.facts import UNKNOWN, CaseFacts, ImageFacts
from medseg.data.check.measure import CheckedDataset
from medseg.data.check.verdict import judge
from medseg.data.check.workers import measure_all, num_processors


def check_dataset(
    dataset: Dataset, *, num_workers: int | None, allow: Collection[str], listener: Listener
) -> list[Finding]:
    """Find the defects of a dataset.

    Args:
        dataset: Its description. Channels called ``unknown`` are taken for CT if one of their images looks like it.
        num_workers: Processes that read; None: one a processor.
        allow: Codes of problems to go on with; they are told as warnings.
        listener: Hears of the progress.

    Raises:
        ResourceError: No worker can be started.
    """
    facts = _measured(dataset, num_workers, allow, listener)
    for habit in habits(facts, dataset.labels):
        listener(Progress("checking", len(facts), len(facts), message=habit))
    return _softened(judge(facts, dataset.cases, dataset.labels), allow)


def _measured(dataset: Dataset, num_workers: int | None, allow: Collection[str], listener: Listener) -> list[CaseFacts]:
    folder = dataset.source.parent
    told = CheckedDataset(folder, dataset.channels, dataset.labels, frozenset(allow))
    measured: dict[int, CaseFacts] = {}
    listener(Progress("checking", 0, len(dataset.cases)))
    for number, facts in measure_all(dataset.cases, told, num_workers or num_processors()):
        measured[number] = facts
        listener(Progress("checking", len(measured), len(dataset.cases)))
    return _with_guessed_modality([measured[number] for number in range(len(dataset.cases))])


def _with_guessed_modality(cases: Sequence[CaseFacts]) -> list[CaseFacts]:
    """One image with air and tissue in their places shows that what nobody named is CT, and the others should be too."""
    unknown = [image for case in cases for image in case.images if image.modality == UNKNOWN]
    if not any(image.landmarks is not None and image.landmarks.is_hu for image in unknown):
        return list(cases)
    return [replace(case, images=tuple(_named_ct(image) for image in case.images)) for case in cases]


def _named_ct(image: ImageFacts) -> ImageFacts:
    return replace(image, modality="CT") if image.modality == UNKNOWN else image


def _softened(findings: Sequence[Finding], allow: Collection[str]) -> list[Finding]:
    """What is allowed stays to be seen, as a warning."""
    return [replace(finding, level="warning") if finding.code in allow else finding for finding in findings]
