"""The one reader of os.environ: what medseg takes from its surroundings, in one place."""

from __future__ import annotations

import os
from pathlib import Path


def disabled_plugins() -> frozenset[str]:
    """Tasks that ``MEDSEG_DISABLE_PLUGINS`` (names, joined by commas) switches off."""
    return frozenset(name.strip() for name in os.environ.get("MEDSEG_DISABLE_PLUGINS", "").split(",") if name.strip())


def with_variables(path: str) -> str:
    """A path with ``$NAME`` replaced, as nnU-Net allows in its lists of files."""
    return os.path.expandvars(path)


def single_threaded() -> dict[str, str]:
    """The environment for a process whose libraries must not start threads of their own."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1")}


def thread_limit() -> int | None:
    """``OMP_NUM_THREADS``, of several levels the first; None where it is not set to a number above 0."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def named_runtime() -> str | None:
    """``MEDSEG_RUNTIME``: what ``--runtime auto`` stands for; None where it is not set."""
    return os.environ.get("MEDSEG_RUNTIME") or None


def cache_folder() -> Path | None:
    """Where things are kept that can be made again: ``MEDSEG_CACHE``, else ``medseg`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    None where the user has no home. As the XDG rules have it, a relative ``XDG_CACHE_HOME`` does not count.
    """
    if given := os.environ.get("MEDSEG_CACHE"):
        return Path(given).absolute()
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = named if named.is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111  # raises nothing
    return folder / "medseg" if folder.is_absolute() else None
