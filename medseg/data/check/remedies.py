"""What to do about each kind of defect."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.core.findings import Finding, Level

EXPORT, LOOK = "export it again from where it was made", "look at the contours, and correct or leave out the case"

REMEDIES = {
    "read.missing": "put the file in its place, or correct its name in the dataset's description",
    "read.empty": "copy the file again",
    "read.truncated": "copy the file again",
    "read.crc": "copy the file again, and check the disk it came from",
    "read.length": "copy the file again",
    "read.header": "copy the file again",
    "read.nonfinite": EXPORT,
    "read.dimensions": "store one image a file, with three axes",
    "read.channels": "list one file for each channel of the dataset",
    "geometry.affine": "correct the orientation in the header, or export it again",
    "geometry.spacing": "correct the spacing in the header: it is in millimetres",
    "geometry.label": "export image and label again together, or resample the label onto the image's grid",
    "geometry.channels": "resample the channels onto one grid",
    "geometry.spacing_outlier": "compare the header with the original: centimetres, or slices that were dropped?",
    "geometry.orientation": "compare the header with the original: an axis points the wrong way",
    "label.noninteger": "export the label map again without interpolation (nearest neighbour)",
    "label.range": "correct the label map: values are whole numbers from 0",
    "label.value": "correct the label map, or add the value to the dataset's labels",
    "label.empty": "draw the structure, take it off the case's 'annotated' list, or leave it so if it is really absent",
    "label.unlisted": "add the structure to the case's 'annotated' list, or erase it",
    "label.outside_image": "use the uncut image, or erase the contours where there is no image",
    "label.air": LOOK,
    "label.tissue": LOOK,
    "label.volume": LOOK,
    "label.position": LOOK,
    "label.spread": "look for stray pieces, and for parts that belong to another structure",
    "label.swapped": "exchange the two structures' values, or correct the header where the whole patient is mirrored",
    "label.mismatch": "find out whether the label map was shifted, turned, or belongs to another image",
    "label.duplicate": "find out whose contours they are",
    "image.constant": EXPORT,
    "image.hu_scale": "export it again in HU: no window, no normalisation, signed numbers",
    "image.hu_offset": "apply the rescale intercept (usually −1024) and export it again",
    "image.few_slices": "check whether slices are missing",
    "image.duplicate": "leave one of them out, or put the right image there",
    "image.near_duplicate": "find out whether it is one scan stored twice",
    "split.patient": "put all cases of a patient into one split",
    "check.failed": "look at this file with another program; if it is sound, report this as a bug",
    "check.killed": "check the memory that this case needs; run again with fewer --workers",
}
"""By code; a reader's code that is not listed has its remedy in its message."""


def found(
    code: str, level: Level, case: str | None, file: str | None, message: str, structures: Sequence[str] = ()
) -> Finding:
    """A finding with the remedy of its code."""
    remedy = REMEDIES.get(code, "copy the file again, or leave the case out")
    return Finding(case, file, code, level, message, remedy, tuple(structures))
