"""Constants of the field, each with its unit and source."""

from __future__ import annotations

AIR_HU = -1000.0
"""Hounsfield value of air, by definition of the scale [HU]."""

LOWEST_CT_HU = -1024.0
"""Lowest value of a 12-bit CT; what lies below is padding outside the field of view [HU]. DICOM PS3.3 C.11.1."""

MM3_PER_ML = 1000.0
"""Cubic millimetres in one millilitre."""

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 20.0
"""Plausible voxel spacing [mm]: micro-CT slices are thinner, and no clinical protocol is thicker."""

DEFAULT_TOLERANCE_MM = 2.0
"""Surface tolerance of NSD where the label schema gives none [mm]. The contract's default."""
