"""Turn a folder of image patches, one sub-folder a class, into a datalist.

    FOLDER/Polyp/image/*.png  FOLDER/Polyp/label/*.png     images and lesion masks of the same file name (EBHI-Seg)
    FOLDER/Polyp/*.png  FOLDER/Polyp/*_mask.png            images in the class's folder, masks beside them if any
    FOLDER/images/Polyp/...  FOLDER/masks/Polyp/...        the same, the other way round
    FOLDER/train/Polyp/... FOLDER/val/... FOLDER/test/...  an official split is kept; so is FOLDER/Polyp/train/...
    FOLDER/10x/Polyp/... FOLDER/40x/...                    --magnification 40x chooses one

A folder's name says what it is: train, test_data, Validation: a part; images, masks, labels: these; 40x, x40: a
magnification; the outermost of the others is the class. --classes overrules that (`FOLDER/P001/0/*.png` with
--classes 0 1). Linked folders are followed. Read are PNG, JPEG, TIFF, BMP, WebP and JPEG 2000, turned upright as their
EXIF tag says, masks by their own tag. Whatever is not taken is counted, and named in manifest.json.

Patches of one patient or slide never straddle training, testing and folds. --group-by says whose a patch is: `folder`
(the outermost without another meaning, below or above the class's), `last-folder` (the innermost), `none` (each image
of another patient), or a regular expression, searched in the file name (in the path inside FOLDER if it holds a `/`);
its first group counts, else the whole match. Without it the part of the file name before the first `-` is taken where
no folder and no beginning of the names suggests anything else; where one does, the choices are shown and nothing is
written.
The split is stratified by class. Folders named by --unlabelled (beside the classes, or beside train and test) are taken
without labels, for pretraining; other folders are left out and named.

The images stay where they are: the datalist names them relative to OUTPUT where that takes at most one step up
(OUTPUT in, around or beside FOLDER), else by their absolute path. --copy makes OUTPUT self-contained. Every image is
decoded and all problems are listed at once; nothing is written then. Patches are square: --crop-square writes the
centres of those that are not into OUTPUT. Copies of one image (equal pixels, whatever the file) make their patients
one; with two labels they are refused. --skip-blank leaves out tiles of (nearly) one colour, which are such copies.

    python scripts/prepare_image_folder.py /data/new --inference --output data/new
    python scripts/prepare_image_folder.py /data/ebhi_seg --output data/sscl_crc --classes Polyp "Low-grade IN" \\
        --unlabelled "Serrated adenoma" --group-by '^[^-]+'
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from shared.apps.preparation.files import begin, run_script, script_parser, write_datalist, write_manifest
from shared.apps.preparation.patch_cohort import CROPPED, PatchSet, check_options, common_options, portable
from shared.data.patches.datalist import folder_patches
from shared.data.patches.files import same_name
from shared.data.patches.layout import Layout
from shared.errors import DataError
from shared.io import DATALIST, MANIFEST


def prepare(options: argparse.Namespace) -> None:
    """Write manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    if options.inference:
        prepare_new(options)
        return
    layout = Layout(
        options.folder,
        options.classes,
        options.unlabelled,
        resplit=options.resplit,
        magnification=options.magnification,
    )
    entries, how = layout.entries(options.group_by)
    patches = PatchSet(
        layout.folder,
        layout.classes,
        entries,
        skip_blank=options.skip_blank,
        crop_square=options.crop_square,
        not_taken=layout.not_taken,
    )
    patches.check(masks_are_classes=bool(options.classes))
    patches.divide(
        test_fraction=0.0 if layout.official else options.test_fraction,
        folds=options.folds,
        seed=options.seed,
        remedy="the official split (train, val, test) does not keep patients and copies apart: --resplit draws a new "
        "one by patient, --group-by tells the patient, --group-by none takes every image for a patient of its own",
    )
    for name in layout.left_out:
        print(f"left out: {name} (neither in --classes nor --unlabelled)")
    print(f"patients or slides: {how}")
    patches.write(
        options.output,
        name=options.name,
        copy=options.copy,
        mpp=options.mpp,
        split="official" if layout.official else f"drawn by patient, seed {options.seed}",
        group_by=how,
        left_out=layout.left_out,
    )


def prepare_new(options: argparse.Namespace) -> None:
    """List patches without labels for a prediction; the prediction decodes them.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    if options.crop_square and options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(f"--crop-square: {options.output} lies in the data set's own folder; give another --output")
    entries = folder_patches(options.folder, options.group_by, options.classes)
    where = {entry["image"]: portable(options.folder / entry["image"], options.output) for entry in entries}
    oblong = _oblong(options.folder, where) if options.crop_square else []
    where |= {inner: f"{CROPPED}/{inner}.png" for inner in oblong}
    begin(options.output, (DATALIST, MANIFEST))
    for inner in oblong:
        from shared.data.patches.looks import crop_square

        crop_square(options.folder / inner, options.output / where[inner], mask=False)
    write_manifest(options.output, images="in place", group_by=options.group_by, cropped=oblong)
    name = options.name or options.folder.resolve().name
    known = {} if options.mpp is None else {"mpp": options.mpp}
    entries = [{**entry, "image": where[entry["image"]]} for entry in entries]
    path = write_datalist(options.output, name=name, training=[], testing=entries, **known)
    print(f"{path}: {len(entries)} patches to predict")


def _oblong(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the images that are not square.

    Raises:
        DataError: with every file whose header cannot be read.
    """
    from shared.data.patches.reading import patch_header

    found, problems = [], []
    for inner in names:
        try:
            found += [inner] * (len(set(patch_header(folder / inner)[0])) > 1)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return found


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
    add(
        "--group-by",
        metavar="REGEX",
        help="patient or slide in the file name; or folder, last-folder, none",
    )
    add("--magnification", metavar="POWER", help="the one to take where folders name several, as 40x")
    add(
        "--test-fraction", type=float, default=0.2, help="of the labelled patches, by patient (0.2); 0: no testing part"
    )
    add("--resplit", action="store_true", help="do not keep the split of train, val and test folders")
    add("--inference", action="store_true", help="new patches in any folders, without labels: all are to be predicted")
    add("--test-share", dest="old_name", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    if options.old_name is not None:
        parser.error("--test-share is now called --test-fraction")
    if options.inference and (options.copy or options.skip_blank or options.output.suffix.lower() == ".json"):
        parser.error("--inference lists all patches, in place, in a folder given by --output")
    named = [*options.classes, *options.unlabelled]
    if len(set(map(same_name, named))) < len(named):
        parser.error("--classes and --unlabelled must name each folder once")
    if not 0 <= options.test_fraction < 1:
        parser.error("--test-fraction must lie in [0, 1)")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
