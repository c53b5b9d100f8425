"""Which network a run trains: what the config says, completed by what the plan chose. Torch-free."""

from __future__ import annotations

from typing import assert_never

from medseg.core.errors import ConfigError
from medseg.data.plan import Plan
from medseg.data.topology import StageRule
from medseg.models.config import (
    AttentionUNetConfig,
    DynUNetConfig,
    MedNeXtConfig,
    NetworkConfig,
    ResidualUNetConfig,
    SegResNetConfig,
    SwinUNETRConfig,
    UNetConfig,
    VNetConfig,
)

USUAL_FEATURES = (16, 32, 64, 128)
"""Channels of each stage where neither the config nor a planner that has measured the machine says otherwise
(docs/decisions/0005)."""

USUAL_STEM_STRIDE = 2
"""The same for the first stride."""

MAX_FEATURES = 320
"""Channels of the deepest stages. nnU-Net's rule."""


def planned_network(network: NetworkConfig, plan: Plan) -> NetworkConfig:
    """The config of a network with nothing left open.

    Raises:
        ConfigError: Config and plan have another number of stages.
    """
    if not isinstance(network, UNetConfig | ResidualUNetConfig):
        return network
    features = network.features or plan.features or USUAL_FEATURES
    if len(features) != len(plan.strides):
        raise ConfigError(
            f"network.features has {len(features)} stages and the plan {len(plan.strides)}: plan again with this config, or leave "
            "network.features null to take the plan's"
        )
    stem = network.stem_stride or max(plan.strides[0])
    return network.model_copy(update={"features": features, "stem_stride": stem})


def chosen_features(network: NetworkConfig) -> tuple[int, ...] | None:
    """The usual features where the config leaves them open; None where it does not."""
    is_open = isinstance(network, UNetConfig | ResidualUNetConfig) and network.features is None
    return USUAL_FEATURES if is_open else None


def stage_rule(network: NetworkConfig) -> StageRule:
    """What a network asks of the plan's strides; what is left open is as usual."""
    match network:
        case UNetConfig() | ResidualUNetConfig():
            features = network.features or USUAL_FEATURES
            return StageRule(len(features), network.stem_stride or USUAL_STEM_STRIDE, uniform=False)
        case DynUNetConfig() | AttentionUNetConfig():
            return StageRule(len(network.features), stem_stride=1, uniform=False)
        case VNetConfig() | SegResNetConfig() | SwinUNETRConfig() | MedNeXtConfig():
            return StageRule(len(network.strides), network.strides[0], uniform=True)
        case _:
            assert_never(network)


def doubled(width: int, num_stages: int) -> tuple[int, ...]:
    """Channels of each stage: twice as many at each, up to :data:`MAX_FEATURES`."""
    return tuple(min(MAX_FEATURES, width * 2**stage) for stage in range(num_stages))
