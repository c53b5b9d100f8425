"""Our losses against MONAI's and torch's, where they mean the same: everything annotated; ignored voxels; regions."""

from __future__ import annotations

import monai.losses as theirs
import pytest
import torch
from torch.nn import functional as F

from medseg.core.labels import IGNORED, LabelSchema, Structure
from medseg.losses.build import build_loss
from medseg.losses.config import (
    BinaryCrossEntropyConfig,
    DiceBinaryCrossEntropyConfig,
    DiceConfig,
    DiceCrossEntropyConfig,
    DiceFocalConfig,
    FocalConfig,
    FocalTverskyConfig,
    TverskyConfig,
    TverskyCrossEntropyConfig,
)
from medseg.losses.cross_entropy import CrossEntropyLoss
from medseg.losses.dice import DiceLoss


@pytest.fixture(
    params=[(2, False), (2, True), (3, False), (3, True)],
    ids=["2D", "2D with empty classes", "3D", "3D with empty classes"],
)
def batch(request):
    num_axes, empty = request.param
    torch.manual_seed(num_axes)
    shape = (2, *[6, 5, 7][:num_axes])
    classes = torch.randint(0, 2 if empty else 4, shape)
    logits = torch.randn(2, 4, *shape[1:], dtype=torch.float64)
    one_hot = F.one_hot(classes, 4).movedim(-1, 1).double()
    return logits, classes, one_hot, torch.ones(2, 4, dtype=torch.bool)


def close(ours: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(
        ours, other, atol=1e-6, rtol=0, check_dtype=False
    )  # MONAI's focal loss rounds to float32


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_softmax_dice(batch, over) -> None:
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceLoss(
        include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=over == "batch"
    )
    close(DiceLoss("softmax", over)(logits, classes, annotated), other(logits, one_hot))


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_sigmoid_dice(batch, over) -> None:
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceLoss(sigmoid=True, smooth_nr=1e-6, smooth_dr=1e-6, batch=over == "batch")
    close(DiceLoss("sigmoid", over, 1e-6)(logits[:, 1:], classes, annotated), other(logits[:, 1:], one_hot[:, 1:]))


def test_cross_entropy(batch) -> None:
    logits, classes, _, annotated = batch
    close(CrossEntropyLoss("softmax")(logits, classes, annotated), F.cross_entropy(logits, classes))


def test_binary_cross_entropy(batch) -> None:
    logits, classes, one_hot, annotated = batch
    other = F.binary_cross_entropy_with_logits(logits[:, 1:], one_hot[:, 1:])
    close(CrossEntropyLoss("sigmoid")(logits[:, 1:], classes, annotated), other)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal(batch, gamma) -> None:
    logits, classes, one_hot, annotated = batch
    sigmoid = theirs.FocalLoss(gamma=gamma)(logits[:, 1:], one_hot[:, 1:])
    close(CrossEntropyLoss("sigmoid", gamma)(logits[:, 1:], classes, annotated), sigmoid)
    # MONAI also divides by the number of classes, although each voxel has one term.
    softmax = theirs.FocalLoss(gamma=gamma, use_softmax=True)(logits, one_hot) * 4
    close(CrossEntropyLoss("softmax", gamma)(logits, classes, annotated), softmax)


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_dice_and_cross_entropy(batch, over) -> None:
    """MONAI's include_background=False speaks of its Dice alone: cross-entropy keeps all classes, as ours does."""
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceCELoss(
        include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=over == "batch"
    )
    found = build_loss(DiceCrossEntropyConfig(over=over))(logits, classes, annotated)
    close(found.total, other(logits, one_hot))
    close(found.terms["ce"], F.cross_entropy(logits, classes))


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_dice_and_binary_cross_entropy(batch, over) -> None:
    """MONAI takes binary cross-entropy only where there is one channel, so it is asked for one structure at a time."""
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceCELoss(sigmoid=True, lambda_dice=0.5, smooth_nr=1e-6, smooth_dr=1e-6, batch=over == "batch")
    for structure in (1, 2, 3):
        part = slice(structure, structure + 1)
        ours = build_loss(DiceBinaryCrossEntropyConfig(over=over))(
            logits[:, part], (classes == structure).long(), annotated[:, :2]
        )
        close(ours.total, other(logits[:, part], one_hot[:, part]))


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_dice_and_focal_with_sigmoid(batch, over) -> None:
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceFocalLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=over == "batch")
    found = build_loss(DiceFocalConfig(activation="sigmoid", over=over))(logits[:, 1:], classes, annotated)
    close(found.total, other(logits[:, 1:], one_hot[:, 1:]))


def test_dice_and_focal_with_softmax(batch) -> None:
    """DiceFocalLoss(softmax=True) mixes a softmax Dice with a sigmoid focal loss, so its parts are put together here."""
    logits, classes, one_hot, annotated = batch
    dice = theirs.DiceLoss(include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True)
    focal = theirs.FocalLoss(gamma=2.0, use_softmax=True)
    found = build_loss(DiceFocalConfig())(logits, classes, annotated)
    close(found.total, dice(logits, one_hot) + 4 * focal(logits, one_hot))


def test_gradient_of_dice_and_cross_entropy(batch) -> None:
    logits, classes, one_hot, annotated = batch
    other = theirs.DiceCELoss(include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True)
    ours, theirs_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    build_loss(DiceCrossEntropyConfig())(ours, classes, annotated).total.backward()
    other(theirs_logits, one_hot).backward()
    torch.testing.assert_close(ours.grad, theirs_logits.grad, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("over", ["batch", "sample"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (1.0, 0.2)])
def test_tversky(batch, over, alpha, beta) -> None:
    logits, classes, one_hot, annotated = batch
    options = {"alpha": alpha, "beta": beta, "batch": over == "batch"}
    softmax = theirs.TverskyLoss(include_background=False, softmax=True, **options)(logits, one_hot)
    ours = build_loss(TverskyConfig(alpha=alpha, beta=beta, over=over))(logits, classes, annotated)
    close(ours.total, softmax)
    sigmoid = theirs.TverskyLoss(sigmoid=True, **options)(logits[:, 1:], one_hot[:, 1:])
    config = TverskyConfig(activation="sigmoid", alpha=alpha, beta=beta, over=over)
    close(build_loss(config)(logits[:, 1:], classes, annotated).total, sigmoid)
    entropy = F.binary_cross_entropy_with_logits(logits[:, 1:], one_hot[:, 1:])
    both = TverskyCrossEntropyConfig(activation="sigmoid", alpha=alpha, beta=beta, over=over, tversky_weight=0.5)
    close(build_loss(both)(logits[:, 1:], classes, annotated).total, 0.5 * sigmoid + entropy)


def test_tversky_of_halves_is_dice(batch) -> None:
    logits, classes, _, annotated = batch
    tversky = build_loss(TverskyConfig(alpha=0.5, beta=0.5, smooth=1e-5))(logits, classes, annotated)
    close(tversky.total, build_loss(DiceConfig(smooth=2e-5))(logits, classes, annotated).total)


@pytest.mark.parametrize("gamma", [1.0, 4 / 3, 3.0])
def test_focal_tversky(batch, gamma) -> None:
    """MONAI has none; it is a power of each structure's Tversky loss."""
    logits, classes, one_hot, annotated = batch
    other = theirs.TverskyLoss(
        include_background=False, softmax=True, alpha=0.3, beta=0.7, batch=True, reduction="none"
    )(logits, one_hot)
    found = build_loss(FocalTverskyConfig(gamma=gamma))(logits, classes, annotated)
    close(found.total, (other.clamp_min(1e-7) ** (1 / gamma)).mean())


# Regions: each one's binary problem, given to MONAI and torch by itself.

REGIONS = ((1, 2, 3), (2, 3), (3,))
NESTED = LabelSchema(
    tuple(Structure(name, values[0], region=values) for name, values in zip("abc", REGIONS, strict=True))
)


@pytest.fixture
def regions(batch):
    logits, classes, _, annotated = batch
    multi_hot = torch.stack([torch.isin(classes, torch.tensor(values)) for values in REGIONS], dim=1).double()
    return logits[:, 1:], classes, multi_hot, annotated


def one_by_one(loss, logits, multi_hot) -> torch.Tensor:
    return torch.stack([loss(logits[:, s : s + 1], multi_hot[:, s : s + 1]) for s in range(len(REGIONS))]).mean()


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_dice_of_regions(regions, over) -> None:
    logits, classes, multi_hot, annotated = regions
    other = theirs.DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=over == "batch")
    found = build_loss(DiceConfig(activation="sigmoid", over=over), NESTED)(logits, classes, annotated)
    close(found.total, one_by_one(other, logits, multi_hot))


def test_tversky_of_regions(regions) -> None:
    logits, classes, multi_hot, annotated = regions
    other = theirs.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True)
    found = build_loss(TverskyConfig(activation="sigmoid"), NESTED)(logits, classes, annotated)
    close(found.total, one_by_one(other, logits, multi_hot))


def test_binary_cross_entropy_of_regions(regions) -> None:
    logits, classes, multi_hot, annotated = regions
    found = build_loss(BinaryCrossEntropyConfig(), NESTED)(logits, classes, annotated)
    close(found.total, one_by_one(F.binary_cross_entropy_with_logits, logits, multi_hot))


def test_focal_loss_of_regions(regions) -> None:
    logits, classes, multi_hot, annotated = regions
    found = build_loss(FocalConfig(activation="sigmoid"), NESTED)(logits, classes, annotated)
    close(found.total, one_by_one(theirs.FocalLoss(gamma=2.0), logits, multi_hot))


def test_cross_entropy_with_ignored_voxels(batch) -> None:
    logits, classes, _, annotated = batch
    classes = classes.masked_fill(torch.rand(classes.shape) < 0.3, IGNORED)
    classes[0, 0] = IGNORED
    other = F.cross_entropy(logits, classes, ignore_index=IGNORED)
    close(CrossEntropyLoss("softmax")(logits, classes, annotated), other)


def test_dice_with_ignored_voxels(batch) -> None:
    """MONAI knows no ignored voxels; Dice over the batch does not care how voxels are arranged, so they are taken out."""
    logits, classes, one_hot, annotated = batch
    decided = torch.rand(classes.shape) < 0.7
    columns = [tensor.movedim(1, -1)[decided].T[None, ..., None] for tensor in (logits, one_hot)]
    other = theirs.DiceLoss(include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True)
    close(DiceLoss("softmax")(logits, classes.masked_fill(~decided, IGNORED), annotated), other(*columns))
