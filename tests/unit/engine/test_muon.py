"""Muon beside torch's own, which knows only matrices, beside AdamW, and beside a singular value decomposition."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.engine.checkpoint import load_checkpoint, save_checkpoint
from medseg.engine.muon import SCALE, Muon, is_matrix, orthogonal
from medseg.engine.precision import Precision

SETTINGS = {"learning_rate": 3e-3, "weight_decay": 1e-2, "momentum": 0.95}


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 16, 3),
        nn.Conv3d(16, 24, 3),
        nn.ConvTranspose3d(24, 16, 2, 2),
        nn.GroupNorm(4, 16),
        nn.Conv3d(16, 3, 1),
    )


def train(network: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 3, first: int = 0) -> None:
    for step in range(first, first + num_steps):
        optimizer.zero_grad(set_to_none=True)
        image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(step))
        network(image).square().mean().backward()
        optimizer.step()


def as_matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)


def test_matrices_are_the_weights_from_many_channels_to_many() -> None:
    found = [name for name, parameter in small_network().named_parameters() if is_matrix(parameter)]
    assert found == ["1.weight", "2.weight"]


@pytest.mark.parametrize("shape", [(16, 432), (128, 3456), (96, 20), (32, 32)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, min(shape))
    found = left.T @ orthogonal(left @ torch.diag(values) @ right * 7.0) @ right.T
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=1e-3)
    assert found.diagonal().min() > 0.65 and found.diagonal().max() < 1.25


def test_orthogonal_leaves_zero_as_it_is_and_does_not_depend_on_the_scale() -> None:
    assert torch.equal(orthogonal(torch.zeros(16, 20)), torch.zeros(16, 20))
    matrix = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonal(matrix), orthogonal(matrix * 1e-4), atol=1e-5)


def test_matrices_move_as_in_torch_and_the_others_as_in_adamw_to_the_bit() -> None:
    network = small_network()
    optimizer = Muon(network, **SETTINGS)
    matrices = [nn.Parameter(as_matrix(weight)) for weight in network.parameters() if is_matrix(weight)]
    torch_muon = torch.optim.Muon(
        matrices, lr=SCALE / 0.2 * 3e-3, weight_decay=0.2 / SCALE * 1e-2, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    others = {
        name: nn.Parameter(weight.detach().clone())
        for name, weight in network.named_parameters()
        if not is_matrix(weight)
    }
    adamw = torch.optim.AdamW(others.values(), lr=3e-3, weight_decay=1e-2, fused=True)
    for step in range(3):
        before = [as_matrix(weight).clone() for weight in network.parameters() if is_matrix(weight)]
        train(network, optimizer, 1, step)
        for name, weight in network.named_parameters():
            if name in others:
                others[name].grad = weight.grad
        found = [weight for weight in network.parameters() if is_matrix(weight)]
        for matrix, weight in zip(matrices, found, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)
        torch_muon.step()
        adamw.step()
        for old, matrix, weight in zip(before, matrices, found, strict=True):
            moved, expected = as_matrix(weight) - old, matrix.detach() - old
            assert (moved - expected).norm() < 0.05 * expected.norm(), "torch iterates in bfloat16"
            matrix.data.copy_(as_matrix(weight))
        for name, weight in network.named_parameters():
            if name in others:
                assert torch.equal(others[name], weight)


def test_a_checkpoint_goes_on_to_the_bit(tmp_path: Path) -> None:
    network = small_network()
    optimizer = Muon(network, **SETTINGS)
    train(network, optimizer)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, network, None, optimizer, Precision("fp32", "cpu"), {})
    resumed = small_network()
    again = Muon(resumed, **SETTINGS)
    load_checkpoint(path, resumed, None, again, Precision("fp32", "cpu"))
    train(network, optimizer, 2, 3)
    train(resumed, again, 2, 3)
    for one, other in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_infinite_gradient_in_fp16_changes_no_weight() -> None:
    network = small_network()
    optimizer, precision = Muon(network, **SETTINGS), Precision("fp16", "cpu")
    before = copy.deepcopy(network)
    precision.backward(network(torch.ones(1, 1, 8, 8, 8)).mean() * float("inf"))
    precision.update(network, optimizer, float(precision.gradient_norm(network, optimizer)), 12.0)
    for one, other in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
