"""``medseg check`` on a large synthetic dataset: memory of all its processes, and what a second worker is worth.

A second worker is compared with what two independent runs at once reach on the same machine, in turns, so that busy
neighbours hurt all alike. Run: ``.venv/bin/python benchmarks/check_at_scale.py [--cases 1000] [--folder DIR]``
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE, SPACING_MM = (96, 96, 72), (3.0, 3.0, 3.0)

COMMAND = [sys.executable, "-c", "from pipelines.cli import app; app()", "check"]

MB = 2**20


def make_dataset(folder: Path, num_cases: int) -> None:
    """Bodies of water with a bright and a dark ball in noisy air, each case of its own size and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")).astype(np.float32)
    affine = np.diag([*SPACING_MM, 1.0])
    cases = []
    for number in range(num_cases):
        rng = np.random.default_rng(number)
        image = rng.normal(-1000, 10, SHAPE).astype(np.float32)
        size = 1 + 0.1 * rng.standard_normal()
        image[(grid[0] / 0.8) ** 2 + (grid[1] / 0.5) ** 2 < size] += 1030
        label = np.zeros(SHAPE, np.uint8)
        for value, (x, hu) in enumerate([(-0.4, 300), (0.4, -150)], start=1):
            centre = np.array([x, 0, 0]) + 0.05 * rng.standard_normal(3)
            ball = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < (0.2 * size) ** 2
            image[ball] += hu
            label[ball] = value
        for name, array in (("image", image.astype(np.int16)), ("label", label)):
            data = nib.Nifti1Image(array, affine).to_bytes()
            (folder / f"{name}_{number}.nii.gz").write_bytes(gzip.compress(data, 1, mtime=0))
        cases.append({"id": f"c{number}", "image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz"})
    labels = {"background": 0, "bright": 1, "dark": 2}
    document = {"name": "synthetic", "modality": "CT", "labels": labels, "cases": cases}
    (folder / "dataset.json").write_text(json.dumps(document))


def tree_bytes(root: int) -> int:
    """Resident memory of a process and all below it [bytes]; pages they share count for each."""
    parents, resident = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)], resident[int(entry.name)] = int(fields[1]), int(fields[21]) * 4096
    below = {root}
    while grown := {child for child, parent in parents.items() if parent in below} - below:
        below |= grown
    return sum(resident.get(process, 0) for process in below)


def run(folder: Path, workers: int, copies: int = 1) -> tuple[float, int]:
    """Wall-clock time until all copies are done [s], and the peak memory of the first copy's processes [bytes]."""
    began = time.monotonic()
    command = [*COMMAND, str(folder), "--workers", str(workers), "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(copies)]
    peak = 0
    while any(process.poll() is None for process in running):
        peak = max(peak, tree_bytes(running[0].pid))
        time.sleep(0.1)
    assert all(process.returncode in (0, 1) for process in running), [process.returncode for process in running]
    return time.monotonic() - began, peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the dataset is made, or lies from an earlier run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "dataset.json").exists():
            make_dataset(folder, options.cases)
        run(folder, 2)  # fills the file cache
        seconds: dict[str, list[float]] = {"one worker": [], "two workers": [], "two copies": []}
        peak = 0
        for _ in range(options.rounds):
            for name, workers, copies in (("one worker", 1, 1), ("two workers", 2, 1), ("two copies", 1, 2)):
                took, memory = run(folder, workers, copies)
                seconds[name].append(took)
                peak = max(peak, memory if copies == 1 else 0)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{options.cases} cases of {SHAPE}, median of {options.rounds}: "
        + str({k: round(v, 1) for k, v in medians.items()})
    )
    gains = medians["one worker"] / medians["two workers"], 2 * medians["one worker"] / medians["two copies"]
    print(f"two workers {gains[0]:.2f}×, two copies {gains[1]:.2f}×, ratio {gains[0] / gains[1]:.2f}")
    print(f"peak memory of all processes: {peak / MB:.0f} MB")


if __name__ == "__main__":
    main()
