"""Preparing a dataset: medseg's cache beside nnU-Net's preprocessing, as ratios of CPU time and of bytes on disk.

Both sides read the same files and bring image and label to the spacing that nnU-Net plans, with its window, mean and
standard deviation; both store image, label and the voxels that patches are centred on. nnU-Net's side is its own
``DefaultPreprocessor.run_case_save`` (cubic interpolation, float32, blosc2). They take turns, case by case, in one
process with one thread, and who begins alternates; imports, planning and fingerprints are not counted. nnU-Net sees all
structures as annotated in all cases: otherwise ``medseg convert`` would give it an ignore label, whose voxels it lists
too, which costs it more.

Run: ``pip install -r requirements/peers.txt``, then
``python benchmarks/prepare_against_nnunet.py DATASET --out DIR`` with a dataset in native form.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch start their threads

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.core.case import CaseRecord, Dataset
from medseg.data.cache import CaseCache
from medseg.data.cache_key import Preparation
from medseg.data.config import WindowNormalisation
from medseg.data.container import StoredCase
from medseg.io.dataset import read_dataset

NAME = "Dataset501_Benchmark"
BOUND_TIME, BOUND_BYTES = 0.2, 0.6
PLENTY_BYTES = 10**12


def converted(dataset: Path, out: Path) -> Dataset:
    """The dataset with all annotated in all cases, also in nnU-Net's form and planned by it; the description."""
    source = dataset / "dataset.json" if dataset.is_dir() else dataset
    document = json.loads(source.read_text())
    for case in document["cases"]:
        case.pop("annotated", None)
        for key in ("image", "label"):
            case[key] = os.path.relpath(source.parent / case[key], out / "native")
    (out / "native").mkdir(parents=True)
    (out / "native" / "dataset.json").write_text(json.dumps(document))
    raw = out / "raw" / NAME
    command = [sys.executable, "-m", "pipelines.cli", "convert", out / "native", "--to", "nnunet", "--out", raw]
    subprocess.run([str(part) for part in command], check=True)
    return read_dataset(out / "native")


def planned(raw: Path, prepared: Path) -> tuple[dict[str, Any], Callable[[CaseRecord], None]]:
    """nnU-Net's plan of the dataset, and its preparing of one case."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    extract_fingerprints([501], num_processes=1, verbose=False)
    plan_experiments([501])
    plan = json.loads((prepared / NAME / "nnUNetPlans.json").read_text())
    description = json.loads((prepared / NAME / "dataset.json").read_text())
    files = get_filenames_of_train_images_and_targets(str(raw / NAME), description)
    target = prepared / NAME / "cases"
    target.mkdir()
    manager = PlansManager(plan)
    preprocessor = DefaultPreprocessor(verbose=False)

    def prepare(record: CaseRecord) -> None:
        preprocessor.run_case_save(
            str(target / record.id),
            files[record.id]["images"],
            files[record.id]["label"],
            manager,
            manager.get_configuration("3d_fullres"),
            description,
        )

    return plan, prepare


def preparation(dataset: Dataset, plan: dict[str, Any]) -> Preparation:
    """nnU-Net's plan in medseg's words: axes from K, J, I in its own order to R, A, S."""
    turned = plan["configurations"]["3d_fullres"]["spacing"]
    k, j, i = (turned[plan["transpose_forward"].index(axis)] for axis in range(3))
    seen = plan["foreground_intensity_properties_per_channel"]["0"]
    window = {"low": seen["percentile_00_5"], "high": seen["percentile_99_5"], "mean": seen["mean"], "std": seen["std"]}
    return Preparation(dataset, (i, j, k), (WindowNormalisation(**window),))


def main() -> None:
    """Prepare all cases on both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    out = options.out.resolve()
    folders = {"nnUNet_raw": out / "raw", "nnUNet_preprocessed": out / "theirs", "nnUNet_results": out / "results"}
    os.environ.update({variable: str(folder) for variable, folder in folders.items()})
    dataset = converted(options.dataset.resolve(), out)
    plan, prepare_theirs = planned(out / "raw", out / "theirs")
    ours = preparation(dataset, plan)
    print(f"spacing along R, A, S {ours.spacing_ijk_mm} mm, {ours.normalisation[0]}")
    cache = CaseCache(out / "ours", PLENTY_BYTES)

    def prepare_ours(record: CaseRecord) -> None:
        kept = cache.prepared(record, ours)
        assert isinstance(kept.case, StoredCase), kept.problem

    sides = [("ours", prepare_ours), ("theirs", prepare_theirs)]
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number, record in enumerate(dataset.cases):
        for side, prepare in sides if number % 2 else sides[::-1]:
            began = time.process_time()
            prepare(record)
            seconds[side].append(time.process_time() - began)
    show(seconds, out / "ours" / "cases", out / "theirs" / NAME / "cases")


def show(seconds: dict[str, list[float]], ours: Path, theirs: Path) -> None:
    """Times and bytes of both sides."""
    pairs = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    total = {side: sum(values) for side, values in seconds.items()}
    print(f"\n{len(pairs)} cases        medseg    nnU-Net    ratio    bound")
    print(
        f"CPU time       {total['ours']:8.1f} s {total['theirs']:8.1f} s {total['ours'] / total['theirs']:8.3f} {BOUND_TIME:8}"
    )
    print(f"median of pairs                        {statistics.median(pairs):8.3f}   (largest {max(pairs):.3f})")
    ours_bytes = sum(file.stat().st_size for file in ours.iterdir())
    stored = sum(file.stat().st_size for file in theirs.glob("*.b2nd"))
    listed = sum(file.stat().st_size for file in theirs.glob("*.pkl"))
    for name, other in (("image, label", stored), ("and voxels", stored + listed)):
        print(f"{name:12} {ours_bytes / 1e6:9.1f} MB {other / 1e6:8.1f} MB {ours_bytes / other:8.3f} {BOUND_BYTES:8}")
    print("(ours always with the voxels)")


if __name__ == "__main__":
    main()
