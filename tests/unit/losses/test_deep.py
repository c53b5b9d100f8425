"""Deep supervision: weights, coarser labels, and the laws of partial annotation at every resolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from medseg.core.labels import IGNORED
from medseg.losses.build import build_loss
from medseg.losses.config import DiceBinaryCrossEntropyConfig, DiceCrossEntropyConfig
from medseg.losses.deep import at_shape, deep_loss, deep_weights

CONFIGS = [DiceCrossEntropyConfig(), DiceBinaryCrossEntropyConfig()]
SHAPES = [(8, 8, 4), (4, 4, 4), (2, 2, 2)]


def draw(config, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    num_logits = 3 + (config.activation == "softmax")
    outputs = tuple(torch.randn(2, num_logits, *shape, generator=rng).requires_grad_() for shape in SHAPES)
    classes = torch.randint(0, 4, (2, *SHAPES[0]), generator=rng)
    return outputs, classes, torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("num_outputs", "expected"),
    [(1, [1]), (2, [2 / 3, 1 / 3]), (3, [2 / 3, 1 / 3, 0]), (5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])],
)
def test_weights_are_nnu_nets(num_outputs, expected) -> None:
    assert deep_weights(num_outputs) == pytest.approx(expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_the_total_is_the_weighted_sum_and_the_terms_are_those_of_full_resolution(config) -> None:
    outputs, classes, annotated = draw(config)
    loss = build_loss(config)
    found = deep_loss(loss, outputs, classes, annotated)
    half = interpolate(classes[:, None].double(), SHAPES[1], mode="nearest-exact")[:, 0].long()
    fine, coarse = loss(outputs[0], classes, annotated), loss(outputs[1], half, annotated)
    torch.testing.assert_close(found.total, 2 / 3 * fine.total + 1 / 3 * coarse.total)
    assert found.terms == fine.terms
    found.total.backward()
    assert outputs[2].grad is None, "the coarsest has no weight"
    alone = deep_loss(loss, outputs[0], classes, annotated)
    assert alone.total == fine.total


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3), seed=st.integers(0, 99)
)
@settings(max_examples=60)
def test_coarser_labels_are_torchs_nearest_exact(sizes, seed) -> None:
    shape, wanted = zip(*((max(pair), min(pair)) for pair in sizes), strict=True)
    classes = torch.randint(-1, 5, (2, *shape), generator=torch.Generator().manual_seed(seed))
    expected = interpolate(classes[:, None].double(), wanted, mode="nearest-exact")[:, 0].long()
    assert torch.equal(at_shape(classes, wanted), expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_learnt_at_any_resolution_from_what_nobody_decided_or_looked_for(config, seed: int) -> None:
    outputs, classes, annotated = draw(config, seed)
    annotated[0, 1:] = False
    annotated[1, 2] = False
    ignored = torch.rand(classes.shape) < 0.5
    classes[ignored] = IGNORED
    deep_loss(build_loss(config), outputs, classes, annotated).total.backward()
    for logits in outputs[:2]:
        gradient = logits.grad.movedim(1, -1)
        coarse = at_shape(classes, logits.shape[2:])
        assert (logits.grad[0] == 0).all(), "nothing is annotated in this case"
        assert (gradient[coarse == IGNORED] == 0).all()
        assert (gradient[1][coarse[1] != IGNORED] != 0).any()
        if config.activation == "sigmoid":
            assert (logits.grad[1, 1] == 0).all(), "the second structure is not annotated"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_ignored_everywhere_is_exactly_zero(config) -> None:
    outputs, classes, annotated = draw(config)
    total = deep_loss(build_loss(config), outputs, torch.full_like(classes, IGNORED), annotated).total
    total.backward()
    assert total == 0
    assert all((logits.grad == 0).all() for logits in outputs[:2])
