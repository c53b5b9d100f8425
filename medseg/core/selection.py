"""Some structures of a schema: what a label map holds when only these are asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Integer

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema, innermost
from medseg.core.shapes import IJK

LONGEST_LIST = 20
"""More structures are not spelt out in a message."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Structures that are kept of all that were decided among.

    Attributes:
        labels: Of the structures that are kept, in the order of the schema, with their own values.
        numbers: What each channel number of the whole schema becomes, as a channel number of ``labels``. Where regions overlap, a
            voxel belongs to the innermost of its regions that are kept.
    """

    labels: LabelSchema
    numbers: Integer[np.ndarray, " channels"]

    @classmethod
    def of(cls, schema: LabelSchema, names: Iterable[str] | None = None) -> Selection:
        """Select by name; None: all.

        Raises:
            ConfigError: A name is no structure's, or there is no name.
        """
        if names is None:
            return cls(schema, np.arange(schema.num_channels))
        wanted = set(names)
        _check(wanted, schema)
        kept = np.flatnonzero([True, *(name in wanted for name in schema.names)])
        belongs = schema.counts_as[:, kept[1:]]
        numbers = np.array([innermost(belongs[kept], of_voxel) for of_voxel in belongs])
        structures = tuple(
            # A counterpart that is not there is no counterpart.
            replace(structure, mirror=structure.mirror if structure.mirror in wanted else None)
            for structure in schema.structures
            if structure.name in wanted
        )
        priority = tuple(name for name in schema.priority if name in wanted)
        return cls(LabelSchema(structures, schema.ignore_value, priority), numbers)

    def apply(self, channels: Integer[np.ndarray, IJK]) -> None:
        """Channel numbers of the whole schema to those of :attr:`labels`, in place."""
        if len(self.numbers) == self.labels.num_channels:
            return
        table = self.numbers.astype(channels.dtype)
        for plane in np.moveaxis(channels, -1, 0):  # NumPy turns what it indexes with into 64 bits
            plane[...] = table[plane]


def _check(wanted: set[str], schema: LabelSchema) -> None:
    if not wanted:
        raise ConfigError("expected at least one structure to keep, found none")
    by_lower = {name.lower(): name for name in schema.names}
    told = []
    for name in sorted(wanted - set(schema.names)):
        near = difflib.get_close_matches(name.lower(), by_lower, n=1)
        told.append(f"'{name}'" + (f" (did you mean '{by_lower[near[0]]}'?)" if near else ""))
    if told:
        listed = ", ".join(schema.names[:LONGEST_LIST]) + (", ..." if len(schema.names) > LONGEST_LIST else "")
        raise ConfigError(f"the model has no structure {', '.join(told)}; it has {listed}")
