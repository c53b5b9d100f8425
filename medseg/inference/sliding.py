"""The sliding window: a prepared image becomes stitched logits on the network's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.errors import InferenceError
from medseg.core.geometry import Shape3
from medseg.core.patch import cut_out
from medseg.core.progress import Listener, Progress, silent
from medseg.core.shapes import CIJK
from medseg.inference.runtime import Runtime
from medseg.inference.stitching import Stitcher
from medseg.inference.tiling import WindowRule, window_locations


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


def predict_logits(
    image_CIJK: Float[np.ndarray, CIJK], runtime: Runtime, sliding: SlidingWindow, listener: Listener = silent
) -> Any:
    """Logits of a whole prepared image, as an array of the runtime.

    Where the image is smaller than the window it is padded with each channel's smallest value, as in training.

    Raises:
        InferenceError: The network cannot run (``inference.failed``), or a logit is not finite (``inference.nonfinite``).
    """
    shape = (image_CIJK.shape[1], image_CIJK.shape[2], image_CIJK.shape[3])
    places = window_locations(shape, sliding.window_ijk, sliding.overlap, sliding.rule)
    stitcher = Stitcher(runtime, shape, sliding.window_ijk, sliding.rule)
    for start in range(0, len(places), sliding.tile_batch):
        batch = places[start : start + sliding.tile_batch]
        try:
            logits_BCIJK = runtime(np.stack([cut_out(image_CIJK, place) for place in batch]))
        except (RuntimeError, MemoryError) as error:  # out of memory among them: one case fails, the others go on
            raise InferenceError(
                f"the network could not run on windows of {sliding.window_ijk} voxels ({error}): "
                "free some memory, or give a smaller --tile-batch",
                code="inference.failed",
            ) from error
        for place, logits_CIJK in zip(batch, logits_BCIJK, strict=True):
            stitcher.add(place, logits_CIJK)
        listener(Progress("predicting", start + len(batch), len(places)))
    logits_CIJK = stitcher.mean()
    # A NaN or infinity anywhere makes the sum non-finite; one pass without a mask of the array's size.
    if not np.isfinite(float(logits_CIJK.sum())):
        raise InferenceError(
            "the network gave logits that are not finite: its weights are damaged, or the image is far outside "
            "what it was trained on",
            code="inference.nonfinite",
        )
    return logits_CIJK
