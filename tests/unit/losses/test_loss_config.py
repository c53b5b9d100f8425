"""Configs of losses: variants by kind, defaults, mistakes told with their path."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import yaml

from medseg.core.config import ConfigBase, validated
from medseg.core.errors import ConfigError
from medseg.io.starter import commented_yaml
from medseg.losses.config import LossConfig

KINDS = get_args(get_args(LossConfig)[0])


class Holder(ConfigBase):
    """Holds a loss."""

    loss: LossConfig
    """The loss."""


def read(**loss) -> LossConfig:
    return validated(Holder, {"loss": loss}, "test").loss


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_every_kind_is_read_back_from_its_commented_yaml(kind) -> None:
    text = commented_yaml(Holder(loss=kind()))
    assert read(**yaml.safe_load(text)["loss"]) == kind()
    undocumented = [name for name, field in kind.model_fields.items() if name != "kind" and not field.description]
    assert not undocumented


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().kind)
def test_activation_is_a_choice_only_where_there_is_one(kind) -> None:
    config = kind()
    fixed = {"bce": "sigmoid", "dice_bce": "sigmoid", "cross_entropy": "softmax", "dice_ce": "softmax"}
    assert config.activation == fixed.get(config.kind, "softmax")
    if config.kind in fixed:
        with pytest.raises(ConfigError, match=r"loss\.activation: unknown key"):
            read(kind=config.kind, activation=config.activation)
    else:
        assert read(kind=config.kind, activation="sigmoid").activation == "sigmoid"


def test_smooth_is_smaller_in_the_classical_recipe_alone() -> None:
    smooth = {kind().kind: kind().smooth for kind in KINDS if "smooth" in kind.model_fields}
    assert smooth.pop("dice_bce") == 1e-6
    assert set(smooth.values()) == {1e-5}


@pytest.mark.parametrize(
    ("loss", "path"),
    [
        ({"kind": "dice", "smooth": 0}, r"loss\.smooth"),
        ({"kind": "dice", "over": "case"}, r"loss\.over"),
        ({"kind": "dice", "activation": "none"}, r"loss\.activation"),
        ({"kind": "focal", "gamma": 0.5}, r"loss\.gamma"),
        ({"kind": "dice_ce", "dice_weight": 0}, r"loss\.dice_weight"),
        ({"kind": "dice_ce", "dice_weight": float("inf")}, r"loss\.dice_weight"),
        ({"kind": "dice_ce", "smoth": 1e-5}, "did you mean 'smooth'"),
        ({"kind": "tversky", "alpha": 0}, r"loss\.alpha"),
        ({"kind": "focal_tversky", "gamma": 0.75}, r"loss\.gamma"),
        ({"kind": "tversky_ce", "gamma": 2}, r"loss\.gamma: unknown key"),
        ({"kind": "lovasz"}, r"loss\.kind"),
    ],
)
def test_mistakes_are_told_with_their_path(loss, path) -> None:
    with pytest.raises(ConfigError, match=path):
        read(**loss)


def test_reading_a_config_needs_no_torch() -> None:
    code = "import sys, medseg.losses.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
