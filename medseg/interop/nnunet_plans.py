"""What nnU-Net's plans.json and dataset.json say of a model, in medseg's words.

nnU-Net's axes are those of SimpleITK's arrays (z, y, x of the file), turned by ``transpose_forward``. Here everything is
turned to i, j, k, the file's own order, so that nothing has to be turned when a scan is labelled.

Source: nnunetv2 2.8.1, ``utilities/plans_handling/plans_handler.py``, ``utilities/label_handling/label_handling.py``,
``imageio/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg.core.errors import CheckpointError
from medseg.core.labels import LabelSchema
from medseg.core.units import MM3_PER_ML
from medseg.data.config import (
    NnunetPreparation,
    NoNormalisation,
    NonzeroZScoreNormalisation,
    Normalisation,
    PlanewiseInterpolation,
    RangeNormalisation,
    WindowNormalisation,
    ZScoreNormalisation,
)
from medseg.data.plan import ANISOTROPIC_RATIO, DataFacts, Plan
from medseg.io.dataset_document import indexed_channels
from medseg.io.dataset_nnunet import labels_of_nnunet

Axes3 = tuple[int, int, int]

ORIENTATIONS: Mapping[str, Literal["file", "patient"]] = {
    "SimpleITKIO": "file",
    "NibabelIO": "file",
    "SimpleITKIOWithReorient": "patient",
    "NibabelIOWithReorient": "patient",
}
"""nnU-Net's readers of volumes, and the axes of what they give."""

INTERPOLATIONS: Mapping[int, Literal["nearest", "linear", "cubic"]] = {0: "nearest", 1: "linear", 3: "cubic"}
"""By order of the spline."""

PLANES: Mapping[bool | None, Literal["where_anisotropic", "always", "never"]] = {
    None: "where_anisotropic",
    True: "always",
    False: "never",
}
"""By ``force_separate_z``."""

RESAMPLING = "resample_data_or_seg_to_shape"
"""The only way of resampling that is known here: nnU-Net's usual one."""

LARGEST_BYTE = 255.0
"""Of colours, which RGBTo01Normalization divides by."""

SMALLEST_STD = 1e-8
"""nnU-Net's number."""


class Document(BaseModel):
    """A part of nnU-Net's JSON of which not all is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ResamplingKwargs(Document):
    """Arguments of :data:`RESAMPLING`."""

    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = ANISOTROPIC_RATIO


class Configuration(Document):
    """A configuration of plans.json; axes as nnU-Net has them."""

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    batch_size: int = 2
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    preprocessor_name: str = "DefaultPreprocessor"
    resampling_fn_data: str
    resampling_fn_data_kwargs: ResamplingKwargs
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: ResamplingKwargs
    previous_stage: str | None = None


class IntensityFacts(Document):
    """Of one image channel, inside the structures."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Plans(Document):
    """plans.json."""

    dataset_name: str = "nnU-Net"
    plans_name: str = "nnUNetPlans"
    transpose_forward: tuple[int, ...]
    image_reader_writer: str = "SimpleITKIO"
    label_manager: str = "LabelManager"
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, IntensityFacts] = Field(default_factory=dict)


class FingerprintDocument(Document):
    """dataset_fingerprint.json; axes z, y, x."""

    shapes_after_crop: list[tuple[int, int, int]] = Field(min_length=1)
    spacings: list[tuple[float, float, float]] = Field(min_length=1)


AnyDocument = TypeVar("AnyDocument", bound=Document)


@dataclass(frozen=True)
class Topology:
    """Strides, kernels and so on of a network, as the plan and the network's config share them; axes i, j, k.

    Attributes:
        strides: Into each stage.
        kernels: Of each stage.
    """

    strides: tuple[Axes3, ...]
    kernels: tuple[Axes3, ...]


def parsed(kind: type[AnyDocument], values: Any, source: str) -> AnyDocument:
    """A part of nnU-Net's JSON, checked.

    Raises:
        CheckpointError: With everything that is missing or wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
        raise CheckpointError(f"{source} is not as nnU-Net v2 writes it: {'; '.join(lines)}"[:1000]) from None


def resolved_configuration(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration of the plans with all that it inherits.

    Raises:
        CheckpointError: It is not there, inherits from itself, is two-dimensional, or the second stage of a cascade.
    """
    values: dict[str, Any] = {}
    chain: list[str] = []
    ancestor: Any = name
    while ancestor is not None:
        if ancestor not in plans.configurations or ancestor in chain:
            raise CheckpointError(
                f"the plans have no configuration '{ancestor}' that can be used: found {', '.join(plans.configurations)}"
            )
        chain.append(ancestor)
        values = {**plans.configurations[ancestor], **values}
        ancestor = plans.configurations[ancestor].get("inherits_from")
    if values.get("previous_stage"):
        raise CheckpointError(
            f"'{name}' is the second stage of a cascade, which needs the labels of the first: import a 3d_fullres model"
        )
    patch = values.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2:
        raise CheckpointError(f"'{name}' is a two-dimensional network: import a 3d_fullres model")
    return values


def to_ijk(plans: Plans) -> Axes3:
    """For each axis i, j, k of a file, the axis of nnU-Net's network that runs along it.

    Raises:
        CheckpointError: transpose_forward is no order of three axes.
    """
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        raise CheckpointError(f"expected an order of three axes in transpose_forward, found {plans.transpose_forward}")
    i, j, k = (plans.transpose_forward.index(axis) for axis in (2, 1, 0))
    return i, j, k


def plan_of(
    plans: Plans, configuration: Configuration, topology: Topology, num_channels: int, facts: DataFacts | None
) -> Plan:
    """medseg's plan: spacing, window and normalisation, and how nnU-Net prepares.

    Raises:
        CheckpointError: Something in the plans is not known here.
    """
    axes = to_ijk(plans)
    if len(configuration.spacing) != 3 or len(configuration.patch_size) != 3:
        raise CheckpointError("expected three axes in patch_size and spacing of the plans")
    patch, strides = turned(configuration.patch_size, axes), topology.strides
    if any(size % math.prod(along) for size, along in zip(patch, zip(*strides, strict=True), strict=True)):
        raise CheckpointError(
            f"the patch {patch} is no multiple of the network's strides {strides}: the plans were altered"
        )
    if configuration.preprocessor_name != "DefaultPreprocessor":
        raise CheckpointError(
            f"the preprocessor {configuration.preprocessor_name} is not known, only DefaultPreprocessor"
        )
    if len(configuration.normalization_schemes) != num_channels or len(configuration.use_mask_for_norm) != num_channels:
        raise CheckpointError(f"expected a normalisation for each of {num_channels} channels in the plans")
    try:
        return Plan(
            spacing_ijk_mm=tuple(configuration.spacing[axis] for axis in axes),
            patch_ijk=patch,
            strides=strides,
            kernels=topology.kernels,
            normalisation=tuple(_normalisation(plans, configuration, channel) for channel in range(num_channels)),
            preparation=_preparation(plans, configuration),
            batch_size=configuration.batch_size,
            fingerprint=facts,
            reasons=(f"{plans.plans_name} of {plans.dataset_name}, planned and trained by nnU-Net",),
        )
    except ValidationError as error:
        raise CheckpointError(f"the plans are not usable: {error.errors()[0]['msg']}") from None


def facts_of(document: FingerprintDocument) -> DataFacts:
    """What nnU-Net's fingerprint says of the training cases; of single structures it says nothing."""
    spacings = np.array(document.spacings)[:, ::-1]
    extents = np.array(document.shapes_after_crop)[:, ::-1] * spacings
    median_spacing, median_extent = (np.median(values, axis=0).tolist() for values in (spacings, extents))
    return DataFacts(
        num_cases=len(spacings),
        median_spacing_mm=tuple(median_spacing),
        median_extent_mm=tuple(median_extent),
        total_volume_ml=float(extents.prod(axis=1).sum() / MM3_PER_ML),
        structures={},
    )


def channels_and_labels(dataset: Mapping[str, Any], plans: Plans) -> tuple[tuple[str, ...], LabelSchema]:
    """The modality of each image channel, and the structures in the order of the network's outputs.

    Raises:
        CheckpointError: dataset.json is not as nnU-Net writes it.
    """
    if plans.label_manager != "LabelManager":
        raise CheckpointError(f"the label manager {plans.label_manager} is not known, only LabelManager")
    channels, mistakes = indexed_channels(dataset.get("channel_names", dataset.get("modality")), "channel_names")
    labels, of_labels = labels_of_nnunet(dataset)
    if mistakes or of_labels or labels is None:
        raise CheckpointError(f"dataset.json is not as nnU-Net v2 writes it: {'; '.join(mistakes + of_labels)}"[:1000])
    if labels.has_regions:  # outputs are in the order of dataset.json
        return channels, labels
    structures = sorted(labels.structures, key=lambda structure: structure.value)
    values = [structure.value for structure in structures]
    if values != list(range(1, len(values) + 1)):
        raise CheckpointError(
            f"expected the label values 1, 2, 3, … without gaps, as nnU-Net needs them, found {values}"
        )
    return channels, replace(labels, structures=tuple(structures))


def _normalisation(plans: Plans, configuration: Configuration, channel: int) -> Normalisation:
    scheme = configuration.normalization_schemes[channel]
    match scheme:
        case "CTNormalization":
            facts = plans.foreground_intensity_properties_per_channel.get(str(channel))
            if facts is None:
                raise CheckpointError(
                    f"the plans lack the intensities of channel {channel}, which CTNormalization needs"
                )
            std = max(facts.std, SMALLEST_STD)
            return WindowNormalisation(low=facts.percentile_00_5, high=facts.percentile_99_5, mean=facts.mean, std=std)
        case "ZScoreNormalization":
            return NonzeroZScoreNormalisation() if configuration.use_mask_for_norm[channel] else ZScoreNormalisation()
        case "RescaleTo01Normalization":
            return RangeNormalisation()
        case "RGBTo01Normalization":
            return WindowNormalisation(low=0.0, high=LARGEST_BYTE, mean=0.0, std=LARGEST_BYTE)
        case "NoNormalization":
            return NoNormalisation()
        case _:
            raise CheckpointError(f"the normalisation {scheme} of channel {channel} is not known")


def _preparation(plans: Plans, configuration: Configuration) -> NnunetPreparation:
    reader = plans.image_reader_writer
    if reader not in ORIENTATIONS:
        raise CheckpointError(f"the reader {reader} is not one of volumes: expected {', '.join(ORIENTATIONS)}")
    names = (configuration.resampling_fn_data, configuration.resampling_fn_probabilities)
    if strange := sorted({*names} - {RESAMPLING}):
        raise CheckpointError(f"the resampling {', '.join(strange)} is not known, only {RESAMPLING}")
    return NnunetPreparation(
        orientation=ORIENTATIONS[reader],
        image=_interpolation(configuration.resampling_fn_data_kwargs),
        logits=_interpolation(configuration.resampling_fn_probabilities_kwargs),
    )


def _interpolation(kwargs: ResamplingKwargs) -> PlanewiseInterpolation:
    if strange := sorted({kwargs.order, kwargs.order_z} - set(INTERPOLATIONS)):
        raise CheckpointError(f"expected interpolation of order 0, 1 or 3 in the plans, found {strange}")
    if kwargs.separate_z_anisotropy_threshold != ANISOTROPIC_RATIO:
        raise CheckpointError(
            f"expected {ANISOTROPIC_RATIO:g} as separate_z_anisotropy_threshold, found "
            f"{kwargs.separate_z_anisotropy_threshold:g}"
        )
    return PlanewiseInterpolation(
        within=INTERPOLATIONS[kwargs.order],
        across=INTERPOLATIONS[kwargs.order_z],
        planes=PLANES[kwargs.force_separate_z],
    )


def turned(values: Sequence[int], axes: Axes3) -> Axes3:
    """Numbers of nnU-Net's three axes along i, j, k."""
    i, j, k = (values[axis] for axis in axes)
    return i, j, k
