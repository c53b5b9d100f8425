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

SOFT_TISSUE_HU = (-160.0, 240.0)
"""The usual window to look at organs in CT [HU]: level 40, width 400."""

SECONDS_PER = {"s": 1, "m": 60, "h": 3600}
"""Of the units that durations are written in [s]."""


BYTES_PER = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""Of the units that sizes are written in [bytes]; binary, as the kernel and the control groups count."""


def duration_s(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``2h`` [s].

    Raises:
        ConfigError: The text is no positive duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"expected a duration such as 90s, 20m or 2h, found '{text}'")
    return float(match[1]) * SECONDS_PER[match[2]]


def duration_text(seconds: float) -> str:
    """A duration for people: ``90 s``, ``20 min``, ``1 h 40 min``."""
    if seconds < 2 * SECONDS_PER["m"]:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / SECONDS_PER["m"]), 60)
    return " ".join(f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count)


def size_bytes(text: str) -> int:
    """Bytes of ``512M``, ``4G``, ``1.5GB``, ``2GiB``.

    Raises:
        ConfigError: The text is no positive size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"expected a size such as 512M or 4G, found '{text}'")
    return int(float(match[1]) * BYTES_PER[match[2]])


def size_text(num_bytes: int | float) -> str:
    """A size for people: ``812 MB``, ``7.5 GB``, in binary units as :func:`size_bytes` reads them."""
    if num_bytes < BYTES_PER["G"]:
        return f"{num_bytes / BYTES_PER['M']:.0f} MB"
    return f"{num_bytes / BYTES_PER['G']:.1f} GB"
