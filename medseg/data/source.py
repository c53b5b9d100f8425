"""Prepared cases as the sampler sees them: read by patch, wherever they are kept. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Integer

from medseg.core.case import PreparedCase
from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation, surrounded
from medseg.core.shapes import CIJK, IJK
from medseg.data.container import StoredCase
from medseg.data.prepare import expanded
from medseg.data.sampling import ForegroundVoxels


@runtime_checkable
class PatchSource(Protocol):
    """A prepared, labelled case that patches are cut from."""

    @property
    def id(self) -> str:
        """Unique in its dataset."""
        ...

    @property
    def annotated(self) -> Bool[np.ndarray, " classes"]:
        """Per channel, whether somebody looked for it."""
        ...

    @property
    def shape_ijk(self) -> Shape3:
        """Of the network's grid."""
        ...

    @property
    def foreground(self) -> ForegroundVoxels:
        """Voxels that a patch may be centred on."""
        ...

    def read(self, place: PatchLocation) -> tuple[Float[np.ndarray, CIJK], Integer[np.ndarray, IJK]]:
        """Normalised intensities and class numbers of a box, the caller's own to change.

        Beyond the case each channel has its smallest value (air), and the class is 0.
        """
        ...


@dataclass(frozen=True, eq=False)
class MemorySource:
    """A prepared case in memory.

    Attributes:
        case: With its reference.
    """

    case: PreparedCase

    @property
    def id(self) -> str:
        """The case's."""
        return self.case.id

    @property
    def annotated(self) -> Bool[np.ndarray, " classes"]:
        """The case's."""
        return self.case.annotated

    @property
    def shape_ijk(self) -> Shape3:
        """The case's."""
        return self.case.geometry.shape_ijk

    @cached_property
    def foreground(self) -> ForegroundVoxels:
        """Found once."""
        return ForegroundVoxels.of(self.case)

    @cached_property
    def _lowest(self) -> tuple[float, ...]:
        return tuple(float(channel.min()) for channel in self.case.image)

    def read(self, place: PatchLocation) -> tuple[Float[np.ndarray, CIJK], Integer[np.ndarray, IJK]]:
        """Cut out of the arrays."""
        assert self.case.classes is not None  # training cases are labelled; tasks see to it
        shape = self.shape_ijk
        box = place.inside(shape).to_slices()
        image, classes = self.case.image[(slice(None), *box)], self.case.classes[box]
        return surrounded(image, place, shape, self._lowest), surrounded(classes[None], place, shape, [0.0])[0]

    def prepared(self) -> PreparedCase:
        """All of the case."""
        return self.case


@dataclass(frozen=True, eq=False)
class StoredSource:
    """A prepared case in its file: a patch costs the blocks that it touches, the case itself no memory.

    Attributes:
        case: In the cache.
    """

    case: StoredCase

    @property
    def id(self) -> str:
        """The case's."""
        return self.case.id

    @property
    def annotated(self) -> Bool[np.ndarray, " classes"]:
        """The case's."""
        return self.case.annotated

    @property
    def shape_ijk(self) -> Shape3:
        """The case's."""
        return self.case.shape_ijk

    @property
    def foreground(self) -> ForegroundVoxels:
        """As stored with the case."""
        return self.case.foreground

    def read(self, place: PatchLocation) -> tuple[Float[np.ndarray, CIJK], Integer[np.ndarray, IJK]]:
        """Read from the file."""
        shape = self.shape_ijk
        image, classes = self.case.read_inside(place.inside(shape))
        return surrounded(image, place, shape, self.case.lowest), surrounded(classes[None], place, shape, [0.0])[0]

    def prepared(self) -> PreparedCase:
        """All of the case, read now."""
        return expanded(self.case.compact())
