"""Test-time augmentation: a window is also looked at in the mirror, and the logits are averaged.

Mirrored is only along axes along which the network has seen mirrored images in training: along another it would be asked
about patients that it does not know. Where the patient's sides change places, so do the logits of left and right structures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.errors import ConfigError
from medseg.core.shapes import BCIJK
from medseg.inference.description import ModelDescription
from medseg.inference.runtime import Runtime

LEFT_RIGHT = 0
"""The axis of the network's grid along which the sides change places: R of R, A, S."""


@dataclass(frozen=True)
class Mirroring:
    """How a network's windows may be mirrored.

    Attributes:
        axes: Of the window, ascending; at least one.
        swapped: ``swapped[l]`` is the logit of the structure that is ``l``'s counterpart, where the patient's sides have changed
            places; None: structures stay what they are.
    """

    axes: tuple[int, ...]
    swapped: tuple[int, ...] | None

    @classmethod
    def of(cls, description: ModelDescription) -> Mirroring:
        """As a network was trained.

        Bundles that don't say it, of earlier versions, were trained mirrored left to right unless somebody switched that off;
        they are taken so where a structure has a side. nnU-Net mirrors images without exchanging structures.

        Raises:
            ConfigError: It has not seen mirrored images.
        """
        labels, axes = description.labels, description.mirror_axes
        if axes is None:
            axes = (LEFT_RIGHT,) if any(one.side or one.mirror for one in labels.structures) else ()
        if not axes:
            raise ConfigError(
                f"the model {description.name} has not seen mirrored images in training, and would be misled by them: "
                "predict without --tta"
            )
        if description.plan.preparation is not None:
            return cls(axes, None)
        channels = labels.mirrored_channels
        first = labels.num_channels - description.num_outputs  # sigmoid networks have no logit of background
        return cls(axes, tuple(channel - first for channel in channels[first:]))

    def sets(self) -> Iterator[tuple[int, ...]]:
        """All sets of axes to mirror along together, without that of none; in nnU-Net's order."""
        for size in range(1, len(self.axes) + 1):
            yield from combinations(self.axes, size)


class MirroredRuntime:
    """A runtime whose logits are the mean over a window and its mirror images.

    Args:
        runtime: Runs the network, once for each.
        mirroring: Along which axes, and what changes places.
    """

    def __init__(self, runtime: Runtime, mirroring: Mirroring) -> None:
        self.runtime, self.mirroring = runtime, mirroring
        self.num_outputs = runtime.num_outputs

    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Any:
        """Mean logits of a batch of windows, each turned back before it is added."""
        total = self.runtime(windows_BCIJK)
        num_passes = 1
        for axes in self.mirroring.sets():
            mirrored = np.flip(windows_BCIJK, tuple(2 + axis for axis in axes))
            total += self._turned_back(self.runtime(np.ascontiguousarray(mirrored)), axes)
            num_passes += 1
        total /= num_passes
        return total

    def _turned_back(self, logits_BLIJK: Any, axes: tuple[int, ...]) -> Any:
        """By indices, which all kinds of arrays take alike."""
        for axis in axes:
            backwards = list(range(logits_BLIJK.shape[2 + axis] - 1, -1, -1))
            logits_BLIJK = logits_BLIJK[(slice(None),) * (2 + axis) + (backwards,)]
        if self.mirroring.swapped is not None and LEFT_RIGHT in axes:
            logits_BLIJK = logits_BLIJK[:, list(self.mirroring.swapped)]
        return logits_BLIJK

    def from_numpy(self, array: np.ndarray) -> Any:
        """A NumPy array as an array of the runtime."""
        return self.runtime.from_numpy(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of the runtime as NumPy."""
        return self.runtime.to_numpy(array)


def mirrorings(descriptions: Sequence[ModelDescription]) -> list[Mirroring]:
    """Of each network of an ensemble.

    Raises:
        ConfigError: One has not seen mirrored images.
    """
    return [Mirroring.of(description) for description in descriptions]


def with_mirrors(runtimes: Sequence[Runtime], descriptions: Sequence[ModelDescription]) -> list[Runtime]:
    """Each network with the mirror images that it knows.

    Raises:
        ConfigError: One has not seen mirrored images.
    """
    pairs = zip(runtimes, mirrorings(descriptions), strict=True)
    return [MirroredRuntime(runtime, mirroring) for runtime, mirroring in pairs]
