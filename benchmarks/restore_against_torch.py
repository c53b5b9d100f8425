"""Logits to labels on the file's grid: ours (NumPy, plane by plane) beside torch's interpolation of the whole volume.

Same work, one process, alternating; prints the median CPU time of each, their ratio, the extra memory, and how many
voxels differ. Run: ``.venv/bin/python benchmarks/restore_against_torch.py``
"""

from __future__ import annotations

import statistics
import time
import tracemalloc

import numpy as np
import torch
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.data.resample import grid_weights
from medseg.data.restore import GridMapping
from medseg.inference.resolve import resolve

SHAPE, FACTOR, NUM_CHANNELS, NUM_RUNS = (96, 64, 96), 2, 8, 5


def measured(job: object) -> tuple[np.ndarray, float]:
    """A job's result and its CPU time [s]."""
    began = time.process_time()
    result = job()  # type: ignore[operator]
    return result, time.process_time() - began


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((NUM_CHANNELS, *SHAPE)).astype(np.float32)
    logits = np.stack([ndimage.gaussian_filter(channel, 3) * 30 for channel in noise])
    file_shape = tuple(size * FACTOR for size in SHAPE)
    network = Geometry.from_spacing(SHAPE, (3.0, 3.0, 3.0))
    file_grid = Geometry.from_spacing(file_shape, (1.5, 1.5, 1.5))  # type: ignore[arg-type]
    mapping = GridMapping(grid_weights(network, file_grid, smooth=False), file_grid.axes)

    def ours() -> np.ndarray:
        return resolve(logits, mapping, "softmax")

    def torchs() -> np.ndarray:
        fine = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], file_shape, mode="trilinear")
        return fine[0].argmax(dim=0).to(torch.int16).numpy()

    times: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(NUM_RUNS):
        for name, job in (("ours", ours), ("torch", torchs)):
            result, seconds = measured(job)
            times[name].append(seconds)
            if name == "ours":
                found = result
    tracemalloc.start()
    ours()
    peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{NUM_CHANNELS} channels, {SHAPE} to {file_shape}, CPU time, median of {NUM_RUNS}")
    print(
        f"ours {medians['ours']:.2f} s, torch {medians['torch']:.2f} s, ratio {medians['ours'] / medians['torch']:.2f}"
    )
    whole_mb = 4 * NUM_CHANNELS * np.prod(file_shape) / 2**20
    print(f"ours peaks {peak_mb:.0f} MB above its input; torch holds all logits on the file's grid: {whole_mb:.0f} MB")
    print(f"voxels that differ: {int((found != result).sum())} of {found.size}")


if __name__ == "__main__":
    main()
