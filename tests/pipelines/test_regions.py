"""nnU-Net's regions and ignore label from the files to the scores: a small synthetic data set, trained for some steps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE, SPACING_MM = (30, 34, 26), (2.5, 2.5, 2.5)
IGNORE = 4
REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
AFFINE = np.diag([-SPACING_MM[0], SPACING_MM[1], SPACING_MM[2], 1.0])
LOSS = ("--set", "loss.kind=dice_bce")


def label_of(number: int) -> np.ndarray:
    """Three nested balls; a side of the scan, and some voxels in the balls, are undecided."""
    rng = np.random.default_rng(number)
    centre = np.array(SHAPE) / 2 + rng.uniform(-3, 3, 3)
    distance = np.linalg.norm(np.indices(SHAPE) - centre[:, None, None, None], axis=0)
    label = (distance < 11).astype(np.uint8) + (distance < 8.5) + (distance < 6)
    label[: 4 + number % 3] = IGNORE
    label[rng.random(SHAPE) < 0.05] = IGNORE
    return label


def write(folder: Path, name: str, label: np.ndarray) -> None:
    rng = np.random.default_rng(len(name))
    image = np.select([label == value for value in range(5)], [0.0, 300.0, 600.0, 900.0, 4000.0])
    image = (image + rng.normal(0, 30, SHAPE)).astype(np.float32)
    for kind, array, file in (("images", image, f"{name}_0000.nii.gz"), ("labels", label, f"{name}.nii.gz")):
        (folder / f"{kind}Tr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"{kind}Tr" / file)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases in nnU-Net's raw form."""
    folder = tmp_path_factory.mktemp("Dataset001_Balls")
    for number in range(5):
        write(folder, f"case_{number}", label_of(number))
    labels = {
        "background": 0,
        **{name: list(values) if len(values) > 1 else values[0] for name, values in REGIONS.items()},
        "ignore": IGNORE,
    }
    document = {
        "channel_names": {"0": "MRI"}, "labels": labels, "regions_class_order": [1, 2, 3], "numTraining": 5,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, medseg, dataset: Path, smoke: Path) -> Path:
    run = tmp_path_factory.mktemp("regions") / "run"
    settings = {
        "plan.spacing_mm": "[3, 3, 3]", "plan.patch_ijk": "[20, 20, 20]", "network.stem_stride": 1,
        "network.features": "[8, 16]", "trainer.length.num_steps": 40, "trainer.optimizer.learning_rate": 0.01,
        "trainer.schedule.warmup_steps": 2, "trainer.checkpoint_every": 40, "trainer.num_threads": 1,
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    answer = medseg("train", smoke, "--data", dataset, "--out", run, *LOSS, *options)
    assert answer.exit_code == 0, answer.stderr
    return run


def test_softmax_is_refused_before_any_work(tmp_path: Path, medseg, dataset: Path, smoke: Path) -> None:
    for dry_run in (["--dry-run"], []):
        answer = medseg("train", smoke, "--data", dataset, "--out", tmp_path / "run", *dry_run)
        assert answer.exit_code == 2
        assert "loss.kind to dice_bce" in " ".join(answer.stderr.split())
        assert "whole" in answer.stderr
    assert not (tmp_path / "run").exists()
    assert medseg("train", smoke, "--data", dataset, *LOSS, "--dry-run").exit_code == 0


def test_a_plan_needs_no_loss_until_steps_are_measured(medseg, dataset: Path) -> None:
    assert medseg("plan", dataset, "--json").exit_code == 0
    assert medseg("plan", dataset, "--budget", "5s").exit_code == 2


def test_training_learns_the_regions_and_leaves_ignored_voxels_out(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    dice = [entry["dice"] for entry in log if entry["kind"] == "validation"][-1]
    assert list(dice) == list(REGIONS)
    assert min(dice.values()) > 0.5
    labels = json.loads((trained / "bundle" / "bundle.json").read_text())["labels"]
    assert [structure["region"] or [structure["value"]] for structure in labels["structures"]] == [
        list(values) for values in REGIONS.values()
    ]
    assert labels["ignore_value"] == IGNORE
    assert (trained / "figures" / "first_batches.png").stat().st_size > 0


def test_predictions_are_written_with_the_innermost_value_and_measured_by_region(
    tmp_path: Path, medseg, dataset: Path, trained: Path
) -> None:
    answer = medseg(
        "predict", trained, dataset, "--out", tmp_path / "predictions", "--one-file-each", "--probabilities"
    )
    assert answer.exit_code == 0, answer.stderr
    manifest = json.loads((tmp_path / "predictions" / "manifest.json").read_text())
    entries = {entry["id"]: entry for entry in manifest["cases"]}
    evaluation = medseg("evaluate", tmp_path / "predictions", dataset, "--out", tmp_path / "scores", "--json")
    assert evaluation.exit_code == 0, evaluation.stderr
    scores = evaluation.json["cases"]
    for number in range(5):
        name = f"case_{number}"
        predicted = np.asarray(nib.load(tmp_path / "predictions" / f"{name}.nii.gz").dataobj)
        assert set(np.unique(predicted)) <= {0, 1, 2, 3}
        likely = nib.load(tmp_path / "predictions" / f"{name}_probabilities.nii.gz").get_fdata()
        assert likely.shape == (*SHAPE, 3), "sigmoid networks have no background"
        is_clear = (np.abs(likely - 0.5) > 3 / 65535).all(axis=-1)
        innermost = ((likely > 0.5) * np.array([1, 2, 3])).max(axis=-1)
        np.testing.assert_array_equal(innermost[is_clear], predicted[is_clear])
        reference = label_of(number)
        decided = reference != IGNORE
        for region, values in REGIONS.items():
            found, wanted = np.isin(predicted, values), np.isin(reference, values)
            mask = np.asarray(nib.load(tmp_path / "predictions" / name / f"{region}.nii.gz").dataobj)
            np.testing.assert_array_equal(mask, found)
            volume_ml = np.count_nonzero(found) * np.prod(SPACING_MM) / 1000
            assert entries[name]["volume_ml"][region] == pytest.approx(volume_ml, abs=1e-3)
            faces = [found.take(plane, axis).any() for axis in range(3) for plane in (0, -1)]
            assert entries[name]["truncated"][region] == any(faces)
            common = np.count_nonzero(found & wanted & decided)
            dice = 2 * common / (np.count_nonzero(found & decided) + np.count_nonzero(wanted))
            assert scores[name][region]["dice"] == pytest.approx(dice)
            assert dice > 0.5
