"""Opening what predicts: one bundle, or several joined by commas, whose networks are averaged. No weights are loaded yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import ConfigError
from medseg.inference.components import ComponentRule
from medseg.inference.description import ModelDescription, describe
from medseg.io.bundle import Bundle, read_bundle

LONGEST_DIFFERENCE = 300
"""Longer values, such as a hundred structures, are not spelt out in a message [characters]."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Bundles that predict together; most often one.

    Attributes:
        bundles: As read.
        descriptions: Of each.
    """

    bundles: tuple[Bundle, ...]
    descriptions: tuple[ModelDescription, ...]

    @property
    def description(self) -> ModelDescription:
        """What they share; of the rules for connected parts, those that every bundle has."""
        first, *others = self.descriptions
        agreed = {
            name: rule
            for name, rule in first.components.items()
            if all(other.components.get(name) == rule for other in others)
        }
        return first.model_copy(update={"components": agreed})

    @property
    def hash(self) -> str:
        """SHA-256 of the bundle, or of all of them in their order."""
        if len(self.bundles) == 1:
            return self.bundles[0].hash
        return hashlib.sha256("".join(bundle.hash for bundle in self.bundles).encode()).hexdigest()

    def with_components(self, rules: Mapping[str, ComponentRule]) -> Ensemble:
        """The same networks with other rules for connected parts; none keep all parts."""
        update = {"components": dict(rules)}
        return replace(self, descriptions=tuple(one.model_copy(update=update) for one in self.descriptions))

    @property
    def members(self) -> tuple[Mapping[str, np.ndarray], ...]:
        """The weights of all networks, as they lie in the files."""
        return tuple(weights for bundle in self.bundles for weights in bundle.weights)


def open_ensemble(reference: str | Path) -> Ensemble:
    """Open a bundle folder, run folder or bundled model, or several of them joined by commas.

    A folder whose name holds a comma is itself.

    Raises:
        CheckpointError: One is unusable.
        ConfigError: They do not fit together.
    """
    text = str(reference)
    names = [text] if _exists(text) else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("no bundle is named: give a bundle folder, a run folder, or a name that medseg tasks lists")
    return ensemble_of([read_bundle(name) for name in names])


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # many paths joined by commas are longer than one may be
        return False


def ensemble_of(bundles: Sequence[Bundle]) -> Ensemble:
    """Bundles as one ensemble.

    Raises:
        CheckpointError: A description is unusable.
        ConfigError: They do not fit together.
    """
    ensemble = Ensemble(tuple(bundles), tuple(describe(bundle) for bundle in bundles))
    first, *others = (_shared(description) for description in ensemble.descriptions)
    for bundle, other in zip(ensemble.bundles[1:], others, strict=True):
        differences = [_difference(what, first[what], other[what]) for what in first if first[what] != other[what]]
        if differences:
            raise ConfigError(
                f"{ensemble.bundles[0].folder} and {bundle.folder} cannot be averaged, for they differ in "
                f"{'; '.join(differences)}: join only bundles of one plan"
            )
    return ensemble


def _difference(what: str, first: Any, other: Any) -> str:
    values = f" ({first} and {other})"
    return what + (values if len(values) <= LONGEST_DIFFERENCE else "")


def _shared(description: ModelDescription) -> dict[str, Any]:
    """What must be alike so that logits mean the same, voxel by voxel."""
    return {
        "task": description.task,
        "channels": description.modalities,
        "structures": [(one.name, one.value, one.region) for one in description.labels.structures],
        "decision": description.decision,
        "spacing": description.plan.spacing_ijk_mm,
        "patch": description.plan.patch_ijk,
        "normalisation": description.plan.normalisation,
        "preparation": description.plan.preparation,
    }
