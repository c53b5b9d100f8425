"""A model folder of nnU-Net v2 as a medseg model: its plans, and the weights of its folds.

``postprocessing.pkl`` is never read: it is a pickle, and opening one runs what somebody put into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import CheckpointError, ConfigError
from medseg.inference.description import ModelDescription
from medseg.interop.checkpoint_file import load_checkpoint
from medseg.interop.nnunet_network import network_of, weights_of
from medseg.interop.nnunet_plans import (
    Configuration,
    FingerprintDocument,
    Plans,
    channels_and_labels,
    facts_of,
    parsed,
    plan_of,
    resolved_configuration,
    to_ijk,
)
from medseg.io.dataset_document import read_json

PLANS, DATASET, FINGERPRINT = "plans.json", "dataset.json", "dataset_fingerprint.json"

FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"
"""What nnU-Net keeps of a fold that ended, and of one that is still on its way."""

POSTPROCESSING = "postprocessing.pkl"

TASK = "ct_segmentation"
"""The task whose bundles these are."""


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model of nnU-Net in medseg's form.

    Attributes:
        description: All that prediction needs besides the weights.
        members: The weights of each fold's network.
        origin: Where it comes from: trainer, configuration, folds.
        notes: What somebody who uses it should know.
    """

    description: ModelDescription
    members: tuple[Mapping[str, np.ndarray], ...]
    origin: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fold:
    """The checkpoint of one fold.

    Attributes:
        name: ``0`` to ``4``, or ``all``.
        weights: By nnU-Net's names.
        trainer: Class that trained it.
        configuration: Of the plans.
        mirror_axes: Along which it may be mirrored, in nnU-Net's axes; None where the checkpoint says nothing.
    """

    name: str
    weights: Mapping[str, Any]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...] | None


def import_nnunet(folder: Path, folds: Sequence[str] = ()) -> ImportedModel:
    """Read a model folder: ``DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION``.

    Args:
        folder: With plans.json, dataset.json and ``fold_K/checkpoint_final.pth``.
        folds: Which; none: all numbered folds that are there, or ``all`` where that is the only one.

    Raises:
        CheckpointError: It is no such folder, or of a kind that cannot be imported.
        ConfigError: A fold is asked for that is not there.
    """
    documents = _documents(folder)
    plans = parsed(Plans, documents[PLANS], PLANS)
    files = _checkpoints(folder, folds)
    loaded = [_load_fold(folder, name, path) for name, path in files.items()]
    first = loaded[0]
    if {(fold.trainer, fold.configuration) for fold in loaded} != {(first.trainer, first.configuration)}:
        raise CheckpointError(f"the folds in {folder.name} come from different trainers or configurations")
    values = resolved_configuration(plans, first.configuration)
    channels, labels = channels_and_labels(documents[DATASET], plans)
    axes = to_ijk(plans)
    network, topology = network_of(values, axes)
    facts = None
    if FINGERPRINT in documents:
        facts = facts_of(parsed(FingerprintDocument, documents[FINGERPRINT], FINGERPRINT))
    configuration = parsed(Configuration, values, f"the configuration {first.configuration} in {PLANS}")
    description = ModelDescription(
        task=TASK,
        name=f"{plans.dataset_name} {first.configuration}",
        network=network,
        modalities=channels,
        labels=labels,
        activation="sigmoid" if labels.has_regions else "softmax",
        plan=plan_of(plans, configuration, topology, len(channels), facts),
        mirror_axes=_mirror_axes(first.mirror_axes, axes),
    )
    origin = {
        "program": "nnU-Net v2",
        "trainer": first.trainer,
        "plans": plans.plans_name,
        "configuration": first.configuration,
        "checkpoints": [f"{path.parent.name}/{path.name}" for path in files.values()],
    }
    members = tuple(weights_of(fold.weights, axes) for fold in loaded)
    return ImportedModel(description, members, origin, _notes(folder, files))


def _documents(folder: Path) -> dict[str, dict[str, Any]]:
    names = [PLANS, DATASET, *([FINGERPRINT] if (folder / FINGERPRINT).is_file() else [])]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is no model folder of nnU-Net v2: there is no {name}; give the folder "
                "DatasetXXX_NAME/TRAINER__PLANS__3d_fullres of its results"
            )
    try:
        return {name: read_json(folder / name) for name in names}
    except ConfigError as error:
        raise CheckpointError(error.message) from error


def _checkpoints(folder: Path, folds: Sequence[str]) -> dict[str, Path]:
    """The checkpoint of each fold, in the order asked for, or by number."""
    found = {}
    for path in sorted(folder.glob("fold_*")):
        file = next((path / name for name in (FINAL, BEST) if (path / name).is_file()), None)
        if file is not None:
            found[path.name.removeprefix("fold_")] = file
    numbered = sorted((name for name in found if name.isdecimal()), key=int)
    wanted = list(dict.fromkeys(folds)) or numbered or [name for name in ("all",) if name in found]
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(
            f"--fold {', '.join(missing)}: there is no {FINAL} of it in {folder}; found {', '.join(found) or 'none'}"
        )
    if not wanted:
        raise CheckpointError(f"{folder} holds no fold_K/{FINAL}: train a fold first")
    return {name: found[name] for name in wanted}


def _load_fold(folder: Path, name: str, path: Path) -> Fold:
    content = load_checkpoint(path)
    weights, arguments = content.get("network_weights"), content.get("init_args")
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise CheckpointError(
            f"expected network_weights in {path.parent.name}/{path.name}: nnU-Net v2 did not write it"
        )
    by_folder = folder.resolve().name.rpartition("__")[2]
    configuration = arguments.get("configuration", by_folder) if isinstance(arguments, dict) else by_folder
    mirrored = content.get("inference_allowed_mirroring_axes")
    return Fold(
        name,
        weights,
        str(content.get("trainer_name", "unknown")),
        str(configuration),
        tuple(int(axis) for axis in mirrored) if isinstance(mirrored, list | tuple) else None,
    )


def _mirror_axes(found: tuple[int, ...] | None, axes: tuple[int, int, int]) -> tuple[int, ...]:
    """Axes of nnU-Net's network as axes i, j, k. A checkpoint that names none was not mirrored."""
    if not {*(found or ())} <= {0, 1, 2}:
        raise CheckpointError(f"expected axes from 0 to 2 in inference_allowed_mirroring_axes, found {found}")
    return tuple(sorted(axes.index(axis) for axis in found or ()))


def _notes(folder: Path, files: Mapping[str, Path]) -> tuple[str, ...]:
    unfinished = [name for name, path in files.items() if path.name == BEST]
    notes = [f"fold {name} has no {FINAL}: its {BEST} was taken" for name in unfinished]
    if any(folder.glob(POSTPROCESSING)) or any(folder.glob(f"*/{POSTPROCESSING}")):
        notes.append(
            f"{POSTPROCESSING} was not read, because reading a pickle runs what it holds: its rules are not applied"
        )
    return tuple(notes)
