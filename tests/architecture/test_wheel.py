"""Wheel and source archive are complete, and the wheel works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


def shipped(folder: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / folder).as_posix() for path in files}


def test_the_wheel_holds_library_pipelines_sample_and_configs(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {f"medseg/{name}" for name in shipped("medseg")} <= names
    assert {f"pipelines/{name}" for name in shipped("pipelines")} <= names
    assert {f"medseg/resources/configs/{name}" for name in shipped("configs")} <= names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)


def test_the_source_archive_holds_what_make_needs(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "pyproject.toml", "requirements/constraints.txt", ".ci/run", "LICENSE", "NOTICE"} <= names
    assert {f"{folder}/{name}" for folder in ("configs", "tests", "docs") for name in shipped(folder)} <= names


def test_the_wheel_works_elsewhere(dist: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*pip, next(dist.glob("*.whl"))], check=True)
    program = "import medseg, pathlib; print(medseg.__file__); import pipelines.cli"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(site / "medseg" / "__init__.py")
    started = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pipelines.cli import app; app()",
            "init",
            "ct_segmentation",
            "--out",
            "config.yaml",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )
    assert started.returncode == 0
    assert (tmp_path / "config.yaml").stat().st_size > 0
