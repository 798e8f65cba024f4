"""The DICOM series that a patient's images were prepared from, and maps on their NIfTI grid as their frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.data.clutter import walk_files
from shared.data.dicom.headers import IDENTITY, READ, is_dicom, read_instance
from shared.data.dicom.library import dicom_library
from shared.data.dicom.stack import build_stack
from shared.data.grids import same_grid
from shared.errors import DataError
from shared.io import DATALIST, read_json_object

# attributes that may be empty and must be there (type 2), which de-identified files often lack
EMPTY = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
    *("ReferringPhysicianName", "PositionReferenceIndicator"),
)


class SourceSeries(NamedTuple):
    """A series in the order of its positions.

    Args:
        datasets: headers without voxels: one per slice, or the one multi-frame image.
        frames: number of the frame in its file, of each slice.
        shape: columns, rows, slices.
        affine: voxel to world (RAS, mm), ``[4, 4]``.
    """

    datasets: list[Any]
    frames: list[int]
    shape: tuple[int, int, int]
    affine: Any

    def to_frames(self, volume: Any, affine: Any) -> np.ndarray:
        """A map on the grid of the converted image as frames of the series' files, in the files' order.

        Args:
            volume: the map.
            affine: its voxel to world (RAS, mm).

        Shape:
            - volume: ``[X, Y, Z]`` of the converted image -> ``[frames, rows, columns]``

        Raises:
            DataError: the map lies on another grid.
        """
        import nibabel as nib

        volume = np.asarray(volume)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(self.affine))
        turned = nib.orientations.apply_orientation(volume, turn)
        moved = np.asarray(affine, float) @ nib.orientations.inv_ornt_aff(turn, volume.shape[:3])
        if not same_grid((turned.shape[:3], moved), (self.shape, self.affine)):
            raise DataError("the map does not lie on the grid of its DICOM series: prepare the patient again")
        slices = turned.transpose(2, 1, 0)
        if len(self.datasets) > 1:
            return np.ascontiguousarray(slices)
        out = np.empty_like(slices)
        out[self.frames] = slices
        return np.ascontiguousarray(out)


class DicomSource:
    """What the preparation recorded of the patients' series, and where their files lie now.

    Args:
        dataset_dir: the prepared folder.
        file: its datalist.
        source: folder of the DICOM files, where they have moved; or the record that lies beside a key of pseudonyms;
            None: as recorded.

    Raises:
        DataError: the patients were not prepared from DICOM, or the record cannot be read.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = DATALIST,
        source: str | os.PathLike | None = None,
    ):
        given = None if source is None else Path(source)
        listed = read_json_object(Path(dataset_dir) / file, "datalist").get("dicom")
        record = given if given is not None and given.is_file() else None
        if record is None and listed is None:
            raise DataError(
                f"dicom_out: {Path(dataset_dir) / file} names no DICOM series: its patients were prepared from NIfTI, "
                "or with --pseudonyms (then --dicom_source KEY_dicom_source.json); prepare them from DICOM, or leave "
                "dicom_out out"
            )
        record = record or Path(dataset_dir) / str(listed)
        content = read_json_object(record, "record of the DICOM source")
        self.patients: Mapping[str, Any] = content.get("patients") or {}
        self.folder = given if given is not None and given.is_dir() else record.parent / str(content.get("folder"))
        self._paths: dict[str, Path] | None = None

    def lacking(self, patients: Iterable[str]) -> list[str]:
        """Patients of whom there is no record."""
        return [patient for patient in patients if patient not in self.patients]

    def series(self, patient: str, modality: str) -> SourceSeries:
        """The series of a patient's modality.

        Raises:
            DataError: it is not recorded, or its files are not there any more.
        """
        known = self.patients.get(patient, {}).get(modality)
        if known is None:
            raise DataError(f"{patient}: there is no record of the DICOM series of {modality}")
        if self._paths is None:
            self._paths = _paths_by_uid(self.folder)
        uids = list(dict.fromkeys(uid for uid, _ in known["instances"]))
        if lost := [uid for uid in uids if uid not in self._paths]:
            raise DataError(
                f"{patient}: {len(lost)} of {len(uids)} DICOM files of {modality} are not in {self.folder}; give the "
                "folder where they lie: --dicom_source FOLDER"
            )
        if 1 < len(uids) < len(known["instances"]):
            raise DataError(
                f"{patient}: {modality} was made of {len(uids)} multi-frame files, and results refer to one: have the "
                "series exported as one file or as single images"
            )
        pydicom = dicom_library("pydicom")
        instances = [read_instance(self._paths[uid], [*READ, *IDENTITY]) for uid in uids]
        stack = build_stack([one for one in instances if one is not None])
        order = [(uids[i], f) for i, f in stack.order]
        if order != [(uid, frame) for uid, frame in known["instances"]]:
            raise DataError(f"{patient}: the DICOM files of {modality} have changed: prepare the patient again")
        datasets = [pydicom.dcmread(self._paths[uid], stop_before_pixels=True) for uid in uids]
        for dataset in datasets:
            _complete(dataset, patient, modality)
        return SourceSeries(datasets, [f for _, f in order], stack.shape, stack.affine)


def _complete(dataset: Any, patient: str, modality: str) -> None:
    """Empty values where a de-identified header lacks what may be empty.

    Raises:
        DataError: it has no frame of reference.
    """
    if not dataset.get("FrameOfReferenceUID"):
        raise DataError(f"{patient}: the DICOM files of {modality} have no FrameOfReferenceUID, which maps refer to")
    for key in EMPTY:
        if key not in dataset:
            setattr(dataset, key, "")


def _paths_by_uid(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"there is no DICOM folder {folder}; give the one where the files lie: --dicom_source FOLDER")
    pydicom, found = dicom_library("pydicom"), dict[str, Path]()
    for path in walk_files(folder):
        if is_dicom(path):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SOPInstanceUID"])
            except Exception:  # what cannot be read is none of them
                continue
            found.setdefault(str(header.get("SOPInstanceUID")), path)
    return found


def ordered_names(summary: Mapping[str, Any]) -> Sequence[str]:
    """Names of the biomarkers in a patient's JSON file, in the order of the map's codes, which begin at 1."""
    return list(((summary.get("shapley") or {}).get("values") or {}).keys())
