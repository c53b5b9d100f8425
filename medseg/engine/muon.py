"""Muon: momentum whose weight matrices are made orthogonal, and AdamW for all that is no matrix.

Adam scales each weight by itself; Muon gives each direction of a layer's map the same share of a step. What it gains is in
docs/decisions/0008.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_MATRIX = 16
"""Channels before and after a layer from which on it counts as one: not the first, from few image channels, nor the last, to few
classes, nor those that mix no channels. They want a size of step of their own, Jordan says."""

SCALE = 0.6
"""Root mean square of an update, in learning rates: so that AdamW's rate serves for both. Liu has .2, with which the loss of
steps 400 to 500 was .466 where it is .453 with this (hn_oar, one seed)."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration for singular values: a s + b s^3 + c s^5. Five times lead from .01 and from 1 to between .7 and 1.2. Jordan's."""

NUM_ITERATIONS = 5

SMALLEST_NORM = 1e-7
"""Below it a matrix is taken for zero."""


class Muon(torch.optim.AdamW):
    """Fused AdamW, where matrices are changed by Muon instead.

    Args:
        network: All of its parameters are optimised.
        learning_rate: Of AdamW; a matrix moves by :data:`SCALE` of it a weight.
        weight_decay: Decoupled, of both.
        momentum: Nesterov momentum of matrices.

    Source:
        K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; its size of step from J. Liu et al. 2025, "Muon is
        scalable for LLM training". As ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, which takes only parameters
        with two axes.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float, momentum: float) -> None:
        parameters = sorted(network.parameters(), key=is_matrix)
        groups = [
            {"params": list(members), "is_matrix": matrices} for matrices, members in groupby(parameters, is_matrix)
        ]
        super().__init__(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["momentum"] = momentum
        self._step_supports_amp_scaling = (
            False  # Muon's part knows nothing of it: GradScaler leaves the step out itself
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change all parameters that have gradients."""
        assert closure is None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_matrix"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["is_matrix"]:
                self._update_matrices(group["params"], group["lr"], group["weight_decay"], group["momentum"])

    def _update_matrices(
        self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float, momentum: float
    ) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # AdamW looks for steps in every state when it loads one.
                state.update(step=torch.tensor(0.0), mean=torch.zeros_like(parameter))
            mean = state["mean"]
            state["step"] += 1
            mean.lerp_(parameter.grad, 1 - momentum)
            update = orthogonal(parameter.grad.lerp(mean, momentum).flatten(1))
            parameter.mul_(1 - learning_rate * weight_decay)
            rate = learning_rate * SCALE * max(update.shape) ** 0.5
            parameter.add_(update.view_as(parameter), alpha=-rate)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter maps many channels to many."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= SMALLEST_MATRIX


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns: its singular values are from .7 to 1.2, but for the smallest.

    The iteration only multiplies the matrix by polynomials of its Gram matrix: it is done with that, which is small, and in
    fp32. So a step of the iteration on 128 x 3456 weights takes a thirteenth of the multiplications.

    Args:
        matrix: Of two axes; zero stays zero.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=SMALLEST_NORM)
    gram = wide @ wide.T
    factor = torch.eye(len(wide), device=matrix.device)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    result: Tensor = factor @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T
