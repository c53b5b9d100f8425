from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medseg.core.errors import CheckpointError, TrainingError
from medseg.core.progress import Progress, silent
from medseg.core.task import StepLoss, TrainableTask, Validation
from medseg.engine.checkpoint import load_checkpoint, save_checkpoint
from medseg.engine.config import AdamWConfig, SGDConfig, TrainerConfig, ValidationConfig
from medseg.engine.precision import Precision
from medseg.engine.schedule import RunLength, learning_rate
from medseg.engine.tracking import RunFolder, read_log
from medseg.engine.trainer import fit, start

CPU = torch.device("cpu")


@dataclass
class Batch:
    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        return self


class LineTask:
    """Learns a line; has dropout, so that the random state matters."""

    num_validation_cases = 2

    def __init__(self, broken_step: int | None = None) -> None:
        self.broken_step = broken_step
        self.scores = iter(())

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        step = start_step
        while True:
            rng = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 4, generator=rng)
            targets = inputs.sum(dim=1, keepdim=True)
            yield Batch(inputs * (float("nan") if step == self.broken_step else 1.0), targets)
            step += 1

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        error = (model(batch.inputs).float() - batch.targets).square().mean()
        return StepLoss(error, {"mse": error})

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Validation:
        model.eval()
        rng = torch.Generator().manual_seed(99)
        inputs = torch.randn(64, 4, generator=rng)
        with torch.no_grad():
            score = -float((model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean())
        score = next(self.scores, score)
        return Validation(score, {"mean_dice": score, "dice": {"a": score}})


def run(folder: Path, num_steps: int = 12, *, resume: bool = False, listener=silent, task=None, **changes):
    config = TrainerConfig(optimizer=AdamWConfig(learning_rate=0.02), seed=3, **changes)
    length = RunLength(num_steps, validate_every=4, checkpoint_every=3)
    return fit(task or LineTask(), config, length, RunFolder(folder), CPU, listener, resume=resume)


def test_the_task_of_these_tests_is_one() -> None:
    assert isinstance(LineTask(), TrainableTask)


def test_training_learns_logs_and_keeps_the_best(tmp_path: Path) -> None:
    result = run(tmp_path, 60)
    assert result.ending == "finished"
    log = read_log(tmp_path / "log.jsonl")
    losses = [entry["loss"] for entry in log if entry["kind"] == "step"]
    assert len(losses) == 60
    assert sum(losses[-15:]) < 0.3 * sum(losses[:15])
    scores = {entry["step"]: entry["score"] for entry in log if entry["kind"] == "validation"}
    assert sorted(scores) == list(range(4, 61, 4))
    assert result.best_score == max(scores.values()) == scores[result.best_step]
    assert {"lr", "grad_norm", "mse", "seconds"} <= set(log[0])
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("stop_after", [1, 3, 5, 8])
def test_resuming_gives_the_very_same_weights(tmp_path: Path, stop_after: int) -> None:
    """Stopped in mid-run (by SIGTERM) and resumed: bit-identical to the uninterrupted run, log included."""
    run(tmp_path / "whole")

    def stop(event: Progress) -> None:
        if event.stage == "training" and event.done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    interrupted = run(tmp_path / "cut", listener=stop)
    assert interrupted.ending == "interrupted"
    assert interrupted.num_steps_done == stop_after
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.ending == "finished"
    for name in ("last", "best"):
        whole, cut = (load_file(tmp_path / place / "checkpoints" / f"{name}.safetensors") for place in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    entries = [
        [
            {key: value for key, value in entry.items() if key != "seconds"}
            for entry in read_log(tmp_path / place / "log.jsonl")
        ]
        for place in ("whole", "cut")
    ]
    assert entries[0] == entries[1]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_word(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss is nan at step 6"):
        run(tmp_path, task=LineTask(broken_step=5))
    assert (tmp_path / "checkpoints" / "last.safetensors").exists()


def test_early_stop_waits_for_its_patience(tmp_path: Path) -> None:
    task = LineTask()
    task.scores = iter([0.5, 0.4, 0.45, 0.9])
    result = run(tmp_path, 100, task=task, validation=ValidationConfig(patience=2))
    assert (result.ending, result.num_steps_done, result.best_score, result.best_step) == ("stopped early", 12, 0.5, 4)


def test_an_infinite_gradient_in_fp16_is_skipped_and_halves_the_scale() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    precision = Precision("fp16", "cpu")
    scale = precision.scaler.get_scale()
    before = network.weight.detach().clone()
    inputs = torch.ones(2, 4)
    with precision.forward():
        loss = network(inputs).float().mean()
    norm = precision.step(loss * float("inf"), network, optimizer, 12.0)
    assert not math.isfinite(norm)
    assert torch.equal(network.weight, before), "no weight has changed"
    assert precision.scaler.get_scale() == scale / 2
    with precision.forward():
        loss = network(inputs).float().mean()
    assert 0 < precision.step(loss, network, optimizer, 12.0) < 100
    assert not torch.equal(network.weight, before), "training goes on"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", [AdamWConfig(), SGDConfig()])
def test_checkpoints_bring_back_everything(tmp_path: Path, precision: str, optimizer) -> None:
    config = TrainerConfig(precision=precision, optimizer=optimizer)
    length = RunLength(4, 2, 2)
    fit(LineTask(), config, length, RunFolder(tmp_path), CPU, silent)
    state = start(LineTask(), config, CPU)
    progress = load_checkpoint(
        tmp_path / "checkpoints" / "last.safetensors", state.network, state.optimizer, state.precision
    )
    assert progress["step"] == 4
    save_checkpoint(tmp_path / "again.safetensors", state.network, state.optimizer, state.precision, progress)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "checkpoints" / "last.safetensors").read_bytes()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints" / "last.safetensors"
    state = start(LineTask(), TrainerConfig(), CPU)
    for content in (b"", b"x" * 100, path.read_bytes()[:-50]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "bad.safetensors", state.network, state.optimizer, state.precision)
    with pytest.raises(CheckpointError, match="another network"):
        load_checkpoint(path, nn.Linear(3, 2), state.optimizer, state.precision)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors", state.network, state.optimizer, state.precision)


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
