"""Connected parts of what a network found: which are kept, and which rule is worth keeping to.

Networks that saw little of a body put crumbs of an organ where none can be. A rule for a structure (only its largest
part, or only parts of a smallest volume) takes them away; where a structure may come in several parts, it takes away
what is real. So a rule is chosen on cases that the network has not learnt from, and only where it is clearly better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from pydantic import Field
from scipy import ndimage

from medseg.core.config import ConfigBase
from medseg.core.labels import IGNORED, LabelSchema, innermost
from medseg.core.shapes import IJK

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner are of one part (26 neighbours), as lesions are counted: an oesophagus that is a few voxels
thick and runs obliquely would fall apart with 6, and a part that is kept needlessly harms less than one that is lost."""

MIN_CASES = 8
"""Fewer cases say too little about the next one: of half-learnt networks, rules chosen on 5 cost other cases up to .2."""

MAX_CASES = 24
"""More seldom change the choice, and each has to be predicted."""

MIN_GAIN = 0.002
"""Smallest mean gain of Dice that is worth a rule; less is within what another seed of training changes."""

MAX_LOSS = 0.01
"""A rule that costs any one case more Dice than this is not taken: it has cut away something real."""

LARGEST_SHARE = 0.5
"""Of the mean gain that may go when the case that gains most is left out: one lucky case makes no rule."""

ROUNDING = 1e-6
"""Relative; the volume of a voxel is rounded differently when the same scan lies in other axes."""

NEARLY = 0.001
"""Of rules whose mean gains differ by less than this, the mildest is taken."""


class ComponentRule(ConfigBase):
    """Which connected parts of a structure are kept."""

    keep: Literal["all", "largest"] = "all"
    """All of them, or the largest (all that are equally large)."""
    min_ml: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """And of these, only parts of at least this volume [ml]."""

    @property
    def words(self) -> str:
        """For people."""
        if self.keep == "largest":
            return "only the largest part is kept"
        return f"parts below {self.min_ml:g} ml are dropped"


KEEP_ALL = ComponentRule()

CANDIDATES = (
    *(ComponentRule(min_ml=volume_ml) for volume_ml in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)),
    ComponentRule(keep="largest"),
)
"""Rules to choose from, the mildest first: from a crumb of two or three voxels of a coarse scan up to a small organ."""


def keep_components(
    channels: Integer[np.ndarray, IJK],
    voxel_volume_ml: float,
    schema: LabelSchema,
    rules: Mapping[str, ComponentRule],
) -> None:
    """Take away the parts that the rules don't keep, in place, structure after structure in the schema's order.

    A voxel that is taken away becomes background. Where structures are regions that overlap, the parts are those of the
    whole region, and a voxel becomes what it is without that region: a core that goes leaves its tumour, a tumour that
    goes takes its core with it.

    Args:
        channels: Channel numbers; changed.
        voxel_volume_ml: Volume of a voxel [ml].
        schema: The structures.
        rules: By structure; all parts of the others are kept.
    """
    boxes = ndimage.find_objects(channels, max_label=len(schema.structures))
    for channel, name in enumerate(schema.names, start=1):
        rule = rules.get(name, KEEP_ALL)
        if rule == KEEP_ALL:
            continue
        if schema.has_regions:  # voxels may have changed hands
            boxes = ndimage.find_objects(channels, max_label=len(schema.structures))
        written = np.flatnonzero(schema.counts_as[:, channel])
        box = _around([found for number in written if (found := boxes[number - 1]) is not None])
        if box is None:
            continue
        inside = channels[box]
        mask = _is_one_of(inside, written)
        numbers = ndimage.label(mask, TOUCHING)[0][mask]
        kept = _kept(np.bincount(numbers)[1:] * voxel_volume_ml, rule)
        if not kept.all():
            found = inside[mask]
            inside[mask] = np.where(kept[numbers - 1], found, _without(schema, channel)[found])


def _kept(sizes_ml: Float[np.ndarray, " parts"], rule: ComponentRule) -> Bool[np.ndarray, " parts"]:
    kept: np.ndarray = sizes_ml >= rule.min_ml * (1 - ROUNDING)
    if rule.keep == "largest" and len(sizes_ml):
        kept &= sizes_ml == sizes_ml.max()
    return kept


def _without(schema: LabelSchema, channel: int) -> Integer[np.ndarray, " channels"]:
    """What each channel number becomes in a voxel that no longer belongs to one channel.

    The number that counts for most of the other regions that the voxel belongs to, and for nothing else.
    """
    belongs = schema.counts_as[:, 1:]
    becomes = np.arange(schema.num_channels, dtype=np.int16)
    for number in np.flatnonzero(schema.counts_as[:, channel]):
        others = belongs[number].copy()
        others[channel - 1] = False
        becomes[number] = innermost(belongs, others)
    return becomes


def _is_one_of(array: Integer[np.ndarray, IJK], numbers: Integer[np.ndarray, " numbers"]) -> Bool[np.ndarray, IJK]:
    mask: np.ndarray = array == numbers[0]
    for number in numbers[1:]:
        mask |= array == number
    return mask


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    """The smallest box around several; None around none."""
    if not boxes:
        return None
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )


@dataclass(frozen=True, eq=False)
class ComparedCase:
    """A prediction beside its reference, on one grid: the file's, or the network's.

    Attributes:
        channels: Predicted channel numbers, with all their parts.
        classes: Class numbers of the reference; ignored voxels count for neither.
        annotated: Per channel, background first, whether somebody looked for it.
        voxel_volume_ml: Volume of a voxel [ml].
    """

    channels: Integer[np.ndarray, IJK]
    classes: Integer[np.ndarray, IJK]
    annotated: Bool[np.ndarray, " channels"]
    voxel_volume_ml: float


@dataclass(frozen=True, eq=False)
class _Parts:
    """The predicted parts of one structure of one case, as volumes [ml]: Dice of every rule follows from them.

    Attributes:
        sizes_ml: Of each part; decides which are kept.
        counted_ml: Of each part, without ignored voxels.
        common_ml: Of each part, what the reference has too.
        contoured_ml: Of the reference.
    """

    sizes_ml: Float[np.ndarray, " parts"]
    counted_ml: Float[np.ndarray, " parts"]
    common_ml: Float[np.ndarray, " parts"]
    contoured_ml: float

    def dice(self, rule: ComponentRule) -> float:
        kept = _kept(self.sizes_ml, rule)
        return float(2 * self.common_ml[kept].sum() / (self.counted_ml[kept].sum() + self.contoured_ml))


@dataclass(frozen=True)
class ComponentChoice:
    """What was decided.

    Attributes:
        rules: By structure; empty where nothing is better.
        reasons: For people.
    """

    rules: Mapping[str, ComponentRule]
    reasons: tuple[str, ...]


def component_cases(num_cases: int) -> range:
    """Numbers of the validation cases to choose by, evenly spread; none where there are too few to choose by."""
    return range(0, num_cases, -(-num_cases // MAX_CASES)) if num_cases >= MIN_CASES else range(0)


def choose_components(cases: Iterable[ComparedCase], schema: LabelSchema) -> ComponentChoice:
    """Choose each structure's rule on cases that the network has not learnt from, and only where it improves Dice.

    A structure gets a rule where it is contoured in at least :data:`MIN_CASES` cases, their mean Dice gains at least
    :data:`MIN_GAIN`, half of that also without the case that gains most, and no case loses more than :data:`MAX_LOSS`.
    Cases in which a structure is absent have no Dice and no say. Each region is judged by itself.

    Args:
        cases: Looked at one after the other.
        schema: The structures.
    """
    parts_of: dict[str, list[_Parts]] = {name: [] for name in schema.names}
    for case in cases:
        for channel, name in enumerate(schema.names, start=1):
            parts = _parts(case, channel, schema) if case.annotated[channel] else None
            if parts is not None:
                parts_of[name].append(parts)
    rules, reasons = {}, []
    for name, parts_of_cases in parts_of.items():
        rule = _better_rule(parts_of_cases)
        if rule is not None:
            gains = _gains(parts_of_cases, rule)
            rules[name] = rule
            reasons.append(
                f"{name}: {rule.words}: mean Dice {gains.mean():+.3f} in {len(gains)} cases the network has not learnt "
                f"from, {np.count_nonzero(gains > 0)} better, {np.count_nonzero(gains < 0)} worse"
            )
    if not rules:
        most = max(map(len, parts_of.values()))
        why = "no rule is clearly better" if most >= MIN_CASES else f"fewer than {MIN_CASES} cases to choose by"
        reasons.append(f"all parts of every structure are kept: {why}")
    return ComponentChoice(rules, tuple(reasons))


def _better_rule(cases: Sequence[_Parts]) -> ComponentRule | None:
    if len(cases) < MIN_CASES:
        return None
    gains_of = {rule: _gains(cases, rule) for rule in CANDIDATES}
    better = {rule: float(gains.mean()) for rule, gains in gains_of.items() if _is_clearly_better(gains)}
    return next((rule for rule, gain in better.items() if gain >= max(better.values()) - NEARLY), None)


def _gains(cases: Sequence[_Parts], rule: ComponentRule) -> Float[np.ndarray, " cases"]:
    return np.array([parts.dice(rule) - parts.dice(KEEP_ALL) for parts in cases])


def _is_clearly_better(gains: Float[np.ndarray, " cases"]) -> bool:
    without_best = (gains.sum() - gains.max()) / (len(gains) - 1)
    return bool(gains.mean() >= MIN_GAIN and without_best >= LARGEST_SHARE * gains.mean() and gains.min() >= -MAX_LOSS)


def _parts(case: ComparedCase, channel: int, schema: LabelSchema) -> _Parts | None:
    """Of a structure that is contoured; None where it is not."""
    reference = _is_one_of(case.classes, np.flatnonzero(schema.membership[:, channel]))
    num_contoured = np.count_nonzero(reference)
    if not num_contoured:
        return None
    mask = _is_one_of(case.channels, np.flatnonzero(schema.counts_as[:, channel]))
    numbers = ndimage.label(mask, TOUCHING)[0][mask]
    num_parts = int(numbers.max(initial=0))

    def volumes_ml(selected: Integer[np.ndarray, " voxels"]) -> Float[np.ndarray, " parts"]:
        volumes: np.ndarray = np.bincount(selected, minlength=num_parts + 1)[1:] * case.voxel_volume_ml
        return volumes

    return _Parts(
        volumes_ml(numbers),
        volumes_ml(numbers[case.classes[mask] != IGNORED]),
        volumes_ml(numbers[reference[mask]]),
        num_contoured * case.voxel_volume_ml,
    )
