from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import nn

from medseg.core.errors import ConfigError
from medseg.models import config as configs
from medseg.models.build import build_model
from medseg.models.config import NetworkConfig, ResidualUNetConfig, UNetConfig, VNetConfig
from medseg.models.layers import instance_norm
from medseg.models.residual_unet import ResidualBlock, ResidualUNet
from medseg.models.unet import UNet
from medseg.models.vnet import VNet

KINDS = get_args(get_args(NetworkConfig)[0])
SMALL = {
    "unet": {"features": (4, 6, 8), "stem_stride": 1},
    "residual_unet": {"features": (4, 6, 8), "num_blocks": (1, 2), "stem_stride": 1},
    "vnet": {"width": 2, "num_convolutions": (1, 2, 2), "kernel_size": 3},
    "segresnet": {"width": 4, "num_blocks": (1, 1, 2)},
    "dynunet": {"features": (4, 6, 8)},
    "attention_unet": {"features": (4, 6, 8)},
    "swin_unetr": {},
    "mednext": {"width": 4, "num_blocks": (1, 1, 1)},
}
DEEP = [kind for kind in KINDS if "deep_supervision" in kind.model_fields]


def small(kind, **changes):
    return kind(**{**SMALL[kind().kind], **changes})


def strides_of(config, num_axes: int, stem: int = 1) -> list[list[int]]:
    steps = (1, 2, 2, 2, 2, 2) if config.kind == "swin_unetr" else (stem, 2, 2)
    return [[step] * num_axes for step in steps]


def a_size(strides) -> list[int]:
    """Two voxels at the coarsest stage along the first axis, one along the others of a network with many stages."""
    total = math.prod(step for step, *_ in strides)
    return [2 * total, *[total if total > 16 else 2 * total] * (len(strides[0]) - 1)]


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_every_network_keeps_the_size_and_uses_every_parameter(kind, num_axes: int) -> None:
    config = small(kind)
    strides = strides_of(config, num_axes)
    network = build_model(config, 2, 5, strides)
    with torch.no_grad():
        for parameter in network.parameters():  # a residual block starts as its way around, which hides its inside
            parameter.add_(0.01 * torch.randn_like(parameter))
    size = a_size(strides)
    logits = network(torch.randn(1, 2, *size))
    assert logits.shape == (1, 5, *size)
    logits.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # MONAI has a bias before a normalisation, which takes it away again, and attention's keys have one that changes nothing.
    assert [name for name in unused if not name.endswith("bias")] == []
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 2, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("network_type", [UNet, ResidualUNet])
@pytest.mark.parametrize("stem", [1, 2])
def test_unets_take_strides_and_kernels_by_axis(network_type, stem: int, num_axes: int) -> None:
    strides = [[stem] * num_axes, [2] * num_axes, [1, *[2] * (num_axes - 1)]]
    kernels = [[1, *[3] * (num_axes - 1)], [3] * num_axes, [3] * num_axes]
    network = network_type(2, 5, [4, 6, 8], strides, kernels)
    assert network.total_stride == (stem * 2, *[stem * 4] * (num_axes - 1))
    size = [2 * stride for stride in network.total_stride]
    assert network(torch.randn(2, 2, *size)).shape == (2, 5, *size)
    found = {module.kernel_size for module in network.encoder[0].modules() if isinstance(module, nn.Conv2d | nn.Conv3d)}
    assert found == {tuple(kernels[0])}
    with pytest.raises(ValueError, match="one entry a stage"):
        network_type(2, 5, [4, 6], strides)


def test_vnet_works_on_half_the_resolution() -> None:
    network = VNet(2, 5, width=4, num_convolutions=(1, 2, 2), kernel=(3, 3, 3), stem_stride=2)
    assert network.total_stride == (8, 8, 8)
    assert network(torch.randn(2, 2, 16, 16, 8)).shape == (2, 5, 16, 16, 8)


def test_paper_vnet_has_five_stages_of_five_cubed_kernels() -> None:
    network = build_model(VNetConfig(), 1, 2, [[2] * 3] * 5)
    kernels = [m.kernel_size for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
    assert kernels.count((5, 5, 5)) == 1 + (1 + 2 + 3 + 3 + 3) + (1 + 2 + 3 + 3)
    assert network.total_stride == (16, 16, 16)


def test_residual_unet_has_residual_blocks_down_and_one_convolution_up() -> None:
    network = build_model(
        ResidualUNetConfig(features=(4, 6, 8, 10), num_blocks=(1, 3)), 1, 2, [[1] * 3, *[[2] * 3] * 3]
    )
    blocks = [[m for m in stage.modules() if isinstance(m, ResidualBlock)] for stage in network.encoder]
    assert [len(stage) for stage in blocks] == [1, 3, 3, 3]
    assert [len(stage) for stage in network.decoder] == [1, 1, 1]
    fresh = blocks[1][1]
    features = torch.randn(1, 6, 4, 4, 4)
    torch.testing.assert_close(fresh(features), nn.functional.leaky_relu(features, 0.01))


@pytest.mark.parametrize("kind", DEEP, ids=lambda kind: kind().kind)
def test_deep_supervision_answers_at_each_stage_in_training_and_costs_nothing_in_prediction(kind) -> None:
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    plain, deep = (build_model(small(kind, deep_supervision=on), 1, 4, strides) for on in (False, True))
    image = torch.randn(1, 1, 16, 8, 8)
    outputs = deep(image)
    assert isinstance(outputs, tuple)
    assert [tuple(logits.shape) for logits in outputs[:2]] == [(1, 4, 16, 8, 8), (1, 4, 8, 4, 4)]
    assert isinstance(plain(image), torch.Tensor)
    missing, extra = deep.load_state_dict(plain.state_dict(), strict=False)
    assert extra == []
    assert missing
    assert sum(deep.state_dict()[name].numel() for name in missing) < 200, "heads and nothing else"
    calls: list[str] = []
    for network in (plain, deep):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        first = plain.eval()(image)
        wanted, calls[:] = calls.copy(), []
        second = deep.eval()(image)
    assert torch.equal(first, second)
    assert calls == wanted


def test_coarser_stages_are_halved_as_the_strides_say() -> None:
    strides = [[2, 2, 2], [2, 2, 1], [2, 2, 2], [1, 2, 2]]
    config = UNetConfig(features=(4, 6, 8, 10), deep_supervision=True)
    outputs = build_model(config, 1, 3, strides)(torch.randn(1, 1, 16, 32, 16))
    assert [tuple(logits.shape[2:]) for logits in outputs] == [(16, 32, 16), (4, 8, 8), (2, 4, 4)]


def test_features_left_to_the_planner_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"network\.features"):
        build_model(UNetConfig(features=None), 1, 2, [[2] * 3] * 4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_samples_of_a_batch_do_not_meet(kind) -> None:
    """A batch equals its patches one by one."""
    config = small(kind)
    strides = strides_of(config, 2)
    network = build_model(config, 1, 3, strides).eval()
    batch = torch.randn(2, 1, *a_size(strides))
    with torch.no_grad():
        together = network(batch)
        alone = torch.cat([network(patch[None]) for patch in batch])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_unet_translates_with_its_input() -> None:
    """Away from the edges, moving the image by the total stride moves the logits by as much."""
    network = UNet(1, 2, [4, 8], [[2] * 3, [2] * 3]).double().eval()
    for module in network.modules():  # instance norm looks at the whole image, so its statistics are taken out
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 1, 48, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        first, moved = network(image), network(image.roll(4, dims=2))
    torch.testing.assert_close(first.roll(4, dims=2)[:, :, 20:32], moved[:, :, 20:32])


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 5, 6, 7, 8)])
def test_instance_norm_is_torchs(shape) -> None:
    ours = instance_norm(5)
    theirs = (nn.InstanceNorm2d if len(shape) == 4 else nn.InstanceNorm3d)(5, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    features = 3 + 5 * torch.randn(shape)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-5)


def test_building_a_network_of_ours_does_not_import_monai() -> None:
    """MONAI takes seconds to import."""
    code = """
import sys
from medseg.models.build import build_model
from medseg.models.config import ResidualUNetConfig, UNetConfig, VNetConfig
for config in (UNetConfig(features=(4, 8)), ResidualUNetConfig(features=(4, 8)), VNetConfig(num_convolutions=(1, 1))):
    build_model(config, 1, 2, [[2] * 3] * 2)
sys.exit('monai' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_every_field_of_a_network_is_explained(kind) -> None:
    assert [name for name, field in kind.model_fields.items() if name != "kind" and not field.description] == []


def test_uniform_networks_say_their_strides() -> None:
    found = {kind().kind: math.prod(kind().strides) for kind in get_args(configs.UniformConfig)}
    assert found == {"vnet": 16, "segresnet": 8, "swin_unetr": 32, "mednext": 8}


@pytest.mark.parametrize("kind", [UNetConfig, ResidualUNetConfig])
def test_a_decoder_may_have_its_own_convolutions_and_a_bias(kind) -> None:
    strides = [[1] * 3, [2] * 3, [2] * 3]
    usual = build_model(small(kind), 1, 2, strides)
    assert usual.upsampling[0].bias is None
    network = build_model(small(kind, decoder_convolutions=(3, 2), upsampling_bias=True), 1, 2, strides)
    assert [len(stage) for stage in network.decoder] == [2, 3], (
        "the coarsest comes first, and the counts are from the finest"
    )
    assert all(up.bias is not None for up in network.upsampling)
    assert len(network.encoder[2]) == len(usual.encoder[2])
    assert network(torch.randn(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
