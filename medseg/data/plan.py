"""The plan: everything that is decided once from the data and the machine, as plain numbers. No torch.

It is written to ``plan.json``, goes into the bundle, and a resumed run reads it instead of deciding again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from medseg.core.config import ConfigBase, validated
from medseg.core.geometry import Shape3, Spacing3
from medseg.core.units import MAX_SPACING_MM, MIN_SPACING_MM, MM3_PER_ML
from medseg.data.config import (
    NnunetPreparation,
    NonzeroZScoreNormalisation,
    Normalisation,
    PlanChoices,
    WindowNormalisation,
    ZScoreNormalisation,
)
from medseg.data.fingerprint import Fingerprint
from medseg.data.topology import SMALLEST_MAP, StageRule, fixed_strides
from medseg.io.config import read_yaml

ANISOTROPIC_RATIO = 3.0
"""An axis this much coarser than the finest gets its 10th percentile instead of its median. nnU-Net's rule."""

MIN_VOXELS_THICK = 2.0
"""A structure thinner than this on the network's grid gets a finer grid, as far as the finest tenth of the cases goes: below
two voxels a mask and its neighbour's cannot both be drawn."""

FEW_VOXELS_THICK = 3.0
"""Below this a structure is told of, and the planner considers no coarser grid: taken to a grid of 2.9 voxels and back, the
references of spinal cords and esophagi keep a Dice of .94, of 2.1 voxels .82 (benchmarks/planner_predictions.py --grids)."""

USUAL_PATCH_VOXELS = 64**3
"""Of a patch where neither the config nor a planner that has measured the machine says otherwise."""

USUAL_BATCH_SIZE = 2
"""The same for patches a step: the smallest batch, which makes the most steps."""

MAX_PATCH_VOXELS = 2**28
"""More do not fit into any machine: a plan that asks for them is damaged."""


def _possible_patch(patch_ijk: Shape3) -> Shape3:
    if min(patch_ijk) < 1 or np.prod(patch_ijk, dtype=object) > MAX_PATCH_VOXELS:
        raise ValueError(f"expected at least one voxel along each axis and at most {MAX_PATCH_VOXELS} in all")
    return patch_ijk


Spacing = Annotated[float, Field(ge=MIN_SPACING_MM, le=MAX_SPACING_MM)]


class StructureFacts(ConfigBase):
    """What the plan knows of a structure."""

    num_annotated: int
    """Training cases in which somebody looked for it."""
    num_found: int
    """Training cases with at least one voxel of it."""
    median_volume_ml: float | None
    """Over the cases where it was found."""
    median_thickness_mm: float | None
    """Diameter of the largest ball that fits inside, over these cases."""
    percentiles: tuple[tuple[float, float, float], ...] = ()
    """0.5, 50 and 99.5 percentile of each image channel inside it."""


class DataFacts(ConfigBase):
    """The fingerprint of the training cases, in the few numbers that decisions follow from; axes R, A, S."""

    num_cases: int
    """That could be read."""
    median_spacing_mm: tuple[float, float, float]
    """Along each axis."""
    median_extent_mm: tuple[float, float, float]
    """Of the cases, along each axis."""
    total_volume_ml: float
    """Of all cases together, air included."""
    structures: dict[str, StructureFacts]
    """By name."""
    left_right: tuple[tuple[str, str], ...] = ()
    """Structures that change places when the patient is mirrored."""


class Candidate(ConfigBase):
    """A plan that was weighed against others."""

    spacing_ijk_mm: tuple[Spacing, Spacing, Spacing]
    """Of the network's grid."""
    patch_ijk: Annotated[Shape3, AfterValidator(_possible_patch)]
    """In voxels."""
    strides: tuple[Shape3, ...]
    """Into each stage."""
    kernels: tuple[Shape3, ...] | None = None
    """Of each stage; null: 3 along every axis."""
    features: tuple[int, ...] | None = None
    """Of each stage; null where the config says them."""
    batch_size: int
    """Patches a step."""
    num_steps: int
    """That fit into the budget."""
    seconds_per_step: float
    """Predicted [s]."""
    peak_bytes: int
    """Of memory, predicted."""
    expected_dice: float
    """What remains of 1 after the losses; for comparison only."""
    losses: dict[str, float]
    """Of Dice, by reason."""


class StartedFrom(ConfigBase):
    """A bundle that is trained further."""

    name: str
    """What it calls itself."""
    hash: str
    """SHA-256 of its bundle.json."""


class Plan(ConfigBase):
    """What training and prediction share.

    ``num_steps`` and ``validate_every`` are null until the machine was measured or the config gave them.
    """

    spacing_ijk_mm: tuple[Spacing, Spacing, Spacing]
    """Of the network's grid along R, A, S."""
    patch_ijk: Annotated[Shape3, AfterValidator(_possible_patch)]
    """Patch and sliding window, in voxels of the network's grid."""
    strides: tuple[Shape3, ...]
    """Stride into each stage of the network, the stem's first."""
    kernels: tuple[Shape3, ...] | None = None
    """Kernel of each stage; null: 3 along every axis."""
    features: tuple[int, ...] | None = None
    """Channels of each stage; null where the config says them."""
    normalisation: tuple[Normalisation, ...]
    """One for each image channel."""
    preparation: NnunetPreparation | None = None
    """How scans come onto the network's grid, where the network was not trained by medseg; null: medseg's way."""
    batch_size: int = Field(ge=1)
    """Patches a step."""
    num_steps: int | None = None
    """Steps of the whole schedule."""
    validate_every: int | None = None
    """Steps between two validations."""
    seconds_per_step: float | None = None
    """As measured on this machine before the number of steps was frozen."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic of the forward pass; null where the config says it."""
    cases_in_memory: bool | None = None
    """Whether there is room for all training cases unpacked; null: found out when they are there."""
    memory_bytes: dict[str, int] = Field(default_factory=dict)
    """Peak memory of training as predicted, by what takes it."""
    candidates: tuple[Candidate, ...] = ()
    """The best of those that were weighed, best first; the plan is the first of them."""
    fingerprint: DataFacts | None = None
    """Of the training cases."""
    training_cases: tuple[str, ...] = ()
    """Ids, in order."""
    validation_cases: tuple[str, ...] = ()
    """Ids, in order."""
    fold: int | Literal["each", "none"] | None = None
    """Which fold validates; each: they all share this plan; none: no case validates; null: the dataset's own splits."""
    started_from: StartedFrom | None = None
    """The trained network that goes on, where the run does not start afresh."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Training cases that could not be read, with the reason."""
    reasons: tuple[str, ...] = ()
    """Why, for people; the first says how the cases are divided."""

    @model_validator(mode="after")
    def _nonzero_voxels_are_known(self) -> Plan:
        if self.preparation is None and any(isinstance(how, NonzeroZScoreNormalisation) for how in self.normalisation):
            raise ValueError("nonzero_zscore needs a preparation that normalises before it interpolates")
        return self


def read_plan(path: Path) -> Plan:
    """A plan that was written before; raises ConfigError."""
    return validated(Plan, read_yaml(path), path.name)  # JSON is YAML


def make_plan(
    fingerprint: Fingerprint, modalities: Sequence[str], choices: PlanChoices, stages: StageRule, batch_size: int | None
) -> Plan:
    """Decide spacing, patch, strides and normalisation from the training cases.

    Args:
        fingerprint: Of the training cases.
        modalities: Of each image channel; "CT" gets a window, anything else z-scores.
        choices: What the config fixes.
        stages: What the network asks for.
        batch_size: Patches a step; None: the usual.
    """
    reasons: list[str] = []
    facts = data_facts(fingerprint)
    spacing = choices.spacing_mm or _spacing(fingerprint)
    reasons.append(
        f"spacing {_shown(spacing)} mm: " + ("given" if choices.spacing_mm else _spacing_reason(fingerprint))
    )
    reasons += _thin_reasons(facts, spacing)
    median_shape = median_shape_on(facts, spacing)
    patch, strides = _patch_and_strides(choices, median_shape, spacing, stages)
    patch_voxels = choices.patch_voxels or USUAL_PATCH_VOXELS
    reasons.append(
        f"patch {_shown(patch)} voxels of a median case's {_shown(median_shape)}: "
        + ("given" if choices.patch_ijk else f"its shape scaled to about {patch_voxels} voxels")
        + ", rounded to what the network's strides divide"
    )
    normalisation = tuple(
        _normalisation(modality, channel, fingerprint, choices) for channel, modality in enumerate(modalities)
    )
    reasons += [_normalisation_reason(m, how, choices) for m, how in zip(modalities, normalisation, strict=True)]
    return Plan(
        spacing_ijk_mm=spacing,
        patch_ijk=patch,
        strides=strides,
        normalisation=normalisation,
        batch_size=batch_size or USUAL_BATCH_SIZE,
        fingerprint=facts,
        reasons=tuple(reasons),
    )


def data_facts(fingerprint: Fingerprint) -> DataFacts:
    """The few numbers of a fingerprint that decisions follow from."""
    spacings = np.array(fingerprint.spacings_mm)
    extents = np.array(fingerprint.shapes) * spacings
    structures = {}
    for name, num_annotated in fingerprint.num_annotated.items():
        measured = fingerprint.structures.get(name)
        structures[name] = StructureFacts(
            num_annotated=num_annotated,
            num_found=measured.num_found if measured else 0,
            median_volume_ml=fingerprint.median_volume_ml[name],
            median_thickness_mm=measured.median_thickness_mm if measured else None,
            percentiles=measured.percentiles if measured else (),
        )
    return DataFacts(
        num_cases=len(spacings),
        median_spacing_mm=_triple(np.median(spacings, axis=0)),
        median_extent_mm=_triple(np.median(extents, axis=0)),
        total_volume_ml=float(extents.prod(axis=1).sum() / MM3_PER_ML),
        structures=structures,
        left_right=fingerprint.left_right,
    )


def median_shape_on(facts: DataFacts, spacing: Spacing3) -> np.ndarray:
    """Voxels of a median case on a grid."""
    voxels: np.ndarray = np.maximum(1, np.ceil(np.array(facts.median_extent_mm) / np.array(spacing) - 1e-6)).astype(int)
    return voxels


def voxels_thick(thickness_mm: float, spacing: Spacing3) -> float:
    """Thickness of a structure in voxels of a grid; of one that is not isotropic, of the cube of the same volume."""
    return float(thickness_mm / np.prod(spacing) ** (1 / 3))


def steps_within(
    budget_s: float, spent_s: float, seconds_per_step: float, seconds_per_validation: float, num_validations: int
) -> int:
    """How many steps fit into a budget, validations included; at least one.

    Args:
        budget_s: Wall clock of the whole command [s].
        spent_s: What reading, preparing and measuring took [s].
        seconds_per_step, seconds_per_validation: As measured [s].
        num_validations: How often the run validates.
    """
    left_s = budget_s - spent_s - num_validations * seconds_per_validation
    return max(1, int(left_s / seconds_per_step))


def _spacing(fingerprint: Fingerprint) -> Spacing3:
    spacings = np.array(fingerprint.spacings_mm)
    median = np.median(spacings, axis=0)
    coarse = int(np.argmax(median))
    if median[coarse] > ANISOTROPIC_RATIO * np.delete(median, coarse).max():
        median[coarse] = max(np.percentile(spacings[:, coarse], 10), np.delete(median, coarse).max())
    known = [m.median_thickness_mm for m in fingerprint.structures.values() if m.median_thickness_mm is not None]
    if known and voxels_thick(min(known), _triple(median)) < MIN_VOXELS_THICK:
        fine = np.minimum(median, min(known) / MIN_VOXELS_THICK)
        median = np.maximum(fine, np.minimum(median, np.percentile(spacings, 10, axis=0)))
    i, j, k = (round(float(value), 4) for value in median)
    return i, j, k


def _thin_reasons(facts: DataFacts, spacing: Spacing3) -> list[str]:
    """Structures no larger than a few voxels of the network's grid, for people."""
    thin = {
        name: voxels_thick(structure.median_thickness_mm, spacing)
        for name, structure in facts.structures.items()
        if structure.median_thickness_mm is not None
    }
    named = [f"{name} {voxels:.1f}" for name, voxels in thin.items() if voxels < FEW_VOXELS_THICK]
    if not named:
        return []
    return [f"only a few voxels thick on this grid, so no coarser one is considered: {', '.join(named)}"]


def _spacing_reason(fingerprint: Fingerprint) -> str:
    spacings = np.array(fingerprint.spacings_mm)
    low, high = _shown(spacings.min(axis=0)), _shown(spacings.max(axis=0))
    return f"the median of {len(spacings)} cases, which lie between {low} and {high}"


def _patch_and_strides(
    choices: PlanChoices, median_shape: np.ndarray, spacing: Spacing3, stages: StageRule
) -> tuple[Shape3, tuple[Shape3, ...]]:
    patch_voxels = choices.patch_voxels or USUAL_PATCH_VOXELS
    shrink = min(1.0, (patch_voxels / np.prod(median_shape)) ** (1 / 3))
    wanted = np.array(choices.patch_ijk or np.maximum(median_shape * shrink, SMALLEST_MAP), dtype=float)
    strides = fixed_strides(wanted, spacing, stages)
    total = np.prod(np.array(strides), axis=0)
    # Where a whole case fits, no edge of it is cut off for the sake of a round number.
    multiples = np.ceil(wanted / total - 1e-6) if shrink == 1.0 else np.round(wanted / total)
    patch = np.maximum(1, multiples).astype(int) * total
    i, j, k = (int(size) for size in patch)
    return (i, j, k), strides


def _normalisation(modality: str, channel: int, fingerprint: Fingerprint, choices: PlanChoices) -> Normalisation:
    if modality.upper() != "CT":
        return ZScoreNormalisation()
    inside = fingerprint.channels[channel]
    low, high = choices.window_hu or (inside.percentile_00_5, inside.percentile_99_5)
    if high <= low:  # a constant foreground leaves nothing to choose from
        high = low + 1.0
    return WindowNormalisation(low=low, high=high, mean=inside.mean, std=max(inside.std, 1.0))


def _normalisation_reason(modality: str, how: Normalisation, choices: PlanChoices) -> str:
    if isinstance(how, WindowNormalisation):
        source = "given" if choices.window_hu else "the 0.5 and 99.5 percentile inside the structures"
        return (
            f"{modality}: window {how.low:.0f} to {how.high:.0f} HU, {source}; mean {how.mean:.0f}, std {how.std:.0f}"
        )
    return f"{modality}: each image's own mean and standard deviation, because its units are relative"


def _shown(values: Sequence[float | int] | np.ndarray) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    i, j, k = (float(value) for value in values)
    return i, j, k
