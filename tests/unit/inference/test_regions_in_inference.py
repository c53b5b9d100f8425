"""Regions from logits to what the manifest says: who wins a voxel, what counts for whom, what a bundle remembers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import CheckpointError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import Volume
from medseg.inference.description import ModelDescription, describe
from medseg.inference.measures import mean_hu, truncated, volumes_ml
from medseg.inference.resolve import decide
from medseg.io.bundle import Bundle

TUMOUR = LabelSchema(
    (
        Structure("whole", 2, region=(1, 2, 4)),
        Structure("core", 1, region=(1, 4)),
        Structure("enhancing", 4),
    ),
    ignore_value=5,
)

# As written before regions and the ignore label were known.
OLD_LABELS = {
    "structures": [
        {
            "name": name, "value": value, "side": None, "mirror": None, "tolerance_mm": 2.0,
            "color": "#e6194b", "code": None,
        }
        for name, value in (("liver", 1), ("spleen", 3))
    ]
}  # fmt: skip
LABELS_OF_TUMOUR = {
    "structures": [
        {"name": "whole", "value": 2, "region": [1, 2, 4]},
        {"name": "core", "value": 1, "region": [1, 4]},
        {"name": "enhancing", "value": 4},
    ],
    "ignore_value": 5,
}
PLAN = {
    "spacing_ijk_mm": [1, 1, 1],
    "patch_ijk": [8, 8, 8],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "normalisation": [{"kind": "zscore"}],
    "batch_size": 2,
}


def manifest(labels, activation: str) -> dict:
    return {
        "task": "ct_segmentation",
        "name": "x",
        "network": {"kind": "unet", "features": [4, 8]},
        "modalities": ["MR"],
        "labels": labels,
        "activation": activation,
        "plan": PLAN,
    }


def described(document: dict) -> ModelDescription:
    return describe(Bundle(Path("bundle"), json.loads(json.dumps(document)), (), {}, ""))


def nnunet(logits: torch.Tensor, regions_class_order: list[int]) -> torch.Tensor:
    """nnU-Net's rule, written down from its documentation: in this order, each region above one half overwrites."""
    probabilities = torch.sigmoid(logits)
    result = torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for region, value in zip(probabilities, regions_class_order, strict=True):
        result = torch.where(region > 0.5, value, result)
    return result


@given(st.integers(0, 1000), st.sampled_from([0.1, 3.0]))
def test_the_last_region_that_is_likely_wins_as_in_nnunet(seed: int, scale: float) -> None:
    logits = (scale * np.random.default_rng(seed).standard_normal((3, 4, 5, 6))).astype(np.float32)
    logits[:, 0, 0] = [[-1] * 6, [0] * 6, [0] * 6]  # exactly one half is not above it
    found = TUMOUR.to_values(decide(logits, "regions"))
    np.testing.assert_array_equal(found, nnunet(torch.from_numpy(logits).double(), [2, 1, 4]))


def test_regions_that_do_not_overlap_are_decided_as_structures() -> None:
    rng = np.random.default_rng(0)
    logits = -np.abs(rng.standard_normal((3, 6, 6, 6)))
    winner = rng.integers(0, 4, (6, 6, 6))
    for channel in (1, 2, 3):
        logits[channel - 1][winner == channel] *= -1
    np.testing.assert_array_equal(decide(logits, "regions"), decide(logits, "sigmoid"))


def test_a_regions_volume_holds_what_lies_in_it() -> None:
    channels = np.zeros((6, 6, 6), np.int16)
    channels[1:5, 1:5, 1:5], channels[2:4, 2:4, 2:6], channels[2, 2, 2] = 1, 2, 3
    grid = Geometry.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    num_core = np.count_nonzero(channels >= 2)
    assert volumes_ml(channels, grid, TUMOUR) == {
        "whole": np.count_nonzero(channels),
        "core": num_core,
        "enhancing": 1,
    }
    assert truncated(channels, TUMOUR) == ("whole", "core"), "the core leaves the scan, so the whole does"
    plain = LabelSchema(tuple(Structure(s.name, s.value) for s in TUMOUR.structures))
    assert volumes_ml(channels, grid, plain)["core"] == num_core - 1
    assert truncated(channels, plain) == ("core",)


def test_a_regions_mean_hu_is_that_of_all_that_lies_in_it() -> None:
    rng = np.random.default_rng(0)
    channels = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)  # nothing is "enhancing" alone
    image = rng.integers(-1000, 3000, (2, 6, 5, 4)).astype(np.int16)
    volume = Volume(image, Geometry.from_spacing((6, 5, 4), (1.0, 1.0, 1.0)))
    found = mean_hu(channels, volume, ("PT", "CT"), TUMOUR)
    assert found == {
        "whole": pytest.approx(image[1][channels >= 1].mean(), abs=0.01),
        "core": pytest.approx(image[1][channels >= 2].mean(), abs=0.01),
        "enhancing": None,
    }
    assert mean_hu(channels, volume, ("MR", "PT"), TUMOUR) == dict.fromkeys(TUMOUR.names)


def test_a_bundle_remembers_regions_and_ignore_label() -> None:
    description = described(manifest(LABELS_OF_TUMOUR, "sigmoid"))
    assert description.labels == TUMOUR
    assert description.labels.structures[1].region == (1, 4)
    assert (description.decision, description.num_outputs) == ("regions", 3)
    again = described(description.model_dump(mode="json"))
    assert again == description


@pytest.mark.parametrize(("activation", "num_outputs"), [("softmax", 3), ("sigmoid", 2)])
def test_a_bundle_from_before_regions_is_read(activation: str, num_outputs: int) -> None:
    description = described(manifest(OLD_LABELS, activation))
    assert description.labels == LabelSchema((Structure("liver", 1), Structure("spleen", 3)))
    assert not description.labels.has_regions
    assert description.labels.ignore_value is None
    assert (description.decision, description.num_outputs) == (activation, num_outputs)


def test_a_bundle_of_regions_with_softmax_is_unusable() -> None:
    with pytest.raises(CheckpointError, match="overlap"):
        described(manifest(LABELS_OF_TUMOUR, "softmax"))
