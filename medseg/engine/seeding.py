"""Randomness that follows from the seed and the step, so that a resumed run draws what the uninterrupted one would."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step (dropout and the like); step -1 is the making of the weights."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step + 1]).generate_state(1, np.uint64)[0] >> 1))


def use_deterministic_algorithms() -> None:
    """Make torch refuse whatever does not repeat to the bit."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def use_threads(num_threads: int | None) -> None:
    """Threads of torch on the CPU; None leaves torch's choice: one for each core, or ``OMP_NUM_THREADS``."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
