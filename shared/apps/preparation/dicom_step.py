"""A folder of DICOM becomes a folder of NIfTI per patient, as the preparation scripts read it; names stay behind."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.apps.preparation.acquisition import COLUMNS, Codes, acquisition_row
from shared.apps.preparation.dicom_series import Series, choose_all, group_series
from shared.apps.preparation.files import program
from shared.apps.preparation.matching import AFTER_NAME, Lacking, file_name, folded, has_words, is_mask_file, stem
from shared.data.clutter import is_clutter
from shared.data.dicom.convert import check_syntaxes, convert_series
from shared.data.dicom.headers import STRUCTURES, Instance, Scan, read_folder
from shared.data.dicom.masks import choose_regions, is_mask, read_regions, segmentation_mask, structure_mask
from shared.data.dicom.pseudonyms import Pseudonyms, owner_only
from shared.data.dicom.rules import Rule, parse_series, passes
from shared.data.dicom.stack import Stack, build_stack
from shared.data.tables import read_table
from shared.errors import DataError
from shared.io import atomic_path, write_csv, write_json
from shared.reports.dicom.objects import MAKER

CONVERTED, SIDECARS, DONE = "converted", "sidecars", ".converted.json"
SOURCE, ACQUISITION = "dicom_source.json", "acquisition.csv"
MASK = "mask"
BRAIN_WORDS = ("brain mask", "brainmask", "bet mask")


@dataclass
class Plan:
    """What is converted of one patient."""

    name: str
    series: dict[str, Series]
    stacks: dict[str, Stack]
    mask: Instance | Path | None = None
    regions: list[int] = field(default_factory=list)
    drawn_on: str = ""  # modality whose grid the mask has
    brain: Path | None = None


class DicomStep:
    """The step of one command line."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.root = options, options.folder
        self.rules: dict[str, list[Rule]] = parse_series(options.series, [*options.modalities, MASK])
        self.flags: list[str] = []
        self.key: Pseudonyms | None = None
        if options.pseudonyms is not None:
            key = Path(
                options.pseudonyms or options.output.resolve().parent / f"{options.output.resolve().name}_key.csv"
            )
            if key.resolve().is_relative_to(options.output.resolve()):
                raise DataError(f"--pseudonyms {key}: the key must lie outside --output {options.output}")
            if (options.output / SOURCE).exists():
                raise DataError(f"{options.output} was prepared without --pseudonyms; give a new folder as --output")
            self.key = Pseudonyms(key)
        self.known = self._known()
        self.spelled = {folded(one): one for one in self.known}

    def run(self) -> None:
        """Read, choose, convert, and point the options to what was made."""
        options = self.options
        keywords = {test.keyword for rules in self.rules.values() for rule in rules for test in rule}
        scan = read_folder(self.root, keywords)
        people, problems = self._people(scan)
        names = {patient: self._name(patient) for patient in [*people, *self.known]}
        if self.key:
            self.key.save()
        elif bad := [patient for patient in people if not _is_file_name(patient)]:
            problems.append(
                f"{len(bad)} PatientIDs cannot name a folder, as {bad[0]!r}; give --pseudonyms, which names them anew"
            )
        plans, strangers, lacking = list[Plan](), list[str](), list[str]()
        beside = self._beside(scan, people, names, problems)
        for patient, instances in people.items():
            if options.labels is not None and folded(patient) not in self.spelled:
                strangers.append(names[patient])
                continue
            plan, found = self._plan(names[patient], instances, beside.get(patient, []))
            lacking += [line for line in found if isinstance(line, Lacking)]
            problems += [line for line in found if not isinstance(line, Lacking)]
            plans += [plan] if plan else []
        if lacking and not options.skip_missing:
            problems += [*lacking, "--skip-missing leaves such patients out"]
        if problems:
            raise DataError(problems)
        self.flags += [f"left out: {line}" for line in lacking]
        folder = options.output / CONVERTED
        told = self._convert(plans, folder)
        for name in strangers:  # whom the table does not name: told with the others who are left out
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._clear(folder, {plan.name for plan in plans} | set(strangers))
        self._write(plans, names, told, scan)
        self._point(folder, names, any(plan.mask is not None for plan in plans))

    def _known(self) -> list[str]:
        """Patients of the label table."""
        if self.options.labels is None:
            return []
        return [
            row[self.options.patient_column] for row in read_table(self.options.labels, [self.options.patient_column])
        ]

    def _name(self, patient: str) -> str:
        patient = self.spelled.get(folded(patient), patient)  # the table's capitals are kept, as with folders of NIfTI
        return self.key(patient) if self.key and patient else patient

    def _people(self, scan: Scan) -> tuple[dict[str, list[Instance]], list[str]]:
        """Instances by PatientID, and what is wrong with the files and the identities."""
        problems, people = list[str](), dict[str, list[Instance]]()
        for one in scan.instances:
            people.setdefault(one.patient, []).append(one)
        if nameless := people.pop("", []):
            problems.append(f"{len(nameless)} DICOM files have no PatientID; whose they are is unknown: take them away")
        if scan.unreadable:
            numbers = ", ".join(map(str, scan.unreadable[:5]))
            problems.append(
                f"{len(scan.unreadable)} files begin as DICOM and cannot be read, or lack SOPClassUID or "
                f"SOPInstanceUID (by path, file {numbers}); copy them again or take them away"
            )
        for patient, count in scan.changed.items():
            problems.append(
                f"{self._name(patient) or 'no PatientID'}: {count} images are there twice, with one SOPInstanceUID and "
                "different content; keep one export"
            )
        persons: dict[tuple[str, str], str] = {}
        for patient, many in sorted(people.items()):
            found = {one.person for one in many if one.person != ("", "")}
            births = {birth for _, birth in found if birth}
            words = [frozenset(name.split()) for name, _ in found if name]
            if len(births) > 1 or any(not (a <= b or b <= a) for a in words for b in words):
                problems.append(
                    f"{self._name(patient)}: {len(found)} names or birth dates share this PatientID; are they one "
                    "person? Give each a PatientID"
                )
            for name, birth in found:
                other = persons.setdefault((name, birth), patient) if name and birth else patient
                if other != patient:
                    self.flags.append(
                        f"look at {self._name(other)} and {self._name(patient)}: one name and birth date under two "
                        "PatientIDs; are they one person (--group-column)?"
                    )
        by_case: dict[str, str] = {}
        for patient in people:
            other = by_case.setdefault(folded(patient), patient)
            if other != patient:
                problems.append(f"{self._name(other)} and {self._name(patient)} differ in capitals only; are they one?")
        return {self.spelled.get(folded(patient), patient): many for patient, many in sorted(people.items())}, problems

    def _plan(self, name: str, instances: Sequence[Instance], beside: Sequence[Path]) -> tuple[Plan | None, list[str]]:
        """What to convert of a patient, and what is wrong."""
        options = self.options
        words = getattr(options, "words", {})
        series = group_series(one for one in instances if not is_mask(one))
        chosen, problems, flags = choose_all(name, series, options.modalities, self.rules, words)
        self.flags += [f"look at {line}" for line in flags]
        stacks = {}
        for modality, one in chosen.items():
            try:
                check_syntaxes(one.instances)
                stacks[modality] = build_stack(one.instances)
            except DataError as error:
                problems += [f"{name}: {modality}: {one.shown()}: {line}" for line in error.problems]
            self.flags += [f"look at {name}: {modality}: {line}" for line in _doubts(one)]
        plan = Plan(name, chosen, stacks)
        if problems:
            return None, problems
        return plan, self._plan_mask(plan, [one for one in instances if is_mask(one)], beside)

    def _plan_mask(self, plan: Plan, drawn: list[Instance], beside: Sequence[Path]) -> list[str]:
        """Choose the mask among segmentations, structure sets and NIfTI files; what is wrong."""
        options = self.options
        brains = [path for path in beside if any(has_words(stem(path), word) for word in BRAIN_WORDS)]
        plan.brain = brains[0] if len(brains) == 1 and hasattr(options, "brain_mask_pattern") else None
        if options.mask_pattern == "none":
            return []
        nifti = [path for path in beside if path not in brains and is_mask_file(path, options.mask_pattern)]
        drawn = [one for one in drawn if one.values.get("Manufacturer") != MAKER]  # an earlier inference's own results
        if options.mask_pattern:
            drawn = []
        if rules := self.rules.get(MASK):
            drawn, nifti = [one for one in drawn if passes(rules, one.values)], []
        uids = {one.uid: modality for modality, one in reversed(plan.series.items())}
        frames = {str(one.values.get("FrameOfReferenceUID")): m for m, one in reversed(plan.series.items())}
        fitting = []
        for one in drawn:
            regions = read_regions(one)
            on = next((uids[uid] for uid in uids if uid in regions.series), None) or frames.get(
                regions.frame_of_reference
            )
            if on:
                fitting.append((one, regions, on))
        what = [_mask_shown(one) for one, _, _ in fitting] + ["NIfTI"] * len(nifti)
        if len(what) > 1:
            return [
                f"{plan.name}: {len(what)} files may be the tumour's mask ({'; '.join(what)}); choose one by --series "
                "mask=RULE (as SeriesNumber=5, Modality=SEG), or keep one"
            ]
        if drawn and not what:
            shown = "; ".join(map(_mask_shown, drawn))
            return [
                f"{plan.name}: its {shown} refers to none of the chosen series, nor to their frame of reference; "
                "choose the series it was drawn on, or take it away (--mask-pattern none: no masks)"
            ]
        if nifti:
            plan.mask, plan.drawn_on = nifti[0], next(iter(plan.series))
        elif fitting:
            plan.mask, regions, plan.drawn_on = fitting[0]
            try:
                plan.regions = choose_regions(regions, options.segments, plan.mask.hidden)
            except DataError as error:
                return [f"{plan.name}: {_mask_shown(plan.mask)}: {line}" for line in error.problems]
        return []

    def _beside(
        self, scan: Scan, people: Mapping[str, Sequence[Instance]], names: Mapping[str, str], problems: list[str]
    ) -> dict[str, list[Path]]:
        """NIfTI files by patient: named after one, or in a folder with DICOM of one patient only."""
        owners: dict[Path, set[str]] = {}
        for patient, instances in people.items():
            for folder in {
                parent for one in instances for parent in one.path.parents if parent.is_relative_to(self.root)
            }:
                owners.setdefault(folder, set()).add(patient)
        found: dict[str, list[Path]] = {}
        lost = 0
        for path in scan.nifti:
            if is_clutter(path.name):
                continue
            parts = [stem(path), *path.relative_to(self.root).parts[:-1]]
            named = {
                p for p in people for part in parts if re.match(rf"{re.escape(folded(p))}({AFTER_NAME})", folded(part))
            }
            named = (
                {max(named, key=len)}
                if named and all(folded(max(named, key=len)).startswith(folded(p)) for p in named)
                else named
            )
            place = next((owners[folder] for folder in path.parents if folder in owners), set())
            whose = named or (place if len(place) == 1 else set())
            if len(whose) > 1 or (named and len(place) == 1 and place != named):
                shown = " or ".join(sorted(names[one] for one in named | place))
                problems.append(f"a NIfTI file may be of {shown}; put it into the folder of its patient's DICOM")
            elif whose:
                found.setdefault(next(iter(whose)), []).append(path)
            else:
                lost += 1
        if lost:
            self.flags.append(f"look at {lost} NIfTI files that belong to no patient's DICOM: they are not read")
        return found

    def _convert(self, plans: Sequence[Plan], folder: Path) -> dict[str, dict[str, Any]]:
        """Write every patient's files; what manifest.json says of each."""
        from tqdm import tqdm

        before = _read_done(folder / DONE)
        done, told, problems = dict[str, Any](), dict[str, dict[str, Any]](), list[str]()
        for plan in tqdm(plans, desc="converting", unit="patient"):
            mark = _mark(plan)
            outputs = [folder / plan.name / f"{file_name(one)}.nii.gz" for one in plan.series]
            outputs += [folder / plan.name / f"{MASK}.nii.gz"] if plan.mask is not None else []
            last = before.get(plan.name, {})
            if last.get("mark") == mark and all(path.is_file() for path in outputs):
                done[plan.name], told[plan.name] = last, last["told"]
                self.flags += last["flags"]
                continue
            if before.pop(plan.name, None) is not None:
                write_json(folder / DONE, {**before, **done})  # where this run stops, the next takes nothing for whole
            flags = list[str]()
            try:
                told[plan.name] = self._convert_patient(plan, folder / plan.name, flags)
            except DataError as error:
                problems += [f"{plan.name}: {line}" for line in error.problems]
                continue
            done[plan.name] = {"mark": mark, "told": told[plan.name], "flags": flags}
            self.flags += flags
            write_json(folder / DONE, {**before, **done})
        if problems:
            raise DataError([*problems, "the other patients are converted and will be kept"])
        write_json(folder / DONE, done)
        return told

    def _convert_patient(self, plan: Plan, folder: Path, flags: list[str]) -> dict[str, Any]:
        told: dict[str, Any] = {"series": {}}
        for modality, one in plan.series.items():
            try:
                target = folder / f"{file_name(modality)}.nii.gz"
                sidecar = folder.parent.with_name(SIDECARS) / plan.name / f"{file_name(modality)}.json"
                compared = convert_series(one.instances, plan.stacks[modality], target, sidecar)
            except DataError as error:
                raise DataError([f"{modality}: {one.shown()}: {line}" for line in error.problems]) from None
            told["series"][modality] = {"images": one.frames, "voxels_compared": compared}
            if not compared:
                flags.append(
                    f"look at {plan.name}: {modality}: compressed, its voxels could not be compared with dcm2niix's"
                )
        for path in (folder / f"{MASK}.nii.gz", folder / "brain_mask.nii.gz"):
            path.unlink(missing_ok=True)
        if plan.brain is not None:
            _clean_copy(plan.brain, folder / "brain_mask.nii.gz")
        if plan.mask is not None:
            told[MASK] = self._convert_mask(plan, folder, flags)
        return told

    def _convert_mask(self, plan: Plan, folder: Path, flags: list[str]) -> str:
        import nibabel as nib

        target = folder / f"{MASK}.nii.gz"
        if isinstance(plan.mask, Path):
            _clean_copy(plan.mask, target)
            return "NIfTI"
        image = nib.load(folder / f"{file_name(plan.drawn_on)}.nii.gz")
        try:
            if plan.mask.values["SOPClassUID"] == STRUCTURES:
                mask, found = structure_mask(plan.mask.path, plan.regions, image.shape, image.affine)
                flags += [f"look at {plan.name}: {line}" for line in found]
            else:
                mask = segmentation_mask(plan.mask.path, plan.regions, image.shape, image.affine)
        except DataError as error:
            raise DataError([f"{_mask_shown(plan.mask)}: {line}" for line in error.problems]) from None
        _save(mask, image.affine, target)
        return f"{plan.mask.values.get('Modality')} on {plan.drawn_on}"

    def _clear(self, folder: Path, kept: set[str]) -> None:
        """Take patients away that an earlier run converted and this one does not."""
        for path in [*folder.iterdir(), *folder.with_name(SIDECARS).glob("*")]:
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)

    def _write(self, plans: Sequence[Plan], names: Mapping[str, str], told: Mapping[str, Any], scan: Scan) -> None:
        """acquisition.csv, the record of the source, and what the manifest says."""
        options, codes = self.options, Codes()
        rows = [
            acquisition_row(plan.name, modality, one, plan.stacks[modality], codes)
            for plan in plans
            for modality, one in plan.series.items()
        ]
        write_csv(options.output / ACQUISITION, rows, COLUMNS)
        record = {
            "patients": {
                plan.name: {
                    modality: {
                        "study": str(one.values.get("StudyInstanceUID")),
                        "series": one.uid,
                        "instances": [[one.instances[i].uid, f] for i, f in plan.stacks[modality].order],
                    }
                    for modality, one in plan.series.items()
                }
                for plan in plans
            }
        }
        if self.key:
            # its identifiers lead back to the patients: it lies with the key
            place = self.key.path.with_name(f"{self.key.path.stem}_{SOURCE}")
            with owner_only(place) as file:
                json.dump({"folder": str(self.root.resolve()), **record}, file)
            (options.output / SOURCE).unlink(missing_ok=True)
            self.flags.append(
                f"key of the pseudonyms: {self.key.path} (keep it apart; {place.name} beside it is for --dicom_source)"
            )
        else:
            write_json(options.output / SOURCE, {"folder": os.path.relpath(self.root, options.output), **record})
            options.dicom_datalist = {"dicom": SOURCE}
        if scan.absent:
            self.flags.append(f"look at the DICOMDIR: it lists {scan.absent} files that are not there")
        read = sum(one.frames for plan in plans for one in plan.series.values())
        self.flags.append(
            f"DICOM: {len(scan.instances)} files, {read} images of {len(plans)} patients; {scan.others} others"
        )
        options.dicom_lines = self.flags
        options.dicom_manifest = {
            "command": shlex.join(["python", *program(), *self._shown_arguments()]),
            "dicom": {
                "converted_by": f"dcm2niix {_version('dcm2niix')}",
                "pseudonyms": bool(self.key),
                "patients": dict(told),
            },
        }

    def _shown_arguments(self) -> list[str]:
        """The command line without names of files that may name somebody, nor, of patients named anew, dates."""
        hidden = {self.root: "DICOM", self.options.labels: "LABELS"} | ({self.key.path: "KEY"} if self.key else {})
        shown = []
        for argument in sys.argv[1:]:
            option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
            shown.append(option + equals + (hidden.get(Path(value), value) if value else ""))
        return [re.sub(r"(?<!\d)\d{8}(?!\d)", "DATE", one) for one in shown] if self.key else shown

    def _point(self, folder: Path, names: Mapping[str, str], masks: bool) -> None:
        """Let the options name the folder of NIfTI, its files, and the table with the new names."""
        options = self.options
        options.name = options.name or options.output.resolve().name
        options.patterns = {modality: f"{file_name(modality)}.nii.gz" for modality in options.modalities}
        if options.mask_pattern != "none":
            options.mask_pattern = f"{MASK}.nii.gz" if masks else None
        if self.key and options.labels is not None:
            options.labels = self._renamed_labels(folder, names)
        options.folder = folder

    def _renamed_labels(self, folder: Path, names: Mapping[str, str]) -> Path:
        """The label table with pseudonyms, and only the columns that are read."""
        options = self.options
        rows, column = read_table(options.labels, [options.patient_column]), options.patient_column
        group = getattr(options, "group_column", None)
        wanted = [column, options.label_column, *(options.covariates or []), group, options.test_column]
        if options.covariates is None:
            wanted += [name for name in rows[0] if name.casefold() in ("age", "grade")]
        kept = [name for name in rows[0] if name in wanted]
        groups: dict[str, str] = {}
        for row in rows:
            row[column] = names[row[column]]
            if group and row.get(group):
                row[group] = groups.setdefault(row[group], f"G{len(groups) + 1:04d}")
        path = folder / "labels.csv"
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, kept, extrasaction="ignore", delimiter=rows.delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return path


def _doubts(series: Series) -> list[str]:
    """What a person should look at in a series that can be converted."""
    values, found = series.values, []
    if str(values.get("LossyImageCompression") or "00") == "01" or any(
        one.syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")
        for one in series.instances
    ):
        found.append("it was compressed with loss")
    numbers = {one.values.get("AcquisitionNumber") for one in series.instances}
    said = values.get("ImagesInAcquisition")
    if isinstance(said, int) and len(numbers) == 1 and said > series.frames:
        found.append(f"its header says {said} images, {series.frames} are there: slices may be missing at an end")
    return found


def _mask_shown(one: Instance) -> str:
    return f"{one.values.get('Modality')} series {one.values.get('SeriesNumber')}"


def _is_file_name(patient: str) -> bool:
    return not re.search(r'[\\/:*?"<>|\x00-\x1f]', patient) and not is_clutter(patient) and len(patient) < 100


def _clean_copy(path: Path, target: Path) -> None:
    """A NIfTI file's voxels and grid, without its header's text."""
    import nibabel as nib
    import numpy as np

    from shared.data.checks import image_header_problem

    if problem := image_header_problem(path)[0]:
        raise DataError(f"its NIfTI mask {problem}")
    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"the voxels of its NIfTI mask cannot be read ({type(error).__name__})") from error
    if values.dtype.kind in "iub" and values.dtype.itemsize == 8:
        values = values.astype(np.int32)
    _save(values.astype(np.uint8) if values.dtype == bool else values, image.affine, target)


def _save(values: Any, affine: Any, target: Path) -> None:
    from shared.apps.preparation.files import save_nifti

    save_nifti(target, values, affine)


def _mark(plan: Plan) -> str:
    """Digest of what a patient's files are made of."""
    parts = [_version("dcm2niix"), plan.drawn_on, repr(plan.regions)]
    for modality, one in plan.series.items():
        parts += [modality, *(f"{i.uid} {i.path.stat().st_size} {i.path.stat().st_mtime_ns}" for i in one.instances)]
    for path in (plan.mask.path if isinstance(plan.mask, Instance) else plan.mask, plan.brain):
        parts.append("" if path is None else f"{path.stat().st_size} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_done(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
