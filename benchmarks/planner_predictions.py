"""The planner's forecasts beside what happens: seconds a step, peak memory, the end of a run; and its GPU plans beside nnU-Net's.

For budgets of 5, 20 and 60 minutes, in processes of their own: ``medseg train CONFIG --budget B``. The shortest is run whole and
must end at .85 to 1.02 of its budget. For the longer ones the plan is made with ``medseg plan --budget B`` and a few dozen of its
steps are trained, preparing, validation and bundle included (``--whole``: all of them, an hour and a half). Prints
predicted / measured of seconds a step (bound: within 20 %) and of peak resident memory (25 %).

Run, on quiet cores: ``python benchmarks/planner_predictions.py DATASET --work DIR [--whole] [--repeat 3]``
``... DATASET --work DIR --gpu 8`` plans with nnU-Net too, for so many GB (``pip install -r requirements/peers.txt``).
``... --fit`` measures U-Nets of many sizes and prints the constants of medseg/engine/machine.py; no dataset is needed.
``... DATASET --grids`` takes references to coarser grids and back: the constants of medseg/data/worth.py.
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

import numpy as np

BUDGETS = ("5m", "20m", "60m")

SECONDS_BOUND, MEMORY_BOUND, END_BOUNDS = 0.20, 0.25, (0.85, 1.02)
"""Largest relative error of seconds a step and of peak memory; where in its budget a run should end."""

SHORT_STEPS, FIRST_STEPS = 60, 5
"""Steps of a run that is cut short, and those of any run that warm up and do not count."""


def medseg(*arguments: object) -> tuple[float, int]:
    """Run a command; its wall clock [s] and peak resident memory [bytes]."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments), "--quiet"]
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def seconds_per_step(run: Path) -> float:
    """Mean of a run's steps, waiting for their batches included [s]."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry["seconds"] + entry["wait_s"] for entry in entries if entry["kind"] == "step"]
    return float(np.mean(steps[FIRST_STEPS:]))


def starter(work: Path) -> Path:
    """A config in which everything is left to the planner."""
    config = work / "config.yaml"
    if not config.exists():
        medseg_init = [sys.executable, "-m", "pipelines.cli", "init", "ct_segmentation", "--out", str(config)]
        subprocess.run(medseg_init, check=True, stdout=subprocess.DEVNULL)
    return config


def forecast(data: Path, work: Path, budget: str, is_whole: bool, number: int) -> bool:
    """Plan and train within a budget, print both, and say whether the bounds were kept."""
    config, run = starter(work), work / f"run_{budget}_{number}"
    if is_whole:
        wall_s, peak = medseg("train", config, "--data", data, "--budget", budget, "--out", run)
    else:
        path = work / f"plan_{budget}_{number}.json"
        medseg("plan", data, "--budget", budget, "--out", path)
        plan = json.loads(path.read_text())
        plan |= {"num_steps": SHORT_STEPS, "validate_every": SHORT_STEPS}
        path.write_text(json.dumps(plan))
        wall_s, peak = medseg("train", config, "--data", data, "--plan", path, "--out", run)
    plan = json.loads((run / "plan.json").read_text())
    first, measured = plan["candidates"][0], seconds_per_step(run)
    predicted_peak = sum(plan["memory_bytes"].values())
    end = wall_s / (60 * float(budget[:-1]))
    print(
        f"{budget:>4}{'' if is_whole else ' (60 steps)'}: patch {plan['patch_ijk']} x {plan['batch_size']}, features "
        f"{plan['features']}, first stride {max(plan['strides'][0])}\n"
        f"      seconds a step: model {first['seconds_per_step']:.3f} ({first['seconds_per_step'] / measured:.2f} of measured), "
        f"frozen {plan['seconds_per_step']:.3f} ({plan['seconds_per_step'] / measured:.2f}), measured {measured:.3f}\n"
        f"      peak memory: predicted {predicted_peak / 2**20:.0f} MB ({predicted_peak / peak:.2f}), measured "
        f"{peak / 2**20:.0f} MB" + (f"\n      ended at {end:.3f} of the budget" if is_whole else ""),
        flush=True,
    )
    kept = abs(plan["seconds_per_step"] / measured - 1) <= SECONDS_BOUND
    kept &= abs(predicted_peak / peak - 1) <= MEMORY_BOUND
    return kept and (not is_whole or END_BOUNDS[0] <= end <= END_BOUNDS[1])


def beside_nnunet(data: Path, work: Path, gigabytes: float) -> bool:
    """Plan for a GPU that is not here, with both; print patch, batch and features."""
    os.environ |= {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    raw = work / "nnUNet_raw" / "Dataset001_compared"
    if not raw.exists():
        medseg("convert", data, "--to", "nnunet", "--out", raw)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1], gpu_memory_target_in_gb=gigabytes)
    theirs = json.loads((work / "nnUNet_preprocessed" / raw.name / "nnUNetPlans.json").read_text())["configurations"][
        "3d_fullres"
    ]
    path = work / "gpu_plan.json"
    medseg("plan", data, "--device", "gpu-8g", "--memory", f"{gigabytes}G", "--set", "splits.fold=none", "--out", path)
    ours = json.loads(path.read_text())
    # nnU-Net reads axes in the order k, j, i and may transpose them: compared by size.
    patches = sorted(theirs["patch_size"]), sorted(ours["patch_ijk"])
    features = theirs["architecture"]["arch_kwargs"]["features_per_stage"]
    print(f"nnU-Net: patch {patches[0]} x {theirs['batch_size']}, spacing {theirs['spacing']}, features {features}")
    print(
        f"medseg:  patch {patches[1]} x {ours['batch_size']}, spacing {ours['spacing_ijk_mm']}, features {ours['features']}"
    )
    step = max(np.prod(np.array(ours["strides"]), axis=0))
    is_close = bool((np.abs(np.subtract(*patches)) <= step).all())
    return is_close and 0.5 <= ours["batch_size"] / theirs["batch_size"] <= 2


def fit() -> None:
    """Time and watch U-Nets of many sizes, each in a process of its own; print the constants that follow."""
    from scipy.optimize import nnls

    measured = []
    for features, stem, patch, batch in NETWORKS:
        arguments = json.dumps({"features": features, "stem": stem, "patch": patch, "batch": batch})
        answer = subprocess.run(
            [sys.executable, __file__, "--one", arguments], capture_output=True, text=True, check=True
        )
        measured.append(json.loads(answer.stdout))
        print(f"{features} first stride {stem}, {batch} x {patch}: {measured[-1]['seconds']:.3f} s", flush=True)
    names = ("per_mac", "per_saved_byte", "per_voxel", "per_parameter", "fixed")
    _report("StepTime", names, [each["amounts"] for each in measured], [each["seconds"] for each in measured], nnls)
    rest = [each["grown"] - each["known"] for each in measured]
    columns = [[1.0, each["largest"], each["output"]] for each in measured]
    _report("Workspace", ("fixed", "per_largest_byte", "per_output_byte"), columns, rest, nnls)


def _report(title: str, names: tuple[str, ...], columns: list[list[float]], wanted: list[float], nnls: Any) -> None:
    matrix, target = np.array(columns), np.array(wanted)
    scale = matrix.max(axis=0)
    found, _ = nnls(matrix / scale / target[:, None], np.ones(len(target)))
    errors = (matrix / scale) @ found / target - 1
    told = ", ".join(f"{name}={value:.3g}" for name, value in zip(names, found / scale, strict=True))
    print(
        f"{title}({told})  root mean square error {np.sqrt(np.mean(errors**2)):.0%}, largest {np.abs(errors).max():.0%}"
    )


NETWORKS = (
    ((8, 16, 32, 64), 2, (64, 64, 64), 2), ((16, 32, 64, 128), 2, (32, 32, 32), 2), ((16, 32, 64, 128), 2, (48, 48, 48), 2),
    ((16, 32, 64, 128), 2, (64, 64, 64), 2), ((16, 32, 64, 128), 2, (64, 64, 64), 4), ((16, 32, 64, 128), 2, (96, 96, 64), 2),
    ((24, 48, 96, 192), 2, (64, 64, 64), 2), ((32, 64, 128, 256), 2, (64, 64, 64), 2), ((16, 32, 64, 128), 2, (128, 128, 96), 2),
    ((8, 16, 32, 64), 1, (64, 64, 64), 2), ((16, 32, 64, 128), 1, (48, 48, 48), 2), ((16, 32, 64, 128), 1, (64, 64, 64), 2),
    ((24, 48, 96, 192), 1, (48, 48, 48), 2), ((32, 64, 128, 256), 1, (32, 32, 32), 2), ((32, 64, 128, 256, 320), 1, (48, 48, 48), 2),
)  # fmt: skip
"""Features, first stride, patch, batch."""


def one(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train one U-Net on noise for a few steps; what it took."""
    import torch

    from medseg.core.labels import LabelSchema, Structure
    from medseg.core.memory import forget_peak, peak_resident_bytes, resident_bytes
    from medseg.engine.allocator import keep_freed_memory
    from medseg.engine.machine import Step
    from medseg.losses.build import build_loss
    from medseg.losses.config import DiceCrossEntropyConfig
    from medseg.models.build import build_model
    from medseg.models.config import UNetConfig
    from medseg.models.u_net_cost import u_net_cost

    schema = LabelSchema(tuple(Structure(f"s{value}", value) for value in range(1, 8)))
    loss = build_loss(DiceCrossEntropyConfig(), schema)

    def steps(features: list[int], stem: int, patch: list[int], batch: int, number: int) -> float:
        config = UNetConfig(features=tuple(features), stem_stride=stem)
        strides = ((stem,) * 3, *[(2, 2, 2)] * (len(features) - 1))
        network = build_model(config, 1, 8, strides)
        optimizer = torch.optim.AdamW(network.parameters())
        image, classes = torch.randn(batch, 1, *patch), torch.randint(0, 8, (batch, *patch)).to(torch.int16)
        annotated, seconds = torch.ones(batch, 8, dtype=torch.bool), []
        for _ in range(number):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss(network(image), classes, annotated).total.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    keep_freed_memory()
    steps([4, 8], 2, [16, 16, 16], 1, 2)
    before = resident_bytes()
    forget_peak()
    seconds = steps(*arguments.values(), number=6)
    grown = peak_resident_bytes() - before
    config = UNetConfig(features=tuple(arguments["features"]), stem_stride=arguments["stem"])
    strides = ((arguments["stem"],) * 3, *[(2, 2, 2)] * (len(arguments["features"]) - 1))
    cost = u_net_cost(config, 1, 8, strides, None).at(int(np.prod(arguments["patch"])))
    batch = arguments["batch"]
    return {
        "seconds": seconds,
        "amounts": Step(cost, batch).amounts.tolist(),
        "grown": grown,
        "known": batch * cost.saved_bytes + 16 * cost.num_parameters,
        "largest": batch * cost.largest_bytes,
        "output": batch * cost.output_bytes,
    }


def grids(data: Path, num_cases: int = 12) -> None:
    """Take the references to coarser grids and back; what they lose of Dice, as probabilities and as masks."""
    from medseg.core.progress import silent
    from medseg.data.plan import voxels_thick
    from medseg.data.resample import grid_weights, resample
    from medseg.io.case import read_case
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
    from medseg.tasks.ct_segmentation.files import files
    from medseg.tasks.ct_segmentation.search import coarsened

    dataset = files.read_dataset(data)
    plan = files.make_plan(CtSegmentationConfig(), dataset, silent)
    assert plan.fingerprint is not None
    records = [record for record in dataset.cases if record.label is not None][:num_cases]
    for factor in (1.0, 1.5, 2.25, 3.4, 5.0, 8.0, 12.0):
        spacing = coarsened(plan.spacing_ijk_mm, factor)
        lost: dict[str, list[tuple[float, float]]] = {name: [] for name in dataset.labels.names}
        for record in records:
            case = read_case(record, dataset)
            own = case.image.geometry.orthogonal
            assert case.label is not None
            classes = own.axes.to_canonical(dataset.labels.to_classes(case.label.array))
            grid = own.canonical.resampled(spacing)
            there, back = (
                grid_weights(own.canonical, grid, smooth=False),
                grid_weights(grid, own.canonical, smooth=False),
            )
            numbers = np.arange(dataset.labels.num_channels)[:, None, None, None]
            soft = resample((classes == numbers).astype(np.float32), there)
            masks = (soft.argmax(axis=0) == numbers).astype(np.float32)
            results = [resample(each, back).argmax(axis=0) for each in (soft, masks)]
            for number, name in enumerate(dataset.labels.names, start=1):
                reference = classes == number
                if reference.any():
                    dice = [
                        2 * (reference & (r == number)).sum() / (reference.sum() + (r == number).sum()) for r in results
                    ]
                    lost[name].append((1 - dice[0], 1 - dice[1]))
        for name, values in lost.items():
            thickness = plan.fingerprint.structures[name].median_thickness_mm
            if values and thickness is not None:
                soft_loss, mask_loss = np.mean(values, axis=0)
                print(
                    f"{name:<16} {voxels_thick(thickness, spacing):5.2f} voxels thick: {soft_loss:.3f} {mask_loss:.3f}"
                )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("planner"))
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--gpu", type=float)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--grids", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
    elif options.fit:
        fit()
    elif options.grids:
        grids(options.data)
    elif options.gpu:
        options.work.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if beside_nnunet(options.data, options.work.resolve(), options.gpu) else 1)
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = str(options.work / "cache")  # prepared cases of other runs would save time
        budgets = options.budgets.split(",")
        kept = [
            forecast(options.data, options.work, budget, options.whole or budget == budgets[0], number)
            for number in range(options.repeat)
            for budget in budgets
        ]
        print(f"{sum(kept)} of {len(kept)} kept their bounds")
        sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
