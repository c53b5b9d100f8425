"""Model folders as nnU-Net v2 writes them, of small networks that are written down here once more from its description."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, instance norm, LeakyReLU; each is registered twice, as nnU-Net does."""

    def __init__(self, before: int, after: int, kernel, stride, activated: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, kernel, stride, [size // 2 for size in kernel], bias=bias)
        self.norm = nn.InstanceNorm3d(after, eps=1e-5, affine=True)
        parts = [self.conv, self.norm]
        if activated:
            self.nonlin = nn.LeakyReLU(inplace=True)
            parts.append(self.nonlin)
        self.all_modules = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Stack(nn.Module):
    """Blocks in a row."""

    def __init__(self, count: int, before: int, after: int, kernel, stride) -> None:
        super().__init__()
        rest = [Block(after, after, kernel, [1, 1, 1]) for _ in range(count - 1)]
        self.convs = nn.Sequential(Block(before, after, kernel, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class BasicBlockD(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, kernel, stride) -> None:
        super().__init__()
        self.conv1 = Block(before, after, kernel, stride)
        self.conv2 = Block(after, after, kernel, [1, 1, 1], activated=False)
        self.nonlin2 = nn.LeakyReLU(inplace=True)
        around: list[nn.Module] = []
        if max(stride) > 1:
            around.append(nn.AvgPool3d(stride, stride))
        if before != after:
            around.append(Block(before, after, [1, 1, 1], [1, 1, 1], activated=False, bias=False))
        self.skip = nn.Sequential(*around) if around else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class ResidualStage(nn.Module):
    """Residual blocks in a row."""

    def __init__(self, count: int, before: int, after: int, kernel, stride) -> None:
        super().__init__()
        rest = [BasicBlockD(after, after, kernel, [1, 1, 1]) for _ in range(count - 1)]
        self.blocks = nn.Sequential(BasicBlockD(before, after, kernel, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    """Either of nnU-Net's encoders."""

    def __init__(self, kwargs: Mapping[str, Any], in_channels: int) -> None:
        super().__init__()
        features, kernels, strides = (kwargs[key] for key in ("features_per_stage", "kernel_sizes", "strides"))
        is_residual = "n_blocks_per_stage" in kwargs
        if is_residual:
            self.stem = Stack(1, in_channels, features[0], kernels[0], [1, 1, 1])
        stages: list[nn.Module] = []
        before = features[0] if is_residual else in_channels
        for stage, after in enumerate(features):
            if is_residual:
                count = kwargs["n_blocks_per_stage"][stage]
                stages.append(ResidualStage(count, before, after, kernels[stage], strides[stage]))
            else:
                count = kwargs["n_conv_per_stage"][stage]
                stages.append(nn.Sequential(Stack(count, before, after, kernels[stage], strides[stage])))
            before = after
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else x
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """nnU-Net's decoder, which registers the encoder once more, and has a head for each stage."""

    def __init__(self, encoder: Encoder, kwargs: Mapping[str, Any], out_channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        features, kernels, strides = (kwargs[key] for key in ("features_per_stage", "kernel_sizes", "strides"))
        stages, ups, heads = [], [], []
        for number in range(1, len(features)):
            below, skip, stride = features[-number], features[-number - 1], strides[-number]
            count = kwargs["n_conv_per_stage_decoder"][number - 1]
            ups.append(nn.ConvTranspose3d(below, skip, stride, stride, bias=kwargs["conv_bias"]))
            stages.append(Stack(count, 2 * skip, skip, kernels[-number - 1], [1, 1, 1]))
            heads.append(nn.Conv3d(skip, out_channels, 1))
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(stages), nn.ModuleList(ups), nn.ModuleList(heads)

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for number, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-number - 2]), 1))
        return self.seg_layers[-1](x)


class Network(nn.Module):
    """PlainConvUNet or ResidualEncoderUNet."""

    def __init__(self, kwargs: Mapping[str, Any], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.encoder = Encoder(kwargs, in_channels)
        self.decoder = Decoder(self.encoder, kwargs, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


RESAMPLING = "resample_data_or_seg_to_shape"
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
KWARGS = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [2, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
INTENSITIES = {"max": 3000.0, "mean": 12.5, "median": 10.0, "min": -1000.0, "percentile_00_5": -800.0,
               "percentile_99_5": 900.0, "std": 240.0}  # fmt: skip


@dataclass
class NnunetModel:
    """A model folder and the networks that lie in it.

    Attributes:
        folder: As nnU-Net's results have it.
        kwargs: Of the architecture.
        networks: Of each fold.
        plans, dataset: The documents.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    networks: dict[str, Network] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        return self.plans["configurations"]["3d_fullres"]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.configuration["architecture"]["arch_kwargs"]

    def write(self) -> NnunetModel:
        """Write the documents again, after a change."""
        (self.folder / "plans.json").write_text(json.dumps(self.plans))
        (self.folder / "dataset.json").write_text(json.dumps(self.dataset))
        return self

    def add_fold(self, name: str, seed: int, file: str = "checkpoint_final.pth", **changes: Any) -> NnunetModel:
        """A fold with a random network."""
        num_channels = len(self.dataset["channel_names"])
        labels = {key: value for key, value in self.dataset["labels"].items() if key != "ignore"}
        has_regions = any(isinstance(value, list) for value in labels.values())
        torch.manual_seed(seed)
        network = Network(self.kwargs, num_channels, len(labels) - has_regions).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # biases too, and norms that differ from the identity
                parameter.add_(0.1 * torch.randn_like(parameter))
        path = self.folder / f"fold_{name}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**checkpoint_of(network, self, name), **changes}, path)
        self.networks[name] = network
        return self


def checkpoint_of(network: nn.Module, model: NnunetModel, fold: str) -> dict[str, Any]:
    """What nnU-Net's save_checkpoint writes, NumPy's scalars and the device among it."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float32(0.25)],
            "dice_per_class_or_region": [[np.float64(0.5), np.float64(np.nan)]],
            "epoch_start_timestamps": [1.7e9],
        },
        "_best_ema": np.float64(0.71),
        "current_epoch": np.int64(1000),
        "init_args": {
            "plans": model.plans,
            "configuration": "3d_fullres",
            "fold": fold,
            "dataset_json": model.dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def resampling_kwargs(order: int) -> dict[str, Any]:
    return {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., NnunetModel]:
    """Make a model folder; folds are added, and the documents may be changed."""

    def make(
        labels: Mapping[str, Any] | None = None,
        channels: Sequence[str] = ("CT",),
        schemes: Sequence[str] = ("CTNormalization",),
        residual: bool = False,
        **configuration: Any,
    ) -> NnunetModel:
        folder = tmp_path / "Dataset123_Test" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        folder.mkdir(parents=True)
        counts = {"n_blocks_per_stage": [1, 3, 2]} if residual else {"n_conv_per_stage": [2, 2, 1]}
        architecture = {
            "network_class_name": RESIDUAL if residual else PLAIN,
            "arch_kwargs": json.loads(json.dumps({**KWARGS, **counts})),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
        full = {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [6, 16, 12],
            "spacing": [3.0, 1.5, 1.25],
            "normalization_schemes": list(schemes),
            "use_mask_for_norm": [False] * len(channels),
            "resampling_fn_data": RESAMPLING,
            "resampling_fn_seg": RESAMPLING,
            "resampling_fn_data_kwargs": resampling_kwargs(3),
            "resampling_fn_seg_kwargs": {**resampling_kwargs(1), "is_seg": True},
            "resampling_fn_probabilities": RESAMPLING,
            "resampling_fn_probabilities_kwargs": resampling_kwargs(1),
            "architecture": architecture,
            "batch_dice": False,
            **configuration,
        }
        plans = {
            "dataset_name": "Dataset123_Test",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "2d": {**full, "patch_size": [16, 12], "spacing": [1.5, 1.25]},
                "3d_fullres": full,
                "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 2.0]},
                "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            },
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(n): INTENSITIES for n in range(len(channels))},
        }
        dataset = {
            "channel_names": {str(number): name for number, name in enumerate(channels)},
            "labels": dict(labels or {"background": 0, "liver": 2, "spleen": 1, "kidney": 3}),
            "numTraining": 10,
            "file_ending": ".nii.gz",
        }
        return NnunetModel(folder, plans, dataset).write()

    return make
