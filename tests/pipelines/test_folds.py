"""``--fold``: folds are whole runs under one plan, every case is contoured by the network that never saw it, one ensemble."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

NUM_FOLDS = 2

OPTIONS = (
    "--set", "plan.spacing_mm=null", "--set", "plan.patch_ijk=[16, 16, 16]", "--set", "trainer.num_threads=1",
    "--set", f"splits.num_folds={NUM_FOLDS}", "--set", "trainer.validation.num_validations=1",
)  # fmt: skip


def write_dataset(folder: Path, *, num_cases: int = 4) -> Path:
    """Small noisy cubes: an organ in all of them, a nodule annotated in every second; one case of the test split more."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(num_cases + 1):
        label = np.zeros((18, 20, 16), np.uint8)
        label[4:12, 5:13, 4:11] = 1
        image = np.where(label == 1, 60.0, -200.0) + rng.standard_normal(label.shape) * 20
        if number % 2:
            label[7:9, 8:10, 6:9] = 2
        name = f"p{number}"
        for kind, array in (("images", image.astype(np.int16)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-4.0, 4, 5, 1])), folder / kind / f"{name}.nii.gz")
        case = {"id": name, "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
        case["annotated"] = ["organ", "nodule"] if number % 2 else ["organ"]
        cases.append(case | ({"split": "test"} if number == num_cases else {}))
    labels = {"background": 0, "organ": 1, "nodule": 2}
    (folder / "dataset.json").write_text(
        json.dumps({"name": "cubes", "modality": "CT", "labels": labels, "cases": cases})
    )
    return folder


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cubes"))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, cubes: Path, smoke: Path, medseg: Callable[..., Any]) -> Path:
    """A finished cross-validation."""
    out = tmp_path_factory.mktemp("folds") / "run"
    answer = medseg("train", smoke, "--data", cubes, "--out", out, "--fold", "each", *OPTIONS, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert f"{NUM_FOLDS} folds of 6 steps each" in answer.stderr
    assert answer.json == json.loads((out / "report.json").read_text())
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_each_fold_is_a_whole_run_and_all_share_one_plan(folds: Path) -> None:
    plans = [read(folds / f"fold_{fold}" / "plan.json") for fold in range(NUM_FOLDS)]
    seen = sorted(case for plan in plans for case in plan["validation_cases"])
    assert seen == [f"p{number}" for number in range(4)]
    own = ("training_cases", "validation_cases", "fold", "reasons")
    shared = read(folds / "plan.json")
    for fold, plan in enumerate(plans):
        assert sorted(plan["training_cases"] + plan["validation_cases"]) == seen
        assert (
            plan["fold"]
            == yaml.safe_load((folds / f"fold_{fold}" / "config.yaml").read_text())["splits"]["fold"]
            == fold
        )
        assert {name: value for name, value in plan.items() if name not in own} == {
            name: value for name, value in shared.items() if name not in own
        }
        assert f"fold {fold} of 0 to 1" in plan["reasons"][0]
        assert plan["reasons"][1:] == shared["reasons"][1:]
        for name in ("log.jsonl", "report.json", "bundle/bundle.json", "checkpoints/last.safetensors"):
            assert (folds / f"fold_{fold}" / name).exists()
    assert (shared["fold"], shared["num_steps"], sorted(shared["training_cases"])) == ("each", 6, seen)
    first, second = (load_file(folds / f"fold_{fold}" / "bundle" / "model.safetensors") for fold in range(NUM_FOLDS))
    assert any((first[name] != second[name]).any() for name in first)


def test_every_case_is_contoured_by_the_network_that_never_saw_it(folds: Path, cubes: Path) -> None:
    from medseg import Predictor, read_label_map

    for fold in range(NUM_FOLDS):
        predictor = Predictor.load(folds / f"fold_{fold}")
        for case in read(folds / f"fold_{fold}" / "plan.json")["validation_cases"]:
            image = cubes / "images" / f"{case}.nii.gz"
            written = read_label_map(folds / "cross_validation" / f"{case}.nii.gz")
            assert (written.array == predictor.predict(image).array).all()
            np.testing.assert_allclose(written.geometry.affine_ras, nib.load(image).affine)


def test_the_figures_are_those_of_evaluate_and_go_into_the_bundle(
    folds: Path, cubes: Path, tmp_path: Path, medseg
) -> None:
    results = folds / "cross_validation"
    metrics = read(results / "metrics.json")
    assert sorted(metrics["cases"]) == [f"p{number}" for number in range(4)]
    assert metrics["summary"] == read(folds / "bundle" / "bundle.json")["metrics"]["cross_validation"]
    assert metrics["summary"] == read(folds / "report.json")["cross_validation"]
    assert set(metrics["summary"]["organ"]["dice"]) >= {"mean", "low", "high", "num_cases"}
    assert metrics["summary"]["nodule"]["dice"]["num_cases"] == 2
    assert all((results / name).exists() for name in ("metrics.csv", "report.html", "labels.json", "figures/p0.png"))
    document = read(cubes / "dataset.json")
    document["cases"] = [
        {**case, "image": str(cubes / case["image"]), "label": str(cubes / case["label"])}
        for case in document["cases"]
        if "split" not in case
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    again = medseg("evaluate", results, tmp_path, "--json").json
    assert (again["cases"], again["summary"]) == (metrics["cases"], metrics["summary"])


def test_the_ensemble_averages_the_networks_of_the_folds(folds: Path, cubes: Path) -> None:
    from medseg import Predictor
    from medseg.io.bundle import read_bundle

    whole = read_bundle(folds)
    members = [read_bundle(folds / f"fold_{fold}") for fold in range(NUM_FOLDS)]
    for weights, member in zip(whole.weights, members, strict=True):
        assert all((weights[name] == member.weights[0][name]).all() for name in weights)
    np.testing.assert_allclose(
        whole.probe["logits"], np.mean([one.probe["logits"] for one in members], axis=0), atol=1e-5
    )
    assert whole.manifest["plan"]["fold"] == "each"
    assert Predictor.load(folds).predict(cubes / "images" / "p4.nii.gz").array.shape == (18, 20, 16)


def test_what_is_finished_is_not_trained_again(folds: Path, cubes: Path, smoke: Path, tmp_path: Path, medseg) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folds, copy)
    shutil.rmtree(copy / "bundle")
    (copy / "fold_1" / "report.json").unlink()
    (copy / "cross_validation" / "p3.nii.gz").unlink()
    before = (copy / "fold_0" / "checkpoints" / "last.safetensors").stat().st_mtime_ns
    command = ("train", smoke, "--data", cubes, "--out", copy, *OPTIONS, "--resume")
    answer = medseg(*command, "--fold", "each")
    assert answer.exit_code == 0, answer.stderr
    assert "fold 0 is finished already" in answer.stderr
    assert "fold 1 is finished already" not in answer.stderr
    assert (copy / "fold_0" / "checkpoints" / "last.safetensors").stat().st_mtime_ns == before
    assert read(copy / "cross_validation" / "metrics.json") == read(folds / "cross_validation" / "metrics.json")
    for folder in ("bundle", "fold_1/bundle"):
        assert (copy / folder / "probe.npz").read_bytes() == (folds / folder / "probe.npz").read_bytes()
    for fold in (["--fold", "none"], ["--fold", "1"], []):
        refused = medseg(*command, *fold)
        assert refused.exit_code == 2
        assert "another config" in refused.stderr
    (copy / "fold_0" / "config.yaml").write_text((copy / "fold_1" / "config.yaml").read_text())
    assert medseg(*command, "--fold", "each").exit_code == 2


def test_one_fold_alone_trains_under_a_plan_made_for_all(
    folds: Path, cubes: Path, smoke: Path, tmp_path: Path, medseg
) -> None:
    """Five machines can share the work: what each makes is what --fold each would have made."""
    options = ("--data", cubes, "--out", tmp_path / "one", "--plan", folds / "plan.json", "--fold", "1", *OPTIONS)
    answer = medseg("train", smoke, *options)
    assert answer.exit_code == 0, answer.stderr
    assert read(tmp_path / "one" / "plan.json") == read(folds / "fold_1" / "plan.json")
    trained, expected = (
        load_file(folder / "bundle" / "model.safetensors") for folder in (tmp_path / "one", folds / "fold_1")
    )
    assert all((trained[name] == expected[name]).all() for name in expected)


def test_with_none_every_case_trains_and_the_last_weights_are_kept(
    cubes: Path, smoke: Path, tmp_path: Path, medseg
) -> None:
    from medseg.engine.checkpoint import load_weights

    answer = medseg("train", smoke, "--data", cubes, "--out", tmp_path / "run", "--fold", "none", *OPTIONS, "--json")
    assert answer.exit_code == 0, answer.stderr
    plan = read(tmp_path / "run" / "plan.json")
    assert (len(plan["training_cases"]), plan["validation_cases"], plan["fold"]) == (4, [], "none")
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    last = load_weights(tmp_path / "run" / "checkpoints" / "last.safetensors")
    kept = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    assert all((kept[name] == last[name].numpy()).all() for name in kept)


def test_a_case_that_cannot_be_read_is_told_and_the_others_go_on(
    cubes: Path, smoke: Path, tmp_path: Path, medseg
) -> None:
    data = write_dataset(tmp_path / "data", num_cases=5)
    (data / "images" / "p1.nii.gz").write_bytes(b"not a scan")
    command = ("train", smoke, "--data", data, "--out", tmp_path / "run", "--fold", "each", *OPTIONS, "--json")
    answer = medseg(*command)
    assert answer.exit_code == 1, answer.stderr
    assert "p1 is left out" in answer.stderr
    assert list(answer.json["failed_cases"]) == ["p1"]
    assert sorted(read(tmp_path / "run" / "cross_validation" / "metrics.json")["cases"]) == ["p0", "p2", "p3", "p4"]
    for image in (data / "images").iterdir():
        image.write_bytes(b"not a scan")
    assert medseg("train", smoke, "--data", data, "--out", tmp_path / "all", "--fold", "each", *OPTIONS).exit_code == 5


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (["--fold", "all"], 2, "each or none"),
        (["--fold", "-1"], 2, "each or none"),
        (["--fold", "2"], 2, "a fold from 0 to 1"),
        (["--fold", "each", "--set", "splits.num_folds=5"], 2, "5 folds need"),
        (["--set", "splits.fold=some"], 2, "splits.fold"),
        (["--set", "splits=5", "--fold", "1"], 2, "splits"),
    ],
)  # fmt: skip
def test_mistakes_come_before_any_work(options, exit_code, words, cubes, smoke, tmp_path, medseg) -> None:
    answer = medseg("train", smoke, "--data", cubes, "--out", tmp_path / "run", *OPTIONS, *options)
    assert (answer.exit_code, words in answer.stderr) == (exit_code, True), answer.stderr
    assert not (tmp_path / "run").exists()


def test_a_structure_that_evaluation_refuses_is_told_before_training(smoke: Path, tmp_path: Path, medseg) -> None:
    data = write_dataset(tmp_path / "data")
    document = (data / "dataset.json").read_text().replace("organ", "mean")
    (data / "dataset.json").write_text(document)
    answer = medseg("train", smoke, "--data", data, "--out", tmp_path / "run", "--fold", "each", *OPTIONS)
    assert answer.exit_code == 2
    assert "rename it" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_the_budget_is_each_folds_own() -> None:
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
    from pipelines.cross_validate import announcement

    config = CtSegmentationConfig.model_validate({"trainer": {"length": {"kind": "budget", "budget_s": 1200}}})
    assert announcement(config) == "5 folds of 20 min each: about 1 h 40 min"


def started(smoke: Path, cubes: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "train", smoke, "--data", cubes, "--out", out, "--fold", "each"]
    return subprocess.Popen(
        [*map(str, command), *OPTIONS, *more],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_until(is_time: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not is_time():
        assert process.poll() is None, f"it ended before it could be stopped: {process.communicate()[1]}"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_anywhere_and_resumed_equals_undisturbed(how, smoke: Path, cubes: Path, tmp_path: Path) -> None:
    """While planning, in a fold, between two, while predicting: what is there in the end is the same to the bit."""
    more = ("--set", "trainer.length.num_steps=40", "--deterministic")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = started(smoke, cubes, whole, *more)
    assert undisturbed.wait() == 0
    moments = (
        cut / "config.yaml", cut / "fold_0" / "checkpoints" / "last.safetensors", cut / "fold_0" / "report.json",
        cut / "fold_1" / "log.jsonl", cut / "cross_validation" / "manifest.json",
    )  # fmt: skip
    for moment in moments:
        process = started(smoke, cubes, cut, *more, "--resume")
        wait_until(moment.exists, process)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == (130 if how == signal.SIGTERM else -how), stderr
        if how == signal.SIGTERM:
            assert f"--out {cut} --resume goes on" in stderr
    process = started(smoke, cubes, cut, *more, "--resume")
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    for name in ("bundle/model_0.safetensors", "bundle/model_1.safetensors", "fold_1/checkpoints/last.safetensors"):
        first, second = load_file(whole / name), load_file(cut / name)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first), name
    assert read(whole / "cross_validation" / "metrics.json") == read(cut / "cross_validation" / "metrics.json")
