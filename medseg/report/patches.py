"""Patches as the network sees them: the quickest way to notice wrong labels, windows, or left and right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from medseg.core.labels import LabelSchema
from medseg.core.shapes import CIJK, IJK
from medseg.report.figures import new_figure, write_png
from medseg.report.overlays import PLANES


def draw_first_batches(
    path: Path,
    images: Sequence[Float[np.ndarray, CIJK]],
    channels: Sequence[Integer[np.ndarray, IJK]],
    schema: LabelSchema,
) -> None:
    """Three planes through each patch, with the contours of its labels.

    Args:
        path: PNG to write.
        images: Augmented, normalised patches; the first channel is shown.
        channels: Channel numbers.
        schema: The structures.
    """
    figure = new_figure(8.4, 0.5 + 2.8 * len(images))
    panels = figure.subplots(len(images), 3, squeeze=False)
    for row, image, labels in zip(panels, images, channels, strict=True):
        inside = labels > 0
        for panel, (name, across, _, _) in zip(row, PLANES, strict=True):
            index = int(inside.sum(axis=tuple(axis for axis in range(3) if axis != across)).argmax())
            panel.imshow(image[0].take(index, axis=across).T, cmap="gray", origin="lower")
            shown = labels.take(index, axis=across).T
            for channel, structure in enumerate(schema.structures, start=1):
                if (shown == channel).any():
                    panel.contour(shown == channel, levels=[0.5], colors=[structure.color], linewidths=1.2)
            panel.invert_xaxis()
            panel.set(xticks=[], yticks=[], title=name)
            panel.title.set_fontsize(8)
        row[0].set_ylabel(f"{image[0].min():.1f} to {image[0].max():.1f}, mean {image[0].mean():.1f}", fontsize=8)
    handles = [panels[0][0].plot([], [], color=s.color, label=s.name)[0] for s in schema.structures]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    write_png(path, figure, dpi=80)
