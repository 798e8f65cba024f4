"""Turn a plain folder of NIfTI files per patient, or of 2D images, and a CSV of labels into a datalist.

FOLDER holds one folder per patient, or the files of all patients side by side, named after them:

    FOLDER/P001/t1.nii.gz  t1d.nii.gz  t1v.nii.gz  mask.nii.gz         FOLDER/P001_t1.nii.gz  P001_t1d.nii.gz ...
    FOLDER/P001.nii.gz     one modality, the whole image is the region of interest
    FOLDER/benign/7.png  7_mask.png  ...        2D images (PNG, JPEG, TIFF, BMP); LABELS names each image's file
    FOLDER/...                                  DICOM, any depth and names: docs/how-to/dicom.md

A file belongs to a modality when its name holds the modality's as a whole word (`P001_T1D.nii.gz`, `t1d.nii`) and no
other sequence's (`T2_FLAIR` is no T2), or matches its --pattern. A mask has two values; --mask-labels names those that
are tumour where it has more (LiTS: 2). LABELS is a CSV (comma, semicolon or tab; as a spreadsheet saves it) with one
row per patient. Its label is 0 or 1, or --positive and --negative name the values; where one value is left, one side is
enough. Volumes are never altered: they are copied into OUTPUT, or linked; 2D images become NIfTI of one slice. Patients
of one --group-column (scans of one person, near-duplicates) share a fold and a section. Every problem found is listed
at once, and nothing is written then.

    python scripts/prepare_patients.py /data/hcc labels.csv --output data/ircl_mvi --modalities T1,T1D,T1V \\
        --label-column MVI --positive M1,M2 --covariates age --test-fraction 0.2
    python scripts/prepare_patients.py /data/new --output data/new --modalities T1,T1D,T1V --inference
    python scripts/prepare_patients.py /data/busi /data/busi/labels.csv --output data/busi --positive malignant \\
        --classes benign,malignant --group-column group
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.apps.preparation.cohort import (
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
    place_file,
    run_script,
    save_nifti,
    script_parser,
    write_datalist,
    write_manifest,
)
from shared.apps.preparation.matching import MASK_WORDS, describe_unread, file_ending, file_name, unread_files
from shared.data.masks import LABELS_KEY, mask_labels
from shared.data.volumes import Volume
from shared.digests import Digests
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.apps.preparation.patient_images import PatientImages

MASKS_AS = ("ellipse", "box", "shuffled")


def prepare(options: argparse.Namespace) -> None:
    """Place the images, write manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    from tqdm import tqdm

    from shared.apps.preparation.patient_images import PatientImages
    from shared.apps.preparation.pictures import IMAGE_COLUMN, PictureImages, collect_pictures, holds_pictures

    take_dicom(options)
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(f"--output {options.output} must lie outside the patients' own folder {options.folder}")
    pictures = holds_pictures(options.folder)
    _check_kind(options, pictures=pictures)
    if pictures:
        options.image_column = options.image_column or IMAGE_COLUMN
        found: PatientImages = PictureImages(options.mask_labels, luminance=options.luminance)
        patients, missing = collect_pictures(options, found.check)
    else:
        found = PatientImages(options.mask_labels, options.trust_affines)
        patients, missing = collect(options, found.check)
    found.check_cohort(inference=options.inference)
    shape = _add_shape(patients, found) if options.shape_covariates else []
    new_mask, drawn = _new_masks(patients, found, options) if options.mask_as else (None, {})
    cases, files = [], dict[str, Path | Callable[[], Volume]]()  # what each file is a copy of, or made by
    for name, patient in patients.items():
        images: dict[str, Path | Callable[[], Volume]] = {}
        for kind, path in patient["files"].items():
            ending = ".nii.gz" if pictures else file_ending(path)
            images[f"{name}/{file_name(kind)}{ending}"] = partial(found.image, patient) if pictures else path
        case: dict[str, Any] = {"patient": name, "image": [*images]}
        files |= images
        if mask := patient["mask_file"]:
            as_drawn = not pictures and new_mask is None
            case["mask"] = f"{name}/mask{file_ending(mask) if as_drawn else '.nii.gz'}"
            case |= {LABELS_KEY: options.mask_labels} if options.mask_labels and as_drawn else {}
            own = mask if as_drawn else partial(found.tumour, patient)
            files[case["mask"]] = own if new_mask is None else partial(new_mask, name)
        case |= {"trust_affines": True} if name in found.trusted else {}
        case |= {key: patient[key] for key in ("group", "label", "covariates") if key in patient}
        cases.append(case)
    training, testing = divide(cases, patients, options)
    read = [path for one in patients.values() for path in (*one["files"].values(), one["mask_file"]) if path]
    unread = unread_files(options.folder, [*read, *([options.labels] if options.labels else [])])

    begin(options.output)
    digests = Digests(options.output)
    sources = {options.labels.name: digests(options.labels)} if options.labels else {}
    for place, source in tqdm(files.items(), desc="writing" if pictures else _how(options), unit="file"):
        if isinstance(source, Path):
            place_file(source, options.output / place, link=options.link, digests=digests)
        else:
            save_nifti(options.output / place, *source())
    sources |= {path.relative_to(options.folder).as_posix(): digests(path) for path in read}
    digests.save()
    lacking = without_covariates(cases, [*options.covariates, *shape])
    write_manifest(
        options.output,
        sources=sources,
        images="2D, written as NIfTI of one slice" if pictures else "linked" if options.link else "copied",
        labels=options.label_values,
        mask_labels=options.mask_labels,
        **found.record(patients),
        **drawn,
        affines_trusted=found.trusted,
        look_at=found.flags,
        not_read=unread,
        left_out=missing,
        without_covariate={key: names for key, names in lacking.items() if names},
        **options.dicom_manifest,
    )
    write_datalist(
        options.output,
        name=options.name or options.folder.resolve().name,
        modalities=list(options.patterns),
        classes=options.classes if options.labels else (),
        training=training,
        testing=testing,
        **options.dicom_datalist,
    )
    for line in [*options.dicom_lines, *([describe_unread(unread, patients)] if unread else []), *found.lines()]:
        print(line)
    if pictures and not options.pixel_size_column:
        print(f"pixels: {options.pixel_size or 1:g} mm" + (", as no size is known" if not options.pixel_size else ""))
    if options.mask_as:
        print(f"masks: {options.mask_as}, not as drawn (a control)")
    report(options, training, testing, missing, lacking, patients)


def _how(options: argparse.Namespace) -> str:
    return "linking" if options.link else "copying"


def _check_kind(options: argparse.Namespace, *, pictures: bool) -> None:
    """Refuse options that the kind of images has no use for."""
    of_pictures = ("image_column", "pixel_size", "pixel_size_column", "luminance")
    of_volumes = ("pattern", "link", "trust_affines")
    names = [name for name in (of_volumes if pictures else of_pictures) if getattr(options, name)]
    if pictures and options.mask_pattern not in (None, "none"):
        names.append("mask_pattern")
    problems = [
        f"--{name.replace('_', '-')} is of {'volumes' if pictures else '2D images'}, {options.folder} holds "
        f"{'2D images and no NIfTI file' if pictures else 'volumes'}"
        for name in names
    ]
    if pictures and len(options.modalities) > 1:
        problems.append(f"--modalities {','.join(options.modalities)}: 2D images have one modality")
    if problems:
        raise DataError(problems)


def _add_shape(patients: dict[str, dict], found: PatientImages) -> list[str]:
    """Put the shape of each tumour among its patient's covariates; their names."""
    from shared.apps.preparation.shape import SHAPE, shape_features

    _need_masks(patients, "--shape-covariates")
    for patient in patients.values():
        values = shape_features(*found.tumour(patient))
        patient["covariates"] = patient.get("covariates", {}) | {k: v for k, v in values.items() if math.isfinite(v)}
    return [*SHAPE]


def _new_masks(
    patients: dict[str, dict], found: PatientImages, options: argparse.Namespace
) -> tuple[Callable[[str], Volume], dict[str, Any]]:
    """What makes the masks of ``--mask-as``, and what the manifest says of them."""
    from shared.apps.preparation.mask_as import masks_as

    _need_masks(patients, "--mask-as")
    groups = {name: patient.get("group", name) for name, patient in patients.items()}
    make, given = masks_as(options.mask_as, lambda name: found.tumour(patients[name]), groups, options.seed)
    for name in given:  # a tumour that falls outside another's image is told before anything is written
        make(name)
    return make, {"mask_as": {"how": options.mask_as, **({"seed": options.seed, "from": given} if given else {})}}


def _need_masks(patients: dict[str, dict], option: str) -> None:
    if any(patient["mask_file"] is None for patient in patients.values()):
        raise DataError(f"{option} needs masks, the patients have none")


def positive_float(text: str) -> float:
    """Type of an option that is above 0.

    Example:
        >>> positive_float("0.2")
        0.2
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder with the patients' NIfTI files or 2D images")
    add("labels", type=Path, nargs="?", help="CSV with one row per patient (may be left out with --inference)")
    add("--output", type=Path, required=True, help="folder to write, such as data/ircl_mvi")
    add("--modalities", type=comma_list, default=["image"], help="names in order, as T1,T1D,T1V (one: image)")
    add("--pattern", action="append", default=[], metavar='T1="*_t1.nii.gz"', help="file name pattern of a modality")
    add(
        "--mask-pattern",
        help=f"of the mask; else a file with one of the words {', '.join(MASK_WORDS)}; 'none': no masks",
    )
    add("--mask-labels", type=mask_labels, default=[], help="values of the mask that are tumour, as 2 (of two values)")
    add(
        "--trust-affines",
        action="store_true",
        help="images and masks of one shape may lie at different places; they are resampled by their affines",
    )
    add("--patient-column", default="patient", help="column of the patient's name (patient)")
    add("--label-column", default="label", help="column of the label (label)")
    add(
        "--positive",
        type=comma_list,
        default=[],
        help="values that mean label 1, as M1,M2 (else the column holds 0 and 1)",
    )
    add("--negative", type=comma_list, default=[], help="values that mean label 0 (the one that --positive leaves)")
    add(
        "--classes",
        type=comma_list,
        default=["negative", "positive"],
        help="names of labels 0 and 1 (negative,positive)",
    )
    add("--group-column", help="column of what belongs together, as one person's scans: in one fold and one section")
    add("--image-column", help="of 2D images: column of the image's file below FOLDER (image)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--pixel-size", type=positive_float, help="of 2D images: side of a pixel in mm (unknown: 1)")
    size.add_argument("--pixel-size-column", help="of 2D images: column of it")
    add("--luminance", action="store_true", help="of 2D images: take coloured ones' luminance instead of refusing them")
    add(
        "--mask-as",
        choices=MASKS_AS,
        help="controls: the tumour's ellipse or box, or another patient's mask, in the mask's stead",
    )
    add(
        "--shape-covariates", action="store_true", help="add area, perimeter, ... of the mask's largest slice (shape_*)"
    )
    add("--covariates", type=comma_list, default=[], help="columns of numbers to keep, as age,afp")
    add("--name", help="of the cohort (the folder's)")
    add_dicom_options(parser)
    add_section_options(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the images into the output (default)")
    how.add_argument("--link", action="store_true", help="link to the images instead")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
