"""Bundles: a trained model, ready to use. Nothing in one is executable, and loading one never unpickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from medseg.core.errors import CheckpointError
from medseg.core.version import VERSION
from medseg.io.atomic import write_atomically, write_json_atomically

SCHEMA_VERSION = 1

DESCRIPTION, WEIGHTS, PROBE = "bundle.json", "model.safetensors", "probe.npz"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle, read and checked.

    Attributes:
        folder: Where it is.
        manifest: ``bundle.json``.
        weights: Tensors by name.
        probe: A small input ``image`` and its ``logits``.
        hash: SHA-256 of ``bundle.json``, which holds those of all other files.
    """

    folder: Path
    manifest: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    probe: Mapping[str, np.ndarray]
    hash: str


def write_bundle(
    folder: Path,
    manifest: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    probe: Mapping[str, np.ndarray],
) -> None:
    """Write a bundle; one of that name is replaced when the new one is complete.

    Raises:
        WriteError, ResourceError: It cannot be written.
    """
    fresh = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **dict(probe))
    contents = {
        WEIGHTS: save_tensors({name: np.ascontiguousarray(w) for name, w in weights.items()}),
        PROBE: packed.getvalue(),
    }
    try:
        for name, content in contents.items():
            write_atomically(fresh / name, lambda path, content=content: _write_bytes(path, content))  # type: ignore[misc]
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        document = {**manifest, "schema_version": SCHEMA_VERSION, "medseg_version": VERSION, "files": files}
        write_json_atomically(fresh / DESCRIPTION, document)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle folder, or the bundle of a run folder.

    Raises:
        CheckpointError: A file is missing, altered or foreign, or another version of medseg wrote it.
    """
    folder = folder if (folder / DESCRIPTION).is_file() else folder / "bundle"
    try:
        text = (folder / DESCRIPTION).read_bytes()
        manifest = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder.parent} is neither a bundle nor a finished run: there is no {DESCRIPTION}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {DESCRIPTION} of {folder}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"the bundle {folder} was written by another version of medseg: train or export it again")
    contents = _checked_files(folder, manifest)
    try:
        weights = load_tensors(contents[WEIGHTS])
        with np.load(io.BytesIO(contents[PROBE]), allow_pickle=False) as archive:
            probe = {name: archive[name] for name in archive.files}
    except (SafetensorError, ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"the bundle {folder} is damaged: {error}") from error
    return Bundle(folder, manifest, weights, probe, hashlib.sha256(text).hexdigest())


def _checked_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of the files that a bundle must have, each with the hash that its description gives."""
    hashes = manifest.get("files")
    if not isinstance(hashes, Mapping) or set(hashes) != {WEIGHTS, PROBE}:
        raise CheckpointError(
            f"expected the files {WEIGHTS} and {PROBE} in the bundle {folder}, found {hashes!r}"[:300]
        )
    contents = {}
    for name, expected in hashes.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {name} of the bundle {folder}: {error.strerror}") from error
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise CheckpointError(
                f"{name} of the bundle {folder} is not the file that was written: copy the bundle again"
            )
    return contents


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
