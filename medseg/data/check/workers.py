"""Processes that measure cases, one at a time each; when one is killed, its case is named and the others go on.

They are fresh interpreters and not forks: they hold no more than NumPy and the readers, whatever their parent has
loaded, and they do not run its main script again. A pool of the standard library breaks as a whole when one of its
processes is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection as connections

from medseg.core.case import CaseRecord
from medseg.core.environment import single_threaded
from medseg.core.errors import ResourceError
from medseg.data.check.facts import CaseFacts
from medseg.data.check.measure import CheckedDataset, measure_case
from medseg.data.check.remedies import found

NUM_AHEAD = 2
"""Cases that a worker has at hand, so that it never waits for the parent."""

EXIT_S = 10.0
"""Time that a worker which hung up may take to end."""

STARTER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from medseg.data.check.workers import work; work(int(sys.argv[2]))"
)
"""What a worker runs: it imports from where its parent does, and from no current folder."""

READY = "ready"


def num_processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """One process, from the parent's side.

    Attributes:
        connection: To it.
        sent: Numbers of the cases that it has at hand, the one it is at first.
        is_ready: Whether it has answered yet.
    """

    def __init__(self, dataset: CheckedDataset) -> None:
        self.connection, theirs = connections.Pipe()
        with theirs:
            command = [sys.executable, "-P", "-c", STARTER, json.dumps(sys.path), str(theirs.fileno())]
            # Ctrl-C reaches all processes of a terminal. It is for the parent; a blocked signal stays so in what it starts.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    env=single_threaded(),
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(f"a worker process could not be started ({error}): try --workers 1") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.sent: deque[int] = deque()
        self.is_ready = False
        self._send(dataset)

    def fill(self, waiting: deque[int], records: Sequence[CaseRecord]) -> None:
        """Give it cases, until it has enough at hand."""
        while waiting and len(self.sent) < NUM_AHEAD:
            self.sent.append(waiting.popleft())
            self._send(records[self.sent[-1]])

    def _send(self, what: object) -> None:
        with suppress(OSError):  # it was killed, which shows when it is listened to
            self.connection.send(what)

    def stop(self, patience_s: float = 0.0) -> int:
        """End it, for it holds nothing that could be lost; how it ended, negative for a signal."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=patience_s)
        self.process.kill()
        return self.process.wait()


def measure_all(
    records: Sequence[CaseRecord], dataset: CheckedDataset, num_workers: int
) -> Iterator[tuple[int, CaseFacts]]:
    """Measure cases in parallel; their numbers and facts, as they are done.

    Raises:
        ResourceError: A worker cannot be started.
    """
    waiting = deque(range(len(records)))
    workers = [_Worker(dataset) for _ in range(min(num_workers, len(records)))]
    try:
        while waiting or any(worker.sent for worker in workers):
            for worker in workers:
                worker.fill(waiting, records)
            ready = connections.wait([worker.connection for worker in workers if worker.sent])
            for worker in [worker for worker in workers if worker.connection in ready]:
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    yield _buried(worker, waiting, records, dataset)
                    workers.remove(worker)
                    workers += [_Worker(dataset)] if waiting else []
                    continue
                if answer == READY:
                    worker.is_ready = True
                else:
                    yield worker.sent.popleft(), answer
    finally:
        for worker in workers:
            worker.stop()


def _buried(
    worker: _Worker, waiting: deque[int], records: Sequence[CaseRecord], dataset: CheckedDataset
) -> tuple[int, CaseFacts]:
    """The case that a worker was at when it ended; what it had not begun goes back into the queue."""
    status = worker.stop(EXIT_S)
    if not worker.is_ready:
        raise ResourceError(f"a worker process could not be started (it ended with {status}): try --workers 1")
    number = worker.sent.popleft()
    waiting.extendleft(reversed(worker.sent))
    record = records[number]
    how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
    message = f"the process that read this case {how}"
    problem = found("check.killed", "error", record.id, dataset.name_of(record.images[0]), message)
    return number, CaseFacts(record.id, problems=(problem,))


def work(descriptor: int) -> None:
    """A worker's life: measure what comes, until nobody is there any more."""
    with connections.Connection(descriptor) as connection, suppress(EOFError, OSError):
        dataset: CheckedDataset = connection.recv()
        connection.send(READY)
        while True:
            connection.send(_measured(connection.recv(), dataset))


def _measured(record: CaseRecord, dataset: CheckedDataset) -> CaseFacts:
    try:
        return measure_case(record, dataset)
    except Exception as error:  # whatever one case brings about, the others go on, and nothing passes as clean
        message = f"could not be checked ({type(error).__name__}: {error})"
        problem = found("check.failed", "error", record.id, dataset.name_of(record.images[0]), message)
        return CaseFacts(record.id, problems=(problem,))
