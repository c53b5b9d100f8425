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


def instance_norm(num_axes: int) -> Layer:
    """Instance normalisation for two or three axes."""
    return nn.InstanceNorm2d if num_axes == 2 else nn.InstanceNorm3d
