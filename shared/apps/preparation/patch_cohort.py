"""From patches on disk to a datalist: copies found, parts and folds drawn by patient, files written, counts shown."""

from __future__ import annotations

import argparse
import filecmp
import math
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.preparation.files import begin, place_file, program, software_versions, write_datalist, write_manifest
from shared.data.names import nfc
from shared.data.patches.checks import MAPS, SECTIONS, PatchDatalistCheck, PatchFacts, all_facts
from shared.data.slides.grid import PIXELS
from shared.data.splits import grouped_folds, split_off_groups
from shared.data.tables import some
from shared.digests import Digests, sha256
from shared.errors import DataError
from shared.io import DATALIST, MANIFEST, check_folder, read_json_object

SMALLEST = 32  # pixels, side of a tile
CROPPED = "square"  # folder of the output
CUT = ("tiles", "masks")  # likewise
TILES = "tiles.csv"
FINISHED = "finished"  # folder of the hidden one: what a run that is stopped hands on


def common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every script that prepares patches."""
    add = parser.add_argument
    add("folder", type=Path, help="the data set's folder")
    add("--output", type=Path, required=True, help="folder to write (datalist.json, manifest.json), or a .json file")
    add("--folds", type=int, default=5, help="grouped, stratified folds of the training part (5); 0: none")
    add("--seed", type=int, default=0, help="of everything drawn (0)")
    add(
        "--copy", action="store_true", help="copy the images into the output; default: the datalist names them in place"
    )
    add("--name", help="of the data set (the folder's)")
    add("--skip-blank", action="store_true", help="leave out tiles of (nearly) one colour")
    add("--crop-square", action="store_true", help="write the centre of patches that are not square into the output")
    add("--mpp", type=float, help="micrometres per pixel of the patches, if known: whole slides are then read at it")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with the usage where a number makes no sense."""
    if options.folds < 0 or options.folds == 1:
        parser.error("--folds must be 0 or at least 2")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    if options.mpp is not None and not PIXELS[0] <= options.mpp <= PIXELS[1]:
        parser.error(f"--mpp must be {PIXELS[0]} to {PIXELS[1]} micrometres per pixel")


def tile_options(parser: argparse.ArgumentParser) -> None:
    """Options of the scripts that cut large images into tiles of one physical size."""
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write")
    add("--mpp", type=float, default=1.0, help="micrometres per pixel of the tiles (1.0)")
    add("--tile-um", type=float, default=224.0, help="side of a tile in micrometres (224)")
    add("--overlap", type=float, default=0.0, help="largest share of a tile that its neighbour covers (0)")
    add("--min-tissue", type=float, default=0.25, help="least share of a tile that is tissue (0.25)")
    add("--test-fraction", type=float, default=0.2, help="of the tiles, by patient (0.2); 0: no testing part")
    add("--folds", type=int, default=5, help="grouped, stratified folds of the training part (5); 0: none")
    add("--seed", type=int, default=0, help="of everything drawn (0)")
    add("--name", help="of the data set (the folder's)")


def check_tile_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with the usage where a number or the output makes no sense."""
    if not PIXELS[0] <= options.mpp <= PIXELS[1] or not SMALLEST - 0.5 <= options.tile_um / options.mpp < math.inf:
        parser.error(f"--mpp must be {PIXELS[0]} to {PIXELS[1]}, and --tile-um at least {SMALLEST} pixels of it")
    if not 0 <= options.overlap <= 0.9 or not 0 <= options.min_tissue <= 1:
        parser.error("--overlap must lie in [0, 0.9] and --min-tissue in [0, 1]")
    if options.folds < 0 or options.folds == 1 or options.seed < 0:
        parser.error("--folds must be 0 or at least 2, and --seed at least 0")
    if not 0 <= options.test_fraction < 1:
        parser.error("--test-fraction must lie in [0, 1)")
    if options.output.suffix.lower() == ".json":
        parser.error("--output must be a folder")


@contextmanager
def cutting(output: Path, *, resume: bool = False) -> Iterator[Path]:
    """A hidden folder of the output to cut tiles into; gone afterwards: a run that stops changes nothing else.

    Args:
        output: of the tiles.
        resume: begin with what a run that was stopped left; it stays once ``FINISHED`` is in it.

    Raises:
        DataError: the output is a file, or cannot be written to.
    """
    check_folder(output)
    new, folder = not output.exists(), output / ".cutting"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True, exist_ok=True)
    kept = False
    try:
        yield folder
    except BaseException:
        kept = (folder / FINISHED).exists()
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        if new:
            with suppress(OSError):  # it holds what was made
                output.rmdir()


def place_tiles(cut: Path, output: Path, sources: Path) -> None:
    """Move what was cut into the output, in place of what an earlier run cut there.

    Of an earlier run are, in the folders of ``CUT``, the files that its manifest names and that have not changed since.

    Args:
        cut: the folder of :func:`cutting`.
        output: the folder of its datalist, which goes, with the manifest.
        sources: folder of what was cut; nothing in it is touched.
    """
    former = _cut_before(output)
    cut_now = [path.relative_to(cut) for path in sorted(cut.rglob("*")) if path.is_file()]
    cut_now = [path for path in cut_now if path.parts[0] != FINISHED]
    there = [path for path in cut_now if (output / path).exists() and output / path not in former]
    # the same content: of a run that was killed while it moved its tiles
    if kept := [path.as_posix() for path in there if not filecmp.cmp(cut / path, output / path, shallow=False)]:
        raise DataError(
            f"{output}: {some(kept)} would be written, but there is one that an earlier run did not write so; "
            "move it away"
        )
    begin(output)
    for path in former:
        if not path.resolve().is_relative_to(sources.resolve()):
            path.unlink()
    for path in cut_now:
        (output / path).parent.mkdir(exist_ok=True)
        (cut / path).replace(output / path)
    for name in CUT:
        with suppress(OSError):  # it is not empty, or not there
            (output / name).rmdir()


def _cut_before(output: Path) -> list[Path]:
    """Files of an earlier run that cut tiles into this folder."""
    try:
        manifest = read_json_object(output / MANIFEST, "manifest")
    except DataError:
        return []
    if manifest.get("images") != "cut" or not isinstance(manifest.get("sources"), dict):
        return []
    parts = {name: name.split("/") for name in manifest["sources"]}
    names = [name for name, found in parts.items() if found[0] in CUT and ".." not in found]
    files = {output / name: manifest["sources"][name] for name in names}
    own = [path for path, digest in files.items() if path.is_file() and sha256(path) == digest]
    return [*own, *(path for path in [output / TILES] if path.is_file())]


class PatchSet:
    """Entries of a data set on the way to its datalist.

    Args:
        folder: the data set's folder.
        classes: names of the classes, in the order of the labels.
        entries: by part (``training``, ``validation``, ``testing``, ``unlabelled``); paths relative to ``folder``.
        skip_blank: leave out patches of (nearly) one colour.
        crop_square: write the centres of patches that are not square.
        not_taken: paths of what else lies in the folder, by the reason why it is no patch of the data set.
        who: what tells whose a patch is, for messages.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        entries: Mapping[str, Sequence[dict[str, Any]]],
        *,
        skip_blank: bool = False,
        crop_square: bool = False,
        not_taken: Mapping[str, Sequence[str]] | None = None,
        who: str = "--group-by tells them apart",
    ):
        self.who = who
        self.folder, self.classes = folder, list(classes)
        self.skip_blank, self.crop_square = skip_blank, crop_square
        self.not_taken = {reason: list(names) for reason, names in (not_taken or {}).items()}
        self.blank: list[str] = []
        self.joined_by_blank: set[str] = set()
        self.parts: dict[str, list[dict[str, Any]]] = {part: list(entries.get(part, ())) for part in SECTIONS}
        self.copies: list[list[str]] = []
        self.merged: dict[str, list[str]] = {}
        self._facts: dict[str, PatchFacts] = {}

    def check(self, *, masks_are_classes: bool = True) -> None:
        """Decode everything; give copies of an image one patient (the first by name).

        Args:
            masks_are_classes: of a class that looks like masks throughout is only warned.

        Raises:
            DataError: every file that cannot be used, sizes that differ, copies with two labels, images that look like
                masks.
        """
        check = self._new_check()
        cases = {part: check.section(part) for part in SECTIONS}
        check.facts = all_facts([case for part in SECTIONS for case in cases[part]])
        self._facts = check.facts
        self._find_blank(cases)
        check.files([case for part in SECTIONS for case in cases[part]], facts=check.facts)
        throughout, among = self._look_like_masks(cases, blank_too=not masks_are_classes)
        check.problems += among
        if masks_are_classes:
            check.warnings += throughout
        else:
            named = " ".join(map(repr, self.classes))
            check.problems += [
                f"{line}; where they are patches all the same, name --classes {named}" for line in throughout
            ]
        same: dict[str, list[tuple[str, dict, dict]]] = {}
        for part in SECTIONS:
            for case, entry in zip(cases[part], self.parts[part], strict=True):
                same.setdefault(check.identity(case), []).append((part, case, entry))
        leader: dict[str, str] = {}

        def first_of(patient: str) -> str:
            while leader.get(patient, patient) != patient:
                patient = leader[patient]
            return patient

        for group in same.values():
            if len(group) < 2:
                continue
            self.copies.append([entry["image"] for _, _, entry in group])
            blank = self._facts[group[0][1]["image"]].blank
            labels = sorted({str(case["label"]) for _, case, _ in group if "label" in case})
            if len(labels) > 1:
                remedy = "it is a blank tile, --skip-blank leaves those out" if blank else "remove one"
                check.problems.append(
                    f"{' = '.join(self.copies[-1])}: the same image has labels {' and '.join(labels)}; {remedy}"
                )
            patients = sorted({first_of(entry["patient"]) for _, _, entry in group})
            leader |= dict.fromkeys(patients, patients[0])
            if blank and len(patients) > 1:
                self.joined_by_blank |= set(patients)
        if check.problems:
            raise DataError(check.problems)
        for part in SECTIONS:
            for entry in self.parts[part]:
                patient = entry["patient"]
                entry["patient"] = first_of(patient)
                if entry["patient"] != patient and patient not in self.merged.setdefault(entry["patient"], []):
                    self.merged[entry["patient"]].append(patient)
        for line in check.warnings:
            if not line.endswith("repeat the image of another patch"):
                print(f"warning: {line}")

    def _find_blank(self, cases: dict[str, list[dict]]) -> None:
        """Name the blank tiles, and take them out where that is asked for."""
        for part in SECTIONS:
            blank = [self._facts[case["image"]].blank for case in cases[part]]
            self.blank += [entry["image"] for entry, is_so in zip(self.parts[part], blank, strict=True) if is_so]
            if self.skip_blank:
                kept = [row for row, is_so in enumerate(blank) if not is_so]
                cases[part] = [cases[part][row] for row in kept]
                self.parts[part] = [self.parts[part][row] for row in kept]
        if self.skip_blank and self.blank:
            self.not_taken["blank"] = self.blank

    def _look_like_masks(self, cases: Mapping[str, Sequence[dict]], *, blank_too: bool) -> tuple[list[str], list[str]]:
        """What is to be said of classes that look like masks throughout, and of masks among the images of a class."""
        throughout, among = [], []
        for label, name in enumerate(self.classes):
            own = [(c, e) for part in SECTIONS for c, e in zip(cases[part], self.parts[part], strict=True)]
            own = [(self._facts[case["image"]], entry) for case, entry in own if case.get("label") == label]
            flat = [entry["image"] for facts, entry in own if facts.few_colours]
            if len(flat) < len(own):  # of single ones the name must tell
                named = _named_for([entry["image"] for facts, entry in own if not facts.few_colours], flat)
                many = [entry["image"] for facts, entry in own if facts.few_colours and (blank_too or not facts.blank)]
                flat = many if len(many) > len(own) / 5 else named
            line = f"{name}: {len(flat)} of its {len(own)} images have few colours, as masks have: {some(flat)}"
            if flat and len(flat) == len(own):
                throughout.append(line)
            elif flat:
                among.append(
                    f"{line}; name masks as their image with _mask, lay them into a folder masks, or move them away "
                    "(--skip-blank leaves out blank tiles)"
                )
        return throughout, among

    def _new_check(self) -> PatchDatalistCheck:
        content = {"classes": self.classes, **self.parts}
        return PatchDatalistCheck(
            self.folder, num_classes=len(self.classes), content=content, crop_square=self.crop_square
        )

    def divide(self, *, test_fraction: float, folds: int, seed: int, remedy: str) -> None:
        """Draw the testing part (0: none) and the folds by whole patients; between them :meth:`check_parts`."""
        if test_fraction:
            self.draw_testing(test_fraction, seed)
        self.check_parts(remedy)
        self.draw_folds(folds, seed)

    def draw_testing(self, share: float, seed: int) -> None:
        """Move about ``share`` of the training part, whole patients, to the testing part."""
        groups, labels = self._labelled()
        chosen = self._split(lambda: split_off_groups(groups, labels, share, seed), "--test-fraction")
        training = self.parts["training"]
        self.parts["testing"] += [entry for entry in training if entry["patient"] in chosen]
        self.parts["training"] = [entry for entry in training if entry["patient"] not in chosen]

    def draw_folds(self, folds: int, seed: int) -> None:
        """Give every training entry a fold, by whole patients; not where there is a validation part."""
        if folds and not self.parts["validation"]:
            groups, labels = self._labelled()
            fold_of = self._split(lambda: grouped_folds(groups, labels, folds, seed), "--folds")
            for entry in self.parts["training"]:
                entry["fold"] = fold_of[entry["patient"]]

    def _labelled(self) -> tuple[list[str], list[str]]:
        training = self.parts["training"]
        return [entry["patient"] for entry in training], [self.classes[entry["label"]] for entry in training]

    def _split(self, draw, option: str):
        try:
            return draw()
        except DataError as error:
            groups = sorted({entry["patient"] for entry in self.parts["training"]})
            shown = ", ".join(groups[:4]) + (", ..." if len(groups) > 4 else "")
            raise DataError(
                [f"{option}: {problem}" for problem in error.problems]
                + [f"the training part has {len(groups)} patients or slides ({shown}); {self.who}"]
                + self._of_blank()
            ) from error

    def check_parts(self, remedy: str) -> None:
        """No patient and no image in two parts, images enough of every class to train on.

        Raises:
            DataError: with every patient and every pair of copies that straddle parts.
        """
        check = self._new_check()
        check.facts = self._facts  # copies go by their pixels
        cases = {part: check.section(part) for part in SECTIONS}
        check.across(cases)
        for line in check.warnings:
            if "called nearly as another" in line:
                print(f"warning: {line}")
        straddling = len(check.problems)
        check.training_parts(cases, -1)
        if check.problems:
            raise DataError(check.problems + ([remedy] if straddling else []))

    def write(
        self,
        output: Path,
        *,
        name: str | None,
        copy: bool = False,
        cut_from: Path | None = None,
        mpp: float | None = None,
        **manifest: Any,
    ) -> None:
        """Write the manifest and, last, the datalist, which tells micrometres per pixel where they are known.

        Args:
            output: folder, or a .json file in it.
            name: of the data set.
            copy: copy the images.
            cut_from: the patches were cut from images of this folder and lie in that of :func:`cutting`.
            mpp: micrometres per pixel.
            manifest: what else the manifest tells.
        """
        from tqdm import tqdm

        from shared.data.patches.looks import crop_square

        file = output.name if output.suffix.lower() == ".json" else DATALIST
        output = output.parent if output.suffix.lower() == ".json" else output
        record = MANIFEST if file == DATALIST else f"{Path(file).stem}_{MANIFEST}"
        for option, given in (("--copy", copy), ("--crop-square", self.crop_square)):
            if given and output.resolve().is_relative_to(self.folder.resolve()):
                raise DataError(
                    f"{option}: {output} lies in the data set's own folder; leave {option} out, or give another"
                )
        keys = ("image", *MAPS)
        files = sorted({entry[key] for part in SECTIONS for entry in self.parts[part] for key in keys if key in entry})
        oblong = {inner for inner in files if len(set(self._fact(inner).size)) > 1}
        digests = Digests(output if copy else None)
        placed = copy or cut_from is not None
        where = {inner: inner if placed else portable(self.folder / inner, output) for inner in files}
        where |= {inner: f"{CROPPED}/{inner}.png" for inner in oblong}
        sources = {inner: digests(self.folder / inner) for inner in files}
        if cut_from is not None:
            place_tiles(self.folder, output, cut_from)
        else:
            begin(output, (file, record))
        for inner in tqdm(files, desc="copying", unit="file", disable=not (copy or oblong)):
            if inner in oblong:
                crop_square(self.folder / inner, output / where[inner], mask=self._is_mask(inner))
            elif copy:
                place_file(self.folder / inner, output / inner, digests=digests)
        parts = {
            part: [{key: where[value] if key in keys else value for key, value in entry.items()} for entry in entries]
            for part, entries in self.parts.items()
            if entries or part in ("training", "testing")
        }
        write_manifest(
            output,
            file=record,
            command=command_line(output),
            versions=software_versions(("numpy", "pillow", "scikit-learn")),
            images="copied" if copy else "cut" if cut_from is not None else "in place",
            **manifest,
            counts={part: self.counts(part) for part in parts},
            copies_of_one_image=self.copies,
            patients_merged_by_copies=self.merged,
            not_taken=self.not_taken,
            cropped=sorted(oblong),
            sources=sources,
        )
        digests.save()
        name = name or self.folder.resolve().name
        known = {} if mpp is None else {"mpp": mpp}
        write_datalist(output, file=file, name=name, classes=self.classes, **parts, **known)
        self.report(output / file)

    def _fact(self, inner: str) -> PatchFacts:
        return self._facts[str(self.folder.resolve() / inner)]

    def _is_mask(self, inner: str) -> bool:
        return self._fact(inner).digest is None

    def _of_blank(self) -> list[str]:
        """What is to be said of blank tiles that were taken."""
        if not self.blank or self.skip_blank:
            return []
        joined = f" and join {len(self.joined_by_blank)} patients or slides into one" if self.joined_by_blank else ""
        return [
            f"{len(self.blank)} patches are blank, of (nearly) one colour{joined}: {some(self.blank)}; --skip-blank "
            "leaves them out"
        ]

    def counts(self, part: str) -> dict[str, dict[str, int]]:
        """Patches and patients of every class of a part."""
        found: dict[str, dict[str, int]] = {}
        for label, name in [*enumerate(self.classes), (None, "unlabelled")]:
            patients = [entry["patient"] for entry in self.parts[part] if entry.get("label") == label]
            if patients or (label is not None and part in ("training", "testing")):
                found[name] = {"patches": len(patients), "patients": len(set(patients))}
        return found

    def report(self, file: Path) -> None:
        """Print the counts, so that a wrong class or --group-by is seen."""
        print(file)
        for part in SECTIONS:
            if self.parts[part]:
                patients = len({entry["patient"] for entry in self.parts[part]})
                shown = ", ".join(f"{n['patches']} {name} of {n['patients']}" for name, n in self.counts(part).items())
                print(f"  {part:<10} {len(self.parts[part]):>5} patches of {patients} patients or slides: {shown}")
        folds = Counter(entry["fold"] for entry in self.parts["training"] if "fold" in entry)
        if folds:
            print(f"  folds      {', '.join(str(folds[fold]) for fold in sorted(folds))} patches")
        masks = sum("mask" in entry for part in SECTIONS for entry in self.parts[part])
        print(f"  masks      {masks}")
        if self.copies:
            print(f"warning: {len(self.copies)} images are there more than once, as {' = '.join(self.copies[0])}")
        for kept, others in self.merged.items():
            print(f"warning: {', '.join(others)} shares an image with {kept}: they are one patient in the datalist")
        for part in ("validation", "testing"):
            labels = {entry["label"] for entry in self.parts[part]}
            if len(labels) == 1:
                print(f"warning: the {part} part has patches of {self.classes[labels.pop()]} only")
        for line in self._of_blank():
            print(f"warning: {line}")
        for reason, names in self.not_taken.items():
            print(f"not taken: {len(names)} {reason}: {some(names)}")
        apart = {entry["patient"] for part in ("validation", "testing") for entry in self.parts[part]}
        shared = sum(entry["patient"] in apart for entry in self.parts["unlabelled"])
        if shared:
            print(f"{shared} unlabelled patches are of patients kept apart: pretraining leaves them out")


def _named_for(images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``others`` whose name is that of an image with more behind a sign.

    Example:
        >>> _named_for(["HP/S1.png"], ["HP/maps/S1_ov.png", "HP/S12.png", "HP/S2_ov.png"])
        ['HP/maps/S1_ov.png']
    """
    stems = {nfc(Path(image).stem) for image in images}

    def beginnings(name: str) -> set[str]:
        return {name[: sign.start()] for sign in re.finditer(r"[\W_]", name)}

    return [other for other in others if stems & beginnings(nfc(Path(other).stem))]


def portable(path: Path, output: Path) -> str:
    """A path relative to the output where that takes at most one step up, so that both can move; else absolute.

    Example:
        >>> portable(Path("/data/ebhi/a.png"), Path("/data/list")), portable(Path("/data/ebhi/a.png"), Path("/tmp/x/y"))
        ('../ebhi/a.png', '/data/ebhi/a.png')
    """
    path, output = path.resolve(), output.resolve()
    inner = Path(os.path.relpath(path, output))
    return path.as_posix() if inner.parts[:2] == ("..", "..") else inner.as_posix()


def command_line(output: Path) -> str:
    """The command as typed, without absolute paths where they can be told relative to the output or the repository."""
    words = []
    for word in (*program(), *sys.argv[1:]):
        path = Path(word)
        if path.is_absolute():
            word = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else portable(path, output)
        words.append(word)
    return shlex.join(["python", *words])
