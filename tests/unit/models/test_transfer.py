"""A network that goes on with other outputs: kept ones give the logits that they gave, whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from medseg.core.errors import CheckpointError
from medseg.models.build import build_model
from medseg.models.config import NetworkConfig
from medseg.models.transfer import output_axes, transfer_weights

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]

NETWORKS = {
    "unet": ({"features": [4, 6, 8], "stem_stride": 1}, STRIDES),
    "unet, coarse": ({"features": [4, 6, 8], "stem_stride": 2}, [[2, 2, 2], *STRIDES[1:]]),
    "unet, deep": ({"features": [4, 6, 8], "stem_stride": 1, "deep_supervision": True}, STRIDES),
    "residual_unet": ({"features": [4, 6, 8], "num_blocks": [1, 1, 1]}, STRIDES),
    "vnet": ({"width": 2, "num_convolutions": [1, 1, 1], "kernel_size": 3}, STRIDES),
    "dynunet": ({"features": [4, 6, 8], "deep_supervision": True}, STRIDES),
    "segresnet": ({"width": 8, "num_blocks": [1, 1, 1]}, STRIDES),
    "mednext": ({"width": 4, "num_blocks": [1, 1, 1], "deep_supervision": True}, STRIDES),
    "attention_unet": ({"features": [4, 6, 8]}, STRIDES),
}


def outputs_of(network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(image)
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_kept_outputs_give_the_same_logits_in_any_order(name: str) -> None:
    values, strides = NETWORKS[name]
    config = TypeAdapter(NetworkConfig).validate_python({"kind": name.split(",", maxsplit=1)[0], **values})
    axes = output_axes(config, 2, strides)
    torch.manual_seed(1)
    trained = build_model(config, 2, 4, strides)
    weights = {key: tensor.numpy() for key, tensor in trained.state_dict().items()}
    torch.manual_seed(2)
    network = build_model(config, 2, 5, strides)
    fresh = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    kept = [(0, 0), (3, 1), (1, 3)]
    transfer_weights(network, weights, axes, kept)
    image = torch.randn(1, 2, 16, 16, 16)
    old, new = outputs_of(trained, image), outputs_of(network, image)
    assert new.shape[1] == 5
    for to, source in kept:
        torch.testing.assert_close(new[:, to], old[:, source])
    assert not torch.allclose(new[:, 2], new[:, 4])
    loaded = network.state_dict()
    assert axes
    for key, axis in axes.items():
        for output in (2, 4):
            assert (loaded[key].select(axis, output) == fresh[key].select(axis, output)).all()
    assert all((loaded[key] == trained.state_dict()[key]).all() for key in loaded if key not in axes)


def test_half_precision_and_the_same_outputs_come_over_whole() -> None:
    config = TypeAdapter(NetworkConfig).validate_python({"kind": "unet", "features": [4, 6, 8], "stem_stride": 1})
    trained, network = (build_model(config, 1, 3, STRIDES) for _ in range(2))
    weights = {key: tensor.numpy().astype(np.float16) for key, tensor in trained.state_dict().items()}
    transfer_weights(network, weights, output_axes(config, 1, STRIDES), [(0, 0), (1, 1), (2, 2)])
    for key, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert (tensor == torch.from_numpy(weights[key]).float()).all()


def test_weights_of_another_network_are_refused() -> None:
    config = TypeAdapter(NetworkConfig).validate_python({"kind": "unet", "features": [4, 6, 8], "stem_stride": 1})
    weights = {key: tensor.numpy() for key, tensor in build_model(config, 1, 3, STRIDES).state_dict().items()}
    axes = output_axes(config, 1, STRIDES)
    for damaged in (
        {key: value for key, value in weights.items() if "head" not in key},
        {**weights, "stranger": np.zeros(1, np.float32)},
        {**weights, "head.weight": np.zeros((3, 9, 1, 1, 1), np.float32)},
    ):
        with pytest.raises(CheckpointError, match="do not fit"):
            transfer_weights(build_model(config, 1, 2, STRIDES), damaged, axes, [(0, 0), (1, 2)])
