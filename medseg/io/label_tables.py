"""Tables of the structures beside the predictions: for medseg, for 3D Slicer and for ITK-SNAP."""

from __future__ import annotations

import json
from pathlib import Path

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema
from medseg.io.atomic import write_json_atomically, write_text_atomically
from medseg.io.label_names import label_entries, labels_of

JSON, SLICER, SNAP = "labels.json", "labels.ctbl", "labels.txt"

SNAP_HEADER = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


def write_label_tables(folder: Path, schema: LabelSchema) -> None:
    """Write ``labels.json``, ``labels.ctbl`` and ``labels.txt``."""
    write_json_atomically(folder / JSON, label_entries(schema))
    colors = [(s.value, s.name, tuple(int(s.color[i : i + 2], 16) for i in (1, 3, 5))) for s in schema.structures]
    slicer = ["# Color table", "0 background 0 0 0 0"]
    slicer += [f"{value} {name.replace(' ', '_')} {r} {g} {b} 255" for value, name, (r, g, b) in colors]
    write_text_atomically(folder / SLICER, "\n".join(slicer) + "\n", overwrite=True)
    snap = [
        f'{value:5d} {r:5d} {g:4d} {b:4d}        1  1  1    "{_quotable(name)}"' for value, name, (r, g, b) in colors
    ]
    write_text_atomically(folder / SNAP, SNAP_HEADER + "\n".join(snap) + "\n", overwrite=True)


def _quotable(name: str) -> str:
    """ITK-SNAP has no way to write a quotation mark inside a name."""
    return name.replace('"', "'")


def read_label_schema(folder: Path) -> LabelSchema:
    """The schema of a folder of predictions.

    Raises:
        ConfigError: It has no ``labels.json``, or that is damaged.
    """
    try:
        return labels_of(json.loads((folder / JSON).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {JSON}, which names the structures: compare with a dataset, or predict again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {JSON} of {folder}: {error}") from error
