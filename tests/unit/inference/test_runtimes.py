"""OpenVINO and ONNX Runtime beside torch: the same logits from every kind of network, and the choice between them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.errors import CheckpointError, ConfigError, PluginError
from medseg.core.progress import Progress
from medseg.inference.description import ModelDescription, describe
from medseg.inference.ensemble import Ensemble, ensemble_of, open_ensemble
from medseg.inference.runtimes import catalogue, choice, graphs
from medseg.inference.runtimes.choice import TOLERANCE, choose_runtime, open_runtime
from medseg.inference.runtimes.graph import make_graph
from medseg.inference.runtimes.onnx import OnnxRuntime
from medseg.inference.runtimes.openvino import OpenVinoRuntime
from medseg.inference.runtimes.torch import TorchRuntime, load_network, make_probe
from medseg.io.bundle import read_bundle, stored_weights, write_bundle
from medseg.models.build import build_model

# Not in the default suite: with torch, OpenVINO, ONNX Runtime and SimpleITK in one process a whole run ended in a segmentation fault.
pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[2] / "golden" / "bundle_version_1"

TWICE, FOUR_TIMES = [(1, 1, 1), (2, 2, 2), (1, 2, 2)], [(1, 1, 1), *[(2, 2, 2)] * 3]

NETWORKS = {
    "unet": ({"kind": "unet", "features": [4, 8, 8], "stem_stride": 2}, [(2, 2, 2), (1, 2, 2), (2, 2, 2)]),
    "residual_unet": ({"kind": "residual_unet", "features": [4, 8, 8]}, TWICE),
    "vnet": ({"kind": "vnet", "width": 4, "num_convolutions": [1, 1, 1, 1]}, FOUR_TIMES),
    "segresnet": ({"kind": "segresnet", "width": 8, "num_blocks": [1, 1, 1, 1]}, FOUR_TIMES),
    "dynunet": ({"kind": "dynunet", "features": [4, 8, 8]}, TWICE),
    "attention_unet": ({"kind": "attention_unet", "features": [4, 8, 8]}, TWICE),
    "mednext": ({"kind": "mednext", "width": 4, "num_blocks": [1, 1, 1, 1]}, FOUR_TIMES),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDSEG_RUNTIME")
    return tmp_path / "cache"


@pytest.fixture
def tiny() -> Ensemble:
    return open_ensemble(TINY)


def described(network: dict, strides: list[tuple[int, ...]]) -> ModelDescription:
    document = describe(read_bundle(TINY)).model_dump(mode="json")
    plan = {**document["plan"], "strides": strides}
    return ModelDescription.model_validate({**document, "network": network, "plan": plan})


def random_weights(description: ModelDescription) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    plan = description.plan
    network = build_model(
        description.network, len(description.modalities), description.num_outputs, plan.strides, plan.kernels
    )
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_gives_torchs_logits_for_windows_of_any_size(kind: str) -> None:
    description = described(*NETWORKS[kind])
    weights = random_weights(description)
    network = load_network(description, weights)
    graph = make_graph(description, weights)
    total = np.prod(description.plan.strides, axis=0)
    for batch, factors in ((1, (2, 3, 2)), (2, (3, 2, 4))):
        windows = np.random.default_rng(0).standard_normal((batch, 1, *(total * factors)), dtype=np.float32)
        expected = TorchRuntime(network, description.num_outputs, torch.device("cpu"))(windows).numpy()
        for runtime in (OpenVinoRuntime, OnnxRuntime):
            found = runtime(graph, description.num_outputs, 1)(windows)
            assert relative(found, expected) < TOLERANCE


def test_a_network_that_has_no_graph_is_told() -> None:
    description = described({"kind": "swin_unetr", "width": 12}, [(2, 2, 2)] * 5)
    with pytest.raises(CheckpointError, match="swin_unetr has no graph for other runtimes") as raised:
        make_graph(description, {})
    assert raised.value.code == "runtime.graph"


def test_weights_in_half_precision_stay_so_in_the_graph() -> None:
    description = described({"kind": "unet", "features": [8, 16, 16], "stem_stride": 2}, [(2, 2, 2)] * 3)
    weights = random_weights(description)
    halves = stored_weights(weights, "float16")
    whole, small = make_graph(description, weights), make_graph(description, halves)
    assert len(small) < 0.6 * len(whole)
    windows = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 16), dtype=np.float32)
    expected = load_network(description, halves)(torch.from_numpy(windows)).detach().numpy()
    for runtime in (OpenVinoRuntime, OnnxRuntime):
        assert relative(runtime(small, description.num_outputs, 1)(windows), expected) < 1e-5


@pytest.mark.parametrize("runtime", [OpenVinoRuntime, OnnxRuntime])
def test_what_is_no_graph_or_no_window_is_an_error_of_ours(runtime: type, tiny: Ensemble) -> None:
    with pytest.raises(CheckpointError, match="cannot read the network's graph"):
        runtime(b"no graph", 2, 1)
    graph = make_graph(tiny.description, tiny.bundles[0].weights[0])
    with pytest.raises(RuntimeError):
        runtime(graph, 2, 1)(np.zeros((1, 5, 16, 16, 16), np.float32))


def test_auto_tries_each_runtime_once_and_remembers(
    tiny: Ensemble, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    first = choose_runtime(tiny, num_threads=1, listener=told.append)
    (path,) = (own_cache / "runtimes").iterdir()
    known = json.loads(path.read_text())
    assert known["seconds"].keys() == {f"{name} {version}" for name, version in catalogue.installed_runtimes().items()}
    assert first.title == min(known["seconds"], key=known["seconds"].get)
    assert all(deviation <= TOLERANCE for deviation in known["deviation"].values())
    assert "predicting with" in told[-1].message

    opened = []
    real = choice._of_bundles
    monkeypatch.setattr(choice, "_of_bundles", lambda *given: opened.append(given[1].title) or real(*given))
    assert choose_runtime(tiny, num_threads=1) == first
    assert not opened, "what is known is not measured again"

    monkeypatch.setattr(catalogue, "version_of", lambda name: "1.0" if name == "onnx" else "9")
    choose_runtime(tiny, num_threads=1)
    assert sorted(opened) == ["onnx 1.0", "openvino 9", "torch 9"], "other versions are other runtimes"
    opened.clear()
    monkeypatch.undo()
    monkeypatch.setenv("MEDSEG_CACHE", str(own_cache))
    monkeypatch.delenv("MEDSEG_RUNTIME")
    path.write_text("{")
    choose_runtime(tiny, num_threads=1)
    assert json.loads(path.read_text())["seconds"].keys() == known["seconds"].keys(), "a damaged file is made again"


def test_a_runtime_that_is_not_exact_enough_is_never_taken(tmp_path: Path) -> None:
    good = read_bundle(TINY)
    probe = {**good.probe, "logits": good.probe["logits"] * np.float32(1 + 3 * TOLERANCE)}
    write_bundle(tmp_path / "other", good.manifest, good.weights, probe)
    ensemble = open_ensemble(tmp_path / "other")
    for _ in range(2):  # found out, and known
        with pytest.raises(CheckpointError, match="differ from those that the bundle carries") as raised:
            choose_runtime(ensemble, "openvino")
        assert raised.value.code == "runtime.unusable"
    assert choose_runtime(ensemble, "auto").runtime == "torch"
    damaged = {**good.probe, "logits": good.probe["logits"] * np.float32(np.nan)}
    write_bundle(tmp_path / "none", good.manifest, good.weights, damaged)
    with pytest.raises(CheckpointError):
        choose_runtime(open_ensemble(tmp_path / "none"), "onnx")


def test_what_fails_for_a_moment_is_not_remembered(tiny: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    real = choice._of_bundles
    for error in (MemoryError(), ImportError("libtbb.so.12")):

        def failing(ensemble: Ensemble, chosen: choice.Choice, error: BaseException = error) -> list:
            if chosen.runtime == "torch":
                return real(ensemble, chosen)
            raise error

        monkeypatch.setattr(choice, "_of_bundles", failing)
        with pytest.raises(CheckpointError, match=r"onnx .* could not run here"):
            choose_runtime(tiny, "onnx", num_threads=1)
        assert choose_runtime(tiny, num_threads=1).runtime == "torch", "the others go on"
    monkeypatch.setattr(choice, "_of_bundles", real)
    assert choose_runtime(tiny, "onnx", num_threads=1).deviation is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"deviation": [], "seconds": {}, "unusable": null}'])
def test_damaged_findings_are_measured_again(tiny: Ensemble, own_cache: Path, content: str) -> None:
    choose_runtime(tiny, "onnx", num_threads=1)
    (path,) = (own_cache / "runtimes").iterdir()
    path.write_text(content)
    assert choose_runtime(tiny, "onnx", num_threads=1).deviation is not None


def test_an_ensemble_of_graphs_is_that_of_networks(tiny: Ensemble, tmp_path: Path) -> None:
    weights = [{name: array * np.float32(f) for name, array in tiny.bundles[0].weights[0].items()} for f in (0.8, 1.1)]
    write_bundle(tmp_path / "two", tiny.bundles[0].manifest, weights, make_probe(tiny.description, weights))
    ensemble = ensemble_of([read_bundle(TINY), read_bundle(tmp_path / "two")])
    windows = np.random.default_rng(1).standard_normal((2, 1, 16, 16, 16), dtype=np.float32)
    found = {}
    for name in ("torch", "openvino", "onnx"):
        runtime = open_runtime(ensemble, choose_runtime(ensemble, name, "cpu", 1))
        found[name] = runtime.to_numpy(runtime(windows))
    assert relative(found["openvino"], found["torch"]) < TOLERANCE
    assert relative(found["onnx"], found["torch"]) < TOLERANCE


def test_graphs_are_kept_mended_and_bounded(tiny: Ensemble, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle,), (description,) = tiny.bundles, tiny.descriptions
    made = graphs.graphs_of(bundle, description)
    (path,) = (own_cache / "graphs").iterdir()
    monkeypatch.setattr(graphs, "_made", lambda *_: pytest.fail("it is there"))
    assert graphs.graphs_of(bundle, description) == made
    monkeypatch.undo()
    monkeypatch.setenv("MEDSEG_CACHE", str(own_cache))
    monkeypatch.delenv("MEDSEG_RUNTIME")
    path.write_bytes(path.read_bytes()[:-100])
    assert graphs.graphs_of(bundle, description) == made, "a truncated one is made again"
    old = path.with_name("old.onnx")
    shutil.copy(path, old)
    os.utime(old, (1, 1))
    path.unlink()
    monkeypatch.setattr(graphs, "MAX_BYTES", len(made[0]) + 100)
    graphs.graphs_of(bundle, description)
    assert [kept.name for kept in path.parent.iterdir()] == [path.name], "what was unused for longest went"


def test_without_a_place_to_keep_them_graphs_are_made_each_time(
    tiny: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "cache_folder", lambda: None)
    monkeypatch.setattr(choice, "cache_folder", lambda: None)
    assert choose_runtime(tiny, "openvino", num_threads=1).deviation is not None


def test_without_torch_a_bundle_needs_its_graph(tiny: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"torch"}
    real = catalogue.version_of
    for module in (catalogue, graphs):
        monkeypatch.setattr(module, "version_of", lambda name: None if name in absent else real(name))
    with pytest.raises(PluginError, match="carries no graph"):
        choose_runtime(tiny, "openvino")
    with pytest.raises(PluginError, match="no runtime is installed that can run this bundle"):
        choose_runtime(tiny)
    with_graph = replace(tiny.bundles[0], graphs=(make_graph(tiny.description, tiny.bundles[0].weights[0]),))
    ensemble = replace(tiny, bundles=(with_graph,))
    assert choose_runtime(ensemble, num_threads=1).runtime in ("openvino", "onnx")
    monkeypatch.setattr(choice, "GPU_DRIVERS", ("/dev/null",))
    assert choose_runtime(ensemble, num_threads=1).device == "cpu", "torch alone could use the GPU"
    absent |= {"onnx"}
    assert choose_runtime(ensemble, num_threads=1).runtime == "openvino", "the only one is not timed"
    with pytest.raises(PluginError, match="--runtime onnx needs onnxruntime") as raised:
        choose_runtime(ensemble, "onnx")
    assert raised.value.exit_code == 3


def test_what_auto_stands_for_may_be_named(tiny: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_RUNTIME", "onnx")
    assert choose_runtime(tiny, num_threads=1).runtime == "onnx"
    assert choose_runtime(tiny, "torch", num_threads=1).runtime == "torch"
    monkeypatch.setenv("MEDSEG_RUNTIME", "fastest")
    with pytest.raises(ConfigError, match="in MEDSEG_RUNTIME, found 'fastest'"):
        choose_runtime(tiny)


def test_devices(tiny: Ensemble) -> None:
    with pytest.raises(ConfigError, match="computes on the CPU"):
        choose_runtime(tiny, "openvino", "cuda")
    with pytest.raises(ConfigError, match="expected a device"):
        choose_runtime(tiny, "auto", "quantum")
    assert choose_runtime(tiny, "torch", "cpu", 1).device == "cpu"
