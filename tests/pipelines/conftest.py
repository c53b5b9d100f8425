"""A small trained run on the real sample, and the program as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

SMOKE = Path(__file__).parents[2] / "configs" / "ct_segmentation" / "smoke.yaml"


class Answer(NamedTuple):
    """What a command gave back."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@pytest.fixture(scope="session")
def medseg() -> Callable[..., Answer]:
    """Run a command in this process."""

    def invoke(*arguments: object) -> Answer:
        from pipelines.cli import app

        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture(scope="session")
def medseg_process() -> Callable[..., Answer]:
    """Run a command in a process of its own."""

    def run(*arguments: object, **options: Any) -> Answer:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def smoke() -> Path:
    """The smoke config."""
    return SMOKE


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, medseg: Callable[..., Answer], sample: Path) -> Path:
    """A finished smoke run."""
    folder = tmp_path_factory.mktemp("run") / "smoke"
    answer = medseg("train", SMOKE, "--data", sample, "--out", folder, "--set", "trainer.num_threads=1")
    assert answer.exit_code == 0, answer.stderr
    return folder
