"""From the facts of all cases to all findings, in the order of the cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medseg.core.case import CaseRecord
from medseg.core.findings import Finding
from medseg.core.labels import LabelSchema
from medseg.data.check.cohort import findings_of_labels, findings_of_structures, sizes
from medseg.data.check.facts import CaseFacts
from medseg.data.check.laterality import findings_of_places
from medseg.data.check.remedies import found
from medseg.data.check.rules import findings_of_case
from medseg.data.check.scans import findings_of_scans


def judge(facts: Sequence[CaseFacts], records: Sequence[CaseRecord], schema: LabelSchema) -> list[Finding]:
    """Apply all rules.

    Args:
        facts: Of each case.
        records: The same cases.
        schema: Of the dataset.
    """
    findings = [
        finding
        for case, record in zip(facts, records, strict=True)
        for finding in findings_of_case(case, record, schema)
    ]
    findings += findings_of_structures(facts, schema)
    findings += findings_of_labels(facts, schema)
    findings += findings_of_places(facts, schema)
    findings += findings_of_scans(facts, sizes(facts, schema))
    findings += _divided_patients(facts, records)
    order = {record.id: number for number, record in enumerate(records)}
    return sorted(_once(findings), key=lambda finding: order.get(finding.case or "", len(order)))


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """One finding a case, file and code: an error before a warning, what a case shows by itself before comparisons."""
    kept: dict[tuple[str | None, str | None, str], Finding] = {}
    for finding in findings:
        key = (finding.case, finding.file, finding.code)
        if key not in kept or (kept[key].level, finding.level) == ("warning", "error"):
            kept[key] = finding
    return list(kept.values())


def _divided_patients(facts: Sequence[CaseFacts], records: Sequence[CaseRecord]) -> Iterator[Finding]:
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.split is not None:
            splits.setdefault(record.patient, set()).add(record.split)
    for case, record in zip(facts, records, strict=True):
        divided = sorted(splits.get(record.patient, ()))
        if len(divided) > 1:
            file = case.images[0].file if case.images else record.images[0].name
            message = f"its patient has cases in {' and '.join(divided)}: what is learnt is tested on the same patient"
            yield found("split.patient", "error", record.id, file, message)
