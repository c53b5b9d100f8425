"""The plan: everything that is decided once from the data and the machine, as plain numbers. No torch.

It is written to ``plan.json``, goes into the bundle, and a resumed run reads it instead of deciding again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from medseg.core.config import ConfigBase
from medseg.core.geometry import Shape3, Spacing3
from medseg.core.units import MAX_SPACING_MM, MIN_SPACING_MM
from medseg.data.config import Normalisation, PlanChoices, WindowNormalisation, ZScoreNormalisation
from medseg.data.fingerprint import Fingerprint

ANISOTROPIC_RATIO = 3.0
"""An axis this much coarser than the finest gets its 10th percentile instead of its median. nnU-Net's rule."""

STRIDE_RATIO = 2.0
"""An axis this much coarser than the finest is not strided until the others have caught up. nnU-Net's rule."""

SMALLEST_MAP = 4
"""A feature map's axis is not strided below this many voxels. nnU-Net's rule."""


MAX_PATCH_VOXELS = 2**28
"""More do not fit into any machine: a plan that asks for them is damaged."""


def _possible_patch(patch_ijk: Shape3) -> Shape3:
    if min(patch_ijk) < 1 or np.prod(patch_ijk, dtype=object) > MAX_PATCH_VOXELS:
        raise ValueError(f"expected at least one voxel along each axis and at most {MAX_PATCH_VOXELS} in all")
    return patch_ijk


Spacing = Annotated[float, Field(ge=MIN_SPACING_MM, le=MAX_SPACING_MM)]


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
    normalisation: tuple[Normalisation, ...]
    """One for each image channel."""
    batch_size: int = Field(ge=1)
    """Patches a step."""
    num_steps: int | None = None
    """Steps of the whole schedule."""
    validate_every: int | None = None
    """Steps between two validations."""
    seconds_per_step: float | None = None
    """As measured on this machine before the number of steps was frozen."""
    training_cases: tuple[str, ...] = ()
    """Ids, in order."""
    validation_cases: tuple[str, ...] = ()
    """Ids, in order."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Training cases that could not be read, with the reason."""
    reasons: tuple[str, ...] = ()
    """Why, for people."""


@dataclass(frozen=True)
class StageRule:
    """What a network asks of the plan.

    Attributes:
        num_stages: Resolutions of the network.
        stem_stride: Stride of the first stage on every axis that is not too coarse.
        uniform: All axes are strided alike (V-Net), whatever their spacing.
    """

    num_stages: int
    stem_stride: int
    uniform: bool


def make_plan(
    fingerprint: Fingerprint, modalities: Sequence[str], choices: PlanChoices, stages: StageRule, batch_size: int
) -> Plan:
    """Decide spacing, patch, strides and normalisation from the training cases.

    Args:
        fingerprint: Of the training cases.
        modalities: Of each image channel; "CT" gets a window, anything else z-scores.
        choices: What the config fixes.
        stages: What the network asks for.
        batch_size: Patches a step.
    """
    reasons: list[str] = []
    spacing = choices.spacing_mm or _spacing(fingerprint)
    reasons.append(
        f"spacing {_shown(spacing)} mm: " + ("given" if choices.spacing_mm else _spacing_reason(fingerprint))
    )
    extents = np.array(fingerprint.shapes) * np.array(fingerprint.spacings_mm) / np.array(spacing)
    median_shape = np.maximum(1, np.ceil(np.median(extents, axis=0) - 1e-6)).astype(int)
    patch, strides = _patch_and_strides(choices, median_shape, spacing, stages)
    reasons.append(
        f"patch {_shown(patch)} voxels of a median case's {_shown(median_shape)}: "
        + ("given" if choices.patch_ijk else f"its shape scaled to about {choices.patch_voxels} voxels")
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
        batch_size=batch_size,
        reasons=tuple(reasons),
    )


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
    i, j, k = (round(float(value), 4) for value in median)
    return i, j, k


def _spacing_reason(fingerprint: Fingerprint) -> str:
    spacings = np.array(fingerprint.spacings_mm)
    low, high = _shown(spacings.min(axis=0)), _shown(spacings.max(axis=0))
    return f"the median of {len(spacings)} cases, which lie between {low} and {high}"


def _patch_and_strides(
    choices: PlanChoices, median_shape: np.ndarray, spacing: Spacing3, stages: StageRule
) -> tuple[Shape3, tuple[Shape3, ...]]:
    shrink = min(1.0, (choices.patch_voxels / np.prod(median_shape)) ** (1 / 3))
    wanted = np.array(choices.patch_ijk or np.maximum(median_shape * shrink, SMALLEST_MAP), dtype=float)
    strides = _strides(wanted, spacing, stages)
    total = np.prod(np.array(strides), axis=0)
    # Where a whole case fits, no edge of it is cut off for the sake of a round number.
    multiples = np.ceil(wanted / total - 1e-6) if shrink == 1.0 else np.round(wanted / total)
    patch = np.maximum(1, multiples).astype(int) * total
    i, j, k = (int(size) for size in patch)
    return (i, j, k), strides


def _strides(patch: np.ndarray, spacing: Spacing3, stages: StageRule) -> tuple[Shape3, ...]:
    size, coarseness = patch.copy(), np.array(spacing, dtype=float)
    strides: list[Shape3] = []
    for stage in range(stages.num_stages):
        wanted = stages.stem_stride if stage == 0 else 2
        stride = np.full(3, wanted)
        if not stages.uniform:
            stride[coarseness > STRIDE_RATIO * coarseness.min()] = 1
            stride[np.round(size / wanted) < SMALLEST_MAP] = 1
        size, coarseness = size / stride, coarseness * stride
        i, j, k = (int(step) for step in stride)
        strides.append((i, j, k))
    return tuple(strides)


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
