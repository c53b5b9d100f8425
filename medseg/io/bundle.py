"""Bundles: a trained model, ready to use. Nothing in one is executable, and loading one never unpickles."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from medseg.core.errors import CheckpointError, WriteError
from medseg.core.version import VERSION
from medseg.io.atomic import explained, temporary_name, write_bytes_atomically, write_json_atomically

SCHEMA_VERSION = 1

DESCRIPTION, WEIGHTS, PROBE = "bundle.json", "model.safetensors", "probe.npz"

PROBE_ARRAYS = ("image", "logits")

MAX_PROBE_BYTES = 2**28
"""A probe is a window of a few thousand voxels; more is a bomb."""


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
    *,
    overwrite: bool = True,
) -> None:
    """Write a bundle; one of that name is replaced when the new one is complete. Same content, same bytes.

    Raises:
        WriteError: It exists and may not be replaced, or cannot be written.
        ResourceError: The disk is full.
    """
    if folder.exists() and not overwrite:
        raise WriteError(f"the bundle {folder.name} is there already: give another --out", code="write.exists")
    packed, arrays = io.BytesIO(), dict[str, Any](probe)
    np.savez_compressed(packed, **arrays)
    contents = {
        # order="C" rather than ascontiguousarray, which makes a vector of a scalar
        WEIGHTS: save_tensors({name: np.asarray(weight, order="C") for name, weight in weights.items()}),
        PROBE: packed.getvalue(),
    }
    files = {name: _sha256(content) for name, content in contents.items()}
    document = {**manifest, "schema_version": SCHEMA_VERSION, "medseg_version": VERSION, "files": files}
    fresh = temporary_name(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for name, content in contents.items():
            write_bytes_atomically(fresh / name, content)
        write_json_atomically(fresh / DESCRIPTION, document)
        _swap_in(fresh, folder)
    except OSError as error:
        raise explained(error, folder) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle folder, or the bundle of a run folder.

    Raises:
        CheckpointError: A file is missing, altered or foreign, or another version of medseg wrote it.
    """
    folder = folder if (folder / DESCRIPTION).is_file() else folder / "bundle"
    text, manifest = _read_description(folder)
    contents = _checked_files(folder, manifest)
    try:
        weights = load_tensors(contents[WEIGHTS])
        probe = _unpacked_probe(contents[PROBE])
    except (SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, LookupError, OSError, EOFError) as error:
        raise CheckpointError(f"the bundle {folder} is damaged ({error}): copy it again") from error
    return Bundle(folder, manifest, weights, probe, _sha256(text))


def _unpacked_probe(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        sizes = {entry.filename: entry.file_size for entry in packed.infolist()}
    if set(sizes) != {f"{name}.npy" for name in PROBE_ARRAYS} or sum(sizes.values()) > MAX_PROBE_BYTES:
        raise ValueError(f"expected a small {PROBE} of {' and '.join(PROBE_ARRAYS)}, found {list(sizes)[:5]}")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in PROBE_ARRAYS}


def _swap_in(fresh: Path, folder: Path) -> None:
    """Put a complete folder in place of an older one, which is only moved aside until then."""
    if not folder.exists():
        fresh.replace(folder)
        return
    old = folder.with_name(f".old-{folder.name}")  # stays where a kill comes between: nothing of it is lost
    shutil.rmtree(old, ignore_errors=True)
    folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _read_description(folder: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        text = (folder / DESCRIPTION).read_bytes()
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder.parent} is neither a bundle nor a finished run: there is no {DESCRIPTION}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {DESCRIPTION} of {folder}: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"expected schema version {SCHEMA_VERSION} in the bundle {folder}, found {version!r}: use the medseg that "
            "wrote it, or train again"
        )
    return text, manifest


def _checked_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of the files that a bundle must have, each with the hash that its description gives."""
    hashes = manifest.get("files")
    if not isinstance(hashes, Mapping) or set(hashes) != {WEIGHTS, PROBE}:
        raise CheckpointError(
            f"expected the files {WEIGHTS} and {PROBE} in the bundle {folder}, found {hashes!r}"[:300]
        )
    found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    strange = sorted(found - {DESCRIPTION, *hashes})
    if strange:
        raise CheckpointError(f"the bundle {folder} holds {strange}, which it does not list: take them out")
    contents = {}
    for name, expected in hashes.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {name} of the bundle {folder}: {error.strerror}") from error
        if _sha256(contents[name]) != expected:
            raise CheckpointError(
                f"{name} of the bundle {folder} is not the file that was written: copy the bundle again"
            )
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
