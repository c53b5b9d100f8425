"""From a bundle and a scan to a label map on the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from medseg.core.case import Case, PreparedCase
from medseg.core.labels import LabelSchema
from medseg.core.progress import Listener, silent
from medseg.core.selection import Selection
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap, Volume
from medseg.data.preparation import prepare_as_planned
from medseg.data.restore import GridMapping
from medseg.inference.body import Body, find_body, labels_air, whole_image
from medseg.inference.components import keep_components
from medseg.inference.description import ModelDescription
from medseg.inference.ensemble import Ensemble, open_ensemble
from medseg.inference.measures import mean_hu, truncated, volumes_ml
from medseg.inference.probabilities import Probabilities, collect_probabilities
from medseg.inference.resolve import channel_dtype, make_resolver
from medseg.inference.runtime import Runtime
from medseg.inference.runtimes.choice import Choice, Wanted, choose_runtime, open_runtime
from medseg.inference.sliding import SlidingWindow, lowest_values, predict_planes
from medseg.inference.tiling import WindowRule
from medseg.io.volume import read_volume


@dataclass(frozen=True, eq=False)
class Prediction:
    """What predicting one case gave.

    Attributes:
        label_map: On the file's grid, with the dataset's values; of the structures that were asked for, as all else here.
        seconds: Wall clock of each stage [s].
        volumes_ml: Of each structure; a region's is that of all voxels that belong to it.
        mean_hu: Of each structure in the first CT channel; None where it was not found, or nothing is CT.
        truncated: Structures that touch an edge of the scan: the volume is that of the visible part.
        probabilities: Where they were asked for.
    """

    label_map: LabelMap
    seconds: Mapping[str, float]
    volumes_ml: Mapping[str, float]
    mean_hu: Mapping[str, float | None]
    truncated: tuple[str, ...]
    probabilities: Probabilities | None = None


class Predictor:
    """A loaded bundle, or several that predict together.

    Args:
        description: What they say of themselves.
        runtime: Runs the network, or all of them.
        overlap: Smallest part of a window that its neighbour covers too.
        tile_batch: Windows given to the network at once.
        skip_air: Leave out the windows of a CT that hold nothing of the body, unless the model's structures may be air.
        structures: Names of those that label maps hold; None: all. It is decided among all of them.

    Raises:
        ConfigError: A name is no structure's.
    """

    def __init__(
        self,
        description: ModelDescription,
        runtime: Runtime,
        overlap: float = 0.5,
        tile_batch: int = 1,
        skip_air: bool = True,
        structures: Iterable[str] | None = None,
    ) -> None:
        self.description, self.runtime = description, runtime
        self.selection = Selection.of(description.labels, structures)
        self.skip_air = skip_air and not labels_air(description.plan, description.modalities)
        rule: WindowRule = "medseg" if description.plan.preparation is None else description.plan.preparation.kind
        self.sliding = SlidingWindow(description.plan.patch_ijk, overlap, tile_batch, rule)

    @property
    def labels(self) -> LabelSchema:
        """The structures of the label maps."""
        return self.selection.labels

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        device: str = "auto",
        *,
        runtime: Wanted = "auto",
        threads: int | None = None,
        overlap: float = 0.5,
        tile_batch: int = 1,
        skip_air: bool = True,
        structures: Iterable[str] | None = None,
        tta: bool = False,
    ) -> Predictor:
        """Load a bundle folder, a run folder or a bundled model by its name; several joined by commas are an ensemble.

        With ``tta``, each network looks at each window also in the mirror, as it did in training. The other arguments are
        those of the class.

        Raises:
            CheckpointError: A bundle is unusable, or the runtime cannot run it exactly.
            ConfigError: The device does not exist, bundles do not fit together, a name is no structure's, or a network has
                not seen mirrored images.
            PluginError: The runtime is not installed.
        """
        ensemble = open_ensemble(bundle)
        choice = choose_runtime(ensemble, runtime, device, threads)
        return cls.of(ensemble, choice, overlap, tile_batch, skip_air, structures, tta)

    @classmethod
    def of(
        cls,
        ensemble: Ensemble,
        choice: Choice,
        overlap: float = 0.5,
        tile_batch: int = 1,
        skip_air: bool = True,
        structures: Iterable[str] | None = None,
        tta: bool = False,
    ) -> Predictor:
        """Load what was opened.

        Raises:
            CheckpointError: Weights do not fit their network.
            ConfigError: A name is no structure's, or a network has not seen mirrored images.
        """
        runtime = open_runtime(ensemble, choice, mirrored=tta)
        return cls(ensemble.description, runtime, overlap, tile_batch, skip_air, structures)

    def predict(self, image: str | Path | Volume, allow: Collection[str] = ()) -> LabelMap:
        """Label a scan.

        Args:
            image: A path that :func:`~medseg.io.volume.read_volume` takes, or a volume.
            allow: Codes of problems to go on with when reading, as ``medseg predict --allow`` takes them.

        Raises:
            CaseError: It cannot be read or predicted.
        """
        num_channels = len(self.description.modalities)
        volume = image if isinstance(image, Volume) else read_volume(image, num_channels=num_channels, allow=allow)
        case = Case("image", volume, None, self.description.labels.annotated_channels(None))
        return self.predict_case(case).label_map

    def predict_case(self, case: Case, listener: Listener = silent, probabilities_in: Path | None = None) -> Prediction:
        """Label a case and measure what was found.

        Args:
            case: Its reference is not looked at.
            listener: Hears of the progress.
            probabilities_in: A folder in which probabilities are kept until they are written; None: they are not wanted.

        Raises:
            CaseError: It cannot be predicted.
        """
        began = time.perf_counter()
        prepared = prepare_as_planned(case, self.description.labels, self.description.plan)
        prepare_s = round(time.perf_counter() - began, 3)
        prediction = self.predict_prepared(case, prepared, listener, probabilities_in)
        return replace(prediction, seconds={"prepare": prepare_s, **prediction.seconds})

    def predict_prepared(
        self,
        case: Case,
        prepared: PreparedCase,
        listener: Listener = silent,
        probabilities_in: Path | None = None,
    ) -> Prediction:
        """Label a case that is on the network's grid already, and measure what was found; see :meth:`predict_case`.

        Raises:
            CaseError: It cannot be predicted.
        """
        schema, geometry = self.description.labels, case.image.geometry
        marks = [time.perf_counter()]
        channels, resolving_s, probabilities = self._channels(prepared, listener, probabilities_in)
        marks.append(time.perf_counter())
        keep_components(channels, geometry.voxel_volume_ml, schema, self.description.components)
        self.selection.apply(channels)
        marks.append(time.perf_counter())
        predict_s, components_s = np.diff(marks).tolist()
        stages = {"network": predict_s - resolving_s, "resolve": resolving_s + components_s}
        seconds = {stage: round(took_s, 3) for stage, took_s in stages.items()}
        label_map = LabelMap(self.labels.to_values(channels), geometry, case.image.record)
        return Prediction(
            label_map,
            seconds,
            volumes_ml(channels, geometry, self.labels),
            mean_hu(channels, case.image, self.description.modalities, self.labels),
            truncated(channels, self.labels),
            probabilities,
        )

    def _channels(
        self, prepared: PreparedCase, listener: Listener, probabilities_in: Path | None
    ) -> tuple[Integer[np.ndarray, IJK], float, Probabilities | None]:
        """Channel numbers on the file's grid, decided plane by plane, how long resolving took [s], and probabilities."""
        body = self._body(prepared)
        shape = prepared.geometry.shape_ijk
        box = whole_image(shape) if body is None else body.box(self.sliding.window_ijk)
        grid = self.sliding.over(box.shape_ijk)
        skipped = set() if body is None else {p for p in grid.windows() if not body.is_in(p.moved(box.start_ijk))}
        mapping = GridMapping.of(prepared)
        channels = np.zeros(mapping.file_shape_ijk, channel_dtype(self.description.labels.num_channels))
        resolver = make_resolver(mapping, self.description.decision, grid.walk_axis, box, shape, channels)
        probabilities = None
        if probabilities_in is not None:
            probabilities = collect_probabilities(
                self.description, self.labels.names, probabilities_in, mapping, grid.walk_axis, box, shape
            )
        image_CIJK = prepared.image[(slice(None), *box.to_slices())]
        resolving_s = 0.0
        outside = lowest_values(prepared.image)  # of the whole image, wherever the body lies
        planes = predict_planes(image_CIJK, self.runtime, grid, self.sliding.tile_batch, skipped, outside, listener)
        for number, logits in planes:
            began = time.perf_counter()
            resolver.add(number, logits)
            if probabilities is not None:
                probabilities.add(number, logits)
            resolving_s += time.perf_counter() - began
        return channels, resolving_s, probabilities

    def _body(self, prepared: PreparedCase) -> Body | None:
        """What has to be looked at; None: everything."""
        if not self.skip_air:
            return None
        plan = self.description.plan
        return find_body(prepared.image, plan.spacing_ijk_mm, self.description.modalities, plan.normalisation)
