"""nnU-Net's networks as medseg's: the same layers under other names, with their axes in the order i, j, k.

A bias before an instance normalisation is taken away again by it, so it is left out. The heads of deep supervision, which
only training needs, are left out too.

Source: dynamic-network-architectures 0.4, ``architectures/unet.py`` and ``building_blocks/``; nnunetv2 2.8.1,
``utilities/plans_handling/plans_handler.py`` for plans that are older than it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from medseg.core.errors import CheckpointError
from medseg.interop.nnunet_plans import Axes3, Document, Topology, parsed, turned
from medseg.models.config import ResidualUNetConfig, UNetConfig

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"

NEGATIVE_SLOPE, NORM_EPSILON = 0.01, 1e-5
"""Of LeakyReLU and of the instance normalisation: torch's defaults, and the only ones that medseg's networks have."""

SECOND_NAMES = re.compile(r"decoder\.encoder\.|.*\.all_modules\.")
"""Tensors that stand in a state dict a second time."""

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What torch puts before names when a network is distributed or compiled."""

PART = r"(?P<part>conv|norm)\.(?P<kind>weight|bias)"
PATTERNS = {
    re.compile(rf"encoder\.stem\.convs\.0\.{PART}"): "encoder.0.0.{part}",
    re.compile(rf"encoder\.stages\.(?P<stage>\d+)\.0\.convs\.(?P<block>\d+)\.{PART}"): "encoder.{stage}.{block}.{part}",
    re.compile(rf"encoder\.stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\.conv1\.{PART}"):
        "encoder.{stage}.{after_stem}.first.{part}",
    re.compile(rf"encoder\.stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\.conv2\.{PART}"):
        "encoder.{stage}.{after_stem}.second.{part}",
    re.compile(rf"encoder\.stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\.skip\.(?P<step>\d+)\.{PART}"):
        "encoder.{stage}.{after_stem}.around.{step}.{part}",
    re.compile(rf"decoder\.stages\.(?P<stage>\d+)\.convs\.(?P<block>\d+)\.{PART}"): "decoder.{stage}.{block}.{part}",
    re.compile(r"decoder\.transpconvs\.(?P<stage>\d+)\.(?P<kind>weight|bias)"): "upsampling.{stage}",
    re.compile(r"decoder\.seg_layers\.(?P<stage>\d+)\.(?P<kind>weight|bias)"): "head",
}  # fmt: skip
"""nnU-Net's names, and what medseg calls the same layer."""


class NetworkKwargs(Document):
    """``arch_kwargs`` of the plans."""

    n_stages: int
    features_per_stage: int | tuple[int, ...]
    conv_op: str
    kernel_sizes: int | tuple[int | tuple[int, ...], ...]
    strides: int | tuple[int | tuple[int, ...], ...]
    n_conv_per_stage: int | tuple[int, ...] = 2
    n_blocks_per_stage: int | tuple[int, ...] = 1
    n_conv_per_stage_decoder: int | tuple[int, ...]
    conv_bias: bool = False
    norm_op: str | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, Any] | None = None
    nonlin_first: bool = False
    stem_channels: int | None = None
    bottleneck_channels: int | tuple[int, ...] | None = None
    block: str | None = None


class Architecture(Document):
    """``architecture`` of a configuration."""

    network_class_name: str
    arch_kwargs: NetworkKwargs


class OldArchitecture(Document):
    """What plans said of the network before they had ``architecture``."""

    UNet_class_name: str
    UNet_base_num_features: int
    unet_max_num_features: int
    n_conv_per_stage_encoder: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    pool_op_kernel_sizes: tuple[tuple[int, ...], ...]
    conv_kernel_sizes: tuple[tuple[int, ...], ...]


def network_of(configuration: Mapping[str, Any], axes: Axes3) -> tuple[UNetConfig | ResidualUNetConfig, Topology]:
    """The network of a configuration of the plans.

    Args:
        configuration: With all that it inherits.
        axes: For i, j, k, the axis of nnU-Net's network.

    Raises:
        CheckpointError: It is another network than medseg can build.
    """
    if "architecture" in configuration:
        architecture = parsed(Architecture, configuration["architecture"], "the architecture in plans.json")
    else:
        architecture = _modernised(parsed(OldArchitecture, dict(configuration), "the configuration in plans.json"))
    name, kwargs = architecture.network_class_name.rpartition(".")[2], architecture.arch_kwargs
    _require_known_layers(name, kwargs)
    count = kwargs.n_stages
    strides = tuple(turned(stride, axes) for stride in _by_axis(kwargs.strides, count))
    kernels = tuple(turned(kernel, axes) for kernel in _by_axis(kwargs.kernel_sizes, count))
    if max(strides[0]) > 1 or any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise CheckpointError(
            f"expected odd kernels and no stride at full resolution, found {kernels} and {strides[0]}"
        )
    shared = {
        "features": _by_stage(kwargs.features_per_stage, count),
        "stem_stride": 1,
        # nnU-Net counts the decoder's stages from the coarsest.
        "decoder_convolutions": _by_stage(kwargs.n_conv_per_stage_decoder, count - 1)[::-1],
        "upsampling_bias": kwargs.conv_bias,
    }
    try:
        if name == PLAIN:
            plain = UNetConfig.model_validate({**shared, "num_convolutions": _by_stage(kwargs.n_conv_per_stage, count)})
            return plain, Topology(strides, kernels)
        blocks = _by_stage(kwargs.n_blocks_per_stage, count)
        return ResidualUNetConfig.model_validate({**shared, "num_blocks": blocks}), Topology(strides, kernels)
    except ValidationError as error:
        mistake = error.errors()[0]
        raise CheckpointError(
            f"the network is larger than medseg builds: {mistake['loc'][0]}: {mistake['msg']}"
        ) from None


def weights_of(state: Mapping[str, Any], axes: Axes3) -> dict[str, np.ndarray]:
    """The weights under medseg's names, float32, kernels along i, j, k.

    Args:
        state: ``network_weights`` of a checkpoint.
        axes: For i, j, k, the axis of nnU-Net's network.

    Raises:
        CheckpointError: A tensor is none of these networks'.
    """
    state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    heads = [int(match[1]) for name in state if (match := re.match(r"decoder\.seg_layers\.(\d+)\.", name))]
    weights = {}
    for name, tensor in state.items():
        renamed = None if SECOND_NAMES.match(name) else _renamed(name, max(heads, default=0))
        if renamed is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (1, 5) or not _is_whole(tensor):
            raise CheckpointError(f"expected a tensor of a 3D network in '{name}', found another")
        array = tensor.detach().float().numpy()
        turn = (0, 1, *(2 + axis for axis in axes)) if array.ndim == 5 else (0,)
        weights[renamed] = np.array(array.transpose(turn), order="C")  # a copy: the tensor lies in the file
    return weights


def _is_whole(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor lie in the file: one number in a view can pretend to be terabytes."""
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _renamed(name: str, last_head: int) -> str | None:
    """medseg's name of a tensor; None where it is not needed."""
    for pattern, renamed in PATTERNS.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        found = match.groupdict()
        if found.get("part") == "conv" and found["kind"] == "bias":
            return None
        if renamed == "head" and int(found["stage"]) != last_head:
            return None
        # In medseg's residual network the stem is the first block of the first stage.
        after_stem = int(found.get("block") or 0) + (found.get("stage") == "0")
        part = "convolution" if found.get("part") == "conv" else "norm"
        numbers = {key: found.get(key) for key in ("stage", "block", "step")}
        return f"{renamed.format(**numbers, after_stem=after_stem, part=part)}.{found['kind']}"
    raise CheckpointError(
        f"the weights hold '{name}', which is part of neither {PLAIN} nor {RESIDUAL}: the trainer has built another network"
    )


def _require_known_layers(name: str, kwargs: NetworkKwargs) -> None:
    norm, activation = kwargs.norm_op_kwargs or {}, kwargs.nonlin_kwargs or {}
    known = {
        f"the network {name}": name in (PLAIN, RESIDUAL),
        f"conv_op {kwargs.conv_op}": kwargs.conv_op.endswith("Conv3d"),
        f"norm_op {kwargs.norm_op} {norm}": str(kwargs.norm_op).endswith("InstanceNorm3d")
        and norm.get("affine") is True
        and norm.get("eps", NORM_EPSILON) == NORM_EPSILON
        and not norm.get("track_running_stats"),
        f"nonlin {kwargs.nonlin} {activation}": str(kwargs.nonlin).endswith("LeakyReLU")
        and activation.get("negative_slope", NEGATIVE_SLOPE) == NEGATIVE_SLOPE,
        "nonlin_first": not kwargs.nonlin_first,
        f"stem_channels {kwargs.stem_channels}": kwargs.stem_channels
        in (None, _by_stage(kwargs.features_per_stage, 1)[0]),
        f"block {kwargs.block}": kwargs.bottleneck_channels is None
        and str(kwargs.block or "BasicBlockD").endswith("BasicBlockD"),
    }
    if strange := [what for what, is_known in known.items() if not is_known]:
        raise CheckpointError(
            f"the plans ask for {', '.join(strange)}: {PLAIN} and {RESIDUAL} in 3D with instance normalisation and LeakyReLU "
            "can be imported"
        )


def _modernised(old: OldArchitecture) -> Architecture:
    count = len(old.n_conv_per_stage_encoder)
    widths = [min(old.UNet_base_num_features * 2**stage, old.unet_max_num_features) for stage in range(count)]
    kwargs = NetworkKwargs(
        n_stages=count,
        features_per_stage=tuple(widths),
        conv_op=f"Conv{len(old.conv_kernel_sizes[0])}d",
        kernel_sizes=old.conv_kernel_sizes,
        strides=old.pool_op_kernel_sizes,
        n_conv_per_stage=old.n_conv_per_stage_encoder,
        n_blocks_per_stage=old.n_conv_per_stage_encoder,
        n_conv_per_stage_decoder=old.n_conv_per_stage_decoder,
        conv_bias=True,
        norm_op="InstanceNorm3d",
        norm_op_kwargs={"affine": True},
        nonlin="LeakyReLU",
    )
    return Architecture(network_class_name=old.UNet_class_name, arch_kwargs=kwargs)


def _by_stage(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number a stage."""
    return (values,) * count if isinstance(values, int) else tuple(values)


def _by_axis(values: int | Sequence[int | Sequence[int]], count: int) -> list[tuple[int, int, int]]:
    """Three numbers a stage.

    Raises:
        CheckpointError: There are others.
    """
    of_stages = [values] * count if isinstance(values, int) else list(values)
    triples = [(entry,) * 3 if isinstance(entry, int) else tuple(entry) for entry in of_stages]
    if len(triples) != count or any(len(triple) != 3 or min(triple) < 1 for triple in triples):
        raise CheckpointError(
            f"expected three positive numbers for each of {count} stages in the plans, found {triples}"
        )
    return [(triple[0], triple[1], triple[2]) for triple in triples]
