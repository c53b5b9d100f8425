"""The one reader of os.environ: what medseg takes from its surroundings, in one place."""

from __future__ import annotations

import os


def disabled_plugins() -> frozenset[str]:
    """Tasks that ``MEDSEG_DISABLE_PLUGINS`` (names, joined by commas) switches off."""
    return frozenset(name.strip() for name in os.environ.get("MEDSEG_DISABLE_PLUGINS", "").split(",") if name.strip())
