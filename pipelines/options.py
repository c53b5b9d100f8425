"""Options that several commands share: their types, their words, how they are read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from medseg.core.errors import ConfigError
from medseg.core.units import duration_s, size_bytes


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


class RuntimeOption(StrEnum):
    """What computes the logits."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"
    onnx = "onnx"


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


def parse_size(text: str) -> int:
    """Bytes of ``512M``, ``4G``."""
    try:
        return size_bytes(text)
    except ConfigError as error:
        raise typer.BadParameter(error.message) from None


def parse_fold(text: str) -> int | Literal["each", "none"]:
    """A fold: its number from 0, ``each`` or ``none``."""
    match text:
        case "each" | "none":
            return text
        case _ if text.isdecimal():
            return int(text)
    raise typer.BadParameter(f"expected the number of a fold from 0, each or none, found '{text}'")


def parse_import_fold(text: str) -> str:
    """A fold of a trained model: its number from 0, or ``all``."""
    if text == "all" or text.isdecimal():
        return text if text == "all" else str(int(text))
    raise typer.BadParameter(f"expected the number of a fold from 0, or all, found '{text}'")


def codes_of(texts: list[str] | None) -> frozenset[str]:
    """The codes of ``--allow a,b --allow c``."""
    return frozenset(code.strip() for text in texts or () for code in text.split(",") if code.strip())


def names_of(texts: list[str] | None) -> tuple[str, ...] | None:
    """The names of ``--structures A,B --structures C``; None where the option is not given."""
    return None if texts is None else tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only messages and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the whole traceback of an error.")]
Budget = Annotated[
    float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Time for all of it: 90s, 20m, 2h.")
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_size, metavar="SIZE", help="Most that training may take: 512M, 8G; default: what is free."
    ),
]
Fold = Annotated[
    Any,  # what parse_fold gives; typer knows no unions
    typer.Option(
        parser=parse_fold, metavar="K|each|none", help="Validate on one fold, on each in turn, or on no case at all."
    ),
]
ImportFold = Annotated[
    list[str] | None,
    typer.Option(
        "--fold",
        parser=parse_import_fold,
        metavar="K|all",
        help="Only this fold; may be repeated. Default: all that are there.",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a config value; may be repeated.")
]
Split = Annotated[SplitName | None, typer.Option(help="Only the cases of this split of a dataset.")]
Structures = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B", help="Only these in the label maps; it is decided among all of the model's structures."
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE,...", help="Go on where a problem of this code would stop; what was done is told."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
