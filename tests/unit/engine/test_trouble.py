"""Numbers that are not finite, and memory that runs out: got over once, and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg.core.errors import ResourceError, TrainingError
from medseg.engine import trouble
from medseg.engine.config import AdamWConfig, SGDConfig, TrainerConfig
from medseg.engine.schedule import RunLength
from medseg.engine.state import restore, save, start
from medseg.engine.tracking import read_log
from medseg.engine.trainer import train_step
from medseg.engine.trouble import is_out_of_memory

CPU = torch.device("cpu")
LENGTH = RunLength(12, 4, 3)


def tensors(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"{name}.safetensors")


def entries(folder: Path, kind: str) -> list[dict]:
    return [entry for entry in read_log(folder / "log.jsonl") if entry["kind"] == kind]


@pytest.mark.parametrize(("fault", "what"), [("broken", "loss is nan"), ("steep", "gradient's norm is nan")])
def test_what_is_not_finite_is_located_and_survived_once(tmp_path: Path, line_task, train_line, fault, what) -> None:
    told: list[str] = []
    task = line_task(**{fault: [(5, 3)]})
    result = train_line(tmp_path, task=task, listener=lambda event: told.append(event.message))
    assert (result.ending, result.num_steps_done) == ("finished", 12)
    (entry,) = entries(tmp_path, "nonfinite")
    assert entry == {"kind": "nonfinite", "step": 6, "what": what, "origins": ["line 3 of step 5"]}
    assert f"the {what} at step 6 (line 3 of step 5): this step is skipped" in told
    assert [entry["step"] for entry in entries(tmp_path, "step")] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(tmp_path).values())


@pytest.mark.parametrize("fault", ["broken", "steep"])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_skipped_step_changes_nothing(line_task, fault: str, micro_batch_size) -> None:
    task = line_task(**{fault: [(2, 7)]})
    config = TrainerConfig(micro_batch_size=micro_batch_size)
    state, batches = start(task, config, CPU), task.train_batches(0)
    for _ in range(2):
        train_step(task, state, next(batches), config, LENGTH, CPU)
    networks = (state.network, state.average)
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    moments = [value.clone() for values in state.optimizer.state.values() for value in values.values()]
    report = train_step(task, state, next(batches), config, LENGTH, CPU)
    assert report.values is None
    assert [found.values["origins"] for found in report.troubles] == [["line 7 of step 2"]]
    for network, kept in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())
    after = [value for values in state.optimizer.state.values() for value in values.values()]
    assert all(torch.equal(first, second) for first, second in zip(moments, after, strict=True))
    assert state.step == 3


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_one_ends_the_run_and_names_both(tmp_path: Path, line_task, train_line, resumed: bool) -> None:
    task = line_task(broken=[(1, 0), (7, 4), (7, 5)])
    if resumed:
        train_line(tmp_path, 4, task=task)
    with pytest.raises(TrainingError) as raised:
        train_line(tmp_path, task=task, resume=resumed)
    assert raised.value.exit_code == 5
    assert "at step 2 (line 0 of step 1); the loss is nan at step 8 (line 4 of step 7; line 5 of step 7)" in str(
        raised.value
    )
    assert [entry["step"] for entry in entries(tmp_path, "nonfinite")] == [2, 8], "the second is in the log too"


def test_after_many_good_steps_another_is_forgiven(tmp_path: Path, line_task, train_line, monkeypatch) -> None:
    task = line_task(broken=[(1, 0), (7, 4)])
    monkeypatch.setattr(trouble, "QUIET_STEPS", 6)
    assert train_line(tmp_path / "apart", task=task).ending == "finished"
    monkeypatch.setattr(trouble, "QUIET_STEPS", 7)
    with pytest.raises(TrainingError):
        train_line(tmp_path / "close", task=task)


def test_where_none_is_at_fault_alone_all_are_named(tmp_path: Path, line_task, train_line) -> None:
    class Together(line_task):
        def loss(self, model, batch):
            result = super().loss(model, batch)
            return replace(result, total=result.total * float("inf")) if len(batch) == 8 and batch.step == 4 else result

    train_line(tmp_path, task=Together())
    (entry,) = entries(tmp_path, "nonfinite")
    assert entry["origins"] == [f"line {index} of step 4" for index in range(8)]


def test_an_overflow_of_fp16_is_the_scalers(tmp_path: Path, line_task, train_line) -> None:
    """Its gradients are infinite where the loss is not: the scale is halved, nobody is told."""
    train_line(tmp_path, task=line_task(steep=[(3, 1), (4, 1), (5, 1)]), precision="fp16")
    assert entries(tmp_path, "nonfinite") == []
    steps = entries(tmp_path, "step")
    overflowed = [entry["step"] for entry in steps if entry["grad_norm"] is None]
    assert [step for step in overflowed if step > 3] == [4, 5, 6]
    train_line(tmp_path / "loss", task=line_task(broken=[(3, 1)]), precision="fp16")
    assert [entry["origins"] for entry in entries(tmp_path / "loss", "nonfinite")] == [["line 1 of step 3"]]


def test_fp16_that_overflows_at_any_scale_is_a_trouble(line_task) -> None:
    task = line_task(steep=[(0, 6)])
    config = TrainerConfig(precision="fp16")
    state = start(task, config, CPU)
    state.precision.load_state({**state.precision.state(), "scale": 0.5})
    report = train_step(task, state, next(task.train_batches(0)), config, LENGTH, CPU)
    assert report.values is None
    assert report.troubles[0].values["origins"] == ["line 6 of step 0"]


NO_CPU_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("shortage", [None, NO_CPU_MEMORY, MemoryError("Unable to allocate 728. TiB")])
def test_memory_that_runs_out_halves_the_micro_batch_for_good(tmp_path: Path, line_task, train_line, shortage) -> None:
    """Bit-identical to a run that had the small micro batch from the start: the repeated step leaves no trace."""
    told: list[str] = []
    small = line_task(most_at_once=2, shortage=shortage)
    train_line(tmp_path / "short", task=small, listener=lambda event: told.append(event.message))
    train_line(tmp_path / "given", micro_batch_size=2)
    assert small.sizes == [2] * 4 * 12
    for name in ("last", "best"):
        short, given = tensors(tmp_path / "short", name), tensors(tmp_path / "given", name)
        assert short.keys() == given.keys()
        assert all(torch.equal(short[key], given[key]) for key in short)
    assert [(entry["step"], entry["micro_batch_size"]) for entry in entries(tmp_path / "short", "memory")] == [
        (1, 4),
        (1, 2),
    ]
    assert [message for message in told if "out of memory" in message] == [
        f"step 1: out of memory with {size} patches at once; it is repeated with {size // 2}, as are all later steps; "
        "the batch stays 8"
        for size in (8, 4)
    ]


def test_the_smaller_micro_batch_survives_a_resume(tmp_path: Path, line_task, train_line) -> None:
    task = line_task(most_at_once=3)
    train_line(tmp_path / "whole", task=task)
    train_line(tmp_path / "cut", 8, task=task)
    train_line(tmp_path / "cut", task=line_task(), resume=True)  # with all memory in the world
    state = start(line_task(), TrainerConfig(), CPU)
    restore(tmp_path / "cut" / "checkpoints" / "last.safetensors", state)
    assert state.micro_batch_size == 2
    assert len(entries(tmp_path / "cut", "memory")) == 2


def test_where_not_even_one_fits_the_error_says_what_to_do(tmp_path: Path, line_task, train_line) -> None:
    with pytest.raises(
        ResourceError, match=r"one patch alone does not fit.*smaller plan.patch_ijk.*--memory"
    ) as raised:
        train_line(tmp_path, task=line_task(most_at_once=0))
    assert raised.value.exit_code == 7


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path, line_task, train_line) -> None:
    task = line_task(most_at_once=3, shortage=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        train_line(tmp_path, task=task)
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**14)
    assert is_out_of_memory(raised.value), "what torch really says on this machine"


@pytest.mark.parametrize("optimizer", [AdamWConfig(), SGDConfig(momentum=0.9)])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 7, 8, 100])
def test_parts_give_the_gradient_of_the_whole(line_task, micro_batch_size: int, optimizer) -> None:
    """Of a loss that is a mean over entries; dropout, which draws anew for each part, is off."""
    results = []
    for size in (None, micro_batch_size):
        task = line_task()
        config = TrainerConfig(micro_batch_size=size, optimizer=optimizer, clip_norm=0.5)
        state, batches = start(task, config, CPU), task.train_batches(0)
        state.network[2].p = 0.0
        reports = [train_step(task, state, next(batches), config, LENGTH, CPU) for _ in range(5)]
        results.append(([report.values for report in reports], dict(state.trained.named_parameters()), task.sizes))
    (whole, weights, _), (parts, weights_of_parts, sizes) = results
    assert max(sizes) == min(micro_batch_size, 8)
    assert sum(sizes) == 5 * 8
    for first, second in zip(whole, parts, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["mse"] == pytest.approx(first["mse"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(weights_of_parts[name], weight, rtol=1e-3, atol=1e-5)


def test_time_is_counted_by_stage_over_all_commands(tmp_path: Path, line_task, train_line) -> None:
    first = train_line(tmp_path, 4)
    second = train_line(tmp_path, 12, resume=True)
    assert set(second.seconds) == {"loading", "steps", "validation", "checkpoints"}
    assert all(second.seconds[stage] > 0 for stage in second.seconds)
    assert second.seconds["steps"] > second.train_s * 0.01
    assert sum(second.seconds.values()) < first.train_s + second.train_s
    steps = entries(tmp_path, "step")
    assert sum(entry["seconds"] for entry in steps) <= second.seconds["steps"]
    assert sum(entry["wait_s"] for entry in steps) == pytest.approx(second.seconds["loading"], rel=1e-3)


def test_a_state_saved_and_restored_is_the_same(tmp_path: Path, line_task) -> None:
    state = start(line_task(), TrainerConfig(), CPU)
    state.step, state.micro_batch_size, state.nonfinite = 7, 2, [{"step": 3, "what": "w", "origins": ["o"]}]
    save(tmp_path / "a.safetensors", state)
    other = start(line_task(), TrainerConfig(), CPU)
    restore(tmp_path / "a.safetensors", other)
    save(tmp_path / "b.safetensors", other)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (other.step, other.micro_batch_size, other.nonfinite) == (7, 2, state.nonfinite)
