"""Which file of a hospital's folder is which patient's, and which modality or mask."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

MASK_WORDS = ("mask", "seg", "segmentation", "roi", "tumor", "tumour", "lesion")


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def has_words(name: str, words: str) -> bool:
    """Whether ``words`` (one or several, as `t1` or `t1_post`) stand in ``name`` as whole words, whatever their case.

    Example:
        >>> has_words("P001_T1D", "t1d"), has_words("P001_T1D", "t1"), has_words("a-t1-post", "T1_post")
        (True, False, True)
    """
    parts = [re.sub(r"[\W_]+", " ", text.casefold()).strip() for text in (name, words)]
    return f" {parts[1]} " in f" {parts[0]} "


def file_name(modality: str) -> str:
    """Name of a modality's file, without ending.

    Example:
        >>> file_name("T1 post-contrast")
        't1_post_contrast'
    """
    return re.sub(r"[\W_]+", "_", modality.casefold()).strip("_")


def file_ending(path: Path) -> str:
    """``.nii.gz`` or ``.nii``, in lower case."""
    return ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"


def is_nifti(path: Path) -> bool:
    """Whether the name is one of a NIfTI file (hidden files are none)."""
    return not path.name.startswith(".") and re.search(r"\.nii(\.gz)?$", path.name, re.IGNORECASE) is not None


def files_of_patients(folder: Path, known: list[str] | None, modalities: Sequence[str]) -> dict[str, list[Path]]:
    """NIfTI files by patient: those in a patient's folder, or those side by side whose name begins with the patient's.

    Args:
        folder: of the cohort.
        known: patients of the label table; None: the folder names them, or a file's name without its modality's.
        modalities: their names.

    Returns:
        one entry for each patient who has a folder or a file. Files without a patient are listed under their own name.
    """
    found: dict[str, list[Path]] = {}
    names = {name.casefold(): name for name in known or ()}
    # The longest name first, so that P1_2_t1.nii.gz is not taken for a file of P1.
    by_length = sorted(names, key=len, reverse=True)
    words = "|".join(r"[\W_]+".join(re.findall(r"[^\W_]+", word)) for word in (*modalities, *MASK_WORDS))
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            patient = names.get(path.name.strip().casefold(), path.name.strip())
            found.setdefault(patient, []).extend(sorted(file for file in path.rglob("*") if is_nifti(file)))
        elif is_nifti(path):
            name = stem(path).strip()
            if known is None:
                patient = re.sub(rf"([\W_]+({words}))+$", "", name, flags=re.IGNORECASE)
            else:
                starts = (n for n in by_length if re.match(re.escape(n) + r"(?![^\W_])", name.casefold()))
                patient = names.get(next(starts, ""), name)
            found.setdefault(patient, []).append(path)
    return found


def match_files(
    patient: str,
    files: list[Path],
    folder: Path,
    patterns: Mapping[str, str | None],
    mask_pattern: str | None,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Path], Path | None, list[str]]:
    """Which file is which modality and which the mask.

    Args:
        patient: its name.
        files: its NIfTI files.
        folder: of the cohort.
        patterns: per modality a shell pattern for the file name, or None to go by whole words.
        mask_pattern: shell pattern of the mask, None to go by whole words, "none" where there are no masks.
        words: per modality the words that stand for it (`t1c` and `t1ce`), of which the longest in a name counts; None:
            its name alone.

    Returns:
        files by modality, the mask or None, and the problems.
    """

    names = {modality: (words or {}).get(modality, (modality,)) for modality in patterns}
    standing = [(modality, word) for modality, many in names.items() for word in many]

    def inner(path: Path) -> str:
        """Path inside the patient's folder."""
        parts = path.relative_to(folder).parts
        return "/".join(parts[1:] or parts)

    def name_of(path: Path) -> str:
        """That path without its ending and the patient's name, which may itself hold a modality's word."""
        name = inner(path)[: -len(file_ending(path))]
        return re.sub(rf"(?<![^\W_]){re.escape(patient)}(?![^\W_])", "", name, flags=re.IGNORECASE)

    def matches(path: Path, pattern: str) -> bool:
        return any(fnmatch.fnmatch(text.casefold(), pattern.casefold()) for text in (path.name, inner(path)))

    def modality_of(path: Path) -> str | None:
        """The modality whose words the path holds; of `t1` and `t1 post` the longer."""
        fitting = {word: modality for modality, word in standing if has_words(name_of(path), word)}
        return fitting.get(max(fitting, key=len, default=""))

    def shown(paths: list[Path]) -> str:
        return ", ".join(path.relative_to(folder).as_posix() for path in paths)

    problems = []
    if mask_pattern == "none":
        masks = []
    elif mask_pattern is not None:
        masks = [path for path in files if matches(path, mask_pattern)]
    else:
        masks = [path for path in files if any(has_words(name_of(path), word) for word in MASK_WORDS)]
    if len(masks) > 1:
        problems.append(
            f"{patient}: {len(masks)} files may be the mask ({shown(masks)}); tell them apart by --mask-pattern"
        )
    chosen: dict[str, Path] = {}
    rest = [path for path in files if path not in masks]
    for modality, pattern in patterns.items():
        if pattern is not None:
            hits = [path for path in rest if matches(path, pattern)]
        else:
            hits = [path for path in rest if modality_of(path) == modality]
            if not hits and len(patterns) == 1:
                hits = rest
        rule = f"pattern {pattern!r}" if pattern else f"the word {' or '.join(map(repr, names[modality]))} in the name"
        if len(hits) == 1:
            chosen[modality] = hits[0]
        elif hits:
            problems.append(
                f"{patient}: {len(hits)} files match modality {modality} by {rule} ({shown(hits)}); "
                f'tell them apart by --pattern {modality}="..."'
            )
        else:
            there = f"its files are {shown(rest)}" if rest else "it has no NIfTI image (convert DICOM with dcm2niix)"
            problems.append(f"{patient}: no file matches modality {modality} by {rule}; {there}")
    for path, count in Counter(chosen.values()).items():
        if count > 1:
            problems.append(f"{patient}: {shown([path])} matches {count} modalities; make their patterns differ")
    return chosen, (masks[0] if masks else None), problems
