"""Files under a second name: linked where the file system can, copied where it cannot."""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import os
import shutil
import stat
from pathlib import Path
from typing import Literal

from medseg.io.atomic import explained, temporary_name, write_atomically

GZIP_LEVEL, GZIP_MAGIC = 6, b"\x1f\x8b"

Manner = Literal["linked", "copied", "kept"]
"""How a file came to its name; ``kept``: it was there already."""


def link(source: Path, target: Path) -> Manner:
    """Give a file a second name: a hard link, else a symbolic one, else a copy.

    A hard link outlives the move of either folder, but shares everything, permissions too: a file that is protected or
    not the user's own gets none. Whatever has the target's name and is not the same is replaced.

    Raises:
        WriteError: The target cannot be made.
        ResourceError: The disk is full.
    """
    real = source.resolve()
    try:
        if target.exists() and (target.samefile(real) or filecmp.cmp(target, real, shallow=False)):
            return "kept"
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, target) from error
    temporary = temporary_name(target)
    for make in (os.link, os.symlink) if _is_own(real) else (os.symlink,):
        try:
            make(real, temporary)
            temporary.replace(target)
        except OSError:  # another file system, or one without links
            with contextlib.suppress(OSError):
                temporary.unlink()
        else:
            return "linked"
    write_atomically(target, lambda path: _copy(real, path), overwrite=True)
    return "copied"


def pack(source: Path, target: Path) -> Manner | Literal["written"]:
    """Write the gzipped copy of a file, without time and name; one that is gzipped under another name is linked."""
    with source.open("rb") as plain:
        if plain.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
            return link(source, target)

    def write(path: Path) -> None:
        with (
            source.open("rb") as plain,
            path.open("wb") as file,
            gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed, 2**20)

    write_atomically(target, write, overwrite=True)
    return "written"


def _is_own(path: Path) -> bool:
    """Whether a file belongs to this user, who may change it."""
    status = path.stat()
    return bool(status.st_mode & stat.S_IWUSR) and status.st_uid == os.geteuid()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
