"""A model trained by nnU-Net, predicting here and at home: same labels, wall clock, memory; end to end, from file to file.

nnU-Net converts, plans and trains by its own code (``nnUNetTrainer``, fold 0; how long, the options say), and its model
folder is imported. Then both label the same scans, in turn, each as a fresh process: ``medseg predict BUNDLE SCANS`` and
``nnUNetPredictor.predict_from_files`` without mirroring, with one process that prepares and one that exports beside the
network, as many as medseg has. Prints for each round the wall clock [s] and the peak of memory [MB], then the medians and
their ratios, and for each scan the Dice of all structures together and the part of voxels that differ. Exits with 1 where
a bound is not kept.

Memory is the resident set of the whole tree of processes, looked at twenty times a second; mapped files count, and pages
that processes share count once for each.

Peers: ``pip install -r requirements/peers.txt``. Run on quiet cores:
``python benchmarks/predict_against_nnunet.py DATASET --out DIR [--epochs 40] [--features 32] [--rounds 3] [--threads 2]``
with a dataset in native form. What is in DIR already (the converted data, the trained model) is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from process_cost import spent

NAME, NUMBER = "Dataset501_Benchmark", 501
MODEL = f"{NAME}/nnUNetTrainer__nnUNetPlans__3d_fullres"

MOST_DIFFERENT, LEAST_DICE, COUNTED_VOXELS = 1e-4, 0.999, 1000
"""Bounds: Dice of structures of more than so many voxels, else the part of all voxels that may differ."""

MOST_WALL, MOST_MEMORY = 0.65, 0.4
"""Bounds of medseg / nnU-Net."""

MIB = 2**20


def main() -> int:
    """Train once, predict in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=24, help="training cases that nnU-Net sees")
    parser.add_argument("--scans", type=int, default=10, help="unseen scans")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=25, help="training steps of an epoch")
    parser.add_argument("--features", type=int, default=32, help="of the finest stage; at most ten times as many")
    parser.add_argument("--patch", type=lambda text: [int(size) for size in text.split(",")], help="z,y,x")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("nnunet", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out.absolute()
    os.environ.update(OMP_NUM_THREADS=str(options.threads), nnUNet_n_proc_DA="1")
    for folder in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{folder}"] = str(out / folder)
    if options.only == "train":
        train(options)
        return 0
    if options.only == "nnunet":
        predict_at_home(out, options.threads)
        return 0
    if not (out / "raw" / NAME / "dataset.json").exists():
        convert(options.dataset, out, options.cases, options.scans)
    if not (out / "results" / MODEL / "fold_0" / "checkpoint_final.pth").exists():
        run([sys.executable, __file__, *sys.argv[1:], "--only", "train"])
    if not (out / "bundle").exists():
        run(medseg("import", "nnunet", out / "results" / MODEL, "--out", out / "bundle"))
    return judged(measured(out, options), compared(out))


def medseg(*arguments: object) -> list[object]:
    """A command line of medseg."""
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def run(command: Sequence[object]) -> None:
    """Run a command and stop where it fails."""
    subprocess.run([str(part) for part in command], check=True)


def convert(dataset: Path, out: Path, num_cases: int, num_scans: int) -> None:
    """Some training cases in nnU-Net's form, all structures taken as annotated; and unseen scans by themselves."""
    document = json.loads((dataset / "dataset.json").read_text())
    train_cases = [case for case in document["cases"] if case["split"] == "train"][:num_cases]
    unseen = [case for case in document["cases"] if case["split"] != "train"][:num_scans]
    for case in train_cases:
        case.pop("annotated", None)
        for key in ("image", "label"):
            case[key] = os.path.relpath(dataset.absolute() / case[key], out / "native")
    (out / "native").mkdir(parents=True, exist_ok=True)
    (out / "native" / "dataset.json").write_text(json.dumps({**document, "cases": train_cases}))
    run(medseg("convert", out / "native", "--to", "nnunet", "--out", out / "raw" / NAME))
    (out / "scans").mkdir(exist_ok=True)
    for case in unseen:  # named as nnU-Net wants them
        (out / "scans" / f"{case['id']}_0000.nii.gz").symlink_to(dataset.absolute() / case["image"])


def train(options: argparse.Namespace) -> None:
    """nnU-Net's own planning, preprocessing and training; only its length, patch and width are ours."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(options.threads)
    extract_fingerprints([NUMBER], num_processes=1)
    plan_experiments([NUMBER])
    path = options.out / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    widths = [min(options.features * 2**stage, 10 * options.features) for stage in range(kwargs["n_stages"])]
    kwargs["features_per_stage"] = widths
    configuration["patch_size"] = options.patch or configuration["patch_size"]
    path.write_text(json.dumps(plans))
    preprocess([NUMBER], configurations=("3d_fullres",), num_processes=(1,))
    os.environ.update(nnUNet_n_proc_DA="0")  # patches are made between the steps; planning fails with 0
    trainer = get_trainer_from_args(str(NUMBER), "3d_fullres", 0, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = options.epochs, options.iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()


def predict_at_home(out: Path, threads: int) -> None:
    """nnU-Net's predictor, as its documentation shows it."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(threads)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(out / "results" / MODEL), (0,), "checkpoint_final.pth")
    predictor.predict_from_files(
        str(out / "scans"), str(out / "nnunet"), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )


def measured(out: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median wall clock [s] and peak memory [bytes] of each side."""
    scans = sorted((out / "scans").iterdir())
    commands = {
        "medseg": medseg(
            "predict",
            out / "bundle",
            *scans,
            "--out",
            out / "medseg",
            "--overwrite",
            "-q",
            "--threads",
            options.threads,
        ),
        "nnU-Net": [
            sys.executable,
            __file__,
            options.dataset,
            "--out",
            out,
            "--threads",
            options.threads,
            "--only",
            "nnunet",
        ],
    }
    rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in commands}
    for number in range(options.rounds):
        for side in commands if number % 2 else reversed(commands):
            rounds[side].append(spent(commands[side]))
            wall_s, peak_bytes = rounds[side][-1]
            print(f"round {number + 1}  {side:8s} {wall_s:7.1f} s {peak_bytes / MIB:7.0f} MB", flush=True)
    return {
        side: (statistics.median(wall for wall, _ in found), statistics.median(peak for _, peak in found))
        for side, found in rounds.items()
    }


def compared(out: Path) -> dict[str, dict[str, Any]]:
    """For each scan, Dice of each structure between both sides, its voxels, and the part of all voxels that differ."""
    found = {}
    for path in sorted((out / "nnunet").glob("*.nii.gz")):
        theirs = np.asarray(nibabel.load(path).dataobj)
        ours = np.asarray(nibabel.load(out / "medseg" / path.name.replace(".nii.gz", "_0000.nii.gz")).dataobj)
        dice = {}
        for value in np.union1d(theirs, ours)[1:]:
            mine, other = ours == value, theirs == value
            dice[int(value)] = (2 * (mine & other).sum() / (mine.sum() + other.sum()), int(other.sum()))
        found[path.name] = {"dice": dice, "different": float((ours != theirs).mean())}
    return found


def judged(costs: Mapping[str, tuple[float, float]], scans: Mapping[str, Mapping[str, Any]]) -> int:
    """Print the medians and the scans, and say whether the bounds are kept."""
    wall, memory = (costs["medseg"][index] / costs["nnU-Net"][index] for index in (0, 1))
    for side, (wall_s, peak_bytes) in costs.items():
        print(f"median   {side:8s} {wall_s:7.1f} s {peak_bytes / MIB:7.0f} MB")
    print(f"medseg / nnU-Net: wall {wall:.2f} (bound {MOST_WALL}), memory {memory:.2f} (bound {MOST_MEMORY})")
    is_same = True
    for name, scan in scans.items():
        large = {value: dice for value, (dice, voxels) in scan["dice"].items() if voxels > COUNTED_VOXELS}
        is_same &= min(large.values(), default=1.0) >= LEAST_DICE or scan["different"] <= MOST_DIFFERENT
        shown = " ".join(f"{value}:{dice:.5f}" for value, (dice, _) in scan["dice"].items())
        print(f"{name:24s} different {scan['different']:.2e}  Dice {shown}")
    is_kept = is_same and wall <= MOST_WALL and memory <= MOST_MEMORY
    print("bounds kept" if is_kept else "bounds NOT kept")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
