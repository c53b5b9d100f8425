"""Checkpoints: one safetensors file with tensors, and plain JSON in its header. Nothing in it is executable."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.core.errors import CheckpointError
from medseg.engine.precision import Precision
from medseg.io.atomic import write_atomically

SCHEMA_VERSION = 2
"""2: the averaged weights beside the network's own; the step's troubles and the time by stage in the progress."""


def save_checkpoint(
    path: Path,
    network: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    progress: Mapping[str, Any],
) -> None:
    """Write all that is needed to go on exactly: weights, their average, optimiser, loss scale, ``progress`` (JSON).

    The file is complete under its name or absent: it is written beside it first.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    header = {
        "schema_version": SCHEMA_VERSION,
        "progress": dict(progress),
        "precision": precision.state(),
        "optimizer": {"param_groups": state["param_groups"], "numbers": numbers},
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, {"medseg": json.dumps(header)})
        except SafetensorError as error:  # it has no other name for a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error

    write_atomically(path, write, overwrite=True)


def load_checkpoint(
    path: Path,
    network: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, in place.

    Returns:
        The ``progress`` that was saved.

    Raises:
        CheckpointError: The file is missing or damaged, or belongs to another network.
    """
    header, tensors = _read(path)
    try:
        network.load_state_dict(_below("model.", tensors))
        if average is not None:
            average.load_state_dict(_below("average.", tensors))
        optimizer.load_state_dict(_optimizer_state(header["optimizer"], tensors))
        precision.load_state(header["precision"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name} belongs to another network or optimiser: {error}") from error
    progress: dict[str, Any] = header["progress"]
    return progress


def load_weights(path: Path) -> dict[str, Tensor]:
    """The trained weights in a checkpoint: the averaged ones, where the run kept an average.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    _, tensors = _read(path)
    return _below("average.", tensors) or _below("model.", tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["medseg"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path.name} in {path.parent}: start without --resume") from None
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged ({error}): start the run anew") from error
    if header.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path.name} was written by another version of medseg: start the run anew")
    return header, tensors


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in header["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": header["param_groups"]}
