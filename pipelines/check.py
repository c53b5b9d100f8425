"""Checking: the defects of a dataset, or of a folder of images, before anybody trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError
from medseg.core.findings import Finding
from medseg.core.plugins import find_task, resolve_reference
from medseg.core.progress import Listener, silent
from medseg.core.task import TaskFiles
from medseg.io.atomic import write_json_atomically
from medseg.io.dataset import is_dataset
from medseg.io.exclusive import exclusive
from pipelines.outcome import Outcome
from pipelines.plan import task_of

MAX_LINES = 50
"""Findings that a terminal shows; all are in the JSON."""


@dataclass(frozen=True)
class CheckOptions:
    """Fields are the command's options."""

    task: str | None = None
    workers: int | None = None
    allow: frozenset[str] = frozenset()
    out: Path | None = None


def run(path: Path, options: CheckOptions, listener: Listener = silent) -> Outcome:
    """Check.

    Args:
        path: A dataset (its folder or description), or a folder of images.
        options: Of the command line.
        listener: Hears of the progress.
    """
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"expected at least one worker, found --workers {options.workers}")
    spec = task_of(path) if options.task is None else find_task(options.task)
    files: TaskFiles = resolve_reference(spec.files)
    dataset = files.read_images(path) if path.is_dir() and not is_dataset(path) else files.read_dataset(path)
    findings = files.check(dataset, options.workers, options.allow, listener)
    document = {"findings": [entry(finding) for finding in findings]}
    if options.out is not None:
        with exclusive(options.out):
            write_json_atomically(options.out / "findings.json", document)
            files.draw_findings(options.out / "findings.html", findings, dataset)
    num_errors = sum(finding.level == "error" for finding in findings)
    text = table(findings, len(dataset.cases)) + (f"\npage: {options.out / 'findings.html'}" if options.out else "")
    return Outcome(int(num_errors > 0), document, text)


def entry(finding: Finding) -> dict[str, Any]:
    """A finding as the contract has it."""
    return {
        "case": finding.case,
        "file": finding.file,
        "code": finding.code,
        "level": finding.level,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def table(findings: Sequence[Finding], num_cases: int) -> str:
    """What people read: worst first, then the counts."""
    ordered = sorted(findings, key=lambda finding: finding.level != "error")
    lines = [
        f"{finding.level}: {finding.file or finding.case}: {finding.message} [{finding.code}]\n    {finding.remedy}"
        for finding in ordered[:MAX_LINES]
    ]
    if len(ordered) > MAX_LINES:
        lines.append(f"and {len(ordered) - MAX_LINES} more: see --json or --out")
    num_errors = sum(finding.level == "error" for finding in findings)
    named = len({finding.case for finding in findings if finding.case is not None})
    counts = f"{num_cases} cases checked, {named} named; errors: {num_errors}, warnings: {len(findings) - num_errors}"
    return "\n".join([*lines, counts])
