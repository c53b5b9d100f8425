"""Looking in the mirror: what is averaged, who may, and what it means for left and right."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core.errors import ConfigError
from medseg.core.geometry import Geometry
from medseg.core.volume import Volume
from medseg.data.config import NnunetPreparation
from medseg.inference.description import ModelDescription, describe
from medseg.inference.mirroring import MirroredRuntime, Mirroring
from medseg.inference.predictor import Predictor
from medseg.inference.runtimes.torch import TorchRuntime, load_runtime, make_probe
from medseg.io.bundle import read_bundle, write_bundle

TINY = Path(__file__).parents[2] / "golden" / "bundle_version_1"
SWAPPED = (0, 2, 1, 3)


class ArrayRuntime:
    """A network with context, of NumPy arrays as other runtimes give them: a random convolution."""

    num_outputs = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Conv3d(2, 4, 5, padding=2)

    def __call__(self, windows_BCIJK: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.network(torch.from_numpy(windows_BCIJK)).numpy()

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array


RUNTIMES = {
    "numpy": ArrayRuntime(),
    "torch": TorchRuntime(ArrayRuntime().network, 4, torch.device("cpu")),
}


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("swapped", [None, SWAPPED])
def test_it_is_the_mean_over_all_mirror_images(name: str, axes: tuple[int, ...], swapped) -> None:
    plain = RUNTIMES[name]
    mirrored = MirroredRuntime(plain, Mirroring(axes, swapped))
    windows = np.random.default_rng(0).standard_normal((2, 2, 6, 7, 8)).astype(np.float32)
    passes = []
    for flips in itertools.product(*[(False, True) if axis in axes else (False,) for axis in range(3)]):
        turn = [2 + axis for axis in range(3) if flips[axis]]
        logits = np.flip(plain.to_numpy(plain(np.flip(windows, turn).copy())), turn)
        passes.append(logits[:, list(swapped)] if swapped and flips[0] else logits)
    assert len(passes) == 2 ** len(axes)
    found = mirrored.to_numpy(mirrored(windows))
    np.testing.assert_allclose(found, np.mean(passes, axis=0), atol=1e-5)
    if axes == (0,):  # two passes only: sums of two are the same in either order
        of_mirrored = mirrored.to_numpy(mirrored(np.flip(windows, 2).copy()))
        there_and_back = np.flip(of_mirrored, 2)[:, list(swapped or range(4))]
        np.testing.assert_array_equal(there_and_back, found)


def tiny(**changes: object) -> ModelDescription:
    return describe(read_bundle(TINY)).model_copy(update=changes)


def make(folder: Path, seed: int, **changes: object) -> Path:
    """A bundle of the tiny network with disturbed weights."""
    tiny, rng = read_bundle(TINY), np.random.default_rng(seed)
    weights = {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in sorted(tiny.weights[0].items())
    }
    write_bundle(folder, {**tiny.manifest, **changes}, [weights], make_probe(describe(tiny), [weights]))
    return folder


def test_models_are_mirrored_as_they_were_trained() -> None:
    sides = (0, 1, 2, 4, 3, 5, 6, 7)
    assert Mirroring.of(tiny(mirror_axes=(0, 1, 2))) == Mirroring((0, 1, 2), sides)
    assert Mirroring.of(tiny(mirror_axes=None)) == Mirroring((0,), sides), "older bundles: left to right"
    sigmoid = Mirroring.of(tiny(activation="sigmoid", mirror_axes=(0,)))
    assert sigmoid.swapped == (0, 1, 3, 2, 4, 5, 6), "there is no logit of background"
    imported = tiny().plan.model_copy(update={"preparation": NnunetPreparation()})
    assert Mirroring.of(tiny(plan=imported, mirror_axes=(1, 2))) == Mirroring((1, 2), None)


def test_models_that_saw_no_mirrored_images_are_refused() -> None:
    labels = tiny().labels
    unsided = type(labels)(tuple(one for one in labels.structures if not one.side))
    for description in (tiny(mirror_axes=()), tiny(labels=unsided)):
        with pytest.raises(ConfigError, match="without --tta"):
            Mirroring.of(description)


def test_a_mirrored_patient_gets_the_mirrored_label_map_with_the_sides_exchanged(tmp_path: Path) -> None:
    bundle = read_bundle(make(tmp_path / "bundle", 3))
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1500, (1, 40, 30, 28)).astype(np.int16)
    grid = Geometry.from_spacing(image.shape[1:], (6.0, 6.0, 6.0))
    predictor = Predictor.load(bundle.folder, "cpu", skip_air=False, tta=True)
    found, turned = (
        predictor.predict(Volume(array, grid)).array for array in (image, np.ascontiguousarray(image[:, ::-1]))
    )
    labels = predictor.labels
    expected = labels.to_values(np.array(labels.mirrored_channels)[labels.to_channels(found)])[::-1]
    assert {3, 4} <= set(np.unique(found)), "both sides have to be there"
    assert (turned != expected).mean() < 1e-3, "ties of sums in another order"
    plainly = Predictor.load(bundle.folder, "cpu", skip_air=False).predict(Volume(image, grid)).array
    assert (plainly != found).mean() > 0.01, "the mirror has to matter, or this would prove nothing"


def test_each_network_of_an_ensemble_looks_in_its_own_mirror(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, mirror_axes=[0]), make(tmp_path / "b", 2, mirror_axes=[0, 1, 2])
    image = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 16)).astype(np.float32)
    means = []
    for folder in (a, b):
        bundle = read_bundle(folder)
        runtime = load_runtime(describe(bundle), bundle.weights, torch.device("cpu"))
        means.append(MirroredRuntime(runtime, Mirroring.of(describe(bundle)))(image))
    together = Predictor.load(f"{a},{b}", "cpu", runtime="torch", tta=True).runtime(image)
    np.testing.assert_allclose(together.numpy(), (means[0] + means[1]).numpy() / 2, atol=1e-5)
