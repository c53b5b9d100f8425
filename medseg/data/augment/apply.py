"""Random changes of patches, all together: batched torch operations, on whatever device the patches are.

Each patch draws from its own generator, so what happens to it depends neither on the batch it is in nor on the process.
Legend: B batch · C channels · I, J, K axes in R, A, S order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.core.geometry import Spacing3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import BCIJK, BIJK
from medseg.data.augment.intensity import change_intensities, draw_intensities
from medseg.data.augment.outside import change_outside, draw_outside
from medseg.data.augment.spatial import Warp, draw_mirror_axes, draw_warp, mirrored, surrounded, warped
from medseg.data.config import AugmentationConfig, Normalisation


@dataclass(frozen=True)
class Augmentation:
    """What happens to patches, and what must be known of them for it.

    Attributes:
        config: Probabilities and ranges.
        mirrored_classes: What each class becomes when the patient is mirrored left to right.
        spacing_ijk_mm: Of the network's grid.
        normalisation: Of each channel: where it has a window, the channel is CT, and what surrounds the body changes.
            Empty: nothing is known of the channels.
    """

    config: AugmentationConfig
    mirrored_classes: tuple[int, ...]
    spacing_ijk_mm: Spacing3 = (1.0, 1.0, 1.0)
    normalisation: tuple[Normalisation, ...] = ()

    def draw_warp(self, rng: np.random.Generator, place: PatchLocation) -> Warp | None:
        """Draw how a patch is turned and scaled: before it is read, so that all it will show is read."""
        return draw_warp(rng, place, self.config, self.spacing_ijk_mm)


def augment(
    image_BCIJK: Float[Tensor, BCIJK],
    classes_BIJK: Integer[Tensor, BIJK],
    generators: Sequence[np.random.Generator],
    augmentation: Augmentation,
) -> tuple[Float[Tensor, BCIJK], Integer[Tensor, BIJK]]:
    """Augment a batch of patches of which no more is known than they hold: what turns into view is air.

    Args:
        image_BCIJK: Normalised patches.
        classes_BIJK: Their class numbers.
        generators: One for each patch.
        augmentation: What happens.
    """
    i, j, k = classes_BIJK.shape[1:]
    place = PatchLocation((0, 0, 0), (i, j, k))
    warps = [augmentation.draw_warp(rng, place) for rng in generators]
    if any(warps):
        pairs = [
            warped(*surrounded(image, classes, place, warp.box), warp) if warp else (image, classes)
            for image, classes, warp in zip(image_BCIJK, classes_BIJK, warps, strict=True)
        ]
        image_BCIJK, classes_BIJK = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    return alter(image_BCIJK, classes_BIJK, generators, augmentation)


def alter(
    image_BCIJK: Float[Tensor, BCIJK],
    classes_BIJK: Integer[Tensor, BIJK],
    generators: Sequence[np.random.Generator],
    augmentation: Augmentation,
) -> tuple[Float[Tensor, BCIJK], Integer[Tensor, BIJK]]:
    """All of :func:`augment` but rotation and scaling: what needs no voxel around the patch."""
    config, num_channels = augmentation.config, image_BCIJK.shape[1]
    outside = [draw_outside(rng, config) for rng in generators]
    intensities = [draw_intensities(rng, num_channels, config) for rng in generators]
    axes_B = [draw_mirror_axes(rng, config) for rng in generators]
    if any(outside) and augmentation.normalisation:
        known = augmentation.normalisation, augmentation.spacing_ijk_mm
        image_BCIJK = torch.stack(
            [change_outside(image, changes, *known) for image, changes in zip(image_BCIJK, outside, strict=True)]
        )
    image_BCIJK = change_intensities(image_BCIJK, intensities)
    pairs = [
        mirrored(image_BCIJK[b : b + 1], classes_BIJK[b : b + 1], axes, augmentation.mirrored_classes)
        for b, axes in enumerate(axes_B)
    ]
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([image for image, _ in pairs]), torch.cat([classes for _, classes in pairs])


class Augmentd:
    """:func:`augment` as a MONAI dictionary transform: fits anywhere in a ``Compose``.

    Where the patch has an entry ``warp`` (:class:`~medseg.data.loader.SamplePatchd` draws one and reads all that the
    turned patch shows), that one is carried out; else one is drawn here, and what turns into view is air.

    Args:
        augmentation: What happens.
        image_key, label_key: Entries ``(channels, i, j, k)`` and ``(i, j, k)`` of the dictionary.
        generator_key: Entry that holds the patch's ``numpy.random.Generator``.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_key: str = "image",
        label_key: str = "classes",
        generator_key: str = "generator",
    ) -> None:
        self.augmentation = augmentation
        self.image_key, self.label_key, self.generator_key = image_key, label_key, generator_key

    def __call__(self, patch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The patch with image and label augmented."""
        image, classes = torch.as_tensor(patch[self.image_key]), torch.as_tensor(patch[self.label_key])
        change = augment
        if "warp" in patch:
            image, classes = warped(image, classes, patch["warp"]) if patch["warp"] else (image, classes)
            change = alter
        image_BCIJK, classes_BIJK = change(image[None], classes[None], [patch[self.generator_key]], self.augmentation)
        rest = {key: value for key, value in patch.items() if key != "warp"}
        return {**rest, self.image_key: image_BCIJK[0], self.label_key: classes_BIJK[0]}
