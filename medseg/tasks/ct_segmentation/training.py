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

from medseg.core.case import Dataset, PreparedCase
from medseg.core.errors import CaseError
from medseg.core.labels import LabelSchema
from medseg.core.progress import Listener
from medseg.core.task import StepLoss, Validation
from medseg.data.loader import PatchBatch, SamplePatchd, patch_batches
from medseg.data.plan import Plan
from medseg.data.prepare import prepare
from medseg.data.source import MemorySource
from medseg.inference.description import ModelDescription
from medseg.inference.resolve import decide
from medseg.inference.runtimes.torch import TorchRuntime
from medseg.inference.sliding import SlidingWindow, predict_logits
from medseg.losses.build import build_loss
from medseg.metrics.overlap import channel_dice
from medseg.models.build import build_model
from medseg.report.patches import draw_first_batches
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.files import readable

VALIDATION_OVERLAP = 0.25
"""Overlap of windows when validating during training: half the windows of prediction's 0.5 for nearly the same Dice."""

DRAWN_BATCHES = 3
"""Batches of the picture of augmented patches."""

PROBE_SEED = 0
"""Of the small input that a bundle carries with its logits."""


@dataclass(frozen=True, eq=False)
class CtSegmentationTask:
    """Prepared cases, and how the network learns from them.

    Attributes:
        config: Of the run.
        schema: The dataset's structures.
        plan: Grid, patch, normalisation.
        training, validation: Prepared cases.
        failed: Cases that could not be read, with the reason.
    """

    config: CtSegmentationConfig
    schema: LabelSchema
    modalities: tuple[str, ...]
    plan: Plan
    training: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    failed: Mapping[str, CaseError]

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
            network=self.config.network,
            modalities=self.modalities,
            labels=self.schema,
            activation=self.config.loss.activation,
            plan=self.plan,
        )

    def train_batches(self, start_step: int) -> Iterator[PatchBatch]:
        """Batches without end from a step on."""
        config = self.config
        sources = [MemorySource(case) for case in self.training]
        sampler = SamplePatchd(sources, self.plan.patch_ijk, self.plan.batch_size, config.trainer.seed, config.sampling)
        return patch_batches(
            sampler, config.augmentation, self.schema.mirrored_classes, config.loader, start_step=start_step
        )

    def build_model(self) -> nn.Module:
        """The network, freshly initialised."""
        description = self.description
        return build_model(description.network, len(description.modalities), description.num_outputs, self.plan.strides)

    def loss(self, model: nn.Module, batch: PatchBatch) -> StepLoss:
        """The loss of a batch; what nobody annotated in a case, or decided in a voxel, does not count there."""
        result: StepLoss = build_loss(self.config.loss, self.schema)(model(batch.image), batch.classes, batch.annotated)
        return result

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Sequence[int]) -> Validation:
        """Mean over structures of each structure's mean Dice over its annotated cases, on the network's grid."""
        runtime = TorchRuntime(model, self.description.num_outputs, device)
        sliding = SlidingWindow(self.plan.patch_ijk, VALIDATION_OVERLAP)
        scores = []
        for number in case_numbers:
            case = self.validation[number]
            assert case.classes is not None  # validation cases are labelled, see divide()
            logits = runtime.to_numpy(predict_logits(case.image, runtime, sliding))
            channels = decide(logits, self.description.decision)
            scores.append(channel_dice(channels, case.classes, case.annotated, self.schema))
        return _validation(np.array(scores), self.schema)

    def draw_first_batches(self, path: Path) -> None:
        """A picture of the first patches as the network sees them."""
        batches = list(islice(self.train_batches(0), DRAWN_BATCHES))
        images = [image.numpy() for batch in batches for image in batch.image]
        classes = [labels.numpy() for batch in batches for labels in batch.classes]
        draw_first_batches(path, images, classes, self.schema)

    def probe(self, network: nn.Module) -> dict[str, np.ndarray]:
        """A small input and the logits that the network gives for it, on the CPU."""
        size = np.prod(np.array(self.plan.strides), axis=0) * 2
        rng = np.random.default_rng(PROBE_SEED)
        image = rng.standard_normal((1, len(self.modalities), *size), dtype=np.float32)
        runtime = TorchRuntime(network, self.description.num_outputs, torch.device("cpu"))
        return {"image": image, "logits": runtime.to_numpy(runtime(image))}

    def bundle(self, network: nn.Module) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Manifest, weights and probe of a bundle."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
        return self.description.model_dump(mode="json"), weights, self.probe(network)


def create(config: CtSegmentationConfig, dataset: Dataset, plan: Plan, listener: Listener) -> CtSegmentationTask:
    """Read and prepare the plan's cases.

    Raises:
        TrainingError: No training case can be read.
    """
    failed: dict[str, CaseError] = {}

    def prepared(ids: Sequence[str], stage: str) -> tuple[PreparedCase, ...]:
        chosen = [record for record in dataset.cases if record.id in set(ids)]
        cases = readable(chosen, dataset, stage, listener, failed)
        return tuple(prepare(case, dataset.labels, plan.spacing_ijk_mm, plan.normalisation) for case in cases)

    return CtSegmentationTask(
        config=config,
        schema=dataset.labels,
        modalities=dataset.channels,
        plan=plan,
        training=prepared(plan.training_cases, "preparing"),
        validation=prepared(plan.validation_cases, "preparing validation"),
        failed=failed,
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
