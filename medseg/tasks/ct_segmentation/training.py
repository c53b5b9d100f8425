"""The training half of CT segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg.core.case import Dataset
from medseg.core.errors import CaseError
from medseg.core.labels import LabelSchema
from medseg.core.progress import Listener
from medseg.core.task import StepLoss, Validation
from medseg.data.augment.apply import Augmentation
from medseg.data.augment.spatial import mirror_axes
from medseg.data.cache import CaseCache
from medseg.data.cache_key import Preparation
from medseg.data.loader import PatchBatch, SamplePatchd, patch_batches
from medseg.data.plan import Plan
from medseg.inference.components import ComparedCase, ComponentChoice, choose_components, component_cases
from medseg.inference.description import ModelDescription
from medseg.inference.resolve import decide
from medseg.inference.runtimes.torch import TorchRuntime, make_probe
from medseg.inference.sliding import SlidingWindow, predict_logits
from medseg.losses.build import build_loss
from medseg.losses.deep import deep_loss
from medseg.metrics.overlap import channel_dice
from medseg.models.build import build_model
from medseg.models.transfer import output_axes, transfer_weights
from medseg.report.patches import draw_first_batches
from medseg.tasks.ct_segmentation.cases import Source, held_in_memory, prepared_cases
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.network import planned_network
from medseg.tasks.ct_segmentation.start import StartingPoint

VALIDATION_OVERLAP = 0.25
"""Overlap of windows when validating during training: half the windows of prediction's 0.5 for nearly the same Dice."""

VALIDATION_TILES = 4
"""Windows given to the network at once when validating: torch has a slow convolution for a single small one on the CPU."""

DRAWN_BATCHES = 3
"""Batches of the picture of augmented patches."""


@dataclass(frozen=True, eq=False)
class CtSegmentationTask:
    """Prepared cases, and how the network learns from them.

    Attributes:
        config: Of the run.
        schema: The dataset's structures.
        plan: Grid, patch, normalisation.
        training, validation: Prepared cases, in memory or read from the cache when they are needed.
        failed: Cases that could not be read, with the reason.
        cache: Holds on to its entries that this run uses.
        start: The trained network that goes on; None: a fresh one is trained.
    """

    config: CtSegmentationConfig
    schema: LabelSchema
    modalities: tuple[str, ...]
    plan: Plan
    training: tuple[Source, ...]
    validation: tuple[Source, ...]
    failed: Mapping[str, CaseError]
    cache: CaseCache
    start: StartingPoint | None = None

    @property
    def num_validation_cases(self) -> int:
        """How many cases validate."""
        return len(self.validation)

    @property
    def description(self) -> ModelDescription:
        """What the bundle will say of itself."""
        return ModelDescription(
            task=self.config.task,
            name=self.config.name,
            network=planned_network(self.config.network, self.plan),
            modalities=self.modalities,
            labels=self.schema,
            activation=self.config.loss.activation,
            plan=self.plan,
            mirror_axes=mirror_axes(self.config.augmentation),
        )

    def train_batches(self, start_step: int) -> Iterator[PatchBatch]:
        """Batches without end from a step on."""
        config, plan = self.config, self.plan
        augmentation = Augmentation(
            config.augmentation, self.schema.mirrored_classes, plan.spacing_ijk_mm, plan.normalisation
        )
        sampler = SamplePatchd(
            self.training, plan.patch_ijk, plan.batch_size, config.trainer.seed, config.sampling, augmentation
        )
        return patch_batches(sampler, config.loader, start_step)

    def build_model(self) -> nn.Module:
        """The network, freshly initialised, or as it was trained before where training starts from a bundle."""
        description, strides = self.description, self.plan.strides
        in_channels = len(description.modalities)
        network = build_model(description.network, in_channels, description.num_outputs, strides, self.plan.kernels)
        if self.start is not None:
            axes = output_axes(description.network, in_channels, strides)
            transfer_weights(network, self.start.weights, axes, self.start.kept_outputs(description))
        return network

    def loss(self, model: nn.Module, batch: PatchBatch) -> StepLoss:
        """The loss of a batch; what nobody annotated in a case, or decided in a voxel, does not count there."""
        return deep_loss(build_loss(self.config.loss, self.schema), model(batch.image), batch.classes, batch.annotated)

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Validation:
        """Mean over structures of each structure's mean Dice over its annotated cases, on the network's grid."""
        compared = self._compared(model, device, case_numbers)
        scores = [channel_dice(case.channels, case.classes, case.annotated, self.schema) for case in compared]
        return _validation(np.array(scores), self.schema)

    def choose_components(self, model: nn.Module, device: torch.device) -> ComponentChoice:
        """Which connected parts of each structure are worth keeping, by the validation cases.

        On the network's grid: volumes of parts are in ml, so what is chosen there holds on a file's grid.

        Args:
            model: The finished network.
            device: Where it runs.
        """
        numbers = component_cases(self.num_validation_cases)
        return choose_components(self._compared(model, device, numbers), self.schema)

    def _compared(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Iterator[ComparedCase]:
        """Validation cases, predicted on the network's grid, beside their references."""
        runtime = TorchRuntime(model, self.description.num_outputs, device)
        sliding = SlidingWindow(self.plan.patch_ijk, VALIDATION_OVERLAP, VALIDATION_TILES)
        for number in case_numbers:
            case = self.validation[number].prepared()
            assert case.classes is not None  # validation cases are labelled, see divide()
            logits = predict_logits(case.image, runtime, sliding)
            channels = decide(logits, self.description.decision)
            yield ComparedCase(channels, case.classes, case.annotated, case.geometry.voxel_volume_ml)

    def draw_first_batches(self, path: Path) -> None:
        """A picture of the first patches as the network sees them."""
        batches = list(islice(self.train_batches(0), DRAWN_BATCHES))
        images = [image.numpy() for batch in batches for image in batch.image]
        classes = [labels.numpy() for batch in batches for labels in batch.classes]
        draw_first_batches(path, images, classes, self.schema)

    def bundle(self, network: nn.Module) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Manifest, weights and probe of a bundle."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
        return self.description.model_dump(mode="json"), weights, make_probe(self.description, [weights])


def create(config: CtSegmentationConfig, dataset: Dataset, plan: Plan, listener: Listener) -> CtSegmentationTask:
    """Read and prepare the plan's cases.

    Raises:
        TrainingError: No training case can be read.
    """
    failed: dict[str, CaseError] = {}
    cache = CaseCache.open(config.cache)
    preparation = Preparation(dataset, plan.spacing_ijk_mm, plan.normalisation)
    memory_share = 0.0 if plan.cases_in_memory is False else config.cache.memory_share

    def prepared(ids: Sequence[str], stage: str) -> tuple[Source, ...]:
        chosen = [record for record in dataset.cases if record.id in set(ids)]
        return prepared_cases(chosen, preparation, cache, stage, listener, failed)

    return CtSegmentationTask(
        config=config,
        schema=dataset.labels,
        modalities=dataset.channels,
        plan=plan,
        training=held_in_memory(prepared(plan.training_cases, "preparing"), memory_share, listener),
        validation=prepared(plan.validation_cases, "preparing validation"),
        failed=failed,
        cache=cache,
        start=StartingPoint.open(config.start_from, plan.started_from) if config.start_from is not None else None,
    )


def _validation(scores: np.ndarray, schema: LabelSchema) -> Validation:
    """Scores are ``(cases, channels)``, NaN where there is none."""
    structures = scores[:, 1:]
    counts = (~np.isnan(structures)).sum(axis=0)
    sums = np.nansum(structures, axis=0)
    means = {name: float(s / n) if n else None for name, s, n in zip(schema.names, sums, counts, strict=True)}
    known = [mean for mean in means.values() if mean is not None]
    score = float(np.mean(known)) if known else 0.0
    return Validation(score, {"mean_dice": score, "dice": means})
