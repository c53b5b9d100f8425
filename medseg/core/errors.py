"""Every error that medseg raises on purpose, and how the program answers it.

MedsegError
├── ConfigError        a mistake in a command line, a config or a plan             exit 2
├── PluginError        a task or an optional dependency is missing or broken       exit 3
├── CheckpointError    a bundle or checkpoint cannot be used                       exit 4
├── TrainingError      training cannot go on: no data, non-finite loss             exit 5
├── ResourceError      out of disk or memory                                       exit 7
├── Interrupted        Ctrl-C or SIGTERM; what was done is kept                    exit 130
└── CaseError          one case cannot be processed; the others go on              exit 1 (6 if all)
    ├── ReadError      a file is missing, truncated, empty, not what it claims
    ├── GeometryError  the grid is impossible, or two grids that must agree do not
    ├── LabelError     a label map and its schema disagree
    ├── InferenceError the network gave no usable answer
    └── WriteError     a result could not be written; where that ends the whole job   exit 2

A message says what was expected, what was found, where, and what to do. It never holds a patient
identifier beyond the file name that the user gave.
"""

from __future__ import annotations


class MedsegError(Exception):
    """Base of all errors that medseg raises on purpose.

    Args:
        message: One sentence for a person: expected, found, where, what to do.
        code: Stable identifier for programs, such as ``read.truncated``.
    """

    exit_code = 2
    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])

    def __str__(self) -> str:
        return self.message


class ConfigError(MedsegError):
    """A mistake in a command line, a config or a plan."""

    exit_code = 2
    default_code = "config"


class PluginError(MedsegError):
    """A task or an optional dependency is missing or broken."""

    exit_code = 3
    default_code = "plugin"


class CheckpointError(MedsegError):
    """A bundle or a checkpoint cannot be used."""

    exit_code = 4
    default_code = "checkpoint"


class TrainingError(MedsegError):
    """Training cannot start or go on."""

    exit_code = 5
    default_code = "training"


class ResourceError(MedsegError):
    """The machine has too little disk or memory."""

    exit_code = 7
    default_code = "resource"


class CaseError(MedsegError):
    """One case cannot be processed; the other cases go on."""

    exit_code = 1
    default_code = "case"


class ReadError(CaseError):
    """A file is missing, truncated, empty, or not what it claims to be."""

    default_code = "read"


class GeometryError(CaseError):
    """A grid is impossible, or two grids that must agree do not."""

    default_code = "geometry"


class LabelError(CaseError):
    """A label map and its schema disagree."""

    default_code = "label"


class InferenceError(CaseError):
    """The network gave no usable answer for a case."""

    default_code = "inference"


class WriteError(CaseError):
    """A result could not be written: of one case, or, where ``--out`` is of no use, of the whole job."""

    exit_code = 2
    default_code = "write"


class Interrupted(MedsegError):  # noqa: N818  # an answer to a wish, not an error
    """Somebody asked for a stop; what was done is kept."""

    exit_code = 130
    default_code = "interrupted"
