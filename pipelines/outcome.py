"""What a job hands back to whoever started it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The end of a job.

    Attributes:
        exit_code: As the contract lists them: 0 all done, 1 some cases failed, 6 every case failed, …
        result: What ``--json`` prints.
        text: What people read at the end.
    """

    exit_code: int
    result: Mapping[str, Any]
    text: str = ""


def exit_code_of(num_failed: int, num_cases: int) -> int:
    """0 where no case failed, 1 where some did, 6 where all did."""
    if num_failed == 0:
        return 0
    return 6 if num_failed == num_cases else 1
