"""medseg: from scans to contours, and from contours to trained networks."""

from medseg.core.version import VERSION as __version__

__all__ = ["__version__"]
