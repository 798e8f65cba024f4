"""Patients of a preparation script: files, rows of the label table, sections; what the scripts for NIfTI share."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shared.data.matching import file_name, files_of_patients, match_files
from shared.data.prepare import parse_number, read_table, rows_by_patient
from shared.data.splits import assign_folds
from shared.errors import DataError

EMPTY = ("", "na", "n/a", "nan", "none", "null", "-", "?")
YES = ("1", "1.0", "true", "yes", "y", "test", "testing")
USUAL_FOLDS = 5
NO = ("0", "0.0", "false", "no", "n", "train", "training", "")


def label_of(text: str, positive: list[str], negative: list[str]) -> tuple[int | None, str | None]:
    """Label of a cell, or None where it is empty; and what is wrong with it.

    Example:
        >>> label_of("M1", ["M1", "M2"], []), label_of("1.0", [], []), label_of(" ", [], [])
        ((1, None), (1, None), (None, None))
        >>> label_of("yes", [], [])[1]
        "label must be 0 or 1, got 'yes'; name the positive values with --positive"
    """
    value = text.strip().casefold()
    if value in [item.casefold() for item in positive]:
        return 1, None
    if value in [item.casefold() for item in negative]:
        return 0, None
    if value in EMPTY:
        return None, None
    if negative:
        known = f"--positive {','.join(positive)} nor --negative {','.join(negative)}"
        return None, f"label {text!r} is neither among {known}; correct the table or name the value"
    if positive:
        return 0, None
    number = parse_number(value)
    if number in (0.0, 1.0):
        return int(number), None
    return None, f"label must be 0 or 1, got {text!r}; name the positive values with --positive"


def read_row(patient: str, row: dict, options: argparse.Namespace) -> tuple[dict, list[str]]:
    """Label, covariates and (under ``test``) the section of one row of the table, and its problems."""
    entry, problems = {}, []
    if options.label_column in row:
        label, problem = label_of(row[options.label_column], options.positive, options.negative)
        if problem and not options.inference:
            problems.append(f"{patient}: {problem}")
        elif label is not None:
            entry["label"] = label
    covariates = {}
    for name in options.covariates:
        number = parse_number(row[name])
        if number is not None:
            covariates[name] = number
        elif row[name].casefold() not in EMPTY:
            problems.append(
                f"{patient}: covariate {name!r} must be a number, got {row[name]!r}; code it as one in the table"
            )
    if covariates:
        entry["covariates"] = covariates
    if options.test_column:
        text = row[options.test_column].casefold()
        entry["test"] = text in YES
        if text not in YES + NO:
            problems.append(
                f"{patient}: column {options.test_column!r} must be 1 or 0, got {row[options.test_column]!r}"
            )
    return entry, problems


def collect(
    options: argparse.Namespace, extra_problem: Callable[[Path], str | None] = lambda path: None
) -> tuple[dict[str, dict], list[str]]:
    """Everything known of each patient (``files``, ``mask_file``, ``others``, label, covariates), checked.

    Args:
        options: of the command line.
        extra_problem: a further rule for each image and mask; what is wrong, or None.

    Returns:
        patients by name, and lines on what was left out.

    Raises:
        DataError: with every problem found.
    """
    from shared.data.checks import image_header_problem

    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; give the one that holds the patients' NIfTI files")
    table, problems = None, []
    named = getattr(options, "words", None)  # other words than a modality's name that stand for it
    words = [word for many in named.values() for word in many] if named else options.modalities
    if options.labels is not None:
        wanted = [options.patient_column, *options.covariates]
        wanted += [] if options.inference else [options.label_column]
        wanted += [options.test_column] if options.test_column else []
        rows = read_table(options.labels, wanted)
        table, problems = rows_by_patient(rows, options.patient_column)
    files = files_of_patients(options.folder, None if table is None else list(table), words)
    if not any(files.values()):
        raise DataError(f"{options.folder}: holds no .nii or .nii.gz file; convert DICOM with dcm2niix first")
    missing = []
    if table is not None:
        missing += [
            f"{name}: is in {options.labels} and has no file in {options.folder}" for name in table if name not in files
        ]
        missing += [f"{name}: has files and no row in {options.labels}" for name in files if name not in table]
    patients = {}
    for name in files:
        if table is not None and name not in table:
            continue
        entry, found = read_row(name, table[name], options) if table is not None else ({}, [])
        problems += found
        if "label" not in entry and not options.inference and not found:
            missing.append(f"{name}: column {options.label_column!r} is empty")
            continue
        images, mask, found = match_files(
            name, files[name], options.folder, options.patterns, options.mask_pattern, words=named
        )
        problems += found
        for path in (*images.values(), *([mask] if mask else [])):
            problem = image_header_problem(path)[0] or extra_problem(path)
            if problem:
                problems.append(f"{name}: {path}: {problem}")
        others = [path for path in files[name] if path != mask and path not in images.values()]
        patients[name] = {**entry, "files": images, "mask_file": mask, "others": others}
    bare = [name for name, patient in patients.items() if patient["mask_file"] is None]
    if 0 < len(bare) < len(patients):
        problems += [
            f"{name}: has no mask, other patients have one; add it, correct --mask-pattern, or give "
            "--mask-pattern none (then the whole image is the region of interest, for everybody)"
            for name in bare
        ]
    if missing and not options.skip_missing:
        problems += [*missing, "--skip-missing leaves such patients out"]
    if problems:
        raise DataError(problems)
    if not patients:
        raise DataError(f"no patient is left of {options.folder} and {options.labels}")
    return patients, missing


def split_off(cases: list[dict], fraction: float, seed: int) -> set[str]:
    """Names of the patients of the testing section: a stratified ``fraction`` of them."""
    from sklearn.model_selection import train_test_split

    names = sorted(case["patient"] for case in cases)
    labels = {case["patient"]: case["label"] for case in cases}
    try:
        _, chosen = train_test_split(
            names, test_size=fraction, random_state=seed, stratify=[labels[name] for name in names]
        )
    except ValueError as error:
        raise DataError(f"{len(names)} patients cannot be split with --test-fraction {fraction}: {error}") from error
    return set(chosen)


def divide(cases: list[dict], patients: dict[str, dict], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Cases of the training section, with folds, and of the testing section, as the command line asks.

    Where ``options.folds`` is None there are ``USUAL_FOLDS``, or none where a label has fewer patients than that.
    """
    tested: set[str] = set()
    if options.inference:
        tested = set(patients)
    elif options.test_column:
        tested = {name for name, patient in patients.items() if patient["test"]}
    elif options.test_fraction:
        tested = split_off(cases, options.test_fraction, options.seed)
    training = [case for case in cases if case["patient"] not in tested]
    testing = [case for case in cases if case["patient"] in tested]
    folds = options.folds
    if folds is None:
        fewest = min(Counter(case.get("label") for case in training).values(), default=0)
        folds = USUAL_FOLDS if fewest >= USUAL_FOLDS else 0
    if folds and not options.inference:
        training = assign_folds(training, folds, options.seed)
    return training, testing


def without_covariates(cases: list[dict], covariates: list[str]) -> dict[str, list[str]]:
    """Names of the patients that lack a covariate, by covariate."""
    return {name: [c["patient"] for c in cases if name not in c.get("covariates", {})] for name in covariates}


def comma_list(text: str) -> list[str]:
    """Type of an option that names several things.

    Example:
        >>> comma_list("T1, T2,")
        ['T1', 'T2']
    """
    return [item.strip() for item in text.split(",") if item.strip()]


def add_section_options(parser: argparse.ArgumentParser) -> None:
    """Options on folds and sections, and on patients that lack something."""
    add = parser.add_argument
    add("--folds", type=int, default=USUAL_FOLDS, help=f"stratified folds by patient ({USUAL_FOLDS}); 0: none")
    add("--seed", type=int, default=0, help="of folds and test fraction (0)")
    test = parser.add_mutually_exclusive_group()
    test.add_argument(
        "--test-fraction", type=float, default=0.0, help="share of the patients for the testing section (0)"
    )
    test.add_argument("--test-column", help="column that is 1 for patients of the testing section")
    add("--inference", action="store_true", help="patients to predict: no labels needed, all go to the testing section")
    add("--skip-missing", action="store_true", help="leave out patients without files, row or label")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Rules between options; completes ``options.patterns`` from ``--pattern``."""
    if options.labels is None and not options.inference:
        parser.error("a label table is needed (or --inference, to predict)")
    if options.negative and not options.positive:
        parser.error("--negative needs --positive")
    if options.labels is None and (options.covariates or options.test_column):
        parser.error("--covariates and --test-column need a label table")
    if len(options.classes) != 2:
        parser.error("--classes must name two classes")
    if not 0 <= options.test_fraction < 1:
        parser.error("--test-fraction must lie in [0, 1)")
    names = [file_name(modality) for modality in options.modalities]
    if not names or len({*names, "mask", ""}) != len(names) + 2:
        parser.error("--modalities must name each modality once, by different letters or digits, and none `mask`")
    options.patterns = dict.fromkeys(options.modalities)
    for item in options.pattern:
        modality, equals, pattern = item.partition("=")
        if not equals or modality not in options.patterns or not pattern:
            parser.error(f"--pattern {item!r} must be MODALITY=PATTERN with one of {', '.join(options.modalities)}")
        options.patterns[modality] = pattern


def report(options, training, testing, missing, lacking, patients) -> None:
    """Print what was prepared, so that a wrong --positive or --mask-pattern is seen."""
    for line in missing:
        print(f"left out: {line}")
    for covariate, names in lacking.items():
        if names:
            print(f"covariate {covariate!r} is missing for {len(names)} patients: {', '.join(names)}")
    if all(patient["mask_file"] is None for patient in patients.values()):
        print("no masks: the whole image is the region of interest")
    for section, cases in (("training", training), ("testing", testing)):
        counts = Counter(case.get("label") for case in cases)
        shown = ", ".join(f"{counts[row]} {name}" for row, name in enumerate(options.classes))
        unknown = f", {counts[None]} without label" if counts[None] else ""
        print(f"{options.output}: {len(cases)} {section} patients ({shown}{unknown})")
