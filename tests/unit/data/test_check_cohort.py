"""What cases say of each other, on made-up facts: an anatomy with known places, volumes and intensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.case import CaseRecord
from medseg.core.findings import Finding
from medseg.core.labels import LabelSchema, Structure
from medseg.data.check.cohort import habits
from medseg.data.check.facts import CaseFacts, ImageFacts, LabelFacts, Landmarks, StructureFacts
from medseg.data.check.usual import MIN_CASES, deviations
from medseg.data.check.verdict import judge

SCHEMA = LabelSchema(
    (
        Structure("cord", 1),
        Structure("lung right", 2, side="right", mirror="lung left"),
        Structure("lung left", 3, side="left", mirror="lung right"),
        Structure("liver", 4),
        Structure("bone", 5),
    )
)

ANATOMY = {  # place [mm], volume [ml], mean [HU]
    "cord": ((0, -60, 0), 30, 30),
    "lung right": ((70, 0, 60), 1500, -800),
    "lung left": ((-70, 0, 60), 1300, -800),
    "liver": ((60, 20, -60), 1500, 60),
    "bone": ((0, -80, -40), 300, 600),
}


def a_case(number: int, **changes) -> CaseFacts:
    """A case like the others, with an origin of its own."""
    rng = np.random.default_rng(number)
    origin = rng.uniform(-500, 500, 3)
    structures = {
        name: StructureFacts(
            volume_ml=float(volume * np.exp(0.2 * rng.standard_normal())),
            centre_mm=tuple((np.array(place) + origin + 4 * rng.standard_normal(3)).tolist()),
            spread_mm=tuple((20 * np.exp(0.1 * rng.standard_normal(3))).tolist()),
            is_cut=False,
            mean_hu=float(mean + 15 * rng.standard_normal()),
        )
        for name, (place, volume, mean) in ANATOMY.items()
    }
    thumbnail = rng.standard_normal(512)
    image = ImageFacts(
        file=f"{number}.nii.gz", modality="CT", shape=(128, 128, 100), spacing_mm=(3.0, 3.0, 3.0),
        digest=bytes([number]), thumbnail=(thumbnail / np.linalg.norm(thumbnail)).astype(np.float32), low=-1000.0, high=2000.0,
        percentiles=(-1000.0, -1000.0, -500.0, 200.0, 1500.0), low_share=0.1, commonest=-1000.0, commonest_share=0.1,
        tissue_mode=40.0, landmarks=Landmarks(-1000.0, 40.0),
    )  # fmt: skip
    label = LabelFacts(f"{number}_label.nii.gz", bytes([number]), {}, structures)
    return CaseFacts(f"case{number}", (replace(image, **changes),), label)


def with_structures(case: CaseFacts, **changed: StructureFacts | None) -> CaseFacts:
    assert case.label is not None
    merged = {**case.label.structures, **{name.replace("_", " "): facts for name, facts in changed.items()}}
    kept = {name: facts for name, facts in merged.items() if facts is not None}
    return replace(case, label=replace(case.label, structures=kept))


def of(case: CaseFacts, name: str) -> StructureFacts:
    assert case.label is not None
    return case.label.structures[name]


def placed(case: CaseFacts, turn: np.ndarray) -> CaseFacts:
    """The same case with its structures' places multiplied by a matrix."""
    assert case.label is not None
    moved = {
        name: replace(facts, centre_mm=tuple((turn @ facts.centre_mm).tolist()))
        for name, facts in case.label.structures.items()
    }
    return replace(case, label=replace(case.label, structures=moved))


def found_in(*odd: CaseFacts, others: int = 20) -> list[Finding]:
    cases = [*(a_case(number) for number in range(others)), *odd]
    annotated = [tuple(case.label.structures) if case.label else () for case in cases]
    records = [CaseRecord(case.id, case.id, (), annotated=names) for case, names in zip(cases, annotated, strict=True)]
    return judge(cases, records, SCHEMA)


def summary(findings: list[Finding]) -> set[tuple[str | None, str, str]]:
    return {(finding.case, finding.code, finding.level) for finding in findings}


@pytest.mark.parametrize("others", [1, 7, 8, 20, 60])
def test_cases_like_each_other_give_no_finding(others: int) -> None:
    assert found_in(others=others) == []


@pytest.mark.parametrize("factor", [0.02, 0.1, 12.0, 1000.0])
@pytest.mark.parametrize("name", ["cord", "bone"])
def test_a_volume_that_no_other_case_has(factor: float, name: str) -> None:
    case = a_case(50)
    facts = of(case, name)
    odd = with_structures(case, **{name: replace(facts, volume_ml=facts.volume_ml * factor)})
    findings = found_in(odd)
    assert summary(findings) == {("case50", "label.volume", "warning")}
    assert findings[0].structures == (name,) and findings[0].file == "50_label.nii.gz" and findings[0].remedy


def test_a_structure_cut_by_the_edge_may_be_small_but_not_large() -> None:
    case = a_case(50)
    liver = replace(of(case, "liver"), is_cut=True)
    small, large = (replace(liver, volume_ml=liver.volume_ml * factor) for factor in (0.05, 20.0))
    assert found_in(with_structures(case, liver=small)) == []
    assert summary(found_in(with_structures(case, liver=large))) == {("case50", "label.volume", "warning")}


def test_few_cases_call_nothing_unusual() -> None:
    case = a_case(50)
    odd = with_structures(case, cord=replace(of(case, "cord"), volume_ml=5000.0))
    assert found_in(odd, others=MIN_CASES - 2) == []


@given(st.lists(st.floats(-1e3, 1e3), min_size=MIN_CASES, max_size=40), st.floats(-50, 50), st.floats(0.1, 10))
def test_deviations_do_not_depend_on_where_zero_is_nor_on_the_unit(values, shift: float, scale: float) -> None:
    array = np.array(values)
    first, second = deviations(array, 1.0), deviations(array * scale + shift, scale)
    np.testing.assert_allclose(first, second, atol=1e-6 * max(1.0, np.abs(first).max()))


@pytest.mark.parametrize("axis", [1, 2])
def test_an_axis_that_is_turned_round(axis: int) -> None:
    mirror = np.eye(3)
    mirror[axis, axis] = -1
    assert summary(found_in(placed(a_case(50), mirror))) == {("case50", "geometry.orientation", "error")}


def test_left_and_right_exchanged_in_the_whole_case() -> None:
    mirrored = placed(a_case(50), np.diag([-1.0, 1, 1]))
    assert summary(found_in(mirrored)) == {("case50", "label.swapped", "error")}
    assert summary(found_in(mirrored, others=0)) == {("case50", "label.swapped", "error")}, "the schema knows the sides"


def test_left_and_right_exchanged_without_sides_in_the_schema() -> None:
    """The liver, which has no side, tells which side is which, once there are other cases."""
    case = a_case(50)
    only = with_structures(case, **{"lung right": None, "lung left": None})
    assert summary(found_in(placed(only, np.diag([-1.0, 1, 1])))) == {("case50", "label.swapped", "error")}


@pytest.mark.parametrize("kept", ["lung right", "lung left"])
def test_one_structure_of_a_pair_on_the_other_side(kept: str) -> None:
    case = a_case(50)
    other = {"lung right": "lung left", "lung left": "lung right"}[kept]
    odd = with_structures(case, **{kept: replace(of(case, kept), centre_mm=of(case, other).centre_mm), other: None})
    findings = found_in(odd)
    assert summary(findings) == {("case50", "label.swapped", "error")}
    assert findings[0].structures == (kept,)


def test_a_structure_far_from_its_place() -> None:
    case = a_case(50)
    liver = of(case, "liver")
    odd = with_structures(case, liver=replace(liver, centre_mm=(liver.centre_mm[0], liver.centre_mm[1] + 120, 0.0)))
    assert ("case50", "label.position", "warning") in summary(found_in(odd))


def test_stray_pieces_spread_a_structure() -> None:
    case = a_case(50)
    odd = with_structures(case, cord=replace(of(case, "cord"), spread_mm=(90.0, 20.0, 20.0)))
    assert summary(found_in(odd)) == {("case50", "label.spread", "warning")}


def test_contours_over_the_wrong_image() -> None:
    case = a_case(50)
    assert case.label is not None
    flat = {name: replace(facts, mean_hu=40.0) for name, facts in case.label.structures.items()}
    findings = found_in(replace(case, label=replace(case.label, structures=flat)))
    assert ("case50", "label.mismatch", "warning") in summary(findings)


@pytest.mark.parametrize(("share", "value"), [("air_share", 0.6), ("blank_share", 0.5), ("outside_share", 0.4)])
def test_contours_on_air_and_beyond_the_image(share: str, value: float) -> None:
    case = a_case(50)
    odd = with_structures(case, cord=replace(of(case, "cord"), **{share: value}))
    code = "label.air" if share == "air_share" else "label.outside_image"
    assert summary(found_in(odd)) == {("case50", code, "warning")}


def test_a_habit_of_the_dataset_is_told_once_and_of_no_case() -> None:
    cases = []
    for number in range(20):
        case = a_case(number)
        cases.append(with_structures(case, cord=replace(of(case, "cord"), outside_share=0.5 if number < 4 else 0.0)))
    records = [CaseRecord(case.id, case.id, ()) for case in cases]
    assert judge(cases, records, SCHEMA) == []
    assert [habit.split()[0] for habit in habits(cases, SCHEMA)] == ["cord"]


@pytest.mark.parametrize(
    ("spacing", "level"), [((0.3, 0.3, 0.3), "error"), ((3.0, 3.0, 15.5), "error"), ((3.0, 3.0, 9.0), "warning")]
)
def test_a_spacing_that_no_other_case_has(spacing: tuple[float, float, float], level: str) -> None:
    assert summary(found_in(a_case(50, spacing_mm=spacing))) == {("case50", "geometry.spacing_outlier", level)}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_slice_thickness_is_a_protocol_unless_the_organs_grow_with_it(factor: float) -> None:
    case = a_case(50, spacing_mm=(3.0, 3.0, 3.0 * factor), shape=(128, 128, round(100 / factor)))
    assert found_in(case) == []
    assert case.label is not None
    grown = {name: replace(f, volume_ml=ANATOMY[name][1] * factor) for name, f in case.label.structures.items()}
    findings = found_in(replace(case, label=replace(case.label, structures=grown)))
    assert ("case50", "geometry.spacing_outlier", "warning") in summary(findings)


def test_short_scans() -> None:
    assert summary(found_in(a_case(50, shape=(128, 128, 20)))) == {("case50", "image.few_slices", "warning")}
    assert summary(found_in(a_case(50, shape=(128, 128, 3)), others=0)) == {("case50", "image.few_slices", "warning")}
    assert found_in(a_case(50, shape=(128, 128, 60))) == []


def test_duplicates_of_images_and_labels() -> None:
    first, second = a_case(3), replace(a_case(50), images=(replace(a_case(3).images[0], file="copy.nii.gz"),))
    found = found_in(second)
    assert summary(found) == {("case3", "image.duplicate", "error"), ("case50", "image.duplicate", "error")}
    assert {finding.file for finding in found} == {"3.nii.gz", "copy.nii.gz"}
    noisy = a_case(50, thumbnail=first.images[0].thumbnail)
    assert {code for _, code, _ in summary(found_in(noisy))} == {"image.near_duplicate"}
    assert first.label is not None
    foreign = replace(a_case(50), label=first.label)
    assert {code for _, code, _ in summary(found_in(foreign))} == {"label.duplicate"}


def test_a_small_offset_shows_against_the_others() -> None:
    odd = a_case(50, landmarks=Landmarks(-850.0, 190.0))
    assert summary(found_in(odd)) == {("case50", "image.hu_offset", "warning")}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_an_image_that_lies_the_wrong_way(order: tuple[int, int, int]) -> None:
    blocks = np.random.default_rng(0).standard_normal((8, 8, 8))
    blocks -= blocks.mean()

    def thumbnail(number: int, shape: np.ndarray) -> np.ndarray:
        noise = 0.2 * np.random.default_rng(number).standard_normal(512)
        vector = shape.ravel() + noise - noise.mean()
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    cases = [a_case(number, thumbnail=thumbnail(number, blocks)) for number in range(20)]
    turned = blocks[::-1] if order == (0, 1, 2) else blocks.transpose(order)
    cases.append(a_case(50, thumbnail=thumbnail(50, turned)))
    records = [CaseRecord(case.id, case.id, ()) for case in cases]
    assert summary(judge(cases, records, SCHEMA)) == {("case50", "geometry.orientation", "warning")}


def test_a_patient_in_two_splits() -> None:
    cases = [a_case(number) for number in range(3)]
    records = [
        CaseRecord(c.id, "p", (), split=split) for c, split in zip(cases, ("train", "train", "test"), strict=True)
    ]
    assert summary(judge(cases, records, SCHEMA)) == {(f"case{n}", "split.patient", "error") for n in range(3)}
    same = [replace(record, split="train") for record in records]
    assert judge(cases, same, SCHEMA) == []
