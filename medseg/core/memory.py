"""How much memory this process has, and how much it may still take."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where the limits of a container or of a cluster's job are told, as seen from inside of it."""

GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and statistics of a control group: version 2, version 1."""


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping, what the system would give back of its caches included [bytes].

    Within a container's limit. Half of the machine's memory where the system does not tell.
    """
    free = _kilobytes("/proc/meminfo", "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, used, statistics in GROUP_FILES:
        with suppress(OSError, ValueError):  # no container, or "max": no limit
            left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
            found = re.search(r"^(?:total_)?inactive_file (\d+)$", (CGROUP / statistics).read_text(), re.MULTILINE)
            free = min(free, max(0, left + (int(found[1]) if found else 0)))
    return free


def resident_bytes() -> int:
    """What this process holds now [bytes]; 0 where the system does not tell."""
    return _kilobytes("/proc/self/status", "VmRSS")


def peak_resident_bytes() -> int:
    """The most it held since it began, or since :func:`forget_peak` [bytes]; 0 where the system does not tell."""
    return _kilobytes("/proc/self/status", "VmHWM")


def forget_peak() -> None:
    """Watch for the peak from now on; without effect where the system does not allow it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _kilobytes(path: str, name: str) -> int:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(path).read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0
