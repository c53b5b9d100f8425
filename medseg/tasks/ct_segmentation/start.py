"""Training that goes on from a bundle: what is taken from it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medseg.core.case import Dataset
from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.labels import LabelSchema
from medseg.data.plan import Plan, StartedFrom
from medseg.inference.description import ModelDescription, describe
from medseg.io.bundle import read_bundle

KEPT = ("spacing_ijk_mm", "patch_ijk", "strides", "kernels", "features", "normalisation")
"""Fields of a plan that a trained network cannot do without; the others say how one run went on its data and machine."""


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """A trained network that is trained further.

    Attributes:
        record: Which bundle, as the plan keeps it.
        description: What the bundle says of itself.
        weights: Of its network; of an ensemble, of the first.
    """

    record: StartedFrom
    description: ModelDescription
    weights: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, reference: str, expected: StartedFrom | None = None) -> StartingPoint:
        """Open a bundle.

        Args:
            reference: Bundle folder, run folder or name of a bundled model.
            expected: What the run that goes on was started from.

        Raises:
            CheckpointError: It is unusable, not the one expected, or was not trained by medseg.
        """
        bundle = read_bundle(reference)
        if expected is not None and expected.hash != bundle.hash:
            raise CheckpointError(
                f"the bundle {reference} is not the one that this run was started from: start a new run"
            )
        description = describe(bundle)
        if description.plan.preparation is not None:
            raise CheckpointError(
                f"the bundle {reference} was trained by another program, on scans prepared in its way: it predicts, but cannot "
                "be trained further here"
            )
        return cls(StartedFrom(name=description.name, hash=bundle.hash), description, bundle.weights[0])

    def require_channels(self, dataset: Dataset) -> None:
        """Raise ConfigError where the dataset's images are not what the network was trained on."""
        given, wanted = (", ".join(channels) for channels in (dataset.channels, self.description.modalities))
        if given.upper() != wanted.upper():
            raise ConfigError(
                f"the network of '{self.record.name}' was trained on images with the channels {wanted}, and "
                f"{dataset.name} has {given}: train a new network"
            )

    def plan(self, batch_size: int | None, schema: LabelSchema) -> Plan:
        """The bundle's plan for a new run: the grid, patch and normalisation that its network knows.

        Args:
            batch_size: Patches a step; None: as many as before.
            schema: What will be learnt.
        """
        old = self.description.plan
        known, wanted = self.description.labels.names, schema.names
        parts = {
            "go on": [name for name in wanted if name in known],
            "start afresh": [name for name in wanted if name not in known],
            "are dropped": [name for name in known if name not in wanted],
        }
        told = "; ".join(f"{', '.join(names)} {what}" for what, names in parts.items() if names)
        reasons = (
            f"trained further from '{self.record.name}', whose spacing, patch, normalisation and network are kept",
            f"structures by name: {told}",
        )
        kept = {name: getattr(old, name) for name in KEPT}
        return Plan(**kept, batch_size=batch_size or old.batch_size, started_from=self.record, reasons=reasons)

    def kept_outputs(self, new: ModelDescription) -> tuple[tuple[int, int], ...]:
        """The outputs of a new network that go on, each with the old one that it was: structures of one name."""
        old = _outputs(self.description)
        return tuple((index, old.index(name)) for index, name in enumerate(_outputs(new)) if name in old)


def _outputs(description: ModelDescription) -> tuple[str | None, ...]:
    """Names of a network's outputs; None is background."""
    names = description.labels.names
    return names if description.activation == "sigmoid" else (None, *names)
