"""Evaluation from files to report: who names the structures, what counts as empty, and two models compared."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medseg.core.errors import ConfigError, PluginError
from pipelines.evaluate import EvaluateOptions, run
from pipelines.outcome import Outcome

SHAPE = (24, 20, 16)
LABELS = {"background": 0, "heart": 1, "lung": 4}
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
ALIKE = "metrics.json", "metrics.csv", "summary.csv", "report.html", "figures/scores.png"


def label_map(shift: int = 0, heart: int = 1, lung: int = 4) -> np.ndarray:
    """Two boxes; a prediction has them moved by some voxels."""
    array = np.zeros(SHAPE, np.uint8)
    array[4 + shift : 10 + shift, 4:12, 4:10] = heart
    array[14:20, 6:14, 3 + shift : 9 + shift] = lung
    return array


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, AFFINE), path)
        return
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.5, 1.5, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # LPS: the same grid
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six cases with images; the last one has no annotation of the lung."""
    folder = tmp_path / "dataset"
    entries: list[dict[str, Any]] = []
    for number in range(6):
        save(folder / f"labels/c{number}.nii.gz", label_map())
        save(folder / f"images/c{number}.nii.gz", label_map().astype(np.int16) * 40)
        entry = {"id": f"c{number}", "image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"}
        entries.append({**entry, "annotated": ["heart"]} if number == 5 else entry)
    document = {"name": "boxes", "modality": "CT", "labels": LABELS, "cases": entries}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def predict(tmp_path: Path) -> Callable[..., Path]:
    """Write predictions of some cases, by their shift."""

    def write(name: str, shifts: Mapping[int, int], suffix: str = ".nii.gz", **values: int) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        for number, shift in shifts.items():
            save(tmp_path / name / f"c{number}{suffix}", label_map(shift, **values))
        return tmp_path / name

    return write


def evaluate(predictions: Path, references: Path, **options: Any) -> Outcome:
    return run(predictions, references, EvaluateOptions(**options))


ALL = dict.fromkeys(range(6), 1)


def test_the_files_of_an_evaluation(tmp_path: Path, dataset: Path, predict: Callable[..., Path]) -> None:
    outcome = evaluate(predict("ours", {**ALL, 2: 3}), dataset, out=tmp_path / "out")
    assert outcome.exit_code == 0
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert document == json.loads(json.dumps(outcome.result))
    assert (document["surface"], document["problems"]) == ("elements", {})
    assert set(document["cases"]["c0"]["heart"]) >= {"dice", "iou", "nsd", "hd95_mm", "assd_mm", "status"}
    assert set(document["cases"]["c5"]) == {"heart"}, "the lung is not annotated there"
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [(row["case"], row["structure"]) for row in rows if row["case"] == "c0"] == [("c0", "heart"), ("c0", "lung")]
    assert float(rows[0]["dice"]) == pytest.approx(document["cases"]["c0"]["heart"]["dice"])
    summary = {row["structure"]: row for row in csv.DictReader((tmp_path / "out/summary.csv").open())}
    assert float(summary["mean"]["dice_mean"]) == pytest.approx(document["summary"]["mean"]["dice"]["mean"])
    page = (tmp_path / "out/report.html").read_text()
    assert re.search(r"<h3>1\. c2: mean Dice", page), "the worst comes first"
    assert page.count("data:image/jpeg") == 6
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*ALIKE, *(f"figures/c{n}.png" for n in range(6))}


def test_the_same_input_gives_the_same_bytes_and_only_inside_out(
    tmp_path: Path, dataset: Path, predict: Callable[..., Path]
) -> None:
    document = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**document, "cases": document["cases"][:2]}))
    ours, other = predict("ours", ALL), predict("other", {**ALL, 1: 4})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in ("one", "two"):
        evaluate(ours, dataset, out=tmp_path / out, compare=other)
    evaluate(ours, dataset, out=tmp_path / "two", compare=other)  # into a folder that is full already
    for name in (*ALIKE, "figures/comparison.png", "figures/c0.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    outside = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.relative_to(tmp_path).parts[0] not in ("one", "two")
    }
    assert outside == before


def test_two_models_are_compared_case_by_case(tmp_path: Path, dataset: Path, predict: Callable[..., Path]) -> None:
    ours, other = predict("ours", dict.fromkeys(range(6), 1)), predict("other", dict.fromkeys(range(6), 2))
    outcome = evaluate(ours, dataset, out=tmp_path / "out", compare=other)
    assert outcome.exit_code == 0
    comparison = outcome.result["comparison"]
    assert comparison["other"] == "other"
    alone = [evaluate(folder, dataset).result["summary"] for folder in (ours, other)]
    for name in ("heart", "lung", "mean"):
        entry = comparison["summary"][name]["dice"]
        assert entry["difference"] == pytest.approx(alone[0][name]["dice"]["mean"] - alone[1][name]["dice"]["mean"])
        assert (entry["worse"], entry["tied"], entry["better"]) == (0, 0, entry["num_cases"])
    assert comparison["summary"]["heart"]["dice"]["p_value"] == pytest.approx(2 / 2**6)
    assert comparison["summary"]["lung"]["dice"]["p_holm"] == pytest.approx(2 / 2**5)
    assert comparison["summary"]["heart"]["dice"]["p_holm"] == pytest.approx(2 * 2 / 2**6)
    assert "ours minus other" in outcome.text
    assert "ours minus other" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/figures/comparison.png").stat().st_size > 5000


def test_models_in_folders_of_one_name_are_told_apart(
    tmp_path: Path, dataset: Path, predict: Callable[..., Path]
) -> None:
    for model in ("unet", "vnet"):
        (tmp_path / model).mkdir()
        predict(f"{model}/predictions", {0: 1})
    outcome = evaluate(tmp_path / "unet/predictions", dataset, compare=tmp_path / "vnet/predictions")
    assert "unet/predictions minus vnet/predictions" in outcome.text
    alone = evaluate(tmp_path / "unet/predictions", dataset, compare=tmp_path / "unet/predictions")
    assert "\npredictions minus predictions" in alone.text


def test_what_is_missing_in_one_model_counts_as_empty_there(dataset: Path, predict: Callable[..., Path]) -> None:
    outcome = evaluate(predict("ours", ALL), dataset, compare=predict("other", {0: 1}))
    assert outcome.exit_code == 1
    assert outcome.result["problems"] == {}
    assert set(outcome.result["comparison"]["problems"]) == {"c1", "c2", "c3", "c4", "c5"}
    entry = outcome.result["comparison"]["summary"]["heart"]
    assert (entry["dice"]["num_cases"], entry["dice"]["better"], entry["dice"]["tied"]) == (6, 5, 1)
    assert entry["hd95_mm"]["num_cases"] == 1, "no distance to compare where one has none"


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mhd"])
def test_every_format_scores_the_same(tmp_path: Path, predict: Callable[..., Path], suffix: str) -> None:
    for number in range(2):
        save(tmp_path / f"refs/c{number}{suffix}", label_map())
        save(tmp_path / f"nifti/c{number}.nii.gz", label_map())
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    shifts, labels = {0: 1, 1: 2}, tmp_path / "labels.json"
    plain = evaluate(predict("plain", shifts), tmp_path / "nifti", labels=labels)
    other = evaluate(predict("other", shifts, suffix), tmp_path / "refs", labels=labels)
    assert plain.exit_code == other.exit_code == 0
    for case, scores in plain.result["cases"].items():
        for name, score in scores.items():
            assert score.pop("status") == other.result["cases"][case][name].pop("status") == "scored"
            assert other.result["cases"][case][name] == pytest.approx(score, rel=1e-5)


def test_two_files_of_one_case_are_refused(tmp_path: Path, dataset: Path, predict: Callable[..., Path]) -> None:
    ours = predict("ours", {0: 0})
    save(ours / "c0.nrrd", label_map())
    with pytest.raises(ConfigError, match=r"c0\.nii\.gz, c0\.nrrd"):
        evaluate(ours, dataset)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    with pytest.raises(ConfigError, match=r"c0\.nii\.gz, c0\.nrrd"):
        evaluate(predict("other", {0: 0}), ours, labels=tmp_path / "labels.json")


def test_somebody_has_to_name_the_structures(tmp_path: Path, dataset: Path, predict: Callable[..., Path]) -> None:
    ours = predict("ours", ALL)
    with pytest.raises(ConfigError, match="--labels"):
        evaluate(ours, dataset / "labels")
    expected = evaluate(ours, dataset).result["cases"]["c0"]
    nnunet = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 99}
    for name, document in (("labels.json", LABELS), ("dataset.json", nnunet)):
        (tmp_path / name).write_text(json.dumps(document))
        assert evaluate(ours, dataset / "labels", labels=tmp_path / name).result["cases"]["c0"] == expected
    described = evaluate(ours, dataset / "labels", labels=dataset / "dataset.json")
    assert described.result["cases"]["c0"] == expected
    (ours / "labels.json").write_text(json.dumps(LABELS))
    assert evaluate(ours, dataset / "labels").result["cases"]["c0"] == expected


def test_values_of_another_program_are_translated_by_name(
    tmp_path: Path, dataset: Path, predict: Callable[..., Path]
) -> None:
    """Heart and lung have each other's values there, and a third structure is none of ours."""
    expected = evaluate(predict("plain", ALL), dataset).result["cases"]
    foreign = predict("foreign", ALL, heart=4, lung=1)
    array = label_map(1, heart=4, lung=1)
    array[0, 0, 0] = 7
    save(foreign / "c0.nii.gz", array)
    untold = evaluate(foreign, dataset)
    assert untold.result["cases"]["c1"]["heart"]["dice"] == 0
    assert "found also [7]" in untold.result["problems"]["c0"]
    labels = {"lung": 1, "heart": 4, "spleen": 7}
    (tmp_path / "theirs.json").write_text(json.dumps(labels))
    told = evaluate(foreign, dataset, labels=tmp_path / "theirs.json")
    assert (told.exit_code, told.result["cases"]) == (0, expected)
    (foreign / "labels.json").write_text(json.dumps(labels))
    beside = evaluate(predict("plain", ALL), dataset, compare=foreign)
    assert beside.result["comparison"]["summary"]["mean"]["dice"]["tied"] == 6
    (foreign / "labels.json").write_text(json.dumps({"Lunge": 1, "heart": 4, "spleen": 7}))
    half = evaluate(foreign, dataset, out=tmp_path / "out")
    assert half.result["notes"] == ["foreign has no value for lung"]
    assert "foreign has no value for lung" in (tmp_path / "out/report.html").read_text()
    assert half.result["summary"]["lung"]["num_missing"] == 5
    (foreign / "labels.json").write_text(json.dumps({"Leber": 1, "Milz": 4}))
    with pytest.raises(ConfigError, match="no structure is common"):
        evaluate(foreign, dataset)


def test_regions_and_the_ignore_label(tmp_path: Path, dataset: Path, predict: Callable[..., Path]) -> None:
    """The references hold 1 for the shell and 2 for the core; the whole is both. Label 9 is not scored."""
    document = json.loads((dataset / "dataset.json").read_text())
    document["labels"] = {"whole": {"value": 1, "region": [1, 2]}, "core": 2, "ignore": 9}
    document["cases"] = [{key: case[key] for key in ("id", "image", "label")} for case in document["cases"][:2]]
    (dataset / "dataset.json").write_text(json.dumps(document))
    reference = np.zeros(SHAPE, np.uint8)
    reference[4:14, 4:14, 4:12] = 1
    reference[6:12, 6:12, 6:10] = 2
    prediction = reference.copy()
    reference[14:18, 4:14, 4:12] = 9
    prediction[14:18, 4:14, 4:12] = 1  # only where it is ignored
    for number in range(2):
        save(dataset / f"labels/c{number}.nii.gz", reference)
        save(tmp_path / f"ours/c{number}.nii.gz", prediction)
    outcome = evaluate(tmp_path / "ours", dataset, out=tmp_path / "out")
    assert outcome.exit_code == 0
    assert [outcome.result["summary"][name]["dice"]["mean"] for name in ("whole", "core")] == [1.0, 1.0]
    save(tmp_path / "ours/c0.nii.gz", prediction + 3)
    strange = evaluate(tmp_path / "ours", dataset)
    assert "expected the label values [0, 1, 2]" in strange.result["problems"]["c0"]
    (tmp_path / "ours/labels.json").write_text(json.dumps({"whole": 2, "core": 1}))
    with pytest.raises(ConfigError, match="regions that differ"):
        evaluate(tmp_path / "ours", dataset)


def test_a_structure_called_like_the_mean_is_refused(tmp_path: Path, predict: Callable[..., Path]) -> None:
    ours = predict("ours", ALL)
    (ours / "labels.json").write_text(json.dumps({"heart": 1, "mean": 4}))
    with pytest.raises(ConfigError, match="'mean'"):
        evaluate(ours, ours)


def test_surfaces_are_chosen_and_told(dataset: Path, predict: Callable[..., Path]) -> None:
    ours = predict("ours", ALL)
    elements, borders = (evaluate(ours, dataset, surface=surface).result for surface in ("elements", "borders"))
    assert (elements["surface"], borders["surface"]) == ("elements", "borders")
    assert elements["summary"]["mean"]["dice"] == borders["summary"]["mean"]["dice"]
    assert elements["summary"]["mean"]["nsd"]["mean"] != borders["summary"]["mean"]["nsd"]["mean"]


def test_a_task_that_is_not_installed_is_told(dataset: Path, predict: Callable[..., Path]) -> None:
    with pytest.raises(PluginError, match="ct_segmentation"):
        evaluate(predict("ours", ALL), dataset, task="ct_segmentatoin")
    assert evaluate(predict("ours", ALL), dataset, task="ct_segmentation").exit_code == 0


def test_mistakes_of_the_command_line_are_told_before_work(
    tmp_path: Path, dataset: Path, predict: Callable[..., Path]
) -> None:
    ours = predict("ours", ALL)
    for arguments, options in (
        ((tmp_path / "nowhere", dataset), {}),
        ((ours / "c0.nii.gz", dataset), {}),
        ((ours, dataset), {"compare": tmp_path / "nowhere"}),
        ((ours, dataset), {"labels": tmp_path / "nowhere.json"}),
        ((ours, tmp_path / "nowhere"), {}),
        ((ours, dataset), {"split": "test"}),
        ((ours, tmp_path), {"labels": dataset / "dataset.json"}),
    ):
        with pytest.raises(ConfigError):
            evaluate(*arguments, **options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_are_harmless_in_every_file(tmp_path: Path, predict: Callable[..., Path]) -> None:
    names = ["<script>alert(1)<script>", "<img src=x onerror=alert(1)>", "a & b", "scores", "$x_{$", "症例一", "=1+1"]
    for name in names:
        save(tmp_path / f"refs/{name}.nii.gz", label_map())
    save(tmp_path / f"ours/{names[0]}.nii.gz", label_map(1))
    save(tmp_path / "ours/.hidden.nii.gz", label_map(1))
    labels = {"background": 0, "<i>heart</i>": 1, "$\\frac{$": 4}
    (tmp_path / "ours/labels.json").write_text(json.dumps(labels))
    outcome = evaluate(tmp_path / "ours", tmp_path / "refs", out=tmp_path / "out")
    assert (outcome.exit_code, len(outcome.result["problems"])) == (1, 6)
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"<(script|img src=x|i>)", page)
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in page
    assert {row["case"] for row in csv.DictReader((tmp_path / "out/metrics.csv").open())} == set(names)


def test_a_reference_that_cannot_be_read_is_left_out(dataset: Path, predict: Callable[..., Path]) -> None:
    ours = predict("ours", ALL)
    (dataset / "labels/c3.nii.gz").write_bytes(b"no label map")
    outcome = evaluate(ours, dataset, compare=ours)
    assert (outcome.exit_code, len(outcome.result["cases"])) == (1, 5)
    assert "c3 is left out" in outcome.result["problems"]["c3"]
    assert outcome.result["comparison"]["problems"] == {}
    shutil.rmtree(dataset / "labels")
    assert evaluate(ours, dataset).exit_code == 6


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path: Path) -> None:
    """A case is a quarter of a megabyte in memory; thirty more leave less than one of them."""
    shape = (64, 64, 64)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    array = np.zeros(shape, np.uint8)
    array[20:40, 20:40, 20:40] = 1

    def peak(num_cases: int) -> int:
        folder = tmp_path / str(num_cases)
        for number in range(num_cases):
            save(folder / f"c{number}.nii.gz", array)
        tracemalloc.start()
        try:
            evaluate(folder, folder, labels=tmp_path / "labels.json")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported and cached at first
    assert peak(34) - peak(4) < array.nbytes


def test_an_unknown_surface_is_refused_before_any_work(dataset: Path, predict: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="elements or borders, found 'voxels'"):
        evaluate(predict("ours", ALL), dataset, surface="voxels")
