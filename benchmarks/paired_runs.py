"""Trainings that a benchmark compares: each a name, a dataset, a config; a finished one is not repeated.

Every run is the three commands that a user types (train, predict, evaluate), each in a process of its own, on the
validation split of its dataset. A run that was cut goes on. Runs that are compared differ in one thing alone, and their
numbers of steps are fixed, so that a busy machine does not change them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg.core.case import Dataset
from medseg.data.splits import divide
from medseg.io.dataset import read_dataset
from medseg.io.dataset_native import case_entry, native_document
from medseg.metrics.aggregate import mean_intervals

CONFIGS = Path(__file__).parents[1] / "configs" / "ct_segmentation"

Dice = Mapping[str, Mapping[str, float | None]]
"""By case and structure."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Of its folder: holds all that tells it from the others.
        pair: Shared by the runs that are compared with each other; they must have had the same plan.
        config: Name of a config.
        data: Dataset with splits.
        overrides: What its config is changed by.
    """

    name: str
    pair: str
    config: str
    data: Path
    overrides: tuple[str, ...]


def arguments(description: str, steps: int, seeds: int) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds the datasets")
    parser.add_argument("--work", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--steps", type=int, default=steps, help="of each run")
    parser.add_argument("--seeds", type=int, default=seeds, help="paired repetitions")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with one thread if several")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override of every run's config")
    return parser


def write_view(dataset: Dataset, folder: Path, training: Sequence[str], validation: Sequence[str]) -> Path:
    """A dataset that divides the cases of another as given, and leaves its files where they are."""
    splits = {**dict.fromkeys(training, "train"), **dict.fromkeys(validation, "validation")}
    cases = [replace(record, split=splits[record.id]) for record in dataset.cases if record.id in splits]
    folder.mkdir(parents=True, exist_ok=True)
    document = native_document(dataset, [case_entry(record, folder) for record in cases])
    (folder / "dataset.json").write_text(json.dumps(document, indent=1))
    return folder


def fold_view(data: Path, folder: Path, fold: int, num_folds: int) -> Path:
    """A dataset divided by one of its folds; the same folds for every seed."""
    dataset = read_dataset(data)
    division = divide(dataset, seed=0, fold=fold, num_folds=num_folds)
    return write_view(
        dataset, folder, *([case.id for case in side] for side in (division.training, division.validation))
    )


def finish_all(runs: Sequence[Run], work: Path, steps: int, jobs: int) -> dict[str, Dice]:
    """Dice of every run on the validation split, by the run's name.

    Raises:
        SystemExit: A command failed; all others are finished first.
    """
    with ThreadPoolExecutor(jobs) as pool:
        failures = [failure for failure in pool.map(lambda run: finish(run, work, steps, jobs), runs) if failure]
    if failures:
        raise SystemExit("\n".join(failures))
    require_one_plan(runs, work)
    return {run.name: dice_of(work / run.name / "evaluation" / "metrics.json") for run in runs}


def finish(run: Run, work: Path, steps: int, jobs: int) -> str:
    """Train, predict and score, whatever of it is not done yet; says what failed."""
    folder = work / run.name
    if (folder / "evaluation" / "metrics.json").exists():
        return ""
    fixed = [
        f"trainer.length={{kind: steps, num_steps: {steps}}}",
        "trainer.validation={num_validations: 1, max_cases: 1}",
    ]
    threads = ["trainer.num_threads=1"] if jobs > 1 else []
    options = [part for override in (*fixed, *threads, *run.overrides) for part in ("--set", override)]
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    commands = [
        ["train", CONFIGS / f"{run.config}.yaml", "--data", run.data, "--out", folder, *options, *resume],
        ["predict", folder, run.data, "--split", "validation", "--out", folder / "predictions"],
        ["evaluate", folder / "predictions", run.data, "--split", "validation", "--out", folder / "evaluation"],
    ]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})}
    for command in commands:
        program = [sys.executable, "-m", "pipelines.cli", *map(str, command), "--quiet"]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{run.name}: medseg {command[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    print(f"finished {run.name}", file=sys.stderr)
    return ""


def require_one_plan(runs: Sequence[Run], work: Path) -> None:
    """Make sure that runs of a pair had the same grid, patch, batch and number of steps."""
    shared: dict[str, dict[str, object]] = {}
    for run in runs:
        plan = json.loads((work / run.name / "plan.json").read_text())
        same = {key: plan[key] for key in ("spacing_ijk_mm", "patch_ijk", "strides", "batch_size", "num_steps")}
        if shared.setdefault(run.pair, same) != same:
            raise SystemExit(f"{run.name} was planned otherwise than its pair: {same}, {shared[run.pair]}")


def dice_of(metrics: Path) -> Dice:
    """Dice by case and structure of an evaluation."""
    cases = json.loads(metrics.read_text())["cases"]
    return {case: {name: score["dice"] for name, score in scores.items()} for case, scores in cases.items()}


def table_of(repetitions: Sequence[Dice], names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Cases, and their Dice ``(cases, structures)``; of a case in several repetitions the mean. NaN: none."""
    cases = sorted({case for scores in repetitions for case in scores})
    stacked = np.array(
        [[[_number(scores.get(case, {}).get(name)) for name in names] for case in cases] for scores in repetitions]
    )
    counts = (~np.isnan(stacked)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return cases, np.where(counts > 0, np.nansum(stacked, axis=0) / counts, np.nan)


def difference_rows(ours: Sequence[Dice], other: Sequence[Dice], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Paired difference of each structure and of their mean, with BCa interval over cases: ``mean``, ``low``, ``high``."""
    (cases, first), (also, second) = table_of(ours, names), table_of(other, names)
    assert cases == also
    return dict(zip([*names, "mean"], mean_intervals([first - second])[0], strict=True))


def mean_rows(repetitions: Sequence[Dice], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean of each structure and of their means, with BCa interval over cases."""
    return dict(zip([*names, "mean"], mean_intervals([table_of(repetitions, names)[1]])[0], strict=True))


def shown(entry: Mapping[str, float | None], *, signed: bool = False) -> str:
    """A mean with its interval."""
    if entry["mean"] is None:
        return "–"
    sign = "+" if signed else ""
    return f"{entry['mean']:{sign}.3f} ({entry['low']:{sign}.3f} to {entry['high']:{sign}.3f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def _number(value: float | None) -> float:
    return np.nan if value is None else value
