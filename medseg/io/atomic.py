"""Writing files so that nothing half-written ever carries a final name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg.core.errors import MedsegError, ResourceError, WriteError

LONGEST_SUFFIX = 12
"""Longer parts of a name after a dot are no suffix: ``.safetensors`` is the longest."""

TEMPORARY = ".medseg-tmp-"
"""How the names of unfinished files and folders begin."""


def temporary_name(path: Path) -> Path:
    """A name beside a final one for what is not finished yet.

    It is short, whatever the final name's length, and ends like it, because writers choose their format by that.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    ending = "".join(suffix for suffix in path.suffixes[-2:] if len(suffix) <= LONGEST_SUFFIX)
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{digest}{ending}")


def write_atomically(
    path: Path,
    write: Callable[[Path], None],
    *,
    check: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a file beside its final name, flush it to the disk, look at it again, and only then rename it.

    Args:
        path: The final name; its folder is made.
        write: Writes the file that it is given.
        check: Reads it back and raises where it is not as it should be.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        WriteError: The file exists (code ``write.exists``), or cannot be written (``write.failed``).
        ResourceError: The disk is full.
    """
    temporary = temporary_name(path)
    try:
        if not overwrite and path.exists():
            raise WriteError(f"{path.name} is there already: give --overwrite, or another --out", code="write.exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        if check is not None:
            check(temporary)
        temporary.replace(path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes_atomically(
    path: Path, content: bytes, *, check: Callable[[Path], None] | None = None, overwrite: bool = False
) -> None:
    """Write bytes; see :func:`write_atomically`."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write, check=check, overwrite=overwrite)


def write_text_atomically(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write text as UTF-8; see :func:`write_atomically`."""
    # A file name that is no UTF-8 reaches us as lone surrogates: they are written as \udcXX, which JSON reads back.
    write_bytes_atomically(path, text.encode("utf-8", errors="backslashreplace"), overwrite=overwrite)


def write_json_atomically(path: Path, document: Any, *, overwrite: bool = True) -> None:
    """Write JSON with an indent; numbers that are not finite become null. See :func:`write_atomically`."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n", overwrite=overwrite)


def explained(error: OSError, path: Path) -> MedsegError:
    """What the operating system's refusal to write a file or folder means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: {path.name} was not written; free some space and run again", code="resource.disk"
        )
    return WriteError(
        f"cannot write {path.name} into {path.parent}: {error.strerror or error}; give another --out",
        code="write.failed",
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
