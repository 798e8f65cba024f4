"""Synthetic DICOM series from volumes, as scanners write them: for tests and for scripts/hospital_smoke.sh."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.dicom.library import dicom_library

MR, CT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "2"))
UNCOMPRESSED = "1.2.840.10008.1.2.1"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and back


def lps_affine(affine: Any) -> np.ndarray:
    """Voxel to LPS from voxel to RAS (mm), ``[4, 4]``; or back.

    Example:
        >>> lps_affine(np.eye(4))[0].tolist()
        [-1.0, 0.0, 0.0, 0.0]
    """
    return LPS @ np.asarray(affine, float)


def make_series(
    volume: Any,
    affine: Any,
    *,
    patient: str = "P001",
    description: str = "T1",
    number: int = 1,
    uids: Mapping[str, str] | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    seed: str = "",
    **header: Any,
) -> list[Any]:
    """Slices of a volume as MR or CT instances (pydicom datasets).

    Args:
        volume: stored whole numbers of 16 bits, ``[X, Y, Z]``: columns, rows, slices.
        affine: voxel to world (RAS, mm), ``[4, 4]``; its third axis need not be perpendicular (a tilted gantry).
        patient: PatientID.
        description: SeriesDescription.
        number: SeriesNumber.
        uids: ``StudyInstanceUID``, ``SeriesInstanceUID``, ``FrameOfReferenceUID`` that are given.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        seed: of the unique identifiers; the same gives the same.
        header: further attributes by keyword; None leaves one out. ``<keyword>_each`` lists a value a slice.

    Shape:
        - volume: ``[X, Y, Z]`` -> Z datasets of Y rows and X columns
    """
    pydicom, uid = dicom_library("pydicom"), dicom_library("pydicom.uid")
    volume, matrix = np.asarray(volume), lps_affine(affine)
    if volume.dtype not in (np.int16, np.uint16):
        raise ValueError(f"volume must be int16 or uint16, got {volume.dtype}")
    steps = np.linalg.norm(matrix[:3, :3], axis=0)

    def own(*parts: Any) -> str:
        return uid.generate_uid(entropy_srcs=[seed, patient, *map(str, parts)])

    each = {key.removesuffix("_each"): header.pop(key) for key in [*header] if key.endswith("_each")}
    common: dict[str, Any] = {
        "SOPClassUID": MR,
        "PatientName": "Phantom^One",
        "PatientID": patient,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": own("study"),
        "SeriesInstanceUID": own("series", number),
        "FrameOfReferenceUID": own("frame"),
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "StudyID": "1",
        "ReferringPhysicianName": "",
        "Modality": "MR",
        "PatientPosition": "HFS",
        "SeriesNumber": number,
        "SeriesDescription": description,
        "Manufacturer": "Phantom",
        "ManufacturerModelName": "One",
        "MagneticFieldStrength": 1.5,
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "PositionReferenceIndicator": "",
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "EchoTime": 2.0,
        "RepetitionTime": 5.0,
        "EchoTrainLength": 1,
        "FlipAngle": 10.0,
        "AcquisitionNumber": 1,
        "SliceThickness": round(float(steps[2]), 6),
        "SpacingBetweenSlices": round(float(steps[2]), 6),
        "PixelSpacing": [round(float(steps[1]), 8), round(float(steps[0]), 8)],
        "ImageOrientationPatient": [
            float(f"{v:.10f}") for v in (*(matrix[:3, 0] / steps[0]), *(matrix[:3, 1] / steps[1]))
        ],
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(volume.dtype == np.int16),
        **(uids or {}),
        **header,
    }
    slices = []
    for k in range(volume.shape[2]):
        one = pydicom.Dataset()
        for key, value in {**common, **{key: values[k] for key, values in each.items()}}.items():
            if value is not None:
                setattr(one, key, value)
        if "SOPInstanceUID" not in one:
            one.SOPInstanceUID = own("instance", number, common["SeriesInstanceUID"], k)
        if "InstanceNumber" not in one:
            one.InstanceNumber = k + 1
        if "ImagePositionPatient" not in one:
            one.ImagePositionPatient = [float(f"{v:.8f}") for v in (matrix @ [0, 0, k, 1])[:3]]
        one.Rows, one.Columns = volume.shape[1], volume.shape[0]
        one.PixelData = np.ascontiguousarray(volume[:, :, k].T).tobytes()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = UNCOMPRESSED
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
            one.SOPClassUID,
            one.SOPInstanceUID,
        )
        slices.append(one)
    return slices


def write_series(
    folder: str | os.PathLike, slices: Sequence[Any], *, syntax: str | None = None, names: Sequence[str] | None = None
) -> list[Path]:
    """Write instances as files without endings, in an order that is not the slices'.

    Args:
        folder: where they go.
        slices: instances.
        syntax: UID of a transfer syntax to compress to (RLE Lossless; JPEG-LS where pyjpegls is installed).
        names: of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, one in enumerate(slices):
        if syntax is not None:
            one.compress(syntax, generate_instance_uid=False)
        path = folder / (names[k] if names else f"IM{(k * 7) % 1000:04d}_{k}")
        one.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def make_segmentation(slices: Sequence[Any], regions: Mapping[str, Any], number: int = 90) -> Any:
    """A binary DICOM segmentation as a person draws it.

    Args:
        slices: instances of the series.
        regions: masks ``[X, Y, Z]`` of columns, rows, slices, by name.
        number: SeriesNumber.
    """
    hd, codes = dicom_library("highdicom"), dicom_library("pydicom.sr.codedict").codes
    described = [
        hd.seg.SegmentDescription(
            segment_number=k,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for k, name in enumerate(regions, 1)
    ]
    return hd.seg.Segmentation(
        slices,
        np.stack([np.asarray(mask).transpose(2, 1, 0) for mask in regions.values()], -1).astype(np.uint8),
        hd.seg.SegmentationTypeValues.BINARY,
        described,
        series_instance_uid=hd.UID(),
        series_number=number,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Phantom",
        manufacturer_model_name="One",
        software_versions="1",
        device_serial_number="1",
    )
