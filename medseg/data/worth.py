"""What a plan is worth: the Dice that it can be expected to reach, as what five losses leave of 1. No torch.

The numbers compare plans for one dataset; as forecasts they are rough. Each coefficient says where it comes from, so that new
measurements can take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.core.geometry import Shape3, Spacing3
from medseg.data.plan import voxels_thick

RESOLUTION_LOSS, RESOLUTION_EXPONENT = 0.55, 1.5
"""Dice lost on a structure that is t voxels thick: .55 · t^-1.5, at most 1. Between what the references of three datasets lose when
taken to coarser grids and back as probabilities and as masks (a network gives something between the two): at 2.1 voxels .08
and .18, at 4.4 voxels .04 and .09, at 11 voxels .01 and .03 (`benchmarks/planner_predictions.py --grids`)."""

STEM_COARSENING = 1.25
"""A first stride of 2 blurs as a grid this much coarser would: its logits are interpolated by a learnt kernel, but from a
full-resolution image. Assumed."""

CONTEXT_LOSS = 0.05
"""Dice lost where a patch is infinitely small beside a case, in proportion to the share of its edges that it lacks. Small: on hn_oar
patches of whole cases did worse after as many steps, each three times as long, than patches of a third of them (.603 and .660)."""

CAPACITY_LOSS, CAPACITY_EXPONENT = 0.09, 0.25
"""Dice lost to a network of P million weights: .09 · P^-.25. It is .045 more at 1.4 than at 31 million, about what separates small
from full-size U-Nets after long training (FLARE's laptop winners against nnU-Net)."""

CONTOURS_LOSS = 0.07
"""Dice lost to contours that follow no one rule, whatever the plan: set so that the runs below are met. On its own training cases the
U-Net with 1.4 million weights had .76 after 8215 steps."""

LEARNING_LOSS = 140.0
"""Dice lost to a short run: 140 / n for n steps of :data:`USUAL_TISSUE`. The U-Net with 16 to 128 features on hn_oar, batch 2 of 64^3
voxels, had .60, .654 and .713 after 1000, 1635 and 4489 steps, and with today's augmentation .705 after 3058 and .721 after 8215;
here .60, .65, .71, .69 and .72. Larger U-Nets had .35 after 400 steps and .24 after 500 (docs/decisions/0005), where this says .39
and .46: wide networks begin more slowly."""

USUAL_TISSUE, TISSUE_EXPONENT = 0.56, 0.25
"""Cases' worth of tissue in those steps' patches together. A step that sees sixteen times as much counts for two: many small steps are
better than few large ones while time is short. Assumed; between none and the square root that independent voxels would give."""

MAX_STEPS = 250_000
"""Nothing more is learnt: nnU-Net's 1000 epochs of 250 steps."""


@dataclass(frozen=True)
class Run:
    """What decides how much can be learnt.

    Attributes:
        spacing_ijk_mm: Of the network's grid.
        patch_ijk: Voxels.
        stem_stride: First stride of the network.
        num_parameters: Of the network.
        batch_size: Patches a step.
        num_steps: Of the run.
    """

    spacing_ijk_mm: Spacing3
    patch_ijk: Shape3
    stem_stride: int
    num_parameters: int
    batch_size: int
    num_steps: int


def losses(run: Run, median_extent_mm: tuple[float, float, float], thicknesses_mm: Sequence[float]) -> dict[str, float]:
    """Dice that is lost, by reason; each of 0 to 1.

    Args:
        run: What is planned.
        median_extent_mm: Of the training cases.
        thicknesses_mm: Of the structures.
    """
    patch_mm = np.array(run.patch_ijk) * np.array(run.spacing_ijk_mm)
    share = np.minimum(1.0, patch_mm / np.array(median_extent_mm))
    blur = STEM_COARSENING if run.stem_stride > 1 else 1.0
    voxels = [voxels_thick(thickness, run.spacing_ijk_mm) / blur for thickness in thicknesses_mm]
    resolution = [min(1.0, RESOLUTION_LOSS * count**-RESOLUTION_EXPONENT) for count in voxels]
    steps = max(1, min(run.num_steps, MAX_STEPS))
    tissue = run.batch_size * float(share.prod()) / USUAL_TISSUE
    learning = LEARNING_LOSS / (steps * tissue**TISSUE_EXPONENT)
    millions = run.num_parameters / 1e6
    found = {
        "resolution": float(np.mean(resolution)) if resolution else 0.0,
        "context": CONTEXT_LOSS * (1 - float(share.prod()) ** (1 / 3)),
        "capacity": CAPACITY_LOSS * millions**-CAPACITY_EXPONENT,
        "training time": learning,
        "contours": CONTOURS_LOSS,
    }
    return {reason: min(1.0, loss) for reason, loss in found.items()}
