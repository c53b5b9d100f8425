"""Patches as the network sees them: the quickest way to notice wrong labels, windows, or left and right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from medseg.core.labels import IGNORED, LabelSchema
from medseg.core.shapes import CIJK, IJK
from medseg.report.figures import new_figure, plain, write_png
from medseg.report.planes import CONVENTION, PLANES, write_letters

MAX_PATCHES = 8
"""Rows; more would be too small to look at."""

PANEL_INCHES = 2.5

IGNORED_COLOR = "white"


def draw_first_batches(
    path: Path,
    images: Sequence[Float[np.ndarray, CIJK]],
    classes: Sequence[Integer[np.ndarray, IJK]],
    schema: LabelSchema,
) -> None:
    """Three planes through the foreground of each patch, with the contours of its labels; voxels are drawn square.

    Args:
        path: PNG to write.
        images: Augmented, normalised patches, axes in R, A, S order; the first channel is shown.
        classes: Class numbers; ignored voxels are outlined in white.
        schema: The structures.
    """
    num_rows = min(len(images), MAX_PATCHES)
    figure = new_figure(3 * PANEL_INCHES + 0.6, 0.9 + PANEL_INCHES * num_rows)
    panels = figure.subplots(num_rows, 3, squeeze=False)
    for row, image, labels in zip(panels, images[:num_rows], classes[:num_rows], strict=True):
        _draw_patch(row, image[0], labels, schema)
    for panel, plane in zip(panels[0], PLANES, strict=True):
        panel.set_title(plane.name, fontsize=9)
    keys = [Line2D([], [], color=s.color, lw=2, label=plain(s.name)) for s in schema.structures]
    if schema.ignore_value is not None:
        outline = [Stroke(linewidth=3, foreground="black"), Normal()]
        keys.append(Line2D([], [], color=IGNORED_COLOR, lw=2, label="ignored", path_effects=outline))
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"patches as the network sees them  ·  {CONVENTION}", fontsize=10, x=0.02, ha="left")
    write_png(path, figure, dpi=80.0)


def _draw_patch(row: Any, image: np.ndarray, labels: np.ndarray, schema: LabelSchema) -> None:
    inside = labels > 0
    low, high = float(image.min()), float(image.max())
    for panel, plane in zip(row, PLANES, strict=True):
        sizes = inside.sum(axis=tuple(axis for axis in range(3) if axis != plane.across))
        index = int(sizes.argmax()) if sizes.any() else len(sizes) // 2
        panel.imshow(plane.slice_of(image, index), cmap="gray", vmin=low, vmax=high, origin="lower")
        shown = np.pad(plane.slice_of(labels, index), 1)  # closes the lines at the edge of the patch
        x, y = (np.arange(size) - 1.0 for size in shown.shape[::-1])
        ignored = shown == IGNORED
        masks = [(ignored, IGNORED_COLOR)]
        for channel, structure in enumerate(schema.structures, start=1):
            masks.append((schema.membership[shown, channel] & ~ignored, structure.color))
        for mask, color in masks:
            if mask.any():
                panel.contour(x, y, mask.astype(np.float64), levels=[0.5], colors=[color], linewidths=1.2)
        rows, columns = plane.slice_of(labels, index).shape
        panel.set(
            xticks=[], yticks=[], xlim=(columns - 0.5, -0.5), ylim=(-0.5, rows - 0.5)
        )  # x turned: R, A to the left
        write_letters(panel, plane)
    size = "×".join(str(length) for length in image.shape)
    row[0].set_ylabel(f"{size} voxels\n{low:.1f} to {high:.1f}, mean {image.mean():.1f}", fontsize=8)
