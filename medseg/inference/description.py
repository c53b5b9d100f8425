"""What a bundle of a segmentation network says of itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from medseg.core.config import ConfigBase, validated
from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.labels import LabelSchema
from medseg.data.plan import Plan
from medseg.inference.components import ComponentRule
from medseg.inference.resolve import Activation, Decision
from medseg.io.bundle import Bundle
from medseg.models.config import NetworkConfig


class ModelDescription(ConfigBase):
    """All that prediction needs besides the weights."""

    task: str
    """Name of the task that made it."""
    name: str
    """For people."""
    network: NetworkConfig
    """Which network."""
    modalities: tuple[str, ...]
    """Of each image channel."""
    labels: LabelSchema
    """The structures, in channel order."""
    activation: Activation
    """How logits become a decision."""
    plan: Plan
    """Grid, window, normalisation."""
    components: dict[str, ComponentRule] = Field(default_factory=dict)
    """Which connected parts of a structure are kept; all, where it is not named."""
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] | None = None
    """Axes of the network's grid along which it has seen mirrored images in training; null: the bundle is older than this."""

    @property
    def num_outputs(self) -> int:
        """Logits a voxel: sigmoid networks have none for background."""
        return self.labels.num_channels - (self.activation == "sigmoid")

    @property
    def decision(self) -> Decision:
        """How logits become channel numbers."""
        return "regions" if self.labels.has_regions else self.activation

    @model_validator(mode="after")
    def _components_are_of_its_structures(self) -> ModelDescription:
        if strange := sorted(set(self.components) - set(self.labels.names)):
            raise ValueError(f"components name {strange}, which are none of its structures")
        return self

    @model_validator(mode="after")
    def _overlapping_structures_need_sigmoid(self) -> ModelDescription:
        if self.labels.has_regions and self.activation == "softmax":
            raise ValueError("its structures are regions that overlap, which softmax cannot give")
        return self


def describe(bundle: Bundle) -> ModelDescription:
    """The description in a bundle's manifest.

    Raises:
        CheckpointError: It lacks something or holds something impossible.
    """
    fields = {name: bundle.manifest[name] for name in ModelDescription.model_fields if name in bundle.manifest}
    try:
        return validated(ModelDescription, fields, "bundle.json")
    except ConfigError as error:
        raise CheckpointError(f"the bundle {bundle.folder.name} is unusable. {error.message}") from error
