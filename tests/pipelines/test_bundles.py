"""Bundles as a user names them: joined by commas, by the name of a bundled model; and rules for connected parts at work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.inference.description import describe
from medseg.inference.runtimes.torch import make_probe
from medseg.io import resources
from medseg.io.bundle import read_bundle, stored_weights, write_bundle

SCAN = "pt_222"


@pytest.fixture
def scan(sample: Path) -> Path:
    return sample / "images" / f"{SCAN}.nii.gz"


def changed(run: Path, folder: Path, scale: float = 1.0, **changes: object) -> Path:
    """A copy of a run's bundle with scaled weights, or with other words in its description."""
    old = read_bundle(run)
    weights = {name: (array * np.float32(scale)).astype(array.dtype) for name, array in old.weights[0].items()}
    document = {**old.manifest, **changes}
    write_bundle(folder, document, [weights], make_probe(describe(old), [weights]))
    return folder


@pytest.fixture
def bundled(tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model named tiny, as if it had shipped, with weights of half the size."""
    monkeypatch.setattr(resources, "_FOLDER", tmp_path / "resources")
    old = read_bundle(run_folder)
    rounded = stored_weights(old.weights[0], "float16")
    folder = tmp_path / "resources" / "bundles" / "tiny"
    write_bundle(folder, old.manifest, [rounded], make_probe(describe(old), [rounded]), card="# Tiny\n")
    return folder


def labels(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{SCAN}.nii.gz").dataobj)


def test_bundles_joined_by_commas_are_an_ensemble(tmp_path: Path, scan: Path, run_folder: Path, medseg) -> None:
    other = changed(run_folder, tmp_path / "other", scale=0.7)
    both = f"{run_folder},{other}"
    for out, bundle in (("one", run_folder), ("both", both), ("again", both)):
        assert medseg("predict", bundle, scan, "--out", tmp_path / out, "--threads", 1).exit_code == 0
    contents = [(tmp_path / out / f"{SCAN}.nii.gz").read_bytes() for out in ("one", "both", "again")]
    assert contents[1] == contents[2] != contents[0]
    hashes = [json.loads((tmp_path / out / "manifest.json").read_text())["bundle_hash"] for out in ("one", "both")]
    assert hashes[0] != hashes[1]
    once_more = medseg("predict", both, scan, "--out", tmp_path / "both", "--threads", 1, "--json")
    assert once_more.json["skipped"] == 1
    more = medseg("predict", f"{both},{other}", scan, "--out", tmp_path / "both", "--threads", 1, "--json")
    assert more.json["skipped"] == 0, "another ensemble is another model"


def test_bundles_that_do_not_fit_together_are_refused(tmp_path: Path, scan: Path, run_folder: Path, medseg) -> None:
    plan = {**read_bundle(run_folder).manifest["plan"], "spacing_ijk_mm": [5.0, 5.0, 5.0]}
    other = changed(run_folder, tmp_path / "other", plan=plan)
    answer = medseg("predict", f"{run_folder},{other}", scan, "--out", tmp_path / "out")
    assert answer.exit_code == 2
    assert "spacing ((8.0, 8.0, 8.0) and (5.0, 5.0, 5.0))" in answer.stderr
    answer = medseg("predict", f"{run_folder},{tmp_path / 'none'}", scan, "--out", tmp_path / "out")
    assert answer.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_a_bundled_model_is_listed_and_predicts_by_its_name(
    tmp_path: Path, scan: Path, run_folder: Path, bundled: Path, medseg
) -> None:
    (model,) = medseg("tasks", "--json").json["models"]
    assert model.keys() == {"name", "task", "structures", "modality", "size_bytes"}
    assert (model["name"], model["task"], model["modality"]) == ("tiny", "ct_segmentation", ["CT"])
    assert "larynx" in model["structures"]
    assert model["size_bytes"] == sum(path.stat().st_size for path in bundled.iterdir())
    assert "bundled model tiny (ct_segmentation, CT, 0." in medseg("tasks").stdout
    for out, bundle in (("name", "tiny"), ("folder", bundled), ("run", run_folder)):
        assert medseg("predict", bundle, scan, "--out", tmp_path / out).exit_code == 0
    np.testing.assert_array_equal(labels(tmp_path / "name"), labels(tmp_path / "folder"))
    assert (labels(tmp_path / "name") != labels(tmp_path / "run")).mean() < 0.02, "half-size weights change little"
    assert medseg("predict", f"tiny,{run_folder}", scan, "--out", tmp_path / "both").exit_code == 0
    from medseg import Predictor

    np.testing.assert_array_equal(Predictor.load("tiny").predict(scan).array, labels(tmp_path / "name"))


def test_an_unknown_model_is_told_with_the_nearest(tmp_path: Path, scan: Path, bundled: Path, medseg) -> None:
    answer = medseg("predict", "tinny", scan, "--out", tmp_path / "out")
    assert answer.exit_code == 4
    assert "did you mean 'tiny'? bundled models are: tiny" in answer.stderr


def test_models_are_listed_without_any_task(monkeypatch: pytest.MonkeyPatch, bundled: Path, medseg) -> None:
    monkeypatch.setenv("MEDSEG_DISABLE_PLUGINS", "ct_segmentation")
    assert [model["name"] for model in medseg("tasks", "--json").json["models"]] == ["tiny"]
    assert medseg("tasks").stdout.startswith("no task is installed\nbundled model tiny")


def test_rules_for_connected_parts_are_applied_on_the_grid_of_the_file(
    tmp_path: Path, scan: Path, run_folder: Path, medseg
) -> None:
    from scipy import ndimage

    names = read_bundle(run_folder).manifest["labels"]["structures"]
    largest = {structure["name"]: {"keep": "largest"} for structure in names}
    loose = changed(run_folder, tmp_path / "loose", components={})
    strict = changed(run_folder, tmp_path / "strict", components=largest)
    for folder in (loose, strict):
        assert medseg("predict", folder, scan, "--out", tmp_path / f"out_{folder.name}").exit_code == 0
    whole, found = (labels(tmp_path / f"out_{name}") for name in ("loose", "strict"))
    manifest = json.loads((tmp_path / "out_strict" / "manifest.json").read_text())
    voxel_ml = float(np.prod(nib.load(scan).header.get_zooms()[:3])) / 1000
    num_changed = 0
    for structure in names:
        parts, num_parts = ndimage.label(whole == structure["value"], np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        num_changed += num_parts > 1
        expected = np.isin(parts, np.flatnonzero(sizes == sizes.max()) + 1) if num_parts else parts > 0
        np.testing.assert_array_equal(found == structure["value"], expected)
        volume_ml = manifest["cases"][0]["volume_ml"][structure["name"]]
        assert volume_ml == pytest.approx(np.count_nonzero(expected) * voxel_ml, rel=1e-3, abs=1e-3)
    assert num_changed, "a prediction of single parts would prove nothing"


def test_a_run_says_what_it_chose_and_its_bundle_keeps_it(run_folder: Path) -> None:
    report = json.loads((run_folder / "report.json").read_text())
    assert report["components"] == ["all parts of every structure are kept: fewer than 8 cases to choose by"]
    assert json.loads((run_folder / "bundle" / "bundle.json").read_text())["components"] == {}


def test_a_bundle_of_a_run_is_itself_wherever_it_is_copied(tmp_path: Path, run_folder: Path) -> None:
    shutil.copytree(run_folder / "bundle", tmp_path / "copy")
    assert read_bundle(tmp_path / "copy").hash == read_bundle(run_folder).hash
