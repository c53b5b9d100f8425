"""Segments come back voxel for voxel: from real files against their counterparts, and from what highdicom wrote."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medseg.core.errors import CaseError, GeometryError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.io.dicom_labels import read_dicom_labels
from medseg.io.dicom_seg import read_dicom_seg

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_geometry(image: SimpleITK.Image) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Geometry(LPS @ affine, image.GetSize())


def itk_array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)


REAL = [
    ("liver.dcm", 1, "liver_seg.nrrd", 1),
    ("partial_overlaps.dcm", 1, "partial_overlaps-1.nrrd", 1),
    ("partial_overlaps.dcm", 2, "partial_overlaps-2.nrrd", 2),
    ("partial_overlaps.dcm", 3, "partial_overlaps-3.nrrd", 3),
    ("partial_overlaps.dcm", 4, "partial_overlaps-1.nrrd", 4),
    ("partial_overlaps.dcm", 5, "partial_overlaps-1.nrrd", 5),
    ("sparse-labelmap-noppv.dcm", 1, "sparse_labelmap_noppv_seg.nrrd", 1),
    ("sparse-labelmap-ppv5.dcm", 1, "sparse_labelmap_ppv5_seg.nrrd", 1),
    ("23x38x3/seg/label.seg", 1, "23x38x3/nrrd/label.nrrd", 1),
    ("24x38x3/seg/label.seg", 1, "24x38x3/nrrd/label.nrrd", 1),
]


@pytest.mark.parametrize(("name", "number", "counterpart", "value"), REAL)
def test_real_segments_are_exact(shared_data: Path, name: str, number: int, counterpart: str, value: int) -> None:
    """Overlapping ones, ones without empty frames, rows that fill no whole bytes (23 × 38), label maps."""
    folder = shared_data / "dicom/dcmqi_segmentations"
    image = SimpleITK.ReadImage(str(folder / counterpart))
    expected = itk_array(image) == value
    segmentation = read_dicom_seg(folder / name)
    assert segmentation.geometry.difference(itk_geometry(image)) is None
    np.testing.assert_array_equal(segmentation.mask(number), expected)
    # On a grid with the axes in another order and direction.
    geometry = itk_geometry(image)
    canonical = geometry.axes.to_canonical(expected)
    np.testing.assert_array_equal(segmentation.mask(number, geometry.canonical), canonical)
    assert expected.any()


@pytest.fixture(scope="module")
def slab(shared_data: Path) -> tuple[list[pydicom.Dataset], SimpleITK.Image, np.ndarray]:
    """A real series, its image, and its label map on the image's grid: the NIfTI's array runs the other way in Y."""
    folder = shared_data / "dicom/ct_slab_20"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    labels = SimpleITK.ReadImage(str(shared_data / "dicom/ct_slab_20_labels.nii.gz"))
    on_image = SimpleITK.Resample(labels, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    for dataset in slices:  # which were emptied, and which highdicom asks for
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    slices.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    return slices, image, SimpleITK.GetArrayFromImage(on_image)


def written(
    slices: list[pydicom.Dataset],
    pixels_KJI: np.ndarray,
    labels: list[str],
    kind: str,
    syntax: str = ExplicitVRLittleEndian,
) -> pydicom.Dataset:
    description = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number, label in enumerate(labels, start=1)
    ]
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels_KJI,
        segmentation_type=kind,
        segment_descriptions=description,
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
    )


def test_a_label_map_of_31_structures_comes_back(slab: tuple, shared_data: Path, tmp_path: Path) -> None:
    slices, image, labels_KJI = slab
    values = np.unique(labels_KJI)[1:]
    dense = np.searchsorted(np.append(0, values), labels_KJI).astype(np.uint8)
    path = tmp_path / "slab.dcm"
    written(slices, dense, [f"value {value}" for value in values], "BINARY").save_as(path)
    segmentation = read_dicom_seg(path)
    assert len(values) == 31
    for number, value in enumerate(values, start=1):
        assert segmentation.names[number] == f"value {value}"
        assert np.array_equal(segmentation.mask(number, itk_geometry(image)), labels_KJI.transpose(2, 1, 0) == value)
    nifti = SimpleITK.ReadImage(str(shared_data / "dicom/ct_slab_20_labels.nii.gz"))
    schema = LabelSchema(tuple(Structure(f"value {value}", int(value)) for value in values))
    assert np.array_equal(read_dicom_labels(path, itk_geometry(nifti), schema).array, itk_array(nifti))


KINDS = [
    ("BINARY", ExplicitVRLittleEndian),
    ("FRACTIONAL", ExplicitVRLittleEndian),
    ("FRACTIONAL", RLELossless),
    ("LABELMAP", ExplicitVRLittleEndian),
    ("LABELMAP", RLELossless),
    ("LABELMAP", JPEGLSLossless),
]


@pytest.mark.parametrize(("kind", "syntax"), KINDS)
def test_every_kind_is_exact(slab: tuple, tmp_path: Path, kind: str, syntax: str) -> None:
    slices, image, labels_KJI = slab
    pixels = (labels_KJI[:5] == 5).astype(np.uint8) + 2 * (labels_KJI[:5] == 6).astype(np.uint8)
    pixels[2] = 0  # a frame that is not stored
    path = tmp_path / "kind.dcm"
    written(slices[:5], pixels, ["Liver", "Stomach"], kind, syntax).save_as(path)
    segmentation = read_dicom_seg(path)
    assert segmentation.kind == kind
    for number in (1, 2):
        mask = segmentation.mask(number, itk_geometry(image[:, :, :5]))
        np.testing.assert_array_equal(mask, pixels.transpose(2, 1, 0) == number)
        np.testing.assert_array_equal(segmentation.mask(number), mask)
        assert mask.any()


def test_fractions_count_from_a_half(slab: tuple, tmp_path: Path) -> None:
    slices, image, _ = slab
    fractions = np.zeros((2, 512, 512), dtype=np.float64)
    fractions[0, 100, :256] = np.arange(256) / 255
    path = tmp_path / "fractional.dcm"
    written(slices[:2], fractions, ["Liver"], "FRACTIONAL").save_as(path)
    mask = read_dicom_seg(path).mask(1, itk_geometry(image[:, :, :2]))
    assert np.flatnonzero(mask[:, 100, 0]).tolist() == list(range(128, 256))


@pytest.fixture
def small(shared_data: Path) -> pydicom.Dataset:
    return pydicom.dcmread(shared_data / "dicom/dcmqi_segmentations/24x38x3/seg/label.seg")


def test_a_deflated_file_is_the_same(small: pydicom.Dataset, tmp_path: Path) -> None:
    mask = read_dicom_seg(Path(small.filename)).mask(1)
    path = tmp_path / "deflated.dcm"
    small.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    small.save_as(path)
    np.testing.assert_array_equal(read_dicom_seg(path).mask(1), mask)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ReadError):
        read_dicom_seg(path).mask(1)


def test_the_order_of_frames_means_nothing(small: pydicom.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "order.dcm"
    small.save_as(path)
    before, mask = read_dicom_seg(path), read_dicom_seg(path).mask(1)
    pixels = small.pixel_array
    small.PerFrameFunctionalGroupsSequence = [small.PerFrameFunctionalGroupsSequence[frame] for frame in (2, 0, 1)]
    small.PixelData = np.packbits(pixels[[2, 0, 1]].ravel(), bitorder="little").tobytes()
    small.save_as(path)
    after = read_dicom_seg(path)
    assert before.geometry.difference(after.geometry) is None
    np.testing.assert_array_equal(after.mask(1), mask)
    assert mask.any()


def test_frames_go_where_their_position_says(small: pydicom.Dataset, tmp_path: Path) -> None:
    """Onto a larger grid, onto a smaller one that cuts them, and onto none that lies between their voxels."""
    path = tmp_path / "place.dcm"
    small.save_as(path)
    segmentation = read_dicom_seg(path)
    own, mask = segmentation.geometry, segmentation.mask(1)

    def shifted(by: tuple[float, float, float], shape: tuple[int, int, int]) -> Geometry:
        affine = own.affine_ras.copy()
        affine[:3, 3] += affine[:3, :3] @ by
        return Geometry(affine, shape)

    padded, notes = segmentation.burn(1, shifted((-3, -2, -4), (30, 43, 9)))
    np.testing.assert_array_equal(padded[3:27, 2:40, 4:7], mask)
    assert padded.sum() == mask.sum()
    assert notes == ()
    cut, notes = segmentation.burn(1, shifted((5.02, 0, 1), (19, 38, 2)))
    np.testing.assert_array_equal(cut, mask[5:, :, 1:])
    assert [note.code for note in notes] == ["label.outside"]
    assert f" {mask.sum() - cut.sum()} voxels" in notes[0].message
    finer = Geometry(own.affine_ras @ np.diag([0.5, 1, 1, 1]), own.shape_ijk)
    for wrong in (shifted((0.5, 0, 0), own.shape_ijk), shifted((0, 0, 0.3), own.shape_ijk), finer):
        with pytest.raises(GeometryError, match=r"place\.dcm") as error:
            segmentation.mask(1, wrong)
        assert error.value.code == "geometry.label"


def test_two_frames_at_one_place_are_refused(shared_data: Path, tmp_path: Path) -> None:
    liver = pydicom.dcmread(shared_data / "dicom/dcmqi_segmentations/liver.dcm")
    frames = liver.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    path = tmp_path / "twice.dcm"
    liver.save_as(path)
    with pytest.raises(LabelError) as error:
        read_dicom_seg(path).mask(1)
    assert error.value.code == "label.duplicate_frame"


def set_frame(group: str, keyword: str, value: object) -> Callable[[pydicom.Dataset], None]:
    def change(dataset: pydicom.Dataset) -> None:
        for holder in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
            if group in holder:
                setattr(holder[group][0], keyword, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_frame("PlanePositionSequence", "ImagePositionPatient", [1.0, 2.0]),
        set_frame("PlanePositionSequence", "ImagePositionPatient", [1.0, 2.0, 1e300]),
        set_frame("PlaneOrientationSequence", "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        set_frame("PixelMeasuresSequence", "PixelSpacing", [0.0, 1.0]),
        set_frame("SegmentIdentificationSequence", "ReferencedSegmentNumber", 9),
        lambda dataset: setattr(dataset, "NumberOfFrames", 2),
        lambda dataset: setattr(dataset, "Rows", 0),
        lambda dataset: setattr(dataset, "Rows", 65535),
        lambda dataset: setattr(dataset, "BitsAllocated", 16),
        lambda dataset: setattr(dataset, "SegmentationType", "OTHER"),
        lambda dataset: delattr(dataset, "SegmentSequence"),
        lambda dataset: delattr(dataset, "PerFrameFunctionalGroupsSequence"),
        lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:200]),
    ],
)
def test_headers_that_make_no_sense_are_refused(
    small: pydicom.Dataset, tmp_path: Path, change: Callable[[pydicom.Dataset], None]
) -> None:
    change(small)
    path = tmp_path / "header.dcm"
    small.save_as(path)
    with pytest.raises(ReadError, match=r"header\.dcm") as error:
        read_dicom_seg(path)
    assert error.value.code in ("dicom.damaged", "dicom.truncated")


@pytest.mark.parametrize("name", ["24x38x3/seg/label.seg", "sparse-labelmap-ppv5.dcm"])
def test_no_cut_or_altered_file_is_believed_or_crashes(shared_data: Path, tmp_path: Path, name: str) -> None:
    content = (shared_data / "dicom/dcmqi_segmentations" / name).read_bytes()
    path, dice = tmp_path / "damaged.dcm", random.Random(3)
    for _ in range(50):
        path.write_bytes(content[: dice.randrange(len(content) - 1)])
        with pytest.raises(CaseError):
            read_dicom_seg(path).mask(1)
    num_read = 0
    for _ in range(100):
        altered = bytearray(content)
        for _ in range(dice.choice((1, 1, 4))):
            altered[dice.randrange(len(altered))] = dice.randrange(256)
        path.write_bytes(altered)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                num_read += bool(read_dicom_seg(path).mask(1).any())
            except CaseError as error:
                assert "damaged.dcm" in error.message or isinstance(error, GeometryError)
    assert num_read > 0


def test_another_object_is_refused(shared_data: Path) -> None:
    for name in ("STS_002/CT/mask/RS.dcm", "dcmqi_segmentations/ct-3slice/01.dcm"):
        with pytest.raises(ReadError) as error:
            read_dicom_seg(shared_data / "dicom" / name)
        assert error.value.code == "read.format"
