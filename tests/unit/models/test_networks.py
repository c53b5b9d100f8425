from __future__ import annotations

import pytest
import torch

from medseg.models.build import build_model
from medseg.models.config import UNetConfig, VNetConfig
from medseg.models.unet import UNet
from medseg.models.vnet import VNet


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("stem", [1, 2])
def test_unet_keeps_the_size_and_uses_every_parameter(num_axes: int, stem: int) -> None:
    strides = [[stem] * num_axes, [2] * num_axes, [1, *[2] * (num_axes - 1)]]
    network = UNet(2, 5, [4, 6, 8], strides)
    assert network.total_stride == (stem * 2, *[stem * 4] * (num_axes - 1))
    size = [2 * stride for stride in network.total_stride]
    logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("stem", [1, 2])
def test_vnet_keeps_the_size_and_uses_every_parameter(num_axes: int, stem: int) -> None:
    network = VNet(2, 5, width=4, num_convolutions=(1, 2, 2), stem_stride=stem, num_axes=num_axes)
    assert network.total_stride == (4 * stem,) * num_axes
    size = [8 * stem] * num_axes
    logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_paper_vnet_has_five_stages_of_five_cubed_kernels() -> None:
    network = build_model(VNetConfig(), 1, 2, [[2] * 3] * 5)
    kernels = [m.kernel_size for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
    assert kernels.count((5, 5, 5)) == 1 + (1 + 2 + 3 + 3 + 3) + (1 + 2 + 3 + 3)
    assert network.total_stride == (16, 16, 16)


def test_samples_of_a_batch_do_not_meet() -> None:
    """A batch equals its patches one by one."""
    network = build_model(UNetConfig(features=(4, 8)), 1, 3, [[2] * 3, [2] * 3]).eval()
    batch = torch.randn(3, 1, 8, 8, 8)
    with torch.no_grad():
        together = network(batch)
        alone = torch.cat([network(patch[None]) for patch in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_unet_translates_with_its_input() -> None:
    """Away from the edges, moving the image by the total stride moves the logits by as much."""
    network = UNet(1, 2, [4, 8], [[2] * 3, [2] * 3]).double().eval()
    for module in network.modules():  # instance norm looks at the whole image, so its statistics are taken out
        if isinstance(module, torch.nn.InstanceNorm3d):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 1, 48, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        first, moved = network(image), network(image.roll(4, dims=2))
    torch.testing.assert_close(first.roll(4, dims=2)[:, :, 20:32], moved[:, :, 20:32])
