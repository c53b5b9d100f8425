"""Our joining of MONAI's parts against MONAI's own networks, with the same weights."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet
from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt
from monai.networks.nets.segresnet_ds import SegResNetDS
from torch.nn.functional import interpolate

from medseg.models.from_monai import DynUNet, MedNeXt, SegResNet

STRIDES = [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
FEATURES = [4, 6, 8, 10]


@pytest.mark.parametrize("residual", [False, True])
def test_dynunet(residual: bool) -> None:
    ours = DynUNet(2, 3, FEATURES, STRIDES, residual_blocks=residual, deep_supervision=True)
    theirs = MonaiDynUNet(
        3, 2, 3, [[3] * 3] * 4, STRIDES, STRIDES[1:], FEATURES,
        res_block=residual, deep_supervision=True, deep_supr_num=2,
    )  # fmt: skip
    pairs = [
        *zip(ours.encoder, [theirs.input_block, *theirs.downsamples, theirs.bottleneck], strict=True),
        *zip(ours.decoder, theirs.upsamples, strict=True),
        (ours.head, theirs.output_block),
    ]
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())
    for mine, other in zip(ours.deep_heads, theirs.deep_supervision_heads, strict=True):
        other.conv.conv.load_state_dict(mine.state_dict())
    image = torch.randn(1, 2, 16, 16, 8)
    found, stacked = ours(image), theirs(image).unbind(dim=1)
    assert len(found) == len(stacked) == 3
    for mine, other in zip(found, stacked, strict=True):
        torch.testing.assert_close(interpolate(mine, image.shape[2:]), other)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))
    held = sum(tensor.numel() for tensor in ours.state_dict().values())
    assert held == sum(parameter.numel() for parameter in ours.parameters()), "each weight once"


def test_segresnet() -> None:
    ours = SegResNet(2, 3, 4, (1, 2, 2), num_axes=3, deep_supervision=True)
    theirs = SegResNetDS(3, 4, 2, 3, norm="instance", blocks_down=(1, 2, 2), dsdepth=2)
    theirs.encoder.load_state_dict(ours.encoder.state_dict())
    theirs.up_layers[0].load_state_dict(ours.decoder[0].state_dict(), strict=False)
    theirs.up_layers[1].load_state_dict(ours.decoder[1].state_dict())
    theirs.up_layers[0]["head"].load_state_dict(ours.deep_heads[0].state_dict())
    agree(ours, theirs)


def test_mednext() -> None:
    ours = MedNeXt(2, 3, 4, (1, 2, 1), expansion=2, kernel=(3, 3, 3), deep_supervision=True)
    theirs = MonaiMedNeXt(
        3, 4, 2, 3, kernel_size=3, use_residual_connection=True, deep_supervision=True,
        blocks_down=(1, 2), blocks_bottleneck=1, blocks_up=(2, 1),
    )  # fmt: skip
    names = {"enc_stages": "encoder", "down_blocks": "downsampling", "up_blocks": "upsampling", "dec_stages": "decoder"}
    names |= {"out_0": "head", "stem": "stem", "bottleneck": "bottleneck"}
    for name, mine in names.items():
        getattr(theirs, name).load_state_dict(getattr(ours, mine).state_dict())
    head = ours.deep_heads[0].state_dict()  # MONAI's is a transposed convolution of the same 1³
    theirs.out_blocks[1].conv_out.load_state_dict({"weight": head["weight"].transpose(0, 1), "bias": head["bias"]})
    agree(ours, theirs)


def agree(ours, theirs) -> None:
    """MedNeXt of MONAI has one more output, from the coarsest stage of all."""
    image = torch.randn(1, 2, 16, 8, 8)
    for mine, other in zip(ours(image), theirs(image), strict=False):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))
