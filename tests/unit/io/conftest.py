"""Files of contours for the tests of this folder, written by pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

Contours = Sequence[np.ndarray]
WriteRtstruct = Callable[..., Path]


@pytest.fixture
def write_rtstruct(tmp_path: Path) -> WriteRtstruct:
    """Write structures as (name, contours in LPS mm); ``kind`` is the type of all contours."""

    def write(
        structures: Sequence[tuple[str, Contours]],
        *,
        kind: str = "CLOSED_PLANAR",
        change: Callable[[Dataset], None] | None = None,
        digits: int = 3,
    ) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.Modality = "RTSTRUCT"
        described, contoured = [], []
        for number, (name, contours) in enumerate(structures, start=1):
            roi, outlined = Dataset(), Dataset()
            roi.ROINumber, roi.ROIName = number, name
            outlined.ReferencedROINumber = number
            if contours:
                outlined.ContourSequence = DicomSequence([_contour(points, kind, digits) for points in contours])
            described.append(roi)
            contoured.append(outlined)
        dataset.StructureSetROISequence = DicomSequence(described)
        dataset.ROIContourSequence = DicomSequence(contoured)
        if change:
            change(dataset)
        path = tmp_path / "structures.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


def _contour(points_lps_mm: np.ndarray, kind: str, digits: int) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType = kind
    contour.NumberOfContourPoints = len(points_lps_mm)
    contour.ContourData = [f"{number:.{digits}f}" for number in np.ravel(points_lps_mm)]
    return contour
