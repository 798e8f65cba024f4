"""Which images of a folder are of which class and which part, and whatever is not taken, by name."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.data.names import nfc
from shared.data.patches.files import PatchFile, is_utf8, meaning, same_name, scan
from shared.data.patches.groups import own_folders, resolve_groups
from shared.data.tables import some
from shared.errors import DataError

REMEDY_OF_SLIDES = "cut patches of them first, or move them away"


class Layout:
    """Where the images of every part and class lie.

    Folders named for parts of a split (``train``, ``test_data``), for images or masks and for magnifications say just
    that, above or below those of the classes; ``classes`` and ``unlabelled`` overrule that.

    Args:
        folder: the data set's.
        classes: names of the two classes' folders, in the order of the labels; none where there are but two.
        unlabelled: names of folders to take without labels.
        resplit: the parts that the folders name do not count.
        magnification: the one to take where folders name several.

    Attributes:
        classes: the two names.
        official: whether the folders name parts that count.
        left_out: names of class folders that are not taken.
        images: image, part and class of all that is taken.
        not_taken: paths of everything else below the folder, by reason.

    Raises:
        DataError: no such folder, no class folder, a class that is not there, other than two, folders that contradict
            one another, names that cannot be written down, whole slides.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str] = (),
        unlabelled: Sequence[str] = (),
        *,
        resplit: bool = False,
        magnification: str | None = None,
    ):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the one that holds a folder per class")
        self.folder, self.unlabelled = folder, list(unlabelled)
        self._found = scan(folder, [*classes, *unlabelled])
        self.not_taken = self._found.not_taken
        self._check_names()
        there = {same_name(image.name): image.name for image in self._found.images if image.name}
        self._check_classes(there, list(classes))
        self.classes = list(classes) or sorted(there[key] for key in set(there) - set(map(same_name, unlabelled)))
        if not classes:
            self._check_alike()
        wanted = {same_name(name): name for name in [*self.classes, *self.unlabelled]}
        self.left_out = sorted(there[key] for key in set(there) - set(wanted))
        taken = [image for image in self._found.images if image.name and same_name(image.name) in wanted]
        for image in self._found.images:
            if not image.name:
                self._leave("in no class's folder", image)
            elif same_name(image.name) not in wanted:
                self._leave(f"in {image.name}, which is no class", image)
        taken = self._of_magnification(self._in_folders_for_images(taken), magnification)
        self.official = not resplit and any(image.parts for image in taken)
        self.images = self._by_part(taken, wanted)
        self._find_lone_masks(taken)

    def _leave(self, reason: str, file: PatchFile) -> None:
        self.not_taken[reason].append(file.inner.as_posix())

    def _check_names(self) -> None:
        found, problems = self._found, []
        if found.slides:
            problems.append(
                f"{self.folder}: {len(found.slides)} whole slides are no patches: {some(found.slides)}; "
                f"{REMEDY_OF_SLIDES}"
            )
        files = [*found.images, *found.masks.values()]
        problems += undecodable(self.folder, dict.fromkeys(file.inner for file in files))
        for what, odd in (
            ("lie in the folders of two classes; move them, or name other --classes", "classes"),
            ("lie in folders of two parts of a split; move them", "parts"),
        ):
            names = [image.inner.as_posix() for image in found.images if len(getattr(image, odd)) > 1]
            if names:
                problems.append(f"{self.folder}: {len(names)} images {what}: {some(names)}")
        if problems:
            raise DataError(problems)
        if not found.images:
            names = "; there is " + some(found.not_taken) if found.not_taken else ""
            raise DataError(f"{self.folder}: has no images that are read{names}; one folder per class is needed")

    def _check_classes(self, there: dict[str, str], classes: list[str]) -> None:
        shown = ", ".join(sorted(there.values())) or "none"
        if len(classes) > 2:
            raise DataError(
                f"--classes names {len(classes)}, {', '.join(classes)}: the networks here tell two classes apart; name "
                f"two (--classes {classes[0]!r} {classes[1]!r}), and join or leave out the others (--unlabelled takes "
                "them without labels)"
            )
        missing = [name for name in [*classes, *self.unlabelled] if same_name(name) not in there]
        if missing and there:
            raise DataError(
                [f"{self.folder}: no images of class {name!r}; its classes are {shown}" for name in missing]
            )
        tops = sorted({image.inner.parts[0] for image in self._found.images if len(image.inner.parts) > 1})
        what = ", ".join(f"{name} ({_says(name)})" for name in tops if not there or meaning(name)) or "none"
        if not there:
            raise DataError(
                f"{self.folder}: its folders with images are {what}: no classes; one folder per class is needed (where "
                "these are the classes, say so with --classes)"
            )
        if len(classes or set(there) - set(map(same_name, self.unlabelled))) != 2:
            raise DataError(
                f"{self.folder}: name two classes, in the order of their labels, with --classes; its classes are "
                f"{shown}{self._deeper()}" + (f"; folders with another meaning: {what}" if what != "none" else "")
            )

    def _deeper(self) -> str:
        """Folders below those taken for classes, which may be the classes."""
        levels = sorted({(row, name) for image in self._found.images for row, name in enumerate(image.folders)})
        names = list(dict.fromkeys(name for _, name in levels))
        return f"; folders further down: {some(names)}" if names else ""

    def _check_alike(self) -> None:
        """Two folders with the same folders in them are rather two versions or sites than two classes."""
        inner = [
            {image.folders[0] for image in self._found.images if image.name == name and image.folders}
            for name in self.classes
        ]
        both = inner[0] & inner[1]
        if len(both) > 1 and len(inner[0] | inner[1]) < 4:  # more are slides with tissue of both classes
            first, second = sorted(both)[:2]
            raise DataError(
                f"{self.folder}: {' and '.join(self.classes)} both hold the folders {some(sorted(both))}: which are "
                f"the classes? Say so: --classes {' '.join(map(repr, self.classes))}, or --classes {first!r} {second!r}"
            )
        stems = [{nfc(i.path.stem) for i in self._found.images if i.name == name} for name in self.classes]
        twice = sorted(stems[0] & stems[1])
        # numbers and nothing else, as patch_12, are given anew in every folder
        told = [stem for stem in twice if len(re.findall(r"\d+", stem)) != 1]
        if len(twice) > 2 and len(twice) >= 0.9 * max(map(len, stems)) and len(told) >= 0.9 * len(twice):
            raise DataError(
                f"{self.folder}: {len(twice)} images of {self.classes[0]} and {self.classes[1]} have the same names, "
                f"{some(twice)}: two versions of one image are no two classes; move one folder away, or, where these "
                f"are the classes, say so: --classes {' '.join(map(repr, self.classes))}"
            )

    def _in_folders_for_images(self, images: list[PatchFile]) -> list[PatchFile]:
        """Where a class has a folder for images, only what is in it."""
        strict = {(same_name(image.name), image.parts) for image in images if image.inside}
        kept = []
        for image in images:
            if image.inside or (same_name(image.name), image.parts) not in strict:
                kept.append(image)
            else:
                self._leave("outside their class's folder for images", image)
        return kept

    def _of_magnification(self, images: list[PatchFile], wanted: str | None) -> list[PatchFile]:
        count = Counter(image.magnification for image in images)
        if wanted is None and len(count) < 2:
            return images
        wanted = wanted and (meaning(wanted).magnification or wanted)
        shown = ", ".join(f"{power or 'none'} ({n} images)" for power, n in sorted(count.items(), key=str))
        if wanted not in count or wanted is None:
            asked = "are of several magnifications" if wanted is None else f"are not of {wanted}"
            raise DataError(
                f"{self.folder}: images {asked}, as their folders say: {shown}; choose one with --magnification"
            )
        for image in images:
            if image.magnification != wanted:
                self._leave(f"of another magnification than {wanted}", image)
        return [image for image in images if image.magnification == wanted]

    def _by_part(self, images: list[PatchFile], wanted: dict[str, str]) -> list[tuple[PatchFile, str, str]]:
        found, apart = [], set(map(same_name, self.unlabelled))
        beside = defaultdict(set)
        for image in images:
            part = image.parts[0] if self.official and image.parts else None
            name = wanted[same_name(image.name)]
            if same_name(image.name) in apart:
                if part in ("validation", "testing"):  # nothing unlabelled of what is kept apart
                    self._leave(f"unlabelled, in the {part} part", image)
                    continue
                part = "unlabelled"
            elif self.official:
                beside["parts" if part else "others"].add(str(image.inner.parent))
            found.append((image, part or "training", name))
        if beside["others"]:
            raise DataError(
                f"{self.folder}: {some(sorted(beside['others']))} lies beside train and test "
                f"({some(sorted(beside['parts']))}); move it into one, take it --unlabelled, or draw a new split with "
                "--resplit"
            )
        if self.official and not any(part == "training" for _, part, _ in found):
            raise DataError(
                f"{self.folder}: has {some(sorted(beside['parts']))} and no folder train; --resplit draws a new split"
            )
        order = {name: row for row, name in enumerate(wanted.values())}
        return sorted(found, key=lambda item: (item[1], order[item[2]], item[0].inner))

    def _find_lone_masks(self, images: list[PatchFile]) -> None:
        used = {mask.inner for image in images if (mask := self._found.mask_of(image))}
        for inner in sorted({mask.inner for mask in self._found.masks.values()} - used):
            self.not_taken["masks of no image that is taken"].append(inner.as_posix())

    def entries(self, group_by: str | None = None) -> tuple[dict[str, list[dict]], str]:
        """Entries by part, and how patients were told apart.

        Raises:
            DataError: see :func:`shared.data.patches.groups.resolve_groups`.
        """
        patients, how = resolve_groups(
            [image.inner for image, _, _ in self.images],
            group_by,
            folders=own_folders([image.folders for image, _, _ in self.images]),
            kinds=[(part, name) for _, part, name in self.images],
        )
        entries: dict[str, list[dict]] = {}
        for (image, part, name), patient in zip(self.images, patients, strict=True):
            entry = {"image": image.inner.as_posix(), "patient": patient}
            if part != "unlabelled":
                entry["label"] = self.classes.index(name)
            mask = self._found.mask_of(image)
            if mask is not None:
                entry["mask"] = mask.inner.as_posix()
            entries.setdefault(part, []).append(entry)
        return entries, how


def _says(name: str) -> str:
    """What a folder's name says."""
    said = meaning(name)
    return ", ".join(filter(None, (said.part, said.kind, said.magnification))) or "no class"


def undecodable(folder: Path, inner: Iterable[os.PathLike]) -> list[str]:
    """Problems of paths that are not UTF-8: no table of results could name them."""
    odd = [path for path in (folder, *inner) if not is_utf8(path)]
    if odd and odd[0] == folder:
        del odd[1:]
    return [
        f"{os.fsencode(path)!r}: the name is not UTF-8 (as Latin-1 it reads {os.fsencode(path).decode('latin-1')!r}) "
        "and could not be written to a table; rename it, as with convmv -f latin1 -t utf8"
        for path in odd
    ]
