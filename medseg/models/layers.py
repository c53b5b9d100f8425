"""Layers by number of spatial axes, so that one network class serves pictures and volumes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Layer = Callable[..., nn.Module]


def convolution(num_axes: int) -> Layer:
    """The convolution for two or three axes."""
    return nn.Conv2d if num_axes == 2 else nn.Conv3d


def transposed_convolution(num_axes: int) -> Layer:
    """The transposed convolution for two or three axes."""
    return nn.ConvTranspose2d if num_axes == 2 else nn.ConvTranspose3d


def average_pool(num_axes: int) -> Layer:
    """The mean over boxes, for two or three axes."""
    return nn.AvgPool2d if num_axes == 2 else nn.AvgPool3d


def instance_norm(num_channels: int) -> nn.Module:
    """Instance normalisation with a learnt scale and offset, for any number of axes.

    As group normalisation with one channel a group: the same figures (and names of weights), but torch's instance
    normalisation goes through batch normalisation, which takes several times as long on the CPU.
    """
    return nn.GroupNorm(num_channels, num_channels)
