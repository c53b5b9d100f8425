from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.models.build import build_model
from medseg.models.config import NetworkConfig, ResidualUNetConfig, UNetConfig
from medseg.models.cost import network_cost
from medseg.models.u_net_cost import PATCH_STRIDES, u_net_cost

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
KINDS = [kind for kind in get_args(get_args(NetworkConfig)[0]) if kind().kind in SMALL]


def networks(kind):
    config = kind(**SMALL[kind().kind])
    steps = (1, 2, 2, 2, 2, 2) if config.kind == "swin_unetr" else (1, 2, 2)
    return (lambda: build_model(config, 1, 3, [[step] * 3 for step in steps])), 2 * math.prod(steps)


def counted_by_hand(network: nn.Module, image: torch.Tensor) -> float:
    """Multiply-adds of the convolutions: positions times the weights that each takes."""
    total = 0.0

    def count(module, inputs, output) -> None:
        nonlocal total
        positions = inputs[0] if isinstance(module, nn.ConvTranspose3d) else output
        total += positions.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    network(image)
    return total


def kept_for_real(network: nn.Module, image: torch.Tensor) -> float:
    """Bytes that a real forward pass keeps for the backward pass, weights left out."""
    kept: dict[int, torch.Tensor] = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(image)
    del outputs
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_the_cost_of_every_network_is_what_it_really_takes(kind) -> None:
    build, size = networks(kind)
    cost = network_cost(build, 1, (size, size, size))
    network, image = build().train(), torch.randn(1, 1, size, size, size)
    assert cost.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.saved_bytes == pytest.approx(kept_for_real(network, image), rel=0.02)
    assert cost.output_bytes == 4 * 3 * size**3
    by_hand = counted_by_hand(build().train(), image)
    if kind().kind == "swin_unetr":  # attention multiplies too
        assert cost.macs > by_hand
    else:
        assert cost.macs == pytest.approx(by_hand)


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("width", [8, 16])
def test_a_u_net_costs_in_proportion_to_its_voxels(width: int, stem: int) -> None:
    config = UNetConfig(features=(width, 2 * width, 4 * width), stem_stride=stem)

    def build() -> nn.Module:
        return build_model(config, 2, 5, [[stem] * 3, [2, 2, 1], [2, 2, 2]], [[3, 3, 1], [3, 3, 3], [3, 3, 3]])

    small, large = network_cost(build, 2, (16, 16, 8)), network_cost(build, 2, (48, 32, 24))
    scaled = small.at(large.num_voxels)
    assert scaled.macs == pytest.approx(large.macs)
    assert scaled.output_bytes == pytest.approx(large.output_bytes)
    assert scaled.largest_bytes == pytest.approx(large.largest_bytes)
    assert scaled.saved_bytes == pytest.approx(large.saved_bytes, rel=0.01), "means and deviations do not grow"


def test_deep_supervision_counts_the_coarser_logits() -> None:
    def cost(deep: bool):
        config = UNetConfig(features=(4, 6, 8), stem_stride=1, deep_supervision=deep)
        return network_cost(lambda: build_model(config, 1, 3, [[1] * 3, [2] * 3, [2] * 3]), 1, (16, 16, 16))

    assert cost(True).output_bytes == 4 * 3 * (16**3 + 8**3)
    assert cost(False).output_bytes == 4 * 3 * 16**3


STRIDE = st.tuples(*[st.sampled_from([1, 2])] * 3)


@st.composite
def u_nets(draw):
    features = tuple(draw(st.lists(st.integers(1, 12), min_size=2, max_size=5)))
    counts = st.integers(1, 3) | st.lists(st.integers(1, 3), min_size=1, max_size=6).map(tuple)
    shared = {"features": features, "deep_supervision": draw(st.booleans()), "upsampling_bias": draw(st.booleans())}
    if draw(st.booleans()):
        decoder = draw(st.none() | counts)
        config = UNetConfig(num_convolutions=draw(counts), decoder_convolutions=decoder, **shared)
    else:
        blocks = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
        config = ResidualUNetConfig(num_blocks=blocks, decoder_convolutions=draw(counts), **shared)
    strides = tuple(draw(STRIDE) for _ in features)
    kernel = st.sampled_from([(1, 3, 3), (3, 3, 3), (3, 3, 1)])
    kernels = draw(st.none() | st.tuples(*[kernel] * len(features)))
    return config, strides, kernels


@settings(max_examples=40)
@given(u_nets(), st.integers(1, 3), st.integers(1, 9))
def test_a_u_net_that_is_counted_costs_what_it_costs_when_it_is_built(
    u_net, in_channels: int, out_channels: int
) -> None:
    config, strides, kernels = u_net
    patch = [PATCH_STRIDES * math.prod(along) for along in zip(*strides, strict=True)]
    built = network_cost(lambda: build_model(config, in_channels, out_channels, strides, kernels), in_channels, patch)
    assert u_net_cost(config, in_channels, out_channels, strides, kernels) == built
