"""The version of medseg: written into everything that it makes."""

from __future__ import annotations

VERSION = "0.1.0"
