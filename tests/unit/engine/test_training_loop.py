from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medseg.core.errors import CheckpointError
from medseg.core.progress import Progress, silent
from medseg.core.task import Batch, TrainableTask
from medseg.engine.config import AdamWConfig, MuonConfig, SGDConfig, TrainerConfig, ValidationConfig
from medseg.engine.precision import Precision
from medseg.engine.schedule import RunLength, learning_rate
from medseg.engine.state import restore, save, start
from medseg.engine.tracking import RunFolder, read_log
from medseg.engine.trainer import fit

CPU = torch.device("cpu")


def test_the_task_of_these_tests_is_one(line_task) -> None:
    assert isinstance(line_task(), TrainableTask)
    assert isinstance(next(line_task().train_batches(0)), Batch)


def test_training_learns_logs_and_keeps_the_best(tmp_path: Path, train_line) -> None:
    result = train_line(tmp_path, 60)
    assert result.ending == "finished"
    log = read_log(tmp_path / "log.jsonl")
    losses = [entry["loss"] for entry in log if entry["kind"] == "step"]
    assert len(losses) == 60
    assert sum(losses[-15:]) < 0.3 * sum(losses[:15])
    scores = {entry["step"]: entry["score"] for entry in log if entry["kind"] == "validation"}
    assert sorted(scores) == list(range(4, 61, 4))
    assert result.best_score == max(scores.values()) == scores[result.best_step]
    assert {"lr", "grad_norm", "mse", "seconds", "wait_s"} <= set(log[0])
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("stop_after", [1, 3, 5, 8])
def test_resuming_gives_the_very_same_weights(tmp_path: Path, train_line, stop_after: int) -> None:
    """Stopped in mid-run (by SIGTERM) and resumed: bit-identical to the uninterrupted run, log included."""
    train_line(tmp_path / "whole")

    def stop(event: Progress) -> None:
        if event.stage == "training" and event.done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    interrupted = train_line(tmp_path / "cut", listener=stop)
    assert interrupted.ending == "interrupted"
    assert interrupted.num_steps_done == stop_after
    resumed = train_line(tmp_path / "cut", resume=True)
    assert resumed.ending == "finished"
    for name in ("last", "best"):
        whole, cut = (load_file(tmp_path / place / "checkpoints" / f"{name}.safetensors") for place in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    entries = [
        [
            {key: value for key, value in entry.items() if key not in ("seconds", "wait_s")}
            for entry in read_log(tmp_path / place / "log.jsonl")
        ]
        for place in ("whole", "cut")
    ]
    assert entries[0] == entries[1]


def test_early_stop_waits_for_its_patience(tmp_path: Path, line_task, train_line) -> None:
    task = line_task()
    task.scores = iter([0.5, 0.4, 0.45, 0.9])
    result = train_line(tmp_path, 100, task=task, validation=ValidationConfig(patience=2))
    assert (result.ending, result.num_steps_done, result.best_score, result.best_step) == ("stopped early", 12, 0.5, 4)


def test_an_infinite_gradient_in_fp16_is_skipped_and_halves_the_scale() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    precision = Precision("fp16", "cpu")
    scale = precision.scaler.get_scale()
    before = network.weight.detach().clone()
    inputs = torch.ones(2, 4)

    def update(factor: float) -> float:
        optimizer.zero_grad(set_to_none=True)
        with precision.forward():
            loss = network(inputs).float().mean()
        precision.backward(loss * factor)
        norm = float(precision.gradient_norm(network, optimizer))
        precision.update(network, optimizer, norm, 12.0)
        return norm

    assert not math.isfinite(update(float("inf")))
    assert torch.equal(network.weight, before), "no weight has changed"
    assert precision.scaler.get_scale() == scale / 2
    assert 0 < update(1.0) < 100
    assert not torch.equal(network.weight, before), "training goes on"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig(), SGDConfig()])
def test_checkpoints_bring_back_everything(tmp_path: Path, line_task, precision: str, optimizer) -> None:
    config = TrainerConfig(precision=precision, optimizer=optimizer)
    length = RunLength(4, 2, 2)
    fit(line_task(), config, length, RunFolder(tmp_path), CPU, silent)
    state = start(line_task(), config, CPU)
    restore(tmp_path / "checkpoints" / "last.safetensors", state)
    assert state.step == 4
    save(tmp_path / "again.safetensors", state)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "checkpoints" / "last.safetensors").read_bytes()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path, line_task, train_line) -> None:
    train_line(tmp_path)
    path = tmp_path / "checkpoints" / "last.safetensors"
    state = start(line_task(), TrainerConfig(), CPU)
    for content in (b"", b"x" * 100, path.read_bytes()[:-50]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            restore(tmp_path / "bad.safetensors", state)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        restore(tmp_path / "none.safetensors", state)
    with pytest.raises(CheckpointError, match="another network"):
        restore(path, replace(state, network=nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match="another network"):
        restore(path, replace(state, average=nn.Linear(3, 2)))
    (tmp_path / "old.safetensors").write_bytes(
        path.read_bytes().replace(b'schema_version\\": 2', b'schema_version\\": 1')
    )
    with pytest.raises(CheckpointError, match="another version of medseg: start the run anew"):
        restore(tmp_path / "old.safetensors", state)


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


def test_the_learning_rate_rises_then_decays_as_a_polynomial() -> None:
    rates = [learning_rate(step, 100, 0.01, 4, 0.9) for step in range(100)]
    assert rates[:4] == pytest.approx([0.01 * (n + 1) / 5 * (1 - n / 100) ** 0.9 for n in range(4)])
    assert rates[4:] == pytest.approx([0.01 * (1 - n / 100) ** 0.9 for n in range(4, 100)])
    assert learning_rate(0, 5, 0.01, 100, 0.9) == pytest.approx(0.01), "a warm-up longer than the run is cut"


def test_validations_and_checkpoints_are_due_at_the_last_step_too() -> None:
    length = RunLength(10, 4, 3)
    assert [step for step in range(1, 11) if length.validates_after(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if length.saves_after(step)] == [3, 4, 6, 8, 9, 10]
