"""Turn a plain folder of NIfTI files per patient and a CSV of labels into a datalist.

FOLDER holds one folder per patient, or the files of all patients side by side, named after them:

    FOLDER/P001/t1.nii.gz  t1d.nii.gz  t1v.nii.gz  mask.nii.gz         FOLDER/P001_t1.nii.gz  P001_t1d.nii.gz ...
    FOLDER/P001.nii.gz     one modality, the whole image is the region of interest

A file belongs to a modality when its name holds the modality's as a whole word (`P001_T1D.nii.gz`, `t1d.nii`) and no
other sequence's (`T2_FLAIR` is no T2), or matches its --pattern. A mask has two values; --mask-labels names those that
are tumour where it has more (LiTS: 2). LABELS is a CSV (comma, semicolon or tab; as a spreadsheet saves it) with one
row per patient. Its label is 0 or 1, or --positive and --negative name the values; where one value is left, one side is
enough. Images are never altered: they are copied into OUTPUT, or linked. Every problem found is listed at once, and
nothing is written then.

    python scripts/prepare_patients.py /data/hcc labels.csv --output data/ircl_mvi --modalities T1,T1D,T1V \\
        --label-column MVI --positive M1,M2 --covariates age --test-fraction 0.2
    python scripts/prepare_patients.py /data/new --output data/new --modalities T1,T1D,T1V --inference
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shared.apps.preparation.cohort import (
    add_section_options,
    check_options,
    collect,
    comma_list,
    divide,
    report,
    without_covariates,
)
from shared.apps.preparation.files import (
    begin,
    place_file,
    run_script,
    script_parser,
    write_datalist,
    write_manifest,
)
from shared.apps.preparation.matching import MASK_WORDS, describe_unread, file_ending, file_name, unread_files
from shared.data.masks import LABELS_KEY, mask_labels
from shared.digests import Digests
from shared.errors import DataError


def prepare(options: argparse.Namespace) -> None:
    """Place the images, write manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    from tqdm import tqdm

    from shared.apps.preparation.patient_images import PatientImages

    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(f"--output {options.output} must lie outside the patients' own folder {options.folder}")
    found = PatientImages(options.mask_labels, options.trust_affines)
    patients, missing = collect(
        options, lambda name, patient: found.check(name, patient["files"], patient["mask_file"])
    )
    found.check_cohort(inference=options.inference)
    cases, copies = [], []
    for name, patient in patients.items():
        placed = {path: f"{name}/{file_name(kind)}{file_ending(path)}" for kind, path in patient["files"].items()}
        copies += [(path, options.output / place) for path, place in placed.items()]
        case: dict[str, Any] = {"patient": name, "image": [*placed.values()]}
        if patient["mask_file"] is not None:
            case["mask"] = f"{name}/mask{file_ending(patient['mask_file'])}"
            copies.append((patient["mask_file"], options.output / case["mask"]))
            case |= {LABELS_KEY: options.mask_labels} if options.mask_labels else {}
        case |= {"trust_affines": True} if name in found.trusted else {}
        case |= {key: patient[key] for key in ("label", "covariates") if key in patient}
        cases.append(case)
    training, testing = divide(cases, patients, options)
    read = [source for source, _ in copies] + ([options.labels] if options.labels else [])
    unread = unread_files(options.folder, read)

    begin(options.output)
    digests = Digests(options.output)
    sources = {options.labels.name: digests(options.labels)} if options.labels else {}
    for source, target in tqdm(copies, desc="linking" if options.link else "copying", unit="file"):
        place_file(source, target, link=options.link, digests=digests)
        sources[source.relative_to(options.folder).as_posix()] = digests(source)
    digests.save()
    lacking = without_covariates(cases, options.covariates)
    write_manifest(
        options.output,
        sources=sources,
        images="linked" if options.link else "copied",
        labels=options.label_values,
        mask_labels=options.mask_labels,
        tumour_ml=found.tumour_ml,
        tumour_ml_on_image_grid=found.resampled_ml,
        affines_trusted=found.trusted,
        look_at=found.flags,
        not_read=unread,
        left_out=missing,
        without_covariate={key: names for key, names in lacking.items() if names},
    )
    write_datalist(
        options.output,
        name=options.name or options.folder.resolve().name,
        modalities=list(options.patterns),
        classes=options.classes if options.labels else (),
        training=training,
        testing=testing,
    )
    for line in [*([describe_unread(unread, patients)] if unread else []), *found.lines()]:
        print(line)
    report(options, training, testing, missing, lacking, patients)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder with the patients' NIfTI files")
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
    add("--covariates", type=comma_list, default=[], help="columns of numbers to keep, as age,afp")
    add("--name", help="of the cohort (the folder's)")
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
