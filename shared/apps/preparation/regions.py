"""Cut regions of tissue of any size into square patches of one physical size, with their masks.

    FOLDER/region1.png  region1_glands.png  ...     images anywhere below FOLDER, masks beside them (--mask-suffix)
    TABLE: image,patient,label[,mpp]                a row an image: its path below FOLDER, whose it is, what it shows

A tile is --tile-um micrometres wide at --mpp micrometres per pixel, whatever the image's own pixels are; their size
must be known: as the files say (resolution, OME-XML), --pixel-um for all, or --pixel-column of the table. Tiles lie
evenly from border to border, neighbours share at most --overlap of a tile. Of a mask all that is not 0 is inside; its
tiles are cut at the same places (nearest neighbour). Left out and counted: tiles with less tissue than --min-tissue
(share of pixels darker than glass), images smaller than a tile. Tiles of one patient never straddle training, testing
and folds.

OUTPUT holds tiles/*.png, masks/*.png, datalist.json and manifest.json (pixel size, tiles and SHA-256 of every image),
in place of the tiles of an earlier run there; other files stay. All problems are listed at once; nothing is written
then.

    python scripts/prepare_regions.py /data/glas /data/glas/labels.csv --output data/glas --pixel-um 1.24 --mpp 1.24 \\
        --tile-um 256 --overlap 0.5 --mask-suffix _glands --test-fraction 0
    python scripts/prepare_regions.py /data/new /data/new/table.csv --output data/new --pixel-um 0.25 --inference
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.apps.preparation.cell_numbers import parse_number
from shared.apps.preparation.files import run_script, script_parser, software_versions, write_datalist
from shared.apps.preparation.files import write_manifest as write_record
from shared.apps.preparation.patch_cohort import (
    PatchSet,
    check_tile_options,
    command_line,
    cutting,
    place_tiles,
    tile_options,
)
from shared.data.clutter import walk_files
from shared.data.names import clean, look_alikes
from shared.data.patches.reading import read_patch, read_patch_mask
from shared.data.slides.grid import PIXELS, places
from shared.data.slides.reading import TALLER, stated_mpp
from shared.data.tables import read_table, some
from shared.digests import sha256
from shared.errors import DataError
from shared.io import atomic_path

GLASS = 220  # of 255: a pixel whose darkest channel is brighter shows none of H&E's stains
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2")


@dataclass(frozen=True)
class Region:
    """A row of the table.

    Attributes:
        image: path below the folder.
        patient: whose.
        label: class, None where none is asked for.
        pixel_um: side of a pixel.
        mask: path below the folder, None where there is none.
    """

    image: str
    patient: str
    label: int | None
    pixel_um: float
    mask: str | None


def tissue_share(tile: np.ndarray) -> float:
    """Share of a tile's pixels that are stained.

    Shape:
        - tile: uint8 ``[H, W, 3]``

    Example:
        >>> tissue_share(np.array([[[250, 240, 245], [200, 120, 180]]], np.uint8))
        0.5
    """
    return float((tile.min(axis=2) < GLASS).mean())


class Regions:
    """The regions of a table and how they are cut.

    Args:
        options: of the command line.

    Raises:
        DataError: with every problem of the table, the images and the masks.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.side = round(options.tile_um / options.mpp)
        self.not_taken: dict[str, list[str]] = {}
        self.classes: list[str] = []
        self.there: dict[str, Path] = {}
        self.stated: list[float] = []
        self.unknown: list[str] = []
        self.contradicted: list[str] = []
        self.regions = self._read()

    def _read(self) -> list[Region]:
        options, problems = self.options, []
        if not options.folder.is_dir():
            raise DataError(f"{options.folder}: no such folder; give the one that holds the images")
        labelled = not options.inference
        columns = [options.image_column, options.patient_column]
        columns += [options.label_column] * labelled + [options.pixel_column] * bool(options.pixel_column)
        rows = read_table(options.table, columns)
        self.there = {clean(path.relative_to(options.folder).as_posix()): path for path in walk_files(options.folder)}
        pictures = {name for name in self.there if Path(name).suffix.lower() in ENDINGS}
        self.classes = self._classes({row[options.label_column] for row in rows} - {""}) if labelled else []
        regions, missing = [], []
        for number, row in zip(rows.numbers, rows, strict=True):
            image, patient = row[options.image_column], row[options.patient_column]
            where = image or f"row {number}"
            empty = [c for c in columns if not row[c]]
            if empty:
                problems.append(
                    f"{where}: row {number} of {options.table.name}: {', '.join(map(repr, empty))} is empty"
                )
                continue
            if image not in pictures:
                missing.append(image)
                continue
            label = row[options.label_column] if labelled else None
            if label is not None and label not in self.classes:
                problems.append(f"{image}: {options.label_column} is {label!r}, the classes are {self.classes}")
                continue
            size = self._size(image, row, problems)
            if size is None:
                continue
            mask = str(Path(image).with_name(f"{Path(image).stem}{options.mask_suffix}.png").as_posix())
            mask = mask if options.mask_suffix and mask in self.there else None
            regions.append(Region(image, patient, None if label is None else self.classes.index(label), size, mask))
        if missing:
            hint = next(filter(None, look_alikes(missing, pictures).values()), "")
            problems.append(
                f"{len(missing)} of {len(rows)} images are not in {options.folder}: {some(missing)}{hint}; give their "
                "paths below the folder"
            )
        if self.unknown:
            problems.append(
                f"{len(self.unknown)} of {len(rows)} images do not say how large a pixel is: {some(self.unknown)}; "
                "give micrometres per pixel with --pixel-um or --pixel-column"
            )
        twice = [name for name, count in Counter(r.image for r in regions).items() if count > 1]
        problems += [f"{name}: appears in {options.table.name} more than once; keep one row" for name in twice]
        if options.mask_suffix and regions and not any(r.mask for r in regions):
            problems.append(f"--mask-suffix: no image has a mask NAME{options.mask_suffix}.png beside it")
        problems += [problem for region in regions for problem in self._unreadable(region)]
        if problems:
            raise DataError(problems)
        self._tell_sizes()
        used = {name for r in regions for name in (r.image, r.mask) if name}
        others = sorted(pictures - used)
        self.not_taken |= {f"not in {options.table.name}": others} if others else {}
        bare = [r.image for r in regions if r.mask is None]
        if options.mask_suffix and bare:
            print(f"warning: {len(bare)} of {len(regions)} images have no mask: {some(bare)}")
        coarse = [r.image for r in regions if r.pixel_um > options.mpp * 1.01]
        if coarse:
            print(f"warning: {len(coarse)} images are enlarged, their pixels are coarser than --mpp: {some(coarse)}")
        return regions

    def _size(self, image: str, row: Mapping[str, str], problems: list[str]) -> float | None:
        """Micrometres per pixel as the table or the command line says, else the file; None: it cannot be used."""
        options = self.options
        text = row[options.pixel_column] if options.pixel_column else options.pixel_um
        told = parse_number(text) if options.pixel_column else text
        if text is not None and (told is None or not PIXELS[0] <= told <= PIXELS[1]):
            problems.append(
                f"{image}: a pixel must be {PIXELS[0]} to {PIXELS[1]} micrometres wide, got {text!r}; give "
                "micrometres per pixel"
            )
            return None
        try:
            stated = stated_mpp(self.there[image])
        except DataError as error:
            problems += error.problems if told is None else ()  # else it is told when it is read
            return told
        if told is not None:
            if stated is not None and abs(stated[0] - told) > TALLER * told:
                self.contradicted.append(f"{image} ({stated[0]:g}, not {told:g})")
            return told
        if stated is None:
            self.unknown.append(image)
        elif abs(stated[0] - stated[1]) > TALLER * stated[0]:
            problems.append(
                f"{image}: says that a pixel is {stated[0]:g} micrometres wide and {stated[1]:g} high; tiles are "
                "square: save it with square pixels, or, where the file is wrong, give --pixel-um or --pixel-column"
            )
        else:
            self.stated.append(stated[0])
            return stated[0]
        return None

    def _tell_sizes(self) -> None:
        if self.stated:
            sizes = sorted({f"{value:g}" for value in self.stated}, key=float)
            shown = " to ".join(dict.fromkeys((sizes[0], sizes[-1])))
            print(f"size of a pixel: {shown} micrometres, as {len(self.stated)} files say")
        if self.contradicted:
            how = "--pixel-column" if self.options.pixel_column else "--pixel-um"
            print(
                f"warning: {len(self.contradicted)} files say another size of a pixel than {how}, which is taken: "
                f"{some(self.contradicted)}"
            )

    def _classes(self, found: set[str]) -> list[str]:
        classes = list(self.options.classes or sorted(found))
        if len(classes) != 2:
            raise DataError(
                f"{self.options.label_column} must tell two classes, got {', '.join(classes) or 'none'}; name them "
                "with --classes, and leave other rows out of the table"
            )
        if unused := [name for name in classes if name not in found]:
            raise DataError(f"--classes: no row of {self.options.table.name} says {', '.join(map(repr, unused))}")
        return classes

    def _unreadable(self, region: Region) -> list[str]:
        try:
            size = read_patch(self.there[region.image]).shape[1:]
            found = size if region.mask is None else read_patch_mask(self.there[region.mask]).shape
        except DataError as error:
            return list(error.problems)
        if found != size:
            return [
                f"{region.mask}: has {found[1]} x {found[0]} pixels, its image {size[1]} x {size[0]}; save the two at "
                "the same size"
            ]
        return []

    def write_tiles(self, folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """Cut and write the tiles into a folder; their entries of the datalist, and what became of each region."""
        from tqdm import tqdm

        entries, report = [], {}
        names: set[str] = set()
        blank, small = [], []
        for region in tqdm(self.regions, desc="cutting", unit="image"):
            name = "-".join(Path(region.image).with_suffix("").parts)
            while name.casefold() in names:  # a/b.png beside a-b.png
                name += "-2"
            names.add(name.casefold())
            path = self.there[region.image]
            pixels = read_patch(path).transpose(1, 2, 0)
            inside = None if region.mask is None else read_patch_mask(self.there[region.mask])
            side = self.side * self.options.mpp / region.pixel_um
            starts = [places(length, side, self.options.overlap) for length in pixels.shape[:2]]
            if not all(starts):
                small.append(region.image)
            kept = 0
            for top, left in ((y, x) for y in starts[0] for x in starts[1]):
                tile = self._cut(pixels, top, left, side, Image.Resampling.BICUBIC)
                inner = f"{name}_y{top}_x{left}.png"
                if tissue_share(tile) < self.options.min_tissue:
                    blank.append(inner)
                    continue
                entry: dict[str, Any] = {"image": f"tiles/{inner}", "patient": region.patient, "region": region.image}
                entry |= {} if region.label is None else {"label": region.label}
                self._save(folder / entry["image"], tile)
                if inside is not None:
                    entry["mask"] = f"masks/{inner}"
                    flat = self._cut(inside.astype(np.uint8) * 255, top, left, side, Image.Resampling.NEAREST)
                    self._save(folder / entry["mask"], flat)
                entries.append(entry)
                kept += 1
            report[region.image] = {"sha256": sha256(path), "pixel_um": region.pixel_um, "tiles": kept}
        self.not_taken |= {f"tiles with less than {self.options.min_tissue:.0%} tissue": blank} if blank else {}
        self.not_taken |= {"smaller than a tile": small} if small else {}
        if not entries:
            raise DataError(
                f"No tile of {self.side * self.options.mpp:g} micrometres is left of {len(self.regions)} images "
                f"({len(small)} are smaller, {len(blank)} tiles hold too little tissue): give a smaller --tile-um or "
                "--min-tissue, and check the size of a pixel"
            )
        return entries, report

    def _cut(self, pixels: np.ndarray, top: int, left: int, side: float, how: Image.Resampling) -> np.ndarray:
        box = (left, top, min(left + side, pixels.shape[1]), min(top + side, pixels.shape[0]))
        return np.asarray(Image.fromarray(pixels).resize((self.side, self.side), how, box=box))

    def _save(self, path: Path, pixels: np.ndarray) -> None:
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")


def prepare(options: argparse.Namespace) -> None:
    """Write the tiles, manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found.
    """
    regions = Regions(options)
    name = options.name or options.folder.resolve().name
    tiles = {"mpp": options.mpp, "side": regions.side, "overlap": options.overlap, "min_tissue": options.min_tissue}
    with cutting(options.output) as folder:
        entries, report = regions.write_tiles(folder)
        if options.inference:
            write_new(regions, entries, folder, name=name, tiles=tiles, regions=report)
            return
        who = f"column {options.patient_column!r} tells them apart"
        patches = PatchSet(folder, regions.classes, {"training": entries}, not_taken=regions.not_taken, who=who)
        patches.check()
        drawn = {"test_fraction": options.test_fraction, "folds": options.folds, "seed": options.seed}
        patches.divide(**drawn, remedy="give every patient one name in the table")
        split = f"drawn by patient, seed {options.seed}"
        given = {"split": split, "tiles": tiles, "regions": report}
        patches.write(options.output, name=name, cut_from=options.folder, mpp=options.mpp, **given)


def write_new(cut: Regions, entries: list[dict[str, Any]], folder: Path, *, name: str, **manifest: Any) -> None:
    """Write what lists tiles without labels for a prediction."""
    output, mpp = cut.options.output, cut.options.mpp
    sources = {
        entry[key]: sha256(folder / entry[key]) for entry in entries for key in ("image", "mask") if key in entry
    }
    place_tiles(folder, output, cut.options.folder)
    given = {"command": command_line(output), "versions": software_versions(("numpy", "pillow")), "images": "cut"}
    write_record(output, **given, **manifest, not_taken=cut.not_taken, sources=sources)
    path = write_datalist(output, name=name, training=[], testing=entries, mpp=mpp)
    print(f"{path}: {len(entries)} patches of {len(cut.regions)} images to predict")
    for reason, names in cut.not_taken.items():
        print(f"not taken: {len(names)} {reason}: {some(names)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    tile_options(parser)
    add = parser.add_argument
    add("folder", type=Path, help="folder of the images")
    add("table", type=Path, help="CSV with a row an image")
    add("--image-column", default="image", help="path of the image below the folder (image)")
    add("--patient-column", default="patient", help="whose it is (patient)")
    add("--label-column", default="label", help="what it shows (label)")
    add("--classes", nargs=2, metavar="CLASS", help="values of the labels, label 0 first (the two there are, sorted)")
    add("--mask-suffix", default="", help="the mask of NAME.png is NAME<suffix>.png, as _glands")
    add("--pixel-um", type=float, help="micrometres per pixel of all images (as each says)")
    add("--pixel-column", help="the table's column of micrometres per pixel")
    add("--inference", action="store_true", help="new regions without labels: all tiles are to be predicted")
    options = parser.parse_args(arguments)
    if options.pixel_um is not None and options.pixel_column is not None:
        parser.error("give --pixel-um (micrometres) or --pixel-column, one of them")
    check_tile_options(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
