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
        config_type: ``module:Class`` of its config, a :class:`~medseg.core.config.ConfigBase`; torch-free.
        files: ``module:object`` of its torch-free half, a :class:`TaskFiles`.
        create: ``module:function`` that makes its training half.
        requires: Modules that must be importable.
    """

    name: str
    api_version: int
    summary: str
    config_type: str
    files: str
    create: str
    requires: tuple[str, ...] = ()


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

    def check_config(self, config: Any, dataset: Any) -> None:
        """Raise ConfigError where a valid config does not suit this dataset; before any work, reading no case."""
        ...

    def make_plan(self, config: Any, dataset: Any, listener: Listener) -> ConfigBase:
        """Fingerprint the training cases and decide what follows from them."""
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
        """Batches without end from a step on."""
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
