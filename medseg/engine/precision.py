"""Arithmetic of a training step: autocast and loss scaling in one object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

PrecisionName = Literal["fp32", "bf16", "fp16"]

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Runs the forward pass in a precision and the backward pass safely.

    Args:
        name: fp16 scales the loss, so that small gradients survive, and skips a step whose gradients are not finite.
        device_type: ``cpu`` or ``cuda``.
    """

    def __init__(self, name: PrecisionName, device_type: str) -> None:
        self.name, self.device_type = name, device_type
        self.scaler = torch.amp.GradScaler(device_type, enabled=name == "fp16")

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a forward pass."""
        with torch.autocast(self.device_type, TYPES[self.name], enabled=self.name != "fp32"):
            yield

    def step(
        self, loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None
    ) -> float:
        """Backward pass, clipping, update.

        Returns:
            The gradient norm before clipping; not finite where fp16 overflowed: then no weight has changed and the
            scale is halved.
        """
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(optimizer)
        limit = float("inf") if clip_norm is None else clip_norm
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        self.scaler.step(optimizer)
        self.scaler.update()
        return float(norm)

    def state(self) -> dict[str, Any]:
        """Plain numbers to go on from."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        if state:
            self.scaler.load_state_dict(state)
