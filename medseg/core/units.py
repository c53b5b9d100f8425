"""Constants of the field, each with its unit and source."""

from __future__ import annotations

MM3_PER_ML = 1000.0
"""Cubic millimetres in one millilitre."""

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 20.0
"""Plausible voxel spacing [mm]: micro-CT slices are thinner, and no clinical protocol is thicker."""

DEFAULT_TOLERANCE_MM = 2.0
"""Surface tolerance of NSD where the label schema gives none [mm]. The contract's default."""
