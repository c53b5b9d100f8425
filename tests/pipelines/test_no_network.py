"""No command talks to the network: each works without one, and asks for no connection."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["tasks", "doctor", "init", "check", "convert", "plan", "train", "predict", "evaluate", "demo"]
CONNECTION = re.compile(r"connect\(\d+, \{sa_family=(AF_\w+)")


def arguments_of(name: str, sample: Path, smoke: Path, run_folder: Path, out: Path) -> list[object]:
    return {
        "tasks": ["tasks"],
        "doctor": ["doctor"],
        "init": ["init", "ct_segmentation", "--out", out / "config.yaml"],
        "check": ["check", sample, "--out", out],
        "convert": ["convert", sample, "--to", "nnunet", "--out", out],
        "plan": ["plan", sample, "--out", out / "plan.json"],
        "train": ["train", smoke, "--data", sample, "--out", out],
        "predict": ["predict", run_folder, sample, "--preview", "--out", out],
        "evaluate": ["evaluate", sample / "labels", sample, "--out", out],
        "demo": ["demo", "--budget", "20s", "--out", out],
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_works_without_a_network_and_asks_for_none(name, tmp_path, sample, smoke, run_folder) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    watched = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", trace]
    command = [sys.executable, "-m", "pipelines.cli", *arguments_of(name, sample, smoke, run_folder, tmp_path / "out")]
    alone = ["unshare", "-rn"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []  # not permitted here: what strace sees still counts
    done = subprocess.run(
        [*map(str, [*alone, *watched, *command])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    families = set(CONNECTION.findall(trace.read_text()))
    assert families <= {"AF_UNIX"}
