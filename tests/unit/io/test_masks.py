"""A mask for each structure: what it holds, and names that every file system takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import ConfigError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap
from medseg.io.masks import mask_names, masks_of


def schema(*names: str) -> LabelSchema:
    return LabelSchema(tuple(Structure(name, value) for value, name in enumerate(names, start=1)))


def test_a_regions_mask_holds_the_regions_inside_it() -> None:
    labels = LabelSchema(
        (Structure("whole", 2, region=(1, 2, 300)), Structure("core", 1, region=(1, 300)), Structure("x", 300))
    )
    array = np.random.default_rng(0).choice([0, 1, 2, 300], (5, 6, 7)).astype(np.uint16)
    masks = dict(masks_of(LabelMap(array, Geometry.from_spacing(array.shape, (1.0, 1.0, 1.0))), labels))
    for name, values in {"whole": (1, 2, 300), "core": (1, 300), "x": (300,)}.items():
        assert masks[name].array.dtype == np.uint8
        np.testing.assert_array_equal(masks[name].array, np.isin(array, values))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("liver", "liver.nii.gz"),
        ("Kidney left", "Kidney_left.nii.gz"),
        ("a/b\\c:d*?", "a_b_c_d_.nii.gz"),
        ("..", "_.nii.gz"),
        ("Ösophagus (T1+2)", "Ösophagus_(T1+2).nii.gz"),
        ("con", "_con.nii.gz"),
        ("Aux.1", "_Aux.1.nii.gz"),
        ("x" * 300, "x" * 200 + ".nii.gz"),
    ],
)
def test_names_are_those_that_every_system_takes(name: str, file: str) -> None:
    assert mask_names(schema(name)) == {name: file}


@given(st.text(min_size=1))
def test_any_name_gives_a_file_in_its_folder(name: str) -> None:
    (file,) = mask_names(schema(name)).values()
    assert not set(file) & set('/\\<>:"|?*\0\n ')
    assert file[0] != "."
    assert 8 <= len(file.encode()) < 220


@pytest.mark.parametrize("names", [("Liver", "liver"), ("a b", "a_b"), ("é", "e\u0301"), ("x" * 201, "x" * 202)])
def test_two_structures_of_one_file_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="would both be called"):
        mask_names(schema(*names, "spleen"))
    assert len(mask_names(schema(names[0], "spleen"))) == 2
