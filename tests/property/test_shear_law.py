"""Sheared grids, as gantry tilt makes them: what lies somewhere in the body stays there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medseg.core.case import Case
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap, Volume
from medseg.data.config import WindowNormalisation
from medseg.data.prepare import prepare
from medseg.data.restore import GridMapping
from medseg.inference.resolve import resolve

SCHEMA = LabelSchema((Structure("ball", 4),))
SHAPE, SPACING_MM = (40, 44, 24), (1.2, 1.2, 3.0)
WINDOW = WindowNormalisation(low=-1000.0, high=1000.0, mean=0.0, std=1.0)
RADIUS_MM = 14.0


def tilted(degrees: float, seed: int) -> Geometry:
    """A grid whose planes are shifted along J by the tilt, somewhere in space, some axes turned round."""
    rng = np.random.default_rng(seed)
    index_to_mm = np.diag(SPACING_MM)
    index_to_mm[1, 2] = SPACING_MM[2] * np.tan(np.radians(degrees))
    turn = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix() @ np.diag(rng.choice([-1.0, 1.0], 3))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, rng.permutation(3)] @ index_to_mm
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return Geometry(affine, SHAPE)


def places_mm(geometry: Geometry) -> np.ndarray:
    index = np.stack([*np.indices(geometry.shape_ijk), np.ones(geometry.shape_ijk)])
    return np.einsum("wn,nijk->wijk", geometry.affine_ras[:3], index)


def depth_mm(geometry: Geometry, centre_mm: np.ndarray) -> np.ndarray:
    """How deep each voxel lies in the ball, negative outside."""
    return RADIUS_MM - np.linalg.norm(places_mm(geometry) - centre_mm[:, None, None, None], axis=0)


def ball(geometry: Geometry, centre_mm: np.ndarray) -> np.ndarray:
    return depth_mm(geometry, centre_mm) >= 0


CASES = [(degrees, seed) for seed, degrees in enumerate([*np.linspace(-30, -3, 10), *np.linspace(3, 30, 10)])]


@pytest.mark.parametrize(("degrees", "seed"), CASES)
def test_a_ball_in_a_tilted_scan_is_round_for_the_network_and_comes_back(degrees, seed) -> None:
    geometry = tilted(float(degrees), seed)
    assert not geometry.is_orthogonal
    centre_mm = geometry.affine_ras[:3] @ [*(np.array(SHAPE) / 2 + 0.3), 1.0]
    inside = ball(geometry, centre_mm)
    image = Volume(np.where(inside, 400, -1000).astype(np.int16)[None], geometry)
    label = LabelMap(np.where(inside, 4, 0).astype(np.uint8), geometry)
    prepared = prepare(
        Case("tilted", image, label, np.array([True, True])), SCHEMA, geometry.canonical.spacing_ijk_mm, [WINDOW]
    )
    network = prepared.geometry
    assert network.is_orthogonal
    # For the network the ball is a ball: its image and its label agree with one drawn on that grid.
    drawn = ball(network, centre_mm)
    for found in (prepared.image[0] > -300, prepared.classes == 1):
        offset = np.argwhere(found).mean(axis=0) - np.argwhere(drawn).mean(axis=0)
        assert np.abs(offset).max() <= 0.5
        assert np.count_nonzero(found ^ drawn) / np.count_nonzero(drawn) <= 0.25
    # And what the network finds comes back to the place in the file; its logits grow smoothly towards the middle.
    depth = depth_mm(network, centre_mm)
    logits = np.stack([np.zeros_like(depth), depth]).astype(np.float32)
    back = resolve(logits, GridMapping.of(prepared), "softmax") == 1
    assert back.shape == SHAPE
    offset = np.argwhere(back).mean(axis=0) - np.argwhere(inside).mean(axis=0)
    assert np.abs(offset).max() <= 0.5
    assert 2 * np.count_nonzero(back & inside) / (np.count_nonzero(back) + np.count_nonzero(inside)) >= 0.98


def test_the_straight_grid_holds_every_voxel_of_the_sheared_one() -> None:
    for degrees, seed in CASES:
        geometry = tilted(float(degrees), seed)
        upright = geometry.orthogonal
        assert upright.is_orthogonal
        assert upright.voxel_volume_ml == pytest.approx(geometry.voxel_volume_ml)
        to_index = np.linalg.inv(upright.affine_ras)
        corners = np.array([[i, j, k, 1] for i in (0, 39) for j in (0, 43) for k in (0, 23)])
        index = (to_index @ geometry.affine_ras @ corners.T)[:3].T
        assert (index >= -1e-6).all()
        assert (index <= np.array(upright.shape_ijk) - 1 + 1e-6).all()


def test_rounded_direction_cosines_are_no_shear() -> None:
    affine = np.diag([0.9765625, 0.9765625, 3.0, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", [5, 3, -4], degrees=True).as_matrix().round(6) @ affine[:3, :3]
    geometry = Geometry(affine, (512, 512, 400))
    assert geometry.is_orthogonal
    assert geometry.orthogonal is geometry
