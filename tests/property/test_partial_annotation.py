"""The laws of learning from partly annotated cases and from ignored voxels, for every loss that a config can name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.labels import IGNORED, LabelSchema, Structure
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
    # Tversky shares its sums with Dice: softmax over the batch and sigmoid over samples are enough.
    if "alpha" not in kind.model_fields or (activation["activation"] == "softmax") == (over["over"] == "batch")
]
SOFTMAX = [config for config in VARIANTS if config.activation == "softmax"]
SIGMOID = [config for config in VARIANTS if config.activation == "sigmoid"]
NUM_STRUCTURES = 4


def batch(num_logits: int, size: int = 3, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, num_logits, 4, 5, 3, dtype=torch.float64, generator=rng)
    classes = torch.randint(0, NUM_STRUCTURES + 1, (size, 4, 5, 3), generator=rng)
    annotated = torch.ones(size, NUM_STRUCTURES + 1, dtype=torch.bool)
    annotated[0, [2, 4]] = False
    annotated[1, 1] = False
    return logits, classes, annotated


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
        "tversky",
        "focal_tversky",
        "tversky_ce",
    }


def any_batch(config, annotated, shape, seed: int):
    """A batch of any pattern of annotation; its logits want a gradient."""
    rng = torch.Generator().manual_seed(seed)
    num_logits = NUM_STRUCTURES + (config.activation == "softmax")
    logits = torch.randn(len(annotated), num_logits, *shape, dtype=torch.float64, generator=rng).requires_grad_()
    classes = torch.randint(0, NUM_STRUCTURES + 1, (len(annotated), *shape), generator=rng)
    return logits, classes, torch.tensor([[True, *row] for row in annotated])


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
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    build_loss(config)(logits, classes, annotated).total.backward()
    used = annotated[:, 1:]
    assert (logits.grad[~used] == 0).all()
    assert (logits.grad[used].flatten(1).abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("config", SOFTMAX, ids=name)
@any_pattern
@settings(max_examples=25)
def test_softmax_sees_only_the_groups_summed_probability(config, annotated, shape, seed) -> None:
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    changed = logits.detach().clone()
    for b, members in enumerate(groups(annotated)):
        fresh = 3 * torch.randn_like(changed[b, members])
        changed[b, members] = fresh - fresh.logsumexp(0) + changed[b, members].logsumexp(0)
    loss = build_loss(config)
    assert abs(loss(logits, classes, annotated).total - loss(changed, classes, annotated).total) <= 1e-6


@pytest.mark.parametrize("config", SOFTMAX, ids=name)
@any_pattern
@settings(max_examples=25)
def test_softmax_gives_each_logit_its_share_of_the_groups_gradient(config, annotated, shape, seed) -> None:
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    build_loss(config)(logits, classes, annotated).total.backward()
    for b, members in enumerate(groups(annotated)):
        share = logits[b, members].detach().softmax(0)
        expected = share * logits.grad[b, members].sum(0, keepdim=True)
        torch.testing.assert_close(logits.grad[b, members], expected, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@any_pattern
@settings(max_examples=25)
def test_a_structure_annotated_nowhere_gives_no_term(config, annotated, shape, seed) -> None:
    """Sigmoid: as if the network had no such channel. Softmax: as if it were one class with background."""
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    annotated[:, NUM_STRUCTURES] = False
    loss = build_loss(config)
    with torch.no_grad():
        found = loss(logits, classes, annotated).total
        fewer = classes.masked_fill(classes == NUM_STRUCTURES, 0)
        without = logits[:, :-1].clone()
        if config.activation == "softmax":
            without[:, 0] = torch.logaddexp(logits[:, 0], logits[:, -1])
        torch.testing.assert_close(found, loss(without, fewer, annotated[:, :-1]).total)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_a_case_with_nothing_annotated_teaches_nothing_and_dilutes_nothing(config) -> None:
    logits, classes, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    logits.requires_grad_()
    annotated[2, 1:] = False
    loss = build_loss(config)
    with_it = loss(logits, classes, annotated).total
    with_it.backward()
    assert (logits.grad[2] == 0).all()
    torch.testing.assert_close(with_it, loss(logits[:2], classes[:2], annotated[:2]).total)
    alone = logits[2:].detach().requires_grad_()
    nothing = loss(alone, classes[2:], annotated[2:]).total
    nothing.backward()
    assert nothing == 0
    assert (alone.grad == 0).all()


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_what_an_unannotated_structure_is_labelled_does_not_matter(config) -> None:
    """Voxels of a structure that is not annotated count as the group, whether somebody drew them or not."""
    logits, classes, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    erased = classes.clone()
    for b in range(len(classes)):
        erased[b][~annotated[b][classes[b]]] = 0
    loss = build_loss(config)
    torch.testing.assert_close(loss(logits, classes, annotated).total, loss(logits, erased, annotated).total)


@pytest.mark.parametrize("config", VARIANTS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_and_low_precision_stay_finite(config, dtype) -> None:
    logits, classes, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    extreme = (logits.sign() * 1e4).to(dtype).requires_grad_()
    total = build_loss(config)(extreme, classes, annotated).total
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_the_reference_itself_is_nearly_the_best_answer(config) -> None:
    _, classes, annotated = batch(NUM_STRUCTURES + 1)
    annotated[:] = True
    perfect = torch.nn.functional.one_hot(classes, NUM_STRUCTURES + 1).movedim(-1, 1).double() * 40 - 20
    logits = perfect if config.activation == "softmax" else perfect[:, 1:]
    assert build_loss(config)(logits, classes, annotated).total < 1e-3


NESTED = LabelSchema(
    (
        Structure("a", 1, region=(1, 2, 3)),
        Structure("b", 2, region=(2, 3)),
        Structure("c", 3),
        Structure("d", 5, region=(1, 5)),
    ),
    ignore_value=9,
)
PLAIN = LabelSchema(tuple(Structure(name, value) for value, name in enumerate("abcd", start=1)), ignore_value=9)
WITH_SCHEMA = [(config, PLAIN) for config in VARIANTS] + [(config, NESTED) for config in SIGMOID]


def name_of_both(value) -> str:
    return ("nested" if value is NESTED else "plain") if isinstance(value, LabelSchema) else name(value)


@pytest.mark.parametrize(("config", "schema"), WITH_SCHEMA, ids=name_of_both)
@any_pattern
@settings(max_examples=25)
def test_ignored_voxels_have_no_loss_and_no_gradient_whatever_the_network_says_there(
    config, schema, annotated, shape, seed
) -> None:
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    ignored = torch.rand(classes.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    ignored[0] |= bool(seed % 3 == 0)  # a case of nothing else, now and then
    classes[ignored] = IGNORED
    loss = build_loss(config, schema)
    total = loss(logits, classes, annotated).total
    total.backward()
    by_voxel = logits.grad.movedim(1, -1)
    assert (by_voxel[ignored] == 0).all()
    taught = ~ignored & annotated[:, 1:].any(dim=1).view(-1, *(1,) * len(shape))
    assert bool(taught.any()) == bool((by_voxel[taught] != 0).any())
    for other in (float("nan"), float("inf"), -1e300, 3.0):
        changed = torch.where(ignored.unsqueeze(1), other, logits.detach()).requires_grad_()
        again = loss(changed, classes, annotated).total
        again.backward()
        assert again == total
        assert torch.equal(changed.grad, logits.grad)


@pytest.mark.parametrize(("config", "schema"), WITH_SCHEMA, ids=name_of_both)
@any_pattern
@settings(max_examples=25)
def test_ignoring_voxels_is_leaving_them_out(config, schema, annotated, shape, seed) -> None:
    """The same voxels of each case, so that what remains is a batch again."""
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    logits, classes = logits.detach().flatten(2), classes.flatten(1)
    kept = torch.rand(classes.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[0] = True
    loss = build_loss(config, schema)
    expected = loss(logits[:, :, kept], classes[:, kept], annotated).total
    torch.testing.assert_close(loss(logits, classes.masked_fill(~kept, IGNORED), annotated).total, expected)


@pytest.mark.parametrize(("config", "schema"), WITH_SCHEMA, ids=name_of_both)
def test_an_ignored_case_dilutes_nothing_and_a_batch_of_them_is_exactly_zero(config, schema) -> None:
    logits, classes, annotated = batch(NUM_STRUCTURES + (config.activation == "softmax"))
    classes[2] = IGNORED
    loss = build_loss(config, schema)
    without = loss(logits[:2], classes[:2], annotated[:2]).total
    torch.testing.assert_close(loss(logits, classes, annotated).total, without)
    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(classes, IGNORED), annotated)
    nothing.total.backward()
    assert nothing.total == 0
    assert all(term == 0 for term in nothing.terms.values())
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("config", SIGMOID, ids=name)
@any_pattern
@settings(max_examples=25)
def test_a_region_is_learnt_as_if_it_were_the_only_structure(config, annotated, shape, seed) -> None:
    """Overlap couples nothing: the gradient of a region's logits is that of its own two-class problem."""
    logits, classes, annotated = any_batch(config, annotated, shape, seed)
    classes[torch.rand(classes.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = IGNORED
    decided = classes != IGNORED
    for number, region in enumerate(((1, 2, 3), (2, 3), (3,), (1, 4)), start=1):  # class 4 is value 5
        inside = torch.isin(classes, torch.tensor(region))
        one = slice(number - 1, number)
        alone = logits[:, one].detach().requires_grad_()
        only_it = torch.zeros_like(annotated)
        only_it[:, [0, number]] = annotated[:, [0, number]]
        together = logits.detach().requires_grad_()
        mine = build_loss(config, NESTED)(together, classes, only_it).total
        theirs = build_loss(config)(
            alone, torch.where(decided, inside.long(), IGNORED), annotated[:, [0, number]]
        ).total
        torch.testing.assert_close(mine, theirs)
        mine.backward()
        theirs.backward()
        torch.testing.assert_close(together.grad[:, one], alone.grad)
