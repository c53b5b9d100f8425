"""The next batch is made while the network learns from the last one, where there is something free to make it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

WAITING = 1
"""Finished batches that wait, beside the one that is being made: more would cost memory and gain nothing, since a
batch that takes longer than a step is late however early it was begun."""

POLL_S = 0.1
"""How often a thread with a full queue looks whether it is still wanted [s]."""

FEW_CORES = 4
"""So few do nothing but the network, and batches are made between its steps. A thread beside it would take one core's time
by turns, and at each of a step's hundreds of operations the others wait for that core: on two cores a step of head_neck_unet took
.19 s, and .13 s with batches made in between. Not measured on more cores."""

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """There are no more, perhaps because making one failed."""

    error: Exception | None = None


@contextmanager
def made_in_time(batches: Iterator[T], device: torch.device) -> Iterator[Iterator[T]]:
    """The batches, made as suits where the network is: :func:`made_ahead`, or on few cores when they are asked for.

    Args:
        batches: The same to the bit, however they are made.
        device: Of the network.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu" and num_cores <= min(FEW_CORES, torch.get_num_threads()):
        yield batches
        return
    with made_ahead(batches) as ahead:
        yield ahead


@contextmanager
def made_ahead(batches: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same batches in the same order, made in a thread of their own; it ends with the context.

    Torch and NumPy let go of Python's lock while they compute. The thread computes on one core, as a loader's process
    does.

    Raises:
        Exception: Whatever making a batch raised, where that batch was due.
    """
    ready: queue.Queue[T | End] = queue.Queue(WAITING)
    is_wanted, is_alone = threading.Event(), threading.Event()
    is_wanted.set()

    def make() -> None:
        torch.set_num_threads(1)
        is_alone.set()
        end = End()
        try:
            for batch in batches:
                if not _put(ready, batch, is_wanted):
                    return
        except Exception as error:
            end = End(error)
        _put(ready, end, is_wanted)

    num_threads = torch.get_num_threads()
    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    is_alone.wait()
    torch.set_num_threads(num_threads)  # torch keeps one number for threads to come, and the new thread has changed it
    try:
        yield _taken(ready)
    finally:
        is_wanted.clear()
        thread.join()


def _put(ready: queue.Queue[T | End], item: T | End, is_wanted: threading.Event) -> bool:
    """Wait until there is room, or nobody wants more; whether there was room."""
    while is_wanted.is_set():
        try:
            ready.put(item, timeout=POLL_S)
        except queue.Full:
            continue
        return True
    return False


def _taken(ready: queue.Queue[T | End]) -> Iterator[T]:
    while True:
        item = ready.get()
        if not isinstance(item, End):
            yield item
        elif item.error is None:
            return
        else:
            raise item.error
