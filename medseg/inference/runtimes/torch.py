"""The torch runtime: the network, or the networks of an ensemble, as they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.shapes import BCIJK, BLIJK
from medseg.inference.description import ModelDescription
from medseg.inference.runtime import Runtime, averaged
from medseg.models.build import build_model

PROBE_SEED = 0
"""Of the small input that a bundle carries with its logits."""


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
    description: ModelDescription, members: Sequence[Mapping[str, np.ndarray]], device: torch.device
) -> Runtime:
    """The networks of a bundle with their weights.

    Args:
        description: What they are.
        members: The weights of each.
        device: Where they will run.

    Raises:
        CheckpointError: The weights do not fit the network: tensors are missing, foreign, or of another shape.
    """
    networks = [load_network(description, weights) for weights in members]
    return averaged([TorchRuntime(network, description.num_outputs, device) for network in networks])


def make_probe(
    description: ModelDescription, members: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Float[np.ndarray, BCIJK]]:
    """A small ``image`` of random numbers and the ``logits`` that the networks give for it, on the CPU.

    Args:
        description: What the networks are.
        members: The weights of each, as the bundle's files will hold them: :func:`~medseg.io.bundle.stored_weights`.

    Raises:
        CheckpointError: The weights do not fit the network.
    """
    size = np.prod(np.array(description.plan.strides), axis=0) * 2
    shape = (1, len(description.modalities), *size.tolist())
    image = np.random.default_rng(PROBE_SEED).standard_normal(shape, dtype=np.float32)
    runtime = load_runtime(description, members, torch.device("cpu"))
    return {"image": image, "logits": runtime.to_numpy(runtime(image))}


def load_network(description: ModelDescription, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """A network with its weights in float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The weights do not fit the network: tensors are missing, foreign, or of another shape.
    """
    try:
        with torch.device("meta"):  # shapes only: a description that asks for terabytes is refused before it gets them
            network = build_model(
                description.network,
                len(description.modalities),
                description.num_outputs,
                description.plan.strides,
                description.plan.kernels,
            )
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        network.load_state_dict(whole, assign=True)
    except (RuntimeError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise CheckpointError(f"the bundle's weights do not fit its network: {error}"[:1000]) from error
    return network.eval()


def use_threads(num_threads: int) -> None:
    """Threads of torch on the CPU, in all of this process."""
    torch.set_num_threads(num_threads)


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
