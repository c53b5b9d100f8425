"""The laws of learning from partly annotated cases, for every loss that a config can name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses.build import build_loss
from medseg.losses.config import LossConfig

KINDS = get_args(get_args(LossConfig)[0])
VARIANTS = [
    kind(**{**activation, **over})
    for kind in KINDS
    for activation in (
        [{"activation": "softmax"}, {"activation": "sigmoid"}] if "activation" in kind.model_fields else [{}]
    )
    for over in ([{"over": "batch"}, {"over": "sample"}] if "over" in kind.model_fields else [{}])
]
SOFTMAX = [config for config in VARIANTS if config.activation == "softmax"]
SIGMOID = [config for config in VARIANTS if config.activation == "sigmoid"]
NUM_STRUCTURES = 4


def batch(num_logits: int, size: int = 3, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, num_logits, 4, 5, 3, dtype=torch.float64, generator=rng)
    channels = torch.randint(0, NUM_STRUCTURES + 1, (size, 4, 5, 3), generator=rng)
    annotated = torch.ones(size, NUM_STRUCTURES + 1, dtype=torch.bool)
    annotated[0, [2, 4]] = False
    annotated[1, 1] = False
    return logits, channels, annotated


def name(config) -> str:
    return "-".join(str(value) for value in (config.kind, config.activation, getattr(config, "over", "")) if value)


def test_every_kind_is_covered() -> None:
    assert {config.kind for config in VARIANTS} == {
        "dice",
        "bce",
        "cross_entropy",
        "focal",
        "dice_bce",
        "dice_ce",
        "dice_focal",
    }


def any_batch(config, annotated, shape, seed: int):
    """A batch of any pattern of annotation; its logits want a gradient."""
    rng = torch.Generator().manual_seed(seed)
    num_logits = NUM_STRUCTURES + (config.activation == "softmax")
    logits = torch.randn(len(annotated), num_logits, *shape, dtype=torch.float64, generator=rng).requires_grad_()
    channels = torch.randint(0, NUM_STRUCTURES + 1, (len(annotated), *shape), generator=rng)
    return logits, channels, torch.tensor([[True, *row] for row in annotated])


def groups(annotated):
    """Background and what is not annotated, of each case."""
    return [[0, *(~row).nonzero()[:, 0].tolist()] for row in annotated]


any_pattern = given(
    annotated=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    shape=st.sampled_from([(11,), (4, 5), (4, 3, 2)]),
    seed=st.integers(0, 1000),
)


@pytest.mark.parametrize("config", SIGMOID, ids=name)
@any_pattern
@settings(max_examples=25)
def test_sigmoid_gives_an_unannotated_channel_no_gradient_at_all(config, annotated, shape, seed) -> None:
    logits, channels, annotated = any_batch(config, annotated, shape, seed)
    build_loss(config)(logits, channels, annotated).total.backward()
    used = annotated[:, 1:]
    assert (logits.grad[~used] == 0).all()
    assert (logits.grad[used].flatten(1).abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("config", SOFTMAX, ids=name)
@any_pattern
@settings(max_examples=25)
def test_softmax_sees_only_the_groups_summed_probability(config, annotated, shape, seed) -> None:
    logits, channels, annotated = any_batch(config, annotated, shape, seed)
    changed = logits.detach().clone()
    for b, members in enumerate(groups(annotated)):
        fresh = 3 * torch.randn_like(changed[b, members])
        changed[b, members] = fresh - fresh.logsumexp(0) + changed[b, members].logsumexp(0)
    loss = build_loss(config)
    assert abs(loss(logits, channels, annotated).total - loss(changed, channels, annotated).total) <= 1e-6


@pytest.mark.parametrize("config", SOFTMAX, ids=name)
@any_pattern
@settings(max_examples=25)
def test_softmax_gives_each_logit_its_share_of_the_groups_gradient(config, annotated, shape, seed) -> None:
    logits, channels, annotated = any_batch(config, annotated, shape, seed)
    build_loss(config)(logits, channels, annotated).total.backward()
    for b, members in enumerate(groups(annotated)):
        share = logits[b, members].detach().softmax(0)
        expected = share * logits.grad[b, members].sum(0, keepdim=True)
        torch.testing.assert_close(logits.grad[b, members], expected, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@any_pattern
@settings(max_examples=25)
def test_a_structure_annotated_nowhere_gives_no_term(config, annotated, shape, seed) -> None:
    """Sigmoid: as if the network had no such channel. Softmax: as if it were one class with background."""
    logits, channels, annotated = any_batch(config, annotated, shape, seed)
    annotated[:, NUM_STRUCTURES] = False
    loss = build_loss(config)
    with torch.no_grad():
        found = loss(logits, channels, annotated).total
        fewer = channels.masked_fill(channels == NUM_STRUCTURES, 0)
        without = logits[:, :-1].clone()
        if config.activation == "softmax":
            without[:, 0] = torch.logaddexp(logits[:, 0], logits[:, -1])
        torch.testing.assert_close(found, loss(without, fewer, annotated[:, :-1]).total)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_a_case_with_nothing_annotated_teaches_nothing_and_dilutes_nothing(config) -> None:
    logits, channels, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    logits.requires_grad_()
    annotated[2, 1:] = False
    loss = build_loss(config)
    with_it = loss(logits, channels, annotated).total
    with_it.backward()
    assert (logits.grad[2] == 0).all()
    torch.testing.assert_close(with_it, loss(logits[:2], channels[:2], annotated[:2]).total)
    alone = logits[2:].detach().requires_grad_()
    nothing = loss(alone, channels[2:], annotated[2:]).total
    nothing.backward()
    assert nothing == 0
    assert (alone.grad == 0).all()


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_what_an_unannotated_structure_is_labelled_does_not_matter(config) -> None:
    """Voxels of a structure that is not annotated count as the group, whether somebody drew them or not."""
    logits, channels, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    erased = channels.clone()
    for b in range(len(channels)):
        erased[b][~annotated[b][channels[b]]] = 0
    loss = build_loss(config)
    torch.testing.assert_close(loss(logits, channels, annotated).total, loss(logits, erased, annotated).total)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_and_low_precision_stay_finite(config, dtype) -> None:
    logits, channels, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    extreme = (logits.sign() * 1e4).to(dtype).requires_grad_()
    total = build_loss(config)(extreme, channels, annotated).total
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_the_reference_itself_is_nearly_the_best_answer(config) -> None:
    _, channels, annotated = batch(NUM_STRUCTURES + 1)
    annotated[:] = True
    perfect = torch.nn.functional.one_hot(channels, NUM_STRUCTURES + 1).movedim(-1, 1).double() * 40 - 20
    logits = perfect if config.activation == "softmax" else perfect[:, 1:]
    assert build_loss(config)(logits, channels, annotated).total < 1e-3
