from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file


def test_a_run_folder_holds_what_the_contract_says(run_folder: Path) -> None:
    present = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    expected = {
        "config.yaml", "plan.json", "log.jsonl", "report.json", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
        "bundle/model.safetensors", "bundle/probe.npz", "bundle/bundle.json", "figures/curves.png", "figures/first_batches.png",
    }  # fmt: skip
    assert expected <= present
    assert any(name.startswith("tensorboard/") for name in present)
    assert {name for name in present if "tmp" in name} == set()
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if entry["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in log if entry["kind"] == "validation"] == [3, 6]
    plan = json.loads((run_folder / "plan.json").read_text())
    assert plan["num_steps"] == 6
    assert len(plan["training_cases"]) == 6
    assert plan["validation_cases"] == ["pt_201", "pt_222"]
    bundle = json.loads((run_folder / "bundle" / "bundle.json").read_text())
    assert {"schema_version", "task", "network", "plan", "labels", "metrics", "medseg_version", "files"} <= set(bundle)


def test_the_probe_gives_its_logits_again(run_folder: Path) -> None:
    import torch

    from medseg.inference.description import describe
    from medseg.inference.runtimes.torch import load_runtime
    from medseg.io.bundle import read_bundle

    bundle = read_bundle(run_folder)
    logits = load_runtime(describe(bundle), bundle.weights, torch.device("cpu"))(bundle.probe["image"])
    np.testing.assert_allclose(logits.numpy(), bundle.probe["logits"], atol=1e-5)


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, sample: Path, smoke: Path, medseg_process
) -> None:
    """SIGKILL while it trains; what the resumed run ends with is what the uninterrupted one ends with."""
    options = ["--deterministic", "--quiet", "--data", sample]
    options += ["--set", "trainer.length.num_steps=40", "--set", "trainer.num_threads=1"]
    whole = medseg_process("train", smoke, "--out", tmp_path / "whole", *options)
    assert whole.exit_code == 0, whole.stderr
    command = [sys.executable, "-m", "pipelines.cli", "train", smoke, "--out", tmp_path / "cut", *options]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "cut" / "log.jsonl"
    while not (log.exists() and log.read_text().count('"kind": "step"') >= 7):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "bundle").exists()
    resumed = medseg_process("train", smoke, "--out", tmp_path / "cut", "--resume", *options)
    assert resumed.exit_code == 0, resumed.stderr
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "bundle/model.safetensors"):
        first, second = (load_file(tmp_path / place / name) for place in ("whole", "cut"))
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first), name


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, sample: Path, smoke: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "train", smoke, "--data", sample, "--out", tmp_path / "run"]
    command += ["--set", "trainer.length.num_steps=100000", "--set", "trainer.checkpoint_every=100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and '"step": 2' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()


def test_a_budget_measures_the_machine_and_freezes_the_steps(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    answer = medseg("train", smoke, "--data", sample, "--out", tmp_path / "run", "--budget", "15s", "--json")
    assert answer.exit_code == 0, answer.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["num_steps"] == answer.json["num_steps"] > 6
    assert plan["seconds_per_step"] > 0
    assert any("15 s" in reason for reason in plan["reasons"])


def test_deterministic_refuses_arithmetic_that_does_not_repeat(
    tmp_path: Path, sample: Path, smoke: Path, medseg
) -> None:
    import torch

    try:
        for name, options, expected in (("free", [], False), ("strict", ["--deterministic"], True)):
            answer = medseg("train", smoke, "--data", sample, "--out", tmp_path / name, *options)
            assert answer.exit_code == 0, answer.stderr
            assert torch.are_deterministic_algorithms_enabled() is expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_is_not_overwritten_and_not_resumed_with_another_config(
    run_folder: Path, sample: Path, smoke: Path, medseg
) -> None:
    again = medseg("train", smoke, "--data", sample, "--out", run_folder)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    other = medseg("train", smoke, "--data", sample, "--out", run_folder, "--resume", "--set", "trainer.seed=5")
    assert other.exit_code == 2
    assert "another config" in other.stderr


def test_all_mistakes_of_a_config_come_at_once_with_paths_and_the_nearest_name(
    tmp_path: Path, smoke: Path, sample: Path, medseg
) -> None:
    values = yaml.safe_load(smoke.read_text())
    values["trainer"]["optimizr"] = 1
    values["trainer"]["optimizer"] = {"kind": "adamw", "learning_rate": -1}
    values["network"] = {"kind": "unett"}
    values["augmentation"]["noise_std"] = [2, 1]
    values["loss"] = {"kind": "dice_ce", "activation": "softmax"}
    values["plan"]["window_hu"] = [100, -100]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    answer = medseg("train", tmp_path / "wrong.yaml", "--data", sample, "--out", tmp_path / "run")
    assert answer.exit_code == 2
    for words in (
        "6 mistakes", "trainer.optimizr: unknown key; did you mean 'optimizer'?", "trainer.optimizer.learning_rate",
        "network.kind", "augmentation: noise_std", "loss.activation: unknown key", "plan: window_hu",
    ):  # fmt: skip
        assert words in answer.stderr, words
    assert not (tmp_path / "run").exists(), "nothing is made before the config is right"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["train", "none.yaml"], 2, "no file"),
        (["train", "{smoke}"], 2, "--data"),
        (["train", "{smoke}", "--data", "{tmp}"], 2, "dataset.json"),
        (["train", "{smoke}", "--budget", "soon"], 2, "90s"),
        (["train", "{smoke}", "--set", "task=ct_segmentaton"], 3, "did you mean 'ct_segmentation'"),
        (["train", "{smoke}", "--data", "{sample}", "--set", "trainer.device=abacus", "--out", "{tmp}/x"], 2, "abacus"),
        (["train", "{smoke}", "--devices", "2"], 2, "No such option"),
        (["init", "nothing"], 3, "no task"),
        (["predict", "{tmp}", "{sample}", "--out", "{tmp}/y"], 4, "bundle"),
        (["evaluate", "{tmp}", "{tmp}"], 2, "names the structures"),
    ],
)
def test_mistakes_have_their_exit_code_and_a_sentence(
    arguments, exit_code, words, tmp_path, smoke, sample, medseg
) -> None:
    filled = [argument.format(smoke=smoke, sample=sample, tmp=tmp_path) for argument in arguments]
    answer = medseg(*filled)
    assert (answer.exit_code, words in answer.stderr) == (exit_code, True), answer.stderr


def test_a_bad_training_case_is_left_out_and_told(tmp_path: Path, sample: Path, smoke: Path, medseg) -> None:
    shutil.copytree(sample, tmp_path / "data")
    (tmp_path / "data" / "images" / "pt_4.nii.gz").write_bytes(b"not a scan")
    answer = medseg("train", smoke, "--data", tmp_path / "data", "--out", tmp_path / "run", "--json")
    assert answer.exit_code == 1
    assert "pt_4 is left out" in answer.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert len(plan["training_cases"]) == 5
    for image in (tmp_path / "data" / "images").iterdir():
        image.write_bytes(b"not a scan")
    assert medseg("train", smoke, "--data", tmp_path / "data", "--out", tmp_path / "all").exit_code == 5


def test_two_channels_and_a_vnet_train_and_predict(tmp_path: Path, smoke: Path, medseg) -> None:
    """nnU-Net raw, CT beside PET, without splits; the V-Net; sigmoid."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(6):
        label = np.zeros((24, 24, 20), np.uint8)
        label[6:14, 8:16, 5:12] = 1
        for channel, noise in ((0, 300.0), (1, 2.0)):
            image = nib.Nifti1Image(
                (rng.standard_normal(label.shape) * noise).astype(np.float32), np.diag([4.0, 4, 4, 1])
            )
            nib.save(image, tmp_path / "data" / "imagesTr" / f"p{number}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.diag([4.0, 4, 4, 1])), tmp_path / "data" / "labelsTr" / f"p{number}.nii.gz")
    document = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
        "numTraining": 6,
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(document))
    answer = medseg(
        "train", smoke, "--data", tmp_path / "data", "--out", tmp_path / "run", "--set", "plan.patch_ijk=[16, 16, 16]",
        "--set", "plan.spacing_mm=null", "--set", "network={kind: vnet, width: 2, num_convolutions: [1, 1, 1]}",
        "--set", "loss={kind: dice_bce}",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [how["kind"] for how in plan["normalisation"]] == ["window", "zscore"]
    assert set(plan["training_cases"]) | set(plan["validation_cases"]) == {f"p{n}" for n in range(6)}
    assert not set(plan["training_cases"]) & set(plan["validation_cases"])
    predicted = medseg("predict", tmp_path / "run", tmp_path / "data" / "imagesTr", "--out", tmp_path / "out", "--json")
    assert predicted.exit_code == 0, predicted.stderr
    assert predicted.json["done"] == 6
