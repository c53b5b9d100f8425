"""Surfaces as points with weights, the exact distances between them, and what is read off those: HD95, surface Dice, ASSD.

A surface is a set of places, flat indices into a padded label map, so that all structures of a map are found in one
pass and a step to a neighbour is one addition. Here its points are *voxel borders*, which all weigh the same: voxels
with a neighbour (of 6) that is not of the structure. What lies beyond the volume is of no structure, as in MONAI.
:mod:`medseg.metrics.elements` has the other kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.geometry import Shape3
from medseg.core.shapes import IJK

HD_PERCENTILE = 95.0
"""Of the surface distances; the plain maximum hangs on a single voxel."""

ROUNDING_MM = 1e-5
"""Headers hold float32: a distance of two 1 mm voxels may read 2.0000002 mm, and is within 2 mm all the same."""

MAX_STEPS = 122
"""Neighbours that are looked at before a tree is built: three voxels around, on an isotropic grid. Measured: one step
costs a point 5 ns, its place in the tree and its own query there 1 to 3 µs."""

MAX_STEP_VOXELS = 6
"""Along one axis; as far as ``MAX_STEPS`` reach within one slice."""


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of one structure.

    Attributes:
        places: Flat indices into the padded label map.
        areas_mm2: What each point stands for; None where all weigh the same.
    """

    places: Integer[np.ndarray, " points"]
    areas_mm2: Float[np.ndarray, " points"] | None = None

    @property
    def weights(self) -> Float[np.ndarray, " points"]:
        """Of each point."""
        return np.ones(len(self.places)) if self.areas_mm2 is None else self.areas_mm2


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far each point of two surfaces is from the other surface.

    Attributes:
        there_mm, back_mm: From the prediction's points to the reference, and back.
        prediction, reference: The surfaces.
    """

    there_mm: Float[np.ndarray, " points"]
    back_mm: Float[np.ndarray, " points_too"]
    prediction: Surface
    reference: Surface

    def hd95_mm(self) -> float:
        """The larger of the 95th percentiles of the distances in both directions [mm].

        Source: for borders MONAI 1.6, ``compute_hausdorff_distance(percentile=95, directed=False)``, which interpolates
        between points; for elements ``surface-distance`` 0.1, ``compute_robust_hausdorff``, which takes the first
        distance that 95 % of the area do not exceed.
        """
        directions = ((self.there_mm, self.prediction.areas_mm2), (self.back_mm, self.reference.areas_mm2))
        return max(_percentile(distances_mm, areas_mm2) for distances_mm, areas_mm2 in directions)

    def surface_dice(self, tolerance_mm: float) -> float:
        """Part of both surfaces that lies within the tolerance of the other one, 0 to 1.

        Source: Nikolov et al. 2018, arXiv:1809.04430; deviation: ``ROUNDING_MM``.
        """
        limit_mm = tolerance_mm + ROUNDING_MM
        there, back = self.prediction.weights, self.reference.weights
        near = there[self.there_mm <= limit_mm].sum() + back[self.back_mm <= limit_mm].sum()
        return float(near / (there.sum() + back.sum()))

    def assd_mm(self) -> float:
        """Average symmetric surface distance: the mean over the points, or the area, of both surfaces together [mm].

        Source: MONAI 1.6, ``compute_average_surface_distance(symmetric=True)``, here also weighted by area.
        """
        there, back = self.prediction.weights, self.reference.weights
        return float((self.there_mm @ there + self.back_mm @ back) / (there.sum() + back.sum()))


class NearestSearch:
    """Distances between sets of places on one grid, to the nearest place of the other set.

    Two surfaces of one structure are rarely far apart: first the place itself is looked at, then its neighbours,
    nearest first, and only points that found nothing ask a k-d tree. All three are exact.
    """

    def __init__(self, padded_shape: Shape3, axes_mm: Float[np.ndarray, "3 3"]) -> None:
        """Prepare.

        Args:
            padded_shape: Of the label maps: no place within :func:`search_margin` of their faces.
            axes_mm: One voxel along each array axis, as columns [mm].
        """
        self._shape, self._axes_mm = padded_shape, axes_mm
        steps = _steps(axes_mm)
        strides = np.array([padded_shape[1] * padded_shape[2], padded_shape[2], 1])
        self._steps = list(zip((steps @ strides).tolist(), _lengths_mm(steps, axes_mm).tolist(), strict=True))
        self._is_there: Bool[np.ndarray, " places"] = np.zeros(int(np.prod(padded_shape)), dtype=bool)

    def between(self, prediction: Surface, reference: Surface) -> SurfaceDistances:
        """Both ways; neither surface is empty."""
        there_mm = self.distances_mm(prediction.places, reference.places)
        back_mm = self.distances_mm(reference.places, prediction.places)
        return SurfaceDistances(there_mm, back_mm, prediction, reference)

    def distances_mm(
        self, places: Integer[np.ndarray, " points"], others: Integer[np.ndarray, " points_too"]
    ) -> Float[np.ndarray, " points"]:
        """From each place to the nearest of the others [mm]."""
        distances_mm = np.zeros(len(places))
        self._is_there[others] = True
        left = np.flatnonzero(~self._is_there[places])
        searching = places[left]
        for step, length_mm in self._steps:
            if not len(left):
                break
            found = self._is_there[searching + step]
            if found.any():
                distances_mm[left[found]] = length_mm
                left, searching = left[~found], searching[~found]
        self._is_there[others] = False
        if len(left):
            distances_mm[left] = self._by_tree(searching, others)
        return distances_mm

    def _by_tree(
        self, places: Integer[np.ndarray, " points"], others: Integer[np.ndarray, " points_too"]
    ) -> Float[np.ndarray, " points"]:
        from scipy.spatial import KDTree

        # The tree is asked once: median splits and tight boxes cost more than they save.
        tree = KDTree(self._points_mm(others), leafsize=32, compact_nodes=False, balanced_tree=False)
        return np.asarray(tree.query(self._points_mm(places))[0])

    def _points_mm(self, places: Integer[np.ndarray, " points"]) -> Float[np.ndarray, "points 3"]:
        indices: np.ndarray = np.stack(np.unravel_index(places, self._shape), axis=1)
        points_mm: np.ndarray = indices @ self._axes_mm.T
        return points_mm


def search_margin(axes_mm: Float[np.ndarray, "3 3"]) -> Shape3:
    """Empty voxels that a label map needs around it for :class:`NearestSearch`, and for a surface to be closed."""
    i, j, k = (int(reach) + 1 for reach in np.abs(_steps(axes_mm)).max(axis=0))
    return i, j, k


def border_surfaces(labels: Integer[np.ndarray, IJK], num_structures: int) -> list[Surface]:
    """Voxel borders of the structures 1 to ``num_structures`` of a label map whose outermost voxels are 0."""
    differs = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        along, differs_along = np.moveaxis(labels, axis, 0), np.moveaxis(differs, axis, 0)
        step = along[1:] != along[:-1]
        differs_along[1:] |= step
        differs_along[:-1] |= step
    differs &= labels > 0
    places = np.flatnonzero(differs)
    return [Surface(places[own]) for own in split_by_structure(labels.reshape(-1)[places], num_structures)]


def split_by_structure(
    numbers: Integer[np.ndarray, " points"], num_structures: int
) -> list[Integer[np.ndarray, " points_of_structure"]]:
    """Where in a list of structure numbers each of 1 to ``num_structures`` stands, ascending."""
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=num_structures + 1))[:-1]
    return np.split(order, ends)[1:]


def _percentile(distances_mm: Float[np.ndarray, " points"], areas_mm2: Float[np.ndarray, " points"] | None) -> float:
    if areas_mm2 is None:
        return float(np.percentile(distances_mm, HD_PERCENTILE))
    order = np.argsort(distances_mm)
    share = np.cumsum(areas_mm2[order]) / areas_mm2.sum()
    place = min(int(np.searchsorted(share, HD_PERCENTILE / 100)), len(order) - 1)
    return float(distances_mm[order[place]])


def _steps(axes_mm: Float[np.ndarray, "3 3"]) -> Integer[np.ndarray, "steps 3"]:
    """Steps to the neighbours of a voxel, nearest first: no neighbour that is left out is nearer than the last one."""
    along = np.arange(-MAX_STEP_VOXELS, MAX_STEP_VOXELS + 1)
    steps = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths_mm = _lengths_mm(steps, axes_mm)
    nearest = np.argsort(lengths_mm, kind="stable")[1 : MAX_STEPS + 1]
    planes_mm = 1 / np.linalg.norm(np.linalg.inv(axes_mm), axis=1)  # the distance between neighbouring planes of voxels
    chosen: np.ndarray = steps[nearest[lengths_mm[nearest] < (MAX_STEP_VOXELS + 1) * planes_mm.min()]]
    return chosen


def _lengths_mm(
    steps: Integer[np.ndarray, "steps 3"], axes_mm: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, " steps"]:
    lengths: np.ndarray = np.linalg.norm(steps @ axes_mm.T, axis=1)
    return lengths
