"""Bring glioma patients from a hospital's or BraTS's folders to MNI152 2 mm, as the glioma bundle reads them.

FOLDER holds one folder per patient with T1, T1c, T2, FLAIR and a tumour mask (NIfTI), or DICOM of any depth and names
(docs/how-to/dicom.md). Files are recognised by words in their names: BraTS's of all years (t1 or t1n, t1ce or t1c, t2
or t2w, flair or t2f, seg) need no option, others --pattern. LABELS is a CSV with a row per patient; a label is mutant
(or IDH1 p.R132H, ...) or wild type, 1 or 0; other words are named by --positive and --negative; columns age and grade
are kept where there are any.

Steps, in the paper's order: co-registration to T1c where grids differ, skull strip (images come stripped, or with brain
masks, or by --strip-command), N4, histogram matching to one patient's brightness, edge-preserving smoothing,
registration to MNI152 with the tumour left out of the metric (antspyx; without it SimpleITK's affine, which says so).
--no-* leaves a step out. FA maps are made where a patient has *dwi.nii.gz with .bval and .bvec (dipy); a ready one
(*_FA.nii.gz) on T1c's grid is taken as it is. A patient who is done is not done again.

    python scripts/prepare_glioma.py /data/brats labels.csv --output data/glioma_idh --jobs 4 --test-fraction 0.2
    python scripts/prepare_glioma.py /data/new --inference --output data/new \\
        --model bundles/glioma_idh/models
New patients (--inference) are prepared as the patients of the model were: training keeps settings and brightness beside
model.pt. Look at OUTPUT/qc/*.png and at what registration.csv flags.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from pathlib import Path

from shared.apps.preparation.cell_numbers import looks_numeric
from shared.apps.preparation.cohort import (
    USUAL_FOLDS,
    add_section_options,
    check_options,
    collect,
    comma_list,
    divide,
    report,
    without_covariates,
)
from shared.apps.preparation.dicom_options import add_dicom_options, take_dicom
from shared.apps.preparation.files import (
    begin,
    positive_int,
    run_script,
    script_parser,
    software_versions,
    write_datalist,
    write_manifest,
)
from shared.apps.preparation.label_words import IDH_WORDS
from shared.apps.preparation.matching import file_name, has_words, is_nifti, stem
from shared.data.brain.preparation import PREPARATION, REFERENCE, check_preparation, read_preparation
from shared.data.clutter import walk_files
from shared.data.masks import absent_labels, mask_labels, whole_values
from shared.data.names import differing_in_case
from shared.data.tables import read_table
from shared.digests import Digests, sha256
from shared.errors import DataError
from shared.io import DATALIST, MANIFEST, write_csv, write_json

WORDS = {
    "T1": ("T1", "t1n", "t1w", "t1 pre", "t1pre"),
    "T1c": ("T1c", "t1ce", "t1gd", "t1 gd", "t1 c", "t1 ce", "t1 post", "t1post"),
    "T2": ("T2", "t2w"),
    "FLAIR": ("FLAIR", "t2f", "t2 flair", "t2flair"),
}
BRAIN_WORDS = ("brain mask", "brainmask", "brain", "bet mask")


def refuse_tiffs(folder: Path) -> None:
    """Slices as TIFF or PNG, where no NIfTI is, cannot be registered: nothing says where they lie.

    Raises:
        DataError: the folder holds such slices and no NIfTI file.
    """
    if not folder.is_dir():
        return
    files = list(walk_files(folder))
    slices = next((path for path in files if path.suffix.lower() in (".tif", ".tiff", ".png", ".jpg")), None)
    if slices is not None and not any(is_nifti(path) for path in files):
        raise DataError(
            f"{folder}: holds slices as {slices.suffix.upper()} ({slices.relative_to(folder)}) and no NIfTI file; such "
            "slices have no affine (position, orientation and thickness are unknown) and cannot be registered to "
            "MNI152; convert the original DICOM series with dcm2niix and strip the skull"
        )


def extra_files(
    patient: str, others: list[Path], brain_pattern: str | None
) -> tuple[Path | None, tuple | None, Path | None, list[str]]:
    """Brain mask, diffusion files and ready FA map among a patient's remaining files, and what is wrong with them."""
    problems, others = [], [path for path in others if is_nifti(path)]
    if brain_pattern:
        brains = [path for path in others if path.match(brain_pattern)]
        if len(brains) != 1:
            problems.append(
                f"{patient}: {len(brains)} files match --brain-mask-pattern {brain_pattern!r}, one is needed"
            )
    else:
        brains = [path for path in others if any(has_words(stem(path), word) for word in BRAIN_WORDS)]
        if len(brains) > 1:
            names = ", ".join(path.name for path in brains)
            problems.append(
                f"{patient}: {len(brains)} files may be the brain mask ({names}); give --brain-mask-pattern"
            )
    diffusion = []
    for path in others:
        beside = [path.with_name(f"{stem(path)}{ending}") for ending in (".bval", ".bvec")]
        if all(file.is_file() for file in beside):
            diffusion.append((path, *beside))
        elif has_words(stem(path), "dwi") and any(file.is_file() for file in beside):
            problems.append(f"{patient}: {path.name} needs both {beside[0].name} and {beside[1].name} beside it")
    if len(diffusion) > 1:
        problems.append(f"{patient}: has {len(diffusion)} diffusion images; keep one")
    named = re.compile(rf"(?<![^\W_]){re.escape(patient)}(?![^\W_])", re.IGNORECASE)  # a name may hold the word
    used = {*brains, *(path for one in diffusion for path in one)}
    maps = [path for path in others if path not in used and has_words(named.sub("", stem(path)), "fa")]
    if len(maps) > 1 and not diffusion:
        names = ", ".join(path.name for path in maps)
        problems.append(f"{patient}: {len(maps)} files may be the FA map ({names}); keep one, or give --no-fa")
    return (brains or [None])[0], (diffusion or [None])[0], (maps or [None])[0] if not diffusion else None, problems


def find_patients(options: argparse.Namespace) -> tuple[dict[str, dict], list[str], list[str]]:
    """Everything known of each patient, checked; lines on who was left out, and on images that are not read.

    Raises:
        DataError: with every problem found.
    """
    from shared.apps.preparation.glioma_patient import PatientFiles
    from shared.apps.preparation.patient_images import PatientImages
    from shared.data.checks import image_header_problem
    from shared.data.volumes import load_volume

    refuse_tiffs(options.folder)
    patients, missing = collect(options)
    problems, unused, held = [], [], {}
    images = PatientImages(finite=False)
    for name, patient in patients.items():
        if patient["mask_file"] is None:
            problems.append(f"{name}: has no tumour mask; add it, or correct --mask-pattern")
            continue
        problems += images.check_voxels(name, patient)
        brain, *maps, found = extra_files(name, patient["others"], options.brain_mask_pattern)
        problems += found
        diffusion, fa = maps if options.fa else (None, None)
        if fa is not None and (problem := image_header_problem(fa)[0]):
            problems.append(f"{name}: {fa}: {problem}")
        paths = PatientFiles(name, patient["files"], patient["mask_file"], brain, diffusion, fa)
        patient["paths"] = paths
        if options.mask_labels and not options.inference:
            with contextlib.suppress(DataError):  # one that cannot be read is told with its patient's preparation
                held[name] = whole_values(load_volume(paths.mask, repair=False).array)
        unused += [path.relative_to(options.folder).as_posix() for path in patient["others"] if path not in paths.all()]
    problems += absent_labels(held, options.mask_labels)
    if problems:
        raise DataError(problems)
    images.check_cohort(inference=options.inference)
    options.told += [f"look at {line}" for line in images.flags]
    return patients, missing, unused


def optional_covariates(labels: Path | None, patient_column: str) -> list[str]:
    """Those of age and grade that are columns of numbers in the table, whatever their capitals."""
    if labels is None:
        return []
    rows = read_table(labels, [patient_column])
    named = [name for name in rows[0] if name.casefold() in ("age", "grade")]
    return [name for name in named if any(looks_numeric(row[name]) for row in rows)]


def prepare(options: argparse.Namespace) -> None:
    """Prepare all patients; write registration.csv, manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found.
    """
    from shared.apps.preparation.glioma_cohort import cohort_reference, flag_outliers, prepare_cohort
    from shared.apps.preparation.glioma_patient import DONE, PLACES, Steps, choose_method, load_tools, preparation_of

    take_dicom(options)
    for line in options.dicom_lines:
        print(line)
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(f"--output {options.output} must lie outside the patients' own folder {options.folder}")
    if options.covariates is None:
        options.covariates = optional_covariates(options.labels, options.patient_column)
    if twice := differing_in_case(options.covariates):
        raise DataError([f"{options.labels}: columns {a!r} and {b!r} are one covariate; rename one" for a, b in twice])
    patients, missing, unused = find_patients(options)
    for line in options.told:  # which value became which class is seen now, not after hours
        print(line)
    options.told = []
    if unused:
        print(
            f"not read, being none of {', '.join(options.modalities)}, mask, brain mask, DWI (with .bval and .bvec), "
            f"FA: {len(unused)} images ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}); a sequence under "
            'another name is read by --pattern SEQUENCE="..."'
        )
    steps = Steps(
        sequences=tuple(options.modalities),
        coregister=options.coregister,
        strip_command=options.strip_command,
        n4=options.n4,
        histogram=options.histogram,
        smoothing=options.smoothing,
        registration=options.registration,
        template=str(options.template.resolve()) if options.template else None,
        already_mni=options.already_mni,
        mask_labels=tuple(options.mask_labels),
        fa=any(patient["paths"].dwi or patient["paths"].fa for patient in patients.values()),
        seed=options.seed,
    )
    known = [{"patient": name, **({"label": p["label"]} if "label" in p else {})} for name, p in patients.items()]
    divide(known, patients, options)  # too few for the folds or the test fraction is said now, not after hours
    tools = load_tools(steps)  # what is not installed is said before anything is done
    if tools is not None and not steps.already_mni:
        print(f"registration: {tools.method}" + (f"; {tools.note}" if tools.note else ""))
    digests = Digests(options.output)
    record = preparation_of(steps, digests)
    if options.inference:
        for line in check_model(options, record):
            print(line)
    begin(options.output, (DATALIST, MANIFEST, PREPARATION))
    paths = [patient["paths"] for patient in patients.values()]
    given = {"file": options.histogram_reference, "patient": options.reference_patient}
    reference = cohort_reference(paths, steps, options.output, **given, digests=digests)
    rows, failed = prepare_cohort(paths, steps, options.output, reference, digests=digests, jobs=options.jobs)
    rows = flag_outliers(rows)
    columns = [key for key in rows[0] if key != "kept"] if rows else []
    write_csv(options.output / "registration.csv", [{key: row[key] for key in columns} for row in rows], columns)
    problems = [f"{name}: {line}" for name, lines in failed.items() for line in lines]
    if problems and not (options.skip_failed and rows):
        raise DataError([*problems, "the others are done and will be kept; --skip-failed leaves these patients out"])
    cases = []
    for row in rows:
        name = row["patient"]
        case = {"patient": name, "image": [f"{name}/{file_name(m)}.nii.gz" for m in options.modalities]}
        case["mask"] = f"{name}/mask.nii.gz"
        if patients[name]["paths"].dwi or patients[name]["paths"].fa:
            case["fa"] = f"{name}/fa.nii.gz"
        if (options.output / name / PLACES).is_file():
            case["mni_places"] = f"{name}/{PLACES}"
        covariates = {key.casefold(): value for key, value in patients[name].get("covariates", {}).items()}
        case |= {"label": patients[name]["label"]} if "label" in patients[name] else {}
        cases.append({**case, **({"covariates": covariates} if covariates else {})})
    kept = {case["patient"]: patients[case["patient"]] for case in cases}
    training, testing = divide(cases, kept, options)
    lacking = without_covariates(cases, [name.casefold() for name in options.covariates])
    sources = {options.labels.name: sha256(options.labels)} if options.labels else {}
    for patient in kept.values():
        sources |= {path.relative_to(options.folder).as_posix(): digests(path) for path in patient["paths"].all()}
    write_manifest(
        options.output,
        sources=sources,
        versions=software_versions(
            ("numpy", "scipy", "nibabel", "scikit-image", "antspyx", "SimpleITK", "nilearn", "dipy")
        ),
        space="MNI152, 2 mm, 91 x 109 x 91, RAS",
        steps={**vars(steps), "registration": choose_method(steps)},
        per_patient=f"<patient>/{DONE}, registration.csv, qc/<patient>.png",
        flagged={row["patient"]: row["flags"] for row in rows if row["flags"]},
        left_out=missing + problems,
        labels=options.label_values,
        not_read=unused,
        without_covariate={key: names for key, names in lacking.items() if names},
        **options.dicom_manifest,
    )
    write_json(options.output / PREPARATION, record)
    write_datalist(
        options.output,
        name=options.name or options.folder.resolve().name,
        modalities=options.modalities,
        classes=options.classes if options.labels else (),
        training=training,
        testing=testing,
        **options.dicom_datalist,
    )
    for line in problems:
        print(f"left out: {line}")
    report(options, training, testing, missing, lacking, kept)
    if training and "fold" not in training[0] and options.folds is None:
        print(f"no folds: a class has fewer than {USUAL_FOLDS} patients")
    flagged = [row["patient"] for row in rows if row["flags"]]
    if flagged:
        print(f"look at the pictures in {options.output / 'qc'} of {', '.join(flagged)}: registration.csv says why")


def check_model(options: argparse.Namespace, record: dict) -> list[str]:
    """What is to be told of how the model's patients were prepared, against these.

    Raises:
        DataError: they were prepared otherwise.
    """
    folder = options.model or (options.histogram_reference and options.histogram_reference.resolve().parent)
    trained = folder and read_preparation(folder)
    return check_preparation(trained, record, folder) if trained else []


def take_over(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Make a model's settings the defaults: what is given and differs is seen later, and refused."""
    try:
        record = read_preparation(folder)
    except DataError as error:
        parser.error(str(error))
    if record is None:
        parser.error(
            f"--model {folder}: has no {PREPARATION}: it was trained on images that this script did not prepare (or "
            "before it kept a record); give --histogram-reference FILE or --no-histogram-matching"
        )
    defaults = {"modalities": record["sequences"], **{key: record[key] for key in ("n4", "histogram", "smoothing")}}
    if record["registration"] != "none":
        defaults["registration"] = record["registration"]
    if record["histogram"]:
        defaults["histogram_reference"] = folder / REFERENCE
    parser.set_defaults(**defaults)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder with one folder of NIfTI files per patient")
    add("labels", type=Path, nargs="?", help="CSV with one row per patient (may be left out with --inference)")
    add("--output", type=Path, required=True, help="folder to write, such as data/glioma_idh")
    add("--modalities", type=comma_list, default=list(WORDS), help="sequences in order (T1,T1c,T2,FLAIR)")
    add("--pattern", action="append", default=[], metavar='T1c="*_gd.nii.gz"', help="file name pattern of a sequence")
    add("--mask-pattern", help="of the tumour mask; else a file with a word such as seg, mask, tumor")
    add("--brain-mask-pattern", help="of the brain mask; else a file with a word such as brainmask, where there is one")
    add("--mask-labels", type=mask_labels, default=[], help="values of the mask that are tumour, as 1,4 (all but 0)")
    add("--patient-column", default="patient", help="column of the patient's name (patient)")
    add("--label-column", default="label", help="column of the label (label)")
    add("--positive", type=comma_list, default=[], help="values that mean label 1 (mutant, IDH1 p.R132H, 1, ...)")
    add("--negative", type=comma_list, default=[], help="values that mean label 0 (wild type, 0, ...)")
    add("--classes", type=comma_list, default=["IDH wild type", "IDH mutant"], help="names of labels 0 and 1")
    add("--covariates", type=comma_list, help="columns of numbers to keep (age and grade, where there are any)")
    add("--name", help="of the cohort (the folder's)")
    add_dicom_options(parser)
    add_section_options(parser)
    parser.set_defaults(folds=None)
    add("--skip-failed", action="store_true", help="leave out patients whose preparation failed")
    add("--jobs", type=positive_int, default=1, help="patients at a time (1)")
    steps = parser.add_argument_group("steps")
    add = steps.add_argument
    add("--coregister", choices=("auto", "always", "never"), default="auto", help="to T1c: auto, where grids differ")
    add("--strip-command", help='strips the skull of T1c, as "hd-bet -i {input} -o {output}"')
    add("--no-n4", dest="n4", action="store_false", help="leave the bias field")
    add("--no-histogram-matching", dest="histogram", action="store_false", help="leave brightness as it is")
    add("--model", type=Path, help="folder of the model.pt that predicts them: prepare as its patients were")
    add("--histogram-reference", type=Path, help="histogram_reference.json of the training cohort, for new patients")
    add("--reference-patient", help="whose brightness is the standard (the first who can be read)")
    add("--no-smoothing", dest="smoothing", action="store_const", const=0.0, default=1.0, help="leave the noise")
    add("--registration", choices=("auto", "syn", "ants-affine", "sitk-affine"), default="auto", help="auto: the best")
    add("--template", type=Path, help="skull-stripped T1 image in MNI152 space (nilearn's ICBM152)")
    add("--already-mni", action="store_true", help="the images lie on the MNI152 2 mm grid: register nothing")
    add("--no-fa", dest="fa", action="store_false", help="make no FA maps")
    options = parser.parse_args(arguments)
    if options.model:
        if not options.inference or options.histogram_reference or options.reference_patient:
            parser.error("--model goes with --inference, without --histogram-reference and --reference-patient")
        take_over(parser, options.model)
        options = parser.parse_args(arguments)
    if options.inference and options.histogram and not options.histogram_reference:
        parser.error(
            "--inference needs --model FOLDER (of model.pt), --histogram-reference FILE (the training cohort's) or "
            "--no-histogram-matching: else the first new patient's brightness would be the standard"
        )
    given = options.covariates
    options.covariates = given or []
    check_options(parser, options)
    options.covariates = given
    if options.strip_command and "{output}" not in options.strip_command:
        parser.error("--strip-command must hold {input} and {output}")
    if options.mask_pattern == "none":
        parser.error("--mask-pattern none: a tumour mask is needed")
    options.label_words = IDH_WORDS
    options.words = {name: WORDS.get(name, (name,)) for name in options.modalities}
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the patients."""
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        # also where a shell started this in the background, which leaves SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        return run_script(lambda: prepare(options))
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one ended.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
