"""The import hook of conftest.py really checks shapes and types while the tests run."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap, Volume

GRID = Geometry.from_spacing((2, 3, 4), (1.0, 1.0, 1.0))


def test_a_dataclass_refuses_a_wrong_number_of_axes() -> None:
    with pytest.raises(TypeCheckError, match="array"):
        Volume(np.zeros((2, 3, 4)), GRID)


def test_a_dataclass_refuses_a_wrong_type_of_number() -> None:
    with pytest.raises(TypeCheckError, match="array"):
        LabelMap(np.zeros((2, 3, 4), dtype=np.float32), GRID)


def test_a_function_refuses_a_wrong_type_of_number() -> None:
    labels = LabelSchema((Structure("liver", 1),))
    with pytest.raises(TypeCheckError, match="array"):
        labels.to_classes(np.zeros(3, dtype=np.float32))


def test_what_is_right_passes() -> None:
    assert (
        LabelMap(np.zeros((2, 3, 4), dtype=np.uint8), GRID).array.shape
        == Volume(np.zeros((1, 2, 3, 4)), GRID).array.shape[1:]
    )
