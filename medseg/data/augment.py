"""Random changes of patches: batched torch operations, on whatever device the patches are.

Each patch draws from its own generator, so what happens to it depends neither on the batch it is in nor on the process.
Legend: B batch · C channels · I, J, K axes in R, A, S order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from medseg.core.labels import IGNORED
from medseg.core.shapes import BCIJK, BIJK
from medseg.data.config import AugmentationConfig

Ranges = tuple[float, float]


def mirrored(
    image_BCIJK: Float[Tensor, BCIJK],
    classes_BIJK: Integer[Tensor, BIJK],
    axes: Sequence[int],
    mirrored_classes: Sequence[int],
) -> tuple[Float[Tensor, BCIJK], Integer[Tensor, BIJK]]:
    """Mirror patches along some of the axes R, A, S (0, 1, 2).

    Along R the patient's sides change places, so left and right structures swap their class numbers too;
    ignored voxels stay ignored.

    Args:
        image_BCIJK: Patches.
        classes_BIJK: Their class numbers.
        axes: Spatial axes to mirror.
        mirrored_classes: ``mirrored_classes[c]`` is what class ``c`` becomes.
    """
    if not axes:
        return image_BCIJK, classes_BIJK
    image_BCIJK = image_BCIJK.flip([axis + 2 for axis in axes])
    classes_BIJK = classes_BIJK.flip([axis + 1 for axis in axes])
    if 0 in axes:
        # IGNORED is -1, which picks the last entry: itself.
        swap = torch.as_tensor((*mirrored_classes, IGNORED), dtype=classes_BIJK.dtype, device=classes_BIJK.device)
        classes_BIJK = swap[classes_BIJK.long()]
    return image_BCIJK, classes_BIJK


def add_noise(
    image_BCIJK: Float[Tensor, BCIJK], std_B: Float[Tensor, " batch"], seeds: Sequence[int]
) -> Float[Tensor, BCIJK]:
    """Add Gaussian noise of a standard deviation for each patch; 0 leaves it alone. Seeds make it repeatable."""
    result = image_BCIJK.clone()
    for index, (std, seed) in enumerate(zip(std_B.tolist(), seeds, strict=True)):
        if std > 0:
            rng = torch.Generator(device=result.device).manual_seed(seed)
            result[index] += std * torch.randn(result.shape[1:], generator=rng, device=result.device)
    return result


def scale_brightness(image_BCIJK: Float[Tensor, BCIJK], factor_B: Float[Tensor, " batch"]) -> Float[Tensor, BCIJK]:
    """Multiply each patch by its factor."""
    return image_BCIJK * _spread(factor_B)


def scale_contrast(image_BCIJK: Float[Tensor, BCIJK], factor_B: Float[Tensor, " batch"]) -> Float[Tensor, BCIJK]:
    """Multiply each channel's distance from its mean, and keep it in its old range (as nnU-Net does)."""
    mean = image_BCIJK.mean(dim=(2, 3, 4), keepdim=True)
    low, high = image_BCIJK.amin(dim=(2, 3, 4), keepdim=True), image_BCIJK.amax(dim=(2, 3, 4), keepdim=True)
    return ((image_BCIJK - mean) * _spread(factor_B) + mean).clamp(low, high)


def apply_gamma(image_BCIJK: Float[Tensor, BCIJK], exponent_B: Float[Tensor, " batch"]) -> Float[Tensor, BCIJK]:
    """Scale each channel to 0..1, raise it to its power, and give it its old mean and standard deviation back."""
    low, high = image_BCIJK.amin(dim=(2, 3, 4), keepdim=True), image_BCIJK.amax(dim=(2, 3, 4), keepdim=True)
    mean = image_BCIJK.mean(dim=(2, 3, 4), keepdim=True)
    std = image_BCIJK.std(dim=(2, 3, 4), keepdim=True)
    raised = ((image_BCIJK - low) / (high - low).clamp_min(1e-7)).pow(_spread(exponent_B))
    centred = raised - raised.mean(dim=(2, 3, 4), keepdim=True)
    changed = centred / raised.std(dim=(2, 3, 4), keepdim=True).clamp_min(1e-7) * std + mean
    return torch.where(_spread(exponent_B) == 1.0, image_BCIJK, changed)


def augment(
    image_BCIJK: Float[Tensor, BCIJK],
    classes_BIJK: Integer[Tensor, BIJK],
    generators: Sequence[np.random.Generator],
    config: AugmentationConfig,
    mirrored_classes: Sequence[int],
) -> tuple[Float[Tensor, BCIJK], Integer[Tensor, BIJK]]:
    """Augment a batch, each patch by its own generator.

    Args:
        image_BCIJK: Normalised patches.
        classes_BIJK: Their class numbers.
        generators: One for each patch.
        config: Probabilities and ranges.
        mirrored_classes: See :func:`mirrored`.
    """
    axes_B = [_mirror_axes(rng, config) for rng in generators]
    pairs = [
        mirrored(image_BCIJK[b : b + 1], classes_BIJK[b : b + 1], axes, mirrored_classes)
        for b, axes in enumerate(axes_B)
    ]
    image_BCIJK = torch.cat([image for image, _ in pairs])
    classes_BIJK = torch.cat([classes for _, classes in pairs])
    noise_B = _drawn(generators, config.noise_probability, config.noise_std, 0.0)
    seeds = [int(rng.integers(2**31)) for rng in generators]
    brightness_B = _drawn(generators, config.brightness_probability, config.brightness_factor, 1.0)
    contrast_B = _drawn(generators, config.contrast_probability, config.contrast_factor, 1.0)
    gamma_B = _drawn(generators, config.gamma_probability, config.gamma_exponent, 1.0)
    if (noise_B > 0).any():
        image_BCIJK = add_noise(image_BCIJK, noise_B, seeds)
    if (brightness_B != 1).any():
        image_BCIJK = scale_brightness(image_BCIJK, brightness_B)
    if (contrast_B != 1).any():
        image_BCIJK = scale_contrast(image_BCIJK, contrast_B)
    if (gamma_B != 1).any():
        image_BCIJK = apply_gamma(image_BCIJK, gamma_B)
    return image_BCIJK, classes_BIJK


class Augmentd:
    """:func:`augment` as a MONAI dictionary transform: fits anywhere in a ``Compose``.

    Args:
        config: Probabilities and ranges.
        mirrored_classes: See :func:`mirrored`.
        image_key, label_key: Entries ``(channels, i, j, k)`` and ``(i, j, k)`` of the dictionary.
        generator_key: Entry that holds the patch's ``numpy.random.Generator``.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        mirrored_classes: Sequence[int],
        image_key: str = "image",
        label_key: str = "classes",
        generator_key: str = "generator",
    ) -> None:
        self.config, self.mirrored_classes = config, tuple(mirrored_classes)
        self.image_key, self.label_key, self.generator_key = image_key, label_key, generator_key

    def __call__(self, patch: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The patch with image and label augmented."""
        image, classes = augment(
            patch[self.image_key][None],
            patch[self.label_key][None],
            [patch[self.generator_key]],
            self.config,
            self.mirrored_classes,
        )
        return {**patch, self.image_key: image[0], self.label_key: classes[0]}


def _mirror_axes(rng: np.random.Generator, config: AugmentationConfig) -> list[int]:
    flips = rng.random(3) < 0.5
    match config.mirror:
        case "none":
            return []
        case "left_right":
            return [0] if flips[0] else []
        case "all_axes":
            return [int(axis) for axis in np.flatnonzero(flips)]


def _drawn(
    generators: Sequence[np.random.Generator], probability: float, bounds: Ranges, neutral: float
) -> Float[Tensor, " batch"]:
    """A value for each patch: uniform in the bounds with this probability, else the neutral one."""
    pairs = [(rng.random(), rng.uniform(*bounds)) for rng in generators]
    return torch.tensor([value if chance < probability else neutral for chance, value in pairs], dtype=torch.float32)


def _spread(values_B: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 1 1"]:
    return values_B[:, None, None, None, None]
