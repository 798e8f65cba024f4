"""Which file of a hospital's folder is which patient's, and which modality or mask; what is not read is named."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.data.clutter import is_clutter, walk_files

WORD = r"[^\W_]+"
# what may follow a patient's name in a file's: nothing, a word, a date, nnU-Net's number of a channel at the end; other
# digits are part of the name
AFTER_NAME = r"[\W_]*$|[\W_]+([^\W\d_]|\d{4}$|(19|20)\d\d[\W_]?\d\d[\W_]?\d\d(?!\d))"
TUMOUR_WORDS = ("tumor", "tumour", "lesion", "tumors", "tumours", "lesions", "gtv")
MASK_WORDS = (
    *("mask", "seg", "segmentation", "roi", "tumor", "tumour", "lesion", "tumors", "tumours", "lesions"),
    *("masks", "segm", "segmentations", "rois", "label", "labels", "labelmap", "contour", "contours"),
    *("annotation", "annotations", "gt", "ground truth", "groundtruth", "delineation", "gtv", "voi"),
)
# structures whose mask is not the tumour's, unless a word for the tumour stands beside
ORGANS = (
    *("liver", "brain", "body", "organ", "skull", "head", "kidney", "kidneys", "lung", "lungs", "spleen", "pancreas"),
    *("prostate", "breast", "heart", "bet", "vessel", "vessels", "bone", "bones", "ventricles", "couinaud", "aseg"),
)
# words for sequences and phases, synonyms together, by rank: one of a higher rank, or another of the same, beside a
# modality's own words makes a file another modality (T2_FLAIR is no T2, T1_ART is no T1, but it is ART)
RANKS = (
    (("t1", "t1w", "t1n"), ("t2", "t2w"), ("pd",)),
    (("post", "contrast", "postcontrast", "gd", "gad", "ce", "t1c", "t1ce", "t1gd"),),
    (
        *(("flair", "t2f"), ("stir", "tirm"), ("dwi",), ("dti",), ("swi",), ("dce",), ("dsc", "perfusion"), ("asl",)),
        *(("mra", "tof"), ("star",), ("late", "delayed", "delay", "equilibrium"), ("arterial", "art")),
        *(("portal", "venous", "pv", "pvp"), ("hbp", "hepatobiliary"), ("inphase",), ("outphase", "opposed", "opp")),
    ),
    (("map",), ("mip",), ("sub", "subtraction"), ("trace",)),
    (("adc",), ("fa",), ("localizer", "localiser", "scout", "survey")),
)
SEQUENCES = {word: (rank, group) for rank, groups in enumerate(RANKS) for group in groups for word in group}
T1_WORDS, T2_WORDS = RANKS[0][:2]
# words of a lower rank that make another modality all the same: GE's T1_FLAIR is T1-weighted, T2_GRE is T2*-weighted
APART = dict.fromkeys(("flair",), T1_WORDS) | dict.fromkeys(T2_WORDS, ("gre",))
UNKNOWN = (2, ())  # rank of a modality of another name, such as T1D
# parts of a name that make a file look like a mask, whatever its format
LIKE_A_MASK = re.compile(
    r"mask|segm|label|tumou?r|lesion|contour|annot|delineat|ground.?truth|rtstruct|(?<![^\W_])(seg|roi|gt|gtv|voi)",
    re.IGNORECASE,
)
TABLES = (".csv", ".tsv", ".txt", ".json", ".xls", ".xlsx", ".doc", ".docx", ".pdf", ".md", ".log", ".xml", ".yaml")


class Lacking(str):
    """A line on a file that a patient lacks: ``--skip-missing`` leaves such a patient out."""


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def spaced(text: str) -> str:
    """A name's words in lower case, one space about each.

    Example:
        >>> spaced("P001_T1-Post")
        ' p001 t1 post '
    """
    return f" {' '.join(re.findall(WORD, text.casefold()))} "


def has_words(name: str, words: str) -> bool:
    """Whether ``words`` (one or several, as `t1` or `t1_post`) stand in ``name`` as whole words, whatever their case.

    Example:
        >>> has_words("P001_T1D", "t1d"), has_words("P001_T1D", "t1"), has_words("a-t1-post", "T1_post")
        (True, False, True)
    """
    return spaced(words) in spaced(name)


def mask_kind(name: str) -> str | None:
    """What a name says of a mask: ``"tumour"``, ``"organ"``, which is not the tumour's, or None: of no mask.

    Example:
        >>> [mask_kind(n) for n in ("T1-label", "liver_mask", "liver_tumors", "brainmask", "tumormask", "T1")]
        ['tumour', 'organ', 'tumour', 'organ', 'tumour', None]
    """
    # `brainmask` is `brain mask`
    text = re.sub(r"(?<=[^\W_])(masks?|segmentation|segm?|labels?)(?![^\W_])", r" \1", name, flags=re.IGNORECASE)
    if not any(has_words(text, word) for word in MASK_WORDS):
        return None
    if any(has_words(text, word) for word in TUMOUR_WORDS):
        return "tumour"
    return "organ" if any(has_words(text, word) for word in ORGANS) else "tumour"


def is_mask_file(path: Path, pattern: str | None, kinds: Sequence[str] = ("tumour",)) -> bool:
    """Whether a NIfTI file's name matches ``--mask-pattern`` or, without one, says that it is a mask of these kinds."""
    if pattern and pattern != "none":
        return fnmatch.fnmatch(folded(path.name), folded(pattern))
    return mask_kind(stem(path)) in kinds


def other_sequences(name: str, words: str) -> list[str]:
    """Words in a name that make it another modality than the one that ``words`` stand for.

    Example:
        >>> other_sequences("T2_FLAIR", "T2"), other_sequences("ax_T1_vibe", "T1"), other_sequences("T2_FLAIR", "FLAIR")
        (['flair'], [], [])
        >>> other_sequences("T1_FLAIR", "FLAIR"), other_sequences("T2_GRE", "T2"), other_sequences("T1_GRE", "T1")
        (['t1'], ['gre'], [])
    """
    rest = spaced(name)
    while spaced(words) in rest:
        rest = rest.replace(spaced(words), " ", 1)
    own = max((SEQUENCES[word] for word in spaced(words).split() if word in SEQUENCES), default=UNKNOWN)
    apart = {other for word in spaced(words).split() for other in APART.get(word, ())}

    def differs(word: str) -> bool:
        rank, group = SEQUENCES.get(word, own)
        return word in apart or rank > own[0] or (rank == own[0] and group != own[1])

    return [word for word in rest.split() if differs(word)]


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


def folded(name: str) -> str:
    """A name as it is compared: composed characters, lower case, no spaces around.

    Example:
        >>> folded(" Mu\\u0308ller") == folded("MÜLLER")
        True
    """
    return unicodedata.normalize("NFC", name.strip()).casefold()


def files_of_patients(folder: Path, known: list[str] | None, modalities: Sequence[str]) -> dict[str, list[Path]]:
    """Files by patient: those in a patient's folder, or those side by side whose name begins with the patient's.

    Links are followed, clutter is left out at any depth. A number after a name makes another name: P001-2_t1.nii.gz is
    no file of P001.

    Args:
        folder: of the cohort.
        known: patients of the label table; None: the folder names them, or a file's name without its modality's.
        modalities: their names.

    Returns:
        one entry for each patient who has a folder or a file: NIfTI files and others. NIfTI files without a patient are
        listed under their own name; other files without a patient are not.
    """
    found: dict[str, list[Path]] = {}
    names = {folded(name): name for name in known or ()}
    # The longest name first, so that P1_2_t1.nii.gz is not taken for a file of P1.
    by_length = sorted(names, key=len, reverse=True)
    words = "|".join(r"[\W_]+".join(re.findall(WORD, word)) for word in (*modalities, *MASK_WORDS))
    strays = []
    for path in sorted(folder.iterdir()):
        if is_clutter(path.name):
            continue
        if path.is_dir():
            patient = names.get(folded(path.name), path.name.strip())
            found.setdefault(patient, []).extend(walk_files(path))
            continue
        name = stem(path).strip() if is_nifti(path) else path.name.partition(".")[0].strip()
        starts = (n for n in by_length if re.match(rf"{re.escape(n)}({AFTER_NAME})", folded(name)))
        patient = names.get(next(starts, "")) or re.sub(rf"([\W_]+({words}))+$", "", name, flags=re.IGNORECASE)
        if is_nifti(path):
            found.setdefault(patient, []).append(path)
        else:
            strays.append((patient, path))
    for patient, path in strays:
        owner = next((n for n in sorted(found, key=len, reverse=True) if folded(path.name).startswith(folded(n))), None)
        if patient in found or owner is not None:
            found[patient if patient in found else owner].append(path)
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

    A file's own name decides, its folders where that holds no modality's words. The longest of the words that stand in
    it counts; words of another sequence beside them (`T2_FLAIR` for T2) make it another modality. A mask of an organ
    (`liver_mask`) is not the tumour's. A folder's name makes a mask of its files where no file's own name does, and
    other images lie beside it.

    Args:
        patient: its name.
        files: its files; only NIfTI is read.
        folder: of the cohort.
        patterns: per modality a shell pattern for the file name, or None to go by whole words.
        mask_pattern: shell pattern of the mask, None to go by whole words, "none" where there are no masks.
        words: per modality the words that stand for it (`t1c` and `t1ce`), of which the longest in a name counts; None:
            its name alone.

    Returns:
        files by modality, the mask or None, and the problems (:class:`Lacking`: a file is not there).
    """
    names = {modality: (words or {}).get(modality, (modality,)) for modality in patterns}
    standing = {word: modality for modality, many in names.items() for word in many}
    images = [path for path in files if is_nifti(path)]

    def name_of(path: Path) -> str:
        return own_name(path, patient, folder)

    def matches(path: Path, pattern: str) -> bool:
        texts = (path.name, _inner(path, folder))
        return any(fnmatch.fnmatch(folded(text), folded(pattern)) for text in texts)

    def modality_of(path: Path) -> tuple[str | None, str]:
        """The modality whose words the path holds, of `t1` and `t1 post` the longer; and those words."""
        name = name_of(path)
        for text in (name.rpartition("/")[2], name):
            there = [word for word in standing if has_words(text, word)]
            if there:
                word = max(there, key=lambda word: (not other_sequences(name, word), len(word)))
                return standing[word], word
        return None, ""

    def by_name(test: Callable[[str], Any]) -> dict[Path, Any]:
        """What a test finds in files' own names, or in their folders' where these tell some files from others."""
        own = {path: test(name_of(path).rpartition("/")[2]) for path in files}
        told = {path: test(name_of(path)) for path in files}
        plain = []
        if any(own[path] == "tumour" for path in images):
            plain = images
        elif all(told[path] for path in images):
            plain = [path for path in images if any(has_words(name_of(path).rpartition("/")[2], w) for w in standing)]
        return {path: own[path] or (None if path in plain else told[path]) for path in files}

    def shown(paths: list[Path]) -> str:
        return ", ".join(path.relative_to(folder).as_posix() for path in paths)

    kinds, problems = by_name(mask_kind), list[str]()
    if mask_pattern == "none":
        masks = []
    elif mask_pattern is not None:
        masks = [path for path in images if matches(path, mask_pattern)]
        if not masks:
            there = f"its files are {shown(files)}" if files else "it has no file"
            problems.append(Lacking(f"{patient}: no file matches --mask-pattern {mask_pattern!r}; {there}"))
    else:
        masks = [path for path in images if kinds[path] == "tumour"]
        alike = [path for path, like in by_name(_like_a_mask).items() if like and path not in masks]
        if not masks and alike:
            problems.append(
                f"{patient}: has no tumour mask that is recognised, and {shown(alike)} may be one; give --mask-pattern "
                "(NIfTI alone is read, convert other formats), or --mask-pattern none where no mask is meant"
            )
    if len(masks) > 1:
        problems.append(
            f"{patient}: {len(masks)} files may be the mask ({shown(masks)}); tell them apart by --mask-pattern"
        )
    chosen: dict[str, Path] = {}
    rest = [path for path in images if path not in masks]
    plain = [path for path in rest if kinds[path] is None]
    for modality, pattern in patterns.items():
        other: list[Path] = []
        if pattern is not None:
            hits = [path for path in rest if matches(path, pattern)]
        else:
            named = [(path, word) for path in plain for found, word in [modality_of(path)] if found == modality]
            hits = [path for path, word in named if not other_sequences(name_of(path), word)]
            other = [path for path, _ in named if path not in hits]
            if not hits and not other and len(patterns) == 1:
                sequence = any(word in SEQUENCES for word in spaced(modality).split())
                hits = [path for path in plain if not (sequence and other_sequences(name_of(path), modality))]
        rule = f"pattern {pattern!r}" if pattern else f"the word {' or '.join(map(repr, names[modality]))} in the name"
        if len(hits) == 1:
            chosen[modality] = hits[0]
        elif hits:
            problems.append(
                f"{patient}: {len(hits)} files match modality {modality} by {rule} ({shown(hits)}); "
                f'tell them apart by --pattern {modality}="..."'
            )
        elif other:
            beside = ", ".join(sorted({word for path in other for word in other_sequences(name_of(path), modality)}))
            problems.append(
                Lacking(
                    f"{patient}: no file matches modality {modality} by {rule} alone; {shown(other)} holds {beside}, "
                    f'too: where it is {modality} all the same, give --pattern {modality}="..."'
                )
            )
        else:
            there = f"its files are {shown(rest)}" if rest else "it has no NIfTI image (convert DICOM with dcm2niix)"
            problems.append(Lacking(f"{patient}: no file matches modality {modality} by {rule}; {there}"))
    for path, count in Counter(chosen.values()).items():
        if count > 1:
            problems.append(f"{patient}: {shown([path])} matches {count} modalities; make their patterns differ")
    return chosen, (masks[0] if masks else None), problems


def taken_for_another(patients: Mapping[str, Mapping], folder: Path) -> list[str]:
    """Files read as a modality or mask of a patient whose very name is, with other patients, another file's.

    Where P1 has `t1.nii.gz` beside `t1_old.nii.gz`, the `t1_old.nii.gz` of a patient without the former is no T1.

    Args:
        patients: by name, each with ``files`` (by modality), ``mask_file`` and ``others``.
        folder: of the cohort.
    """
    unread: dict[str, str] = {}
    for name, patient in patients.items():
        for path in patient["others"]:
            unread.setdefault(spaced(own_name(path, name, folder)), name)
    lines = []
    for name, patient in patients.items():
        read = {**patient["files"], "mask": patient["mask_file"]}
        for what, path in read.items():
            owner = None if path is None else unread.get(spaced(own_name(path, name, folder)))
            if owner not in (None, name):
                lines.append(
                    f"{name}: {path.relative_to(folder).as_posix()} is the only file for {what}, with {owner} a file "
                    f"of that name lies beside another that is read; name the files by --pattern or --mask-pattern"
                )
    return lines


def unread_files(folder: Path, read: Iterable[Path]) -> list[str]:
    """Every file below ``folder`` that is not among those read, as paths inside it."""
    taken = {path.absolute() for path in read}
    return [path.relative_to(folder).as_posix() for path in walk_files(folder) if path.absolute() not in taken]


def describe_unread(unread: Sequence[str], patients: Iterable[str], most: int = 20) -> str:
    """One line on the files that were not read; those of one name in many patients' folders once.

    Example:
        >>> describe_unread(["P1/adc.nii.gz", "P2/adc.nii.gz", "P2/x.txt"], ["P1", "P2"])
        '3 files are not read: adc.nii.gz (2 times), P2/x.txt'
    """
    by_length = sorted(patients, key=len, reverse=True)

    def short(path: str) -> str:
        owner = next((name for name in by_length if folded(path).startswith(folded(name))), "")
        return path[len(owner) :].lstrip("/_-. ") if owner else path

    groups: dict[str, list[str]] = {}
    for path in unread:
        groups.setdefault(short(path), []).append(path)
    parts = [paths[0] if len(paths) == 1 else f"{name} ({len(paths)} times)" for name, paths in groups.items()]
    more = f", and {len(parts) - most} more (manifest.json lists all)" if len(parts) > most else ""
    return f"{len(unread)} files are not read: {', '.join(parts[:most])}{more}"


def own_name(path: Path, patient: str, folder: Path) -> str:
    """Path in the patient's folder without its ending and the patient's name, which may hold a modality's word."""
    name = re.sub(r"\.nii(\.gz)?$", "", unicodedata.normalize("NFC", _inner(path, folder)), flags=re.IGNORECASE)
    patient = unicodedata.normalize("NFC", patient)
    return re.sub(rf"(?<![^\W_]){re.escape(patient)}(?![^\W_])", "", name, flags=re.IGNORECASE)


def _inner(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts
    return "/".join(parts[1:] or parts)


def _like_a_mask(name: str) -> bool:
    return not name.lower().endswith(TABLES) and bool(mask_kind(name) or LIKE_A_MASK.search(name))
