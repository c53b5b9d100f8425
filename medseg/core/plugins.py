"""Finding the installed tasks by their entry points. Nothing of a task is imported before it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from medseg.core.environment import disabled_plugins
from medseg.core.errors import PluginError
from medseg.core.task import API_VERSION, TaskSpec

GROUP = "medseg.tasks"


@dataclass(frozen=True)
class InstalledTask:
    """What ``medseg tasks`` says of one.

    Attributes:
        name: Of the task.
        package: That brings it.
        version: Of that package.
        status: ``available``, ``missing`` (an optional dependency) or ``BROKEN``.
        detail: The summary, or what is wrong.
    """

    name: str
    package: str
    version: str
    status: str
    detail: str


def task_entry_points() -> dict[str, EntryPoint]:
    """The registered tasks that are not switched off, by name."""
    disabled = disabled_plugins()
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in disabled}


def find_task(name: str) -> TaskSpec:
    """A task by name.

    Raises:
        PluginError: It is not installed (the nearest names are told), lacks a dependency, or is broken.
    """
    entries = task_entry_points()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PluginError(f"no task '{name}' is installed; {hint}installed are: {', '.join(sorted(entries)) or 'none'}")
    spec = _load(entries[name])
    missing = _missing(spec.requires)
    if missing:
        raise PluginError(f"task '{name}' needs {', '.join(missing)}: pip install {' '.join(missing)}")
    return spec


def installed_tasks() -> list[InstalledTask]:
    """All registered tasks; a broken one is listed with its reason and hurts no other."""
    return [_described(entry) for _, entry in sorted(task_entry_points().items())]


def resolve_reference(reference: str) -> Any:
    """The object behind ``module:name``.

    Raises:
        PluginError: There is none.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"cannot load {reference}: {error}") from error


def _load(entry: EntryPoint) -> TaskSpec:
    try:
        spec = entry.load()
    except Exception as error:  # a plug-in may fail in any way; the reason is passed on
        raise PluginError(f"task '{entry.name}' is BROKEN: {type(error).__name__}: {error}") from error
    if not isinstance(spec, TaskSpec) or spec.name != entry.name:
        raise PluginError(f"task '{entry.name}' is BROKEN: {entry.value} is no TaskSpec of that name")
    if spec.api_version != API_VERSION:
        raise PluginError(f"task '{entry.name}' is written for API {spec.api_version}, this is {API_VERSION}")
    return spec


def _described(entry: EntryPoint) -> InstalledTask:
    package = entry.dist.name if entry.dist else "?"
    version = entry.dist.version if entry.dist else "?"
    try:
        spec = _load(entry)
    except PluginError as error:
        return InstalledTask(entry.name, package, version, "BROKEN", error.message)
    missing = _missing(spec.requires)
    if missing:
        return InstalledTask(entry.name, package, version, "missing", f"needs {', '.join(missing)}")
    return InstalledTask(entry.name, package, version, "available", spec.summary)


def _missing(modules: Iterable[str]) -> list[str]:
    return [module for module in modules if find_spec(module) is None]
