"""Import: a model that another program trained becomes a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.core.errors import WriteError
from medseg.core.progress import Listener, Progress, silent
from pipelines.outcome import Outcome


@dataclass(frozen=True)
class ImportOptions:
    """Fields are the command's options."""

    out: Path
    folds: tuple[str, ...] = ()


def run(model_folder: Path, options: ImportOptions, listener: Listener = silent) -> Outcome:
    """Import a model of nnU-Net v2.

    Args:
        model_folder: Of nnU-Net's results.
        options: Of the command line.
        listener: Hears of what is worth knowing.
    """
    from medseg.inference.runtimes.torch import make_probe
    from medseg.interop.nnunet import import_nnunet
    from medseg.io.bundle import write_bundle

    require_absent(options.out)  # told before the work
    model = import_nnunet(model_folder, options.folds)
    for note in model.notes:
        listener(Progress("importing", 0, None, message=f"note: {note}"))
    manifest = {**model.description.model_dump(mode="json"), "imported_from": dict(model.origin)}
    probe = make_probe(model.description, model.members)
    require_absent(options.out)  # it may have come meanwhile
    write_bundle(options.out, manifest, model.members, probe)
    structures = model.description.labels.names
    result = {
        "bundle": str(options.out),
        "imported_from": dict(model.origin),
        "structures": list(structures),
        "notes": list(model.notes),
    }
    folds = ", ".join(model.origin["checkpoints"])
    text = f"{options.out}: {model.description.name} ({folds}), {len(structures)} structures"
    return Outcome(0, result, text)


def require_absent(out: Path) -> None:
    """Refuse to replace anything."""
    if out.exists():
        raise WriteError(f"{out} is there already: give another --out", code="write.exists")
