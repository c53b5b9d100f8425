"""How the three planes of a volume are shown: as radiologists look, facing the patient, head up.

The patient's right is on the viewer's left in axial and coronal planes, and the front is on the left in sagittal ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes as Panel

from medseg.core.shapes import IJK

CONVENTION = "patient's right on the viewer's left"
"""What every picture says of itself."""


@dataclass(frozen=True)
class Plane:
    """One way to cut a volume whose axes are R, A, S.

    Attributes:
        name: For people.
        across: The axis that it cuts.
        along: The axes that run along the picture's x and y.
        letters: Directions at the picture's left, right, bottom and top, once x is turned for the viewer.
    """

    name: str
    across: int
    along: tuple[int, int]
    letters: tuple[str, str, str, str]

    def slice_of(self, array: Shaped[np.ndarray, IJK], index: int) -> Shaped[np.ndarray, "rows columns"]:
        """A slice with the picture's y down the rows and x along the columns."""
        # take() would copy a volume whose axes were turned, as a whole, for every slice.
        shown: np.ndarray = array[(slice(None),) * self.across + (index,)].T
        return shown


PLANES = (
    Plane("axial", 2, (0, 1), ("R", "L", "P", "A")),
    Plane("coronal", 1, (0, 2), ("R", "L", "I", "S")),
    Plane("sagittal", 0, (1, 2), ("A", "P", "I", "S")),
)


def write_letters(panel: Panel, plane: Plane) -> None:
    """Name the directions at the four edges."""
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.035), (0.5, 0.965))
    for letter, (x, y) in zip(plane.letters, places, strict=True):
        panel.text(
            x, y, letter, transform=panel.transAxes, color="gold", fontsize=9, weight="bold", ha="center", va="center"
        )  # fmt: skip
