"""Which files of a folder are patches, which are masks, and which patches belong to one patient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from shared.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
IMAGE_FOLDERS = ("image", "images", "img", "imgs", "patches")
MASK_FOLDERS = ("label", "labels", "mask", "masks")
MASK_ENDINGS = ("_mask", "-mask", "_label", "-label", "_seg", "-seg")
PARTS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "testing"),
}
NO_GROUPS = "none"


def is_image(path: Path) -> bool:
    """Whether a file's ending is one of an image (hidden files are none)."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _in_mask_folder(path: PurePath) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])


def find_images(folder: Path) -> list[Path]:
    """Images below a folder, sorted by path, without masks: those in a folder for masks or beside their image.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b/x.png", "a/y.jpg", "a/y_mask.png", "label/x.png", "notes.txt"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [path.relative_to(folder).as_posix() for path in find_images(folder)]
        ['a/y.jpg', 'b/x.png']
    """
    found = sorted(path for path in folder.rglob("*") if is_image(path))
    found = [path for path in found if not _in_mask_folder(path.relative_to(folder))]
    stems = {path.parent / path.stem for path in found}
    return [path for path in found if not any(_is_mask_of(path, stems, end) for end in MASK_ENDINGS)]


def _is_mask_of(path: Path, stems: set[Path], ending: str) -> bool:
    stem = path.stem
    return stem.lower().endswith(ending) and path.parent / stem[: -len(ending)] in stems


def find_masks(folder: Path) -> dict[str, Path]:
    """Masks below a class's folder, by the path of their image: folders for images and masks and endings left out."""
    masks = {}
    for path in sorted(path for path in folder.rglob("*") if is_image(path)):
        inner, stem = path.relative_to(folder), path.stem
        ending = next((end for end in MASK_ENDINGS if stem.lower().endswith(end)), "")
        if _in_mask_folder(inner) or ending:
            masks.setdefault(_key(inner.with_name(stem[: len(stem) - len(ending)])), path)
            if _in_mask_folder(inner):
                masks.setdefault(_key(inner.with_name(stem)), path)
    return masks


def _key(inner: PurePath) -> str:
    folders = [part for part in inner.parts[:-1] if part.lower() not in IMAGE_FOLDERS + MASK_FOLDERS]
    return "/".join([*folders, inner.name])


def class_images(folder: Path) -> list[tuple[Path, Path | None]]:
    """Images of a class's folder, each with its mask or None.

    Where there is a folder for images (``image``, ``images``, ...) only what is in it is taken.
    """
    images = find_images(folder)
    inside = [p for p in images if any(x.lower() in IMAGE_FOLDERS for x in p.relative_to(folder).parts[:-1])]
    masks = find_masks(folder)
    found = []
    for path in inside or images:
        inner = path.relative_to(folder)
        found.append((path, masks.get(_key(inner.with_name(path.stem)))))
    return found


def group_of(path: PurePath, pattern: str | None = None) -> str | None:
    """The group (patient, slide) that a file's path names, or None where the pattern does not fit.

    Args:
        path: inside the data set's folder.
        pattern: regular expression, searched in the file name, with and then without its ending, or in the whole path
            if the pattern holds a ``/``; its first group counts, else the whole match. None: the part of the name
            before the first ``-``, or, without one, the path itself: every image is a group of its own. "none": that,
            always.

    Example:
        >>> name = PurePath("Polyp/image/GT2012154-1-400-001.png")
        >>> group_of(name), group_of(name, r"^\\w+-(\\d)"), group_of(name, "^([^/]+)/"), group_of(name, "none")
        ('GT2012154', '1', 'Polyp', 'Polyp/image/GT2012154-1-400-001')
    """
    alone = path.with_suffix("").as_posix()
    if pattern == NO_GROUPS:
        return alone
    if pattern is None:
        prefix, dash, _ = path.name.partition("-")
        return prefix if dash and prefix.strip() else alone
    texts = [path.as_posix()] if "/" in pattern else [path.name, path.stem]
    match = next((found for text in texts if (found := re.search(pattern, text))), None)
    name = "" if match is None else (match.group(1) if match.re.groups else match.group()) or ""
    return name.strip() or None


def groups_of(paths: Sequence[PurePath], pattern: str | None = None) -> list[str]:
    """:func:`group_of` each path.

    Raises:
        DataError: the pattern is no regular expression, or does not fit every path.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise DataError(f"--group-by {pattern!r} is no regular expression: {error}") from error
    groups = [group_of(path, pattern) for path in paths]
    unfit = [path.as_posix() for path, group in zip(paths, groups, strict=True) if group is None]
    if unfit:
        raise DataError(
            f"--group-by {pattern!r} does not fit {len(unfit)} of {len(paths)} file names, as {unfit[0]}; correct it, "
            f"or give --group-by {NO_GROUPS} where every image is of another patient"
        )
    return [str(group) for group in groups]


def by_part(folder: Path, beside: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Folders of an official split, by part (``train/ val/ test/``, in any case); empty where there is none.

    Args:
        folder: the data set's folder.
        beside: names of folders that may lie beside those of the parts.

    Raises:
        DataError: beside them lies another folder that holds images.
    """
    found = defaultdict(list)
    others = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        part = PARTS.get(path.name.lower())
        if part:
            found[part].append(path)
        elif path.name not in beside and any(is_image(file) for file in path.rglob("*")):
            others.append(path.name)
    if found and "training" not in found:
        raise DataError(f"{folder}: has {', '.join(p.name for ps in found.values() for p in ps)} and no folder train")
    if found and others:
        raise DataError(
            f"{folder}: {', '.join(others)} lies beside train and test; move it into one or take it --unlabelled"
        )
    return dict(found)
