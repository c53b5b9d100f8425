"""A task small enough to train in a second, and with everything that could go wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.core.progress import silent
from medseg.core.task import StepLoss, Validation
from medseg.engine.config import AdamWConfig, TrainerConfig
from medseg.engine.schedule import RunLength
from medseg.engine.tracking import RunFolder
from medseg.engine.trainer import FitResult, fit

BATCH_SIZE = 8


@dataclass
class LineBatch:
    inputs: Tensor
    targets: Tensor
    step: int
    first: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> LineBatch:
        return self

    def part(self, start: int, stop: int) -> LineBatch:
        return LineBatch(self.inputs[start:stop], self.targets[start:stop], self.step, self.first + start)

    def origin(self, index: int) -> str:
        return f"line {self.first + index} of step {self.step}"


class LineTask:
    """Learns a line; has dropout, so that the random state matters, and running statistics, which a step changes.

    Args:
        broken: (step, entry) of inputs that are NaN; both counted from 0.
        steep: (step, entry) where the loss is finite and its gradient is not.
        most_at_once: Entries that fit into "memory".
        shortage: What says that they don't.
    """

    num_validation_cases = 2

    def __init__(
        self,
        broken: Collection[tuple[int, int]] = (),
        steep: Collection[tuple[int, int]] = (),
        most_at_once: int | None = None,
        shortage: Exception | None = None,
    ) -> None:
        self.broken, self.steep, self.most_at_once, self.shortage = broken, steep, most_at_once, shortage
        self.scores: Iterator[float] = iter(())
        self.sizes: list[int] = []
        self.validated: list[nn.Module] = []

    def train_batches(self, start_step: int) -> Iterator[LineBatch]:
        step = start_step
        while True:
            rng = torch.Generator().manual_seed(step)
            inputs = torch.randn(BATCH_SIZE, 4, generator=rng)
            targets = inputs.sum(dim=1, keepdim=True)
            for broken_step, entry in self.broken:
                if broken_step == step:
                    inputs[entry] = float("nan")
            yield LineBatch(inputs, targets, step)
            step += 1

    def build_model(self) -> nn.Module:
        return nn.Sequential(Statistics(), nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def loss(self, model: nn.Module, batch: LineBatch) -> StepLoss:
        outputs = model(batch.inputs).float()
        error = (outputs - batch.targets).square().mean()
        for step, entry in self.steep:
            if step == batch.step and batch.first <= entry < batch.first + len(batch):
                error = error + (0 * outputs[entry - batch.first]).square().sqrt().sum()  # 0, of gradient 0 / 0
        if self.most_at_once is not None and len(batch) > self.most_at_once:
            error.backward()  # it may run out anywhere, also when half of the gradients are there
            raise self.shortage or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.sizes.append(len(batch))
        return StepLoss(error, {"mse": error})

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Validation:
        self.validated.append(model)
        model.eval()
        rng = torch.Generator().manual_seed(99)
        inputs = torch.randn(64, 4, generator=rng)
        with torch.no_grad():
            score = -float((model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean())
        score = next(self.scores, score)
        return Validation(score, {"mean_dice": score, "dice": {"a": score}})


class Statistics(nn.Module):
    """Passes its input on; counts and averages what has passed in training, as batch normalisation does."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(inputs.mean(dim=0).float(), 0.1)
                self.count.add_(1)
        return inputs


@pytest.fixture
def line_task() -> type[LineTask]:
    """Makes the task."""
    return LineTask


@pytest.fixture
def train_line() -> Callable[..., FitResult]:
    """Trains it into a folder; further arguments change the trainer's config."""

    def run(folder: Path, num_steps: int = 12, *, resume: bool = False, listener=silent, task=None, **changes):
        config = TrainerConfig(optimizer=AdamWConfig(learning_rate=0.02), seed=3, **changes)
        length = RunLength(num_steps, validate_every=4, checkpoint_every=3)
        device = torch.device("cpu")
        return fit(task or LineTask(), config, length, RunFolder(folder), device, listener, resume=resume)

    return run
