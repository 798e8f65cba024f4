"""Inference's results as DICOM, beside the series that the patients were prepared from."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from shared.data.names import nfc
from shared.data.volumes import Volume, resample
from shared.distributed.processes import is_main
from shared.errors import DataError
from shared.io import DATALIST, atomic_path, read_json_object
from shared.reports.dicom.objects import (
    NO_DEVICE,
    Finding,
    Maker,
    page,
    parametric_map,
    segmentation,
    structured_report,
)
from shared.reports.dicom.picture import draw_page
from shared.reports.dicom.source import DicomSource, SourceSeries, ordered_names

logger = logging.getLogger(__name__)

FIRST = 9000  # number of the first series of results
SHOWN = 0.5  # of a soft mask, from which a voxel is of its region
NATIVE = {"contribution": "log odds", "cam": "activation"}  # of a glioma, led back from MNI152, and their unit
ANCHOR = "T1c"  # whose grid that is
NOTES = {
    "set": "Conformal set",
    "out_of_cohort": "Unlike the training patients (1: yes)",
    "trained_on": "Trained on (1: yes)",
    "lacking": "Predicted without",
}


class SaveDicom:
    """Write what an evaluator's other handlers left in ``output_dir`` as DICOM, a folder per patient.

    ``report.dcm`` (TID 1500) and ``page.dcm`` (Secondary Capture) always; ``biomarkers.dcm`` (Segmentation) and
    ``<map>_<modality>.dcm`` (Parametric Map) where there are maps on the patient's own grid; ``contribution.dcm`` and
    ``cam.dcm`` of a glioma that was explained into the same folder before, resampled to T1c's series.

    Args:
        dicom_out: folder to write; None: nothing is written.
        output_dir: where ``predictions.csv`` and ``patients/`` lie.
        dataset_dir: the prepared folder.
        bundle_root: of the bundle, for its name and version.
        ckpt_dir: of the model, for its checksum.
        cases: the patients, with what they are ``lacking``, if anything.
        modalities: names of the images, in the cases' order: maps lie on the grid of the first one that a patient has.
        class_names: names of the classes; the second is the positive one.
        datalist_file: the datalist.
        dicom_source: see :class:`shared.reports.dicom.source.DicomSource`.

    Raises:
        DataError: the patients were not prepared from DICOM.
    """

    def __init__(
        self,
        dicom_out: str | os.PathLike | None,
        *,
        output_dir: str | os.PathLike,
        dataset_dir: str | os.PathLike,
        bundle_root: str | os.PathLike,
        ckpt_dir: str | os.PathLike,
        cases: Sequence[Mapping[str, Any]],
        modalities: Sequence[str],
        class_names: Sequence[str] = ("negative", "positive"),
        datalist_file: str | os.PathLike = DATALIST,
        dicom_source: str | os.PathLike | None = None,
    ):
        self.out = None if dicom_out is None else Path(dicom_out)
        if self.out is None:
            return
        self.output_dir, self.modalities, self.class_names = Path(output_dir), list(modalities), list(class_names)
        self.patients = {str(case["patient"]): case.get("lacking") or {} for case in cases}
        self.source = DicomSource(dataset_dir, datalist_file, dicom_source)
        if lacking := self.source.lacking(self.patients):
            raise DataError(
                [f"dicom_out: {name}: was not prepared from DICOM; leave the patient out" for name in lacking]
            )
        metadata = read_json_object(Path(bundle_root) / "configs" / "metadata.json", "metadata")
        model = Path(ckpt_dir) / "model.json"
        weights = read_json_object(model, "model").get("weights") if model.is_file() else None
        self.maker = Maker(Path(bundle_root).resolve().name, str(metadata.get("version")), str(weights or ""))

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after the handlers whose files are read."""
        if self.out is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write every patient's objects."""
        if not is_main() or self.out is None:
            return
        logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs every module it copies, with identifiers
        with (self.output_dir / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = {nfc(row["patient"]): row for row in csv.DictReader(file)}
        problems = []
        for patient in self.patients:
            try:
                self.write(patient, rows[patient])
            except DataError as error:
                problems += [line if line.startswith(patient) else f"{patient}: {line}" for line in error.problems]
        if problems:
            raise DataError(problems)
        logger.info("%s: DICOM results of %d patients. %s", self.out, len(self.patients), NO_DEVICE)

    def write(self, patient: str, row: Mapping[str, str]) -> list[Path]:
        """Write one patient's objects; the paths.

        Args:
            patient: its name.
            row: of predictions.csv.
        """
        folder = self.output_dir / "patients"
        file = folder / f"{patient}.json"
        summary = read_json_object(file, "result") if file.is_file() else {}
        native = {name: found for name in NATIVE if (found := self._read(patient, f"{name}_native")) is not None}
        if native and abs(float(summary.get("probability", -1)) - float(row["probability"])) > 1e-3:
            raise DataError(
                f"{file}: explains a probability of {summary.get('probability')}, and {row['probability']} was "
                "predicted: explain with this model and answer again, or predict into another --output_dir"
            )
        present = [m for m in self.modalities if m not in self.patients[patient]]
        source = self.source.series(patient, ANCHOR if native and ANCHOR in present else present[0])
        regions, maps = self._regions(patient, source, summary), dict(self._maps(patient, source))
        for name, (values, affine) in native.items():
            maps[name] = source.to_frames(resample(Volume(values[..., 0], affine), *source[2:]).array, source.affine)
        made: dict[str, Any] = {}
        if regions:
            made["biomarkers"] = segmentation(source.datasets, regions, self.maker, FIRST)
        for k, (name, values) in enumerate(maps.items(), 1):
            label = NATIVE.get(name, "log odds" if name.startswith("contributions") else "mask")
            what = f"{name.replace('_', ' ')}, {label}"
            made[name] = parametric_map(source.datasets, values, self.maker, FIRST + k, label=label, explained=what)
        findings = self._findings(summary, regions)
        notes = {title: row[key] for key, title in NOTES.items() if row.get(key)}
        positive, probability = self.class_names[1], float(row["probability"])
        made["report"] = structured_report(
            source.datasets,
            self.maker,
            FIRST + len(maps) + 1,
            positive=positive,
            probability=probability,
            notes=notes,
            findings=findings,
            segments=made.get("biomarkers"),
        )
        lines = [
            f"{self.maker.name} {self.maker.software}: probability of {positive} {probability:.2f}",
            NO_DEVICE,
            *(f"{title}: {text}" for title, text in notes.items()),
            *(_line(one) for one in sorted(findings, key=lambda one: -abs(one.log_odds or 0))[:8]),
        ]
        picture = draw_page(lines, folder / f"{patient}_{'contribution' if native else 'overlay'}.png")
        made["page"] = page(source.datasets[0], picture, self.maker, FIRST + len(maps) + 2)
        paths = []
        for name, one in made.items():
            path = self.out / patient / f"{name}.dcm" if self.out else Path(name)
            with atomic_path(path) as temporary:
                one.save_as(temporary, enforce_file_format=True)
            paths.append(path)
        return paths

    def _regions(self, patient: str, source: SourceSeries, summary: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Each biomarker that the patient has, or each modality's soft mask, as frames."""
        codes = self._read(patient, "biomarkers")
        if codes is not None:
            values, affine = codes
            names = ordered_names(summary)
            return {
                names[k - 1]: source.to_frames((values == k).any(axis=-1), affine)
                for k in sorted({int(k) for k in np.unique(values)} - {0})
            }
        masks = self._read(patient, "mask")
        if masks is None:
            return {}
        values, affine = masks
        found = {
            f"{name} explained": source.to_frames(values[..., c] >= SHOWN, affine)
            for c, name in enumerate(self.modalities)
        }
        return {name: frames for name, frames in found.items() if frames.any()}

    def _maps(self, patient: str, source: SourceSeries) -> Iterable[tuple[str, np.ndarray]]:
        for kind in ("contributions", "mask"):
            found = self._read(patient, kind)
            if found is not None:
                values, affine = found
                for c, modality in enumerate(self.modalities):
                    yield f"{kind}_{_plain(modality)}", source.to_frames(values[..., c], affine)

    def _read(self, patient: str, kind: str) -> tuple[np.ndarray, Any] | None:
        """A map of all modalities ``[X, Y, Z, C]`` and its affine, where the patient has one."""
        import nibabel as nib

        path = self.output_dir / "patients" / f"{patient}_{kind}.nii.gz"
        if not path.is_file():
            return None
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        return (values if values.ndim == 4 else values[..., None]), image.affine

    def _findings(self, summary: Mapping[str, Any], regions: Mapping[str, Any]) -> list[Finding]:
        """What speaks for and against, with the areas, and the segments they are."""
        numbers = {name: k for k, name in enumerate(regions, 1)}
        told = [*(summary.get("for") or []), *(summary.get("against") or [])]
        return [
            Finding(one["name"], one.get("area_mm2"), one.get("log_odds"), numbers.get(one["name"])) for one in told
        ]


def _line(finding: Finding) -> str:
    area = "" if finding.area_mm2 is None else f", {finding.area_mm2:.0f} mm2 per slice"
    return f"biomarker {finding.name}: log odds {finding.log_odds or 0:+.2f}{area}"


def _plain(name: str) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in name)
