"""Prediction with other runtimes than torch, from the command line; and where torch is not installed at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCAN = "pt_222"
ROOT = Path(__file__).parents[2]

WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "monai", "onnx", "onnxruntime", "matplotlib", "contourpy", "blosc2", "tensorboard"}:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
import importlib.metadata as metadata
version = metadata.version
def installed(name):
    if name in {"torch", "monai", "onnx", "onnxruntime"}:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = installed
from pipelines.cli import app
app()
"""


@pytest.fixture
def scan(sample: Path) -> Path:
    return sample / "images" / f"{SCAN}.nii.gz"


def labels(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{SCAN}.nii.gz").dataobj)


@pytest.mark.slow  # see tests/unit/inference/test_runtimes.py
def test_every_runtime_labels_alike_and_repeats_to_the_byte(tmp_path: Path, scan: Path, medseg) -> None:
    found = {}
    for out in ("torch", "openvino", "onnx", "openvino again"):
        runtime = out.split()[0]
        answer = medseg("predict", "head-neck", scan, "--out", tmp_path / out, "--runtime", runtime, "--threads", 1)
        assert answer.exit_code == 0, answer.stderr
        document = json.loads((tmp_path / out / "manifest.json").read_text())
        assert document["settings"]["runtime"].startswith(f"{runtime} ")
        assert document["settings"]["threads"] == 1
        found[out] = labels(tmp_path / out)
    once, again = ((tmp_path / out / f"{SCAN}.nii.gz").read_bytes() for out in ("openvino", "openvino again"))
    assert once == again
    assert len(np.unique(found["torch"])) > 5
    assert (found["openvino"] == found["torch"]).mean() >= 0.9999
    assert (found["onnx"] == found["torch"]).mean() >= 0.9999
    answer = medseg(
        "predict", "head-neck", scan, "--out", tmp_path / "onnx", "--runtime", "onnx", "--threads", 1, "--json"
    )
    assert answer.json["skipped"] == 1
    answer = medseg(
        "predict", "head-neck", scan, "--out", tmp_path / "onnx", "--runtime", "torch", "--threads", 1, "--json"
    )
    assert answer.json["skipped"] == 0, "another runtime may differ in a voxel"


def test_what_cannot_be_is_refused_before_work(tmp_path: Path, scan: Path, medseg) -> None:
    answer = medseg(
        "predict", "head-neck", scan, "--out", tmp_path / "out", "--runtime", "openvino", "--device", "cuda"
    )
    assert answer.exit_code == 2
    assert "computes on the CPU" in answer.stderr
    assert medseg("predict", "head-neck", scan, "--out", tmp_path / "out", "--runtime", "tensorflow").exit_code == 2
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_the_bundled_model_predicts_where_torch_is_not(tmp_path: Path, scan: Path, medseg) -> None:
    def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
        names = {name: value for name, value in os.environ.items() if name != "MEDSEG_RUNTIME"}
        environment = {**names, "MEDSEG_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    answer = without_torch("predict", "head-neck", scan, "--out", tmp_path / "without", "--threads", 1)
    assert answer.returncode == 0, answer.stderr
    assert (
        medseg("predict", "head-neck", scan, "--out", tmp_path / "with", "--runtime", "torch", "--threads", 1).exit_code
        == 0
    )
    assert (labels(tmp_path / "without") == labels(tmp_path / "with")).mean() >= 0.9999
    answer = without_torch("predict", "head-neck", scan, "--out", tmp_path / "torch", "--runtime", "torch")
    assert answer.returncode == 3
    assert "pip install torch" in answer.stderr
    answer = without_torch("predict", "head-neck", scan, "--out", tmp_path / "preview", "--preview")
    assert answer.returncode == 3
    assert "needs the module contourpy, which is not installed" in answer.stderr
    answer = without_torch("doctor")
    assert answer.returncode == 0, answer.stderr
    assert "torch MISSING" in answer.stdout


def test_bench_measures_every_runtime(scan: Path, run_folder: Path, sample: Path, medseg) -> None:
    answer = medseg("bench", run_folder, scan, "--threads", 1, "--tile-batch", 2, "--repeats", 1, "--json")
    assert answer.exit_code == 0, answer.stderr
    rows = answer.json["rows"]
    assert [row["runtime"] for row in rows] == ["torch", "openvino", "onnx"]
    for row in rows:
        assert row["error"] is None
        assert 0 < row["network_s"] <= row["total_s"]
        assert row["peak_memory_bytes"] > 2**26
        assert row["agreement"] >= 0.999
    assert rows[0]["agreement"] == 1
    answer = medseg("bench", run_folder, sample)
    assert answer.exit_code == 2
    assert "expected one scan, found 8" in answer.stderr


@pytest.mark.slow
def test_an_environment_of_the_wheel_and_its_runtime_only(tmp_path: Path, scan: Path, medseg) -> None:
    """Made as requirements/runtime.txt says; at most 600 MB."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([*pip, "-r", ROOT / "requirements" / "runtime.txt"], check=True)
    size = sum(path.lstat().st_size for path in (tmp_path / "venv").rglob("*") if path.is_file())
    assert size <= 600e6
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MEDSEG_RUNTIME")}
    command = [tmp_path / "venv" / "bin" / "medseg", "predict", "head-neck", scan, "--out", tmp_path / "without"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**environment, "MEDSEG_CACHE": str(tmp_path / "cache")})
    assert (
        medseg("predict", "head-neck", scan, "--out", tmp_path / "with", "--runtime", "torch", "--threads", 1).exit_code
        == 0
    )
    assert (labels(tmp_path / "without") == labels(tmp_path / "with")).mean() >= 0.9999
