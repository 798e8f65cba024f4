"""Cut whole slides into patches of one physical size, labelled by their slide or by annotations.

    FOLDER/a.svs  sub/b.ndpi  c.ome.tiff  ...       slides or large images anywhere below FOLDER
    TABLE: slide,patient,label                      a row a slide: its path below FOLDER, whose it is, what it shows
    FOLDER/a.geojson                                with --annotations, beside each slide: what QuPath exports

Without --annotations every tile of a slide has the slide's label (a weak label: not every tile shows it). With it the
table needs no label, and a tile has the class of the annotations that cover --coverage of it; tiles of none, or of two,
are left out (--keep-unlabelled: listed without label, for pretraining). Tiles are --tile-um micrometres wide at --mpp
micrometres per pixel, whatever the slide's pixels are; these must be known (--slide-mpp where the files do not say).
Tissue is found by Otsu's threshold on saturation; pen marks are left out. The slides are read only; their labels,
scanner's name and images of glass labels are not copied.

OUTPUT holds tiles/*.png, tiles.csv (a row a tile: place, tissue, label), datalist.json (which tells the training the
pixel size) and manifest.json, in place of the tiles of an earlier run there, other files stay. All problems are listed
at once; nothing is written then. A run that was stopped goes on after the last slide that it finished (kept in
OUTPUT/.cutting); a slide is cut anew where it, its row, its annotations or an option changed. New slides need no
preparation: inference reads them (--slides).

    python scripts/prepare_slides.py /data/wsi /data/wsi/slides.csv --output data/wsi --mpp 0.5 --tile-um 112
    python scripts/prepare_slides.py /data/wsi /data/wsi/slides.csv --output data/wsi --mpp 0.5 --annotations \\
        --classes HP SSA --keep-unlabelled
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.apps.preparation.files import positive_int, run_script, script_parser
from shared.apps.preparation.patch_cohort import (
    FINISHED,
    TILES,
    PatchSet,
    check_tile_options,
    cutting,
    tile_options,
)
from shared.data.names import look_alikes
from shared.data.slides.folder import SlideFile, find_slides
from shared.data.slides.grid import TileGrid, tile_grid
from shared.data.slides.reading import SlideReader, open_slide, slide_state
from shared.data.slides.tissue import find_tissue, tissue_shares
from shared.data.tables import read_table, some
from shared.digests import Digests
from shared.errors import DataError
from shared.io import atomic_path, read_json_object, write_csv, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

CUT_BY = ("mpp", "tile_um", "overlap", "min_tissue", "max_ink", "overview_mpp", "max_tiles", "seed", "coverage")
CUT_BY += ("keep_unlabelled",)
COLUMNS = ("image", "slide", "patient", "x", "y", "level", "tissue", "label")


@dataclass(frozen=True)
class Annotated:
    """A slide, its row of the table and its annotations.

    Attributes:
        file: the slide.
        patient: whose.
        label: class of the whole slide; None: annotations tell.
        shapes: of each class its polygons, each a list of rings (the outer one first) of points (x, y) in pixels of
            level 0, from the slide's origin (:class:`shared.data.slides.reading.SlideReader`).
    """

    file: SlideFile
    patient: str
    label: int | None
    shapes: Mapping[int, list[list[np.ndarray]]]


def read_shapes(path: Path, classes: list[str]) -> tuple[dict[int, list[list[np.ndarray]]], set[str]]:
    """Polygons of each class of a GeoJSON file as QuPath writes it, and the names of other classes.

    Raises:
        DataError: it cannot be read, or holds no polygon.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        features = content["features"] if isinstance(content, dict) else content
        shapes: dict[int, list[list[np.ndarray]]] = {}
        others: set[str] = set()
        found = 0
        for feature in features:
            geometry = feature["geometry"]
            if geometry["type"] not in ("Polygon", "MultiPolygon"):
                continue
            found += 1
            properties = feature.get("properties") or {}
            name = str((properties.get("classification") or {}).get("name", "") or properties.get("name", ""))
            if name not in classes:
                others.add(name or "none")
                continue
            parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            rings = [[np.asarray(ring, float)[:, :2] for ring in part] for part in parts]
            shapes.setdefault(classes.index(name), []).extend(rings)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: cannot be read as GeoJSON of annotations ({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise DataError(f"{path}: holds no polygon; export the annotations as GeoJSON")
    return shapes, others


def drawn(
    shapes: list[list[np.ndarray]], shape: tuple[int, int], downsample: float, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Polygons, whose points count from ``origin``, on a slide's overview, bool ``[H, W]``; holes are outside."""
    from skimage.draw import polygon

    mask = np.zeros(shape, bool)
    for rings in shapes:
        own = np.zeros(shape, bool)
        for number, ring in enumerate(rings):
            # a pixel's centre lies half a pixel behind its edge
            across, down = ((ring + origin) / downsample - 0.5).T
            rows, columns = polygon(down, across, shape)
            own[rows, columns] = number == 0
        mask |= own
    return mask


class Slides:
    """The slides of a table and how they are cut.

    Args:
        options: of the command line.

    Raises:
        DataError: with every problem of the table, the slides and the annotations.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.side = round(options.tile_um / options.mpp)
        self.digests = Digests(options.output)
        self.not_taken: dict[str, list[str]] = {}
        self.classes: list[str] = list(options.classes or ())
        self.slides = self._read()

    def _read(self) -> list[Annotated]:
        options = self.options
        files = find_slides(
            options.folder,
            slide_mpp=options.slide_mpp,
            mpp=options.mpp,
            smallest_um=self.side * options.mpp,
            option="--slide-mpp",
        )
        columns = ["slide", "patient", *([] if options.annotations else ["label"])]
        rows = read_table(options.table, columns)
        if not options.annotations:
            self.classes = self.classes or sorted({row["label"] for row in rows} - {""})
        if len(self.classes) != 2:
            raise DataError(
                f"two classes are needed, got {', '.join(self.classes) or 'none'}; name them with --classes"
            )
        there = {file.inner: file for file in files}
        found, problems, missing, bare, others = [], [], [], [], set()
        for number, row in zip(rows.numbers, rows, strict=True):
            if empty := [column for column in columns if not row[column]]:
                problems.append(f"row {number} of {options.table.name}: {', '.join(map(repr, empty))} is empty")
                continue
            file = there.get(row["slide"])
            if file is None:
                missing.append(row["slide"])
                continue
            label, shapes = None, {}
            if options.annotations:
                path = file.path.with_name(f"{file.path.name.removesuffix(file.path.suffix)}.geojson")
                if not path.is_file():
                    bare.append(file.inner)
                    continue
                try:
                    shapes, more = read_shapes(path, self.classes)
                    others |= more
                except DataError as error:
                    problems += error.problems
            elif row["label"] not in self.classes:
                problems.append(f"{row['slide']}: label is {row['label']!r}, the classes are {self.classes}")
                continue
            else:
                label = self.classes.index(row["label"])
            found.append(Annotated(file, row["patient"], label, shapes))
        if missing:
            hint = next(filter(None, look_alikes(missing, there).values()), "")
            problems.append(
                f"{len(missing)} of {len(rows)} slides are not in {options.folder}: {some(missing)}{hint}; give their "
                "paths below the folder"
            )
        names = [each.file.inner for each in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"{name}: appears in {options.table.name} more than once; keep one row" for name in twice]
        if problems:
            raise DataError(problems)
        left = {
            f"not in {options.table.name}": sorted(set(there) - {row["slide"] for row in rows}),
            "slides without a .geojson": bare,
            "annotations of other classes": sorted(others),
        }
        self.not_taken = {reason: names for reason, names in left.items() if names}
        return found

    def write_tiles(
        self, folder: Path
    ) -> tuple[dict[str, list[dict]], list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """Cut and write the tiles into a folder; entries by part, the table, and what became of each slide."""
        from tqdm import tqdm

        parts: dict[str, list[dict]] = {"training": [], "unlabelled": []}
        table: list[dict[str, Any]] = []
        report: dict[str, dict[str, Any]] = {}
        bare = []
        finished = self._finished(folder)
        if finished:
            print(f"{len(finished)} of {len(self.slides)} slides were cut before")
        for slide in tqdm(self.slides, desc="cutting", unit="slide"):
            found = finished.get(slide.file.name) or self._cut(slide, folder)
            for entry, row in found["tiles"]:
                parts["training" if "label" in entry else "unlabelled"].append(entry)
                table.append(row)
            tiles = len(found["tiles"])
            if not tiles:
                bare.append(slide.file.inner)
            report[slide.file.inner] = {"sha256": found["sha256"], "pixel_um": slide.file.mpp, "tiles": tiles}
        if bare:
            self.not_taken["slides without a tile of tissue and label"] = bare
        if not parts["training"]:
            raise DataError(
                f"no labelled tile of {self.side * self.options.mpp:g} micrometres is left of {len(self.slides)} "
                "slides: look at their tissue, annotations and sizes of a pixel"
            )
        return parts, table, report

    def _cut(self, slide: Annotated, folder: Path) -> dict[str, Any]:
        """Write the tiles of a slide and, last, what a later run goes on from."""
        found: dict[str, Any] = {"settings": self._settings(slide), "tiles": []}
        with open_slide(slide.file.path) as reader:
            for entry, row, pixels in self._tiles(slide, reader):
                with atomic_path(folder / entry["image"]) as temporary:
                    Image.fromarray(pixels).save(temporary, "PNG")
                found["tiles"].append((entry, row))
        found["sha256"] = self.digests(slide.file.path)
        write_json(folder / FINISHED / f"{slide.file.name}.json", found)
        return found

    def _finished(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Slides that an earlier run finished as they are asked for now, by name; what else it left is removed."""
        finished, kept = {}, set()
        for slide in self.slides:
            path = folder / FINISHED / f"{slide.file.name}.json"
            found = read_json_object(path, "slide") if path.is_file() else {}
            tiles = {folder / entry["image"] for entry, _ in found.get("tiles", ())}
            if found.get("settings") == self._settings(slide) and all(tile.is_file() for tile in tiles):
                finished[slide.file.name] = found
                kept |= {path, *tiles}
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()
        return finished

    def _settings(self, slide: Annotated) -> dict[str, Any]:
        """What the tiles of a slide depend on."""
        options = vars(self.options)
        shapes = json.dumps([(label, slide.shapes[label]) for label in sorted(slide.shapes)], default=np.ndarray.tolist)
        return {
            "file": slide_state(slide.file.path),
            "slide": [slide.file.inner, slide.file.mpp, slide.patient, slide.label],
            "shapes": hashlib.sha256(shapes.encode()).hexdigest(),
            "tiles": {key: options[key] for key in CUT_BY},
        }

    def _tiles(self, slide: Annotated, reader: SlideReader):
        """Entry of the datalist, row of the table and pixels of every tile that is taken."""
        options, file = self.options, slide.file
        grid = tile_grid(reader, size=self.side, mpp=options.mpp, slide_mpp=file.mpp, overlap=options.overlap)
        asked = {key: getattr(options, key) for key in ("overview_mpp", "min_tissue", "max_ink")}
        tissue = find_tissue(reader, grid, file.mpp, **asked)
        labels = self._labels(slide, grid, tissue.mask.shape, tissue.downsample, reader.origin)
        chosen = np.flatnonzero(tissue.taken & (labels > -2))
        if options.max_tiles and len(chosen) > options.max_tiles:
            random = np.random.default_rng([options.seed, *file.inner.encode()])
            chosen = np.sort(random.choice(chosen, options.max_tiles, replace=False))
        for number in chosen.tolist():
            x, y = grid.corner(number)
            row, column = grid.cell(number)
            span = grid.side / grid.downsample
            pixels = reader.read_scaled(grid.level, grid.lefts[column], grid.tops[row], span, grid.size)
            entry: dict[str, Any] = {"image": f"tiles/{file.name}_y{y}_x{x}.png", "patient": slide.patient}
            entry |= {"region": file.inner} | ({"label": int(labels[number])} if labels[number] >= 0 else {})
            told = {"image": entry["image"], "slide": file.inner, "patient": slide.patient, "x": x, "y": y}
            told |= {
                "level": grid.level,
                "tissue": round(float(tissue.shares[number]), 4),
                "label": entry.get("label", ""),
            }
            yield entry, told, pixels

    def _labels(
        self, slide: Annotated, grid: TileGrid, shape: tuple[int, int], downsample: float, origin: tuple[int, int]
    ) -> np.ndarray:
        """Class of each tile; -1: none, kept without label; -2: left out."""
        if slide.label is not None:
            return np.full(len(grid), slide.label)
        empty = np.zeros(len(grid))
        shares = [
            tissue_shares(drawn(slide.shapes[label], shape, downsample, origin), grid, downsample).ravel()
            if label in slide.shapes
            else empty
            for label in (0, 1)
        ]
        covered = np.stack(shares) >= self.options.coverage
        bare = (shares[0] == 0) & (shares[1] == 0)
        none = np.where(bare, -1, -2) if self.options.keep_unlabelled else np.full(len(grid), -2)
        return np.where(covered.sum(0) == 1, covered.argmax(0), none)


def prepare(options: argparse.Namespace) -> None:
    """Write the tiles, tiles.csv, manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found.
    """
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(
            f"--output {options.output} lies in the folder of slides ({options.folder}), where its tiles would be "
            "taken for slides; give another"
        )
    slides = Slides(options)
    with cutting(options.output, resume=True) as folder:
        parts, table, report = slides.write_tiles(folder)
        write_csv(folder / TILES, table, COLUMNS)
        who = "column 'patient' tells them apart"
        patches = PatchSet(folder, slides.classes, parts, not_taken=slides.not_taken, who=who)
        patches.check()
        drawn = {"test_fraction": options.test_fraction, "folds": options.folds, "seed": options.seed}
        patches.divide(**drawn, remedy="give every patient one name in the table")
        patches.write(
            options.output,
            name=options.name or options.folder.resolve().name,
            cut_from=options.folder,
            mpp=options.mpp,
            split=f"drawn by patient, seed {options.seed}",
            labels="annotations" if options.annotations else "of the whole slide",
            tiles={
                "mpp": options.mpp,
                "side": slides.side,
                "overlap": options.overlap,
                "min_tissue": options.min_tissue,
            },
            regions=report,
        )
    slides.digests.save()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    tile_options(parser)
    add = parser.add_argument
    add("folder", type=Path, help="folder of the slides")
    add("table", type=Path, help="CSV with a row a slide: slide, patient and, without --annotations, label")
    add("--classes", nargs=2, metavar="CLASS", help="names of the labels, label 0 first (the two there are, sorted)")
    add("--annotations", action="store_true", help="labels come from NAME.geojson beside each slide")
    add("--coverage", type=float, default=0.5, help="least share of a tile that annotations of its class cover (0.5)")
    add("--keep-unlabelled", action="store_true", help="also list tiles outside all annotations, without label")
    add("--slide-mpp", type=float, help="micrometres per pixel of all slides, whatever they say (as each says)")
    add("--max-ink", type=float, default=0.1, help="largest share of a tile that is ink of a pen (0.1)")
    add("--overview-mpp", type=float, default=8.0, help="micrometres per pixel at which tissue is looked for (8)")
    add("--max-tiles", type=positive_int, help="of a slide, drawn at random (all)")
    options = parser.parse_args(arguments)
    if not 0.5 <= options.coverage <= 1 or not 0 <= options.max_ink <= 1 or not options.overview_mpp > 0:
        parser.error("--coverage must lie in [0.5, 1], --max-ink in [0, 1], and --overview-mpp above 0")
    if options.annotations and not options.classes:
        parser.error("--annotations needs --classes: annotations have other classes, too")
    check_tile_options(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
