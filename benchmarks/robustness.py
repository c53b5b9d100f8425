"""The same patients scanned a little otherwise: does a model still find what it found?

Each scan is predicted as it is, and again with noise in the air, a couch below the patient, padding of −1024, −2048 or −3024
outside a round field of view and around the scan, resampled to 1 mm in plane, and with a shifted field of view. The bodies
are the same, so Dice should be too. Contours are compared on the voxels of the original scan that both scans hold.

Run: ``.venv/bin/python benchmarks/robustness.py DATA --bundle RUN [--bundle RUN ...] [--out FILE]``. A bundle whose plan lists
validation cases (each fold of a cross-validation) is tried on those, another (``head-neck``) on ``--split`` of the dataset.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paired_runs import Dice, difference_rows, markdown, mean_rows, shown
from scipy import ndimage

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.volume import Volume
from medseg.inference.predictor import Predictor
from medseg.io.case import read_case
from medseg.io.dataset import read_dataset
from medseg.metrics.overlap import dice

AIR_HU, BODY_HU = -1000.0, -500.0

NOISE_HU = 20.0
"""Standard deviation of noise in the air; scanners clip it at −1024."""

COUCH_GAP_MM, COUCH_THICKNESS_MM, SHELL_MM = 8.0, 40.0, 4.0
SHELL_HU, FOAM_HU = 50.0, -900.0
"""A carbon couch top: a thin shell around foam."""

MARGIN_VOXELS = 8
"""Of padding on each side in plane."""

FINE_MM = 1.0

SHIFT_PART = 0.08
"""Of the field of view: by so much it moves in plane, as far as there is air to cut off; along the body its end is cut off."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan in R, A, S order.

    Attributes:
        image: HU.
        geometry: Its grid.
    """

    image: np.ndarray
    geometry: Geometry


def main() -> None:
    """Predict, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a CT dataset")
    parser.add_argument(
        "--bundle", action="append", required=True, help="bundle, run or bundled model; may be repeated"
    )
    parser.add_argument(
        "--split", default="validation", help="of the dataset, for bundles that list no validation cases"
    )
    parser.add_argument("--cases", type=int, help="at most so many cases a bundle")
    parser.add_argument("--out", type=Path, help="JSON of all scores")
    options = parser.parse_args()
    dataset = read_dataset(options.data)
    scores: dict[str, dict[str, Any]] = {name: {} for name in CHANGES}
    for bundle in options.bundle:
        predictor = Predictor.load(bundle)
        for record in unseen(predictor, dataset, options.split)[: options.cases]:
            for name, found in try_changes(predictor, read_case(record, dataset), dataset.labels).items():
                scores[name][record.id] = found
    rows = []
    for name, of_cases in scores.items():
        plain, changed = ({case: found[side] for case, found in of_cases.items()} for side in (0, 1))
        rows.append([name, *row(plain, changed, dataset.labels.names)])
    print(
        f"{len(next(iter(scores.values())))} cases\n\n"
        + markdown(["change", "as it is", "changed", "difference"], rows)
    )
    if options.out:
        options.out.write_text(json.dumps(scores, indent=1))


def unseen(predictor: Predictor, dataset: Dataset, split: str) -> list[CaseRecord]:
    """Cases that the network did not learn from, as far as its plan says so."""
    validating = set(predictor.description.plan.validation_cases)
    return [r for r in dataset.cases if (r.id in validating if validating else r.split == split)]


def row(plain: Dice, changed: Dice, names: Sequence[str]) -> list[str]:
    """Both means, and their difference with its interval."""
    means = [f"{mean_rows([side], names)['mean']['mean']:.3f}" for side in (plain, changed)]
    return [*means, shown(difference_rows([changed], [plain], names)["mean"], signed=True)]


def try_changes(predictor: Predictor, case: Case, schema: LabelSchema) -> dict[str, Any]:
    """By change, Dice by structure of the scan as it is and of the changed one, both on the voxels that both hold."""
    grid = case.image.geometry
    assert case.label is not None
    reference, image = (grid.axes.to_canonical(array) for array in (case.label.array, case.image.array[0]))
    scan = Scan(np.ascontiguousarray(image, dtype=np.float32), grid.canonical)
    plain = contours(predictor, scan)

    annotated = [one for one, known in zip(schema.structures, case.annotated[1:], strict=True) if known]

    def scores(labels: np.ndarray) -> dict[str, float]:
        masks = ((one.name, labels[held] == one.value, reference[held] == one.value) for one in annotated)
        return {name: dice(found, contoured) for name, found, contoured in masks if contoured.any()}

    results: dict[str, Any] = {}
    for name, change in CHANGES.items():
        changed = change(scan, np.random.default_rng(0))
        predicted, held = back_on(scan, changed, contours(predictor, changed))
        results[name] = (scores(plain), scores(predicted))
    return results


def contours(predictor: Predictor, scan: Scan) -> np.ndarray:
    """The label map of a scan, on its grid."""
    return predictor.predict(Volume(scan.image[None], scan.geometry)).array


def back_on(scan: Scan, changed: Scan, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a changed scan at the voxel centres of the original, and which of these the changed scan holds."""
    to_changed = np.linalg.inv(changed.geometry.affine_ras) @ scan.geometry.affine_ras
    index = np.indices(scan.geometry.shape_ijk).reshape(3, -1)
    places = np.rint(to_changed[:3, :3] @ index + to_changed[:3, 3:]).astype(int)
    held = np.all((places >= 0) & (places < np.array(labels.shape)[:, None]), axis=0)
    found = np.zeros(held.size, labels.dtype)
    found[held] = labels[tuple(places[:, held])]
    return found.reshape(scan.image.shape), held.reshape(scan.image.shape)


def body_of(scan: Scan) -> np.ndarray:
    """The largest dense part, with the air inside it."""
    parts, count = ndimage.label(scan.image > BODY_HU)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    body = parts == 1 + int(sizes.argmax())
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, 2, 0)], axis=2)


def with_noise(scan: Scan, random: np.random.Generator) -> Scan:
    """Air outside the body as a scanner gives it."""
    noisy = np.maximum(AIR_HU + NOISE_HU * random.standard_normal(scan.image.shape), -1024)
    return Scan(np.where(body_of(scan), scan.image, noisy).astype(np.float32), scan.geometry)


def with_couch(scan: Scan, _: np.random.Generator) -> Scan:
    """A couch behind the patient, as wide as the field of view; the field of view grows where it has no room."""
    mm = scan.geometry.spacing_ijk_mm[1]
    room = round((COUCH_GAP_MM + COUCH_THICKNESS_MM) / mm) + 1
    body = body_of(scan)
    behind = int(np.flatnonzero(body.any(axis=(0, 2)))[0])  # the second axis runs to the front
    grown = padded(scan, ((0, 0), (max(0, room - behind), 0), (0, 0)), AIR_HU)
    behind += max(0, room - behind)
    top, thick, shell = (round(length / mm) for length in (COUCH_GAP_MM, COUCH_THICKNESS_MM, SHELL_MM))
    image = grown.image
    image[:, behind - top - thick : behind - top] = FOAM_HU
    for edge in (behind - top - thick, behind - top - max(1, shell)):
        image[:, edge : edge + max(1, shell)] = SHELL_HU
    return grown


def with_padding(value: float) -> Callable[[Scan, np.random.Generator], Scan]:
    """Padding outside a circle in plane, and around the scan; the body stays."""

    def change(scan: Scan, _: np.random.Generator) -> Scan:
        x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in scan.image.shape[:2]), indexing="ij")
        outside = (x**2 + y**2 > 1)[:, :, None] & ~body_of(scan)
        margin = (MARGIN_VOXELS, MARGIN_VOXELS)
        return padded(Scan(np.where(outside, value, scan.image), scan.geometry), (margin, margin, (0, 0)), value)

    return change


def resampled(scan: Scan, _: np.random.Generator) -> Scan:
    """The scan at 1 mm in plane, by cubic interpolation: what a scanner's matrix would be, as far as it can be had."""
    spacing = np.array(scan.geometry.spacing_ijk_mm)
    step = np.array([FINE_MM, FINE_MM, spacing[2]]) / spacing
    shape = [int((size - 1) / part) + 1 for size, part in zip(scan.image.shape, step, strict=True)]
    image = ndimage.affine_transform(scan.image, step, output_shape=shape, order=3, mode="nearest")
    affine = scan.geometry.affine_ras @ np.diag([*step, 1.0])
    i, j, k = shape
    return Scan(np.clip(image, -1024, None), Geometry(affine, (i, j, k)))


def shifted(scan: Scan, _: np.random.Generator) -> Scan:
    """Another field of view: more air on the patient's right and in front, less opposite; the lower end is cut off."""
    i, j, k = (round(SHIFT_PART * size) for size in scan.image.shape)
    body = body_of(scan)
    i, j = (min(s, int(np.flatnonzero(body.any(axis=others))[0])) for s, others in ((i, (1, 2)), (j, (0, 2))))
    cut = scan.image[i:, j:, k:]
    affine = scan.geometry.affine_ras.copy()
    affine[:3, 3] += affine[:3, :3] @ [i, j, k]
    a, b, c = cut.shape
    return padded(Scan(cut, Geometry(affine, (a, b, c))), ((0, i), (0, j), (0, 0)), AIR_HU)


def padded(scan: Scan, widths: Sequence[tuple[int, int]], value: float) -> Scan:
    """A scan with voxels added around it; a copy."""
    image = np.pad(scan.image, widths, constant_values=value)
    affine = scan.geometry.affine_ras.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in widths]
    i, j, k = image.shape
    return Scan(image.astype(np.float32), Geometry(affine, (i, j, k)))


CHANGES: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {
    "air noise": with_noise,
    "couch": with_couch,
    "padding −1024": with_padding(-1024),
    "padding −2048": with_padding(-2048),
    "padding −3024": with_padding(-3024),
    "1 mm in plane": resampled,
    "shifted field of view": shifted,
}


if __name__ == "__main__":
    main()
