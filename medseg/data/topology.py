"""How deep a network can be on a patch: strides and kernels of each stage, by the patch's size and spacing. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medseg.core.geometry import Shape3, Spacing3

STRIDE_RATIO = 2.0
"""An axis this much coarser than the finest is not strided until the others have caught up. nnU-Net's rule."""

SMALLEST_MAP = 4
"""A feature map's axis is not strided below this many voxels. nnU-Net's rule."""

LARGEST_PATCH_VOXELS = 256**3
"""Where the search for a patch begins. nnU-Net's rule."""

SMALLEST_PATCH_EDGE = 16
"""Where it ends [voxels]: a smaller patch is mostly border."""


@dataclass(frozen=True)
class StageRule:
    """What a network asks of the plan.

    Attributes:
        num_stages: Resolutions of the network; None: as many as the patch allows.
        stem_stride: Stride of the first stage on every axis that is not too coarse.
        uniform: All axes are strided alike (V-Net), whatever their spacing.
    """

    num_stages: int | None
    stem_stride: int
    uniform: bool


@dataclass(frozen=True)
class Layout:
    """A patch and the stages that fit it.

    Attributes:
        patch_ijk: Voxels; a multiple of the strides' product.
        strides: Into each stage, the stem's first.
        kernels: Of each stage; None: 3 along every axis.
    """

    patch_ijk: Shape3
    strides: tuple[Shape3, ...]
    kernels: tuple[Shape3, ...] | None = None

    @property
    def num_voxels(self) -> int:
        """Of the patch."""
        return int(np.prod(self.patch_ijk, dtype=np.int64))


def fixed_strides(size: np.ndarray, spacing: Spacing3, rule: StageRule) -> tuple[Shape3, ...]:
    """Strides of a network whose number of stages is given.

    Args:
        size: Wanted of the patch [voxels].
        spacing: Of the network's grid.
        rule: With a number of stages.
    """
    assert rule.num_stages is not None
    size, coarseness = np.array(size, dtype=float), np.array(spacing, dtype=float)
    strides: list[Shape3] = []
    for stage in range(rule.num_stages):
        wanted = rule.stem_stride if stage == 0 else 2
        stride = np.full(3, wanted)
        if not rule.uniform:
            stride[coarseness > STRIDE_RATIO * coarseness.min()] = 1
            stride[np.round(size / wanted) < SMALLEST_MAP] = 1
        size, coarseness = size / stride, coarseness * stride
        strides.append(_triple(stride))
    return tuple(strides)


def growing_stages(
    size: np.ndarray, spacing: Spacing3, stem_stride: int
) -> tuple[tuple[Shape3, ...], tuple[Shape3, ...]]:
    """Strides and kernels of as many stages as a patch allows.

    An axis is strided while it is less than twice as coarse as the finest that can be, and its map stays at 4 voxels or more;
    one axis alone only while it has 12. A kernel is 3 along an axis from the stage on where that axis is less than twice as
    coarse as the finest, before that 1; the last stage has 3 everywhere.

    Source: nnU-Net 2.8, ``get_pool_and_conv_props``. Deviation: a stem with a stride.
    """
    size, coarseness = np.array(size, dtype=float), np.array(spacing, dtype=float)
    stem = np.where(
        (coarseness < STRIDE_RATIO * coarseness.min()) & (size >= stem_stride * SMALLEST_MAP), stem_stride, 1
    )
    size, coarseness = np.ceil(size / stem), coarseness * stem
    strides, kernels = [_triple(stem)], []
    kernel = np.ones(3, dtype=int)
    while True:
        possible = size >= 2 * SMALLEST_MAP
        if not possible.any():
            break
        possible &= coarseness < STRIDE_RATIO * coarseness[possible].min()
        if possible.sum() == 1 and size[possible][0] < 3 * SMALLEST_MAP:
            break
        kernel = np.where(coarseness < STRIDE_RATIO * coarseness.min(), 3, kernel)
        kernels.append(_triple(kernel))
        stride = np.where(possible, 2, 1)
        size, coarseness = np.ceil(size / stride), coarseness * stride
        strides.append(_triple(stride))
    kernels.append((3, 3, 3))
    return tuple(strides), tuple(kernels)


def layout(size: np.ndarray, spacing: Spacing3, rule: StageRule) -> Layout:
    """The smallest patch of at least a size that the network's strides divide, and its stages."""
    kernels: tuple[Shape3, ...] | None = None
    if rule.num_stages is None:
        strides, kernels = growing_stages(size, spacing, rule.stem_stride)
        if all(min(kernel) == 3 for kernel in kernels):
            kernels = None
    else:
        strides = fixed_strides(size, spacing, rule)
    total = np.prod(np.array(strides), axis=0)
    return Layout(_triple(np.ceil(size / total - 1e-6).astype(int) * total), strides, kernels)


def layouts(median_shape: np.ndarray, spacing: Spacing3, rule: StageRule) -> Iterator[Layout]:
    """Patches from the largest that is of any use down to the smallest.

    The first has the same extent along each axis and 256^3 voxels, but no axis is longer than a median case. Then,
    step by step, the axis that covers the most of a median case loses one multiple of its strides.

    Args:
        median_shape: Of the cases on the network's grid [voxels].
        spacing: Of the network's grid.
        rule: What the network asks for.

    Source: nnU-Net 2.8, ``ExperimentPlanner.get_plans_for_configuration``.
    """
    inverse = 1 / np.array(spacing)
    cube = np.round(inverse * (LARGEST_PATCH_VOXELS / inverse.prod()) ** (1 / 3))
    current = layout(np.minimum(cube, median_shape), spacing, rule)
    while True:
        yield current
        size = np.array(current.patch_ijk, dtype=float)
        shrinkable = size - np.prod(np.array(current.strides), axis=0) >= np.minimum(SMALLEST_PATCH_EDGE, median_shape)
        if not shrinkable.any():
            return
        axis = int(np.argmax(np.where(shrinkable, size / median_shape, 0)))
        smaller = size.copy()
        smaller[axis] -= np.prod([stride[axis] for stride in current.strides])
        # Fewer stages may fit the smaller patch, whose sizes then lie closer together: none of them is skipped.
        next_smaller = layout(smaller, spacing, rule)
        size[axis] -= np.prod([stride[axis] for stride in next_smaller.strides])
        between = layout(size, spacing, rule)
        previous, current = current, between if between.num_voxels < current.num_voxels else next_smaller
        if current.num_voxels >= previous.num_voxels:
            return


def _triple(values: np.ndarray) -> Shape3:
    i, j, k = (int(value) for value in values)
    return i, j, k
