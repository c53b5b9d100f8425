"""``--from``: a trained network goes on with other structures; its plan stays, and what it knew it still knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medseg.core.case import Dataset
from medseg.core.progress import silent
from medseg.io.dataset import read_dataset
from medseg.io.nifti import write_label_map
from medseg.io.volume import read_label_map

OTHER = {"larynx": 1, "neck_bones": 2, "mandible": 3, "spinal_cord": 4}
"""Three structures of the sample under other values and in another order, and one that it does not have."""


def with_other_labels(sample: Path, folder: Path, labels: Mapping[str, int]) -> Path:
    """The sample's scans with some of its structures, and some of what is no structure there as a new one."""
    from dataclasses import replace

    document = json.loads((sample / "dataset.json").read_text())
    old = document["labels"]
    (folder / "labels").mkdir(parents=True)
    for case in document["cases"]:
        label = read_label_map(sample / case["label"])
        array = np.zeros_like(label.array)
        for name, value in labels.items():
            if name in old:
                array[label.array == old[name]] = value
        write_label_map(folder / case["label"], replace(label, array=array))
        case["image"] = str(sample / case["image"])
        case["annotated"] = [name for name in labels if name in old]
    document["labels"] = {"background": 0, **labels}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    return with_other_labels(sample, tmp_path_factory.mktemp("other") / "data", OTHER)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, run_folder: Path, other: Path, smoke: Path, medseg) -> Path:
    """A finished run that went on from the smoke run."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    options = (
        "--set",
        "trainer.num_threads=1",
        "--set",
        "plan.spacing_mm=[5, 5, 5]",
        "--set",
        "network.features=[2, 3]",
    )
    answer = medseg("train", smoke, "--data", other, "--from", run_folder, "--out", out, *options)
    assert answer.exit_code == 0, answer.stderr
    assert "trained further from 'smoke'" in answer.stderr
    assert "larynx, mandible, spinal_cord go on; neck_bones start afresh; brainstem, " in answer.stderr
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def task_of(dataset: Dataset, run: Path, **changes: Any) -> Any:
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
    from medseg.tasks.ct_segmentation.files import files
    from medseg.tasks.ct_segmentation.training import create

    values = {**yaml.safe_load((run / "config.yaml").read_text()), **changes}
    config = files.complete_config(CtSegmentationConfig.model_validate(values))
    plan = files.make_plan(config, dataset, silent)
    return create(
        config,
        dataset,
        plan.model_copy(update={"training_cases": plan.training_cases[:1], "validation_cases": ()}),
        silent,
    )


def test_the_plan_and_the_network_are_the_bundles(run_folder: Path, tuned: Path) -> None:
    from medseg.io.bundle import read_bundle

    old, new = read(run_folder / "plan.json"), read(tuned / "plan.json")
    for name in ("spacing_ijk_mm", "patch_ijk", "strides", "normalisation"):
        assert new[name] == old[name]
    assert new["started_from"] == {"name": "smoke", "hash": read_bundle(run_folder).hash}
    assert old["started_from"] is None
    bundle = read(tuned / "bundle" / "bundle.json")
    assert bundle["plan"]["started_from"] == new["started_from"]
    assert [structure["name"] for structure in bundle["labels"]["structures"]] == list(OTHER)
    assert bundle["network"]["features"] == [4, 8]
    config = yaml.safe_load((tuned / "config.yaml").read_text())
    assert (config["network"]["features"], config["start_from"]) == ([4, 8], str(run_folder))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_structures_of_one_name_start_with_the_logits_that_they_had(
    activation: str, run_folder: Path, other: Path
) -> None:
    import torch

    from medseg.inference.description import describe
    from medseg.inference.runtimes.torch import load_runtime
    from medseg.io.bundle import read_bundle

    loss = {"kind": "dice_ce"} if activation == "softmax" else {"kind": "dice_bce"}
    task = task_of(read_dataset(other), run_folder, start_from=str(run_folder), loss=loss)
    bundle = read_bundle(run_folder)
    description = describe(bundle)
    old_names = ["background", *description.labels.names]
    new_names = [*OTHER] if activation == "sigmoid" else ["background", *OTHER]
    image = np.random.default_rng(0).standard_normal((1, 1, *description.plan.patch_ijk), dtype=np.float32)
    old = load_runtime(description, bundle.weights, torch.device("cpu"))(image)
    with torch.no_grad():
        new = task.build_model().eval()(torch.from_numpy(image))
    assert new.shape[1] == len(new_names)
    for index, name in enumerate(new_names):
        if name in old_names:
            torch.testing.assert_close(new[:, index], old[:, old_names.index(name)])
        else:
            assert name == "neck_bones"


def test_of_an_ensemble_the_first_network_goes_on(run_folder: Path, tmp_path: Path) -> None:
    from medseg.io.bundle import read_bundle, write_bundle
    from medseg.tasks.ct_segmentation.start import StartingPoint

    one = read_bundle(run_folder)
    others = {name: weight + 1 for name, weight in one.weights[0].items()}
    write_bundle(tmp_path / "both", one.manifest, [one.weights[0], others], one.probe, storage="float16")
    start = StartingPoint.open(str(tmp_path / "both"))
    for name, weight in one.weights[0].items():
        np.testing.assert_allclose(start.weights[name], weight, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_beats_a_fresh_network_of_as_few_steps(
    sample: Path, other: Path, smoke: Path, tmp_path: Path, medseg
) -> None:
    """On real scans: three structures that it has begun to know, and a fourth that nobody knows."""
    settings = ["plan.spacing_mm=[6, 6, 6]", "plan.patch_ijk=[32, 32, 32]"]
    settings += ["network.features=[8, 16, 32]", "network.stem_stride=1", "sampling.foreground_fraction=0.8"]
    settings += ["trainer.optimizer.learning_rate=0.01", "trainer.validation.max_cases=2", "trainer.num_threads=1"]

    def dice(name: str, data: Path, num_steps: int, *more: object) -> float:
        chosen = [
            word for setting in (*settings, f"trainer.length.num_steps={num_steps}") for word in ("--set", setting)
        ]
        answer = medseg("train", smoke, "--data", data, "--out", tmp_path / name, *chosen, *more, "--json")
        assert answer.exit_code == 0, answer.stderr
        return float(answer.json["validation"]["mean_dice"])

    dice("known", sample, 500)
    assert dice("tuned", other, 40, "--from", tmp_path / "known") > dice("fresh", other, 40) + 0.3


def test_resuming_finds_the_same_bundle_or_says_so(
    run_folder: Path, other: Path, smoke: Path, tmp_path: Path, medseg
) -> None:
    start = tmp_path / "start"
    shutil.copytree(run_folder / "bundle", start)
    command = (
        "train",
        smoke,
        "--data",
        other,
        "--from",
        start,
        "--out",
        tmp_path / "run",
        "--set",
        "trainer.num_threads=1",
    )
    assert medseg(*command).exit_code == 0
    (tmp_path / "run" / "report.json").unlink()
    assert medseg(*command, "--resume").exit_code == 0
    elsewhere = medseg(*command[:5], run_folder, *command[6:], "--resume")
    assert elsewhere.exit_code == 2
    document = read(start / "bundle.json")
    (start / "bundle.json").write_text(json.dumps({**document, "name": "another"}))
    changed = medseg(*command, "--resume")
    assert changed.exit_code == 4
    assert "is not the one" in changed.stderr


def test_what_does_not_fit_is_told_before_any_work(
    run_folder: Path, sample: Path, smoke: Path, tmp_path: Path, medseg: Callable[..., Any]
) -> None:
    document = read(sample / "dataset.json")
    for channels, words in ((["CT", "PET"], "CT, and"), (["MR"], "channels CT, and")):
        document = {**read(sample / "dataset.json"), "channels": channels}
        del document["modality"]
        for case in document["cases"]:
            case["image"] = [str(sample / case["image"])] * len(channels)
            case["label"] = str(sample / case["label"])
        folder = tmp_path / "-".join(channels)
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps(document))
        answer = medseg("train", smoke, "--data", folder, "--from", run_folder, "--out", tmp_path / "run")
        assert (answer.exit_code, words in answer.stderr) == (2, True), answer.stderr
    command = ("train", smoke, "--data", sample, "--out", tmp_path / "run", "--from")
    for options, exit_code, words in (
        ((tmp_path / "nothing",), 4, "neither a bundle nor a finished run"),
        ((run_folder, "--plan", run_folder / "plan.json"), 2, "brings its own plan"),
    ):
        answer = medseg(*command, *options)
        assert (answer.exit_code, words in answer.stderr) == (exit_code, True), answer.stderr
    assert not (tmp_path / "run").exists()
