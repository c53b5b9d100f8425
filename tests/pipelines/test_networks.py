"""Every network that a config can name: it trains, its bundle is written and predicts, and it learns real structures."""

from __future__ import annotations

import json
import statistics
import sys
from itertools import islice
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from medseg.core.progress import silent
from medseg.inference.description import describe
from medseg.inference.predictor import Predictor
from medseg.inference.runtimes.torch import load_runtime
from medseg.io.bundle import read_bundle, write_bundle
from medseg.io.dataset import read_dataset
from medseg.models.config import NetworkConfig
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.files import files
from medseg.tasks.ct_segmentation.training import create

TINY = {
    "unet": "{kind: unet, features: [4, 8, 8], stem_stride: 1, deep_supervision: true}",
    "residual_unet": "{kind: residual_unet, features: [4, 8, 8], stem_stride: 1, deep_supervision: true}",
    "vnet": "{kind: vnet, width: 2, num_convolutions: [1, 1, 1], kernel_size: 3, deep_supervision: true}",
    "segresnet": "{kind: segresnet, width: 4, num_blocks: [1, 1, 1], deep_supervision: true}",
    "dynunet": "{kind: dynunet, features: [4, 8, 8], deep_supervision: true}",
    "attention_unet": "{kind: attention_unet, features: [4, 8, 8]}",
    "swin_unetr": "{kind: swin_unetr}",
    "mednext": "{kind: mednext, width: 4, num_blocks: [1, 1, 1], deep_supervision: true}",
}

THREE_MINUTES = {
    "residual_unet": 800,
    "vnet": 180,
    "segresnet": 220,
    "dynunet": 280,
    "attention_unet": 320,
}
"""Steps of two patches of 64 x 32 x 64 in three minutes of one processor core, at the default widths."""

MIN_FALL, MIN_DICE = 0.85, 0.1
"""Last third's median loss over the first's, at most; Dice of all structures together on the sample, at least."""


def test_every_kind_is_covered() -> None:
    assert set(TINY) == {kind().kind for kind in get_args(get_args(NetworkConfig)[0])}


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans with a bright block, two to train on and one to validate on."""
    folder = tmp_path_factory.mktemp("cubes")
    rng = np.random.default_rng(0)
    cases = []
    for number in range(3):
        label = np.zeros((64, 32, 32), np.uint8)
        label[20:40, 8:24, 10 + number : 20] = 1
        image = (label * 400.0 + rng.normal(0, 50, label.shape)).astype(np.int16)
        for name, array in (("images", image), ("labels", label)):
            (folder / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([4.0, 4, 4, 1])), folder / name / f"c{number}.nii.gz")
        case = {"id": f"c{number}", "image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"}
        cases.append({**case, "annotated": ["block"], "split": "validation" if number == 2 else "train"})
    document = {"name": "cubes", "modality": "CT", "labels": {"background": 0, "block": 1}, "cases": cases}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("kind", TINY)
def test_every_network_takes_steps_and_its_bundle_gives_its_probe_again_and_predicts(
    kind: str, cubes: Path, tmp_path: Path
) -> None:
    config = CtSegmentationConfig.model_validate(
        {
            "network": yaml.safe_load(TINY[kind]),
            "plan": {"patch_ijk": [64, 32, 32] if kind == "swin_unetr" else [16, 8, 8]},
            "trainer": {"batch_size": 1 if kind == "swin_unetr" else 2},
            "cache": {"max_gb": 0},
        }
    )
    dataset = read_dataset(cubes)
    task = create(config, dataset, files.make_plan(config, dataset, silent), silent)
    network = task.build_model().train()
    optimizer = torch.optim.AdamW(network.parameters())
    for batch in islice(task.train_batches(0), 1 if kind == "swin_unetr" else 3):  # it takes seconds a step
        optimizer.zero_grad()
        task.loss(network, batch).total.backward()
        optimizer.step()
    manifest, weights, probe = task.bundle(network)
    write_bundle(tmp_path / "bundle", manifest, [weights], probe)
    bundle = read_bundle(tmp_path / "bundle")
    logits = load_runtime(describe(bundle), bundle.weights, torch.device("cpu"))(bundle.probe["image"])
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(torch.from_numpy(probe["image"])), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(logits.numpy(), bundle.probe["logits"], atol=1e-5)
    label_map = Predictor.load(tmp_path / "bundle").predict(cubes / "images" / "c2.nii.gz")
    assert label_map.geometry.shape_ijk == (64, 32, 32)


def test_a_network_of_monai_goes_the_whole_way(cubes: Path, smoke: Path, tmp_path: Path, medseg) -> None:
    answer = medseg(
        "train", smoke, "--data", cubes, "--out", tmp_path / "run", "--set", f"network={TINY['dynunet']}",
        "--set", "plan.patch_ijk=[16, 8, 8]", "--set", "plan.spacing_mm=null", "--set", "trainer.length.num_steps=3",
        "--set", "trainer.validation.num_validations=1",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    predicted = medseg("predict", tmp_path / "run", cubes / "images" / "c2.nii.gz", "--out", tmp_path / "out", "--json")
    assert predicted.exit_code == 0, predicted.stderr
    assert predicted.json["done"] == 1


def losses(run: Path) -> list[float]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in log if entry["kind"] == "step"]


def foreground_dice(predicted: Path, reference: Path) -> float:
    """Of all structures together, over all voxels of all cases."""
    common = total = 0
    for path in sorted(reference.glob("*.nii.gz")):
        masks = [np.asarray(nib.load(folder / path.name).dataobj) > 0 for folder in (predicted, reference)]
        common, total = common + int((masks[0] & masks[1]).sum()), total + int(masks[0].sum() + masks[1].sum())
    return 2 * common / total


def train(kind: str, num_steps: int, sample: Path, out: Path, medseg) -> list[float]:
    config = Path(__file__).parents[2] / "configs" / "ct_segmentation" / "head_neck_unet.yaml"
    answer = medseg(
        "train", config, "--data", sample, "--out", out, "--set", f"network={{kind: {kind}}}",
        "--set", "plan.spacing_mm=null", "--set", "plan.patch_ijk=[64, 32, 64]", "--set", "trainer.batch_size=2",
        "--set", f"trainer.length={{kind: steps, num_steps: {num_steps}}}", "--set", "trainer.num_threads=1",
        "--set", "trainer.validation.num_validations=1", "--set", "trainer.precision=fp32",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    return losses(out)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", THREE_MINUTES)
def test_every_network_learns_the_sample_in_three_minutes(kind: str, sample: Path, tmp_path: Path, medseg) -> None:
    found = train(kind, THREE_MINUTES[kind], sample, tmp_path / "run", medseg)
    third = len(found) // 3
    first, last = statistics.median(found[:third]), statistics.median(found[-third:])
    answer = medseg("predict", tmp_path / "run", sample / "images", "--out", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.stderr
    dice = foreground_dice(tmp_path / "out", sample / "labels")
    figures = f"{len(found)} steps, loss {first:.3f} -> {last:.3f} ({last / first:.2f}), foreground Dice {dice:.3f}"
    sys.stdout.write(f"{kind}: {figures}\n")
    assert last <= MIN_FALL * first
    assert dice >= MIN_DICE


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["swin_unetr", "mednext"])
def test_the_loss_of_the_large_networks_falls_in_twenty_steps(kind: str, sample: Path, tmp_path: Path, medseg) -> None:
    found = train(kind, 20, sample, tmp_path / "run", medseg)
    first, last = statistics.median(found[:5]), statistics.median(found[-5:])
    sys.stdout.write(f"{kind}: loss {first:.3f} -> {last:.3f}\n")
    assert last < first
    answer = medseg("predict", tmp_path / "run", sample / "images" / "pt_4.nii.gz", "--out", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.stderr
