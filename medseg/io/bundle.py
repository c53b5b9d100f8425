"""Bundles: a trained model, ready to use. Nothing in one is executable, and loading one never unpickles.

A model is one network, or several of one kind whose logits are averaged (an ensemble): one file of weights each.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from medseg.core.errors import CheckpointError
from medseg.core.version import VERSION
from medseg.io.atomic import explained, temporary_name, write_bytes_atomically, write_json_atomically
from medseg.io.resources import bundled_models

SCHEMA_VERSION = 3
"""Of what is written. 2 added ensembles and what is done after the network, which a reader of 1 would not do; 3 added graphs."""

READABLE_VERSIONS = (1, 2, 3)

DESCRIPTION, WEIGHTS, PROBE, CARD = "bundle.json", "model.safetensors", "probe.npz", "card.md"

GRAPHS = "runtimes"
"""Folder of the networks as graphs for other runtimes than torch, if the bundle carries them."""

Storage = Literal["float32", "float16"]
"""How weights lie in the file: as they are, or rounded to half the size. Networks run in float32 either way."""

PROBE_ARRAYS = ("image", "logits")

MAX_PROBE_BYTES = 2**28
"""A probe is a window of a few thousand voxels; more is a bomb."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle, read and checked.

    Attributes:
        folder: Where it is.
        manifest: ``bundle.json``.
        weights: Of each network, tensors by name as they lie in the file; one entry unless it is an ensemble.
        probe: A small input ``image`` and its ``logits``; an ensemble's are the mean.
        hash: SHA-256 of ``bundle.json``, which holds those of all other files.
        card: For people: data, figures, what it must not be used for (Markdown). None where it has none.
        graphs: The networks as ONNX files, one for each; empty where it has none.
    """

    folder: Path
    manifest: Mapping[str, Any]
    weights: tuple[Mapping[str, np.ndarray], ...]
    probe: Mapping[str, np.ndarray]
    hash: str
    card: str | None = None
    graphs: tuple[bytes, ...] = ()


def write_bundle(
    folder: Path,
    manifest: Mapping[str, Any],
    members: Sequence[Mapping[str, np.ndarray]],
    probe: Mapping[str, np.ndarray],
    *,
    storage: Storage = "float32",
    card: str | None = None,
    graphs: Sequence[bytes] = (),
) -> None:
    """Write a bundle; one of that name is replaced when the new one is complete. Same content, same bytes.

    Args:
        folder: Of the bundle.
        manifest: What the model says of itself.
        members: The weights of each network.
        probe: A small input and the logits that the weights *in the file* give: see :func:`stored_weights`.
        storage: How weights lie in the file.
        card: For people, in Markdown.
        graphs: The networks as ONNX files, for prediction without torch; one for each, or none.

    Raises:
        CheckpointError: A weight is not finite, or too large for the storage.
        WriteError: It cannot be written.
        ResourceError: The disk is full.
    """
    packed, arrays = io.BytesIO(), dict[str, Any](probe)
    np.savez_compressed(packed, **arrays)
    names = member_names(len(members))
    contents = {
        name: save_tensors(stored_weights(weights, storage)) for name, weights in zip(names, members, strict=True)
    }
    contents[PROBE] = packed.getvalue()
    if card is not None:
        contents[CARD] = card.encode()
    if graphs:
        contents |= dict(zip(graph_names(len(members)), graphs, strict=True))
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


def stored_weights(weights: Mapping[str, np.ndarray], storage: Storage) -> dict[str, np.ndarray]:
    """Weights as a bundle's file will hold them: contiguous, rounded where the storage is; whole numbers stay.

    Raises:
        CheckpointError: A weight is not finite, or too large for the storage.
    """
    return {name: _stored(name, weight, storage) for name, weight in weights.items()}


def _stored(name: str, weight: np.ndarray, storage: Storage) -> np.ndarray:
    weight = np.asarray(weight, order="C")  # rather than ascontiguousarray, which makes a vector of a scalar
    if weight.dtype.kind != "f":
        return weight
    if not np.isfinite(weight).all():
        raise CheckpointError(f"the weights '{name}' are not all finite: such a network is of no use, train it again")
    if storage == "float32":
        return weight
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16)
    if not np.isfinite(rounded).all():
        largest, limit = float(np.abs(weight).max()), float(np.finfo(np.float16).max)
        raise CheckpointError(
            f"a weight of '{name}' is {largest:.6g}, and float16 ends at {limit:.0f}: store them as float32"
        )
    return rounded


def member_names(num_members: int) -> tuple[str, ...]:
    """Files of the weights: ``model.safetensors`` of one network, ``model_0.safetensors`` and so on of several.

    Raises:
        CheckpointError: There is no network.
    """
    if num_members < 1:
        raise CheckpointError("a bundle needs the weights of at least one network")
    return (WEIGHTS,) if num_members == 1 else tuple(f"model_{index}.safetensors" for index in range(num_members))


def graph_names(num_members: int) -> tuple[str, ...]:
    """Files of the graphs, named as those of the weights."""
    return tuple(f"{GRAPHS}/{Path(name).stem}.onnx" for name in member_names(num_members))


def find_bundle(reference: str | Path) -> Path:
    """The folder of a bundle, a run's bundle, or a bundled model of that name.

    A bundle or run of that name in the working directory comes first: what a user made is what a user means.

    Raises:
        CheckpointError: It is none of these; bundled models are listed, the nearest first.
    """
    folder = Path(reference)
    if (folder / DESCRIPTION).is_file():
        return folder
    is_run = any((folder / name).exists() for name in ("bundle", "config.yaml"))  # finished or not
    models = {model.name: model.folder for model in bundled_models()}
    if str(reference) in models and not is_run:
        return models[str(reference)]
    if folder.exists():
        return folder / "bundle"
    near = difflib.get_close_matches(str(reference), models, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    known = f"bundled models are: {', '.join(models)}" if models else "no model is bundled with this version"
    raise CheckpointError(f"{folder} is neither a bundle nor a finished run, for it does not exist; {hint}{known}")


def read_bundle(reference: str | Path) -> Bundle:
    """Read a bundle folder, the bundle of a run folder, or a bundled model by its name.

    Raises:
        CheckpointError: A file is missing, altered or foreign, or another version of medseg wrote it.
    """
    folder = find_bundle(reference)
    text, manifest = _read_description(folder)
    contents = _checked_files(folder, manifest)
    names = member_names(_num_members(contents))
    try:
        weights = tuple(load_tensors(contents[name]) for name in names)
        probe = _unpacked_probe(contents[PROBE])
        card = contents[CARD].decode() if CARD in contents else None
    except (SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, LookupError, OSError, EOFError) as error:
        raise CheckpointError(f"the bundle {folder} is damaged ({error}): copy it again") from error
    graphs = tuple(contents[name] for name in graph_names(len(names)) if name in contents)
    return Bundle(folder, manifest, weights, probe, _sha256(text), card, graphs)


def _num_members(names: Iterable[str]) -> int:
    return sum(name.endswith(Path(WEIGHTS).suffix) for name in names)


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
    if version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"expected schema version {' or '.join(map(str, READABLE_VERSIONS))} in the bundle {folder}, found {version!r}: use the medseg that "
            "wrote it, or train again"
        )
    return text, manifest


def _checked_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of the files that a bundle must have, each with the hash that its description gives."""
    found = manifest.get("files")
    hashes: Mapping[str, str] = found if isinstance(found, Mapping) else {}
    num_members = _num_members(hashes)
    needed = {PROBE, *member_names(max(1, num_members))}
    graphs = set(graph_names(max(1, num_members)))
    if not needed <= set(hashes) or set(hashes) - needed - {CARD} not in (set(), graphs):
        raise CheckpointError(
            f"expected the files {WEIGHTS} (or model_0, model_1, … of an ensemble) and {PROBE} in the bundle {folder}, "
            f"found {found!r}"[:400]
        )
    paths = [entry.relative_to(folder) for entry in folder.rglob("*") if not entry.is_dir()]
    present = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
    strange = sorted(present - {DESCRIPTION, *hashes})
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
