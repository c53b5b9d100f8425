"""Ensembles, half-size storage, cards, bundled models by name; and bundles of old versions, which are read for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medseg.core.errors import CheckpointError
from medseg.io import resources
from medseg.io.bundle import find_bundle, read_bundle, stored_weights, write_bundle

GOLDEN = Path(__file__).parents[2] / "golden"
PROBE = {"image": np.ones(2, np.float32), "logits": np.zeros(2, np.float32)}


def member(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((3, 4)).astype(np.float32), "steps": np.array(seed, np.int64)}


def make(folder: Path, num_members: int = 3, **options: object) -> Path:
    manifest = {"task": "t", "modalities": ["CT"], "labels": {"structures": [{"name": "liver"}]}}
    write_bundle(folder, manifest, [member(seed) for seed in range(num_members)], PROBE, **options)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models named liver and head-neck, as if they had shipped; and an empty working directory."""
    monkeypatch.setattr(resources, "_FOLDER", tmp_path / "resources")
    for name in ("liver", "head-neck"):
        make(tmp_path / "resources" / "bundles" / name, num_members=1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "resources" / "bundles"


@pytest.mark.parametrize("num_members", [2, 3, 11])
def test_an_ensemble_keeps_its_networks_in_order(tmp_path: Path, num_members: int) -> None:
    folder = make(tmp_path / "b", num_members)
    names = {path.name for path in folder.iterdir()}
    assert names == {"bundle.json", "probe.npz", *(f"model_{index}.safetensors" for index in range(num_members))}
    bundle = read_bundle(folder)
    assert len(bundle.weights) == num_members
    for seed, weights in enumerate(bundle.weights):
        assert weights.keys() == {"w", "steps"}
        for name, array in member(seed).items():
            np.testing.assert_array_equal(weights[name], array)


def test_an_ensemble_lacks_no_network(tmp_path: Path) -> None:
    folder = make(tmp_path / "b")
    manifest = json.loads((folder / "bundle.json").read_text())
    for lost in ("model_0.safetensors", "model_1.safetensors"):
        files = {name: digest for name, digest in manifest["files"].items() if name != lost}
        (folder / "bundle.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(CheckpointError, match="model_0, model_1"):
            read_bundle(folder)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    (folder / "model_2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model_2"):
        read_bundle(folder)
    with pytest.raises(CheckpointError, match="at least one network"):
        write_bundle(tmp_path / "none", {}, [], PROBE)


def test_an_ensemble_in_place_of_one_network_leaves_nothing_of_it(tmp_path: Path) -> None:
    first = read_bundle(make(tmp_path / "b", num_members=1)).hash
    assert read_bundle(make(tmp_path / "b", num_members=2)).hash != first
    assert not (tmp_path / "b" / "model.safetensors").exists()


def test_float16_is_the_nearest_and_takes_half(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "n": np.array(7, np.int64)}
    for storage in ("float32", "float16"):
        write_bundle(tmp_path / storage, {}, [weights], PROBE, storage=storage)  # type: ignore[arg-type]
    full, half = (tmp_path / storage / "model.safetensors" for storage in ("float32", "float16"))
    assert half.stat().st_size < 0.55 * full.stat().st_size
    (found,) = read_bundle(tmp_path / "float16").weights
    assert (found["w"].dtype, found["n"].dtype, found["n"].item()) == (np.float16, np.int64, 7)
    np.testing.assert_allclose(found["w"].astype(np.float32), weights["w"], rtol=2**-11, atol=2**-25)
    np.testing.assert_array_equal(found["w"], stored_weights(weights, "float16")["w"])
    again = stored_weights(found, "float16")
    assert all(np.array_equal(again[name], found[name]) for name in found), "rounding what is rounded changes nothing"
    np.testing.assert_array_equal(load_file(full)["w"], weights["w"])


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, storage: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=r"'conv\.w' are not all finite"):
        write_bundle(tmp_path / "b", {}, [{"conv.w": np.array([1, value], np.float32)}], PROBE, storage=storage)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_float16_are_refused() -> None:
    for value in (65504.0, -65504.0):
        assert stored_weights({"w": np.array([value], np.float32)}, "float16")["w"][0] == value
    for value in (65520.0, -1e6):
        weights = {"conv.w": np.array([value], np.float32)}
        with pytest.raises(CheckpointError, match=r"'conv\.w' is .* float16 ends at 65504: store them as float32"):
            stored_weights(weights, "float16")
        assert stored_weights(weights, "float32")["conv.w"][0] == np.float32(value)


def test_a_card_is_part_of_its_bundle(tmp_path: Path) -> None:
    bundle = read_bundle(make(tmp_path / "b", card="# Träger\n"))
    assert bundle.card == "# Träger\n"
    assert read_bundle(make(tmp_path / "c")).card is None
    (tmp_path / "b" / "card.md").write_text("# Another")
    with pytest.raises(CheckpointError, match=r"card\.md"):
        read_bundle(tmp_path / "b")


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("bundle_version_*")), ids=lambda folder: folder.name)
def test_old_bundles_are_read_for_ever(folder: Path) -> None:
    """And their network, built by today's code, gives the logits that it gave then."""
    import torch

    from medseg.inference.description import describe
    from medseg.inference.runtimes.torch import load_runtime

    bundle = read_bundle(folder)
    runtime = load_runtime(describe(bundle), bundle.weights, torch.device("cpu"))
    np.testing.assert_allclose(runtime.to_numpy(runtime(bundle.probe["image"])), bundle.probe["logits"], atol=1e-4)


def test_a_bundled_model_is_found_by_its_name(bundled: Path) -> None:
    for reference in ("head-neck", Path("head-neck")):
        assert find_bundle(reference) == bundled / "head-neck"
        assert read_bundle(reference).folder == bundled / "head-neck"


def test_a_bundle_or_run_of_that_name_comes_first(bundled: Path) -> None:
    Path("head-neck").mkdir()
    assert find_bundle("head-neck") == bundled / "head-neck", "a folder that is neither is not in the way"
    (Path("head-neck") / "config.yaml").write_text("task: t\n")
    with pytest.raises(CheckpointError, match="nor a finished run"):
        read_bundle("head-neck")
    make(Path("head-neck") / "bundle")
    assert find_bundle("head-neck") == Path("head-neck") / "bundle"
    make(Path("liver"))
    assert find_bundle("liver") == Path("liver")
    shutil.rmtree("liver")
    assert find_bundle("liver") == bundled / "liver"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("head-nek", "did you mean 'head-neck'? bundled models are: head-neck, liver"),
        ("./liver", "bundled models are: head-neck, liver"),
        ("brain", "for it does not exist; bundled models are"),
    ],
)
def test_an_unknown_name_lists_the_bundled_models(bundled: Path, name: str, words: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_bundle(name)
    assert words in raised.value.message
    shutil.rmtree(bundled)
    with pytest.raises(CheckpointError, match="no model is bundled"):
        read_bundle(name)


def test_what_is_said_of_bundled_models(bundled: Path) -> None:
    (model, _) = resources.bundled_models()
    size = sum(path.stat().st_size for path in (bundled / "head-neck").iterdir())
    assert model.summary() == {
        "name": "head-neck", "task": "t", "structures": ["liver"], "modality": ["CT"], "size_bytes": size,
    }  # fmt: skip


def test_the_models_that_ship_are_whole() -> None:
    for model in resources.bundled_models():
        assert read_bundle(model.folder).card, "with a card that says what it must not be used for"
        assert model.summary()["size_bytes"] <= 8 * 2**20


def test_graphs_lie_in_a_folder_of_their_own_and_are_checked(tmp_path: Path) -> None:
    members = [member(seed) for seed in range(2)]
    write_bundle(tmp_path / "b", {}, members, PROBE, graphs=[b"one", b"two"])
    assert read_bundle(tmp_path / "b").graphs == (b"one", b"two")
    assert read_bundle(make(tmp_path / "plain")).graphs == ()
    extra = tmp_path / "b" / "runtimes" / "extra.xml"
    extra.write_text("<xml/>")
    with pytest.raises(CheckpointError, match=r"runtimes/extra\.xml"):
        read_bundle(tmp_path / "b")
    extra.unlink()
    (tmp_path / "b" / "runtimes" / "model_1.onnx").write_bytes(b"TWO")
    with pytest.raises(CheckpointError, match=r"model_1\.onnx .* is not the file that was written"):
        read_bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="zip"):
        write_bundle(tmp_path / "c", {}, members, PROBE, graphs=[b"one"])
