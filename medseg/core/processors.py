"""How many threads this process should compute with, and which processor computes."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

from medseg.core.environment import thread_limit

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
"""Logical processors that share a core with this one; they share its arithmetic units too."""

PROCESSORS = Path("/proc/cpuinfo")

CGROUP = Path("/sys/fs/cgroup")
"""Where the limits of a container or of a cluster's job are told, as seen from inside of it."""

DECISIVE = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
"""Lines of ``/proc/cpuinfo`` that decide how fast a program is; the clock, which changes by itself, is none of them."""


def compute_threads() -> int:
    """Threads that arithmetic should use: one for each core that this process may run on, at least 1.

    Within a container's limit, and within ``OMP_NUM_THREADS`` where the user has set it.
    """
    limits = [_num_cores(), _quota(), thread_limit()]
    return max(1, min(limit for limit in limits if limit is not None))


def processor_identity() -> str:
    """Alike for machines on which programs are equally fast: the processor, what it can do, and the cores of this process."""
    text = platform.machine() + platform.processor()
    with suppress(OSError):
        first = PROCESSORS.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        text = "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in DECISIVE) or text
    return hashlib.sha256(f"{text} {_num_cores()} {_quota()}".encode()).hexdigest()


def _num_cores() -> int:
    """Cores, not logical processors, where the system tells which of these belong together."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    processors = os.sched_getaffinity(0)
    try:
        return len({Path(SIBLINGS.format(number)).read_text() for number in processors})
    except OSError:
        return len(processors)


def _quota() -> int | None:
    """Processors' worth of time that a control group allows, rounded up; None where it sets no limit."""
    with suppress(OSError, ValueError):  # version 2; "max": no limit
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    with suppress(OSError, ValueError):  # version 1; -1: no limit
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return -(-int(quota) // int(period)) if int(quota) > 0 else None
    return None
