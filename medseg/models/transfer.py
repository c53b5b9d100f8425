"""Weights of a trained network for one with other outputs: what is alike is taken over, outputs by their meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medseg.core.errors import CheckpointError
from medseg.models.build import build_model
from medseg.models.config import NetworkConfig


def transfer_weights(
    network: nn.Module,
    weights: Mapping[str, np.ndarray],
    axes: Mapping[str, int],
    kept: Sequence[tuple[int, int]],
) -> None:
    """Load trained weights into a fresh network, in place.

    A kept output gets the logits that it had: its weights are copied. Other outputs of the new network stay as they were
    initialised, and other outputs of the old one are dropped.

    Args:
        network: Of the same kind and widths, with its own number of outputs.
        weights: Of the trained network, by name.
        axes: Which axis of a tensor runs over the outputs: :func:`output_axes`.
        kept: Pairs of an output of the new network and the one that it was in the old.

    Raises:
        CheckpointError: Tensors are missing, foreign or of another shape.
    """
    fresh = network.state_dict()
    try:
        loaded = {
            name: _kept(fresh[name], torch.from_numpy(weight), axes[name], kept)
            if name in axes
            else torch.from_numpy(weight)
            for name, weight in weights.items()
        }
        network.load_state_dict(loaded)
    except (RuntimeError, LookupError) as error:
        raise CheckpointError(f"the trained weights do not fit their network: {error}"[:1000]) from error


def _kept(fresh: Tensor, trained: Tensor, axis: int, kept: Sequence[tuple[int, int]]) -> Tensor:
    new, old = fresh.movedim(axis, 0).clone(), trained.movedim(axis, 0)
    for to, source in kept:
        new[to] = old[source]
    return new.movedim(0, axis)


def output_axes(config: NetworkConfig, in_channels: int, strides: Sequence[Sequence[int]]) -> dict[str, int]:
    """The tensors of a network whose size follows the number of outputs, and along which axis.

    Two networks that differ in nothing but that number tell; so no network has to name its heads.
    """
    with torch.device("meta"):  # shapes only
        two, three = (build_model(config, in_channels, outputs, strides).state_dict() for outputs in (2, 3))
    return {
        name: next(axis for axis, size in enumerate(tensor.shape) if size != three[name].shape[axis])
        for name, tensor in two.items()
        if tensor.shape != three[name].shape
    }
