"""``medseg import nnunet``: from a model folder to a bundle that predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.core.errors import CheckpointError
from medseg.core.geometry import Geometry
from medseg.core.volume import Volume
from medseg.inference.ensemble import open_ensemble
from medseg.inference.predictor import Predictor
from medseg.io.bundle import read_bundle
from medseg.tasks.ct_segmentation.start import StartingPoint


def run(*arguments: object) -> Any:
    from pipelines.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(model_folder: Callable[..., Any]) -> Any:
    return model_folder().add_fold("0", 1).add_fold("1", 2)


def test_folds_become_an_ensemble_that_predicts(model: Any, tmp_path: Path) -> None:
    answer = run("import", "nnunet", model.folder, "--out", tmp_path / "both", "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["structures"] == ["spleen", "liver", "kidney"]
    assert result["imported_from"]["trainer"] == "nnUNetTrainer"
    bundle = read_bundle(tmp_path / "both")
    assert len(bundle.weights) == 2
    assert bundle.manifest["mirror_axes"] == [0, 1, 2]
    assert bundle.manifest["imported_from"]["checkpoints"] == [
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
    ]
    for fold in ("0", "1"):
        assert run("import", "nnunet", model.folder, "--out", tmp_path / fold, "--fold", fold, "-q").exit_code == 0
    image = np.random.default_rng(0).integers(-500, 500, (1, 20, 24, 12)).astype(np.int16)
    volume = Volume(image, Geometry.from_spacing((20, 24, 12), (1.4, 1.1, 2.6)))
    together = Predictor.load(tmp_path / "both", runtime="torch").predict(volume).array
    joined = Predictor.load(f"{tmp_path / '0'},{tmp_path / '1'}", runtime="torch").predict(volume).array
    np.testing.assert_array_equal(together, joined)
    assert together.shape == (20, 24, 12)
    assert len(np.unique(together)) > 1


def test_the_same_model_gives_the_same_bytes(model: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("import", "nnunet", model.folder, "--out", tmp_path / name, "-q").exit_code == 0
    assert read_bundle(tmp_path / "a").hash == read_bundle(tmp_path / "b").hash


def test_refusals_have_their_exit_codes_and_leave_nothing(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("import", "nnunet", tmp_path / "nothing", "--out", out).exit_code == 4
    assert run("import", "nnunet", model.folder, "--out", out, "--fold", "7").exit_code == 2
    assert run("import", "nnunet", model.folder, "--out", out, "--fold", "x").exit_code == 2
    assert run("import", "monai", model.folder, "--out", out).exit_code == 2
    model.add_fold("0", 1, init_args={"configuration": "2d"})
    assert run("import", "nnunet", model.folder, "--out", out, "--fold", "0").exit_code == 4
    assert not out.exists()
    out.mkdir()
    answer = run("import", "nnunet", model.folder, "--out", out, "--fold", "1")
    assert answer.exit_code == 2, "nothing is overwritten"
    assert "give another --out" in answer.stderr


def test_weights_that_do_not_fit_the_plans_are_refused(model: Any, tmp_path: Path) -> None:
    weights = dict(model.networks["0"].state_dict())
    weights["decoder.seg_layers.1.weight"] = torch.zeros(9, 4, 1, 1, 1)
    model.add_fold("0", 1, network_weights=weights)
    answer = run("import", "nnunet", model.folder, "--out", tmp_path / "out")
    assert answer.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_what_should_be_known_is_told(model: Any, tmp_path: Path) -> None:
    (model.folder / "postprocessing.pkl").write_bytes(b"no pickle")
    model.add_fold("2", 3, file="checkpoint_best.pth")
    answer = run("import", "nnunet", model.folder, "--out", tmp_path / "out")
    assert answer.exit_code == 0
    assert "postprocessing.pkl was not read" in answer.stderr
    assert "fold 2 has no checkpoint_final.pth" in answer.stderr


def test_an_imported_bundle_is_not_trained_further(model: Any, tmp_path: Path) -> None:
    assert run("import", "nnunet", model.folder, "--out", tmp_path / "out", "-q").exit_code == 0
    with pytest.raises(CheckpointError, match="cannot be trained further"):
        StartingPoint.open(str(tmp_path / "out"))


def test_imported_bundles_are_not_averaged_with_others(model: Any, tmp_path: Path) -> None:
    from medseg.core.errors import ConfigError

    assert run("import", "nnunet", model.folder, "--out", tmp_path / "a", "-q").exit_code == 0
    model.configuration["resampling_fn_data_kwargs"]["order"] = 1
    model.write()
    assert run("import", "nnunet", model.folder, "--out", tmp_path / "b", "-q").exit_code == 0
    with pytest.raises(ConfigError, match="preparation"):
        open_ensemble(f"{tmp_path / 'a'},{tmp_path / 'b'}")
