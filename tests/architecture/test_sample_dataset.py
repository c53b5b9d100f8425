"""The sample of real scans is what its description says."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

MAX_SAMPLE_BYTES = 3_000_000
DESCRIPTION = Path(__file__).parents[2] / "medseg/resources/sample/dataset.json"
DATASET = json.loads(DESCRIPTION.read_text(encoding="utf-8"))


def test_eight_cases_in_three_megabytes(sample: Path) -> None:
    splits = [case["split"] for case in DATASET["cases"]]
    assert (splits.count("train"), splits.count("validation"), len(splits)) == (6, 2, 8)
    assert {case["id"] for case in DATASET["cases"] if case["split"] == "validation"} == {"pt_201", "pt_222"}
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) <= MAX_SAMPLE_BYTES


def test_no_file_is_unused(sample: Path) -> None:
    named = {sample / case[role] for case in DATASET["cases"] for role in ("image", "label")}
    assert set(sample.rglob("*.nii.gz")) == named


def test_source_licence_and_citation_stand_beside_it(sample: Path) -> None:
    text = (sample / "SOURCE.md").read_text(encoding="utf-8")
    assert all(words in text for words in ("MIT License", "Permission is hereby granted", "Babier", "10.1002/mp.14845"))
    assert all(case["id"] in text for case in DATASET["cases"])


@pytest.mark.parametrize("case", DATASET["cases"], ids=[case["id"] for case in DATASET["cases"]])
def test_contours_lie_in_the_patient_and_off_the_edges(case: dict[str, object], sample: Path) -> None:
    image, label = (nibabel.load(sample / str(case[role])) for role in ("image", "label"))
    hu, values = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert image.shape == label.shape
    assert np.array_equal(image.affine, label.affine)
    assert set(np.unique(values)) == {0, *(DATASET["labels"][name] for name in case["annotated"])}
    assert len(case["annotated"]) >= 5
    assert (hu[values > 0] > -999).mean() > 0.99
    inner = np.pad(np.ones([size - 2 for size in values.shape], dtype=bool), 1)
    assert not values[~inner].any()


@pytest.mark.parametrize("case", DATASET["cases"], ids=[case["id"] for case in DATASET["cases"]])
def test_left_and_right_are_on_their_sides(case: dict[str, object], sample: Path) -> None:
    label = nibabel.load(sample / str(case["label"]))
    values = np.asarray(label.dataobj)
    x_mm = {
        name: (label.affine @ [*np.argwhere(values == DATASET["labels"][name]).mean(axis=0), 1.0])[0]
        for name in ("parotid_right", "spinal_cord", "parotid_left")
    }
    assert x_mm["parotid_right"] > x_mm["spinal_cord"] > x_mm["parotid_left"], "RAS: x grows towards the right"
