"""How progress looks in a terminal: bars with time left where somebody watches, plain lines where a file listens."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from medseg.core.progress import Progress

SECONDS_BETWEEN_LINES = 15.0
"""Between two plain lines of one stage: a log of an hour stays readable."""


class ProgressDisplay:
    """A listener that shows events on stderr.

    Args:
        quiet: Show messages only, no bars and no plain lines.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True)
        self.quiet = quiet
        self._bars: Bars | None = None
        self._stage, self._bar = "", TaskID(0)
        self._began, self._told, self._first = 0.0, 0.0, 0

    def __call__(self, event: Progress) -> None:
        """Show one event."""
        if event.message:
            self.console.print(event.message, markup=False, highlight=False, soft_wrap=True)
        if self.quiet or event.total is None:
            return
        if event.stage != self._stage or event.done == 0:
            self._open(event)
        if self._bars is not None:
            self._bars.update(self._bar, completed=event.done, figures=_figures(event))
        else:
            self._line(event)
        if event.done == event.total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._stage = None, ""

    def _open(self, event: Progress) -> None:
        self.close()
        self._stage, self._first = event.stage, event.done
        self._began = self._told = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bars = Bars(*columns, console=self.console, transient=True)
            self._bar = self._bars.add_task(event.stage, total=event.total, completed=event.done, figures="")
            self._bars.start()

    def _line(self, event: Progress) -> None:
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES or event.done == self._first or event.total is None:
            return
        self._told = now
        left_s = (now - self._began) / (event.done - self._first) * (event.total - event.done)
        text = f"{event.stage} {event.done}/{event.total} {_figures(event)} {left_s:.0f} s left"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _figures(event: Progress) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in event.values.items())
