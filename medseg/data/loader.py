"""From prepared cases to batches: a MONAI ``Dataset`` of patch requests and a ``Compose`` that answers them.

Our steps are dictionary transforms, so any MONAI transform fits before or after them (``extra``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medseg.core.geometry import Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import BCIJK, BIJK
from medseg.data.augment.apply import Augmentation, Augmentd
from medseg.data.config import LoaderConfig, SamplingConfig
from medseg.data.sampling import PatchRequest, case_of, generator, patch_location
from medseg.data.source import PatchSource

Transform = Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """The patches of one step.

    Attributes:
        image: Normalised intensities.
        classes: Class number of each voxel, :data:`~medseg.core.labels.IGNORED` where nobody decided.
        annotated: Which channels somebody looked for, in each patch's case.
        case_ids: The case of each patch.
        places: Where in its prepared case each patch was cut.
    """

    image: Float[Tensor, BCIJK]
    classes: Integer[Tensor, BIJK]
    annotated: Bool[Tensor, "batch classes"]
    case_ids: tuple[str, ...]
    places: tuple[PatchLocation, ...]

    def __len__(self) -> int:
        return len(self.case_ids)

    def to(self, device: torch.device) -> PatchBatch:
        """The same batch on a device."""
        return PatchBatch(
            self.image.to(device, non_blocking=True),
            self.classes.to(device, non_blocking=True),
            self.annotated.to(device, non_blocking=True),
            self.case_ids,
            self.places,
        )

    def part(self, start: int, stop: int) -> PatchBatch:
        """Some of its patches, as a batch of their own."""
        kept = slice(start, stop)
        return PatchBatch(
            self.image[kept], self.classes[kept], self.annotated[kept], self.case_ids[kept], self.places[kept]
        )

    def origin(self, index: int) -> str:
        """A patch's case and place."""
        return f"case {self.case_ids[index]}, patch at {', '.join(map(str, self.places[index].start_ijk))}"


class SamplePatchd:
    """Answer a patch request: choose its case and place, and cut it out.

    Args:
        cases: Prepared, with labels.
        patch_ijk: Of the patch.
        batch_size: Patches a step.
        seed: Of the run.
        config: How often a structure is centred on.
        augmentation: Where given, a patch that will be turned or scaled is answered by the box that it will show, and
            by ``warp``, how: :class:`~medseg.data.augment.apply.Augmentd` carries it out.
    """

    def __init__(
        self,
        cases: Sequence[PatchSource],
        patch_ijk: Shape3,
        batch_size: int,
        seed: int,
        config: SamplingConfig,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cases, self.patch_ijk, self.batch_size, self.seed, self.config = cases, patch_ijk, batch_size, seed, config
        self.augmentation = augmentation

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The patch as a dictionary: image, classes, annotated, case_id, place, warp, generator."""
        request: PatchRequest = item["request"]
        number = case_of(request, self.seed, self.batch_size, len(self.cases))
        case, rng = self.cases[number], generator(self.seed, 2, request.step, request.index)
        place = patch_location(rng, case.foreground, case.shape_ijk, self.patch_ijk, self.config.foreground_fraction)
        warp = self.augmentation.draw_warp(rng, place) if self.augmentation else None
        image, classes = case.read(warp.box if warp else place)
        return {
            "image": torch.from_numpy(image),
            "classes": torch.from_numpy(classes),
            "annotated": torch.from_numpy(case.annotated),
            "case_id": case.id,
            "place": place,
            "warp": warp,
            "generator": rng,
        }


def patch_batches(
    sampler: SamplePatchd, loader: LoaderConfig, start_step: int = 0, extra: Sequence[Transform] = ()
) -> Iterator[PatchBatch]:
    """Batches without end, from a step on; the batch of a step is the same whenever the run was started.

    Args:
        sampler: Cuts the patches; they are augmented as it says.
        loader: Processes beside the network.
        start_step: First step.
        extra: MONAI dictionary transforms after ours.
    """
    from monai.data import Dataset  # seconds of import that prediction never pays
    from monai.transforms import Compose

    augmented = [Augmentd(sampler.augmentation)] if sampler.augmentation else []
    dataset = Dataset(_Requests(sampler.batch_size), Compose([sampler, *augmented, *extra]))
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_sampler=_Steps(start_step, sampler.batch_size),
            num_workers=loader.num_workers,
            collate_fn=_collated,
            persistent_workers=loader.num_workers > 0,
        )
    )


class _Requests(Sequence[dict[Hashable, Any]]):
    """The endless list of requests: number n is patch ``n % batch_size`` of step ``n // batch_size``."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: Any) -> Any:
        return {"request": PatchRequest(number // self.batch_size, number % self.batch_size)}


class _Steps:
    """Batches of request numbers, step after step."""

    def __init__(self, start_step: int, batch_size: int) -> None:
        self.start_step, self.batch_size = start_step, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield [step * self.batch_size + index for index in range(self.batch_size)]
            step += 1


def _collated(patches: Sequence[Mapping[Hashable, Any]]) -> PatchBatch:
    return PatchBatch(
        image=torch.stack([torch.as_tensor(patch["image"]) for patch in patches]),
        classes=torch.stack([torch.as_tensor(patch["classes"]) for patch in patches]),
        annotated=torch.stack([patch["annotated"] for patch in patches]),
        case_ids=tuple(patch["case_id"] for patch in patches),
        places=tuple(patch["place"] for patch in patches),
    )
