"""A training step: our engine beside nnU-Net's trainer, on the CPU.

Both train nnU-Net's own PlainConvUNet from the same first weights, on the same patches of real scans, with Dice and
cross-entropy under deep supervision, SGD with Nesterov momentum .99, and gradients clipped at 12. Ours does more in a
step: it averages the weights, notices numbers that are not finite, and seeds the step. nnU-Net gets its coarser labels
ready-made, as from its loader; ours makes them inside the step.

A pair is a few steps of each, in turn; the second of two pairs begins with the other side. Prints the ratio ours /
nnU-Net of each pair in CPU time and in wall clock, and exits with 1 where the median is above 1.03 or a pair above 1.10.

Peers: ``pip install -r requirements/peers.txt``. Run, on quiet cores:
``python benchmarks/step_against_nnunet.py [--data DATASET] [--patch 56,64,64] [--features 16] [--pairs 10] [--threads 2]``
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.core.plugins import find_task, resolve_reference
from medseg.core.progress import silent
from medseg.core.task import StepLoss
from medseg.data.loader import PatchBatch
from medseg.engine.config import SGDConfig, TrainerConfig
from medseg.engine.schedule import RunLength
from medseg.engine.state import start
from medseg.engine.trainer import train_step
from medseg.io.resources import sample_folder
from medseg.losses.build import build_loss
from medseg.losses.config import DiceCrossEntropyConfig
from medseg.losses.deep import at_shape, deep_loss

CPU = torch.device("cpu")

MOST_MEDIAN, MOST_PAIR = 1.03, 1.10
"""Bounds of the ratio."""

SAME_LOSS = 1e-3
"""Largest difference of the first losses."""

STEPS_A_PAIR = 4
"""Of each side: enough that one hiccup of the machine does not decide a pair."""

WARM_UP = 2
"""Steps of each side before it counts: they allocate memory and choose kernels."""

NUM_BATCHES = 4
"""Different batches, used in turn."""


class Task:
    """What our engine needs to know to train their network."""

    num_validation_cases = 0

    def __init__(self, network: nn.Module) -> None:
        self.network, self.criterion = network, build_loss(DiceCrossEntropyConfig())

    def train_batches(self, start_step: int) -> Iterator[Any]:
        """The benchmark hands the batches over itself."""
        raise NotImplementedError

    def validate(self, model: nn.Module, device: torch.device, case_numbers: Any) -> Any:
        """No case validates."""
        raise NotImplementedError

    def build_model(self) -> nn.Module:
        """Theirs."""
        return self.network

    def loss(self, model: nn.Module, batch: PatchBatch) -> StepLoss:
        """Of all resolutions."""
        return deep_loss(self.criterion, tuple(model(batch.image)), batch.classes, batch.annotated)


def real_batches(
    data: Path, patch: tuple[int, ...], num_batches: int
) -> tuple[list[PatchBatch], int, tuple[float, ...]]:
    """Augmented patches of real scans, all structures taken as annotated; the number of channels, and the spacing."""
    spec = find_task("ct_segmentation")
    values = {"dataset": data, "plan": {"patch_ijk": patch}, "trainer": {"batch_size": 2}}
    config = resolve_reference(spec.config_type).model_validate(values)
    files = resolve_reference(spec.files)
    dataset = files.read_dataset(config.dataset)
    dataset = replace(dataset, cases=dataset.cases[:8])
    plan = files.make_plan(config, dataset, silent)
    task = resolve_reference(spec.create)(config, dataset, plan, silent)
    batches = list(islice(task.train_batches(0), num_batches))
    batches = [replace(batch, annotated=torch.ones_like(batch.annotated)) for batch in batches]
    return batches, batches[0].annotated.shape[1], plan.spacing_ijk_mm


def peer_trainer(patch: tuple[int, ...], spacing: tuple[float, ...], num_classes: int, features: int) -> Any:
    """nnU-Net's trainer for a patch: kernels, strides and architecture as its planner chooses them."""
    folder = tempfile.mkdtemp(prefix="nnunet-")
    os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), folder))
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    _, strides, kernels, fitting, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
    if tuple(int(size) for size in fitting) != patch:
        raise SystemExit(f"nnU-Net would take a patch of {[int(size) for size in fitting]}: give that one")
    num_stages = len(strides)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": num_stages,
            "features_per_stage": [min(features * 2**stage, 10 * features) for stage in range(num_stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": [2] * num_stages,
            "n_conv_per_stage_decoder": [2] * (num_stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ("conv_op", "norm_op", "dropout_op", "nonlin"),
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
        "batch_dice": True,  # sums over the batch, as ours
    }
    plans = {
        "dataset_name": "Dataset001_sample",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
    }
    labels = {"background": 0, **{f"structure {number}": number for number in range(1, num_classes)}}
    dataset_json = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": 8, "file_ending": ".nii.gz"}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset_json, device=CPU)
    # What initialize() does, without the folder of preprocessed data that it looks into.
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, num_classes, enable_deep_supervision=True
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    trainer.network.train()
    return trainer


def theirs(trainer: Any, batches: list[PatchBatch]) -> Iterator[float]:
    """Their training, a loss a step."""
    with torch.no_grad():
        shapes = [output.shape[2:] for output in trainer.network(batches[0].image)]
    loaded = [
        {
            "data": batch.image,
            "target": [at_shape(batch.classes, shape).unsqueeze(1).to(torch.int16).contiguous() for shape in shapes],
        }
        for batch in batches
    ]
    while True:
        for batch in loaded:
            yield float(trainer.train_step(batch)["loss"])


def ours(network: nn.Module, batches: list[PatchBatch]) -> Iterator[float]:
    """Our training, a loss a step."""
    config = TrainerConfig(optimizer=SGDConfig(), schedule={"warmup_steps": 0})
    length = RunLength(10**9, 10**9, 10**9)  # at this length the learning rate stays where nnU-Net's is in an epoch
    task = Task(network)
    state = start(task, config, CPU)
    while True:
        for batch in batches:
            report = train_step(task, state, batch, config, length, CPU)
            assert report.values is not None
            yield report.values["loss"]


def ratios_of_pairs(sides: Mapping[str, Iterator[float]], num_pairs: int) -> dict[str, list[float]]:
    """Ours / theirs of each pair, by CPU time and by wall clock."""
    clocks = {"CPU time": time.process_time, "wall clock": time.perf_counter}
    ratios: dict[str, list[float]] = {name: [] for name in clocks}
    seconds_a_step: dict[str, list[float]] = {side: [] for side in sides}
    for pair in range(num_pairs):
        spent = {(side, name): 0.0 for side in sides for name in clocks}
        for _ in range(STEPS_A_PAIR):
            for side in sides if pair % 2 else reversed(sides):
                began = {name: clock() for name, clock in clocks.items()}
                next(sides[side])
                for name, clock in clocks.items():
                    spent[side, name] += clock() - began[name]
        for name in clocks:
            ratios[name].append(spent["ours", name] / spent["nnU-Net", name])
        for side in sides:
            seconds_a_step[side].append(spent[side, "CPU time"] / STEPS_A_PAIR)
    for side, seconds in seconds_a_step.items():
        print(f"{side:8s} {statistics.median(seconds):.3f} s CPU a step")
    return ratios


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Our training step beside nnU-Net's.")
    parser.add_argument("--data", type=Path, default=sample_folder())
    parser.add_argument("--patch", type=lambda text: tuple(map(int, text.split(","))), default=(56, 64, 64))
    parser.add_argument("--features", type=int, default=16, help="of the finest stage; at most ten times as many")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches, num_classes, spacing = real_batches(options.data, options.patch, NUM_BATCHES)
    trainer = peer_trainer(options.patch, spacing, num_classes, options.features)
    sides = {"ours": ours(copy.deepcopy(trainer.network), batches), "nnU-Net": theirs(trainer, batches)}
    first = {side: [next(losses) for _ in range(WARM_UP)] for side, losses in sides.items()}
    gap = max(abs(mine - 1 - other) for mine, other in zip(*first.values(), strict=True))
    print(f"first losses: ours {first['ours']}, nnU-Net's, whose Dice lacks the 1, {first['nnU-Net']}")
    if gap > SAME_LOSS:
        raise SystemExit(f"the two sides do not compute the same: their losses are {gap:.2g} apart")
    is_fast = True
    for name, ratios in ratios_of_pairs(sides, options.pairs).items():
        median, largest = statistics.median(ratios), max(ratios)
        print(f"{name:10s} ours / nnU-Net: median {median:.3f}, pairs {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
        is_fast &= median <= MOST_MEDIAN and largest <= MOST_PAIR
    print(f"bounds: median {MOST_MEDIAN}, each pair {MOST_PAIR}: {'kept' if is_fast else 'NOT kept'}")
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
