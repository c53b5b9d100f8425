"""What a runtime is: something that turns windows into logits. The rest of inference knows no more of it."""

from __future__ import annotations

from collections.abc import Sequence
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


class OnNumpy:
    """What runtimes share whose arrays are NumPy's: nothing is copied on the way in or out."""

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array


class EnsembleRuntime:
    """Several networks as one: the mean of their logits, window by window.

    Logits are averaged rather than decisions, because resolving interpolates logits; and window by window, because a
    whole volume of them for each network would not fit into memory.

    Args:
        members: Of one kind of runtime, with the same outputs.
    """

    def __init__(self, members: Sequence[Runtime]) -> None:
        self.first, *self.others = members
        self.num_outputs = self.first.num_outputs

    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Any:
        """Mean logits of a batch of windows, summed in the order of the members."""
        total = self.first(windows_BCIJK)
        for member in self.others:
            total += member(windows_BCIJK)
        total /= 1 + len(self.others)
        return total

    def from_numpy(self, array: np.ndarray) -> Any:
        """A NumPy array as an array of the runtime."""
        return self.first.from_numpy(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of the runtime as NumPy."""
        return self.first.to_numpy(array)


def averaged(runtimes: Sequence[Runtime]) -> Runtime:
    """Runtimes as one whose logits are the mean of theirs; one alone stays itself."""
    return runtimes[0] if len(runtimes) == 1 else EnsembleRuntime(runtimes)
