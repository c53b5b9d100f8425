"""What a network costs, found without computing anything: it runs once on torch's meta device, where tensors have no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.models.outputs import Outputs

BYTES = 4
"""Of a number in fp32 [bytes]."""


@dataclass(frozen=True)
class NetworkCost:
    """A forward pass over one patch in fp32. Of a network of convolutions all but the parameters grow with the voxels.

    Attributes:
        num_parameters: Weights.
        num_voxels: Of the patch.
        macs: Multiply-adds.
        saved_bytes: Activations kept for the backward pass.
        largest_bytes: The largest of them.
        output_bytes: Logits, those of coarser stages included where the network learns from them.
    """

    num_parameters: int
    num_voxels: int
    macs: float
    saved_bytes: float
    largest_bytes: float
    output_bytes: float

    def at(self, num_voxels: int) -> NetworkCost:
        """The cost of a patch of another size, whose stages have the same strides."""
        ratio = num_voxels / self.num_voxels
        return NetworkCost(
            self.num_parameters,
            num_voxels,
            self.macs * ratio,
            self.saved_bytes * ratio,
            self.largest_bytes * ratio,
            self.output_bytes * ratio,
        )


def network_cost(build: Callable[[], nn.Module], in_channels: int, patch: Sequence[int]) -> NetworkCost:
    """The cost of a network.

    Args:
        build: Makes it.
        in_channels: Image channels.
        patch: Voxels along each axis.
    """
    with torch.device("meta"):
        network = build().to("meta").train()  # some networks of MONAI can only be built on the CPU
        image = torch.empty(1, in_channels, *patch)
    own = {_storage(parameter) for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}  # by storage: what two layers keep is kept once

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor  # the reference keeps the storage's address from being used again
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        outputs: Outputs = network(image)
    logits = (outputs,) if isinstance(outputs, Tensor) else outputs
    sizes = [float(tensor.untyped_storage().nbytes()) for tensor in saved.values()]
    return NetworkCost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_voxels=image[0, 0].numel(),
        macs=counter.get_total_flops() / 2,
        saved_bytes=sum(sizes),
        largest_bytes=max(sizes),
        output_bytes=float(sum(BYTES * tensor.numel() for tensor in logits)),
    )


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)
