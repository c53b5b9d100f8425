"""Progress events: the library says what happens, and whoever wants to listens (bars, logs, pages)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One step of something long.

    Attributes:
        stage: What is being done, for people: "reading", "training", "predicting".
        done: Units finished.
        total: Units in all; None where it is not known.
        values: Figures to show beside the bar.
        message: A sentence worth a line of its own.
    """

    stage: str
    done: int
    total: int | None
    values: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


Listener = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """A listener that does nothing."""
