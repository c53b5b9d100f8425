"""Structures on the wrong side, in each other's place, or upside down.

A left and a right structure that carry their sides in the schema can be told without other cases: world x grows to the
patient's right. Everything else is compared with the other cases. That a whole patient is mirrored, image, labels and
their sides together, cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from medseg.core.findings import Finding
from medseg.core.labels import LabelSchema
from medseg.data.check.facts import CaseFacts, LabelFacts
from medseg.data.check.placement import Agreement, Placement, agreement, place
from medseg.data.check.remedies import found
from medseg.data.check.usual import MIN_CASES

OPPOSITE, MIRRORED, MIN_CERTAINTY = -0.8, -0.3, 4.0
"""An axis is turned round where the places along it correlate so badly with the usual ones (when only some structures have
changed places, the others keep theirs), with a slope below the second (−1: exactly mirrored), and where structures lie
apart by so many deviations."""

MAX_MISFIT = 8.0
"""Mean squared deviations from what is usual, mirrored where it is: 1 on average, 4 where a case is unlike the others."""

FAR_APART = 4.0
"""Structures whose usual places are so many deviations apart can be told to be exchanged."""

AXES = ("back and front", "foot and head")

POSITION_DEVIATIONS = 6.0
"""Of a structure's place, along one axis."""


def findings_of_places(cases: Sequence[CaseFacts], schema: LabelSchema) -> Iterator[Finding]:
    """Everything about where structures lie."""
    labelled = [(case.id, case.label) for case in cases if case.label is not None and case.label.structures]
    if not labelled:
        return
    placement = place(_centres([label for _, label in labelled], schema), MIN_CASES)
    fit = agreement(placement.places_mm, placement.usual_mm, placement.scatter_mm)
    turned = (fit.correlation < OPPOSITE) & (fit.slope < MIRRORED) & (fit.certainty > MIN_CERTAINTY)
    turned &= _mirror_images(fit, turned)[:, None]
    turned[:, 0] &= not _contradicts_sides(placement, schema)
    for number, (case, label) in enumerate(labelled):
        swapped = _on_the_wrong_side(label, schema) | _exchanged(placement, number, schema)
        if swapped or turned[number, 0]:
            yield found("label.swapped", "error", case, label.file, _told(swapped), sorted(swapped))
        if turned[number, 1:].any():
            axes = [name for name, is_turned in zip(AXES, turned[number, 1:], strict=True) if is_turned]
            message = f"{' and '.join(axes)} are exchanged: structures follow each other against the other cases' order"
            yield found("geometry.orientation", "error", case, label.file, message, list(label.structures))
        if not swapped and not turned[number].any() and (odd := _far_from_usual(placement, number, schema)):
            yield found("label.position", "warning", case, label.file, "; ".join(odd.values()), list(odd))


def _mirror_images(fit: Agreement, turned: Bool[np.ndarray, "cases 3"]) -> Bool[np.ndarray, " cases"]:
    """Whether a case looks as usual once these axes are turned back: else some structures have changed places."""
    misfit: np.ndarray = np.where(turned, fit.mirrored_misfit, fit.misfit).mean(axis=1)
    return misfit < MAX_MISFIT


def _centres(labels: Sequence[LabelFacts], schema: LabelSchema) -> Float[np.ndarray, "cases structures 3"]:
    """NaN where a structure is not drawn."""
    nowhere = (np.nan,) * 3
    drawn = [[label.structures.get(name) for name in schema.names] for label in labels]
    return np.array([[nowhere if facts is None else facts.centre_mm for facts in row] for row in drawn])


def _told(swapped: set[str]) -> str:
    if not swapped:
        return "left and right are exchanged: structures lie the other way round than in the other cases"
    return f"on the other side of the patient, or in each other's place: {', '.join(sorted(swapped))}"


def _pairs(schema: LabelSchema) -> Iterator[tuple[int, int]]:
    """Structures that are mirror images of each other, each pair once, the right one first where the schema says so."""
    places = {name: place for place, name in enumerate(schema.names)}
    for number, structure in enumerate(schema.structures):
        if structure.mirror is not None and structure.side != "left":
            other = places[structure.mirror]
            if structure.side == "right" or number < other:
                yield number, other


def _on_the_wrong_side(label: LabelFacts, schema: LabelSchema) -> set[str]:
    """Right structures that lie to the left of their counterparts by more than both reach."""
    wrong: set[str] = set()
    for number, other in _pairs(schema):
        right, left = schema.structures[number], schema.structures[other]
        if right.side != "right" or left.side != "left" or not {right.name, left.name} <= set(label.structures):
            continue
        drawn = label.structures[right.name], label.structures[left.name]
        if drawn[1].centre_mm[0] - drawn[0].centre_mm[0] > drawn[0].spread_mm[0] + drawn[1].spread_mm[0]:
            wrong |= {right.name, left.name}
    return wrong


def _contradicts_sides(placement: Placement, schema: LabelSchema) -> bool:
    """Whether most cases have a right structure on the left: then it is they that are wrong."""
    return any(
        schema.structures[right].side == "right" and placement.usual_mm[right, 0] < placement.usual_mm[left, 0]
        for right, left in _pairs(schema)
    )


def _exchanged(placement: Placement, number: int, schema: LabelSchema) -> set[str]:
    """Structures of a pair that lie nearer to the usual place of their counterpart."""
    wrong: set[str] = set()
    if _contradicts_sides(placement, schema):
        return wrong
    usual, here = placement.usual_mm, placement.places_mm[number]
    scatter = placement.scatter_mm
    for one, other in _pairs(schema):
        if not (np.abs(usual[one] - usual[other]) > FAR_APART * (scatter[one] + scatter[other]) / 2).any():
            continue
        present = [place for place in (one, other) if np.isfinite(here[place]).all()]
        own = sum(np.linalg.norm(here[place] - usual[place]) for place in present)
        crossed = sum(np.linalg.norm(here[place] - usual[one + other - place]) for place in present)
        if present and crossed < own / 2:
            wrong |= {schema.names[place] for place in present}
    return wrong


def _far_from_usual(placement: Placement, number: int, schema: LabelSchema) -> dict[str, str]:
    """Words on structures that lie where no other case has them."""
    distance = placement.places_mm[number] - placement.usual_mm
    num_cases = np.isfinite(placement.places_mm[..., 0]).sum(axis=0)
    scatter = placement.scatter_mm * (1 + 2 / np.sqrt(np.maximum(num_cases, 1)))[:, None]
    odd = np.flatnonzero((np.abs(distance) > POSITION_DEVIATIONS * scatter).any(axis=1))
    return {
        schema.names[place]: f"{schema.names[place]} lies {np.linalg.norm(distance[place]):.0f} mm from its usual place"
        for place in odd
    }
