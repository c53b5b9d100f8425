"""The cache: a folder of prepared cases that any number of runs share. No torch.

An entry's name is a hash of everything that it depends on (:mod:`medseg.data.cache_key`), so it is never stale; its bytes
carry checksums (:mod:`medseg.data.container`), so a damaged one is made again. Whoever writes, evicts or says what he
uses holds the folder's lock; whoever reads holds nothing. A run lists the entries that it uses in a file that it keeps
locked while it lives: these are never evicted, and when it ends, however that is, the system lets go of the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from medseg.core.case import CaseRecord, CompactCase
from medseg.core.environment import cache_folder
from medseg.core.errors import MedsegError, ResourceError, WriteError
from medseg.data.cache_key import Preparation, case_key, file_marks
from medseg.data.config import CacheConfig
from medseg.data.container import StoredCase, open_container, packed_container
from medseg.data.prepare import prepare_compact
from medseg.io.atomic import TEMPORARY, write_atomically
from medseg.io.case import read_case

LOCK, CASES, RUNS = "lock", "cases", "runs"
"""What lies in the folder: the lock, the entries, and a file of each run."""

SUFFIX = ".case"

TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by medseg. It can be removed: what is needed is made again.\n"
)
"""Tells backups to leave the folder out. Source: bford.info/cachedir."""

BYTES_PER_GB = 10**9

LOCK_WAIT_S, LOCK_POLL_S = 30.0, 0.02
"""How long to wait for others, who write one case at a time, and how often to look [s]."""

FORGOTTEN_S = 7 * 24 * 3600.0
"""Age of a run's file after which the run is taken to have ended, where the file system knows no locks [s]."""


@dataclass(frozen=True, eq=False)
class KeptCase:
    """A prepared case, and what there is to tell.

    Attributes:
        case: In the cache, or in memory where it could not be stored.
        notes: What was met when it was read.
        problem: Why it could not be stored.
    """

    case: StoredCase | CompactCase
    notes: tuple[str, ...] = ()
    problem: str = ""


class CaseCache:
    """A folder of prepared cases, and this run's hold on what it uses, which ends with the object.

    Args:
        folder: Made where it is missing; None: nothing is kept.
        max_bytes: Largest size of all entries; 0: nothing is kept.

    Attributes:
        problem: Why nothing can be stored, or not any more.
        told: Problems that somebody was told of.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder if max_bytes else None, max_bytes
        self.problem = "there is no home folder: give cache.folder" if folder is None and max_bytes else ""
        self.told: set[str] = set()
        self._uses: TextIOWrapper | None = None
        if self.folder is not None:
            try:
                self._uses = self._registered(self.folder)
            except (OSError, MedsegError) as error:
                self.problem = self._told(error)

    @classmethod
    def open(cls, config: CacheConfig) -> CaseCache:
        """The cache of a config."""
        return cls(config.folder.expanduser() if config.folder else cache_folder(), round(config.max_gb * BYTES_PER_GB))

    def prepared(self, record: CaseRecord, preparation: Preparation) -> KeptCase:
        """A case as it was kept, or else read and prepared now. Threads may call it side by side.

        Raises:
            CaseError: It cannot be read or prepared.
        """
        dataset, key = preparation.dataset, ""
        marks = file_marks(record)
        if self.folder is not None:
            with contextlib.suppress(OSError):  # read_case says what is wrong
                key = case_key(record, preparation)
        if key and (stored := self.find(key, record.id, dataset.labels.annotated_channels(record.annotated))):
            return KeptCase(stored)
        case = read_case(record, dataset)
        notes = tuple(note.message for note in case.image.notes + (case.label.notes if case.label else ()))
        compact = prepare_compact(case, dataset.labels, preparation.spacing_ijk_mm, preparation.normalisation)
        if not key or self.problem:
            return KeptCase(compact, notes, self.problem)
        if file_marks(record) != marks:
            return KeptCase(compact, notes, f"the files of {record.id} were written to while they were read")
        try:
            return KeptCase(self.store(key, compact), notes)
        except (OSError, MedsegError) as error:
            self.problem = self._told(error)  # and the next ones are not tried
            return KeptCase(compact, notes, self.problem)

    def find(self, key: str, case: str, annotated: Bool[np.ndarray, " classes"]) -> StoredCase | None:
        """An entry, which from now on counts as used; None where there is none that is whole."""
        if self._uses is not None and not self.problem:
            with contextlib.suppress(OSError, MedsegError), self._locked():
                self._uses.write(key + "\n")
                self._uses.flush()
        path = self._path(key)
        stored = open_container(path, case, annotated)
        if stored is not None:
            with contextlib.suppress(OSError):  # of somebody else, who lets us read
                os.utime(path)
        return stored

    def store(self, key: str, case: CompactCase) -> StoredCase:
        """Make an entry; of two processes that make the same, one result remains.

        Raises:
            WriteError: It cannot be written.
            ResourceError: The disk is full (``resource.disk``), or the cache is, with what runs at work use
                (``resource.cache``).
            OSError: The folder cannot be looked into.
        """
        parts = packed_container(case)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.writelines(parts)

        def check(temporary: Path) -> None:
            _opened(temporary, case)

        path = self._path(key)
        with self._locked():
            # What another process has made meanwhile stays: somebody may be reading it by its own offsets already.
            if (other := open_container(path, case.id, case.annotated)) is not None:
                return other
            self._make_room(sum(map(len, parts)))
            write_atomically(path, write, check=check, overwrite=True)
            return _opened(path, case)

    def _path(self, key: str) -> Path:
        assert self.folder is not None  # callers see to it
        return self.folder / CASES / (key + SUFFIX)

    def _registered(self, folder: Path) -> TextIOWrapper:
        """The file of this run, locked. What is unfinished in the folder was left by somebody who was killed."""
        for part in (folder / CASES, folder / RUNS):
            part.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), (folder / "CACHEDIR.TAG").open("xb") as tag:
            tag.write(TAG)
        with self._locked():
            _used(folder / RUNS)
            for leftover in (folder / CASES).glob(f"{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)
            uses = (folder / RUNS / f"{os.getpid()}-{uuid.uuid4().hex}").open("x")
            _lock(uses.fileno())
            return uses

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            WriteError: Somebody else does not let go of it.
            OSError: There can be no lock.
        """
        assert self.folder is not None  # callers see to it
        with (self.folder / LOCK).open("a") as lock:
            until = time.monotonic() + LOCK_WAIT_S
            while _lock(lock.fileno()) is False:
                if time.monotonic() > until:
                    self.problem = f"another process, perhaps a stopped one, does not let go of {self.folder / LOCK}"
                    raise WriteError(self.problem, code="write.busy")
                time.sleep(LOCK_POLL_S)
            yield

    def _make_room(self, num_bytes: int) -> None:
        """Remove the entries that nobody has used for longest, until another one has room."""
        assert self.folder is not None  # callers see to it
        entries = []
        for entry in (self.folder / CASES).glob(f"*{SUFFIX}"):
            status = entry.stat()
            entries.append((status.st_mtime_ns, status.st_size, entry))
        total = num_bytes + sum(size for _, size, _ in entries)
        used = _used(self.folder / RUNS) if total > self.max_bytes else set()
        for _, size, entry in sorted(entries):
            if total <= self.max_bytes:
                return
            if entry.stem not in used:
                entry.unlink(missing_ok=True)
                total -= size
        if total > self.max_bytes:
            raise ResourceError(
                f"the cases in use need more than cache.max_gb, {self.max_bytes / BYTES_PER_GB:g} GB: raise it",
                code="resource.cache",
            )

    def _told(self, error: OSError | MedsegError) -> str:
        """For people. The reason of the system itself, where there is one: the advice of others is about --out."""
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            return str(error)
        return f"cannot write into {self.folder} ({reason.strerror or reason}): give another cache.folder"


def _opened(path: Path, case: CompactCase) -> StoredCase:
    stored = open_container(path, case.id, case.annotated)
    if stored is None:
        raise WriteError("a case does not read back as it was written: check the disk", code="write.check")
    return stored


def _used(runs: Path) -> set[str]:
    """Entries that runs at work use; files of runs that have ended go away."""
    used: set[str] = set()
    for run in runs.iterdir():
        with run.open() as file:
            is_ours = _lock(file.fileno())
            if is_ours or (is_ours is None and time.time() - run.stat().st_mtime > FORGOTTEN_S):
                run.unlink()
            else:
                used.update(file.read().split())
    return used


def _lock(descriptor: int) -> bool | None:
    """Whether an open file is locked by us now, and not by another; None where the system knows no such locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True
