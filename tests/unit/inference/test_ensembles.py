"""Several networks as one: the mean of their logits, whichever way they come together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.geometry import Geometry
from medseg.core.volume import Volume
from medseg.inference.description import describe
from medseg.inference.ensemble import ensemble_of, open_ensemble
from medseg.inference.predictor import Predictor
from medseg.inference.runtime import EnsembleRuntime, averaged
from medseg.inference.runtimes.torch import load_runtime, make_probe
from medseg.io.bundle import Bundle, read_bundle, stored_weights, write_bundle
from medseg.io.volume import read_volume

TINY = Path(__file__).parents[2] / "golden" / "bundle_version_1"
CPU = torch.device("cpu")


class ConstantRuntime:
    """Gives its value everywhere."""

    num_outputs = 2

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, windows_BCIJK: np.ndarray) -> np.ndarray:
        return np.full((len(windows_BCIJK), 2, *windows_BCIJK.shape[2:]), self.value, np.float32)

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array


def disturbed(weights: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in sorted(weights.items())
    }


def make(folder: Path, seeds: list[int], changes: dict | None = None) -> Path:
    """A bundle of the tiny network with disturbed weights."""
    tiny = read_bundle(TINY)
    members = [disturbed(dict(tiny.weights[0]), seed) for seed in seeds]
    manifest = {**tiny.manifest, **(changes or {})}
    write_bundle(folder, manifest, members, make_probe(describe(tiny), members))
    return folder


def logits_of(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    runtime = load_runtime(describe(bundle), bundle.weights, CPU)
    return runtime.to_numpy(runtime(image))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5))
def test_an_ensemble_is_the_mean(values: list[float]) -> None:
    runtime = averaged([ConstantRuntime(value) for value in values])
    assert isinstance(runtime, EnsembleRuntime) == (len(values) > 1), "one alone costs nothing"
    logits = runtime(np.zeros((3, 1, 2, 2, 2), np.float32))
    np.testing.assert_allclose(logits, np.full((3, 2, 2, 2, 2), np.mean(values)), rtol=1e-5, atol=1e-4)


def test_a_bundle_of_several_is_the_mean_of_bundles_of_one(tmp_path: Path) -> None:
    image = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 16)).astype(np.float32)
    singles = [logits_of(read_bundle(make(tmp_path / f"{seed}", [seed])), image) for seed in (1, 2, 3)]
    together = read_bundle(make(tmp_path / "all", [1, 2, 3]))
    np.testing.assert_allclose(logits_of(together, image), np.mean(singles, axis=0), atol=1e-5)
    np.testing.assert_array_equal(logits_of(together, together.probe["image"]), together.probe["logits"])
    folds = ensemble_of([read_bundle(tmp_path / f"{seed}") for seed in (1, 2, 3)])
    assert [sorted(weights) for weights in folds.members] == [sorted(weights) for weights in together.weights]
    assert all(
        np.array_equal(one[name], other[name])
        for one, other in zip(folds.members, together.weights, strict=True)
        for name in one
    )


def test_predictions_of_joined_bundles_and_of_their_ensemble_agree(tmp_path: Path, sample: Path) -> None:
    scan = read_volume(sample / "images" / "pt_4.nii.gz")
    middle = scan.array[:, 20:80, 5:55, 30:90]
    small = Volume(middle, Geometry(scan.geometry.affine_ras, middle.shape[1:]), None)
    a, b = make(tmp_path / "a", [1]), make(tmp_path / "b", [2])
    joined = [Predictor.load(f"{a},{b}", "cpu", runtime="torch").predict(small).array for _ in range(2)]
    assert joined[0].max() > 0, "an empty prediction would prove nothing"
    np.testing.assert_array_equal(joined[0], joined[1])
    both = Predictor.load(make(tmp_path / "both", [1, 2]), "cpu", runtime="torch").predict(small).array
    np.testing.assert_array_equal(joined[0], both)
    assert (joined[0] != Predictor.load(a, "cpu", runtime="torch").predict(small).array).any()


def test_the_hash_covers_all_bundles_in_their_order(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / name, [seed]) for seed, name in enumerate("abc"))
    hashes = [open_ensemble(text).hash for text in (f"{a}", f"{a},{b}", f"{b},{a}", f"{a}, {c}", f"{a},{b},{c}")]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == read_bundle(a).hash


def test_a_folder_whose_name_holds_a_comma_is_itself(tmp_path: Path) -> None:
    odd = make(tmp_path / "seed 1,2", [1])
    assert len(open_ensemble(str(odd)).bundles) == 1
    with pytest.raises(ConfigError, match="no bundle is named"):
        open_ensemble(" , ")
    assert len(open_ensemble(",".join([str(TINY)] * 100)).bundles) == 100


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["plan", "spacing_ijk_mm"], [12.0, 12.0, 10.0], r"spacing \(\(12.0, 12.0, 12.0\) and \(12.0, 12.0, 10.0\)\)"),
        (["plan", "patch_ijk"], [16, 16, 32], "patch"),
        (["plan", "normalisation"], [{"kind": "zscore"}], "normalisation"),
        (["modalities"], ["PET"], "channels"),
        (["activation"], "sigmoid", "decision"),
        (["labels", "structures", 0, "name"], "pons", "structures"),
        (["labels", "structures", 0, "value"], 99, "structures"),
        (["task"], "another", "task"),
    ],
)
def test_bundles_that_do_not_fit_say_in_what(tmp_path: Path, path: list, value: object, words: str) -> None:
    document = json.loads((TINY / "bundle.json").read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    a, b = make(tmp_path / "a", [1]), make(tmp_path / "b", [2], document)
    with pytest.raises(ConfigError, match=words):
        open_ensemble(f"{a},{b}")
    assert len(open_ensemble(f"{a},{a}").bundles) == 2


def test_colours_and_tolerances_are_no_reason_to_refuse(tmp_path: Path) -> None:
    document = json.loads((TINY / "bundle.json").read_text())
    document["labels"]["structures"][0] |= {"color": "#000000", "tolerance_mm": 3.0}
    assert open_ensemble(f"{make(tmp_path / 'a', [1])},{make(tmp_path / 'b', [2], document)}")


def test_networks_may_differ_where_their_logits_mean_the_same(tmp_path: Path) -> None:
    tiny = describe(read_bundle(TINY))
    wide = tiny.model_copy(update={"network": tiny.network.model_copy(update={"features": (6, 8)})})
    from medseg.models.build import build_model

    network = build_model(wide.network, 1, wide.num_outputs, wide.plan.strides)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    write_bundle(tmp_path / "wide", wide.model_dump(mode="json"), [weights], make_probe(wide, [weights]))
    predictor = Predictor.load(f"{TINY},{tmp_path / 'wide'}", "cpu")
    image = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 16)).astype(np.float32)
    mean = (logits_of(read_bundle(TINY), image) + logits_of(read_bundle(tmp_path / "wide"), image)) / 2
    np.testing.assert_allclose(predictor.runtime.to_numpy(predictor.runtime(image)), mean, atol=1e-5)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_runtime(tiny, [weights], CPU)


def test_only_rules_that_all_bundles_share_are_kept(tmp_path: Path) -> None:
    largest, small = {"keep": "largest", "min_ml": 0.0}, {"keep": "all", "min_ml": 0.5}
    a = make(tmp_path / "a", [1], {"components": {"larynx": largest, "brainstem": small, "mandible": largest}})
    b = make(tmp_path / "b", [2], {"components": {"larynx": largest, "brainstem": largest}})
    shared = open_ensemble(f"{a},{b}").description.components
    assert {name: rule.keep for name, rule in shared.items()} == {"larynx": "largest"}
    assert len(open_ensemble(str(a)).description.components) == 3


@pytest.mark.parametrize(
    "components",
    [{"pons": {}}, {"larynx": {"keep": "best"}}, {"larynx": {"min_ml": -1}}, {"larynx": {"min_ml": "Infinity"}}, [1]],
)
def test_impossible_rules_make_a_bundle_unusable(components: object) -> None:
    document = {**json.loads((TINY / "bundle.json").read_text()), "components": components}
    with pytest.raises(CheckpointError, match="components"):
        describe(Bundle(Path("bundle"), document, (), {}, ""))


def test_a_probe_of_rounded_weights_fits_the_file(tmp_path: Path) -> None:
    tiny = read_bundle(TINY)
    rounded = [stored_weights(disturbed(dict(tiny.weights[0]), seed), "float16") for seed in (1, 2)]
    write_bundle(tmp_path / "b", tiny.manifest, rounded, make_probe(describe(tiny), rounded), storage="float16")
    bundle = read_bundle(tmp_path / "b")
    assert {array.dtype for weights in bundle.weights for array in weights.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(logits_of(bundle, bundle.probe["image"]), bundle.probe["logits"])
