"""Logits to labels on the file's grid: ours (NumPy, plane by plane) beside torch's interpolation of the whole volume.

Logits are blurred masks of a real label map of 117 structures, on its grid of 3 mm; the file's grid has 7.9 million voxels.
With fewer classes the structures share their numbers. Same work, one process, alternating; for each number of classes the
median CPU time of each, their ratio, the memory above the input, and how many voxels differ from torch's answer and from interpolating
everything in our own arithmetic. ``--nnunet`` adds nnU-Net's export of the same logits (``requirements/peers.txt``), whose memory is
about 10 GB at 118 classes.

Run: ``OMP_NUM_THREADS=1 .venv/bin/python benchmarks/restore_against_torch.py DATA/ct_117/ct_3mm_labels.nii.gz [--classes 2 14 60 118]``
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.data.resample import grid_weights
from medseg.data.restore import GridMapping
from medseg.inference.resolve import resolve

FILE_VOXELS, SPACING_MM, NUM_RUNS = 7.9e6, 3.0, 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 14, 60, 118])
    parser.add_argument("--nnunet", action="store_true", help="beside nnU-Net's export too")
    options = parser.parse_args()
    labels = np.asarray(nibabel.load(options.labels).dataobj).astype(np.int16)
    factor = (FILE_VOXELS / labels.size) ** (1 / 3)
    file_shape = tuple(round(size * factor) for size in labels.shape)
    print(f"{labels.shape} to {file_shape}, CPU time, median of {NUM_RUNS}")
    for num_classes in options.classes:
        compare(blurred(labels, num_classes), file_shape, options.nnunet)


def blurred(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Logits of a network that is sure inside structures and unsure at their borders."""
    shared = np.where(labels > 0, (labels - 1) % (num_classes - 1) + 1, 0)
    noise = np.random.default_rng(0).standard_normal(labels.shape, dtype=np.float32) * 0.01
    logits = np.empty((num_classes, *labels.shape), np.float32)
    for channel in range(num_classes):
        logits[channel] = ndimage.gaussian_filter((shared == channel).astype(np.float32), 1.0) * 20 - 10 + noise
    return logits


def compare(logits: np.ndarray, file_shape: tuple[int, ...], with_nnunet: bool) -> None:
    """One number of classes."""
    network = Geometry.from_spacing(logits.shape[1:], (SPACING_MM,) * 3)
    spacing = [SPACING_MM * ours / theirs for ours, theirs in zip(logits.shape[1:], file_shape, strict=True)]
    file_grid = Geometry.from_spacing(file_shape, tuple(spacing))  # type: ignore[arg-type]
    mapping = GridMapping(grid_weights(network, file_grid, smooth=False), file_grid.axes)

    def ours() -> np.ndarray:
        return resolve(logits, mapping, "softmax")

    def torchs() -> np.ndarray:
        fine = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], file_shape, mode="trilinear")
        return fine[0].argmax(dim=0).to(torch.int16).numpy()

    jobs: dict[str, Callable[[], np.ndarray]] = {"ours": ours, "torch": torchs}
    if with_nnunet:
        jobs["nnU-Net"] = nnunets(logits, file_shape, spacing)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    found: dict[str, np.ndarray] = {}
    for _ in range(NUM_RUNS):
        for name, job in jobs.items():
            began = time.process_time()
            found[name] = job()
            times[name].append(time.process_time() - began)
    tracemalloc.start()
    ours()
    peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    medians = {name: statistics.median(values) for name, values in times.items()}
    text = ", ".join(f"{name} {median:.2f} s" for name, median in medians.items())
    ratios = ", ".join(f"{medians['ours'] / medians[name]:.3f} of {name}" for name in jobs if name != "ours")
    different = {name: int((found[name] != found["ours"]).sum()) for name in jobs if name != "ours"}
    plain = int((plainly(logits, mapping) != found["ours"]).sum())
    print(
        f"{len(logits):4} classes: {text}; {ratios}; {peak_mb:.0f} MB; voxels that differ {different}, from all interpolated {plain}"
    )


def plainly(logits: np.ndarray, mapping: GridMapping) -> np.ndarray:
    """Everything interpolated in our own arithmetic, a plane of the file at a time; then the largest."""
    across = mapping.weights[0]
    planes = []
    for index in range(len(across.indices)):
        lower, upper = (logits[:, number] for number in across.indices[index])
        plane = lower * across.weights[index, 0]
        plane += upper * across.weights[index, 1]
        planes.append(mapping.weights[2].apply(mapping.weights[1].apply(plane, 1), 2).argmax(axis=0))
    return np.stack(planes)


def nnunets(logits: np.ndarray, file_shape: tuple[int, ...], spacing: list[float]) -> Callable[[], np.ndarray]:
    """nnU-Net's export as its predictor calls it, with its default resampling; it works on z, y, x."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling: dict[str, Any] = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "spacing": [SPACING_MM] * 3,
                    "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
                    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                    "resampling_fn_probabilities_kwargs": resampling,
                }
            },
        }
    )
    names = {"background": 0, **{f"structure {value}": value for value in range(1, len(logits))}}
    labels = plans.get_label_manager({"labels": names})
    properties = {
        "spacing": spacing,
        "shape_before_cropping": file_shape,
        "shape_after_cropping_and_before_resampling": file_shape,
        "bbox_used_for_cropping": [[0, size] for size in file_shape],
    }

    def job() -> np.ndarray:
        result: np.ndarray = convert_predicted_logits_to_segmentation_with_correct_shape(
            torch.from_numpy(logits), plans, plans.get_configuration("3d_fullres"), labels, properties,
            num_threads_torch=1,
        )  # fmt: skip
        return result

    return job


if __name__ == "__main__":
    main()
