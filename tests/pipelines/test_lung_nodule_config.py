"""The lung-nodule config on a tiny synthetic dataset in Decathlon form: valid, and it trains. How well, nobody knows here."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

CONFIG = Path(__file__).parents[2] / "configs" / "ct_segmentation" / "lung_nodule_vnet.yaml"

SHAPE, SPACING_MM = (44, 40, 24), (1.5, 1.5, 2.0)


@pytest.fixture(scope="module")
def nodules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six chests with a ball of 10 mm in air, as Task06 has them: one structure, ``dataset.json`` with ``training``."""
    folder = tmp_path_factory.mktemp("Task06_Lung")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    training = []
    for number in range(6):
        centre = np.array(SHAPE) // 2 + rng.integers(-6, 7, 3)
        distances_mm = np.linalg.norm(
            (grid - centre[:, None, None, None]) * np.array(SPACING_MM)[:, None, None, None], axis=0
        )
        nodule = distances_mm < 5
        image = np.where(nodule, 30, -850) + 20 * rng.standard_normal(SHAPE)
        entry = {}
        for key, name, array in (
            ("image", "imagesTr", image.astype(np.int16)),
            ("label", "labelsTr", nodule.astype(np.uint8)),
        ):
            path = folder / name / f"lung_{number:03d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0])), path)
            entry[key] = f"./{name}/{path.name}"
        training.append(entry)
    document = {
        "name": "Lung",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "cancer"},
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_it_is_what_was_promised(tmp_path: Path, nodules: Path, medseg) -> None:
    answer = medseg("train", CONFIG, "--data", nodules, "--dry-run", "--json", "--out", tmp_path / "run")
    assert answer.exit_code == 0, answer.stderr
    config = answer.json["config"]
    assert config["network"]["kind"] == "vnet"
    assert config["loss"]["kind"] == "dice_focal"
    assert config["plan"]["spacing_mm"] == [1.0, 1.0, 1.0]
    assert config["sampling"]["foreground_fraction"] == 0.5
    assert not (tmp_path / "run").exists()
    head = CONFIG.read_text().split("\n\n")[0]
    assert "not verified" in head
    assert all(line.startswith("# ") for line in head.splitlines())
    assert yaml.safe_load(head) is None


def test_it_trains_and_its_bundle_finds_its_way_back(tmp_path: Path, nodules: Path, medseg) -> None:
    """As it stands, but for the size of patch and network."""
    answer = medseg(
        "train", CONFIG, "--data", nodules, "--out", tmp_path / "run", "--set", "trainer.length={kind: steps, num_steps: 2}",
        "--set", "plan.patch_ijk=[32, 32, 32]", "--set", "network.width=1", "--set", "network.kernel_size=3",
        "--set", "trainer.validation={num_validations: 1, max_cases: 1}", "--set", "trainer.num_threads=1",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["spacing_ijk_mm"] == [1.0, 1.0, 1.0]
    assert plan["normalisation"][0]["low"] == -1000.0
    scan = nodules / "imagesTr" / "lung_000.nii.gz"
    predicted = medseg("predict", tmp_path / "run", scan, "--out", tmp_path / "out", "--json")
    assert predicted.json["done"] == 1
    assert nib.load(tmp_path / "out" / "lung_000.nii.gz").shape == SHAPE
