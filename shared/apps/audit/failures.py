"""The most confident errors of an evaluation or a cross-validation, with their explanations, as a gallery.

python scripts/failures.py bundles/ircl_mvi/eval
python scripts/failures.py eval/study/rows/ircl --explained eval/study/rows/ircl/seed0/fold0/explained --count 12
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.io import write_csv

ENDINGS = ("_overlay", "_contributions", "", "_surface", "_network")
"""What follows the patient's name in an explanation's picture, the best first."""
COLUMNS = ("rank", "name", "patient", "label", "probability", "sd", "error", "picture")


@dataclass(frozen=True)
class Failure:
    """A row that is called wrong: ``error`` is how far its probability is from its label."""

    name: str
    patient: str
    label: int
    probability: float
    sd: float | None
    picture: Path | None

    @property
    def error(self) -> float:
        """From 0.5 to 1."""
        return abs(self.label - self.probability)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="with predictions.csv, or with folders seed<k> that have one")
    add(
        "--explained",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="of pictures (default: FOLDER, all below)",
    )
    add("--count", type=int, default=12, help="errors in the gallery (default: 12)")
    add("--output", type=Path, help="folder (default: FOLDER)")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error("--count must be at least 1")
    return args


def failures(folder: Path, explained: Sequence[Path] = ()) -> tuple[list[Failure], int]:
    """The rows that are called wrong at 0.5, the most confident first, and how many rows there are.

    Of several seeds the probability is the mean; ``sd`` is their spread.

    Args:
        folder: see :func:`shared.apps.experiments.comparison.read_runs`.
        explained: folders with pictures; none: ``folder``.

    Raises:
        DataError: there are no predictions, or a folder of pictures is not there.
    """
    from shared.apps.experiments.comparison import read_runs

    if gone := [str(path) for path in explained if not path.is_dir()]:
        raise DataError(f"{', '.join(gone)}: no such folder; give those in which an explanation lies (--explained)")
    found = read_runs(folder)
    mean = found.probability.mean(axis=0)
    spread = found.probability.std(axis=0, ddof=1) if len(found.seeds) > 1 else None
    wrong = np.flatnonzero((mean >= 0.5) != (found.labels == 1))
    order = wrong[np.argsort(-np.abs(mean - found.labels)[wrong], kind="stable")]
    pictures = _pictures(explained or [folder])
    rows = []
    for k in order.tolist():
        name = found.names[k]
        sd = None if spread is None else float(spread[k])
        given = (name, found.patients[k], int(found.labels[k]), float(mean[k]), sd)
        rows.append(Failure(*given, _picture_of(name, pictures)))
    return rows, len(mean)


def _pictures(folders: Sequence[Path]) -> dict[str, Path]:
    """Pictures by their name without ending; those of ``overlays`` before those of ``cam``."""
    paths = {path for folder in folders for path in folder.rglob("*.png")}
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path.parent.name == "cam", path)):
        found.setdefault(path.stem, path)
    return found


def _picture_of(name: str, pictures: dict[str, Path]) -> Path | None:
    from shared.explain.patches.cases import unique_names

    stems = [name]
    if Path(name).suffix:  # a patch, whose pictures are named after its path
        stems = [unique_names([f"/{name}"], "/")[0], Path(name).stem]
    return next((pictures[f"{stem}{end}"] for stem in stems for end in ENDINGS if f"{stem}{end}" in pictures), None)


def write(folder: Path, found: Sequence[Failure], rows: int, count: int = 12, *, report: Path | None = None) -> None:
    """Write failures.csv (all), failures.png (the first ``count``) and the section ``40_failures`` (in ``report``)."""
    from shared.reports.sections import write_section

    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for rank, f in enumerate(found, 1):
        row = {"rank": rank, "name": f.name, "patient": f.patient, "label": f.label, "probability": f.probability}
        explained = "" if f.picture is None else Path(os.path.relpath(f.picture, folder)).as_posix()
        table.append({**row, "sd": "" if f.sd is None else f.sd, "error": f.error, "picture": explained})
    write_csv(folder / "failures.csv", table, columns=COLUMNS)
    shown = list(found[:count])
    picture = folder / "failures.png"
    if shown:
        gallery(shown, picture)
    else:
        picture.unlink(missing_ok=True)
    share = f"{len(found)} of {rows} are called wrong at 0.5"
    missed = sum(f.label == 1 for f in found)
    text = [f"{share}: {missed} of label 1, {len(found) - missed} of label 0."]
    if shown:
        text.append(f"Shown are the {len(shown)} most confident of them.")
        if without := sum(f.picture is None for f in shown):
            text.append(f"Of {without} there is no explanation: explain their part first.")
    lines = [[f.name, f.label, f"{f.probability:.3f}", "" if f.sd is None else f"{f.sd:.3f}"] for f in shown]
    write_section(
        report or folder,
        "40_failures",
        title="Failures",
        text=text,
        tables=[{"caption": "Most confident errors", "header": ["", "label", "probability", "sd"], "rows": lines}],
        pictures=[(picture.resolve(), "The most confident errors with their explanations")] if shown else [],
        patients=bool(shown),
    )


def gallery(found: Sequence[Failure], path: Path) -> None:
    """Write the explanations of errors as one picture."""
    from PIL import Image

    from shared.visualize.style import cell_grid, save

    figure, cells = cell_grid(len(found), 3.6, 3.3)
    for cell, failure in zip(cells, found, strict=False):
        if failure.picture is None:
            cell.text(0.5, 0.5, "no explanation", ha="center", va="center", fontsize=8, color="0.4")
        else:
            with Image.open(failure.picture) as image:
                cell.imshow(np.asarray(image.convert("RGB")))
        name = failure.name if len(failure.name) <= 34 else f"…{failure.name[-33:]}"
        cell.set_title(f"{name}\nlabel {failure.label}, probability {failure.probability:.2f}", fontsize=8)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Write and say where."""
    args = arguments(argv)
    try:
        found, rows = failures(args.folder, args.explained)
        output = args.output or args.folder
        write(output, found, rows, args.count)
    except DataError as error:
        raise SystemExit(f"failures: {error}") from None
    print(f"{len(found)} of {rows} are called wrong at 0.5: {output / 'failures.csv'}")
