"""Which slides lie in a folder, checked by their headers before anything is computed, and their labels."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.data.clutter import walk_files
from shared.data.names import clean, look_alikes
from shared.data.patches.files import is_utf8, plain
from shared.data.slides.grid import PIXELS
from shared.data.slides.reading import READ, TALLER, open_slide
from shared.data.tables import read_table, some
from shared.errors import DataError

logger = logging.getLogger(__name__)

_BESIDE = (".csv", ".tsv", ".xlsx", ".json", ".geojson", ".txt", ".dat", ".opt")  # tables, annotations; VMS's data


@dataclass(frozen=True)
class SlideFile:
    """A slide that can be used.

    Attributes:
        path: the file.
        inner: its path below the folder.
        name: of its output: the same, folders joined by ``-``, without ending.
        mpp: micrometres per pixel of level 0.
    """

    path: Path
    inner: str
    name: str
    mpp: float


@dataclass(frozen=True)
class SlideLabel:
    """What a table says of a slide.

    Attributes:
        label: 0 or 1; None: not known.
        patient: whose it is; None: a patient of its own.
        section: in which it is kept, for a training; None: the table does not say.
    """

    label: int | None = None
    patient: str | None = None
    section: str | None = None


def check_mpp(value: float, what: str) -> float:
    """Micrometres per pixel that somebody gives.

    Raises:
        DataError: no size that a slide can have.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not PIXELS[0] <= value <= PIXELS[1]:
        raise DataError(f"{what} must be {PIXELS[0]} to {PIXELS[1]} micrometres per pixel, got {value!r}")
    return float(value)


def slide_names(folder: Path, inner: Sequence[str]) -> dict[str, str]:
    """Name of the output of each slide.

    Raises:
        DataError: two slides would have one name, also where a file system ignores case.

    Example:
        >>> slide_names(Path("f"), ["a/b 1.svs", "c.tiff", "d.ome.tiff"])
        {'a/b 1.svs': 'a-b_1', 'c.tiff': 'c', 'd.ome.tiff': 'd'}
    """
    names = {}
    for each in inner:
        stem = re.sub(r"\.ome$", "", "-".join(Path(each).with_suffix("").parts), flags=re.IGNORECASE)
        names[each] = re.sub(r"[^\w.-]+", "_", stem)
    same = defaultdict(list)
    for each, name in names.items():
        same[name.casefold()].append(each)
    if clashes := [found for found in same.values() if len(found) > 1]:
        raise DataError(
            [f"{folder}: the results of {' and '.join(found)} would have one name; rename one" for found in clashes]
        )
    return names


def find_slides(
    folder: Path,
    *,
    slide_mpp: float | None = None,
    mpp: float | None = None,
    smallest_um: float | None = None,
    option: str = "--slide_mpp",
) -> list[SlideFile]:
    """All slides and large images below a folder, or the one that is given, sorted; all problems at once.

    Args:
        folder: a folder, searched whole, or one file.
        slide_mpp: micrometres per pixel of all of them; None: as each file says.
        mpp: micrometres per pixel of the tiles: slides of coarser pixels are told, their tiles are enlarged.
        smallest_um: side of a tile in micrometres, which each slide must hold.
        option: what gives ``slide_mpp``, for messages.

    Raises:
        DataError: no slide, slides of one name, each slide that cannot be opened, has no known size of a pixel, pixels
            that are not square, or is smaller than a tile.
    """
    if slide_mpp is not None:
        check_mpp(slide_mpp, option)
    if folder.is_file():
        found, root = [folder], folder.parent
    elif folder.is_dir():
        root = folder
        there = list(walk_files(folder))
        # the folder of a MRXS slide's data, named as the slide, holds no slides
        data = {path.with_suffix("") for path in there if path.suffix.lower() == ".mrxs"}
        there = sorted(path for path in there if not data & set(path.parents))
        found = [path for path in there if path.suffix.lower() in READ]
        if others := [plain(path.relative_to(root)) for path in there if path.suffix.lower() not in (*READ, *_BESIDE)]:
            logger.warning("%s: %d files are of no kind that is read as a slide: %s", folder, len(others), some(others))
    else:
        raise DataError(f"{folder}: no such folder of slides")
    if not found:
        raise DataError(f"{folder}: holds no slides; read are {', '.join(READ)}")
    if odd := [path for path in found if not is_utf8(path)]:
        raise DataError(f"{folder}: names that are not UTF-8 cannot be written to a table: {len(odd)} slides; rename")
    names = slide_names(folder, [path.relative_to(root).as_posix() for path in found])
    slides, problems, unknown = [], [], []
    for path, (inner, name) in zip(found, names.items(), strict=True):
        try:
            with open_slide(path) as reader:
                stated, width, height = reader.mpp, reader.width, reader.height
        except DataError as error:
            problems += error.problems
            continue
        if slide_mpp is None and stated is None:
            unknown.append(inner)
            continue
        across, down = (slide_mpp, slide_mpp) if slide_mpp is not None else stated  # type: ignore[misc]
        if abs(across - down) > TALLER * across:
            problems.append(
                f"{inner}: a pixel is {across:g} micrometres wide and {down:g} high; tiles are square: save it with "
                f"square pixels, or, where the file is wrong, give {option}"
            )
            continue
        if stated is not None and abs(across - stated[0]) > TALLER * across:
            logger.warning("%s: says %g micrometres per pixel, taken is %s %g.", inner, stated[0], option, across)
        if smallest_um is not None and min(width, height) * across < smallest_um - across:
            problems.append(
                f"{inner}: {width} x {height} pixels of {across:g} micrometres are smaller than a tile, which is "
                f"{smallest_um:g} micrometres wide; move it away"
            )
            continue
        slides.append(SlideFile(path, inner, name, across))
    if unknown:
        problems.append(
            f"{len(unknown)} of {len(found)} slides do not say how large a pixel is: {some(unknown)}; give micrometres "
            f"per pixel of level 0 with {option}, or move them into a folder of their own"
        )
    if problems:
        raise DataError(problems)
    if coarse := [f"{slide.inner} ({slide.mpp:g})" for slide in slides if mpp is not None and slide.mpp > 1.01 * mpp]:
        told = "%d slides have coarser pixels than the tiles' %g micrometres, their tiles are enlarged and blurred: %s"
        logger.warning(told, len(coarse), mpp, some(coarse))
    return slides


def read_slide_labels(
    file: Path, slides: Sequence[SlideFile], classes: Sequence[str], *, complete: bool = False
) -> dict[str, SlideLabel]:
    """Labels of slides by the slides' paths below their folder, from a CSV: ``slide,label[,patient][,section]``.

    A slide goes by its path below the folder, by its file's name or by that without ending. A label is a class's name,
    0 or 1, or empty.

    Args:
        file: the table.
        slides: those of the folder.
        classes: names of the classes.
        complete: for a training: every slide needs a label and a patient, and every row a slide.

    Raises:
        DataError: every row of no slide or of several, every label that is no class, slides that are there twice.
    """
    rows, found, problems = read_table(file, ["slide", "label"]), {}, []
    keys: dict[str, set[str]] = defaultdict(set)
    for slide in slides:
        for key in (slide.inner, Path(slide.inner).name, Path(slide.inner).stem, slide.name):
            keys[clean(key)].add(slide.inner)
    values = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
    missing = []
    paths = {clean(slide.inner): slide.inner for slide in slides}
    for row in rows:
        # a path that is another slide's name, too, is the path
        places = {paths[row["slide"]]} if row["slide"] in paths else keys.get(row["slide"], set())
        if not places:
            missing.append(row["slide"])
        elif len(places) > 1:
            problems.append(f"{row['slide']}: is the name of {some(sorted(places))}; give the path below the folder")
        elif row["label"] and row["label"] not in values:
            problems.append(f"{row['slide']}: label {row['label']!r} is none of {', '.join(values)}")
        elif (inner := next(iter(places))) in found:
            problems.append(f"{row['slide']}: appears in {file.name} more than once; keep one row")
        else:
            found[inner] = SlideLabel(
                values.get(row["label"]), *(row.get(key) or None for key in ("patient", "section"))
            )
    hint = next(filter(None, look_alikes(missing, keys).values()), "") if missing else ""
    if missing and len(missing) == len(rows):
        problems.append(f"{file}: names no slide of the folder: {some(missing)}{hint}")
    elif missing and complete:
        problems.append(
            f"{file}: {len(missing)} rows are of no slide of the folder: {some(missing)}{hint}; remove them"
        )
    elif missing:
        logger.warning("%s: %d rows are of no slide here: %s", file, len(missing), some(missing))
    for key in ("label", "patient") if complete else ():
        told = {inner for inner, label in found.items() if getattr(label, key) is not None}
        if bare := [slide.inner for slide in slides if slide.inner not in told]:
            problems.append(
                f"{len(bare)} of {len(slides)} slides have no {key} in {file.name}: {some(bare)}; complete the table, "
                "or move them into another folder"
            )
    if problems:
        raise DataError(problems)
    return found
