"""Checkpoints that other programs wrote with torch.save: read so that nothing in them is executed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import CheckpointError

NUMBER_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
                "float16", "float32", "float64")  # fmt: skip
"""NumPy's types whose scalars are admitted: numbers of a fixed size. Objects are not."""

OLD_MODULE, NEW_MODULE = "numpy.core.multiarray", "numpy._core.multiarray"
"""Where NumPy's scalars say that they come from, before version 2 and since."""


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint: tensors, plain Python values, NumPy scalars.

    torch's weights-only loader knows a closed list of names; :func:`admitted_globals` is added to it. Tensors stay in the
    file until they are looked at, so the state of an optimiser costs nothing.

    Raises:
        CheckpointError: It is damaged, holds anything else, or is no mapping.
    """
    import torch

    try:
        with torch.serialization.safe_globals(admitted_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or hostile file makes the loader raise
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it asks for {foreign[1]}, which is neither a tensor nor a number" if foreign else type(error).__name__
        )
        raise CheckpointError(
            f"{path.parent.name}/{path.name} is damaged, or holds more than weights and numbers ({reason}): it was not "
            "loaded, and nothing in it was executed"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"expected named values in {path.parent.name}/{path.name}, found another form")
    return content


def admitted_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What may be made from a file besides what torch admits: NumPy scalars of fixed size, under old and new names.

    torch admits ``_codecs.encode`` itself, which gives the bytes of such a scalar.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # the function has no public name
    types = [type(np.dtype(name)) for name in NUMBER_TYPES]
    return [(scalar, f"{OLD_MODULE}.scalar"), (scalar, f"{NEW_MODULE}.scalar"), np.dtype, *types]
