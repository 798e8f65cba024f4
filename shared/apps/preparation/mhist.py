"""Turn MHIST (Wei et al. 2021: hyperplastic polyp or sessile serrated adenoma) into a datalist.

FOLDER is the publisher's: `annotations.csv` and `images/*.png`. The table's columns:

    Image Name    Majority Vote Label    Number of Annotators who Selected SSA (Out of 7)    Partition
    MHIST_aaa.png SSA                    6                                                   train

--split official (default) keeps the partition; validation folds are carved from its training part. --split paper is
what the SSCL paper did: classes balanced by dropping images of the larger one at random, then a random 90:10 split.
Labels are HP = 0, SSA = 1; the share of the seven votes for SSA is kept as `soft_label`. MHIST does not say which
images are of one patient: every image counts as a patient of its own, and results are the more optimistic for it.

    python scripts/prepare_mhist.py /data/mhist --output data/sscl_crc
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from shared.apps.preparation.cell_numbers import parse_number
from shared.apps.preparation.files import run_script, script_parser
from shared.apps.preparation.patch_cohort import PatchSet, check_options, common_options
from shared.data.clutter import is_clutter, walk_files
from shared.data.names import clean, look_alikes
from shared.data.patches.files import PARTS
from shared.data.patches.files import plain as plain_path
from shared.data.tables import read_table, some
from shared.errors import DataError

TABLE = "annotations.csv"
CLASSES = ("HP", "SSA")
NAMES = {"hp": 0, "hyperplasticpolyp": 0, "ssa": 1, "ssl": 1, "sessileserratedadenoma": 1, "sessileserratedlesion": 1}
ANNOTATORS = 7
# Column -> beginnings of its name, letters and digits only, as publishers and spreadsheets vary it.
COLUMNS = {
    "Image Name": ("imagename", "image", "filename", "file"),
    "Majority Vote Label": ("majorityvotelabel", "majorityvote", "majority", "label"),
    "Number of Annotators who Selected SSA (Out of 7)": ("numberofannotators", "annotators", "votes", "ssavotes"),
    "Partition": ("partition", "split", "set"),
}
IMAGE, LABEL, VOTES, PARTITION = COLUMNS


def plain(text: str) -> str:
    """Letters and digits of a text, in lower case."""
    return re.sub(r"[\W_]+", "", text.casefold())


def find_columns(names: list[str], needed: list[str]) -> dict[str, str]:
    """The table's own name of every column that is needed.

    Raises:
        DataError: with every column that is missing.

    Example:
        >>> find_columns(["image_name", "majority vote label"], [IMAGE, LABEL])[LABEL]
        'majority vote label'
    """
    found = {}
    for column in needed:
        known = [plain(column), *COLUMNS[column]]
        fitting = [name for start in known for name in names if plain(name).startswith(start)]
        if fitting:
            found[column] = fitting[0]
    missing = [column for column in needed if column not in found]
    if missing:
        raise DataError(
            [f"{TABLE}: no column {column!r}; its columns are {', '.join(names)}" for column in missing]
            + (["--no-votes does without the votes"] if VOTES in missing else [])
        )
    return found


def image_folder(folder: Path) -> Path:
    """Where MHIST's images lie."""
    return folder / "images" if (folder / "images").is_dir() else folder


def read_annotations(folder: Path, *, votes: bool, partition: bool) -> list[dict]:
    """Rows of the table as entries with ``image``, ``patient``, ``label``, ``soft_label`` and ``part``.

    Raises:
        DataError: no table, a column missing, and every label, vote, partition and image that is not right.
    """
    table = folder / TABLE
    if not table.is_file():
        raise DataError(f"{folder}: no {TABLE}; give the folder that holds it and images/, as MHIST is delivered")
    rows = read_table(table)
    columns = find_columns(list(rows[0]), [IMAGE, LABEL] + [VOTES] * votes + [PARTITION] * partition)
    inside = image_folder(folder)
    there = {clean(path.name): path for path in inside.iterdir() if not is_clutter(path.name)}
    entries, problems, missing = [], [], []
    for number, row in zip(rows.numbers, rows, strict=True):
        name = row[columns[IMAGE]]
        entry = {
            "image": there.get(name, inside / name).relative_to(folder).as_posix(),
            "patient": Path(name).stem,
            "label": NAMES.get(plain(row[columns[LABEL]])),
        }
        if not name:
            problems.append(f"{TABLE}, row {number}: column {columns[IMAGE]!r} is empty")
        elif name not in there:
            missing.append(name)
        if entry["label"] is None:
            problems.append(f"{name}: label must be {' or '.join(CLASSES)}, got {row[columns[LABEL]]!r}")
        if votes:
            count = parse_number(row[columns[VOTES]])
            if count is None or count != int(count) or not 0 <= count <= ANNOTATORS:
                problems.append(
                    f"{name}: votes for SSA must be a number from 0 to {ANNOTATORS}, got {row[columns[VOTES]]!r}"
                )
            else:
                entry["soft_label"] = round(count / ANNOTATORS, 4)
        if partition:
            entry["part"] = PARTS.get(row[columns[PARTITION]].casefold())
            if entry["part"] is None:
                problems.append(f"{name}: partition must be train or test, got {row[columns[PARTITION]]!r}")
        entries.append(entry)
    if missing:
        hint = next(filter(None, look_alikes(missing, there).values()), "")
        problems.append(
            f"{len(missing)} of {len(rows)} images are not in {inside}: {some(missing, 10)}; unpack images.zip there"
            + hint
        )
    twice = [name for name, count in Counter(entry["image"] for entry in entries).items() if count > 1]
    problems += [f"{Path(name).name}: appears in {TABLE} more than once; keep one row" for name in twice]
    if problems:
        raise DataError(problems)
    return entries


def balance(entries: list[dict], seed: int) -> list[dict]:
    """As many entries of every label as the rarest has, the others dropped at random."""
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = {label: [row for row, e in enumerate(entries) if e["label"] == label] for label in range(len(CLASSES))}
    fewest = min(len(found) for found in rows.values())
    kept = {int(row) for found in rows.values() for row in rng.permutation(found)[:fewest]}
    return [entry for row, entry in enumerate(entries) if row in kept]


def prepare(options: argparse.Namespace) -> None:
    """Write manifest.json and, last, datalist.json.

    Raises:
        DataError: with every problem found; nothing is written then.
    """
    official = options.split == "official"
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder; give the one with MHIST's {TABLE} and images/")
    entries = read_annotations(options.folder, votes=not options.no_votes, partition=official)
    listed, dropped = {entry["image"] for entry in entries}, 0
    if not official:
        kept = balance(entries, options.seed)
        dropped, entries = len(entries) - len(kept), kept
    parts: dict[str, list[dict]] = {}
    for entry in entries:
        parts.setdefault(entry.pop("part", "training"), []).append(entry)
    others = [plain_path(path.relative_to(options.folder)) for path in walk_files(image_folder(options.folder))]
    others = [name for name in others if name not in listed and name != TABLE]
    patches = PatchSet(
        options.folder,
        CLASSES,
        parts,
        skip_blank=options.skip_blank,
        crop_square=options.crop_square,
        not_taken={f"not in {TABLE}": others} if others else None,
    )
    patches.check()
    remedy = "MHIST's partition does not keep copies of an image apart: remove one of them from the table"
    test_fraction = 0.0 if official else 0.1
    patches.divide(test_fraction=test_fraction, folds=options.folds, seed=options.seed, remedy=remedy)
    votes = [entry for entry in entries if (entry.get("soft_label", entry["label"]) > 0.5) != bool(entry["label"])]
    if votes:
        print(f"warning: in {len(votes)} rows the votes contradict the majority label, as {votes[0]['image']}")
    if dropped:
        print(f"dropped at random to balance the classes: {dropped} images")
    split = "official" if official else f"paper: balanced by dropping {dropped}, 90:10 at random, seed {options.seed}"
    patches.write(options.output, name=options.name or "MHIST", copy=options.copy, mpp=options.mpp, split=split)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = script_parser(__doc__)
    common_options(parser)
    parser.add_argument("--split", choices=("official", "paper"), default="official", help="see above (official)")
    parser.add_argument("--no-votes", action="store_true", help="do without the votes: no soft labels")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    options = parse(arguments)
    return run_script(lambda: prepare(options))
