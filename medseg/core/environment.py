"""The one reader of os.environ: what medseg takes from its surroundings, in one place."""

from __future__ import annotations

import os


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
