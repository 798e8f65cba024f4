"""Turn a folder of image patches, one sub-folder a class, into a datalist.

    FOLDER/Polyp/image/*.png  FOLDER/Polyp/label/*.png     images and lesion masks of the same file name (EBHI-Seg)
    FOLDER/Polyp/*.png  FOLDER/Polyp/*_mask.png            images in the class's folder, masks beside them if any
    FOLDER/train/Polyp/... FOLDER/val/... FOLDER/test/...  an official split is kept

Patches of one patient or slide never straddle training, testing and folds: --group-by is a regular expression for its
name, searched in the file name (in the path inside FOLDER if it holds a `/`); its first group counts, else the whole
match. By default it is the part of the file name before the first `-`; without one every image is a patient of its own.
The split is stratified by class. Folders named by --unlabelled (beside the classes, or beside train and test) are taken
without labels, for pretraining; other folders are left out and named.

The images stay where they are: the datalist names them relative to OUTPUT where that takes at most one step up
(OUTPUT in, around or beside FOLDER), else by their absolute path. --copy makes OUTPUT self-contained. Every image is
decoded and all problems are listed at once; nothing is written then. Copies of one image (equal pixels, whatever the
file) make their patients one; with two labels they are refused.

    python scripts/prepare_image_folder.py /data/ebhi_seg --output data/sscl_crc --classes Polyp "Low-grade IN" \\
        --unlabelled "Serrated adenoma"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.data.patch_files import by_part, class_images, groups_of
from shared.data.prepare import run_script, script_parser
from shared.data.prepare_patches import PatchSet, check_options, common_options
from shared.errors import DataError


class Layout:
    """Where the images of every part and class lie.

    Raises:
        DataError: no such folder, no class folder, a class that is not there, more than two and none named.
    """

    def __init__(self, folder: Path, options: argparse.Namespace):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the one that holds a folder per class")
        parts = by_part(folder, options.unlabelled)
        tops = [top for tops in parts.values() for top in tops] or [folder]
        self.folder, self.unlabelled = folder, options.unlabelled
        self.official = bool(parts) and not options.resplit
        self.parts = parts if self.official else {"training": tops}
        there = {name for top in {*tops, folder} for name in self._names(top, whole=top in tops)}
        shown = ", ".join(sorted(there)) or "none"
        if not there:
            raise DataError(
                f"{folder}: has no sub-folder with PNG, JPEG or TIFF images; one folder per class is needed"
            )
        missing = [name for name in [*options.classes, *self.unlabelled] if name not in there]
        if missing:
            raise DataError([f"{folder}: no images of class {name!r}; its classes are {shown}" for name in missing])
        self.classes = options.classes or sorted(there - set(self.unlabelled))
        if len(self.classes) < 2 or (len(self.classes) > 2 and not options.classes):
            raise DataError(
                f"{folder}: name two classes, in the order of their labels, with --classes; its classes are {shown}"
            )
        self.left_out = sorted(there - set(self.classes) - set(self.unlabelled))

    def _names(self, top: Path, *, whole: bool) -> list[str]:
        """Folders with images in ``top``: all, or only those to take without labels."""
        paths = [path for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [path.name for path in paths if (whole or path.name in self.unlabelled) and class_images(path)]

    def images(self) -> Iterator[tuple[str, str, Path, Path | None]]:
        """Part, class, image and mask (or None) of every image; nothing unlabelled from validation and testing."""
        for part, tops in self.parts.items():
            yield from self._images(part, self.classes, tops)
        yield from self._images("unlabelled", self.unlabelled, sorted({*self.parts["training"], self.folder}))

    def _images(self, part: str, names: list[str], tops: list[Path]) -> Iterator[tuple[str, str, Path, Path | None]]:
        for folder in (top / name for name in names for top in tops):
            for image, mask in class_images(folder) if folder.is_dir() else ():
                yield part, folder.name, image, mask


def read_entries(layout: Layout, group_by: str | None) -> dict[str, list[dict]]:
    """Entries by part."""
    found = list(layout.images())
    patients = groups_of([image.relative_to(layout.folder) for _, _, image, _ in found], group_by)
    entries: dict[str, list[dict]] = {}
    for (part, name, image, mask), patient in zip(found, patients, strict=True):
        entry = {"image": image.relative_to(layout.folder).as_posix(), "patient": patient}
        if part != "unlabelled":
            entry["label"] = layout.classes.index(name)
        if mask is not None:
            entry["mask"] = mask.relative_to(layout.folder).as_posix()
        entries.setdefault(part, []).append(entry)
    return entries


def prepare(options: argparse.Namespace) -> None:
    """Write manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    layout = Layout(options.folder, options)
    patches = PatchSet(layout.folder, layout.classes, read_entries(layout, options.group_by))
    patches.check()
    if options.test_share and not layout.official:
        patches.draw_testing(options.test_share, options.seed)
    patches.check_parts(
        "the official split (train, val, test) does not keep patients and copies apart: --resplit draws a new one by "
        "patient, --group-by tells the patient, --group-by none takes every image for a patient of its own"
    )
    patches.draw_folds(options.folds, options.seed)
    for name in layout.left_out:
        print(f"left out: {name} (neither in --classes nor --unlabelled)")
    patches.write(
        options.output,
        name=options.name,
        copy=options.copy,
        split="official" if layout.official else f"drawn by patient, seed {options.seed}",
        group_by=options.group_by or "file name up to the first '-'",
        left_out=layout.left_out,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    common_options(parser)
    add = parser.add_argument
    add(
        "--classes",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="folders of the classes, label 0 first (the two)",
    )
    add("--unlabelled", nargs="+", default=[], metavar="CLASS", help="folders to take without labels")
    add("--group-by", metavar="REGEX", help="patient or slide in the file name (up to the first -); none: no groups")
    add("--test-share", type=float, default=0.2, help="of the labelled patches, by patient (0.2); 0: no testing part")
    add("--resplit", action="store_true", help="do not keep the split of train, val and test folders")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    named = [*options.classes, *options.unlabelled]
    if len(set(named)) < len(named):
        parser.error("--classes and --unlabelled must name each folder once")
    if not 0 <= options.test_share < 1:
        parser.error("--test-share must lie in [0, 1)")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main())
