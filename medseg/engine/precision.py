"""Arithmetic of a training step: autocast and loss scaling in one object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

PrecisionName = Literal["fp32", "bf16", "fp16"]

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def norm_of_gradients(network: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients together, as they are."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


class Precision:
    """Runs the forward pass in a precision and the backward pass safely.

    Args:
        name: fp16 scales the loss, so that small gradients survive, and skips a step whose gradients are not finite.
        device_type: ``cpu`` or ``cuda``.
    """

    def __init__(self, name: PrecisionName, device_type: str) -> None:
        self.name, self.device_type = name, device_type
        self.scaler = torch.amp.GradScaler(device_type, enabled=name == "fp16")

    @property
    def expects_overflow(self) -> bool:
        """Whether gradients may overflow without anybody's fault: in fp16, until the scale has come down to nothing."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a forward pass."""
        with torch.autocast(self.device_type, TYPES[self.name], enabled=self.name != "fp32"):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, scaled, to those that are there."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of all gradients, once their scale is taken off; :meth:`update` or :meth:`skip` must follow."""
        self.scaler.unscale_(optimizer)
        return norm_of_gradients(network)

    def update(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, norm: float, clip_norm: float | None
    ) -> None:
        """Clip the gradients and change the weights; where fp16 overflowed, halve the scale and change none.

        Args:
            network, optimizer: What is changed.
            norm: From :meth:`gradient_norm`.
            clip_norm: Largest norm; gradients below it are left as they are.
        """
        if clip_norm is not None and norm > clip_norm:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), clip_norm, torch.tensor(norm))
        self.scaler.step(optimizer)
        self.scaler.update()

    def skip(self) -> None:
        """Leave a step's gradients unused."""
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """Plain numbers to go on from."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        if state:
            self.scaler.load_state_dict(state)
