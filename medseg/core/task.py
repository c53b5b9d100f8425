"""What the engine and the pipelines know of a task: two protocols and a small description.

A task has two halves. The torch-free half reads and writes files. The other half trains. A task's package names both
in a :class:`TaskSpec`, which imports neither, and registers it under the entry-point group ``medseg.tasks``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from medseg.core.config import ConfigBase
from medseg.core.findings import Finding
from medseg.core.progress import Listener

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

API_VERSION = 0
"""0 until the sibling tasks have landed: the contract may still change."""


@dataclass(frozen=True)
class TaskSpec:
    """What a task says of itself without importing anything heavy.

    Attributes:
        name: As configs and bundles name it.
        api_version: Of this protocol that it was written for.
        summary: One sentence for ``medseg tasks``.
        config_type: ``module:Class`` of its config, a :class:`~medseg.core.config.ConfigBase` with ``name``, ``dataset``,
            ``start_from``, ``splits`` and ``trainer``; torch-free.
        files: ``module:object`` of its torch-free half, a :class:`TaskFiles`.
        create: ``module:function`` that makes its training half.
        fit_plan: ``module:function`` that suits a plan to the time, memory and device at hand, where the task can do that: it
            takes config, dataset, plan, :class:`Limits` and a listener, and gives a plan.
        requires: Modules that must be importable.
    """

    name: str
    api_version: int
    summary: str
    config_type: str
    files: str
    create: str
    fit_plan: str | None = None
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a training must make do with.

    Attributes:
        budget_s: Wall clock of the whole command [s]; None: as long as it takes.
        memory_bytes: Most that training may take [bytes]; None: what is free.
        device: As in the config, or the name of a machine that is not here.
        started: ``time.monotonic()`` when the command began.
    """

    budget_s: float | None
    memory_bytes: int | None
    device: str
    started: float


@runtime_checkable
class TaskFiles(Protocol):
    """The torch-free half of a task."""

    def recognises(self, path: Path) -> bool:
        """Whether a path looks like a dataset of this task."""
        ...

    def read_dataset(self, path: Path) -> Any:
        """A dataset's description; raises ConfigError."""
        ...

    def read_images(self, folder: Path) -> Any:
        """The images in a folder as a dataset without labels, to be checked; raises ConfigError where there is none."""
        ...

    def check(self, dataset: Any, num_workers: int | None, allow: Collection[str], listener: Listener) -> list[Finding]:
        """Find the defects of a dataset; those with an allowed code as warnings. No workers given: one a processor."""
        ...

    def draw_findings(self, path: Path, findings: Sequence[Finding], dataset: Any) -> None:
        """One HTML page with a small picture of each place where something was found."""
        ...

    def evaluate_bundle(
        self, bundle: Path, dataset: Any, out: Path, device: str, num_at_least: int, limit_s: float, listener: Listener
    ) -> Any:
        """Predict and score the validation cases of a run's bundle, with pictures of the worst in ``out/figures``.

        At least ``num_at_least`` of them, and no further one after ``limit_s`` seconds. None where no case validates.
        """
        ...

    def complete_config(self, config: Any) -> Any:
        """The config with what a trained network that it starts from decides; itself where it starts afresh."""
        ...

    def check_config(self, config: Any, dataset: Any) -> None:
        """Raise ConfigError where a valid config does not suit this dataset; before any work, reading no case."""
        ...

    def make_plan(self, config: Any, dataset: Any, listener: Listener) -> ConfigBase:
        """Fingerprint the training cases and decide what follows from them."""
        ...

    def divide_plan(self, plan: Any, config: Any, dataset: Any) -> Any:
        """A plan made elsewhere with the training and validation cases of this config's fold."""
        ...


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step: what is minimised, and the named terms it is made of."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """How good the network is on validation cases.

    Attributes:
        score: What decides which network is best; larger is better.
        values: Everything worth logging, plain numbers, one level of nesting allowed.
    """

    score: float
    values: Mapping[str, Any]


@runtime_checkable
class Batch(Protocol):
    """What a network learns from in one step. The engine moves it, divides it, and asks where it comes from."""

    def __len__(self) -> int:
        """Patches, pictures or clips in it."""
        ...

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        ...

    def part(self, start: int, stop: int) -> Batch:
        """Its entries ``start`` to ``stop``, as a batch of their own."""
        ...

    def origin(self, index: int) -> str:
        """Where an entry comes from, for people: ``case HN-12, patch at 10, 20, 30``."""
        ...


@runtime_checkable
class TrainableTask(Protocol):
    """The training half of a task. Device, precision, clipping and checkpoints are the engine's."""

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """Batches without end from a step on.

        They are made in a thread beside the training step, so randomness comes from generators of their own: torch's
        global one belongs to the step.
        """
        ...

    def build_model(self) -> nn.Module:
        """The network, freshly initialised."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> StepLoss:
        """The loss of a batch. It takes the model because some networks compute their losses inside."""
        ...

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Validation:
        """Try the network on some of the validation cases."""
        ...

    @property
    def num_validation_cases(self) -> int:
        """How many there are; 0 where nothing is set aside."""
        ...
