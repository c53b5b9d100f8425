"""Imported models beside nnU-Net itself: networks saved by its trainer, scans labelled by its predictor.

Needs ``pip install -r requirements/peers.txt``; without it the tests of ``tests/unit/interop`` compare with nnU-Net's way
written down once more.
"""

from __future__ import annotations

import importlib
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: pip install -r requirements/peers.txt")

UNETS = "dynamic_network_architectures.architectures.unet"
SPACINGS = {"usual": [2.0, 1.5, 1.2], "thick slices": [7.0, 1.5, 1.6]}
MIRRORED = (0, 2)
"""Axes of nnU-Net's network."""
ROUNDING = 2e-5
"""Part of the voxels that may differ where both sum in single precision."""
HALVES = 2e-3
"""And where nnU-Net sums logits in half precision, as it does: of random networks, whose logits are close to each other."""


def plans_of(network: str, spacing: list[float], transpose: list[int]) -> dict[str, Any]:
    counts = {"n_conv_per_stage": [2, 2, 1]} if network == "PlainConvUNet" else {"n_blocks_per_stage": [1, 2, 2]}
    kwargs = {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        **counts, "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    resampling = "resample_data_or_seg_to_shape"
    arguments = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": f"{UNETS}.{network}",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [8, 16, 20],
        "spacing": spacing, "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": resampling, "resampling_fn_data_kwargs": arguments,
        "resampling_fn_seg": resampling, "resampling_fn_seg_kwargs": {**arguments, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": resampling, "resampling_fn_probabilities_kwargs": {**arguments, "order": 1},
        "architecture": architecture, "batch_dice": False,
    }  # fmt: skip
    facts = {"mean": 20.0, "std": 300.0, "percentile_00_5": -900.0, "percentile_99_5": 1000.0}
    return {
        "dataset_name": "Dataset001_Test", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose, "transpose_backward": np.argsort(transpose).tolist(),
        "label_manager": "LabelManager", "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": facts},
    }  # fmt: skip


DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((44, 40, 22)), 1.5)
    image = np.round(noise / noise.std() * 500).astype(np.int16)
    image[:3], image[:, -2:] = 0, 0
    path = tmp_path / "scan_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.4, -1.3, 2.6, 1])), path)
    return path


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("in_halves", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "model",
    [("PlainConvUNet", [0, 1, 2]), ("PlainConvUNet", [1, 2, 0]), ("ResidualEncoderUNet", [2, 0, 1])],
)
def test_both_give_the_same_labels(
    model: tuple[str, list[int]], spacing: str, in_halves: bool, tta: bool, scan: Path, tmp_path: Path, monkeypatch
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    folder = tmp_path / "Dataset001_Test" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    save(folder, plans_of(model[0], SPACINGS[spacing], model[1]))
    module = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    if not in_halves:
        sum_in_single_precision(module, monkeypatch)
    predictor = module.nnUNetPredictor(
        use_mirroring=tta, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1), "checkpoint_final.pth")
    predictor.predict_from_files_sequential([[str(scan)]], [str(tmp_path / "theirs")])
    theirs = np.asarray(nibabel.load(tmp_path / "theirs.nii.gz").dataobj)

    from medseg.inference.predictor import Predictor
    from pipelines.import_model import ImportOptions, run

    assert run(folder, ImportOptions(out=tmp_path / "bundle")).exit_code == 0
    ours = Predictor.load(tmp_path / "bundle", "cpu", tta=tta).predict(scan).array
    assert len(np.unique(theirs)) > 2
    assert (ours != theirs).mean() <= (HALVES if in_halves else ROUNDING)


def save(folder: Path, plans: dict[str, Any]) -> None:
    """Two folds, saved as nnU-Net saves them, with a log of NumPy's numbers."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    for fold in (0, 1):
        torch.manual_seed(fold)
        given = {**json.loads(json.dumps(plans)), "continue_training": False}
        trainer = nnUNetTrainer(given, "3d_fullres", fold, DATASET, device=torch.device("cpu"))
        # What initialize() does, without the folder of preprocessed data that it looks into.
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 4, enable_deep_supervision=True
        )
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        trainer.inference_allowed_mirroring_axes = MIRRORED
        trainer._best_ema = np.float64(0.5)
        trainer.logger.log("mean_fg_dice", np.float64(0.3), 0)
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET))


def sum_in_single_precision(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own sliding window with another type of its sums, so that what is left is not its rounding."""
    name = "_internal_predict_sliding_window_return_logits"
    source = textwrap.dedent(inspect.getsource(getattr(module.nnUNetPredictor, name)))
    assert source.count("torch.half") == 2
    names = dict(vars(module))
    exec(source.replace("torch.half", "torch.float"), names)  # noqa: S102  # a line of nnU-Net's, changed
    monkeypatch.setattr(module.nnUNetPredictor, name, names[name])
