"""One writer at a time: a folder that results go into belongs to one process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.core.errors import ConfigError
from medseg.io.atomic import TEMPORARY, explained


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, while results are written into it; unfinished files of a killed process go away.

    The lock is the operating system's (flock on the folder itself): no file of it is left, and it ends with the process,
    however that ends. Where a file system knows no such locks, everything goes on without.

    Raises:
        ConfigError: Another process holds the folder (code ``write.busy``).
        WriteError: It cannot be made or read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise explained(error, folder) from error
    try:
        _lock(descriptor, folder)
        _remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise ConfigError(
                f"another medseg is writing into {folder}: wait for it, or give another --out", code="write.busy"
            ) from None


def _remove_leftovers(folder: Path) -> None:
    """Temporary files here and one folder further down, where checkpoints and figures are."""
    for pattern in (f"{TEMPORARY}*", f"*/{TEMPORARY}*"):
        for leftover in folder.glob(pattern):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink()
