"""The sliding window: a prepared image becomes stitched logits on the network's grid, plane by plane."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.errors import InferenceError
from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation, cut_out
from medseg.core.progress import Listener, Progress, silent
from medseg.core.shapes import CIJK
from medseg.inference.runtime import Runtime
from medseg.inference.stitching import Stitcher
from medseg.inference.tiling import WindowGrid, WindowRule


@dataclass(frozen=True)
class SlidingWindow:
    """How a volume is walked.

    Attributes:
        window_ijk: Of the window.
        overlap: Smallest part of a window that its neighbour covers too.
        tile_batch: Windows given to the network at once.
        rule: Who places and weighs the windows.
    """

    window_ijk: Shape3
    overlap: float = 0.5
    tile_batch: int = 1
    rule: WindowRule = "medseg"

    def over(self, shape_ijk: Shape3) -> WindowGrid:
        """The windows over a volume."""
        return WindowGrid.over(shape_ijk, self.window_ijk, self.overlap, self.rule)


def predict_planes(
    image_CIJK: Float[np.ndarray, CIJK],
    runtime: Runtime,
    grid: WindowGrid,
    tile_batch: int = 1,
    skipped: Collection[PatchLocation] = (),
    outside: Sequence[float] | None = None,
    listener: Listener = silent,
) -> Iterator[tuple[int, Float[np.ndarray, "logits rows columns"]]]:
    """Stitched logits of each plane across the walked axis, with its number, as soon as no further window reaches it.

    Only the logits of unfinished planes are held.

    Args:
        image_CIJK: Prepared.
        runtime: Runs the network.
        grid: Of the windows, over the image.
        tile_batch: Windows given to the network at once.
        skipped: Windows that need no network; where only these lie, all logits are 0.
        outside: What an image smaller than the window is padded with, for each channel; None: its smallest value, as in training.
        listener: Hears of the progress.

    Raises:
        InferenceError: The network cannot run (``inference.failed``), or a logit is not finite (``inference.nonfinite``).
    """
    outside = lowest_values(image_CIJK) if outside is None else outside
    stitcher = Stitcher(runtime, grid)
    num_done = 0
    for until, layer in grid.layers():
        places = [place for place in layer if place not in skipped]
        num_done += len(layer) - len(places)
        for start in range(0, len(places), tile_batch):
            batch = places[start : start + tile_batch]
            windows_BCIJK = np.stack([cut_out(image_CIJK, place, outside) for place in batch])
            for place, logits_CIJK in zip(batch, _run(runtime, windows_BCIJK), strict=True):
                stitcher.add(place, logits_CIJK)
            num_done += len(batch)
            listener(Progress("predicting", num_done, grid.num_windows))
        if not places:
            listener(Progress("predicting", num_done, grid.num_windows))
        for number, plane in stitcher.finish(until):
            # A NaN or infinity anywhere makes the sum non-finite; one pass without a mask of the array's size.
            with np.errstate(invalid="ignore"):  # infinities of both signs
                total = float(plane.sum(dtype=np.float64))
            if not np.isfinite(total):
                raise InferenceError(
                    "the network gave logits that are not finite: its weights are damaged, or the image is far outside "
                    "what it was trained on",
                    code="inference.nonfinite",
                )
            yield number, plane


def lowest_values(image_CIJK: Float[np.ndarray, CIJK]) -> list[float]:
    """The smallest value of each channel: air."""
    lowest: list[float] = image_CIJK.min(axis=(1, 2, 3)).astype(np.float64).tolist()
    return lowest


def predict_logits(
    image_CIJK: Float[np.ndarray, CIJK], runtime: Runtime, sliding: SlidingWindow, listener: Listener = silent
) -> Float[np.ndarray, "logits size_i size_j size_k"]:
    """Logits of a whole prepared image, for where all are needed at once; see :func:`predict_planes`."""
    shape = (image_CIJK.shape[1], image_CIJK.shape[2], image_CIJK.shape[3])
    grid = sliding.over(shape)
    logits_CIJK = np.empty((runtime.num_outputs, *shape), np.float32)
    planes = np.moveaxis(logits_CIJK, 1 + grid.walk_axis, 0)
    for number, plane in predict_planes(image_CIJK, runtime, grid, sliding.tile_batch, listener=listener):
        planes[number] = plane
    return logits_CIJK


def _run(runtime: Runtime, windows_BCIJK: np.ndarray) -> Any:
    try:
        return runtime(windows_BCIJK)
    except (RuntimeError, MemoryError) as error:  # out of memory among them: one case fails, the others go on
        raise InferenceError(
            f"the network could not run on windows of {windows_BCIJK.shape[2:]} voxels ({error}): "
            "free some memory, or give a smaller --tile-batch",
            code="inference.failed",
        ) from error
