"""Options that several commands share: their types, their words, how they are read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from medseg.core.errors import ConfigError
from medseg.core.units import duration_s


class SplitName(StrEnum):
    """A split of a dataset."""

    train = "train"
    validation = "validation"
    test = "test"


class FormatName(StrEnum):
    """A form of dataset."""

    native = "native"
    nnunet = "nnunet"
    msd = "msd"


class SurfaceName(StrEnum):
    """What a surface is made of."""

    elements = "elements"
    borders = "borders"


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``2h``."""
    try:
        return duration_s(text)
    except ConfigError as error:
        raise typer.BadParameter(error.message) from None


def codes_of(texts: list[str] | None) -> frozenset[str]:
    """The codes of ``--allow a,b --allow c``."""
    return frozenset(code.strip() for text in texts or () for code in text.split(",") if code.strip())


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only messages and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the whole traceback of an error.")]
Budget = Annotated[
    float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Time for all of it: 90s, 20m, 2h.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a config value; may be repeated.")
]
Split = Annotated[SplitName | None, typer.Option(help="Only the cases of this split of a dataset.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE,...", help="Go on where a problem of this code would stop; what was done is told."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
