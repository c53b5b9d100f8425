"""What the time of a run is spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall clock by stage.

    Args:
        seconds: By stage; goes on counting from there.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last_s = 0.0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count what happens in this context as a stage; afterwards ``last_s`` says how long it took."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.last_s = time.perf_counter() - began
            self.seconds[stage] += self.last_s
