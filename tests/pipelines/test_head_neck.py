"""``make head-neck``: the bundle and its card from a few steps on the sample, also where it is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from medseg.core.errors import WriteError
from medseg.inference.description import describe
from medseg.io.bundle import read_bundle
from medseg.io.dataset import read_dataset
from pipelines import head_neck

ROOT = Path(__file__).parents[2]

TINY = (
    "trainer.length={kind: steps, num_steps: 6}", "plan.spacing_mm=[8, 8, 8]", "plan.patch_ijk=[32, 24, 32]",
    "network.features=[4, 8]", "trainer.num_threads=1", "trainer.validation={num_validations: 1, max_cases: 1}",
    "trainer.checkpoint_every=1", "splits.num_folds=2",
)  # fmt: skip

PROGRAM = (
    "import sys; from pathlib import Path; from pipelines import head_neck as h; "
    "o = h.HeadNeckOptions(Path(sys.argv[2]), None, None, Path(sys.argv[3]), tuple(sys.argv[4:])); "
    "h.run(Path(sys.argv[1]), o)"
)


def test_the_dataset_of_the_model_differs_only_in_its_tolerance(tmp_path: Path, sample: Path) -> None:
    prepared, given = head_neck.prepare_dataset(sample, tmp_path), read_dataset(sample)
    assert {structure.tolerance_mm for structure in prepared.labels.structures} == {3.0}
    assert prepared.labels.names == given.labels.names
    assert [(case.id, case.annotated, case.split) for case in prepared.cases] == [
        (case.id, case.annotated, case.split) for case in given.cases
    ]
    pairs = zip(prepared.cases, given.cases, strict=True)
    assert all(mine.images[0].samefile(its.images[0]) and mine.label.samefile(its.label) for mine, its in pairs)


def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(9 * 2**20))
    with pytest.raises(WriteError, match=r"9\.0 MB, and 8 MB are allowed"):
        head_neck.outcome(tmp_path, None)


def test_the_network_of_the_config_fits_into_the_repository() -> None:
    """Two bytes a weight, with half a megabyte left for the probe, the card and the description."""
    from medseg.models.build import build_model
    from medseg.tasks.ct_segmentation.config import CtSegmentationConfig

    values = yaml.safe_load((ROOT / "configs/ct_segmentation/head_neck.yaml").read_text())
    network = CtSegmentationConfig.model_validate(values).network
    if getattr(network, "features", ()) is None:
        pytest.skip("the planner chooses the network")
    num_stages = len(getattr(network, "features", ()) or (1,) * 4)
    model = build_model(network, 1, 8, ((2, 2, 2),) * num_stages)
    assert 2 * sum(weight.numel() for weight in model.state_dict().values()) <= head_neck.MAX_BYTES - 2**19


def test_make_says_what_it_needs() -> None:
    done = subprocess.run(["make", "-n", "head-neck", "DATA=x"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pipelines.head_neck "x" --out "runs/head-neck" --budget "6h" --fold-budget "1h"' in done.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "pipelines.head_neck", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--fold-budget" in shown.stdout


@pytest.mark.slow
def test_killed_in_every_part_it_ends_with_the_same_weights(tmp_path: Path, sample: Path, medseg) -> None:
    def start(name: str, bundles: str) -> subprocess.Popen[bytes]:
        arguments = [sample, tmp_path / name, tmp_path / bundles, *TINY]
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def kill_at(process: subprocess.Popen[bytes], log: Path, step: int) -> None:
        while not (log.exists() and f'"step": {step}' in log.read_text()):
            assert process.poll() is None, f"it ended before {log} could be cut"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert start("whole", "one").wait() == 0
    for log in ("all/log.jsonl", "folds/fold_0/log.jsonl", "folds/fold_1/log.jsonl"):
        kill_at(start("cut", "two"), tmp_path / "cut" / log, 3)
        assert not (tmp_path / "two").exists(), "a bundle without figures is not published"
    assert start("cut", "two").wait() == 0

    first, second = (read_bundle(tmp_path / name / "head-neck") for name in ("one", "two"))
    assert (
        first.folder.joinpath("model.safetensors").read_bytes()
        == second.folder.joinpath("model.safetensors").read_bytes()
    )
    assert first.manifest["metrics"] == second.manifest["metrics"]
    assert first.manifest["metrics"]["cross_validation"]["mean"]["dice"]["num_cases"] == 8
    description = describe(first)
    assert description.name == "head-neck"
    assert len(description.plan.training_cases) == 8
    assert description.plan.validation_cases == ()
    assert all(tensor.dtype == "float16" for tensor in first.weights[0].values())
    for part in ("MIT", "10.1002/mp.14845", "no medical device", "NSD: surface Dice at 3 mm", "mean"):
        assert part in (first.card or ""), part
    intermediate = read_bundle(tmp_path / "whole" / "head-neck")
    assert "Not cross-validated yet" in (intermediate.card or "")
    answer = medseg("predict", first.folder, sample / "images" / "pt_222.nii.gz", "--out", tmp_path / "out", "--json")
    assert answer.json["done"] == 1
    check_demo(tmp_path, first.folder)


def check_demo(tmp_path: Path, bundle: Path) -> None:
    """The demo shows the bundled model beside its own, and says that it knows these patients."""
    from pipelines import demo

    run = tmp_path / "whole" / "folds" / "fold_0"
    shutil.copytree(run, tmp_path / "demo" / "run")
    bundles = tmp_path / "bundles"
    shutil.copytree(bundle, bundles / demo.BUNDLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg.io.resources.bundles_folder", lambda: bundles)
        outcome = demo.run(tmp_path / "demo")
    assert outcome.exit_code == 0
    assert "was trained on these two patients too" in outcome.text
    metrics = json.loads((tmp_path / "demo" / "evaluation" / "metrics.json").read_text())
    assert metrics["comparison"]["other"] == demo.BUNDLED
