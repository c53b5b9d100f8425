"""The torch runtime: the network as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.shapes import BCIJK, BLIJK
from medseg.inference.description import ModelDescription
from medseg.models.build import build_model


class TorchRuntime:
    """Runs a torch network in float32, without gradients, in evaluation mode.

    Args:
        network: Moved to the device.
        num_outputs: Logits a voxel.
        device: Where it runs.
    """

    def __init__(self, network: nn.Module, num_outputs: int, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.num_outputs, self.device = num_outputs, device

    @torch.no_grad()
    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Float[Tensor, BLIJK]:
        """Logits of a batch of windows, on the device."""
        return cast(Tensor, self.network(self.from_numpy(windows_BCIJK))).float()

    @torch.no_grad()
    def from_numpy(self, array: np.ndarray) -> Tensor:
        """An array on the device; on the CPU it shares memory."""
        return torch.from_numpy(array).to(self.device)

    def to_numpy(self, array: Tensor) -> np.ndarray:
        """An array back in ordinary memory."""
        result: np.ndarray = array.cpu().numpy()
        return result


def load_runtime(
    description: ModelDescription, weights: Mapping[str, np.ndarray], device: torch.device
) -> TorchRuntime:
    """The network of a bundle with its weights.

    Raises:
        CheckpointError: The weights do not fit the network: tensors are missing, foreign, or of another shape.
    """
    try:
        with torch.device("meta"):  # shapes only: a description that asks for terabytes is refused before it gets them
            network = build_model(
                description.network, len(description.modalities), description.num_outputs, description.plan.strides
            )
        tensors = {name: torch.from_numpy(array).float() for name, array in weights.items()}
        network.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the bundle's weights do not fit its network: {error}"[:1000]) from error
    return TorchRuntime(network, description.num_outputs, device)


def choose_device(name: str) -> torch.device:
    """The device of a name: ``auto`` takes CUDA where there is one.

    Raises:
        ConfigError: The name is none, or CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"expected a device auto, cpu, cuda or cuda:N, found '{name}'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"expected a device auto, cpu, cuda or cuda:N, found '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"'{name}' is asked for, but this machine has {torch.cuda.device_count()} CUDA devices")
    return device
