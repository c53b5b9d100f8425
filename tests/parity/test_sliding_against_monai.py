"""The sliding window against MONAI's, an independent implementation of the same windows, weights and mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from medseg.inference.runtimes.torch import TorchRuntime
from medseg.inference.sliding import SlidingWindow, predict_logits


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 40, 23), (50, 16, 33), (9, 30, 70), (12, 11, 10)])
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_logits_are_those_of_monai(shape: tuple[int, int, int], overlap: float) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    window = (16, 14, 16)
    runtime = TorchRuntime(network, 3, torch.device("cpu"))
    ours = predict_logits(image, runtime, SlidingWindow(window, overlap, tile_batch=2))
    with torch.no_grad():
        theirs = sliding_window_inference(
            torch.from_numpy(image)[None], window, 2, network, overlap, mode="gaussian", cval=float(image.min())
        )
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=2e-5)
