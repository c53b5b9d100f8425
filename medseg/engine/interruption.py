"""Ctrl-C and SIGTERM ask for a stop; the loop answers at the end of its step, with a checkpoint; all else ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from medseg.core.errors import Interrupted


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the context lasts; a second signal falls through to the usual answer."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Let SIGTERM end what this context does as Ctrl-C would; :func:`stop_requests` within it takes over while it lasts.

    Args:
        remedy: How to go on, for people.

    Raises:
        Interrupted: One of the two came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {remedy}") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)  # None: a handler that Python did not set
