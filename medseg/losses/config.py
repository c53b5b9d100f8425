"""What a config says of the loss. Torch-free; :mod:`medseg.losses.build` makes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medseg.core.config import ConfigBase
from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema

Activation = Literal["softmax", "sigmoid"]
Over = Literal["batch", "sample"]
Smooth = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Gamma = Annotated[float, Field(ge=1, le=5)]
ErrorWeight = Annotated[float, Field(gt=0, le=1)]


class DiceConfig(ConfigBase):
    """Soft Dice alone."""

    kind: Literal["dice"] = "dice"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    over: Over = "batch"
    """Sum over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of the fraction."""


class BinaryCrossEntropyConfig(ConfigBase):
    """Binary cross-entropy of each structure."""

    kind: Literal["bce"] = "bce"

    @property
    def activation(self) -> Activation:
        """Each structure for itself."""
        return "sigmoid"


class CrossEntropyConfig(ConfigBase):
    """Cross-entropy over all structures and background."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    @property
    def activation(self) -> Activation:
        """One structure a voxel."""
        return "softmax"


class FocalConfig(ConfigBase):
    """Cross-entropy in which easy voxels count less."""

    kind: Literal["focal"] = "focal"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    gamma: Gamma = 2.0
    """How much less: a voxel of probability p counts (1 - p) to this power."""


class DiceBinaryCrossEntropyConfig(ConfigBase):
    """The classical recipe: binary cross-entropy plus half of Dice on probabilities.

    Cross-entropy takes logits, Dice takes their sigmoid. Recipes that hand the logits to Dice as well are wrong: sums of
    logits may be zero or negative, so the fraction has no bound, and a right and sure answer can score worse than one
    that hardly knows. docs/losses.md shows it in numbers.
    """

    kind: Literal["dice_bce"] = "dice_bce"
    dice_weight: Weight = 0.5
    """Of Dice; cross-entropy has 1."""
    over: Over = "batch"
    """Sum Dice over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-6
    """Added to both sides of Dice's fraction."""

    @property
    def activation(self) -> Activation:
        """Each structure for itself."""
        return "sigmoid"


class DiceCrossEntropyConfig(ConfigBase):
    """Dice plus cross-entropy, nnU-Net's choice."""

    kind: Literal["dice_ce"] = "dice_ce"
    dice_weight: Weight = 1.0
    """Of Dice; cross-entropy has 1."""
    over: Over = "batch"
    """Sum Dice over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of Dice's fraction."""

    @property
    def activation(self) -> Activation:
        """One structure a voxel."""
        return "softmax"


class DiceFocalConfig(ConfigBase):
    """Dice plus focal loss, both on the same activation."""

    kind: Literal["dice_focal"] = "dice_focal"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    dice_weight: Weight = 1.0
    """Of Dice; the focal loss has 1."""
    over: Over = "batch"
    """Sum Dice over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of Dice's fraction."""
    gamma: Gamma = 2.0
    """Of the focal loss."""


class TverskyConfig(ConfigBase):
    """Dice that weighs what is found too much and what is missed."""

    kind: Literal["tversky"] = "tversky"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    alpha: ErrorWeight = 0.3
    """Of voxels that are predicted and not there; with both at 0.5 it is Dice."""
    beta: ErrorWeight = 0.7
    """Of voxels that are there and not predicted: larger finds more, and more that is not there."""
    over: Over = "batch"
    """Sum over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of the fraction."""


class FocalTverskyConfig(ConfigBase):
    """Tversky in which structures that are found well keep more of their pull."""

    kind: Literal["focal_tversky"] = "focal_tversky"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    alpha: ErrorWeight = 0.3
    """Of voxels that are predicted and not there."""
    beta: ErrorWeight = 0.7
    """Of voxels that are there and not predicted: larger finds more, and more that is not there."""
    gamma: Annotated[float, Field(ge=1, le=3)] = 4 / 3
    """The loss of a structure is raised to the power 1 / gamma; 1 is plain Tversky."""
    over: Over = "batch"
    """Sum over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of the fraction."""


class TverskyCrossEntropyConfig(ConfigBase):
    """Tversky plus cross-entropy, binary with sigmoid: Dice plus cross-entropy for structures that are often missed."""

    kind: Literal["tversky_ce"] = "tversky_ce"
    activation: Activation = "softmax"
    """softmax: one structure a voxel; sigmoid: each structure for itself."""
    tversky_weight: Weight = 1.0
    """Of Tversky; cross-entropy has 1."""
    alpha: ErrorWeight = 0.3
    """Of voxels that are predicted and not there; with both at 0.5 it is Dice."""
    beta: ErrorWeight = 0.7
    """Of voxels that are there and not predicted: larger finds more, and more that is not there."""
    over: Over = "batch"
    """Sum Tversky over the whole batch, or over each sample and then average."""
    smooth: Smooth = 1e-5
    """Added to both sides of Tversky's fraction."""


LossConfig = Annotated[
    DiceConfig
    | BinaryCrossEntropyConfig
    | CrossEntropyConfig
    | FocalConfig
    | DiceBinaryCrossEntropyConfig
    | DiceCrossEntropyConfig
    | DiceFocalConfig
    | TverskyConfig
    | FocalTverskyConfig
    | TverskyCrossEntropyConfig,
    Field(discriminator="kind"),
]


def require_activation(config: LossConfig, schema: LabelSchema) -> None:
    """Make sure that the network can say what the structures ask of it.

    Raises:
        ConfigError: Structures are regions that overlap, and the loss lets a voxel be one thing only.
    """
    if config.activation == "softmax" and schema.has_regions:
        regions = [
            structure.name for structure in schema.structures if structure.reference_values != (structure.value,)
        ]
        fixed = "activation" not in type(config).model_fields
        remedy = "loss.kind to dice_bce or bce" if fixed else "loss.activation to sigmoid, or loss.kind to dice_bce"
        raise ConfigError(
            f"the structures {regions} are regions, which overlap with others, but loss.kind {config.kind} with softmax "
            f"lets each voxel be one thing only: set {remedy}"
        )
