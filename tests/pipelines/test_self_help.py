"""Training that helps itself, on real scans and through the program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from medseg.tasks.ct_segmentation.training import CtSegmentationTask


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry for entry in log if entry["kind"] == kind]


@pytest.fixture
def change_loss(monkeypatch: pytest.MonkeyPatch):
    """Let a function see every loss before the engine does: ``change(batch, result) -> result``."""

    def install(change) -> None:
        loss = CtSegmentationTask.loss
        monkeypatch.setattr(
            CtSegmentationTask, "loss", lambda task, model, batch: change(batch, loss(task, model, batch))
        )

    return install


def test_a_broken_patch_and_too_little_memory_are_got_over(
    tmp_path: Path, sample: Path, smoke: Path, medseg, change_loss
) -> None:
    """Only one patch at once fits, and the loss of the first that is ever seen is NaN: the run ends as if it had been asked
    to take one at once, one step poorer."""
    sizes: list[int] = []
    broken: list[str] = []

    def change(batch, result):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        sizes.append(len(batch))
        broken[:] = broken or [batch.origin(0)]
        return replace(result, total=result.total * float("nan")) if batch.origin(0) == broken[0] else result

    change_loss(change)
    options = ["--set", "trainer.batch_size=3", "--json"]
    answer = medseg("train", smoke, "--data", sample, "--out", tmp_path / "run", *options)
    assert answer.exit_code == 0, answer.stderr
    told = " ".join(answer.stderr.split())
    assert [entry["micro_batch_size"] for entry in entries(tmp_path / "run", "memory")] == [2, 1]
    assert "out of memory with 3 patches at once" in told
    (entry,) = entries(tmp_path / "run", "nonfinite")
    assert (entry["step"], entry["what"], entry["origins"]) == (1, "loss is nan", broken)
    assert f"the loss is nan at step 1 ({broken[0]}): this step is skipped" in told
    assert broken[0].startswith("case pt_")
    assert [entry["step"] for entry in entries(tmp_path / "run", "step")] == [2, 3, 4, 5, 6]
    assert len(sizes) == 3 * 6 + 3, "three parts a step, and each patch of the skipped one alone"


def test_a_network_that_diverges_ends_with_exit_5_and_both_places(
    tmp_path: Path, sample: Path, smoke: Path, medseg
) -> None:
    options = ["--set", "trainer.optimizer.learning_rate=1e38", "--set", "trainer.clip_norm=null"]
    answer = medseg("train", smoke, "--data", sample, "--out", tmp_path / "run", *options)
    assert answer.exit_code == 5
    steps = [entry["step"] for entry in entries(tmp_path / "run", "nonfinite")]
    assert len(steps) == 2
    assert all(f"at step {step} (case pt_" in " ".join(answer.stderr.split()) for step in steps)
    assert not (tmp_path / "run" / "bundle").exists()


def test_the_averaged_weights_are_the_bundle_and_time_is_told_by_stage(run_folder: Path) -> None:
    bundle = load_file(run_folder / "bundle" / "model.safetensors")
    best = load_file(run_folder / "checkpoints" / "best.safetensors")
    assert all(np.array_equal(bundle[name], best[f"average.{name}"]) for name in bundle)
    assert not all(np.array_equal(bundle[name], best[f"model.{name}"]) for name in bundle)
    seconds = json.loads((run_folder / "report.json").read_text())["seconds"]
    assert {"loading", "steps", "validation", "checkpoints"} <= set(seconds)
    steps = entries(run_folder, "step")
    assert sum(entry["wait_s"] for entry in steps) == pytest.approx(seconds["loading"], abs=0.06)
    assert sum(entry["seconds"] for entry in steps) == pytest.approx(seconds["steps"], abs=0.3)


@pytest.mark.slow
def test_patches_do_not_keep_the_network_waiting(tmp_path: Path, sample: Path, smoke: Path, medseg_process) -> None:
    options = ["--data", sample, "--set", "trainer.length.num_steps=60", "--set", "trainer.num_threads=1"]
    answer = medseg_process("train", smoke, "--out", tmp_path / "run", *options, "--json")
    assert answer.exit_code == 0, answer.stderr
    seconds = answer.json["seconds"]
    assert seconds["loading"] <= 0.05 * sum(seconds.values()), seconds
