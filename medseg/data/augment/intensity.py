"""Random changes of intensities: noise, blur, brightness, contrast, resolution, gamma.

Each operation takes any number of channels of any patches at once, with a number for each. Ranges, order and formulas
are nnU-Net's. Legend: B batch · C channels · N channels of patches in a row · I, J, K axes in R, A, S order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseg.core.shapes import BCIJK
from medseg.data.augment.spatial import linear_along, picked
from medseg.data.config import AugmentationConfig

NIJK = "volumes size_i size_j size_k"
N = " volumes"

Ranges = tuple[float, float]

EACH_CHANNEL = 0.5
"""Of a patch that is blurred or coarsened, each channel is with this probability. nnU-Net's."""

BLUR_REACH = 3.0
"""A Gaussian is cut off at this many standard deviations. nnU-Net's."""

SMALLEST_RANGE = 1e-7
"""A channel with a smaller range or standard deviation is constant. nnU-Net's."""


@dataclass(frozen=True, eq=False)
class IntensityChanges:
    """What happens to the intensities of one patch; 0 or 1 where nothing does.

    Attributes:
        noise_std, noise_seed: Of Gaussian noise, the same in all channels.
        blur_sigma_voxels: Of each channel, along each axis.
        brightness, contrast, resolution, inverted_gamma, gamma: Of each channel.
    """

    noise_std: float
    noise_seed: int
    blur_sigma_voxels: Float[np.ndarray, "channels 3"]
    brightness: Float[np.ndarray, " channels"]
    contrast: Float[np.ndarray, " channels"]
    resolution: Float[np.ndarray, " channels"]
    inverted_gamma: Float[np.ndarray, " channels"]
    gamma: Float[np.ndarray, " channels"]


def draw_intensities(rng: np.random.Generator, num_channels: int, config: AugmentationConfig) -> IntensityChanges:
    """Draw the changes of a patch. Every number is drawn whether it is due or not, so none depends on another's chance."""
    noise_std = rng.uniform(*config.noise_std) * (rng.random() < config.noise_probability)
    noise_seed = int(rng.integers(2**31))
    sigma = rng.uniform(*config.blur_sigma_voxels, (num_channels, 3))
    is_blurred = (rng.random() < config.blur_probability) & (rng.random((num_channels, 1)) < EACH_CHANNEL)
    resolution = rng.uniform(*config.low_resolution_factor, num_channels)
    is_coarse = (rng.random() < config.low_resolution_probability) & (rng.random(num_channels) < EACH_CHANNEL)
    return IntensityChanges(
        noise_std=noise_std,
        noise_seed=noise_seed,
        blur_sigma_voxels=np.where(is_blurred, sigma, 0.0),
        brightness=_factors(rng, config.brightness_probability, config.brightness_factor, num_channels),
        contrast=_factors(rng, config.contrast_probability, config.contrast_factor, num_channels),
        resolution=np.where(is_coarse, resolution, 1.0),
        inverted_gamma=_factors(rng, config.inverted_gamma_probability, config.gamma_exponent, num_channels),
        gamma=_factors(rng, config.gamma_probability, config.gamma_exponent, num_channels),
    )


def change_intensities(image_BCIJK: Float[Tensor, BCIJK], changes: Sequence[IntensityChanges]) -> Float[Tensor, BCIJK]:
    """Change the intensities of a batch, each patch as drawn for it."""
    if any(change.noise_std > 0 for change in changes):
        std_B = torch.tensor([change.noise_std for change in changes])
        image_BCIJK = add_noise(image_BCIJK, std_B, [change.noise_seed for change in changes])
    volumes = image_BCIJK.flatten(0, 1)
    volumes = _where_due(volumes, [change.blur_sigma_voxels for change in changes], 0.0, blur)
    volumes = _where_due(volumes, [change.brightness for change in changes], 1.0, scale_brightness)
    volumes = _where_due(volumes, [change.contrast for change in changes], 1.0, scale_contrast)
    volumes = _where_due(volumes, [change.resolution for change in changes], 1.0, lower_resolution)
    volumes = _where_due(volumes, [change.inverted_gamma for change in changes], 1.0, apply_inverted_gamma)
    volumes = _where_due(volumes, [change.gamma for change in changes], 1.0, apply_gamma)
    return volumes.reshape(image_BCIJK.shape)


def add_noise(
    image_BCIJK: Float[Tensor, BCIJK], std_B: Float[Tensor, " batch"], seeds: Sequence[int]
) -> Float[Tensor, BCIJK]:
    """Add Gaussian noise of a standard deviation for each patch; 0 leaves it alone. Seeds make it repeatable."""
    result = image_BCIJK.clone()
    for index, (std, seed) in enumerate(zip(std_B.tolist(), seeds, strict=True)):
        if std > 0:
            rng = torch.Generator(device=result.device).manual_seed(seed)
            noise = torch.randn(result.shape[1:], generator=rng, device=result.device)
            result[index].add_(noise, alpha=std)
    return result


def blur(volumes_NIJK: Float[Tensor, NIJK], sigma_N3: Float[Tensor, "volumes 3"]) -> Float[Tensor, NIJK]:
    """Blur each channel with a Gaussian of a standard deviation for each axis [voxels]; beyond the edge it is reflected."""
    for axis in range(3):
        size, sigma_N = volumes_NIJK.shape[axis + 1], sigma_N3[:, axis]
        radius = min(int(torch.round(BLUR_REACH * sigma_N).max()), size - 1)
        padding = [radius if dim == axis else 0 for dim in (2, 1, 0) for _ in range(2)]
        padded = F.pad(volumes_NIJK, padding, mode="reflect")
        weights = _gaussian(sigma_N, radius)
        # Sums of shifted copies: several times faster than a convolution with one channel.
        volumes_NIJK = padded.narrow(axis + 1, radius, size) * _spread(weights[0])
        for distance in range(1, radius + 1):
            pair = padded.narrow(axis + 1, radius - distance, size) + padded.narrow(axis + 1, radius + distance, size)
            volumes_NIJK.addcmul_(pair, _spread(weights[distance]))
    return volumes_NIJK


def scale_brightness(volumes_NIJK: Float[Tensor, NIJK], factor_N: Float[Tensor, N]) -> Float[Tensor, NIJK]:
    """Multiply each channel by its factor."""
    return volumes_NIJK * _spread(factor_N)


def scale_contrast(volumes_NIJK: Float[Tensor, NIJK], factor_N: Float[Tensor, N]) -> Float[Tensor, NIJK]:
    """Multiply each channel's distance from its mean, and keep it in its old range."""
    mean = _mean(volumes_NIJK)
    low, high = _range(volumes_NIJK)
    scaled = torch.lerp(mean, volumes_NIJK, _spread(factor_N))
    return torch.minimum(torch.maximum(scaled, low, out=scaled), high, out=scaled)


def lower_resolution(volumes_NIJK: Float[Tensor, NIJK], factor_N: Float[Tensor, N]) -> Float[Tensor, NIJK]:
    """Leave out voxels until each axis has its factor of their number, and interpolate linearly back."""
    return torch.stack(
        [_coarse(volume, factor) for volume, factor in zip(volumes_NIJK, factor_N.tolist(), strict=True)]
    )


def apply_gamma(volumes_NIJK: Float[Tensor, NIJK], exponent_N: Float[Tensor, N]) -> Float[Tensor, NIJK]:
    """Scale each channel to 0..1, raise it to its power, and give it its old mean and standard deviation back."""
    low, high = _range(volumes_NIJK)
    mean, std = _moments(volumes_NIJK)
    raised = ((volumes_NIJK - low) / (high - low).clamp_min(SMALLEST_RANGE)).pow_(_spread(exponent_N))
    new_mean, new_std = _moments(raised)
    return raised.sub_(new_mean).mul_(std / new_std.clamp_min(SMALLEST_RANGE)).add_(mean)


def apply_inverted_gamma(volumes_NIJK: Float[Tensor, NIJK], exponent_N: Float[Tensor, N]) -> Float[Tensor, NIJK]:
    """The same to the negative of each channel: a power that works on the bright end as gamma does on the dark one."""
    return apply_gamma(-volumes_NIJK, exponent_N).neg_()


def _factors(rng: np.random.Generator, probability: float, bounds: Ranges, num_channels: int) -> np.ndarray:
    """A factor for each channel: below 1 as often as above it, uniform on either side, as nnU-Net draws them."""
    (low, high), is_due = bounds, rng.random() < probability
    is_below, share = rng.random(num_channels) < 0.5, rng.random(num_channels)
    if low >= 1 or high <= 1:
        factors = low + share * (high - low)
    else:
        factors = np.where(is_below, low + share * (1 - low), 1 + share * (high - 1))
    return factors if is_due else np.ones(num_channels)


def _where_due(
    volumes_NIJK: Float[Tensor, NIJK],
    numbers_B: Sequence[np.ndarray],
    neutral: float,
    operation: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, NIJK]:
    """Apply an operation to those channels whose number is not the neutral one."""
    numbers_N = np.concatenate(numbers_B)
    due = np.flatnonzero((numbers_N.reshape(len(numbers_N), -1) != neutral).any(axis=1))
    if not len(due):
        return volumes_NIJK
    device = volumes_NIJK.device
    parameters = torch.from_numpy(numbers_N[due].astype(np.float32)).to(device)
    if len(due) == len(numbers_N):
        return operation(volumes_NIJK, parameters)
    index = torch.from_numpy(due).to(device)
    return volumes_NIJK.index_copy(0, index, operation(volumes_NIJK[index], parameters))


def _coarse(volume_IJK: Float[Tensor, "i j k"], factor: float) -> Float[Tensor, "i j k"]:
    volume, device = volume_IJK[None], volume_IJK.device
    kept = [max(1, round(size * factor)) for size in volume_IJK.shape]
    for axis, (size, few) in enumerate(zip(volume_IJK.shape, kept, strict=True)):
        nearest = ((torch.arange(few, device=device) + 0.5) * (size / few)).long()
        volume = picked(volume, axis, nearest)
    for axis in (2, 1, 0):  # neighbours along the last axis are the slowest to pick: first, while there are fewest
        size, few = volume_IJK.shape[axis], kept[axis]
        volume = linear_along(volume, axis, (torch.arange(size, device=device) + 0.5) * (few / size) - 0.5)
    return volume[0]


def _gaussian(sigma_N: Float[Tensor, N], radius: int) -> Float[Tensor, "taps volumes"]:
    """Weights of the voxels at distance 0, 1, 2 ...; sigma 0 leaves a channel as it is."""
    distance = torch.arange(radius + 1, device=sigma_N.device)[:, None]
    weights = torch.exp(-0.5 * (distance / sigma_N.clamp_min(SMALLEST_RANGE)).square())
    # Each channel has its own reach, so that it does not matter which others are blurred with it.
    weights = torch.where(distance <= torch.round(BLUR_REACH * sigma_N), weights, 0.0)
    return weights / (2 * weights.sum(dim=0) - weights[0])


def _range(volumes_NIJK: Float[Tensor, NIJK]) -> tuple[Tensor, Tensor]:
    return volumes_NIJK.amin(dim=(1, 2, 3), keepdim=True), volumes_NIJK.amax(dim=(1, 2, 3), keepdim=True)


def _mean(volumes_NIJK: Float[Tensor, NIJK]) -> Float[Tensor, "volumes 1 1 1"]:
    """Plane by plane: torch splits one sum among its threads, and its last digit would depend on how many they are."""
    return volumes_NIJK.mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)


def _moments(volumes_NIJK: Float[Tensor, NIJK]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel: faster than ``std``, and unlike ``vector_norm`` as exact."""
    mean = _mean(volumes_NIJK)
    variance = _mean((volumes_NIJK - mean).square_())
    num_voxels = volumes_NIJK[0].numel()
    return mean, (variance * (num_voxels / max(1, num_voxels - 1))).sqrt()


def _spread(values_N: Float[Tensor, N]) -> Float[Tensor, "volumes 1 1 1"]:
    return values_N[:, None, None, None]
