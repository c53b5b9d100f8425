"""The README's commands do what it says, with budgets cut to seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(sample, folder / "my_dataset")
    (folder / "new_scans").mkdir()
    shutil.copy(sample / "images" / "pt_222.nii.gz", folder / "new_scans" / "scan.nii.gz")
    for name in ("pt_201", "pt_222"):
        shutil.copy(sample / "images" / f"{name}.nii.gz", folder / "new_scans")
    return folder


def run(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_commands_run_one_after_the_other(workplace: Path) -> None:
    (commands,) = [block for block in blocks("bash") if "medseg train" in block]
    for line in commands.strip().splitlines():
        run([word.replace("20m", "20s") for word in line.split()], workplace)
    assert len(list((workplace / "predictions").glob("*.nii.gz"))) == 3
    assert (workplace / "evaluation" / "metrics.json").exists()
    (script,) = blocks("python")
    run([sys.executable, "-c", script], workplace)


def test_the_demo_runs_and_goes_on(tmp_path: Path) -> None:
    run([sys.executable, "-m", "pipelines.cli", "demo", "--out", str(tmp_path / "demo"), "--budget", "20s"], ROOT)
    figures = tmp_path / "demo" / "evaluation" / "figures"
    assert {path.name for path in figures.iterdir()} == {"pt_201.png", "pt_222.png", "scores.png", "comparison.png"}
    weights = tmp_path / "demo" / "run" / "bundle" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run([sys.executable, "-m", "pipelines.cli", "demo", "--out", str(tmp_path / "demo"), "--budget", "20s"], ROOT)
    assert weights.stat().st_mtime_ns == before, "a finished training is used again"


def test_its_make_targets_and_links_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
