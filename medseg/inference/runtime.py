"""What a runtime is: something that turns windows into logits. The rest of inference knows no more of it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from medseg.core.shapes import BCIJK


@runtime_checkable
class Runtime(Protocol):
    """Runs a network. Its arrays (NumPy, torch, …) stay where they are: accumulators live beside the outputs."""

    num_outputs: int
    """Logits a voxel."""

    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Any:
        """Logits of a batch of windows, float32, in the runtime's own array type."""
        ...

    def from_numpy(self, array: np.ndarray) -> Any:
        """A NumPy array as an array of the runtime."""
        ...

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of the runtime as NumPy, without a copy where that is possible."""
        ...
