"""What a U-Net costs, counted from its config: a planner weighs hundreds, and building each would take half a minute.

A test compares it with :func:`medseg.models.cost.network_cost`, which builds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from medseg.models.config import ResidualUNetConfig, UNetConfig, of_stages
from medseg.models.cost import BYTES, NetworkCost

Axes = Sequence[int]

PATCH_STRIDES = 2
"""Edge of the patch that is counted, in total strides of the network: all but the weights is proportional to the voxels."""


@dataclass
class _Sum:
    """What was counted so far; numbers of an activation, not bytes."""

    parameters: int = 0
    macs: int = 0
    saved: list[int] = field(default_factory=list)

    def convolve(self, before: int, after: int, kernel: Axes, voxels: int, bias: bool = False) -> None:
        """A convolution that gives ``voxels``, or a transposed one that takes them."""
        weights = before * after * math.prod(kernel)
        self.parameters += weights + after * bias
        self.macs += weights * voxels

    def block(self, before: int, after: int, kernel: Axes, voxels: int, activated: bool = True) -> None:
        """Convolution, normalisation (whose input is kept, and two numbers a channel), activation (its output)."""
        self.convolve(before, after, kernel, voxels)
        self.parameters += 2 * after
        self.saved += [after * voxels, after, after] + [after * voxels] * activated

    def residual_block(self, before: int, after: int, kernel: Axes, stride: Axes, voxels: int) -> None:
        """Two convolutions, the way around them, and the activation of their sum."""
        self.block(before, after, kernel, voxels)
        self.block(after, after, kernel, voxels, activated=False)
        if before != after:
            if max(stride) > 1:
                self.saved.append(before * voxels)  # what the average gave
            self.block(before, after, [1] * len(kernel), voxels, activated=False)
        self.saved.append(after * voxels)


def u_net_cost(
    config: UNetConfig | ResidualUNetConfig,
    in_channels: int,
    out_channels: int,
    strides: Sequence[Axes],
    kernels: Sequence[Axes] | None,
) -> NetworkCost:
    """The cost of a U-Net for one patch of twice its total strides.

    Args:
        config: With its features.
        in_channels: Image channels.
        out_channels: Logits a voxel.
        strides: Into each stage.
        kernels: Of each stage; 3 along every axis unless given.
    """
    assert config.features is not None
    features = config.features
    kernels = kernels or [[3] * len(strides[0]) for _ in features]
    patch_voxels = math.prod(PATCH_STRIDES * math.prod(along) for along in zip(*strides, strict=True))
    total = _Sum(saved=[in_channels * patch_voxels])
    voxels, before, maps = patch_voxels, in_channels, []
    for stage, (after, kernel, stride) in enumerate(zip(features, kernels, strides, strict=True)):
        voxels //= math.prod(stride)
        maps.append(voxels)
        _encode(total, config, stage, (before, after), kernel, stride, voxels)
        before = after
    counts = of_stages(_decoder_convolutions(config), len(features))
    for stage in range(len(features) - 2, -1, -1):
        fine, coarse = features[stage], features[stage + 1]
        total.convolve(coarse, fine, strides[stage + 1], maps[stage + 1], config.upsampling_bias)
        total.saved.append(2 * fine * maps[stage])  # what comes up beside the skip connection
        for index in range(counts[stage]):
            total.block(fine if index else 2 * fine, fine, kernels[stage], maps[stage])
    total.convolve(features[0], out_channels, strides[0], maps[0], bias=True)  # a stride of 1 is a kernel of 1
    logits = patch_voxels * out_channels
    for stage in range(1, len(features) - 1) if config.deep_supervision else ():
        total.convolve(features[stage], out_channels, [1] * len(strides[0]), maps[stage], bias=True)
        logits += maps[stage] * out_channels
    return NetworkCost(
        num_parameters=total.parameters,
        num_voxels=patch_voxels,
        macs=float(total.macs),
        saved_bytes=float(BYTES * sum(total.saved)),
        largest_bytes=float(BYTES * max(total.saved)),
        output_bytes=float(BYTES * logits),
    )


def _decoder_convolutions(config: UNetConfig | ResidualUNetConfig) -> int | Sequence[int]:
    if config.decoder_convolutions is None:
        assert isinstance(config, UNetConfig)
        return config.num_convolutions
    return config.decoder_convolutions


def _encode(
    total: _Sum,
    config: UNetConfig | ResidualUNetConfig,
    stage: int,
    channels: tuple[int, int],
    kernel: Axes,
    stride: Axes,
    voxels: int,
) -> None:
    before, after = channels
    ones = [1] * len(kernel)
    if isinstance(config, UNetConfig):
        for index in range(of_stages(config.num_convolutions, stage + 1)[stage]):
            total.block(after if index else before, after, kernel, voxels)
        return
    if stage == 0:  # the stem
        total.block(before, after, kernel, voxels)
    for index in range(of_stages(config.num_blocks, stage + 1)[stage]):
        is_first = stage > 0 and index == 0
        total.residual_block(before if is_first else after, after, kernel, stride if is_first else ones, voxels)
