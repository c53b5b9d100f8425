from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medseg.engine.average import averaged_copy, decay_at, update_average
from medseg.engine.checkpoint import load_weights
from medseg.engine.config import TrainerConfig
from medseg.engine.state import start
from medseg.engine.tracking import read_log


def test_early_steps_keep_less_and_late_ones_the_decay() -> None:
    assert decay_at(0, 0.999) == pytest.approx(0.1)
    assert decay_at(190, 0.999) == pytest.approx(1 - 9 / 200)
    assert [decay_at(step, 0.999) for step in (8990, 100_000)] == [0.999, 0.999]
    assert [decay_at(step, 0.05) for step in (0, 5)] == [0.05, 0.05], "a small decay is never raised"


def test_after_a_short_run_little_is_left_of_the_first_weights() -> None:
    left = 1.0
    for step in range(200):
        left *= decay_at(step, 0.999)
    assert left < 1e-9


def test_it_is_the_average_that_torch_computes(line_task) -> None:
    network = line_task().build_model()
    average = averaged_copy(network)
    reference = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    reference.update_parameters(network)  # its first is a copy
    for _ in range(5):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        network.train()(torch.randn(8, 4))
        update_average(average, network, 0.9)
        reference.update_parameters(network)
    for ours, theirs in zip(average.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), network.buffers(), strict=True))
    assert not any(weight.requires_grad for weight in average.parameters())
    assert int(average[0].count) == 5


def test_the_average_validates_and_is_kept(tmp_path: Path, line_task, train_line) -> None:
    task = line_task()
    result = train_line(tmp_path, task=task)
    kept = load_weights(tmp_path / "checkpoints" / "best.safetensors")
    (validated,) = {id(model): model for model in task.validated}.values()
    assert result.best_step == 12
    assert all(torch.equal(kept[name], tensor) for name, tensor in validated.state_dict().items())
    whole = load_file(tmp_path / "checkpoints" / "best.safetensors")
    assert all(torch.equal(kept[name], whole[f"average.{name}"]) for name in kept)
    assert not torch.equal(whole["model.1.weight"], whole["average.1.weight"])


def test_without_an_average_the_last_weights_are_kept(tmp_path: Path, line_task, train_line) -> None:
    train_line(tmp_path, ema_decay=None)
    whole = load_file(tmp_path / "checkpoints" / "last.safetensors")
    kept = load_weights(tmp_path / "checkpoints" / "last.safetensors")
    assert not any(name.startswith("average.") for name in whole)
    assert all(torch.equal(kept[name], whole[f"model.{name}"]) for name in kept)
    state = start(line_task(), TrainerConfig(ema_decay=None), torch.device("cpu"))
    assert state.trained is state.network


def test_averaging_changes_nothing_else_of_the_training(tmp_path: Path, train_line) -> None:
    for name, decay in (("with", 0.999), ("without", None)):
        train_line(tmp_path / name, ema_decay=decay)
    first, second = (
        [json.dumps(entry["loss"]) for entry in read_log(tmp_path / name / "log.jsonl") if entry["kind"] == "step"]
        for name in ("with", "without")
    )
    assert first == second
