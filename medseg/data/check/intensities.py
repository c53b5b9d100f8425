"""One pass over the voxels of an image: what is in it, in a few numbers.

Axis suffix KJI: superior, anterior, right, last first; NIfTI files store voxels in that order up to flips, so that slabs
of it lie together in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped

from medseg.core.geometry import Geometry
from medseg.data.check.facts import UNKNOWN, ImageFacts, Landmarks

KJI = "size_k size_j size_i"

SLAB_VOXELS = 2**20
"""Looked at at a time: what is computed of a slab needs some ten times its own size."""

FINE_BINS, MAX_BINS = 4096, 2**17
"""Of a histogram: at least, where values are fractions; at most, where they are whole numbers."""

LOWEST_BIN = -(2**15)
"""Where a histogram begins that cannot hold all values."""

PERCENTS = np.array([0.5, 1.0, 50.0, 95.0, 99.9])

NUM_BLOCKS = 8
"""Along each axis of a thumbnail."""

BIN_HU = 10.0
"""Of the histogram in which air and soft tissue are looked for: finer than their noise, which is some 10 to 50 HU."""

PEAK_BINS = 11
"""Width of a peak [bins]: 110 HU, as wide as fat and muscle together."""

CONTRAST_HU = (850.0, 1200.0)
"""Soft tissue (and fat) above air: −100 to 80 HU against −1000, down to −1024 where a scanner clips there."""

AIR_SHARE, TISSUE_SHARE = 0.002, 0.005
"""Parts of the image that air and soft tissue have at least, where there are any to speak of."""

BELOW_AIR_SHARE = 0.02
"""Of a CT, padding apart, hardly anything lies far below air."""

PADDING_HU, PADDING_GAP_HU = -1400.0, 300.0
"""What lies below the first, and further than the second below everything else, is padding that no scanner measured."""

NEAR_LOW_HU = 300.0
"""Values nearer than this to the smallest one belong to air, if there is air."""


@dataclass(frozen=True, eq=False)
class _Histogram:
    origin: float
    width: float
    counts: Integer[np.ndarray, " bins"]

    @property
    def values(self) -> Float[np.ndarray, " bins"]:
        return self.origin + self.width * np.arange(len(self.counts))

    def percentiles(self) -> tuple[float, float, float, float, float]:
        below = np.cumsum(self.counts)
        a, b, c, d, e = self.values[np.searchsorted(below, PERCENTS / 100 * below[-1])].tolist()
        return a, b, c, d, e


def slabs(array_KJI: Shaped[np.ndarray, KJI]) -> Iterator[tuple[int, np.ndarray]]:
    """Contiguous pieces of whole planes, with the number of their first plane."""
    planes = max(1, SLAB_VOXELS // max(1, array_KJI[0].size))
    for first in range(0, len(array_KJI), planes):
        yield first, np.ascontiguousarray(array_KJI[first : first + planes])


def measure_image(array_KJI: Shaped[np.ndarray, KJI], geometry: Geometry, file: str, modality: str) -> ImageFacts:
    """Look at every voxel of one channel once.

    Args:
        array_KJI: All finite.
        geometry: Canonical.
        file: As the dataset names it.
        modality: Of the channel.
    """
    low, high = float(array_KJI.min()), float(array_KJI.max())
    histogram = _empty_histogram(array_KJI.dtype, low, high)
    digest = hashlib.sha256(repr(array_KJI.shape).encode())
    means, num_low = [], 0
    for _, slab in slabs(array_KJI):
        _count(slab, histogram)
        digest.update(_plain(slab, low, high))
        means.append(_block_means(slab))
        num_low += int(np.count_nonzero(slab == low))
    commonest = int(np.argmax(histogram.counts))
    total = array_KJI.size
    return ImageFacts(
        file=file,
        modality=modality,
        shape=geometry.shape_ijk,
        spacing_mm=geometry.spacing_ijk_mm,
        digest=digest.digest(),
        thumbnail=_thumbnail(np.concatenate(means)),
        low=low,
        high=high,
        percentiles=histogram.percentiles(),
        low_share=num_low / total,
        commonest=float(histogram.values[commonest]),
        commonest_share=float(histogram.counts[commonest] / total),
        tissue_mode=_mode_above(histogram, low + NEAR_LOW_HU),
        landmarks=find_landmarks(histogram.values, histogram.counts)
        if modality.upper() in ("CT", UNKNOWN.upper())
        else None,
    )


def find_landmarks(values: Float[np.ndarray, " bins"], counts: Integer[np.ndarray, " bins"]) -> Landmarks | None:
    """Air and soft tissue of a CT, wherever its scale puts them.

    The two most massive peaks that lie as far apart as air and tissue do. None where there are no such two: another
    scale, another modality, or a piece of a body without air.

    Args:
        values: Ascending.
        counts: Number of voxels with each.
    """
    first = np.floor(values[0] / BIN_HU)
    place = (np.floor(values / BIN_HU) - first).astype(np.int64)
    coarse = np.bincount(place, weights=counts)
    centres = (first + np.arange(len(coarse)) + 0.5) * BIN_HU
    total = coarse.sum()
    _drop_padding(centres, coarse)
    peaks = np.convolve(coarse, np.ones(PEAK_BINS), mode="same")
    nearest, furthest = (int(contrast / BIN_HU) for contrast in CONTRAST_HU)
    if len(peaks) <= nearest:
        return None
    above = np.lib.stride_tricks.sliding_window_view(np.append(peaks, np.zeros(furthest))[nearest:], furthest - nearest)
    best = above.max(axis=1)[: len(peaks)]
    lower = peaks[: len(best)]
    product = np.where((lower >= AIR_SHARE * total) & (best >= TISSUE_SHARE * total), lower * best, 0.0)
    air = int(np.argmax(product))
    if product[air] == 0 or coarse[: max(0, air - 2 * PEAK_BINS)].sum() > BELOW_AIR_SHARE * total:
        return None
    tissue = air + nearest + int(np.argmax(above[air]))
    return Landmarks(_centre_of_peak(centres, coarse, air), _centre_of_peak(centres, coarse, tissue))


def _drop_padding(centres: np.ndarray, coarse: np.ndarray) -> None:
    filled = np.flatnonzero(coarse)
    while len(filled) > 1 and centres[filled[0]] < PADDING_HU:
        if centres[filled[1]] - centres[filled[0]] < PADDING_GAP_HU:
            break
        coarse[filled[0]] = 0
        filled = filled[1:]


def _centre_of_peak(centres: np.ndarray, coarse: np.ndarray, peak: int) -> float:
    around = slice(max(0, peak - PEAK_BINS // 2), peak + PEAK_BINS // 2 + 1)
    return float(np.average(centres[around], weights=coarse[around]))


def _empty_histogram(dtype: np.dtype[np.generic], low: float, high: float) -> _Histogram:
    if dtype.kind == "f" and high - low < FINE_BINS:
        width = (high - low) / FINE_BINS or 1.0
        return _Histogram(low, width, np.zeros(FINE_BINS + 1, np.int64))
    origin = np.floor(low) if high - low < MAX_BINS else float(LOWEST_BIN)
    return _Histogram(float(origin), 1.0, np.zeros(int(min(np.ceil(high) - origin + 1, MAX_BINS)), np.int64))


def _count(slab: np.ndarray, histogram: _Histogram) -> None:
    """Add a slab; what lies outside the histogram counts at its ends."""
    if slab.dtype.kind == "f":
        place = np.rint((slab.ravel() - histogram.origin) / histogram.width)
        places = np.clip(place, 0, len(histogram.counts) - 1).astype(np.int64)
    else:
        places = slab.ravel().astype(np.int64) - int(histogram.origin)
        if len(histogram.counts) == MAX_BINS:
            np.clip(places, 0, MAX_BINS - 1, out=places)
    histogram.counts[:] += np.bincount(places, minlength=len(histogram.counts))


def _plain(slab: np.ndarray, low: float, high: float) -> bytes:
    """The values in one type, whichever type they were stored in: whole numbers as such, others as float32."""
    whole = slab if slab.dtype.kind in "iu" else np.rint(slab)
    if whole is not slab and not np.array_equal(whole, slab) and np.abs(whole - slab).max() > 1e-3:
        return slab.astype("<f4").tobytes()
    fits = low >= -(2**15) and high < 2**15
    return whole.astype("<i2" if fits else "<i8", copy=False).tobytes()


def _block_means(slab: np.ndarray) -> Float[np.ndarray, "planes blocks"]:
    rows, columns = (_block_starts(size) for size in slab.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(slab, rows, axis=1, dtype=np.float64), columns, axis=2)
    means: np.ndarray = sums / np.outer(*(_block_sizes(size) for size in slab.shape[1:]))
    return means.reshape(len(slab), -1)


def _block_starts(size: int) -> np.ndarray:
    return np.arange(NUM_BLOCKS) * size // NUM_BLOCKS


def _block_sizes(size: int) -> np.ndarray:
    """Where there are fewer voxels than blocks, some blocks share one."""
    return np.maximum(np.diff(_block_starts(size), append=size), 1)


def _thumbnail(means_of_planes: np.ndarray) -> Float[np.ndarray, " blocks"]:
    size = len(means_of_planes)
    sums = np.add.reduceat(means_of_planes, _block_starts(size), axis=0)
    blocks = (sums / _block_sizes(size)[:, None]).ravel()
    centred = blocks - blocks.mean()
    length = np.linalg.norm(centred)
    small = (centred / length if length > 1e-6 * np.abs(blocks).max() else np.zeros_like(centred)).astype(np.float32)
    return np.asarray(small)


def _mode_above(histogram: _Histogram, value: float) -> float:
    values, counts = histogram.values, histogram.counts
    kept = values > value
    if not counts[kept].any():
        return float(values[-1])
    width = max(1, int(BIN_HU * PEAK_BINS / 2 / histogram.width))
    smooth = np.convolve(np.where(kept, counts, 0), np.ones(min(width, len(counts))), mode="same")
    return float(values[int(np.argmax(smooth))])
