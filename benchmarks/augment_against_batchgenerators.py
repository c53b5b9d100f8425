"""Augmentation: ours beside batchgeneratorsv2 as nnU-Net 2.8 puts it together (``nnUNetTrainer.get_training_transforms``).

Patches of 96³ of a bundled head-and-neck CT at 2 mm, the same transforms with the same probabilities (mirroring along
all axes, nothing outside the body), one process, one thread, alternating. Theirs begin with the enlarged patch that
nnU-Net's loader cuts, as tensors; ours with the prepared case, reading included. Prints CPU time and samples a second,
with all seven structures and with one.

Then each transform with the same numbers on both sides, on the same patch: voxel for voxel the same, but for the reach of
the narrowest blur (largest difference allowed: 1e-4, and 0.01 for blur; intensities have a standard deviation of 1.3).

Then each transform by itself with probability 1 and numbers drawn on either side: mean, standard deviation, three quantiles and the
roughness of the result, and the volume of the structures, over many draws, must agree within four standard errors or
2 % of the patch's standard deviation (roughness and volume: 2 % of the patch's).
What does not agree is printed as DIFFERS, and the exit code is 1.

Run: ``pip install -r requirements/peers.txt``, then ``python benchmarks/augment_against_batchgenerators.py`` (5 minutes).
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch start their threads

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.spatial.transform import Rotation

from medseg.core.case import PreparedCase
from medseg.core.patch import PatchLocation
from medseg.data.augment.apply import Augmentation, Augmentd
from medseg.data.augment.intensity import (
    apply_gamma,
    apply_inverted_gamma,
    blur,
    lower_resolution,
    scale_brightness,
    scale_contrast,
)
from medseg.data.augment.spatial import Warp, warped
from medseg.data.config import AugmentationConfig, SamplingConfig, WindowNormalisation
from medseg.data.loader import SamplePatchd
from medseg.data.prepare import prepare
from medseg.data.sampling import PatchRequest, generator, patch_location
from medseg.data.source import MemorySource
from medseg.io.case import read_case
from medseg.io.dataset import read_dataset
from medseg.io.resources import sample_folder

PATCH, SPACING_MM, CASE = (96, 96, 96), (2.0, 2.0, 2.0), "pt_4"
WINDOW = WindowNormalisation(low=-973.0, high=1574.0, mean=193.0, std=429.0)
BOUND, MAX_STANDARD_ERRORS, TOLERANCE = 1.5, 4.0, 0.02
QUANTILES = (0.05, 0.5, 0.95)
SAME_VOXELS, SAME_BLURRED = 1e-4, 0.01
MEASURES = ("mean", "std", *(f"q{share:.0%}" for share in QUANTILES), "roughness", "volume")

NAMES = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
"""As nnU-Net orders them after the spatial transform."""

NOTHING = AugmentationConfig.model_validate(
    {
        "mirror": "none",
        **{f"{name}_probability": 0.0 for name in ("rotation", "scaling", "air_noise", "couch", "padding", *NAMES)},
    }
)
OPERATIONS = {
    "blur": ("blur_sigma", (0.5, 0.75, 1.0), blur),
    "brightness": ("multiplier_range", (0.75, 1.25), scale_brightness),
    "contrast": ("contrast_range", (0.75, 1.25), scale_contrast),
    "low_resolution": ("scale", (0.5, 0.73), lower_resolution),
    "inverted_gamma": ("gamma", (0.7, 1.5), apply_inverted_gamma),
    "gamma": ("gamma", (0.7, 1.5), apply_gamma),
}
"""What takes a number: theirs' attribute, numbers to try, and ours."""

SAME = AugmentationConfig(mirror="all_axes", air_noise_probability=0.0, couch_probability=0.0, padding_probability=0.0)

Pair = tuple[torch.Tensor, torch.Tensor]


def prepared_case() -> PreparedCase:
    """A whole head and neck, fine enough to be larger than nnU-Net's enlarged patch."""
    dataset = read_dataset(sample_folder())
    record = next(record for record in dataset.cases if record.id == CASE)
    return prepare(read_case(record, dataset), dataset.labels, SPACING_MM, (WINDOW,))


class Theirs:
    """nnU-Net's transforms; its trainer's own function builds them, and its loader's rule gives the size of their input."""

    def __init__(self, case: PreparedCase) -> None:
        largest = (-30.0 / 360 * 2 * np.pi, 30.0 / 360 * 2 * np.pi)
        self.enlarged = tuple(int(size) for size in get_patch_size(PATCH, largest, largest, largest, (0.85, 1.25)))
        self.transforms = nnUNetTrainer.get_training_transforms(
            PATCH, largest, None, (0, 1, 2), False, use_mask_for_norm=[False]
        )
        self.case = case

    def input_at(self, place: PatchLocation) -> Pair:
        """The enlarged patch around a place."""
        start = [
            first - (more - size) // 2 for first, more, size in zip(place.start_ijk, self.enlarged, PATCH, strict=True)
        ]
        box = PatchLocation(tuple(start), self.enlarged)
        image, classes = MemorySource(self.case).read(box)
        return torch.from_numpy(image), torch.from_numpy(classes)[None]

    def transform(self, name: str) -> BasicTransform:
        """One of those that change intensities, without its probability."""
        drawn = [t.transform for t in self.transforms.transforms if isinstance(t, RandomTransform)]
        return drawn[NAMES.index(name)]

    def only(self, name: str) -> Callable[[Pair], Pair]:
        """One transform, for certain; the patch is cut as nnU-Net cuts it."""
        spatial = self.transforms.transforms[0]
        assert isinstance(spatial, SpatialTransform)
        others = [self.transform(name)] if name in NAMES else []

        def applied(pair: Pair) -> Pair:
            spatial.p_rotation, spatial.p_scaling = float(name == "rotation"), float(name == "scaling")
            data = {"image": pair[0].clone(), "segmentation": pair[1].clone()}
            for transform in (spatial, *others):
                data = transform(**data)
            return data["image"], data["segmentation"][0]

        return applied


def run_theirs(theirs: Theirs, places: Sequence[PatchLocation]) -> float:
    """CPU time of their transforms [s]; cutting is not counted."""
    seconds = 0.0
    for place in places:
        image, classes = theirs.input_at(place)
        began = time.process_time()
        theirs.transforms(image=image, segmentation=classes)
        seconds += time.process_time() - began
    return seconds


def run_ours(case: PreparedCase, steps: range, config: AugmentationConfig) -> float:
    """CPU time of our sampler and transforms [s]."""
    augmentation = Augmentation(config, tuple(range(8)), SPACING_MM, (WINDOW,))
    sampler = SamplePatchd([MemorySource(case)], PATCH, 1, 0, SamplingConfig(), augmentation)
    augmented = Augmentd(augmentation)
    sampler.cases[0].foreground  # noqa: B018  found once a run
    began = time.process_time()
    for step in steps:
        augmented(sampler({"request": PatchRequest(step, 0)}))
    return time.process_time() - began


def compare_speed(case: PreparedCase, num_rounds: int, num_patches: int) -> float:
    """Print samples a second; the ratio of the medians."""
    theirs = Theirs(case)
    source = MemorySource(case)
    times: dict[str, list[float]] = {"batchgeneratorsv2": [], "ours": [], "ours, default for CT": []}
    for turn in range(-1, num_rounds):  # the first warms up: theirs also measures which convolution is faster
        steps = range(turn * num_patches, (turn + 1) * num_patches) if turn >= 0 else range(num_patches)
        places = [
            patch_location(generator(0, 2, step, 0), source.foreground, source.shape_ijk, PATCH, 0.5) for step in steps
        ]
        measured = (
            run_theirs(theirs, places),
            run_ours(case, steps, SAME),
            run_ours(case, steps, AugmentationConfig()),
        )
        if turn >= 0:
            for name, seconds in zip(times, measured, strict=True):
                times[name].append(seconds / num_patches)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:22} {1000 * seconds:6.1f} ms a patch, {1 / seconds:5.1f} patches a second")
    ratios = [a / b for a, b in zip(times["batchgeneratorsv2"], times["ours"], strict=True)]
    ratio = medians["batchgeneratorsv2"] / medians["ours"]
    print(f"  ours makes {ratio:.2f} times as many (rounds {min(ratios):.2f} to {max(ratios):.2f})")
    return ratio


def compare_voxels(case: PreparedCase) -> int:
    """Print how far a patch differs after the same change on either side; how many changes differ too much."""
    theirs, source, place = Theirs(case), MemorySource(case), middle_place(case)
    enlarged = theirs.input_at(place)
    spatial = theirs.transforms.transforms[0]
    plain = torch.from_numpy(source.read(place)[0])
    found: dict[str, float] = {}
    for angle in (-30.0, 20.0):
        spatial.rotation = (np.deg2rad(angle), np.deg2rad(angle))
        matrix = rotation_matrix(np.deg2rad([angle] * 3))
        warp = Warp(tuple(map(tuple, matrix.tolist())), place)
        image, _ = warped(*map(torch.from_numpy, source.read(warp.box)), warp)
        found[f"rotation {angle}"] = difference(theirs.only("rotation")(enlarged)[0], image, middle=True)
    for factor in (0.7, 1.4):
        spatial.scaling = (factor, factor)
        warp = Warp(((factor, 0.0, 0.0), (0.0, factor, 0.0), (0.0, 0.0, factor)), place)
        image, _ = warped(*map(torch.from_numpy, source.read(warp.box)), warp)
        found[f"scaling {factor}"] = difference(theirs.only("scaling")(enlarged)[0], image)
    for name, (attribute, values, ours) in OPERATIONS.items():
        transform = theirs.transform(name)
        transform.p_per_channel = 1.0
        for value in values:
            setattr(transform, attribute, value)
            result = ours(plain, torch.full((1, 3) if name == "blur" else (1,), value))
            found[f"{name} {value}"] = difference(transform(image=plain.clone())["image"], result)
    print("the same numbers on both sides: largest difference of a voxel")
    for name, value in found.items():
        print(f"  {name:20} {value:.1e}")
    return sum(value > (SAME_BLURRED if name.startswith("blur") else SAME_VOXELS) for name, value in found.items())


def difference(theirs: torch.Tensor, ours: torch.Tensor, middle: bool = False) -> float:
    """The largest of a voxel; in the middle alone, where turned points lie well within theirs' input."""
    if middle:
        theirs, ours = (volume[:, 24:-24, 24:-24, 24:-24] for volume in (theirs, ours))
    return float((theirs - ours).abs().max())


def middle_place(case: PreparedCase) -> PatchLocation:
    """A patch around the middle of the structures."""
    first = np.argwhere(case.classes > 0).mean(axis=0).astype(int) - np.array(PATCH) // 2
    return PatchLocation(tuple(first.tolist()), PATCH)


def rotation_matrix(angles_rad: np.ndarray) -> np.ndarray:
    """About the first axis, then the second, then the third, by SciPy."""
    return Rotation.from_euler("xyz", angles_rad).as_matrix()


def measures(pair: Pair) -> np.ndarray:
    """Of a patch, see :data:`MEASURES`."""
    image, classes = pair[0].numpy(), pair[1].numpy()
    steps = np.concatenate([np.diff(image, axis=axis).ravel() for axis in (1, 2, 3)])
    return np.array(
        [image.mean(), image.std(), *np.quantile(image, QUANTILES), np.abs(steps).mean(), (classes > 0).sum()]
    )


def compare_moments(case: PreparedCase, num_draws: int) -> int:
    """Print what each transform does to one patch on either side; how many numbers differ."""
    theirs, source = Theirs(case), MemorySource(case)
    place = middle_place(case)
    enlarged, plain = theirs.input_at(place), source.read(place)
    before = measures((torch.from_numpy(plain[0]), torch.from_numpy(plain[1])))
    scale = np.array([before[1]] * 5 + [before[5], before[6]])
    num_different = 0
    print(f"one patch, {num_draws} draws: theirs / ours")
    print(f"  {'':14} " + "".join(f"{name:>21}" for name in MEASURES))
    print(f"  {'as it is':14} " + "".join(f"{value:21.4g}" for value in before))
    for name in ("rotation", "scaling", *NAMES):
        transform = theirs.only(name)
        config = NOTHING.model_copy(update={f"{name}_probability": 1.0})
        augmentation = Augmentation(config, tuple(range(8)), SPACING_MM, (WINDOW,))

        def ours(step: int, augmentation: Augmentation = augmentation) -> Pair:
            rng = generator(1, step)
            warp = augmentation.draw_warp(rng, place)
            image, classes = map(torch.from_numpy, source.read(warp.box if warp else place))
            patch = {"image": image, "classes": classes, "warp": warp, "generator": rng}
            patch = Augmentd(augmentation)(patch)
            return patch["image"], patch["classes"]

        a = np.array([measures(transform(enlarged)) for _ in range(num_draws)])
        b = np.array([measures(ours(step)) for step in range(num_draws)])
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / num_draws)
        allowed = np.maximum(MAX_STANDARD_ERRORS * error, TOLERANCE * scale)
        differs = np.abs(a.mean(axis=0) - b.mean(axis=0)) > allowed
        num_different += int(differs.sum())
        shown = [
            f"{x:.4g} / {y:.4g}" + (" DIFFERS" if bad else "")
            for x, y, bad in zip(a.mean(axis=0), b.mean(axis=0), differs, strict=True)
        ]
        print(f"  {name:14} " + "".join(f"{text:>21}" for text in shown))
    return num_different


def main() -> None:
    """Measure and print; exit 1 below the bound or where voxels or moments differ."""
    parser = argparse.ArgumentParser(description="augmentation against batchgeneratorsv2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=60, help="patches a round and side")
    parser.add_argument("--draws", type=int, default=150, help="draws of each transform")
    choices = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    case = prepared_case()
    print(f"patches of {PATCH} of a case of {case.geometry.shape_ijk}, theirs cut from {Theirs(case).enlarged}")
    ratios = []
    for text, classes in (("seven structures", case.classes), ("one structure", (case.classes == 3).astype(np.int16))):
        print(text)
        ratios.append(compare_speed(replace(case, classes=classes), choices.rounds, choices.patches))
    num_different = compare_voxels(case) + compare_moments(case, choices.draws)
    print(f"voxels or moments that differ: {num_different}; smallest ratio {min(ratios):.2f}, bound {BOUND}")
    sys.exit(1 if num_different or min(ratios) < BOUND else 0)


if __name__ == "__main__":
    main()
