"""Connected parts: what a rule takes away, for overlapping regions too, and when a rule is taken at all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.geometry import Geometry
from medseg.core.labels import IGNORED, LabelSchema, Structure
from medseg.inference.components import (
    CANDIDATES,
    MAX_CASES,
    MIN_CASES,
    ComparedCase,
    ComponentRule,
    choose_components,
    component_cases,
    keep_components,
)
from medseg.inference.files import compared_cases
from medseg.io.nifti import write_label_map
from medseg.io.references import references_of, what_to_compare
from medseg.io.volume import read_label_map
from medseg.metrics.overlap import channel_dice

FEW = settings(max_examples=25)

PLAIN = LabelSchema((Structure("a", 1), Structure("b", 2), Structure("c", 7)))
TUMOUR = LabelSchema(
    (Structure("whole", 2, region=(1, 2, 4)), Structure("core", 1, region=(1, 4)), Structure("enhancing", 4))
)
LARGEST = ComponentRule(keep="largest")
ALL_LARGEST = dict.fromkeys(PLAIN.names, LARGEST)


def random_map(seed: int, part: float = 0.4, shape: tuple[int, ...] = (9, 8, 7)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 4, shape) * (rng.random(shape) < part)).astype(np.int16)


def kept(channels: np.ndarray, rules: dict, schema: LabelSchema = PLAIN, voxel_volume_ml: float = 1.0) -> np.ndarray:
    result = channels.copy()
    keep_components(result, voxel_volume_ml, schema, rules)
    return result


def parts_by_hand(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Flood fill with corners, written down without SciPy."""
    left = {tuple(map(int, index)) for index in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    parts = []
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            voxel = todo.pop()
            part.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in steps} & left
            left -= near
            todo += near
        parts.append(part)
    return parts


@FEW
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.15, 0.4]), st.sampled_from([0.5, 1.0, 2.0, 3.5]))
def test_parts_are_kept_as_a_flood_fill_finds_them(seed: int, part: float, min_ml: float) -> None:
    channels = random_map(seed, part)
    rules = {"a": LARGEST, "b": ComponentRule(min_ml=min_ml), "c": ComponentRule(keep="largest", min_ml=min_ml)}
    found = kept(channels, rules, voxel_volume_ml=0.5)
    expected = np.zeros_like(channels)
    for channel in (1, 2, 3):
        parts = parts_by_hand(channels == channel)
        largest = max(map(len, parts), default=0)
        for voxels in parts:
            is_kept = (channel == 2 or len(voxels) == largest) and (channel == 1 or len(voxels) * 0.5 >= min_ml)
            for voxel in voxels if is_kept else ():
                expected[voxel] = channel
    np.testing.assert_array_equal(found, expected)


def test_the_largest_part_is_the_one_that_itk_finds() -> None:
    channels = random_map(3, 0.25, (30, 20, 25))
    expected = np.zeros_like(channels)
    for channel in (1, 2, 3):
        parts = sitk.ConnectedComponent(sitk.GetImageFromArray((channels == channel).astype(np.uint8)), True)
        expected[sitk.GetArrayFromImage(sitk.RelabelComponent(parts)) == 1] = channel
    assert (expected != channels).any()
    np.testing.assert_array_equal(kept(channels, ALL_LARGEST), expected)


@FEW
@given(st.integers(0, 1000), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_the_orientation_of_the_file_does_not_matter(seed: int, order: list[int], flips: tuple[bool, ...]) -> None:
    """Not even where two parts are equally large."""

    def turned(array: np.ndarray) -> np.ndarray:
        return np.flip(array.transpose(order), [axis for axis in range(3) if flips[axis]])

    channels = random_map(seed, 0.2)
    np.testing.assert_array_equal(kept(turned(channels), ALL_LARGEST), turned(kept(channels, ALL_LARGEST)))


@FEW
@given(st.integers(0, 1000))
def test_doing_it_again_changes_nothing_and_a_mild_rule_takes_less(seed: int) -> None:
    channels = random_map(seed, 0.15)
    maps = [kept(channels, dict.fromkeys(PLAIN.names, ComponentRule(min_ml=ml))) for ml in (0, 1, 2, 4, 8)]
    np.testing.assert_array_equal(maps[0], channels)
    np.testing.assert_array_equal(maps[1], channels)
    for mild, strict in itertools.pairwise(maps):
        assert (strict[strict != mild] == 0).all()
    for rule in (LARGEST, ComponentRule(min_ml=3)):
        once = kept(channels, dict.fromkeys(PLAIN.names, rule))
        np.testing.assert_array_equal(kept(once, dict.fromkeys(PLAIN.names, rule)), once)


def test_volumes_are_those_of_the_grid() -> None:
    channels = np.zeros((5, 5, 5), np.int16)
    channels[0, 0, 0], channels[3:5, 3:5, 3:5] = 1, 1
    grid = Geometry.from_spacing((5, 5, 5), (1.0, 2.0, 5.0))  # 0.01 ml a voxel
    for min_ml, num_left in ((0.0, 9), (0.01, 9), (0.011, 8), (0.08, 8), (0.09, 0)):
        found = kept(channels, {"a": ComponentRule(min_ml=min_ml)}, voxel_volume_ml=grid.voxel_volume_ml)
        assert np.count_nonzero(found) == num_left


def test_nothing_happens_to_structures_without_a_rule_or_without_a_voxel() -> None:
    channels = random_map(0, 0.1)
    np.testing.assert_array_equal(kept(channels, {}), channels)
    np.testing.assert_array_equal(kept(channels, {"a": ComponentRule()}), channels)
    empty = np.zeros((4, 4, 4), np.int16)
    np.testing.assert_array_equal(kept(empty, ALL_LARGEST), empty)
    without_a = np.where(channels == 1, 0, channels)
    np.testing.assert_array_equal(kept(without_a, {"a": LARGEST}), without_a)


def tumours() -> np.ndarray:
    """A large tumour with a large and a small core, both enhancing, and a small tumour that is all core."""
    channels = np.zeros((20, 10, 10), np.int16)
    channels[1:9, 1:9, 1:9] = 1
    channels[2:5, 2:5, 2:5], channels[3, 3, 3] = 2, 3
    channels[7, 7, 7], channels[7, 7, 6] = 2, 3
    channels[15:17, 4:6, 4:6], channels[15, 4, 4] = 2, 3
    return channels


def test_a_core_that_goes_leaves_its_tumour() -> None:
    channels = tumours()
    found = kept(channels, {"core": LARGEST}, TUMOUR)
    assert found[7, 7, 7] == found[7, 7, 6] == 1, "an enhancing voxel of a core that is none is tumour"
    assert (found[15:17, 4:6, 4:6] == 1).all()
    np.testing.assert_array_equal(found[1:6], channels[1:6])


def test_a_tumour_that_goes_takes_its_core_with_it() -> None:
    found = kept(tumours(), {"whole": LARGEST}, TUMOUR)
    assert (found[12:] == 0).all()
    np.testing.assert_array_equal(found[:12], tumours()[:12])


def test_an_inner_region_that_goes_becomes_the_next_one() -> None:
    found = kept(tumours(), {"enhancing": ComponentRule(min_ml=2)}, TUMOUR)
    assert (found[tumours() == 3] == 2).all()
    np.testing.assert_array_equal(found[tumours() != 3], tumours()[tumours() != 3])


@FEW
@given(st.integers(0, 1000))
def test_regions_that_do_not_overlap_are_structures(seed: int) -> None:
    apart = LabelSchema((Structure("a", 1, region=(1,)), Structure("b", 2, region=(2, 9)), Structure("c", 7)))
    assert apart.has_regions
    channels = random_map(seed, 0.2)
    np.testing.assert_array_equal(kept(channels, ALL_LARGEST, apart), kept(channels, ALL_LARGEST))


ANNOTATED = np.ones(4, bool)


def case(crumb: int = 0, second: int = 0, annotated: np.ndarray = ANNOTATED) -> ComparedCase:
    """An organ found exactly, with a crumb that is none, and with a second part that is real: their edges in voxels."""
    channels, classes = np.zeros((2, 40, 20, 20), np.int16)
    channels[2:12, 2:12, 2:12] = classes[2:12, 2:12, 2:12] = 1
    channels[20 : 20 + crumb, :crumb, :crumb] = 1
    channels[30 : 30 + second, :second, :second] = classes[30 : 30 + second, :second, :second] = 1
    return ComparedCase(channels, classes, annotated, 0.05)


def test_crumbs_that_are_never_real_are_dropped_by_the_mildest_rule_that_does() -> None:
    choice = choose_components([case(crumb=3) for _ in range(MIN_CASES)], PLAIN)
    assert choice.rules == {"a": ComponentRule(min_ml=2.0)}  # 27 voxels of 0.05 ml
    assert "a: parts below 2 ml are dropped: mean Dice +0.013 in 8 cases" in choice.reasons[0]
    large = choose_components([case(crumb=7) for _ in range(MIN_CASES)], PLAIN)
    assert large.rules == {"a": LARGEST}


@pytest.mark.parametrize(
    "cases",
    [
        [case(crumb=3)] * (MIN_CASES - 1),
        [case()] * 10,
        [case(crumb=1)] * 10,
        [case(crumb=3)] * 9 + [case(second=3)],
        [case(crumb=4)] + [case()] * 9,
        [case(crumb=3, annotated=np.array([True, False, True, True]))] * 10,
        [],
    ],
    ids=["too few", "no crumb", "too little gain", "real in one case", "one lucky case", "not annotated", "none"],
)
def test_without_clear_gain_all_parts_stay(cases: list[ComparedCase]) -> None:
    choice = choose_components(iter(cases), PLAIN)
    assert choice.rules == {}
    assert len(choice.reasons) == 1
    assert "all parts of every structure are kept" in choice.reasons[0]


def test_where_a_structure_comes_in_parts_only_smaller_ones_go() -> None:
    """A real second part of 3.2 ml forbids the largest only; crumbs of 1.35 ml still go."""
    choice = choose_components([case(crumb=3, second=4)] * 3 + [case(crumb=3)] * 5, PLAIN)
    assert choice.rules == {"a": ComponentRule(min_ml=2.0)}


@FEW
@given(st.integers(0, 500))
def test_gains_are_those_of_dice_after_the_rule(seed: int) -> None:
    """Dice by parts is Dice of the label map with the rule applied, ignored voxels and regions included."""
    from medseg.inference.components import _gains, _parts

    rng = np.random.default_rng(seed)
    schema = (PLAIN, TUMOUR)[seed % 2]
    channels = random_map(seed, 0.15)
    classes = random_map(seed + 1, 0.3) * (rng.random(channels.shape) < 0.9)
    classes[rng.random(channels.shape) < 0.1] = IGNORED
    for channel, name in enumerate(schema.names, start=1):
        compared = ComparedCase(channels, classes.astype(np.int16), ANNOTATED, 1.0)
        parts = _parts(compared, channel, schema)
        assert parts is not None
        for rule in (LARGEST, ComponentRule(min_ml=2)):
            before, after = (
                channel_dice(array, compared.classes, ANNOTATED, schema)[channel]
                for array in (channels, kept(channels, {name: rule}, schema))
            )
            np.testing.assert_allclose(_gains([parts], rule), [after - before], atol=1e-12)


def test_a_structure_that_was_not_found_or_not_contoured() -> None:
    nothing = np.zeros((6, 6, 6), np.int16)
    organ = nothing.copy()
    organ[2, 2, 2] = 1
    missed = ComparedCase(nothing, organ, ANNOTATED, 1.0)
    spurious = ComparedCase(organ, nothing, ANNOTATED, 1.0)
    assert choose_components([missed, spurious] * 10, PLAIN).rules == {}


@pytest.mark.parametrize("num_cases", [0, 1, 7, 8, 21, 24, 25, 121, 1000])
def test_cases_to_choose_by_are_enough_and_not_too_many(num_cases: int) -> None:
    numbers = component_cases(num_cases)
    if num_cases < MIN_CASES:
        assert len(numbers) == 0
    else:
        assert min(num_cases, MAX_CASES / 2) <= len(numbers) <= MAX_CASES
        assert max(numbers) < num_cases


def test_candidates_are_ordered_from_mild_to_strict() -> None:
    sizes = [rule.min_ml for rule in CANDIDATES if rule.keep == "all"]
    assert sizes == sorted(sizes)
    assert CANDIDATES[-1] == LARGEST


@pytest.mark.parametrize("schema", [PLAIN, TUMOUR])
def test_written_values_become_channels_again(schema: LabelSchema) -> None:
    channels = random_map(0)
    np.testing.assert_array_equal(schema.to_channels(schema.to_values(channels)), channels)
    assert schema.to_channels(np.array([3, 100, 200], np.uint8)).tolist() == [0, 0, 0]


def test_label_maps_beside_their_references_choose_rules(tmp_path: Path, sample: Path) -> None:
    """The references of the sample as predictions, each with a crumb of the larynx; one is missing."""
    dataset = references_of(sample, None, None)
    larynx = next(structure.value for structure in dataset.labels.structures if structure.name == "larynx")
    for record in dataset.cases:
        label_map = read_label_map(record.label)
        array = label_map.array.copy()
        array[:6, :6, :6] = larynx
        write_label_map(tmp_path / f"{record.id}.nii.gz", replace(label_map, array=array))
    dataset, (predictions,) = what_to_compare(sample, [tmp_path], None, None)
    cases = list(compared_cases(dataset, predictions))
    assert len(cases) == len(dataset.cases) == MIN_CASES
    choice = choose_components(cases, dataset.labels)
    assert choice.rules.keys() == {"larynx"}
    for case in cases:
        found = kept(case.channels, choice.rules, dataset.labels, case.voxel_volume_ml)
        np.testing.assert_array_equal(found, case.classes)
    (tmp_path / f"{dataset.cases[0].id}.nii.gz").unlink()
    dataset, (predictions,) = what_to_compare(sample, [tmp_path], None, None)
    assert len(list(compared_cases(dataset, predictions))) == MIN_CASES - 1
