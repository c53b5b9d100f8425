"""Where the graphs of a bundle's networks come from: out of the bundle, or made once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from medseg.core.environment import cache_folder
from medseg.core.errors import MedsegError, PluginError
from medseg.core.version import VERSION
from medseg.inference.description import ModelDescription
from medseg.inference.runtimes.catalogue import version_of
from medseg.io.atomic import write_bytes_atomically
from medseg.io.bundle import Bundle

FOLDER = "graphs"
"""In the cache folder."""

MAX_BYTES = 4 * 10**9
"""Of all graphs that are kept; what was unused for longest goes first."""

DIGEST_BYTES = 32
"""Of SHA-256, which is written behind each graph: a damaged one is made again."""


def has_graphs(bundle: Bundle) -> bool:
    """Whether the graphs are there, or can be made here."""
    if bundle.graphs or (version_of("torch") and _is_installed("onnx")):
        return True
    return all(_kept(path) is not None for path in _paths(bundle))


def graphs_of(bundle: Bundle, description: ModelDescription) -> tuple[bytes, ...]:
    """The networks of a bundle as ONNX files.

    Raises:
        CheckpointError: A network cannot be written as a graph.
        PluginError: There are none, and what makes them is not installed.
    """
    return bundle.graphs or tuple(
        _kept(path) or _made(bundle, description, index, path) for index, path in enumerate(_paths(bundle))
    )


def _paths(bundle: Bundle) -> list[Path | None]:
    """Of each network's graph in the cache; None where there is no cache."""
    folder = cache_folder()
    key = hashlib.sha256(f"{bundle.hash} {VERSION}".encode()).hexdigest()[:32]
    return [folder and folder / FOLDER / f"{key}-{index}.onnx" for index in range(len(bundle.weights))]


def _kept(path: Path | None) -> bytes | None:
    """A graph of the cache; None where it is not there or damaged."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # a cache that may only be read serves too
        path.touch()  # used now
    graph, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return graph if hashlib.sha256(graph).digest() == digest else None


def _made(bundle: Bundle, description: ModelDescription, index: int, path: Path | None) -> bytes:
    if version_of("torch") is None:
        raise PluginError(
            f"the bundle {bundle.folder.name} carries no graph of its network, and torch, which would make it, is not "
            "installed: predict once where torch and onnx are, or install both",
            code="plugin.runtime",
        )
    from medseg.inference.runtimes.graph import make_graph

    graph = make_graph(description, bundle.weights[index])
    if path is not None:
        with suppress(MedsegError, OSError):  # no room, not allowed: it is made again next time
            write_bytes_atomically(path, graph + hashlib.sha256(graph).digest(), overwrite=True)
            _evict(path.parent)
    return graph


def _evict(folder: Path) -> None:
    """Remove the graphs that were unused for longest, until the others fit."""
    total = 0
    for path in sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
