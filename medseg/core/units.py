"""Constants of the field, each with its unit and source."""

from __future__ import annotations

import re

from medseg.core.errors import ConfigError

MM3_PER_ML = 1000.0
"""Cubic millimetres in one millilitre."""

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 20.0
"""Plausible voxel spacing [mm]: micro-CT slices are thinner, and no clinical protocol is thicker."""

DEFAULT_TOLERANCE_MM = 2.0
"""Surface tolerance of NSD where the label schema gives none [mm]. The contract's default."""

SECONDS_PER = {"s": 1, "m": 60, "h": 3600}
"""Of the units that durations are written in [s]."""


def duration_s(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``2h`` [s].

    Raises:
        ConfigError: The text is no positive duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"expected a duration such as 90s, 20m or 2h, found '{text}'")
    return float(match[1]) * SECONDS_PER[match[2]]
