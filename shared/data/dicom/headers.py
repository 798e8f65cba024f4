"""Headers of every DICOM file below a folder, without voxels: whose they are and of which series.

Nothing that a message shows names a person or a file: names of files hold names of patients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.data.clutter import walk_files
from shared.data.dicom.library import dicom_library
from shared.errors import DataError

SEGMENTATION, STRUCTURES, DIRECTORY = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.481.3",
    "1.2.840.10008.1.3.10",
)
# who somebody is: read to compare and to hide, never written
IDENTITY = (
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientBirthDate"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord"),
    *("NameOfPhysiciansReadingStudy", "RequestingPhysician", "AccessionNumber", "OtherPatientIDs", "PatientComments"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "PatientAddress", "ResponsiblePerson"),
)
READ = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "InstanceNumber"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue", "TriggerTime"),
    *("ImagesInAcquisition", "StudyDate", "BodyPartExamined", "ContrastBolusAgent", "ConvolutionKernel", "KVP"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName", "SoftwareVersions"),
    *("MagneticFieldStrength", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "EchoTime"),
    *("RepetitionTime", "InversionTime", "FlipAngle", "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "LossyImageCompression"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
PACKED = re.compile(r"\.(zip|7z|rar|t[gbx]z2?|tar|gz|bz2|xz|zst|lz4|Z)$", re.IGNORECASE)
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_RENAMED = {"EffectiveEchoTime": "EchoTime"}  # of enhanced images, to the name of plain ones


@dataclass(frozen=True)
class Frame:
    """Where one frame lies, as its header says: position and orientation (LPS, mm), spacing of rows and columns.

    A value is None where the header lacks it.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float

    @property
    def placed(self) -> bool:
        """Whether it is known where the frame lies: nothing is missing, directions and spacings are not 0."""
        if self.position is None or self.orientation is None or self.spacing is None:
            return False
        return any(self.orientation[:3]) and any(self.orientation[3:]) and min(self.spacing) > 0


@dataclass(frozen=True)
class Instance:
    """One DICOM file: its header's values by keyword, its frames; ``hidden``: words that must not be shown."""

    path: Path
    values: Mapping[str, Any]
    frames: tuple[Frame, ...]
    syntax: str
    person: tuple[str, str]
    hidden: frozenset[str]

    @property
    def uid(self) -> str:
        """SOP Instance UID."""
        return str(self.values.get("SOPInstanceUID", ""))

    @property
    def patient(self) -> str:
        """PatientID, stripped."""
        return str(self.values.get("PatientID") or "").strip()


@dataclass
class Scan:
    """What lies below a folder.

    Attributes:
        instances: images, segmentations and structure sets, one per SOP Instance UID.
        nifti: NIfTI files.
        others: how many files are something else.
        unreadable: numbers, by path, of those that begin as DICOM and cannot be read, or lack their SOP class or UID.
        absent: how many files a DICOMDIR lists and are not there.
        changed: instances that are there twice with different content, by patient.
    """

    instances: list[Instance] = field(default_factory=list)
    nifti: list[Path] = field(default_factory=list)
    others: int = 0
    unreadable: list[int] = field(default_factory=list)
    absent: int = 0
    changed: dict[str, int] = field(default_factory=dict)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: ``DICM`` after 128 bytes, or, of old files, a first group 0002 or 0008."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or (
        head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:4] in (b"\0\0", b"\x01\0", b"\x05\0", b"\x08\0", b"\x16\0")
    )


def find_files(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """DICOM files below a folder, without DICOMDIRs, which list others; NIfTI files; and archives and packed files."""
    dicom, nifti, packed = list[Path](), list[Path](), list[Path]()
    for path in walk_files(folder) if folder.is_dir() else ():
        if NIFTI.search(path.name):
            nifti.append(path)
        elif path.name.casefold() != "dicomdir" and is_dicom(path):
            dicom.append(path)
        elif PACKED.search(path.name):
            packed.append(path)
    return dicom, nifti, packed


def read_folder(folder: Path, keywords: Iterable[str] = ()) -> Scan:
    """Read the header of every DICOM file below ``folder``.

    Args:
        folder: any depth; names and endings do not matter; a DICOMDIR is compared with what is there.
        keywords: further attributes to keep.

    Raises:
        DataError: pydicom is not installed.
    """
    from tqdm import tqdm

    scan, seen = Scan(), dict[str, Instance]()
    tags = [*dict.fromkeys((*READ, *IDENTITY, *keywords))]
    for number, path in enumerate(tqdm([*walk_files(folder)], desc="reading headers", unit="file"), 1):
        if NIFTI.search(path.name):
            scan.nifti.append(path)
            continue
        if not is_dicom(path):
            scan.others += 1
            continue
        try:
            one = read_instance(path, tags)
        except Exception:  # pydicom raises errors of many kinds on broken files
            scan.unreadable.append(number)
            continue
        if one is None:
            scan.absent += _absent_files(path)
        elif one.uid not in seen:
            seen[one.uid] = one
        elif _content(one.path) != _content(seen[one.uid].path):
            scan.changed[one.patient] = scan.changed.get(one.patient, 0) + 1
    scan.instances = [*seen.values()]
    return scan


def read_instance(path: Path, tags: Sequence[str]) -> Instance | None:
    """Header of one file; None of a DICOMDIR.

    Args:
        path: the file.
        tags: keywords to keep.

    Raises:
        DataError: it has no SOP class or instance.
    """
    pydicom = dicom_library("pydicom")
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*tags])
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") if hasattr(dataset, "file_meta") else "")
    if str(getattr(getattr(dataset, "file_meta", None), "MediaStorageSOPClassUID", "")) == DIRECTORY:
        return None
    if not dataset.get("SOPClassUID") or not dataset.get("SOPInstanceUID"):
        raise DataError("no SOP class or instance")
    values = dict(_values(dataset))
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (shared, _first(per_frame)):
        for key, value in _nested(group):
            values.setdefault(_RENAMED.get(key, key), value)
    frames = tuple(_frame(dataset, shared, one) for one in (per_frame or [None]))
    named = [str(dataset.get(key) or "") for key in IDENTITY]
    words = {word.casefold() for text in named for word in re.findall(r"[^\W_]{2,}", text)}
    person = (
        " ".join(re.findall(r"[^\W_]+", str(dataset.get("PatientName") or "").casefold())),
        str(dataset.get("PatientBirthDate") or ""),
    )
    for key in IDENTITY:
        values.pop(key, None)
    values["site"] = str(dataset.get("InstitutionName") or "").strip().casefold()  # becomes a number, is never written
    return Instance(path, values, frames, syntax, person, frozenset(words))


def scrubbed(text: Any, hidden: Iterable[str]) -> str:
    """Free text for a message: words that name a person, a place or a date are dots.

    Example:
        >>> scrubbed("MUELLER t1 portal 19640229 29.02.1964", {"mueller"})
        '... t1 portal ... ...'
    """
    hidden, text = set(hidden), re.sub(r"(?<!\d)\d{1,4}([-./_])\d{1,2}\1\d{2,4}(?!\d)", "...", str(text))

    def shown(found: re.Match) -> str:
        word = found[0]
        return "..." if word.casefold() in hidden or (word.isdigit() and len(word) > 4) else word

    return re.sub(r"[^\W_]+", shown, text)[:80]


def _values(dataset: Any) -> Iterator[tuple[str, Any]]:
    for element in dataset:
        if element.keyword and element.VR not in ("SQ", "OB", "OW", "UN"):
            yield element.keyword, plain(element.value)


def plain(value: Any) -> Any:
    """A value of pydicom as a number, a text, or a list of them; None where it is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "__iter__") and not isinstance(value, bytes):
        return [plain(one) for one in value]
    if isinstance(value, int):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _nested(group: Any) -> Iterator[tuple[str, Any]]:
    """Values of functional groups, which lie one sequence deep."""
    for element in group if group is not None else ():
        if element.VR == "SQ" and len(element.value):
            yield from _values(element.value[0])


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _frame(dataset: Any, shared: Any, own: Any) -> Frame:
    def found(sequence: str, key: str) -> Any:
        for group in (own, shared):
            item = _first(group.get(sequence)) if group is not None else None
            if item is not None and item.get(key) is not None:
                return item.get(key)
        return dataset.get(key)

    def numbers(sequence: str, key: str, count: int) -> tuple[float, ...] | None:
        value = found(sequence, key)
        try:
            values = tuple(float(one) for one in value)
        except (TypeError, ValueError):
            return None
        return values if len(values) == count else None

    def scale(key: str, default: float) -> float:
        value = found("PixelValueTransformationSequence", key)
        return default if value in (None, "") else float(value)

    return Frame(
        numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        numbers("PixelMeasuresSequence", "PixelSpacing", 2),
        scale("RescaleSlope", 1.0),
        scale("RescaleIntercept", 0.0),
    )


def _content(path: Path) -> str:
    from shared.digests import sha256

    return sha256(path)


def _absent_files(path: Path) -> int:
    """How many files a DICOMDIR lists that are not there."""
    records = dicom_library("pydicom").dcmread(path).get("DirectoryRecordSequence") or []
    absent = 0
    for record in records:
        listed = record.get("ReferencedFileID")
        if listed:
            parts = [listed] if isinstance(listed, str) else list(listed)
            absent += not path.parent.joinpath(*parts).is_file()
    return absent
