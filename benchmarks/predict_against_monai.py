"""The same weights predicting here and in MONAI: same labels, wall clock, memory.

Three comparisons. First both are fed the same prepared volume: medseg's stitched logits against MONAI's
``sliding_window_inference`` with Gaussian weights, the part of voxels that decide alike. Then end to end, each its own
way from file to file: MONAI loads, orients, resamples (``Spacingd``), scales, slides, resamples the logits back
(``Invertd``), decides and saves (scans smaller than the window are padded with air in both); once as a fresh process for one scan, and once loaded, for all scans after the first.
Dice between both for each structure of more than 1000 voxels. Exits with 1 where a bound is not kept.

Both walk all windows of the whole grid in the first comparison; end to end medseg looks at the body only, its default, and runs
the network with the runtime that is fastest here, its default too.

Run on quiet cores: ``.venv/bin/python benchmarks/predict_against_monai.py SCAN... --out DIR [--bundle head-neck] [--rounds 3]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from process_cost import spent

LEAST_EQUAL, LEAST_DICE, COUNTED_VOXELS = 0.9999, 0.98, 1000
MOST_WALL, MOST_MEMORY = 0.5, 0.4
MIB = 2**20


def main() -> int:
    """Measure, or be one side as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="head-neck")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("medseg", "monai"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        seconds = {"medseg": loaded_medseg, "monai": loaded_monai}[options.only](options)
        (options.out / f"{options.only}.json").write_text(json.dumps(seconds))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    equal = [part_equal(scan, options) for scan in options.scans]
    print(f"same prepared volume: at least {min(equal):.6f} of the voxels decide alike")
    fresh, loaded, memory = measured(options)
    dice = [score for scan in options.scans for score in agreement(options.out, scan)]
    print(f"end to end: Dice between both at least {min(dice):.4f} for structures of more than {COUNTED_VOXELS} voxels")
    kept = (
        min(equal) >= LEAST_EQUAL
        and min(dice) >= LEAST_DICE
        and max(fresh, loaded) <= MOST_WALL
        and memory <= MOST_MEMORY
    )
    return 0 if kept else 1


def part_equal(scan: Path, options: argparse.Namespace) -> float:
    """Of the voxels of the network's grid, those on which both decide alike when fed the same."""
    import torch
    from monai.inferers import sliding_window_inference

    from medseg.core.case import Case
    from medseg.data.preparation import prepare_as_planned
    from medseg.inference.predictor import Predictor
    from medseg.inference.sliding import predict_logits
    from medseg.io.volume import read_volume

    predictor = Predictor.load(options.bundle, "cpu", threads=options.threads)
    description = predictor.description
    case = Case("scan", read_volume(scan), None, description.labels.annotated_channels(None))
    image = prepare_as_planned(case, description.labels, description.plan).image
    ours = predict_logits(image, predictor.runtime, predictor.sliding)
    with torch.no_grad():
        theirs = sliding_window_inference(
            torch.from_numpy(image)[None],
            description.plan.patch_ijk,
            1,
            network_of(options),
            0.5,
            mode="gaussian",
            cval=float(image.min()),
        )
    return float((ours.argmax(axis=0) == theirs[0].argmax(dim=0).numpy()).mean())


def measured(options: argparse.Namespace) -> tuple[float, float, float]:
    """Ratios medseg / MONAI: wall clock of a fresh process, wall clock of a scan once loaded, memory."""
    threads = str(options.threads)
    os.environ["OMP_NUM_THREADS"] = threads
    out = options.out
    again = [sys.executable, __file__, *options.scans, "--out", out, "--bundle", options.bundle, "--threads", threads]
    once = [sys.executable, __file__, options.scans[0], *again[2 + len(options.scans) :]]
    program = [sys.executable, "-m", "pipelines.cli", "predict", options.bundle]
    words = ["--out", out / "medseg", "--overwrite", "--quiet", "--threads", threads]
    fresh_commands = {"medseg": [*program, options.scans[0], *words], "monai": [*once, "--only", "monai"]}
    costs: dict[str, list[tuple[float, float]]] = {side: [] for side in fresh_commands}
    seconds: dict[str, list[float]] = {side: [] for side in fresh_commands}
    for number in range(options.rounds):
        for side in fresh_commands if number % 2 else reversed(fresh_commands):
            costs[side].append(spent(fresh_commands[side]))
            spent([*again, "--only", side])
            seconds[side] += json.loads((out / f"{side}.json").read_text())[1:]  # the first one warms up
            wall_s, peak = costs[side][-1]
            print(f"round {number + 1}  {side:7} fresh {wall_s:6.2f} s {peak / MIB:6.0f} MB", flush=True)
    medians = {
        side: (
            statistics.median(wall for wall, _ in costs[side]),
            statistics.median(seconds[side]),
            statistics.median(peak for _, peak in costs[side]),
        )
        for side in costs
    }
    for side, (fresh_s, loaded_s, peak) in medians.items():
        print(f"{side:7} fresh {fresh_s:6.2f} s, loaded {loaded_s:6.2f} s a scan, {peak / MIB:6.0f} MB")
    fresh, loaded, memory = (ours / theirs for ours, theirs in zip(medians["medseg"], medians["monai"], strict=True))
    print(f"medseg / MONAI: fresh {fresh:.2f}, loaded {loaded:.2f}, memory {memory:.2f}")
    return fresh, loaded, memory


def loaded_medseg(options: argparse.Namespace) -> list[float]:
    """Seconds of each scan, from file to file, in one process."""
    from medseg import Predictor, read_volume, write_label_map

    predictor = Predictor.load(options.bundle, "cpu", threads=options.threads)
    took = []
    for scan in options.scans:
        began = time.perf_counter()
        write_label_map(options.out / "medseg" / scan.name, predictor.predict(read_volume(scan)), overwrite=True)
        took.append(time.perf_counter() - began)
    return took


def loaded_monai(options: argparse.Namespace) -> list[float]:
    """Seconds of each scan, from file to file, in one process."""
    import torch
    from monai.data import DataLoader, decollate_batch
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        AsDiscrete,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    torch.set_num_threads(options.threads)
    network, description = network_of(options), description_of(options)
    plan, (window,) = description.plan, description.plan.normalisation
    low, high = ((value - window.mean) / window.std for value in (window.low, window.high))
    transforms = Compose(
        [
            LoadImaged(["image"]),
            EnsureChannelFirstd(["image"]),
            Orientationd(["image"], axcodes="RAS", labels=None),
            ScaleIntensityRanged(["image"], window.low, window.high, low, high, clip=True),
            Spacingd(["image"], plan.spacing_ijk_mm, mode="bilinear"),
        ]
    )
    back = Invertd("pred", transforms, orig_keys="image", nearest_interp=False, to_tensor=True)
    decide = AsDiscrete(argmax=True)
    (options.out / "monai").mkdir(exist_ok=True)
    took = []
    for scan in options.scans:
        began = time.perf_counter()
        batch: Any = next(iter(DataLoader([transforms({"image": str(scan)})], batch_size=1)))
        with torch.no_grad():
            batch["pred"] = sliding_window_inference(batch["image"], plan.patch_ijk, 1, network, 0.5, mode="gaussian")
        labels = decide(back(decollate_batch(batch)[0])["pred"])[0].numpy().astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, nibabel.load(scan).affine), options.out / "monai" / scan.name)
        took.append(time.perf_counter() - began)
    return took


def description_of(options: argparse.Namespace) -> Any:
    """What the bundle says of itself."""
    from medseg.inference.description import describe
    from medseg.io.bundle import read_bundle

    return describe(read_bundle(options.bundle))


def network_of(options: argparse.Namespace) -> Any:
    """Its network as a torch module."""
    from medseg.inference.runtimes.torch import load_network
    from medseg.io.bundle import read_bundle

    return load_network(description_of(options), read_bundle(options.bundle).weights[0])


def agreement(out: Path, scan: Path) -> list[float]:
    """Dice between both, of each structure that is large enough."""
    ours, theirs = (np.asarray(nibabel.load(out / side / scan.name).dataobj) for side in ("medseg", "monai"))
    scores = []
    for value in np.unique(theirs)[1:]:
        mine, other = ours == value, theirs == value
        if other.sum() > COUNTED_VOXELS:
            scores.append(float(2 * (mine & other).sum() / (mine.sum() + other.sum())))
    return scores


if __name__ == "__main__":
    sys.exit(main())
