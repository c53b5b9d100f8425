"""What a command costs: wall clock, and memory of all its processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

LOOKS_A_SECOND = 20


def spent(command: Sequence[object]) -> tuple[float, float]:
    """Wall clock [s] and the largest resident set of a command and its children [bytes]."""
    began, peak = time.perf_counter(), 0.0
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(1 / LOOKS_A_SECOND)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return time.perf_counter() - began, peak


def resident_bytes(root: int) -> float:
    """Resident memory of a process and all that it started [bytes]."""
    parents, pages = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            except (OSError, IndexError):  # it ended meanwhile
                continue
    tree, more = {root}, {root}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        tree |= more
    return float(sum(pages.get(process, 0) for process in tree) * os.sysconf("SC_PAGE_SIZE"))
