"""Imported models: the same networks, and the same labels as nnU-Net's way written down once more with SciPy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.core.case import Case
from medseg.core.errors import CheckpointError, ConfigError
from medseg.core.geometry import Geometry
from medseg.core.volume import Volume
from medseg.inference.predictor import Predictor
from medseg.inference.runtimes.torch import load_runtime
from medseg.interop.nnunet import ImportedModel, import_nnunet

MakeFolder = Callable[..., Any]
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_what_the_plans_say_is_turned_to_the_axes_of_the_file(model_folder: MakeFolder) -> None:
    model = model_folder()
    model.plans["transpose_forward"], model.plans["transpose_backward"] = [1, 2, 0], [2, 0, 1]  # y, x, z
    imported = import_nnunet(model.write().add_fold("0", 1, inference_allowed_mirroring_axes=(0, 2)).folder)
    plan = imported.description.plan
    assert plan.spacing_ijk_mm == (1.5, 3.0, 1.25)  # of the plans: 3 along y, 1.5 along x, 1.25 along z
    assert plan.patch_ijk == (16, 6, 12)
    assert plan.strides == ((1, 1, 1), (2, 1, 2), (2, 2, 2))
    assert plan.kernels == ((3, 1, 3), (3, 3, 3), (3, 3, 3))
    assert imported.description.mirror_axes == (1, 2)


def test_structures_are_in_the_order_of_the_outputs(model_folder: MakeFolder) -> None:
    imported = import_nnunet(model_folder().add_fold("0", 1).folder)
    assert imported.description.labels.names == ("spleen", "liver", "kidney")
    assert imported.description.activation == "softmax"


def test_regions_keep_their_order_and_are_written_as_it_says(model_folder: MakeFolder) -> None:
    model = model_folder(REGIONS)
    model.dataset["regions_class_order"] = [1, 2, 3]
    description = import_nnunet(model.write().add_fold("0", 1).folder).description
    assert description.labels.names == ("whole", "core", "enhancing")
    assert description.labels.ignore_value == 4
    assert (description.activation, description.decision, description.num_outputs) == ("sigmoid", "regions", 3)


@pytest.mark.parametrize("residual", [False, True])
def test_networks_give_the_logits_of_nnunets(model_folder: MakeFolder, residual: bool) -> None:
    model = model_folder(residual=residual, channels=("CT", "PET"), schemes=("CTNormalization", "ZScoreNormalization"))
    imported = import_nnunet(model.add_fold("0", 1).add_fold("1", 2).folder)
    assert imported.description.network.kind == ("residual_unet" if residual else "unet")
    image_zyx = torch.randn(2, 2, 6, 16, 12)
    with torch.no_grad():
        expected = [network(image_zyx) for network in model.networks.values()]
    for members, logits in (
        (imported.members[:1], expected[0]),
        (imported.members[1:], expected[1]),
        (imported.members, (expected[0] + expected[1]) / 2),
    ):
        runtime = load_runtime(imported.description, members, torch.device("cpu"))
        found = runtime(image_zyx.permute(0, 1, 4, 3, 2).contiguous().numpy())
        torch.testing.assert_close(found.permute(0, 1, 4, 3, 2), logits, atol=2e-5, rtol=1e-4)


def test_a_compiled_networks_names_are_known(model_folder: MakeFolder) -> None:
    model = model_folder().add_fold("0", 1)
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in model.networks["0"].state_dict().items()}
    plain = import_nnunet(model.folder).members[0]
    wrapped = import_nnunet(model.add_fold("0", 1, network_weights=weights).folder).members[0]
    assert plain.keys() == wrapped.keys()
    assert all(np.array_equal(plain[name], wrapped[name]) for name in plain)


def test_plans_from_before_the_architecture_was_written_down(model_folder: MakeFolder) -> None:
    model = model_folder()
    model.kwargs["features_per_stage"] = [4, 8, 8]
    new = import_nnunet(model.write().add_fold("0", 1).folder).description
    kwargs = model.configuration.pop("architecture")["arch_kwargs"]
    model.configuration.update(
        UNet_class_name="PlainConvUNet",
        UNet_base_num_features=4,
        unet_max_num_features=8,
        n_conv_per_stage_encoder=kwargs["n_conv_per_stage"],
        n_conv_per_stage_decoder=kwargs["n_conv_per_stage_decoder"],
        pool_op_kernel_sizes=kwargs["strides"],
        conv_kernel_sizes=kwargs["kernel_sizes"],
    )
    assert import_nnunet(model.write().folder).description == new


def test_folds(model_folder: MakeFolder, tmp_path: Path) -> None:
    model = model_folder().add_fold("all", 3)
    assert checkpoints(import_nnunet(model.folder)) == ["fold_all/checkpoint_final.pth"], "the only one"
    model.add_fold("10", 1).add_fold("2", 2).add_fold("3", 4, file="checkpoint_best.pth")
    imported = import_nnunet(model.folder)
    assert checkpoints(imported) == [
        "fold_2/checkpoint_final.pth", "fold_3/checkpoint_best.pth", "fold_10/checkpoint_final.pth",
    ]  # fmt: skip
    assert len(imported.members) == 3
    assert ["fold 3" in note for note in imported.notes] == [True]
    assert checkpoints(import_nnunet(model.folder, ["10", "all", "10"])) == [
        "fold_10/checkpoint_final.pth", "fold_all/checkpoint_final.pth",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--fold 5, 6: there is no"):
        import_nnunet(model.folder, ["5", "2", "6"])
    with pytest.raises(CheckpointError, match="from different trainers"):
        import_nnunet(model.add_fold("0", 1, trainer_name="nnUNetTrainerNoMirroring").folder)


def checkpoints(imported: ImportedModel) -> list[str]:
    return imported.origin["checkpoints"]


def test_the_pickle_of_postprocessing_is_told_of_and_never_opened(model_folder: MakeFolder) -> None:
    model = model_folder().add_fold("0", 1)
    assert import_nnunet(model.folder).notes == ()
    (model.folder / "crossval_results_folds_0_1_2_3_4").mkdir()
    (model.folder / "crossval_results_folds_0_1_2_3_4" / "postprocessing.pkl").write_bytes(b"no pickle")
    (note,) = import_nnunet(model.folder).notes
    assert note.startswith("postprocessing.pkl was not read")


def test_the_fingerprint_comes_along(model_folder: MakeFolder) -> None:
    model = model_folder().add_fold("0", 1)
    assert import_nnunet(model.folder).description.plan.fingerprint is None
    (model.folder / "dataset_fingerprint.json").write_text(
        '{"shapes_after_crop": [[10, 20, 30], [12, 20, 30], [14, 20, 40]],'
        ' "spacings": [[3, 1, 1], [3, 1, 2], [3, 1, 1]], "foreground_intensity_properties_per_channel": {}}'
    )
    facts = import_nnunet(model.folder).description.plan.fingerprint
    assert facts.num_cases == 3
    assert facts.median_spacing_mm == (1, 1, 3)
    assert facts.median_extent_mm == (40, 20, 36)
    assert facts.total_volume_ml == pytest.approx((30 * 20 * 30 + 60 * 20 * 36 + 40 * 20 * 42) / 1000)


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "another network": (lambda m: m.configuration["architecture"].update(network_class_name="x.Primus"), "Primus"),
    "batch norm": (lambda m: m.kwargs.update(norm_op="torch.nn.BatchNorm3d"), "BatchNorm3d"),
    "another slope": (lambda m: m.kwargs.update(nonlin_kwargs={"negative_slope": 0.2}), "nonlin"),
    "even kernels": (lambda m: m.kwargs.update(kernel_sizes=2), "odd kernels"),
    "strided first stage": (lambda m: m.kwargs["strides"].__setitem__(0, [2, 2, 2]), "no stride"),
    "torch's resampling": (lambda m: m.configuration.update(resampling_fn_data="resample_torch"), "resample_torch"),
    "order 2": (lambda m: m.configuration["resampling_fn_data_kwargs"].update(order=2), "order 0, 1 or 3"),
    "another preprocessor": (lambda m: m.configuration.update(preprocessor_name="Mine"), "Mine"),
    "unknown normalisation": (lambda m: m.configuration.update(normalization_schemes=["Mine"]), "Mine"),
    "reader of pictures": (lambda m: m.plans.update(image_reader_writer="NaturalImage2DIO"), "NaturalImage2DIO"),
    "no order of axes": (lambda m: m.plans.update(transpose_forward=[0, 0, 1]), "transpose_forward"),
    "gap in the labels": (lambda m: m.dataset["labels"].update(kidney=5), "without gaps"),
    "no labels": (lambda m: m.dataset.pop("labels"), "dataset.json"),
    "patch beside the strides": (lambda m: m.configuration.update(patch_size=[7, 16, 12]), "no multiple"),
    "no patch": (lambda m: m.configuration.pop("patch_size"), "patch_size"),
    "not JSON": (lambda m: (m.folder / "plans.json").write_text("{"), "plans.json"),
    "no plans": (lambda m: (m.folder / "plans.json").unlink(), "no model folder of nnU-Net v2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_refused_with_its_name(model_folder: MakeFolder, case: str) -> None:
    model = model_folder().add_fold("0", 1)
    change, words = REFUSED[case]
    change(model)
    if case not in ("not JSON", "no plans"):
        model.write()
    with pytest.raises(CheckpointError, match=words) as raised:
        import_nnunet(model.folder)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    ("configuration", "words"),
    [("2d", "two-dimensional"), ("3d_cascade_fullres", "cascade"), ("3d_none", "no configuration '3d_none'")],
)
def test_other_configurations_are_refused(model_folder: MakeFolder, configuration: str, words: str) -> None:
    model = model_folder().add_fold("0", 1, init_args={"configuration": configuration})
    with pytest.raises(CheckpointError, match=words):
        import_nnunet(model.folder)


def test_a_single_low_resolution_stage_is_imported(model_folder: MakeFolder) -> None:
    model = model_folder().add_fold("0", 1, init_args={"configuration": "3d_lowres"})
    assert import_nnunet(model.folder).description.plan.spacing_ijk_mm == (2, 2, 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.update({"encoder.stages.0.0.convs.0.norm.running_mean": torch.zeros(4)}),
        lambda weights: weights.update({"decoder.stages.0.convs.0.conv.weight": torch.zeros(4, 4, 3, 3)}),
        lambda weights: weights.update({"decoder.stages.0.convs.0.conv.weight": 7}),
        lambda weights: weights.update({"decoder.stages.0.convs.0.conv.weight": torch.zeros(1).expand([1000] * 5)}),
        lambda weights: weights.update({"decoder.stages.0.convs.0.norm.weight": torch.zeros(4).to_sparse()}),
        lambda weights: weights.update({"decoder.stages.0.convs.0.norm.weight": torch.zeros(4, dtype=torch.int64)}),
    ],
)
def test_weights_of_another_network_are_refused(model_folder: MakeFolder, change: Callable[[Any], object]) -> None:
    model = model_folder().add_fold("0", 1)
    weights = dict(model.networks["0"].state_dict())
    change(weights)
    with pytest.raises(CheckpointError):
        import_nnunet(model.add_fold("0", 1, network_weights=weights).folder)


SCANS: dict[str, dict[str, Any]] = {
    "isotropic": {"shape": (21, 37, 29), "spacing": (2.6, 1.1, 1.4)},
    "thick slices": {"shape": (9, 40, 31), "spacing": (5.0, 1.1, 1.4)},
    "cropped": {"shape": (18, 33, 36), "spacing": (3.0, 1.5, 1.0), "margin": 3},
    "the network's spacing": {"shape": (13, 24, 20), "spacing": (3.0, 1.5, 1.25)},
    "smaller than the window": {"shape": (4, 11, 12), "spacing": (3.0, 1.6, 1.3)},
}


@pytest.mark.parametrize("scan", SCANS)
def test_labels_are_those_of_nnunets_way(model_folder: MakeFolder, scan: str) -> None:
    model = model_folder().add_fold("0", 1).add_fold("1", 2)
    check(model, image_zyx(**SCANS[scan]), SCANS[scan]["spacing"])


@pytest.mark.parametrize("transpose", [(0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_transposed_plans_too(model_folder: MakeFolder, transpose: tuple[int, int, int]) -> None:
    model = model_folder()
    model.plans["transpose_forward"] = list(transpose)
    check(model.write().add_fold("0", 1), image_zyx((17, 19, 23), (2.0, 1.7, 1.3), margin=2), (2.0, 1.7, 1.3))


@pytest.mark.parametrize(
    ("scheme", "masked"),
    [("ZScoreNormalization", True), ("ZScoreNormalization", False), ("RescaleTo01Normalization", False),
     ("NoNormalization", False), ("RGBTo01Normalization", False)],
)  # fmt: skip
def test_every_normalisation(model_folder: MakeFolder, scheme: str, masked: bool) -> None:
    model = model_folder(channels=("CT", "MRI"), schemes=("CTNormalization", scheme), use_mask_for_norm=[False, masked])
    image = image_zyx((11, 19, 17), (2.6, 1.1, 1.4), channels=2, margin=2)
    image[1] = np.abs(image[1]) % 255
    image[:, 5:8, 8:10, 8:10] = 0  # a hole inside
    check(model.add_fold("0", 1), image, (2.6, 1.1, 1.4))


def test_regions_too(model_folder: MakeFolder) -> None:
    model = model_folder(REGIONS)
    model.dataset["regions_class_order"] = [1, 2, 3]
    check(model.write().add_fold("0", 1), image_zyx((12, 20, 20), (2.6, 1.1, 1.4)), (2.6, 1.1, 1.4))


def test_a_reader_that_reorients_gives_the_patients_axes(model_folder: MakeFolder) -> None:
    model = model_folder()
    model.plans["image_reader_writer"] = "NibabelIOWithReorient"
    model.write().add_fold("0", 1)
    image, spacing = image_zyx((12, 20, 18), (2.6, 1.1, 1.4), margin=2), (2.6, 1.1, 1.4)
    expected = check(model, image, spacing)
    turned = Geometry(np.diag([-1.4, -1.1, 2.6, 1.0]), (18, 20, 12))
    found = predicted(model, Volume(image.transpose(0, 3, 2, 1)[:, ::-1, ::-1], turned))
    np.testing.assert_array_equal(found[::-1, ::-1], expected)


def image_zyx(shape, spacing, margin: int = 0, channels: int = 1) -> np.ndarray:
    """Smooth noise of a CT's range, and zeros around it."""
    rng = np.random.default_rng(sum(shape))
    noise = ndimage.gaussian_filter(rng.standard_normal((channels, *shape)), (0, 1, 1, 1))
    image = np.round(noise / noise.std() * 500)
    image[image == 0] = 1
    if margin:
        inside = np.zeros(shape, bool)
        inside[1:-1, margin:-margin, margin:-1] = True
        image[:, ~inside] = 0
    return image.astype(np.int16)


def check(model: Any, image: np.ndarray, spacing_zyx: tuple[float, float, float]) -> np.ndarray:
    """Predict in both ways, and compare; the first array axis of a file is x."""
    grid = Geometry(np.diag([*(-spacing_zyx[2], -spacing_zyx[1], spacing_zyx[0]), 1.0]), image.shape[:0:-1])
    if "Reorient" in model.plans["image_reader_writer"]:
        grid = Geometry(np.diag([*spacing_zyx[::-1], 1.0]), image.shape[:0:-1])
    found = predicted(model, Volume(image.transpose(0, 3, 2, 1), grid))
    logits, expected = nnunets_way(model, image, spacing_zyx)
    differs = found != expected.transpose(2, 1, 0)
    best = np.sort(logits, axis=0)
    margin = np.abs(logits).min(axis=0) if "regions_class_order" in model.dataset else best[-1] - best[-2]
    assert margin.transpose(2, 1, 0)[differs].max(initial=0) < 1e-4, "only what rounding decides"
    assert differs.mean() < 1e-3
    assert len(np.unique(found)) > 2
    return found


def predicted(model: Any, volume: Volume) -> np.ndarray:
    imported = import_nnunet(model.folder)
    runtime = load_runtime(imported.description, imported.members, torch.device("cpu"))
    case = Case("x", volume, None, imported.description.labels.annotated_channels(None))
    return Predictor(imported.description, runtime).predict_case(case).label_map.array


def nnunets_way(model: Any, image: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (certain of background around the crop) and labels on the file's grid, axes z, y, x; sums in single precision."""
    turn = model.plans["transpose_forward"]
    data = image.astype(np.float32).transpose(0, *(1 + axis for axis in turn))
    spacing = tuple(spacing[axis] for axis in turn)
    nonzero = ndimage.binary_fill_holes((data != 0).any(axis=0))
    box = ndimage.find_objects(nonzero.astype(int))[0]
    whole, data, mask = data.shape[1:], data[:, *box].copy(), nonzero[box]
    conf = model.configuration
    for channel, scheme in enumerate(conf["normalization_schemes"]):
        data[channel] = normalised(model, data[channel], mask, scheme, conf["use_mask_for_norm"][channel])
    shape = [round(old / new * size) for old, new, size in zip(spacing, conf["spacing"], data.shape[1:], strict=True)]
    data = np.stack([resized(channel, shape, spacing, conf["spacing"], 3) for channel in data])
    mean = sum(windowed(network, data, conf["patch_size"]) for network in model.networks.values()) / len(model.networks)
    back = np.stack([resized(channel, mask.shape, conf["spacing"], spacing, 1) for channel in mean])
    if "regions_class_order" in model.dataset:
        labels = np.zeros(mask.shape, int)
        for region, value in zip(back, model.dataset["regions_class_order"], strict=True):
            labels[region > 0] = value
    else:
        labels = back.argmax(axis=0)
    everywhere = np.zeros(whole, int)
    everywhere[box] = labels
    logits = np.full((len(back), *whole), -1e6)
    if "regions_class_order" not in model.dataset:
        logits[0] = 1e6
    logits[:, *box] = back
    undo = np.argsort(turn)
    return logits.transpose(0, *(1 + undo)), everywhere.transpose(undo)


def normalised(model: Any, values: np.ndarray, mask: np.ndarray, scheme: str, masked: bool) -> np.ndarray:
    facts = model.plans["foreground_intensity_properties_per_channel"]["0"]
    match scheme:
        case "CTNormalization":
            return (values.clip(facts["percentile_00_5"], facts["percentile_99_5"]) - facts["mean"]) / facts["std"]
        case "ZScoreNormalization" if masked:
            return np.where(mask, (values - values[mask].mean()) / values[mask].std(), values)
        case "ZScoreNormalization":
            return (values - values.mean()) / values.std()
        case "RescaleTo01Normalization":
            return (values - values.min()) / np.ptp(values)
        case "RGBTo01Normalization":
            return values / 255
    return values


def resized(values: np.ndarray, shape, spacing, new_spacing, order: int) -> np.ndarray:
    """skimage's resize with mode "edge", plane by plane where one of the grids is anisotropic."""
    if values.shape == tuple(shape):
        return values
    thick = next((s for s in (spacing, new_spacing) if max(s) / min(s) > 3), None)
    axis = None if thick is None or list(thick).count(max(thick)) > 1 else int(np.argmax(thick))
    if axis is None:
        return zoomed(values, shape, order)
    within = [size for other, size in enumerate(shape) if other != axis]
    planes = np.stack([zoomed(plane, within, order) for plane in np.moveaxis(values, axis, 0)], axis)
    places = [old / new * (np.arange(new) + 0.5) - 0.5 for old, new in zip(planes.shape, shape, strict=True)]
    return ndimage.map_coordinates(planes, np.meshgrid(*places, indexing="ij"), order=0, mode="nearest")


def zoomed(values: np.ndarray, shape, order: int) -> np.ndarray:
    zoom = [new / old for new, old in zip(shape, values.shape, strict=True)]
    found = ndimage.zoom(values.astype(float), zoom, order=order, mode="nearest", grid_mode=True)
    return found.clip(values.min(), values.max())


def windowed(network: torch.nn.Module, data: np.ndarray, patch: list[int]) -> np.ndarray:
    """Logits of overlapping windows, weighed by nnU-Net's Gaussian; what is smaller is surrounded with zeros."""
    missing = [max(0, size - have) for size, have in zip(patch, data.shape[1:], strict=True)]
    padded = np.pad(data, [(0, 0), *((count // 2, count - count // 2) for count in missing)]).astype(np.float32)
    starts = []
    for size, window in zip(padded.shape[1:], patch, strict=True):
        count = int(np.ceil((size - window) / (window * 0.5))) + 1
        step = (size - window) / max(1, count - 1)
        starts.append([int(np.round(step * number)) for number in range(count)])
    peak = np.zeros(patch)
    peak[tuple(size // 2 for size in patch)] = 1
    weights = ndimage.gaussian_filter(peak, [size / 8 for size in patch], mode="constant")
    weights = (weights / weights.max() * 10).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    total, counts = 0, np.zeros(padded.shape[1:], np.float32)
    for start in product(*starts):
        part = (slice(None), *(slice(first, first + size) for first, size in zip(start, patch, strict=True)))
        with torch.no_grad():
            logits = network(torch.from_numpy(padded[part][None]))[0].numpy()
        total = np.zeros((len(logits), *counts.shape), np.float32) if isinstance(total, int) else total
        total[part] += logits * weights.astype(np.float32)
        counts[part[1:]] += weights
    kept = tuple(slice(count // 2, count // 2 + size) for count, size in zip(missing, data.shape[1:], strict=True))
    return (total / counts)[:, *kept]
