"""Scores of one case: ours beside MONAI's (one-hot, HD95, NSD), as ratios of CPU time.

Same work from the same two label maps, one process, one thread, alternating. The prediction is the reference with each
structure shifted, grown or shrunk by a voxel; ``--shift`` moves everything further, where surfaces are far apart. Ours
measures Dice, IoU, ASSD, volumes and lesions besides. Prints medians, ratios, and how far the numbers differ.

Run: ``.venv/bin/python benchmarks/metrics_against_monai.py`` (512 x 512 x 200, 14 structures: 6 GB, minutes), or with
``--labels FILE.nii.gz --structures 117`` for a label map of your own.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch start their threads

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.networks import one_hot
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.io.volume import read_label_map
from medseg.metrics.case import StructureScore, SurfaceKind, measure_structures

SHAPE, SPACING_MM = (512, 512, 200), (0.9, 0.9, 2.0)

Scores = dict[str, tuple[float, float]]


def synthetic(num_structures: int, seed: int = 0) -> np.ndarray:
    """Bent ellipsoids of 20 to 160 voxels across, as organs are."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value in range(1, num_structures + 1):
        radii = rng.uniform((10, 10, 8), (80, 80, 50))
        centre = rng.uniform(radii, np.array(SHAPE) - radii)
        box = tuple(slice(int(c - r), int(c + r) + 1) for c, r in zip(centre, radii, strict=True))
        i, j, k = ((np.arange(part.start, part.stop) - c) / r for part, c, r in zip(box, centre, radii, strict=True))
        i, j, k = i[:, None, None], j[None, :, None], k[None, None, :]
        labels[box][(i + 0.3 * k**2) ** 2 + j**2 + k**2 < 1] = value
    return labels


def perturbed(labels: np.ndarray, shift: int, seed: int = 0) -> np.ndarray:
    """Every structure shifted, grown or shrunk by a voxel; then all of it shifted."""
    rng = np.random.default_rng(seed)
    padded = np.pad(labels, 1)
    result = np.zeros_like(padded)
    for value, box in enumerate(ndimage.find_objects(padded), start=1):
        if box is None:
            continue
        around = tuple(slice(part.start - 1, part.stop + 1) for part in box)
        mask = padded[around] == value
        kind, axis = rng.integers(3), int(rng.integers(3))
        result[around][(np.roll(mask, 1, axis), ndimage.binary_dilation(mask), ndimage.binary_erosion(mask))[kind]] = (
            value
        )
    return np.roll(result[1:-1, 1:-1, 1:-1], shift, axis=0)


def ours(maps: tuple[np.ndarray, np.ndarray], grid: Geometry, schema: LabelSchema, surface: SurfaceKind) -> Scores:
    """HD95 and NSD by structure."""
    scores = measure_structures(*maps, grid, schema, schema.annotated_channels(None), surface=surface)
    return {name: numbers(score) for name, score in scores.items()}


def numbers(score: StructureScore) -> tuple[float, float]:
    """HD95 and NSD, NaN where there is none."""
    hd95, nsd = (np.nan if value is None else value for value in (score.hd95_mm, score.nsd))
    return hd95, nsd


def monais(maps: tuple[np.ndarray, np.ndarray], grid: Geometry, schema: LabelSchema) -> Scores:
    """HD95 and NSD by structure, as MONAI's documentation has it."""
    pair = [one_hot(torch.from_numpy(array.astype(np.int64))[None, None], schema.num_channels) for array in maps]
    spacing = list(grid.spacing_ijk_mm)
    hd95 = compute_hausdorff_distance(*pair, include_background=False, percentile=95, spacing=spacing)[0]
    tolerances = [structure.tolerance_mm for structure in schema.structures]
    nsd = compute_surface_dice(*pair, tolerances, include_background=False, spacing=spacing)[0]
    return {name: (float(h), float(n)) for name, h, n in zip(schema.names, hd95, nsd, strict=True)}


def alternating(jobs: dict[str, Callable[[], Scores]], num_runs: int) -> tuple[dict[str, float], dict[str, Scores]]:
    """Median CPU time [s] and result of each job."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    found: dict[str, Scores] = {}
    for _ in range(num_runs):
        for name, job in jobs.items():
            began = time.process_time()
            found[name] = job()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="a label map instead of the synthetic one")
    parser.add_argument("--structures", type=int, default=14, help="label values 1 to this")
    parser.add_argument("--shift", type=int, default=0, help="voxels that the prediction is moved further")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="the (ground truth|prediction) of class")
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)

    if options.labels is not None:
        label = read_label_map(options.labels)
        reference, grid = label.array, label.geometry
    else:
        reference, grid = synthetic(options.structures), Geometry.from_spacing(SHAPE, SPACING_MM)
    schema = LabelSchema(tuple(Structure(str(value), value) for value in range(1, options.structures + 1)))
    maps = (perturbed(reference, options.shift), reference)
    jobs = {
        "ours, borders": lambda: ours(maps, grid, schema, "borders"),
        "ours, elements": lambda: ours(maps, grid, schema, "elements"),
        "MONAI": lambda: monais(maps, grid, schema),
    }
    jobs["ours, borders"]()  # SciPy is imported
    medians, found = alternating(jobs, options.runs)
    print(f"{grid.shape_ijk}, {options.structures} structures, CPU time, median of {options.runs}")
    for name, seconds in medians.items():
        print(f"{name:<15}{seconds:8.3f} s   MONAI takes {medians['MONAI'] / seconds:6.1f} times as long")
    both = [(found["ours, borders"][name], found["MONAI"][name]) for name in schema.names]
    apart = np.abs([np.subtract(a, b) for a, b in both if np.isfinite([*a, *b]).all()]).max(axis=0)
    print(f"borders, largest difference from MONAI: HD95 {apart[0]:.1e} mm, NSD {apart[1]:.1e}")


if __name__ == "__main__":
    main()
