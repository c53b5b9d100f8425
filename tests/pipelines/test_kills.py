"""Killed, out of disk, locked out, two at once: nothing half-written carries a final name, and a restart completes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from medseg.io.atomic import TEMPORARY
from medseg.io.volume import read_volume

KILLS_EACH = 34
"""Of three jobs: a hundred in all."""

STREAMS = (".jsonl",)
"""Logs grow line by line; a line that a kill cut is left out when they are read."""

COMMAND = [sys.executable, "-m", "pipelines.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(*arguments: object) -> subprocess.Popen[str]:
    process = started(*arguments)
    _, process.complaint = process.communicate(timeout=300)  # type: ignore[attr-defined]
    return process


def assert_whole(folder: Path) -> None:
    """Every file with a final name is complete."""
    from PIL import Image

    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(TEMPORARY) for part in path.parts) or path.suffix in STREAMS:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name.endswith(".nii.gz"):
            read_volume(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix in (".csv", ".yaml", ".html", ".ctbl", ".txt"):
            assert path.read_text(encoding="utf-8").endswith("\n"), path


def contents(folder: Path, *suffixes: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(suffixes)
    }


def kill_again_and_again(
    arguments: list[object], out: Path, num_kills: int, longest_s: float, rng: random.Random
) -> int:
    """Start, kill at a random moment, look, and start again into the same folder; how many were killed at work."""
    num_at_work = 0
    for _ in range(num_kills):
        process = started(*arguments)
        time.sleep(rng.uniform(0.2, longest_s))
        num_at_work += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            assert_whole(out)
        if process.returncode == 0 and rng.random() < 0.5:
            shutil.rmtree(out)
    return num_at_work


def kill_jobs(jobs: dict[str, tuple[list[object], tuple[str, ...]]], tmp_path: Path, num_kills: int) -> None:
    """Kill each job so often; what it completes in the end is what it makes undisturbed."""
    rng = random.Random(7)
    for name, (arguments, suffixes) in jobs.items():
        calm, out = tmp_path / f"calm_{name}", tmp_path / f"killed_{name}"
        begin = time.monotonic()
        undisturbed = finished(*arguments, calm)
        assert undisturbed.returncode == 0, undisturbed.complaint
        longest_s = 0.8 * (time.monotonic() - begin)  # the last start may go faster
        num_at_work = kill_again_and_again([*arguments, out], out, num_kills, longest_s, rng)
        assert num_at_work > num_kills // 2
        completed = finished(*arguments, out)
        assert completed.returncode == 0, completed.complaint
        assert contents(out, *suffixes).keys() >= contents(calm, *suffixes).keys()
        wanted = {path: data for path, data in contents(calm, *suffixes).items() if not path.endswith("manifest.json")}
        same = contents(out, *suffixes)
        assert [path for path, data in wanted.items() if same[path] != data] == []
        assert not list(out.rglob(f"{TEMPORARY}*"))


def killed_jobs(tmp_path: Path, sample: Path, run_folder: Path, *more: str) -> dict[str, Any]:
    predict = ["predict", run_folder, sample, *more, "--one-file-each", "--probabilities", "--out"]
    evaluate = ["evaluate", tmp_path / "calm_predict", sample, *more, "--out"]
    return {"predict": (predict, (".nii.gz",)), "evaluate": (evaluate, (".json", ".csv"))}


def test_killed_at_random_moments(tmp_path, sample, run_folder) -> None:
    """Training, killed and resumed, is tested beside it."""
    kill_jobs(killed_jobs(tmp_path, sample, run_folder, "--split", "validation"), tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_a_hundred_times(tmp_path, sample, smoke, run_folder) -> None:
    train = ["train", smoke, "--data", sample, "--set", "trainer.num_threads=1", "--deterministic", "--resume", "--out"]
    jobs = {**killed_jobs(tmp_path, sample, run_folder), "train": (train, (".safetensors",))}
    kill_jobs(jobs, tmp_path, KILLS_EACH)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


Job = Callable[[Path], list[object]]


def jobs(sample: Path, smoke: Path, run_folder: Path) -> dict[str, Job]:
    return {
        "predict": lambda out: ["predict", run_folder, sample, "--out", out],
        "train": lambda out: ["train", smoke, "--data", sample, "--set", "trainer.num_threads=1", "--out", out],
        "evaluate": lambda out: ["evaluate", sample / "labels", sample, "--out", out],
        "plan": lambda out: ["plan", sample, "--out", out / "plan.json"],
        "init": lambda out: ["init", "ct_segmentation", "--out", out / "config.yaml"],
        "convert": lambda out: ["convert", sample, "--to", "nnunet", "--out", out],
        "check": lambda out: ["check", sample, "--workers", "1", "--out", out],
    }


@pytest.mark.parametrize("name", ["predict", "train", "evaluate", "plan", "init", "convert", "check"])
def test_a_full_disk_is_told_and_more_space_completes(name, tmp_path, sample, smoke, run_folder) -> None:
    job = jobs(sample, smoke, run_folder)[name]
    with disk(tmp_path / "disk", "size=16k") as small:
        out = small / "out"
        if name in ("plan", "init", "check"):  # a few kilobytes: there must be no room at all
            (small / "ballast").write_bytes(bytes(2**14))
        process = finished(*job(out))
        assert process.returncode == 7, process.complaint
        assert "disk is full" in process.complaint
        assert "Traceback" not in process.complaint
        assert_whole(small)
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        again = job(out) + (["--resume"] if name == "train" else [])
        process = finished(*again)
        assert process.returncode == 0, process.complaint
        assert not list(out.rglob(f"{TEMPORARY}*"))


def test_a_disk_that_is_full_of_probabilities_is_told(tmp_path, sample, run_folder) -> None:
    """There is room for the label map, but not for what probabilities are put together from."""
    scan = sample / "images" / "pt_222.nii.gz"
    with disk(tmp_path / "disk", "size=512k") as small:
        command = ["predict", run_folder, scan, "--probabilities", "--out", small / "out"]
        process = finished(*command)
        assert process.returncode == 7, process.complaint
        assert "disk is full" in process.complaint
        assert_whole(small)
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        assert finished(*command).returncode == 0
        assert not list(small.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("name", ["predict", "train", "evaluate", "plan", "init", "convert", "check"])
def test_a_read_only_folder_is_told(name, tmp_path, sample, smoke, run_folder) -> None:
    with disk(tmp_path / "disk", "ro,size=1m") as small:
        process = finished(*jobs(sample, smoke, run_folder)[name](small / "out"))
        assert process.returncode in (1, 2, 6), process.complaint
        assert "Read-only file system" in process.complaint
        assert "Traceback" not in process.complaint


@pytest.mark.parametrize("name", ["predict", "train"])
def test_of_two_at_once_one_is_refused_and_the_other_completes(name, tmp_path, sample, smoke, run_folder) -> None:
    job = jobs(sample, smoke, run_folder)[name](tmp_path / "out")
    both = [started(*job), started(*job)]
    complaints = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], complaints
    refused = complaints[codes.index(2)]
    assert "another medseg is writing into" in refused or "holds a run already" in refused
    assert_whole(tmp_path / "out")
    if name == "predict":
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert {case["status"] for case in manifest["cases"]} == {"done"}
        assert len(manifest["cases"]) == 8
