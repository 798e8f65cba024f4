"""Patients of a preparation script: files, rows of the label table, sections; what the scripts for NIfTI share."""

from __future__ import annotations

import argparse
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shared.apps.preparation.label_table import LabelTable, read_label_table
from shared.apps.preparation.matching import (
    Lacking,
    file_name,
    files_of_patients,
    is_nifti,
    match_files,
    taken_for_another,
)
from shared.data.names import clean, differing_in_case, look_alikes
from shared.data.splits import assign_folds, groups_of, split_off_groups
from shared.data.tables import some
from shared.errors import DataError

USUAL_FOLDS = 5


def known_files(folder: Path, known: list[str] | None, words: list[str]) -> dict[str, list[Path]]:
    """:func:`files_of_patients` with names in Unicode's composed form, however the disk writes them."""
    if known is not None:
        known = list(dict.fromkeys([*(unicodedata.normalize("NFD", name) for name in known), *known]))
    found: dict[str, list[Path]] = {}
    for name, files in files_of_patients(folder, known, words).items():
        found.setdefault(clean(name), []).extend(files)
    return found


def other_capitals(files: dict[str, list[Path]], folder: Path, known: list[str]) -> tuple[list[str], list[str]]:
    """Problems with names that differ in capitals only, and a line where the table's differ from the files'."""
    problems = [
        f"{a} and {b} in {folder} differ in capitals only; are they one patient? Rename one"
        for a, b in differing_in_case(files)
    ]
    others = []
    for name, paths in files.items():
        tops = sorted({clean(path.relative_to(folder).parts[0]) for path in paths if path.parent != folder})
        problems += [
            f"{name}: {a} and {b} in {folder} differ in capitals only; rename one" for a, b in differing_in_case(tops)
        ]
        there = (tops or [clean(path.name)[: len(name)] for path in paths] or [name])[0]
        if name in known and there != name and there.casefold() == name.casefold():
            others.append(f"{there} for {name}")
    told = f"{len(others)} patients' files have other capitals than the table, as {others[0]}" if others else ""
    return problems, [f"{told}; the table's are kept"] if told else []


def collect(
    options: argparse.Namespace, check: Callable[[str, dict], list[str]] = lambda name, patient: []
) -> tuple[dict[str, dict], list[str]]:
    """Everything known of each patient (``files``, ``mask_file``, ``others``, label, covariates), checked.

    Args:
        options: of the command line; gets ``told`` (lines for :func:`report`) and ``label_values``.
        check: further rules for a patient whose files can be read; what is wrong.

    Returns:
        patients by name, and lines on what was left out.

    Raises:
        DataError: with every problem found.
    """
    from shared.data.checks import image_header_problem

    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; give the one that holds the patients' NIfTI files")
    table = LabelTable() if options.labels is None else read_label_table(options)
    named = getattr(options, "words", None)  # other words than a modality's name that stand for it
    words = [word for many in named.values() for word in many] if named else options.modalities
    files = known_files(options.folder, None if options.labels is None else list(table.patients), words)
    if not any(is_nifti(file) for many in files.values() for file in many):
        raise DataError(
            f"{options.folder}: holds no .nii or .nii.gz file; convert DICOM with dcm2niix, other formats (NRRD, MHA) "
            "with 3D Slicer or SimpleITK first"
        )
    found, lines = other_capitals(files, options.folder, list(table.patients))
    options.told, options.label_values = [*table.told, *lines], table.values
    problems, missing = [*table.problems, *found], []
    if options.labels is not None:
        lost, strange = [n for n in table.patients if n not in files], [n for n in files if n not in table.patients]
        hints = look_alikes(lost, strange) | look_alikes(strange, lost)
        missing += [f"{n}: is in {options.labels} and has no file in {options.folder}{hints[n]}" for n in lost]
        missing += [f"{n}: has files and no row in {options.labels}{hints[n]}" for n in strange]
    patients = {}
    for name in files:
        if options.labels is not None and name not in table.patients:
            continue
        problems += table.wrong.get(name, [])
        if name in table.unlabelled and not options.inference:
            missing.append(f"{name}: {table.unlabelled[name]}")
            continue
        images, mask, found = match_files(
            name, files[name], options.folder, options.patterns, options.mask_pattern, words=named
        )
        lacking = [line for line in found if isinstance(line, Lacking)]
        missing += lacking
        found = [line for line in found if line not in lacking]
        for path in (*images.values(), *([mask] if mask else [])):
            if problem := image_header_problem(path)[0]:
                found.append(f"{name}: {path}: {problem}")
        problems += found
        if lacking:
            continue
        others = [path for path in files[name] if path != mask and path not in images.values()]
        patients[name] = {**table.patients.get(name, {}), "files": images, "mask_file": mask, "others": others}
        problems += [] if found else check(name, patients[name])
    return settle(patients, missing, problems, options)


def settle(
    patients: dict[str, dict], missing: list[str], problems: list[str], options: argparse.Namespace
) -> tuple[dict[str, dict], list[str]]:
    """Patients without a mask among others with one are missing; what is missing, and what was left out.

    Args:
        patients: by name, each with ``files``, ``mask_file`` and ``others``.
        missing: lines on patients who lack something.
        problems: what is wrong otherwise.
        options: of the command line.

    Raises:
        DataError: with every problem, and what is missing unless ``--skip-missing`` allows it; nobody is left.
    """
    bare = [name for name, patient in patients.items() if patient["mask_file"] is None]
    if 0 < len(bare) < len(patients):
        missing += [
            f"{name}: has no mask, other patients have one; add it, correct --mask-pattern, or give "
            "--mask-pattern none (then the whole image is the region of interest, for everybody)"
            for name in bare
        ]
        patients = {name: patient for name, patient in patients.items() if name not in bare}
    problems += taken_for_another(patients, options.folder)
    if missing and not options.skip_missing:
        problems += [*missing, "--skip-missing leaves such patients out"]
    if problems:
        raise DataError(problems)
    if not patients:
        raise DataError(f"no patient is left of {options.folder} and {options.labels}")
    return patients, missing


def split_off(cases: list[dict], fraction: float, seed: int) -> set[str]:
    """Names of the patients of the testing section: a stratified ``fraction`` of them, groups whole."""
    from sklearn.model_selection import train_test_split

    names = sorted(case["patient"] for case in cases)
    labels = {case["patient"]: case["label"] for case in cases}
    if groups := groups_of(cases):
        drawn = split_off_groups([groups[name] for name in names], [labels[name] for name in names], fraction, seed)
        return {name for name in names if groups[name] in drawn}
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
    _whole_groups(training, testing)
    folds = options.folds
    if folds is None:
        fewest = min(Counter(case.get("label") for case in training).values(), default=0)
        folds = USUAL_FOLDS if fewest >= USUAL_FOLDS else 0
    if folds and not options.inference:
        training = assign_folds(training, folds, options.seed)
    return training, testing


def _whole_groups(training: list[dict], testing: list[dict]) -> None:
    """No group is in both sections.

    Raises:
        DataError: naming each that is.
    """
    sections = [groups_of(cases) or {} for cases in (training, testing)]
    both = sorted({*sections[0].values()} & {*sections[1].values()})
    problems = []
    for group in both:
        kept, tested = ([name for name, of in section.items() if of == group] for section in sections)
        problems.append(
            f"group {group}: {some(tested)} is of the testing section and {some(kept)} of the training section; a "
            "group belongs to one"
        )
    if problems:
        raise DataError(problems)


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
    add("--skip-missing", action="store_true", help="leave out patients without a file, row or label")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Rules between options; completes ``options.patterns`` from ``--pattern``."""
    if options.labels is None and not options.inference:
        parser.error("a label table is needed (or --inference, to predict)")
    columns = ("test_column", "group_column", "image_column", "pixel_size_column")
    if options.labels is None and (options.covariates or any(getattr(options, name, None) for name in columns)):
        parser.error("--covariates and options that name a column need a label table")
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
    for line in options.told:
        print(line)
    for line in missing:
        print(f"left out: {line}")
    for covariate, names in lacking.items():
        if names:
            print(f"covariate {covariate!r} is missing for {len(names)} patients: {', '.join(names)}")
    if all(patient["mask_file"] is None for patient in patients.values()):
        print("no masks: the whole image is the region of interest")
    if groups := groups_of([*training, *testing]):
        print(f"groups: {len(groups)} patients in {len(set(groups.values()))}, each in one fold or section")
    for section, cases in (("training", training), ("testing", testing)):
        counts = Counter(case.get("label") for case in cases)
        shown = ", ".join(f"{counts[row]} {name}" for row, name in enumerate(options.classes))
        unknown = f", {counts[None]} without label" if counts[None] else ""
        print(f"{options.output}: {len(cases)} {section} patients ({shown}{unknown})")
