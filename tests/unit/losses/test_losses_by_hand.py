"""Every loss against a slow NumPy version that follows the words of docs/losses.md, case by case and class by class."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses.build import build_loss
from medseg.losses.config import DiceBinaryCrossEntropyConfig, DiceConfig, DiceFocalConfig, FocalConfig, LossConfig
from medseg.losses.partial import log_probability_of_target

NUM_STRUCTURES = 3
KINDS = get_args(get_args(LossConfig)[0])
VARIANTS = [
    kind(**{**activation, **over})
    for kind in KINDS
    for activation in (
        [{"activation": "softmax"}, {"activation": "sigmoid"}] if "activation" in kind.model_fields else [{}]
    )
    for over in ([{"over": "batch"}, {"over": "sample"}] if "over" in kind.model_fields else [{}])
]
ANNOTATED = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3)
SHAPE = st.sampled_from([(7,), (3, 4), (2, 3, 4)])


def name(config) -> str:
    return "-".join(str(value) for value in (config.kind, config.activation, getattr(config, "over", "")) if value)


def draw(config, annotated, shape, seed):
    rng = np.random.default_rng(seed)
    annotated = np.array([[True, *row] for row in annotated])
    num_logits = NUM_STRUCTURES + (config.activation == "softmax")
    logits = 2 * rng.standard_normal((len(annotated), num_logits, *shape))
    channels = rng.integers(0, NUM_STRUCTURES + 1, (len(annotated), *shape))
    return logits, channels, annotated


def probabilities(config, logits) -> np.ndarray:
    """Of background and all structures, one row each; sigmoid's background is not used."""
    if config.activation == "softmax":
        return np.exp(logits) / np.exp(logits).sum(axis=0)
    return np.concatenate([np.full_like(logits[:1], np.nan), 1 / (1 + np.exp(-logits))])


def voxelwise(config, logits, channels, annotated) -> float:
    gamma = getattr(config, "gamma", 0)
    values = []
    for x, labels, known in zip(logits, channels, annotated, strict=True):
        p = probabilities(config, x)
        if config.activation == "softmax" and known[1:].any():
            group = [0, *np.flatnonzero(~known)]
            merged = [p[group].sum(axis=0) if c in group else p[c] for c in range(NUM_STRUCTURES + 1)]
            right = np.choose(labels, merged)
            values.append(-np.log(right) * (1 - right) ** gamma)
        elif config.activation == "sigmoid":
            for c in np.flatnonzero(known[1:]) + 1:
                right = np.where(labels == c, p[c], 1 - p[c])
                values.append(-np.log(right) * (1 - right) ** gamma)
    return float(np.mean(values)) if values else 0.0


def dice(config, logits, channels, annotated) -> float:
    values = []
    for c in range(1, NUM_STRUCTURES + 1):
        cases = np.flatnonzero(annotated[:, c])
        groups = [[b] for b in cases] if config.over == "sample" else [cases] if len(cases) else []
        for group in groups:
            p = np.concatenate([probabilities(config, logits[b])[c].ravel() for b in group])
            t = np.concatenate([(channels[b] == c).ravel() for b in group])
            values.append(1 - (2 * p[t].sum() + config.smooth) / (p.sum() + t.sum() + config.smooth))
    return float(np.mean(values)) if values else 0.0


def by_hand(config, logits, channels, annotated) -> dict[str, float]:
    first = {"dice": [], "bce": ["bce"], "dice_bce": ["bce"], "focal": ["focal"], "dice_focal": ["focal"]}
    terms = {term: voxelwise(config, logits, channels, annotated) for term in first.get(config.kind, ["ce"])}
    return {**terms, "dice": dice(config, logits, channels, annotated)} if "dice" in config.kind else terms


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@given(annotated=ANNOTATED, shape=SHAPE, seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_terms_and_total_are_those_made_by_hand(config, annotated, shape, seed) -> None:
    logits, channels, annotated = draw(config, annotated, shape, seed)
    found = build_loss(config)(torch.tensor(logits), torch.tensor(channels), torch.tensor(annotated))
    expected = by_hand(config, logits, channels, annotated)
    assert {term: float(value) for term, value in found.terms.items()} == pytest.approx(expected, abs=1e-10)
    total = sum(value * (getattr(config, "dice_weight", 1) if t == "dice" else 1) for t, value in expected.items())
    assert float(found.total) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_gradients_are_those_of_finite_differences(config) -> None:
    annotated = [[True, False, False], [True, True, True], [False, False, False]]
    logits, channels, annotated = draw(config, annotated, (2, 3), seed=0)
    loss, channels, annotated = build_loss(config), torch.tensor(channels), torch.tensor(annotated)
    x = torch.tensor(logits, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, channels, annotated).total, x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_any_integer_type_of_labels_and_any_memory_layout(config, dtype) -> None:
    logits, channels, annotated = draw(config, [[True, False, True]] * 2, (2, 3, 4), seed=1)
    loss, annotated = build_loss(config), torch.tensor(annotated)
    plain = loss(torch.tensor(logits), torch.tensor(channels), annotated).total
    strided = torch.tensor(logits).to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(loss(strided, torch.tensor(channels).to(dtype), annotated).total, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_autocast_changes_nothing(config, dtype) -> None:
    """The trainer computes the loss inside autocast; it has to be the float32 loss of the logits as they come."""
    logits, channels, annotated = draw(config, [[True, False, True], [True, True, True]], (9, 8, 7), seed=2)
    low = torch.tensor(logits).to(dtype)
    loss, channels, annotated = build_loss(config), torch.tensor(channels), torch.tensor(annotated)
    with torch.autocast("cpu", dtype):
        found = loss(low, channels, annotated).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(low.double(), channels, annotated).total.float(), atol=1e-5, rtol=1e-5)


def test_the_example_of_the_page() -> None:
    """The figures of docs/losses.md, "Partial annotation": one voxel labelled 0, liver annotated, kidney not."""
    logits = torch.tensor([[[2.0], [0.0], [1.0]]], dtype=torch.float64, requires_grad=True)
    config = next(config for config in VARIANTS if config.kind == "cross_entropy")
    label, annotated = torch.tensor([[0]]), torch.tensor([[True, True, False]])
    total = build_loss(config)(logits, label, annotated).total
    total.backward()
    assert total.item() == pytest.approx(0.094, abs=5e-4)
    assert logits.grad.flatten().tolist() == pytest.approx([-0.066, 0.090, -0.024], abs=5e-4)
    wrong = build_loss(config)(logits, label, torch.ones_like(annotated)).total
    assert wrong.item() == pytest.approx(0.408, abs=5e-4)


def test_dice_of_probabilities_has_the_bounds_that_dice_of_logits_lacks() -> None:
    """The table of docs/losses.md, "Dice of logits is no Dice": (logits, of the logits, of their sigmoid)."""
    reference = np.array([1, 1, 0, 0, 0, 0])
    table = [
        ([1, 1, 0, 0, 0, 0], 0.000, 0.465),
        ([4, 4, 0, 0, 0, 0], -0.600, 0.341),
        ([4, 4, -4, -4, -4, -4], 3.667, 0.027),
        ([8, 8, -4, -4, -4, -4], -15.000, 0.018),
    ]
    loss = build_loss(DiceConfig(activation="sigmoid", smooth=1e-6))
    for logits, of_logits, of_sigmoid in table:
        x = np.array(logits, dtype=float)
        fraction = (2 * (x * reference).sum() + 1e-6) / (x.sum() + reference.sum() + 1e-6)
        assert 1 - fraction == pytest.approx(of_logits, abs=5e-4)
        batch = torch.tensor(x)[None, None], torch.tensor(reference)[None], torch.ones(1, 2, dtype=torch.bool)
        assert loss(*batch).total.item() == pytest.approx(of_sigmoid, abs=5e-4)


def test_focal_counts_easy_voxels_less() -> None:
    sure, unsure = (torch.tensor([[[-x], [x]]], dtype=torch.float64) for x in (3.0, 0.5))
    label, annotated = torch.tensor([[1]]), torch.ones(1, 2, dtype=torch.bool)

    def ratio(gamma: float) -> float:
        loss = build_loss(DiceFocalConfig(gamma=gamma))
        return float(loss(sure, label, annotated).terms["focal"] / loss(unsure, label, annotated).terms["focal"])

    assert ratio(5) < ratio(2) < ratio(1)


def test_a_fractional_gamma_survives_probabilities_that_round_to_more_than_one() -> None:
    """A negative base to a fractional power is NaN.

    In channels-last logits a sum over 39 channels is rounded in another order than over all 40, and may be larger.
    """
    rng = torch.Generator().manual_seed(0)
    logits = (6 * torch.randn(1, 20_000, 40, generator=rng)).transpose(1, 2).requires_grad_()
    annotated = torch.ones(1, 40, dtype=torch.bool)
    annotated[0, 1:39] = False
    labels = torch.zeros(1, 20_000, dtype=torch.long)
    if log_probability_of_target(logits, labels, annotated).max() <= 0:
        pytest.skip("this processor's order of summation does not round up")
    loss = build_loss(FocalConfig(gamma=1.5))
    total = loss(logits, labels, annotated).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_the_classical_recipe_has_its_weights() -> None:
    config = DiceBinaryCrossEntropyConfig()
    assert (config.dice_weight, config.smooth, config.activation) == (0.5, 1e-6, "sigmoid")
    logits, channels, annotated = (torch.tensor(part) for part in draw(config, [[True] * 3], (4, 4), seed=3))
    found = build_loss(config)(logits, channels, annotated)
    torch.testing.assert_close(found.total, found.terms["bce"] + 0.5 * found.terms["dice"])
