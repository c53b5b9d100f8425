"""A writer of DICOM series: what a scanner or an archive would put into a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

NATIVE = {ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
BY_GDCM = {
    JPEG2000Lossless: "JPEG2000Lossless",
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEGLSLossless: "JPEGLSLossless",
}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class WriteSeries(Protocol):
    def __call__(
        self,
        folder: Path,
        stored_ijk: np.ndarray,
        affine_ras: np.ndarray,
        *,
        syntax: str = ...,
        names: Sequence[str] | None = None,
        change: Callable[[int, Dataset], Any] | None = None,
        series: str = ...,
    ) -> list[Path]: ...


def slice_dataset(stored_ij: np.ndarray, affine_ras: np.ndarray, index: int, series: str) -> Dataset:
    """A CT slice: HU are stored values minus 1024. Its thickness and its instance number mislead, as they may."""
    affine_lps = LPS_TO_RAS @ affine_ras
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{series}.{index + 1}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "P1", "Doe^Jane"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", series, "1.2.3.9"
    dataset.AcquisitionNumber, dataset.InstanceNumber, dataset.SliceThickness = 1, 100 - index, 0.5
    dataset.ImagePositionPatient = [f"{x:.9g}" for x in (affine_lps @ [0, 0, index, 1])[:3]]
    dataset.ImageOrientationPatient = [f"{x:.12f}"[:16] for x in (affine_lps[:3, :2] / spacing[:2]).T.ravel()]
    dataset.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Columns, dataset.Rows = stored_ij.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored_ij.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(stored_ij.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.PixelData = np.ascontiguousarray(stored_ij.T).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def save(dataset: Dataset, path: Path, syntax: str) -> None:
    if syntax in NATIVE:
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax not in BY_GDCM:
        dataset.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"u{dataset.BitsAllocated // 8}").byteswap().tobytes()
    dataset.save_as(path, enforce_file_format=True)
    if syntax in BY_GDCM:
        compress_with_gdcm(path, syntax)


def compress_with_gdcm(path: Path, syntax: str) -> None:
    """GDCM encodes what pydicom does not, and JPEG-LS, so that encoder and decoder differ."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, BY_GDCM[syntax])))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


@pytest.fixture(scope="session")
def write_series() -> WriteSeries:
    """Writes one CT series: ``stored_ijk`` on a grid whose K axis runs along the slices' normal, or is sheared.

    ``change(k, dataset)`` may alter a slice; ``names`` are the files' names in the order of K.
    """

    def write(
        folder: Path,
        stored_ijk: np.ndarray,
        affine_ras: np.ndarray,
        *,
        syntax: str = ExplicitVRLittleEndian,
        names: Sequence[str] | None = None,
        change: Callable[[int, Dataset], Any] | None = None,
        series: str = "1.2.3.4",
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for index in range(stored_ijk.shape[2]):
            dataset = slice_dataset(stored_ijk[:, :, index], affine_ras, index, series)
            if change is not None:
                change(index, dataset)
            path = folder / (names[index] if names else f"{series}_{index:03d}.dcm")
            save(dataset, path, syntax)
            paths.append(path)
        return paths

    return write
