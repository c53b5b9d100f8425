"""What a planner may choose from: all grids, patches, networks and batches that a config leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from medseg.core.case import Dataset
from medseg.core.geometry import Shape3, Spacing3
from medseg.core.units import MM3_PER_ML
from medseg.data.plan import FEW_VOXELS_THICK, DataFacts, Plan, voxels_thick
from medseg.data.topology import Layout, StageRule, layout, layouts
from medseg.engine.machine import Step
from medseg.models.build import build_model
from medseg.models.config import NetworkConfig, ResidualUNetConfig, UNetConfig
from medseg.models.cost import NetworkCost, network_cost
from medseg.models.u_net_cost import PATCH_STRIDES, u_net_cost
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.network import doubled, stage_rule

WIDTHS = (8, 12, 16, 24, 32)
"""Channels of the finest stage; nnU-Net has 32."""

STEM_STRIDES = (1, 2)
"""Of the first stage; 2 works on half the resolution."""

GRID_FACTOR, NUM_GRIDS = 1.5, 9
"""Voxels of a grid beside those of the next coarser one, and how many grids are weighed: down to a twenty-sixth."""

BATCH_SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""nnU-Net's smallest is 2 too: one patch alone may hold no structure."""

LARGEST_SHARE = 0.05
"""Of all voxels of the training cases, in one batch. nnU-Net's rule."""

SMALLEST_BOTTLENECK = 8
"""Voxels of the coarsest map: normalisation over fewer says nothing."""


@dataclass(frozen=True)
class Choice:
    """One of the alternatives.

    Attributes:
        spacing: Of the network's grid.
        layout: Patch and stages.
        network: With nothing left open.
        cost: Of the network for one patch.
        batch_size: Patches a step.
    """

    spacing: Spacing3
    layout: Layout
    network: NetworkConfig
    cost: NetworkCost
    batch_size: int

    @property
    def step(self) -> Step:
        """What one step works through."""
        return Step(self.cost, self.batch_size)


class Search:
    """The alternatives of a config.

    Args:
        config: What it fixes is not searched.
        dataset: That is trained on.
        plan: As it follows from the data alone.
        most_voxels: Of a patch.
    """

    def __init__(
        self, config: CtSegmentationConfig, dataset: Dataset, plan: Plan, most_voxels: float = math.inf
    ) -> None:
        assert plan.fingerprint is not None
        self.config, self.dataset, self.plan, self.most_voxels = config, dataset, plan, most_voxels
        self.facts: DataFacts = plan.fingerprint
        self.num_outputs = dataset.labels.num_channels - (config.loss.activation == "sigmoid")

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose."""
        choices, network = self.config.plan, self.config.network
        patch_is_open = choices.patch_ijk is None and choices.patch_voxels is None
        network_is_open = isinstance(network, UNetConfig | ResidualUNetConfig) and network.features is None
        return choices.spacing_mm is None or patch_is_open or self.config.trainer.batch_size is None or network_is_open

    def choices(self) -> Iterator[Choice]:
        """All of them."""
        for spacing, rule in product(self.grids(), self.rules()):
            for each in self.layouts(spacing, rule):
                for network in self.networks(rule, len(each.strides)):
                    cost = self.cost(network, each)
                    for batch_size in self.batch_sizes(spacing, each):
                        yield Choice(spacing, each, network, cost, batch_size)

    def grids(self) -> list[Spacing3]:
        """The grid that follows from the data, then coarser ones until a structure gets too thin.

        The finest axes are coarsened first, until they have caught up with the others.
        """
        grids = [self.plan.spacing_ijk_mm]
        if self.config.plan.spacing_mm is None:
            for level in range(1, NUM_GRIDS):
                coarser = coarsened(self.plan.spacing_ijk_mm, GRID_FACTOR**level)
                if voxels_thick(min(self.thicknesses_mm, default=math.inf), coarser) < FEW_VOXELS_THICK:
                    break
                grids.append(coarser)
        return grids

    def rules(self) -> list[StageRule]:
        """What the networks ask of their strides."""
        network, usual = self.config.network, stage_rule(self.config.network)
        if not isinstance(network, UNetConfig | ResidualUNetConfig):
            return [usual]
        stems = STEM_STRIDES if network.stem_stride is None else (network.stem_stride,)
        num_stages = None if network.features is None else usual.num_stages
        return [StageRule(num_stages, stem, usual.uniform) for stem in stems]

    def layouts(self, spacing: Spacing3, rule: StageRule) -> list[Layout]:
        """Patches on a grid, the largest first."""
        choices = self.config.plan
        if choices.patch_ijk is not None:
            return [layout(np.array(choices.patch_ijk), spacing, rule)]
        shape = np.maximum(1, np.round(np.array(self.facts.median_extent_mm) / np.array(spacing)))
        found = list(layouts(shape, spacing, rule))
        usable = [each for each in found if _bottleneck_voxels(each) >= SMALLEST_BOTTLENECK] or found[:1]
        if choices.patch_voxels is not None:
            return [closest(usable, choices.patch_voxels)]
        return [each for each in usable if each.num_voxels <= self.most_voxels] or usable[-1:]

    def networks(self, rule: StageRule, num_stages: int) -> list[NetworkConfig]:
        """Networks for a patch of so many stages, the narrowest first."""
        network = self.config.network
        if not isinstance(network, UNetConfig | ResidualUNetConfig):
            return [network]
        stem = {"stem_stride": rule.stem_stride}
        if network.features is not None:
            return [network.model_copy(update=stem)]
        return [network.model_copy(update={**stem, "features": doubled(width, num_stages)}) for width in WIDTHS]

    def batch_sizes(self, spacing: Spacing3, each: Layout) -> list[int]:
        """Patches that may be taken for a step."""
        if self.config.trainer.batch_size is not None:
            return [self.config.trainer.batch_size]
        most = round(LARGEST_SHARE * self.num_voxels(spacing) / each.num_voxels)
        return [size for size in BATCH_SIZES if size <= max(most, BATCH_SIZES[0])]

    def cost(self, network: NetworkConfig, each: Layout) -> NetworkCost:
        """Of a network for a patch."""
        stages = (each.strides, each.kernels)
        return cost_of_stages(network, len(self.dataset.channels), self.num_outputs, *stages).at(each.num_voxels)

    def num_voxels(self, spacing: Spacing3) -> float:
        """Of all training cases together on a grid."""
        return self.facts.total_volume_ml * MM3_PER_ML / float(np.prod(spacing))

    @cached_property
    def thicknesses_mm(self) -> list[float]:
        """Of the structures that were found."""
        measured = (structure.median_thickness_mm for structure in self.facts.structures.values())
        return [thickness for thickness in measured if thickness is not None]


@lru_cache(maxsize=1000)
def cost_of_stages(
    network: NetworkConfig,
    in_channels: int,
    out_channels: int,
    strides: tuple[Shape3, ...],
    kernels: tuple[Shape3, ...] | None,
) -> NetworkCost:
    """Of a network on a small patch: patches of the same stages cost the same a voxel."""
    if isinstance(network, UNetConfig | ResidualUNetConfig):
        return u_net_cost(network, in_channels, out_channels, strides, kernels)
    patch = [PATCH_STRIDES * math.prod(stride) for stride in zip(*strides, strict=True)]
    return network_cost(lambda: build_model(network, in_channels, out_channels, strides, kernels), in_channels, patch)


def coarsened(spacing: Spacing3, factor: float) -> Spacing3:
    """A grid with so many times fewer voxels: no axis is made coarser than the coarsest before all have caught up."""
    old = np.array(spacing)
    low, high = float(old.min()), float(old.max()) * factor
    for _ in range(60):  # halving an interval so often leaves nothing of it
        middle = math.sqrt(low * high)
        if np.maximum(old, middle).prod() < old.prod() * factor:
            low = middle
        else:
            high = middle
    i, j, k = (round(float(value), 4) for value in np.maximum(old, high))
    return i, j, k


def closest(found: list[Layout], num_voxels: int) -> Layout:
    """The patch whose size is closest to a wish."""
    return min(found, key=lambda each: abs(math.log(each.num_voxels / num_voxels)))


def _bottleneck_voxels(each: Layout) -> float:
    return each.num_voxels / float(np.prod(np.array(each.strides, dtype=float)))
