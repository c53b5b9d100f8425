"""Contours of head-and-neck CT after the same minutes on the same cores: medseg beside MONAI's tutorial recipe.

MONAI's side is its spleen tutorial for several structures: RAS, 3 mm, one CT window, cropped to the body, four patches of
64 cubed a step (half of them on structures), residual U-Net 16 to 256, Dice + cross-entropy, Adam, sliding window of 64
cubed. Its minutes are training only; medseg's are the whole command, planning, preparing and validating included.
Structures that nobody contoured count as absent there, because the recipe knows no better.

``--structures five`` takes only cases in which brainstem, spinal cord, both parotids and the mandible are contoured, and
only these five structures, so that nobody is helped by knowing what is not annotated.

Run on an idle machine: ``.venv/bin/python benchmarks/head_neck_against_monai.py DATASET --out DIR --minutes 20`` with the
dataset in native form. Both sides are scored by ``medseg evaluate``; a side that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

FIVE = ("brainstem", "spinal_cord", "parotid_right", "parotid_left", "mandible")
SPACING_MM, PATCH, PATCHES_A_STEP, WINDOW_HU, LEARNING_RATE = (3.0, 3.0, 3.0), (64, 64, 64), 4, (-200.0, 300.0), 1e-3


def main() -> None:
    """Train, predict and score both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--structures", choices=("all", "five"), default="all")
    parser.add_argument("--sides", default="medseg,monai")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="configs/ct_segmentation/head_neck_unet.yaml")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dataset = options.dataset if options.structures == "all" else only_five(options.dataset, options.out / "five")
    rows = {}
    for side in options.sides.split(","):
        predictions = options.out / f"{side}-{options.structures}-{options.seed}"
        if not (predictions / "labels.json").exists():
            {"medseg": train_medseg, "monai": train_monai}[side](dataset, predictions, options)
        rows[side] = evaluated(predictions, dataset)
    structures = [name for name in next(iter(rows.values())) if name != "mean"]
    print("mean Dice  " + "  ".join(f"{side:>8}" for side in rows))
    for name in [*structures, "mean"]:
        print(f"{name:<16}" + "  ".join(f"{row[name]['dice']['mean']:8.3f}" for row in rows.values()))


def only_five(dataset: Path, out: Path) -> Path:
    """A dataset of the cases in which all five are contoured, without the other structures."""
    description = json.loads((dataset / "dataset.json").read_text())
    table = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(FIVE, start=1):
        table[description["labels"][name]] = number
    cases = []
    (out / "labels").mkdir(parents=True, exist_ok=True)
    for case in description["cases"]:
        if set(FIVE) <= set(case.get("annotated", FIVE)):
            image = nibabel.load(dataset / case["label"])
            kept = table[np.asarray(image.dataobj).astype(np.uint8)]
            nibabel.save(nibabel.Nifti1Image(kept, image.affine), out / case["label"])
            cases.append({**case, "image": str((dataset / case["image"]).resolve()), "annotated": list(FIVE)})
    for case in cases:
        case["image"] = os.path.relpath(case["image"], out)
    labels_of = {"background": 0, **{name: number for number, name in enumerate(FIVE, start=1)}}
    (out / "dataset.json").write_text(json.dumps({**description, "labels": labels_of, "cases": cases}))
    return out


def train_medseg(dataset: Path, predictions: Path, options: Any) -> None:
    """The two commands that a user types."""
    run = predictions.with_name(predictions.name + "-run")
    budget = ["--budget", f"{options.minutes * 60:.0f}s", "--set", f"trainer.seed={options.seed}"]
    medseg("train", options.config, "--data", str(dataset), "--out", str(run), *budget)
    medseg("predict", str(run), str(dataset), "--split", "validation", "--out", str(predictions))


def train_monai(dataset: Path, predictions: Path, options: Any) -> None:
    """The tutorial's loop, for a number of minutes instead of epochs."""
    import torch
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet
    from monai.transforms import Compose
    from monai.utils import set_determinism

    set_determinism(options.seed)
    description = json.loads((dataset / "dataset.json").read_text())
    num_classes = max(int(value) for value in description["labels"].values()) + 1
    files: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
    for case in description["cases"]:
        paths = {"image": str(dataset / case["image"]), "label": str(dataset / case["label"]), "id": case["id"]}
        files.setdefault(case["split"], []).append(paths)
    deterministic = prepared_by_monai()
    training = CacheDataset(files["train"], Compose([*deterministic, *cut_by_monai()]), progress=False)
    loader = DataLoader(training, batch_size=1, shuffle=True, num_workers=0)
    network = UNet(3, 1, num_classes, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < options.minutes * 60:
        for batch in loader:
            network.train()
            optimizer.zero_grad()
            loss = loss_of(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            steps += 1
            if time.monotonic() - started >= options.minutes * 60:
                break
    print(f"monai: {steps} steps, last loss {float(loss.detach()):.3f}", file=sys.stderr)
    predict_monai(network, deterministic, files["validation"], predictions)
    (predictions / "labels.json").write_text(json.dumps(description["labels"]))


def predict_monai(network: Any, deterministic: list[Any], cases: list[dict[str, str]], predictions: Path) -> None:
    """Sliding window, probabilities back onto the file's grid, argmax."""
    import torch
    from monai.data import DataLoader, decollate_batch
    from monai.inferers import sliding_window_inference
    from monai.transforms import AsDiscrete, Compose, Invertd

    transforms = Compose(deterministic)
    back = Invertd("pred", transforms, orig_keys="image", nearest_interp=False, to_tensor=True)
    decide = AsDiscrete(argmax=True)
    predictions.mkdir(parents=True, exist_ok=True)
    network.eval()
    for case in cases:
        batch = next(iter(DataLoader([transforms(case)], batch_size=1)))
        with torch.no_grad():
            batch["pred"] = sliding_window_inference(batch["image"], PATCH, PATCHES_A_STEP, network, overlap=0.5)
        labels = decide(back(decollate_batch(batch)[0])["pred"])[0].numpy().astype(np.uint8)
        affine = nibabel.load(case["image"]).affine
        nibabel.save(nibabel.Nifti1Image(labels, affine), predictions / f"{case['id']}.nii.gz")


def prepared_by_monai() -> list[Any]:
    """The tutorial's deterministic transforms."""
    from monai.transforms import (
        CropForegroundd,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    both = ["image", "label"]
    low, high = WINDOW_HU
    return [
        LoadImaged(both),
        EnsureChannelFirstd(both),
        ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        CropForegroundd(both, source_key="image", allow_smaller=True),
        Orientationd(both, axcodes="RAS", labels=None),
        Spacingd(both, SPACING_MM, mode=("bilinear", "nearest")),
    ]


def cut_by_monai() -> list[Any]:
    """The tutorial's patches; a scan smaller than one is padded."""
    from monai.transforms import RandCropByPosNegLabeld, SpatialPadd

    both = ["image", "label"]
    cut = RandCropByPosNegLabeld(both, "label", PATCH, pos=1, neg=1, num_samples=PATCHES_A_STEP, image_key="image")
    return [SpatialPadd(both, PATCH), cut]


def evaluated(predictions: Path, dataset: Path) -> dict[str, Any]:
    """Scores of a folder of predictions."""
    answer = medseg("evaluate", str(predictions), str(dataset), "--split", "validation", "--json")
    summary = json.loads(answer)["summary"]
    (predictions.with_name(predictions.name + ".json")).write_text(json.dumps(summary, indent=1))
    return dict(summary)


def medseg(*arguments: str) -> str:
    """Run a command; its answer on stdout. Exit code 1 (a case failed) still has one."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments, "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(f"medseg {arguments[0]} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
