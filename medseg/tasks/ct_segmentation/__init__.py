"""3D segmentation of scans: CT, and any other modality on a voxel grid."""

from __future__ import annotations

from medseg.core.task import API_VERSION, TaskSpec

spec = TaskSpec(
    name="ct_segmentation",
    api_version=API_VERSION,
    summary="contour structures in 3D scans (CT, MR, PET), also from partly annotated cases",
    config_type="medseg.tasks.ct_segmentation.config:CtSegmentationConfig",
    files="medseg.tasks.ct_segmentation.files:files",
    create="medseg.tasks.ct_segmentation.training:create",
    fit_plan="medseg.tasks.ct_segmentation.planner:fit_plan",
    requires=("torch", "monai", "nibabel"),
)
