"""The rules of a datalist of patches, checked on the JSON, on every image's pixels and across its parts."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.data.checks import SectionCheck
from shared.data.names import look_alikes, nfc
from shared.data.patches.files import is_utf8
from shared.data.tables import some
from shared.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from shared.data.disk_cache import DiskCache

logger = logging.getLogger(__name__)

MAPS = ("mask", "planted")
_FLAGS = ("empty", "turned", "blank", "few_colours")
SECTIONS = ("training", "validation", "testing", "unlabelled")
PREPARE_PATCHES = (
    "prepare one with scripts/prepare_mhist.py (MHIST) or scripts/prepare_image_folder.py (a folder per class), "
    "or try `bash scripts/demo.sh sscl_crc`, which makes synthetic patches"
)


@dataclass
class PatchFacts:
    """What is known of a file.

    Attributes:
        size: height and width, upright.
        digest: SHA-256 of its pixels.
        problem: what is wrong.
        empty: whether a mask is.
        turned: whether its EXIF orientation turns it.
        blank: whether a patch is of (nearly) one colour, see :func:`shared.data.patches.looks.is_blank`.
        few_colours: whether a patch has few colours, as masks have.
    """

    size: tuple[int, int] | None = None
    digest: str | None = None
    problem: str | None = None
    empty: bool = False
    turned: bool = False
    blank: bool = False
    few_colours: bool = False


def patch_facts(path: str | os.PathLike, *, mask: bool = False, pixels: bool = True) -> PatchFacts:
    """Look at one patch or mask.

    Args:
        path: the file.
        mask: whether it is a mask.
        pixels: decode it, which finds truncated files, transparency, the digest and empty masks; else its header only.

    Example:
        >>> patch_facts("no_such.png", pixels=False).problem
        'no_such.png: file not found'
    """
    if not Path(path).is_file():
        return PatchFacts(problem=f"{path}: file not found")
    if not pixels:
        return _header_facts(path)
    return _pixel_facts(path, mask)[0]


def _pixel_facts(path: str | os.PathLike, mask: bool) -> tuple[PatchFacts, np.ndarray | None]:
    """What is known of a decoded file, and its pixels."""
    from shared.data.patches.looks import has_few_colours, is_blank
    from shared.data.patches.reading import read_turned

    try:
        array, turned = read_turned(path, mask=mask)
    except DataError as error:
        return PatchFacts(problem=str(error)), None
    size = (int(array.shape[-2]), int(array.shape[-1]))
    if mask:
        return PatchFacts(size, empty=not array.any(), turned=turned), array
    digest = hashlib.sha256(f"{size}".encode())
    digest.update(memoryview(array).cast("B"))
    looks = {"blank": is_blank(array), "few_colours": has_few_colours(array)}
    return PatchFacts(size, digest.hexdigest(), turned=turned, **looks), array


def _header_facts(path: str | os.PathLike) -> PatchFacts:
    from shared.data.patches.reading import patch_header

    try:
        size, mode, turn = patch_header(path)
    except DataError as error:
        return PatchFacts(problem=str(error))
    if mode.startswith(("I", "F")):
        return PatchFacts(problem=f"{path}: patches have 8 bits a channel, this one's mode is {mode}; convert it")
    return PatchFacts(size, turned=turn > 1)


def all_facts(
    entries: Sequence[Mapping[str, Any]], *, pixels: bool = True, disk_cache: DiskCache | None = None
) -> dict[str, PatchFacts]:
    """Facts of every image, mask and planted map of ``entries``, by path; each file is read once, in threads."""
    files = {entry["image"]: False for entry in entries}
    files |= {entry[key]: True for entry in entries for key in MAPS if key in entry}
    if disk_cache is not None and disk_cache.folder is not None and pixels:
        return dict(zip(files, _kept_facts(files, disk_cache), strict=True))
    facts = _in_threads(lambda path: patch_facts(path, mask=files[path], pixels=pixels), files)
    return dict(zip(files, facts, strict=True))


def _in_threads(call: Callable[[str], Any], paths: Iterable[str]) -> Iterator[Any]:
    from shared.data.pixels import in_order

    # Decoding and hashing release the GIL.
    return in_order(call, paths, min(8, os.cpu_count() or 1))


def _kept_facts(files: Mapping[str, bool], disk_cache: DiskCache) -> list[PatchFacts]:
    """Facts of all files, in one entry of the cache: one for each patch would cost as much as to decode it."""
    images = sorted(path for path, mask in files.items() if not mask)
    masks = sorted(path for path, mask in files.items() if mask)
    order = [*images, *masks]

    def decoded(entry: Mapping[str, Any]) -> dict[str, Any]:
        facts, kept = [], disk_cache.new_pixels(_decoded_bytes(images, masks), keep=True)
        try:
            found = _in_threads(lambda path: _pixel_facts(path, files[path]), [*entry["image"], *entry["mask"]])
            for one, array in found:
                facts.append(one)
                if array is not None:
                    kept.append(array.reshape(-1, *array.shape[-2:]))
            if any(one.problem for one in facts):
                raise _NotKeptError(facts)
        except BaseException:
            kept.discard()
            raise
        return {"facts": _columns(facts), "pixels": kept}

    try:
        kept = disk_cache({"image": images, "mask": masks}, "facts and pixels of patches", decoded)
        facts = _rows(kept["facts"])
        for number, path in enumerate(order):
            disk_cache.hold(path, kept["pixels"], number, mask=files[path])
    except _NotKeptError as error:
        facts = error.facts
    disk_cache.tidy()
    known = dict(zip(order, facts, strict=True))
    return [known[path] for path in files]


def _decoded_bytes(images: Sequence[str], masks: Sequence[str]) -> int:
    """Bytes of all files decoded, if the others are as large as the first that can be read."""
    for path in images:
        if (size := patch_facts(path, pixels=False).size) is not None:
            return (3 * len(images) + len(masks)) * math.prod(size)
    return 0


def _columns(facts: Sequence[PatchFacts]) -> dict[str, np.ndarray]:
    """Facts without a problem as arrays, which are small on disk."""
    import numpy as np

    return {
        "size": np.array([one.size for one in facts], int).reshape(-1, 2),
        "digest": np.array([one.digest or "" for one in facts], "S64"),
        "flags": np.array([[getattr(one, name) for name in _FLAGS] for one in facts], bool).reshape(-1, len(_FLAGS)),
    }


def _rows(columns: Mapping[str, np.ndarray]) -> list[PatchFacts]:
    """Facts of arrays."""
    rows = zip(*(columns[name].tolist() for name in ("size", "digest", "flags")), strict=True)
    return [
        PatchFacts(tuple(size), digest.decode() or None, **dict(zip(_FLAGS, flags, strict=True)))
        for size, digest, flags in rows
    ]


class _NotKeptError(Exception):
    """Facts of files that are not all sound."""

    def __init__(self, facts: list[PatchFacts]):
        super().__init__()
        self.facts = facts


class PatchDatalistCheck(SectionCheck):
    """Collects the problems of a datalist of patches.

    Args:
        root: the prepared folder.
        file: the datalist, relative to ``root`` or absolute.
        num_classes: labels lie in ``range(num_classes)``.
        content: the parsed datalist, where it is not to be read from ``file``.
        crop_square: patches that are not square are none of its problems: they will be cropped.
        disk_cache: keeps the decoded files.
    """

    remedy = PREPARE_PATCHES
    unit = "patch"

    def __init__(
        self,
        root: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        num_classes: int = 2,
        *,
        content: dict[str, Any] | None = None,
        crop_square: bool = False,
        disk_cache: DiskCache | None = None,
    ):
        super().__init__(root, file, num_classes, content=content)
        self.crop_square, self.disk_cache = crop_square, disk_cache
        mpp = self.content.get("mpp")
        if mpp is not None and (isinstance(mpp, bool) or not isinstance(mpp, int | float) or not 0 < mpp < math.inf):
            self.problems.append(f"{self.file}: mpp must be micrometres per pixel, got {mpp!r}; correct or remove it")
        if num_classes != 2:
            self.problems.append(
                f"num_classes must be 2, got {num_classes}: what is measured and written of patches is of two classes; "
                "prepare the data with --classes A B"
            )
        self.facts: dict[str, PatchFacts] = {}
        self.warnings: list[str] = []

    def name_of(self, case: dict) -> str:
        """A patch goes by its path, inside the folder where it lies there."""
        path = Path(case["image"])
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def run(self, *, pixels: bool = True) -> dict[str, list[dict[str, Any]]]:
        """Check all sections, files and parts; returns the entries by section."""
        parts = {section: self.section(section) for section in SECTIONS}
        for section in ("training", "validation", "testing"):
            self.labels_present(parts[section])
        self.files([case for cases in parts.values() for case in cases], pixels=pixels)
        self.across(parts)
        return parts

    def training_parts(self, parts: Mapping[str, list[dict]], fold: int) -> tuple[list[dict], list[dict]]:
        """What is trained on and what validates; every class is trained on, with two images or more."""
        training, held = parts["training"], parts["validation"]
        if not training:
            if not self.problems:
                self.problems.append(f"{self.file}: the training section is empty; it needs labelled patches")
            return training, held
        where = "the training section"
        if fold < -1 or isinstance(fold, bool):
            self.problems.append(f"fold must be -1 (no validation part) or a fold of the datalist, got {fold}")
        elif fold >= 0 and not self.content.get("validation"):
            training, held = self.split(training, fold)
            where = f"the training part of fold {fold}"
        counts = Counter(case["label"] for case in training if self.is_label(case.get("label")))
        for label, name in enumerate(self.classes[: self.num_classes]):
            if training and counts[label] < 2:
                images = "one image" if counts[label] else "no image"
                self.problems.append(f"{where} has {images} of class {name!r} (label {label}); it needs at least two")
        return training, held

    def section(self, section: str) -> list[dict[str, Any]]:
        """Entries of a section with absolute paths, checked one by one; their files are looked at by ``files``."""
        found = []
        for row, entry in enumerate(self.entries(section)):
            case = self._case(entry, f"{section}[{row}]")
            if case is not None:
                found.append(case)
        return found

    def _case(self, entry: Any, where: str) -> dict[str, Any] | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"].strip():
            self.problems.append(f"{where}: a patch is an object with the path of its image, got {str(entry)[:80]}")
            return None
        case = {key: value for key, value in entry.items() if value is not None}
        case["image"] = str(self.root / entry["image"])
        if not is_utf8(case["image"]):
            self.problems.append(f"{where}: {case['image']!r} is not UTF-8 and cannot be written to a table; rename it")
        name = self.name_of(case)
        if not isinstance(case.get("patient"), str) or not case["patient"].strip():
            self.problems.append(
                f"{name}: 'patient' must name the patient or slide, got {case.get('patient')!r}; patches of one "
                "patient stay in one part"
            )
            case["patient"] = name
        for key in MAPS:
            if key in case and (not isinstance(case[key], str) or not case[key].strip()):
                self.problems.append(f"{name}: {key!r} must be one path, got {case.pop(key)!r}")
            elif key in case:
                case[key] = str(self.root / case[key])
        self.check_label(case)
        vote = case.get("soft_label")
        if vote is not None and (isinstance(vote, bool) or not isinstance(vote, int | float) or not 0 <= vote <= 1):
            self.problems.append(
                f"{name}: soft_label must be a share of votes from 0 to 1, got {vote!r}; correct or remove it"
            )
        return case

    def files(
        self, cases: Sequence[dict], *, pixels: bool = True, facts: Mapping[str, PatchFacts] | None = None
    ) -> None:
        """Every file can be read, images are square and of one size, masks of their image's; warns of empty masks.

        Args:
            cases: with absolute paths.
            pixels: decode every file; else headers only.
            facts: of the files, where they are known.
        """
        self.facts = all_facts(cases, pixels=pixels, disk_cache=self.disk_cache) if facts is None else dict(facts)
        missing = [case for case in cases if not Path(case["image"]).is_file()]
        if len(missing) > 20:
            shown = ", ".join(self.name_of(case) for case in missing[:5])
            self.problems.append(
                f"{len(missing)} of {len(cases)} images are not found in {self.root}: {shown}, ...; correct "
                "dataset_dir or prepare the data again"
            )
        for case in cases:
            lost = len(missing) > 20 and not Path(case["image"]).is_file()
            keys = ("image", *(key for key in MAPS if key in case))
            for key in keys[1:] if lost else keys:
                facts = self.facts[case[key]]
                if facts.problem:
                    self.problems.append(facts.problem)
        self._sizes(cases)
        raw = [case for case in cases if "mask" in case and self._turned(case) and not self.facts[case["mask"]].turned]
        if raw:
            self.warnings.append(
                f"{len(raw)} images are turned upright by their EXIF tag and their masks have none: these are taken as "
                f"drawn on the upright image, as viewers show it: {some(map(self.name_of, raw))}"
            )
        empty = []
        for case in cases:
            size = self.facts[case["image"]].size
            for key in MAPS:
                facts = self.facts[case[key]] if key in case else PatchFacts()
                if size and facts.size and facts.size != size:
                    turned = " upright (its EXIF tag turns it)" if self._turned(case) else ""
                    self.problems.append(
                        f"{self.name_of(case)}: its {key} has {_by(facts.size)} pixels, the image {_by(size)}{turned}; "
                        "save the two at the same size"
                    )
            if "mask" in case and self.facts[case["mask"]].empty:
                empty.append(self.name_of(case))
        if empty:
            self.warnings.append(f"{len(empty)} masks are empty: {some(empty)}")

    def _turned(self, case: dict) -> bool:
        return self.facts[case["image"]].turned

    def _sizes(self, cases: Sequence[dict]) -> None:
        """Patches are square and have one size."""
        known = [(case, size) for case in cases if (size := self.facts[case["image"]].size)]
        if self.crop_square:
            known = [(case, (min(size),) * 2) for case, size in known]
        sizes = Counter(size for _, size in known)
        square = [size for size, _ in sizes.most_common() if size[0] == size[1]]
        for size in sorted(sizes):
            odd = [self.name_of(case) for case, other in known if other == size]
            if size[0] != size[1]:
                self.problems.append(
                    f"{len(odd)} patches are not square, {_by(size)} pixels: {some(odd)}; cut squares of them "
                    "(scripts/prepare_image_folder.py and prepare_mhist.py do so with --crop-square)"
                )
            elif size != square[0]:
                self.problems.append(
                    f"{some(odd)}: {_by(size)} pixels, the other {sizes[square[0]]} patches have {_by(square[0])}; "
                    "cut all at one size and magnification"
                )

    def across(self, parts: Mapping[str, Sequence[dict]]) -> None:
        """No patient and no image in two parts or folds; no image with two labels.

        Unlabelled patches may be of a patient of another part: pretraining leaves those out.
        """
        where: dict[str, dict[str, None]] = defaultdict(dict)
        for part, cases in parts.items():
            for case in cases if part != "unlabelled" else ():
                where[nfc(case["patient"])][self._place(part, case)] = None
        self.problems += [
            f"{patient}: has patches in {' and '.join(places)}; a patient's patches belong to one part, prepare the "
            "data again (--group-by tells the patient)"
            for patient, places in where.items()
            if len(places) > 1
        ]
        hints = look_alikes(where, where).items()
        alike = [name + hint for name, hint in hints if hint.endswith((": capitals", ": leading zeros"))]
        if alike:
            self.warnings.append(
                f"{len(alike)} patients are called nearly as another and taken for one of their own (where they are "
                "one, rename their files): " + " | ".join(alike[:5]) + (" | ..." if len(alike) > 5 else "")
            )
        copies: dict[str, list[tuple[str, dict]]] = defaultdict(list)
        for part, cases in parts.items():
            for case in cases:
                copies[self.identity(case)].append((part, case))
        repeated = 0
        for same in copies.values():
            if len(same) < 2:
                continue
            names = " = ".join(dict.fromkeys(self.name_of(case) for _, case in same))
            labels = {str(case["label"]) for _, case in same if "label" in case}
            places = dict.fromkeys(self._place(part, case) for part, case in same if part != "unlabelled")
            if len(labels) > 1:
                self.problems.append(f"{names}: the same image has labels {' and '.join(sorted(labels))}; keep one")
            if len(places) > 1:
                facts = self.facts.get(same[0][1]["image"])
                keep = "it is a blank tile, --skip-blank leaves those out" if facts and facts.blank else "keep one"
                self.problems.append(f"{names}: the same image is in {' and '.join(places)}; {keep}")
            repeated += len(same) - 1
        if repeated:
            self.warnings.append(f"{repeated} patches repeat the image of another patch")

    def identity(self, case: dict) -> str:
        """The digest of an image's pixels, of one not decoded its path."""
        facts = self.facts.get(case["image"])
        return facts.digest if facts and facts.digest else os.path.realpath(case["image"])

    def _place(self, part: str, case: dict) -> str:
        fold = case.get("fold")
        return f"fold {fold} of training" if part == "training" and fold is not None else part


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
