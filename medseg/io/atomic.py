"""Writing files so that nothing half-written ever carries a final name."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg.core.errors import MedsegError, ResourceError, WriteError


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
        WriteError: The file exists (code ``write.exists``), or cannot be written.
        ResourceError: The disk is full.
    """
    if path.exists() and not overwrite:
        raise WriteError(f"{path.name} is there already: give --overwrite, or another --out", code="write.exists")
    # The name's end stays, because writers choose their format by it.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        if check is not None:
            check(temporary)
        temporary.replace(path)
    except MedsegError:
        raise
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None


def write_text_atomically(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write text as UTF-8; see :func:`write_atomically`."""
    write_atomically(path, lambda temporary: _write_text(temporary, text), overwrite=overwrite)


def write_json_atomically(path: Path, document: Any, *, overwrite: bool = True) -> None:
    """Write JSON with an indent; numbers that are not finite become null. See :func:`write_atomically`."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n", overwrite=overwrite)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path) -> MedsegError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: {path.name} was not written; free some space and run again", code="resource.disk"
        )
    return WriteError(f"cannot write {path.name} into {path.parent}: {error.strerror or error}", code="write.failed")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
