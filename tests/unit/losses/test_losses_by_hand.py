"""Every loss against a slow NumPy version that follows the words of docs/losses.md, case by case and class by class."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.labels import IGNORED, LabelSchema, Structure
from medseg.losses import softmax_sums
from medseg.losses.build import build_loss
from medseg.losses.config import (
    DiceBinaryCrossEntropyConfig,
    DiceConfig,
    DiceCrossEntropyConfig,
    DiceFocalConfig,
    FocalConfig,
    FocalTverskyConfig,
    LossConfig,
    TverskyConfig,
)
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
    # Tversky shares its sums with Dice: softmax over the batch and sigmoid over samples are enough.
    if "alpha" not in kind.model_fields or (activation["activation"] == "softmax") == (over["over"] == "batch")
]
ANNOTATED = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3)
SHAPE = st.sampled_from([(7,), (3, 4), (2, 3, 4)])


def name(config) -> str:
    return "-".join(str(value) for value in (config.kind, config.activation, getattr(config, "over", "")) if value)


def draw(config, annotated, shape, seed, ignored=0.0):
    """Logits, classes, annotated; ``ignored`` is the probability of a voxel to be ignored."""
    rng = np.random.default_rng(seed)
    annotated = np.array([[True, *row] for row in annotated])
    num_logits = NUM_STRUCTURES + (config.activation == "softmax")
    logits = 2 * rng.standard_normal((len(annotated), num_logits, *shape))
    classes = rng.integers(0, NUM_STRUCTURES + 1, (len(annotated), *shape))
    classes[rng.random(classes.shape) < ignored] = IGNORED
    return logits, classes, annotated


def probabilities(config, logits) -> np.ndarray:
    """Of background and all structures, one row each; sigmoid's background is not used."""
    if config.activation == "softmax":
        return np.exp(logits) / np.exp(logits).sum(axis=0)
    return np.concatenate([np.full_like(logits[:1], np.nan), 1 / (1 + np.exp(-logits))])


def voxelwise(config, logits, classes, annotated) -> float:
    gamma = getattr(config, "gamma", 0)
    values = []
    for x, labels, known in zip(logits, classes, annotated, strict=True):
        p = probabilities(config, x)
        decided = labels >= 0
        if config.activation == "softmax" and known[1:].any():
            group = [0, *np.flatnonzero(~known)]
            merged = [p[group].sum(axis=0) if c in group else p[c] for c in range(NUM_STRUCTURES + 1)]
            right = np.choose(np.maximum(labels, 0), merged)
            values.append((-np.log(right) * (1 - right) ** gamma)[decided])
        elif config.activation == "sigmoid":
            for c in np.flatnonzero(known[1:]) + 1:
                right = np.where(labels == c, p[c], 1 - p[c])
                values.append((-np.log(right) * (1 - right) ** gamma)[decided])
    voxels = np.concatenate([np.empty(0), *values])
    return float(voxels.mean()) if len(voxels) else 0.0


def by_structure(config, logits, classes, annotated):
    """Probabilities and targets of the decided voxels of each structure that is annotated, in all cases or in each."""
    for c in range(1, NUM_STRUCTURES + 1):
        cases = [b for b in np.flatnonzero(annotated[:, c]) if (classes[b] >= 0).any()]
        groups = [[b] for b in cases] if config.over == "sample" else [cases] if cases else []
        for group in groups:
            p = np.concatenate([probabilities(config, logits[b])[c][classes[b] >= 0] for b in group])
            yield p, np.concatenate([(classes[b] == c)[classes[b] >= 0] for b in group])


def dice(config, logits, classes, annotated) -> float:
    values = [
        1 - (2 * p[t].sum() + config.smooth) / (p.sum() + t.sum() + config.smooth)
        for p, t in by_structure(config, logits, classes, annotated)
    ]
    return float(np.mean(values)) if values else 0.0


def tversky(config, logits, classes, annotated) -> float:
    values = []
    for p, t in by_structure(config, logits, classes, annotated):
        too_much, missed = p[~t].sum(), (1 - p[t]).sum()
        wrong = config.alpha * too_much + config.beta * missed
        loss = 1 - (p[t].sum() + config.smooth) / (p[t].sum() + wrong + config.smooth)
        values.append(max(loss, 1e-7) ** (1 / config.gamma) if config.kind == "focal_tversky" else loss)
    return float(np.mean(values)) if values else 0.0


def by_hand(config, logits, classes, annotated) -> dict[str, float]:
    batch = config, logits, classes, annotated
    if config.kind in ("tversky", "focal_tversky"):
        return {config.kind: tversky(*batch)}
    if config.kind == "tversky_ce":
        return {"ce" if config.activation == "softmax" else "bce": voxelwise(*batch), "tversky": tversky(*batch)}
    first = {"dice": [], "bce": ["bce"], "dice_bce": ["bce"], "focal": ["focal"], "dice_focal": ["focal"]}
    terms = {term: voxelwise(*batch) for term in first.get(config.kind, ["ce"])}
    return {**terms, "dice": dice(*batch)} if "dice" in config.kind else terms


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@given(annotated=ANNOTATED, shape=SHAPE, seed=st.integers(0, 1000), ignored=st.sampled_from([0.0, 0.0, 0.3, 0.9]))
@settings(max_examples=40)
def test_terms_and_total_are_those_made_by_hand(config, annotated, shape, seed, ignored) -> None:
    logits, classes, annotated = draw(config, annotated, shape, seed, ignored)
    found = build_loss(config)(torch.tensor(logits), torch.tensor(classes), torch.tensor(annotated))
    expected = by_hand(config, logits, classes, annotated)
    assert {term: float(value) for term, value in found.terms.items()} == pytest.approx(expected, abs=1e-10)
    total = sum(value * getattr(config, f"{term}_weight", 1) for term, value in expected.items())
    assert float(found.total) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(config, ignored) -> None:
    annotated = [[True, False, False], [True, True, True], [False, False, False]]
    logits, classes, annotated = draw(config, annotated, (2, 3), seed=0, ignored=ignored)
    loss, classes, annotated = build_loss(config), torch.tensor(classes), torch.tensor(annotated)
    x = torch.tensor(logits, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, classes, annotated).total, x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_any_integer_type_of_labels_and_any_memory_layout(config, dtype) -> None:
    logits, classes, annotated = draw(config, [[True, False, True]] * 2, (2, 3, 4), seed=1)
    loss, annotated = build_loss(config), torch.tensor(annotated)
    plain = loss(torch.tensor(logits), torch.tensor(classes), annotated).total
    strided = torch.tensor(logits).to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(loss(strided, torch.tensor(classes).to(dtype), annotated).total, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_autocast_changes_nothing(config, dtype) -> None:
    """The trainer computes the loss inside autocast; it has to be the float32 loss of the logits as they come."""
    logits, classes, annotated = draw(config, [[True, False, True], [True, True, True]], (9, 8, 7), seed=2)
    low = torch.tensor(logits).to(dtype)
    loss, classes, annotated = build_loss(config), torch.tensor(classes), torch.tensor(annotated)
    with torch.autocast("cpu", dtype):
        found = loss(low, classes, annotated).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(low.double(), classes, annotated).total.float(), atol=1e-5, rtol=1e-5)


def plain_terms(activation, logits, classes):
    """Cross-entropy and Dice as they are written in a textbook, of three structures that are all annotated."""
    target = torch.stack([classes == structure for structure in (1, 2, 3)], dim=1).to(logits.dtype)
    if activation == "softmax":
        voxels = -(logits.gather(1, classes[:, None]) - logits.logsumexp(1, keepdim=True))[:, 0]
        p = logits.softmax(1)[:, 1:]
    else:
        voxels = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p = logits.sigmoid()
    means = voxels.flatten(voxels.ndim - 3).mean(-1)
    axes = (2, 3, 4)
    common, total = (p * target).sum(axes).sum(0), (p.sum(axes) + target.sum(axes)).sum(0)
    return means.sum() / means.numel(), (1 - (2 * common + 1e-5) / (total + 1e-5)).sum() / 3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_and_cross_entropy_round_as_the_plain_formulas_do(activation) -> None:
    """What leaves voxels out and unites classes must not cost a rounding where nothing is left out or united."""
    config = DiceCrossEntropyConfig() if activation == "softmax" else DiceBinaryCrossEntropyConfig(smooth=1e-5)
    parts = draw(config, [[True] * 3] * 2, (7, 6, 5), seed=4)
    logits, classes, annotated = torch.tensor(parts[0]).float(), torch.tensor(parts[1]), torch.tensor(parts[2])
    schema = LabelSchema(tuple(Structure(f"structure {value}", value) for value in (5, 2, 9)), ignore_value=20)
    found = build_loss(config, schema)(logits, classes, annotated).terms
    found = [found["ce" if activation == "softmax" else "bce"], found["dice"]]
    if activation == "sigmoid":  # the same operations in the same order
        assert found == list(plain_terms(activation, logits, classes))
    else:  # sums that are made in another order: within two units in the last place of the exact ones
        exact = plain_terms(activation, logits.double(), classes)
        for term, right in zip(found, exact, strict=True):
            assert abs(term.double() - right) <= 2 * torch.finfo(torch.float32).eps * right


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_voxels_may_be_summed_in_any_portions(monkeypatch, dtype) -> None:
    config = DiceCrossEntropyConfig()
    parts = draw(config, [[True] * 3, [True, False, False]], (7, 6, 5), seed=5, ignored=0.3)
    classes, annotated = torch.tensor(parts[1], dtype=dtype), torch.tensor(parts[2])
    found, before = [], classes.clone()
    for size in (2**15, 64, 11, 1):
        monkeypatch.setattr(softmax_sums, "CHUNK_VOXELS", size)
        logits = torch.tensor(parts[0], requires_grad=True)
        total = build_loss(config)(logits, classes, annotated).total
        total.backward()
        found.append((total.detach(), logits.grad))
    for total, gradient in found[1:]:
        torch.testing.assert_close(total, found[0][0], atol=1e-13, rtol=0)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-15, rtol=1e-12)
    assert torch.equal(classes, before)


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

    In channels-last logits a sum over 39 classes is rounded in another order than over all 40, and may be larger.
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


def test_tversky_counts_what_is_missed_more_than_what_is_too_much() -> None:
    """A structure of four voxels: one voxel missed against one found too much."""
    reference, annotated = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]), torch.ones(1, 2, dtype=torch.bool)
    missed, too_much = (torch.tensor([[values]]) * 40.0 for values in ([1, 1, 1, -1, *[-1] * 4], [1] * 5 + [-1] * 3))

    def both(**weights: float) -> tuple[float, float]:
        loss = build_loss(TverskyConfig(activation="sigmoid", **weights))
        return tuple(loss(logits, reference, annotated).total.item() for logits in (missed, too_much))

    assert both() == pytest.approx((1 - 3 / 3.7, 1 - 4 / 4.3), abs=1e-4)
    assert both(alpha=0.5, beta=0.5) == pytest.approx((1 - 6 / 7, 1 - 8 / 9), abs=1e-4), "Dice"


def test_focal_tversky_gives_structures_that_are_found_well_more_pull() -> None:
    """Half of its slope against plain Tversky's, for a structure that is nearly found and one that is not."""

    def slope(size: float, gamma: float) -> float:
        logits = torch.tensor([[[size, size, -size, -size]]], dtype=torch.float64, requires_grad=True)
        loss = build_loss(FocalTverskyConfig(activation="sigmoid", gamma=gamma))
        loss(logits, torch.tensor([[1, 1, 0, 0]]), torch.ones(1, 2, dtype=torch.bool)).total.backward()
        return float(logits.grad.abs().sum())

    assert slope(4, 2) / slope(4, 1) > 2 * slope(0.5, 2) / slope(0.5, 1)


def test_the_classical_recipe_has_its_weights() -> None:
    config = DiceBinaryCrossEntropyConfig()
    assert (config.dice_weight, config.smooth, config.activation) == (0.5, 1e-6, "sigmoid")
    logits, classes, annotated = (torch.tensor(part) for part in draw(config, [[True] * 3], (4, 4), seed=3))
    found = build_loss(config)(logits, classes, annotated)
    torch.testing.assert_close(found.total, found.terms["bce"] + 0.5 * found.terms["dice"])
