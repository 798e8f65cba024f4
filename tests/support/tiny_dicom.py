"""Small synthetic DICOM cohorts: two phases and a tumour per patient, as a PACS exports them."""

import numpy as np

from shared.apps.phantoms.dicom import lps_affine, make_segmentation, make_series, series_affine, write_series
from shared.data.dicom.library import dicom_library

OBLIQUE = {"normal": (0.1, 0.4, 0.9), "row": (1, 0.1, 0.05)}
SAGITTAL = {"normal": (1, 0.05, 0), "row": (0, 1, 0.05)}


def tiny_volume(seed, shape=(16, 16, 6)):
    """Noise about a bright ball: stored values [X, Y, Z], and the ball as a mask."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    ball = np.linalg.norm((place - [7, 8, 2.6]) * [1, 1, 1.5], axis=-1) < 4
    return (rng.integers(200, 260, shape) + 300 * ball).astype(np.int16), ball


def tiny_patient(
    folder, patient, seed=0, *, phases=("T1", "T1 portal"), spacing=(1.5, 1.25, 3), axes=None, mask="SEG", **header
):
    """Write a patient's series, and the ball as SEG, RTSTRUCT or not at all; the series, the mask and the affine."""
    affine = series_affine(spacing=spacing, **(axes or {}))
    made = []
    for k, phase in enumerate(phases):
        volume, ball = tiny_volume(seed + 100 * k)
        slices = make_series(volume, affine, patient=patient, description=phase, number=k + 1, **header)
        write_series(folder / f"s{k}", slices)
        made.append((volume, slices))
    if mask == "SEG":
        make_segmentation(made[0][1], {"tumour": ball}).save_as(folder / "seg")
    elif mask == "RTSTRUCT":
        make_structures(made[0][1], {"GTV": squares(ball, affine)}).save_as(folder / "rt", enforce_file_format=True)
    return made, ball, affine


def squares(mask, affine):
    """Outline of each slice of a mask that is a bounding box: lists of points in LPS."""
    found = []
    for k in range(mask.shape[2]):
        inside = np.argwhere(mask[:, :, k])
        if len(inside):
            (x0, y0), (x1, y1) = inside.min(axis=0) - 0.4, inside.max(axis=0) + 0.4
            corners = [[x0, y0, k, 1], [x1, y0, k, 1], [x1, y1, k, 1], [x0, y1, k, 1]]
            found.append((np.array(corners) @ lps_affine(affine).T)[:, :3])
    return found


def make_structures(slices, rois, number=91):
    """An RTSTRUCT with contours (LPS) by name."""
    pydicom = dicom_library("pydicom")
    first, one = slices[0], pydicom.Dataset()
    for key in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
    ):
        setattr(one, key, first.get(key))
    one.SOPClassUID, one.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", pydicom.uid.generate_uid()
    one.Modality, one.SeriesInstanceUID, one.SeriesNumber = "RTSTRUCT", pydicom.uid.generate_uid(), number
    series, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = pydicom.Sequence([series])
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = pydicom.Sequence([study])
    one.ReferencedFrameOfReferenceSequence = pydicom.Sequence([frame])
    named, drawn = [], []
    for number, (name, outlines) in enumerate(rois.items(), 1):
        roi, contours = pydicom.Dataset(), []
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, first.FrameOfReferenceUID
        for points in outlines:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{v:.6f}" for v in np.ravel(points)]
            contours.append(contour)
        item = pydicom.Dataset()
        item.ReferencedROINumber, item.ContourSequence = number, pydicom.Sequence(contours)
        named.append(roi)
        drawn.append(item)
    one.StructureSetROISequence, one.ROIContourSequence = pydicom.Sequence(named), pydicom.Sequence(drawn)
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
        one.SOPClassUID,
        one.SOPInstanceUID,
    )
    return one
