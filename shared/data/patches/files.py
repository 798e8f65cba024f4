"""What lies in a folder of patches: images, masks, and what the folders' names say of them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from shared.data.clutter import walk_files
from shared.data.names import nfc

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".jp2")
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".czi")
# S1_mask.png, and S1_mask_2.png of an image with several
MASK_ENDING = re.compile(r"[_-](masks?|labels?|seg|segmentation|gt|groundtruth|annotation)([_-]?\d+)?$", re.IGNORECASE)
PARTS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "testing"),
}
IMAGE_WORDS = ("image", "images", "img", "imgs", "patch", "patches", "tile", "tiles")
MASK_WORDS = ("label", "labels", "mask", "masks", "annotation", "annotations", "groundtruth", "gt", "segmentations")
FILLERS = ("data", "set", "dataset", "split", "folder", "part", "png", "jpg", "jpeg", "tif", "tiff", "bmp")


@dataclass(frozen=True)
class Meaning:
    """What the name of a folder says: part of a split, ``images`` or ``masks``, magnification."""

    part: str | None = None
    kind: str | None = None
    magnification: str | None = None

    def __bool__(self) -> bool:
        return self != Meaning()


def meaning(name: str) -> Meaning:
    """Read a folder's name.

    Example:
        >>> meaning("Test Masks")
        Meaning(part='testing', kind='masks', magnification=None)
        >>> meaning("train_data").part, meaning("x40").magnification, bool(meaning("HP")), bool(meaning("label 0"))
        ('training', '40x', False, False)
    """
    if power := re.fullmatch(r"(?:x ?(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?) ?x)", name.strip().casefold()):
        return Meaning(magnification=f"{power[1] or power[2]}x")
    part = kind = None
    joined = re.sub(r"ground[\W_]+truth", "groundtruth", name.casefold())
    for word in filter(None, re.split(r"[\W_]+", joined)):
        short = re.sub(r"(data|dataset|set)$", "", word)
        if word in IMAGE_WORDS + MASK_WORDS:
            kind = "images" if word in IMAGE_WORDS and kind != "masks" else "masks"
        elif short in PARTS and part in (None, PARTS[short]):
            part = PARTS[short]
        elif word not in FILLERS:
            return Meaning()
    return Meaning(part, kind)


def same_name(name: str) -> str:
    """A name as folders are compared by: whatever its case and its way of composing accents (NFC, NFD)."""
    return nfc(name).casefold()


def is_utf8(name: str | os.PathLike) -> bool:
    """Whether a file's name can be written to a table; one of another encoding reaches Python with surrogates.

    Example:
        >>> is_utf8("Präparat.png"), is_utf8("Pr\\udce4parat.png")
        (True, False)
    """
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(path: PurePath) -> str:
    """A path as it can be printed and written, also where its name is not UTF-8.

    Example:
        >>> plain(PurePath("HP/Pr\\udce4parat.txt")).isascii()
        True
    """
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class PatchFile:
    """An image or mask, and what its folders say.

    Attributes:
        path: where it lies.
        inner: its path below the data set's folder.
        name: of its class's folder, None where there is none.
        folders: the others that have no meaning of their own (patients, slides), outermost first.
        parts: parts of a split that its folders name; more than one is a contradiction.
        magnification: as its folders say.
        kind: ``image`` or ``mask``.
        inside: whether it lies in a folder for images.
        classes: all folders of it that are named as classes; more than one is a contradiction.
    """

    path: Path
    inner: PurePath
    name: str | None
    folders: tuple[str, ...]
    parts: tuple[str, ...]
    magnification: str | None
    kind: str
    inside: bool
    classes: tuple[str, ...]

    def key(self, stem: str) -> tuple:
        """What an image and its mask have in common; ``stem``: the file's name without ending."""
        return same_name(self.name or ""), self.parts, self.magnification, tuple(map(nfc, self.folders)), nfc(stem)


def _patch_file(path: Path, inner: PurePath, claimed: frozenset[str], *, is_mask: bool) -> PatchFile:
    above = inner.parts[:-1]
    named = [row for row, name in enumerate(above) if same_name(name) in claimed]
    plain = [row for row, name in enumerate(above) if not meaning(name)]
    own = next(iter(named or plain), None)
    rest = [(name, meaning(name)) for row, name in enumerate(above) if row != own]
    kinds = {said.kind for _, said in rest}
    return PatchFile(
        path,
        inner,
        name=None if own is None else above[own],
        folders=tuple(name for name, said in rest if not said),
        parts=tuple(sorted({said.part for _, said in rest if said.part})),
        magnification="/".join(dict.fromkeys(s.magnification for _, s in rest if s.magnification)) or None,
        kind="mask" if is_mask or "masks" in kinds else "image",
        inside="images" in kinds,
        classes=tuple(dict.fromkeys(same_name(above[row]) for row in named)),
    )


@dataclass
class PatchFolder:
    """Everything below a folder.

    Attributes:
        images: sorted by path, without masks.
        masks: by :meth:`PatchFile.key`.
        slides: whole-slide files, which are no patches.
        not_taken: paths of all other files by the reason why they are none of these.
    """

    images: list[PatchFile] = field(default_factory=list)
    masks: dict[tuple, PatchFile] = field(default_factory=dict)
    slides: list[str] = field(default_factory=list)
    not_taken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def mask_of(self, image: PatchFile) -> PatchFile | None:
        """The mask of an image: beside it with an ending, or in a folder for masks, with or without one."""
        return self.masks.get(image.key(image.path.stem))


def scan(folder: Path, claimed: Iterable[str] = ()) -> PatchFolder:
    """Look through a folder; linked folders are followed, what systems leave behind is left out.

    Args:
        folder: where.
        claimed: names of folders that are classes, whatever else they could mean. Without one, a file's class is the
            outermost of its folders that has no other meaning (see :func:`meaning`).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b/x.png", "a/y.jpg", "a/y_mask.png", "masks/b/x.png", "notes.txt"):
        ...     (folder / name).parent.mkdir(exist_ok=True, parents=True)
        ...     (folder / name).touch()
        >>> found = scan(folder)
        >>> [image.inner.as_posix() for image in found.images], [found.mask_of(i).path.name for i in found.images]
        (['a/y.jpg', 'b/x.png'], ['y_mask.png', 'x.png'])
        >>> dict(found.not_taken)
        {'other files (.txt)': ['notes.txt']}
    """
    folder, claimed = Path(folder), frozenset(map(same_name, claimed))
    found, hidden, files = PatchFolder(), [], []
    for path in walk_files(folder, skipped=hidden):
        inner, ending = path.relative_to(folder), path.suffix.lower()
        if not path.exists():
            found.not_taken["links that lead nowhere"].append(plain(inner))
        elif ending in SLIDES:
            found.slides.append(plain(inner))
        elif ending not in ENDINGS:
            found.not_taken[f"other files ({ending or 'no ending'})"].append(plain(inner))
        else:
            files.append(path)
    if hidden:
        found.not_taken["hidden, or left by a system"] = [plain(path.relative_to(folder)) for path in hidden]
    beside = {nfc(str(path.with_suffix(""))) for path in files}
    for path in files:
        stem = path.stem
        word = MASK_ENDING.search(stem)
        short = stem[: word.start()] if word else stem
        is_mask = bool(short) and short != stem and nfc(str(path.with_name(short))) in beside
        file = _patch_file(path, path.relative_to(folder), claimed, is_mask=is_mask)
        if file.kind == "image":
            found.images.append(file)
        elif is_mask and file.key(short) in found.masks:
            found.not_taken["further masks of an image that has one"].append(plain(file.inner))
        else:
            found.masks.setdefault(file.key(short), file)
            found.masks.setdefault(file.key(stem), file)
    return found
