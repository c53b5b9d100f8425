"""The C library's memory: what a step frees, the next step takes again."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""glibc's names for the two settings, from malloc.h."""

LARGEST_KEPT_BYTES = 32 * 2**20
"""glibc takes no larger threshold: bigger blocks always come fresh from the system."""

KEPT_BYTES = 2**31 - 1
"""The most that stays, in effect all: what has been needed once is needed at every step."""


def keep_freed_memory() -> None:
    """Ask the C library not to give freed blocks of megabytes back to the system; without effect where it is not glibc.

    A step allocates the same features and logits again and again. As it stands, glibc returns each when it is freed, and the kernel has
    to map and clear their pages anew: a tenth of a step on the CPU. The peak stays what it was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    mallopt(TRIM_THRESHOLD, KEPT_BYTES)
