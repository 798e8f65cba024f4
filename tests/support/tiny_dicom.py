"""Small synthetic DICOM cohorts: two phases and a tumour per patient, as a PACS exports them."""

import numpy as np

from shared.apps.phantoms.dicom import UNCOMPRESSED, lps_affine, make_segmentation, make_series, write_series
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


def series_affine(*, normal=(0, 0, 1), row=(1, 0, 0), spacing=(1, 1, 1)):
    """Affine (voxel to RAS) of slices stacked along ``normal``, whose rows run along ``row`` (LPS)."""
    up = np.asarray(normal, float) / np.linalg.norm(normal)
    right = np.asarray(row, float) - np.dot(row, up) * up
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(up, right), up], axis=1) * np.asarray(spacing, float)
    return lps_affine(matrix)


def make_multiframe(slices, *, order=None):
    """The instances of :func:`make_series` as one Enhanced MR image (PS3.3 A.36.2), a frame each, in this order."""
    pydicom = dicom_library("pydicom")
    sequence, dataset = pydicom.Sequence, pydicom.Dataset
    first = slices[0]
    one = pydicom.Dataset()
    per_slice = (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
        *("RescaleSlope", "RescaleIntercept", "EchoTime", "RepetitionTime", "FlipAngle", "PixelData"),
        *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "EchoTrainLength"),
    )
    for element in first:
        if element.keyword not in per_slice:
            one.add(element)
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    one.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["frames", first.SeriesInstanceUID])
    one.InstanceNumber, one.NumberOfFrames = 1, len(slices)
    one.ImageType = [*first.ImageType[:2], "T1", "NONE"]
    one.ContentDate, one.ContentTime = "20260101", "120000"
    one.AcquisitionDateTime, one.AcquisitionDuration = "20260101120000", 1.0

    def item(**values):
        made = dataset()
        for key, value in values.items():
            setattr(made, key, value)
        return sequence([made])

    shared = dataset()
    shared.PixelMeasuresSequence = item(
        PixelSpacing=first.PixelSpacing,
        SliceThickness=first.SliceThickness,
        SpacingBetweenSlices=first.SpacingBetweenSlices,
    )
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.PixelValueTransformationSequence = item(
        RescaleIntercept=first.RescaleIntercept, RescaleSlope=first.RescaleSlope, RescaleType="US"
    )
    shared.MREchoSequence = item(EffectiveEchoTime=float(first.EchoTime))
    shared.MRTimingAndRelatedParametersSequence = item(
        RepetitionTime=first.RepetitionTime, FlipAngle=first.FlipAngle, EchoTrainLength=1
    )
    one.SharedFunctionalGroupsSequence = sequence([shared])
    organisation = pydicom.uid.generate_uid(entropy_srcs=[first.SeriesInstanceUID])
    one.DimensionOrganizationSequence = item(DimensionOrganizationUID=organisation)
    indices = []
    for pointer, group in ((0x00209056, 0x00209111), (0x00209057, 0x00209111)):
        index = dataset()
        index.DimensionOrganizationUID = organisation
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, group
        indices.append(index)
    one.DimensionIndexSequence = sequence(indices)
    frames, pixels = [], []
    for k in order if order is not None else range(len(slices)):
        frame = dataset()
        frame.FrameContentSequence = item(
            StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1], FrameAcquisitionNumber=1
        )
        frame.PlanePositionSequence = item(ImagePositionPatient=slices[k].ImagePositionPatient)
        frames.append(frame)
        pixels.append(slices[k].PixelData)
    one.PerFrameFunctionalGroupsSequence = sequence(frames)
    one.PixelData = b"".join(pixels)
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = UNCOMPRESSED
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
        one.SOPClassUID,
        one.SOPInstanceUID,
    )
    return one


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
