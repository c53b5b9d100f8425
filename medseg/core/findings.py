"""What a check of a dataset finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One defect of a dataset.

    Attributes:
        case: Id of the case; None where it concerns the whole dataset.
        file: The file that shows it, as the dataset names it.
        code: Stable identifier for programs, such as ``read.crc``; ``--allow`` takes it.
        level: Errors make a case unusable or teach something wrong; warnings are worth a look.
        message: One sentence for a person: expected, found, where.
        remedy: What to do.
        structures: That it concerns, by name.
    """

    case: str | None
    file: str | None
    code: str
    level: Level
    message: str
    remedy: str
    structures: tuple[str, ...] = ()
