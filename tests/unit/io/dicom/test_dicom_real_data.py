"""Real series against ITK, voxel for voxel, and against the label maps that were drawn on them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.core.geometry import Geometry
from medseg.io.dicom_series import read_dicom_series

SERIES = [
    "ct_slab_20", "ct_head_64_dicom", "STS_002/CT/image", "STS_002/PET/image", "STS_002/MR_T1/image",
    "dcmqi_segmentations/ct-3slice", "dcmqi_segmentations/24x38x3/image", "rtutils_oriented",
]  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
def test_itk_reads_the_same(shared_data: Path, name: str) -> None:
    folder = shared_data / "dicom" / name
    volume = read_dicom_series(folder)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float64)
    if name == "dcmqi_segmentations/ct-3slice":
        array[array == -2000 - 1024] = -1024  # PixelPaddingValue, which ITK leaves
        assert [note.code for note in volume.notes] == ["dicom.padding"]
    elif volume.array.dtype == np.int16:
        assert {note.code for note in volume.notes} <= {"dicom.other_files"}
    np.testing.assert_allclose(volume.array[0], array, rtol=1e-6, atol=1e-6)
    size = np.array(image.GetSize()) - 1
    for corner in np.ndindex(2, 2, 2):
        index = [int(place) for place in np.array(corner) * size]
        itk_ras = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((volume.geometry.affine_ras @ [*index, 1])[:3], itk_ras, atol=1e-3)


@pytest.mark.parametrize(
    ("series", "label"),
    [("ct_slab_20", "ct_slab_20_labels.nii.gz"), ("ct_head_64_dicom", "ct_head_64_seg.nii.gz")],
)
def test_label_maps_lie_on_their_series(shared_data: Path, series: str, label: str) -> None:
    volume = read_dicom_series(shared_data / "dicom" / series)
    drawn = nib.load(shared_data / "dicom" / label)
    size_i, size_j, size_k = drawn.shape
    grid = Geometry(np.asarray(drawn.affine), (size_i, size_j, size_k))
    assert volume.geometry.canonical.difference(grid.canonical) is None
    hu = volume.geometry.axes.to_canonical(volume.array[0])
    mask = grid.axes.to_canonical(np.asanyarray(drawn.dataobj)) > 0
    # Structures are denser than what surrounds them, which is mostly air.
    assert hu[mask].mean() > hu[~mask].mean() + 100
