"""How a command ends: its result or its refusal on the right stream, and its exit code."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from medseg.core.errors import Interrupted, MedsegError, PluginError
from pipelines.outcome import Outcome


def answer(job: Callable[[], Outcome], *, as_json: bool, verbose: bool) -> None:
    """Run a job, print its result, and end with its exit code."""
    try:
        outcome = job()
    except MedsegError as error:
        _fail(error, as_json, verbose)
    except ModuleNotFoundError as error:
        # Medseg without all that it is installed with, as where prediction needs no torch.
        name = (error.name or "").split(".")[0]
        if name in ("", "medseg", "pipelines"):
            raise
        _fail(
            PluginError(f"this needs the module {name}, which is not installed: pip install medseg"), as_json, verbose
        )
    except KeyboardInterrupt:
        _fail(Interrupted("interrupted"), as_json, verbose)
    except OSError as error:  # what no room could explain better, such as a log that meets a full disk
        from medseg.io.atomic import explained

        _fail(explained(error, Path(str(error.filename or "a file"))), as_json, verbose)
    if as_json:
        typer.echo(json.dumps(outcome.result, default=str))
    elif outcome.text:
        typer.echo(outcome.text)
    raise typer.Exit(outcome.exit_code)


def _fail(error: MedsegError, as_json: bool, verbose: bool) -> NoReturn:
    """Say what is wrong, and end; a program that reads JSON gets its one object here too."""
    if verbose:
        traceback.print_exc()
    typer.echo(error.message if isinstance(error, Interrupted) else f"error: {error.message}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": {"code": error.code, "message": error.message}}))
    raise typer.Exit(error.exit_code) from None
