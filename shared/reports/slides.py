"""What a predicted slide leaves: scores, heat map, shapes for QuPath; of many slides a table and AUC of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.data.slides.grid import TileGrid
from shared.io import write_csv, write_json, write_text


class Measure(NamedTuple):
    """What is shown of a slide's tiles.

    Attributes:
        name: of it.
        words: the same, up to the name of class 1.
        columns: what is told of each tile, that among it.
        scores: of the slide.
        signed: about 0, and tiles add up; else from 0 to 1, and their mean tells.
    """

    name: str
    words: str
    columns: tuple[str, ...]
    scores: tuple[str, ...]
    signed: bool = False


PROBABILITY = Measure("probability", "probability of", ("probability",), ("mean", "top", "share"))
CONTRIBUTION = Measure("contribution", "contribution to", ("attention", "contribution"), ("probability",), signed=True)
COLOURS = ([0, 114, 178], [213, 94, 0])  # shared.visualize.style's, of class 0 and 1


def slide_scores(probability: Any, *, top: int = 10, threshold: float = 0.5) -> dict[str, float]:
    """Three scores of a slide from its tiles' probabilities of class 1.

    Args:
        probability: of all tiles.
        top: how many of the highest are averaged in ``top`` (all, where there are fewer).
        threshold: from which a tile counts in ``share``.

    Shape:
        - probability: ``[n]``, n at least 1
        - returns: ``mean``, ``top`` (mean of the highest), ``share`` (of tiles from ``threshold`` on)

    Example:
        >>> slide_scores([0.1, 0.9, 0.5], top=2)
        {'mean': 0.5, 'top': 0.7, 'share': 0.6666666666666666}
    """
    values = np.asarray(probability, np.float64)
    highest = np.sort(values)[::-1][:top]
    return {"mean": float(values.mean()), "top": float(highest.mean()), "share": float((values >= threshold).mean())}


def heat_map(
    grid: TileGrid, numbers: Sequence[int], probability: Any, shape: tuple[int, int], downsample: float
) -> Any:
    """Probability at each pixel of a slide's overview: the mean over the tiles that cover it, NaN where none does.

    Shape:
        - probability: ``[n]``, of the tiles ``numbers``
        - returns: float32 ``[H, W]``
    """
    total, count = np.zeros(shape), np.zeros(shape, np.int32)
    for number, value in zip(numbers, probability, strict=True):
        left, upper = grid.corner(number)
        rows = slice(round(upper / downsample), max(round((upper + grid.side) / downsample), 1))
        columns = slice(round(left / downsample), max(round((left + grid.side) / downsample), 1))
        total[rows, columns] += value
        count[rows, columns] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def write_heat_map(path: str | os.PathLike, values: np.ndarray, mpp: float, name: str) -> None:
    """Write a heat map as pyramidal OME-TIFF (float32, NaN outside), whose levels are means of 2 x 2 pixels.

    Args:
        path: ends in ``.ome.tiff``.
        values: ``[H, W]``.
        mpp: micrometres per pixel of it.
        name: of the image.
    """
    import tifffile

    levels = [values]
    while max(levels[-1].shape) > 512:
        levels.append(_halved(levels[-1]))
    metadata = {"axes": "YX", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    metadata |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as file:
        for row, level in enumerate(levels):
            size = 1e4 / (mpp * values.shape[1] / level.shape[1])
            file.write(
                level,
                tile=(256, 256),
                compression="zlib",
                photometric="minisblack",
                resolution=(size, size),
                resolutionunit="CENTIMETER",
                **({"subifds": len(levels) - 1, "metadata": metadata} if row == 0 else {"subfiletype": 1}),
            )


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, of those that are known."""
    height, width = (length + length % 2 for length in values.shape)
    padded = np.full((height, width), np.nan, np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(height // 2, width // 2, 4)
    known = ~np.isnan(blocks)
    total = np.where(known, blocks, 0).sum(-1)
    return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan).astype(np.float32)


def write_features(path: str | os.PathLike, features: Sequence[Mapping[str, Any]]) -> None:
    """Write GeoJSON features, a line each: a slide has tens of thousands."""
    lines = ",\n".join(json.dumps(feature, separators=(",", ":"), allow_nan=False) for feature in features)
    write_text(path, f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n')


def tile_features(
    grid: TileGrid,
    numbers: Sequence[int],
    values: Mapping[str, Any],
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    origin: tuple[int, int] = (0, 0),
    measure: Measure = PROBABILITY,
) -> list[dict[str, Any]]:
    """Tiles as GeoJSON for QuPath: a square each, in pixels of level 0 from ``origin``, with class and measures.

    Args:
        grid: of the slide.
        numbers: of the tiles in it.
        values: the measure's columns, ``[n]`` each.
        classes: names of both.
        threshold: value of the measure from which a tile is of class 1.
        origin: see above.
        measure: what tells the class.
    """
    found = []
    for row, number in enumerate(numbers):
        left, upper = (place - first for place, first in zip(grid.corner(number), origin, strict=True))
        right, lower = left + grid.side, upper + grid.side
        ring = [[left, upper], [right, upper], [right, lower], [left, lower], [left, upper]]
        measured = {name: _digits(values[name][row]) for name in measure.columns}
        found.append(_feature("tile", [ring], int(values[measure.name][row] >= threshold), classes, measured))
    return found


def region_features(
    grid: TileGrid,
    numbers: Sequence[int],
    values: Mapping[str, Any],
    classes: Sequence[str],
    *,
    slide_mpp: float,
    threshold: float = 0.5,
    origin: tuple[int, int] = (0, 0),
    measure: Measure = PROBABILITY,
) -> list[dict[str, Any]]:
    """Connected tiles of one class as GeoJSON polygons for QuPath, with mean probability, tiles and area in mm2.

    Of contributions, which add up, the sum is told.

    A tile stands for the cell around it that reaches half-way to its neighbours. Points are in pixels of level 0 from
    ``origin``.
    """
    from scipy.ndimage import find_objects, label

    cells = np.full((len(grid.tops), len(grid.lefts)), np.nan)
    cells.ravel()[list(numbers)] = values[measure.name]
    x, y = grid.borders()
    found = []
    for called in (0, 1):
        with np.errstate(invalid="ignore"):
            of_class = (cells >= threshold) if called else (cells < threshold)
        pieces, _ = label(of_class)
        for piece, box in enumerate(find_objects(pieces), 1):  # within its box: a slide has thousands of pieces
            inside = pieces[box] == piece
            across, down = (border[side.start : side.stop + 1] for border, side in ((x, box[1]), (y, box[0])))
            rings = [
                [[float(across[c]) - origin[0], float(down[r]) - origin[1]] for r, c in ring]
                for ring in outlines(inside)
            ]
            area = float((inside * np.outer(np.diff(down), np.diff(across))).sum()) * (slide_mpp / 1000) ** 2
            value = cells[box][inside].sum() if measure.signed else cells[box][inside].mean()
            measured = {measure.name: _digits(value), "tiles": int(inside.sum())}
            found.append(_feature("annotation", rings, called, classes, measured | {"area_mm2": round(area, 6)}))
    return found


def _digits(value: Any) -> float:
    """Six that count: a contribution of one among many tiles is small."""
    return float(f"{float(value):.6g}")


def _feature(
    kind: str, rings: list, called: int, classes: Sequence[str], measured: Mapping[str, float | int]
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": kind,
            "classification": {"name": classes[called], "color": COLOURS[called]},
            "measurements": dict(measured),
        },
    }


def outlines(inside: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed borders of one connected piece of cells, the outer one first, then its holes; corners (row, column).

    Args:
        inside: bool ``[rows, columns]``, connected over cells' sides.

    Example:
        >>> outlines(np.array([[True, True]]))
        [[(0, 0), (0, 2), (1, 2), (1, 0), (0, 0)]]
    """
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    framed = np.pad(inside, 1)
    for row, column in zip(*np.nonzero(inside), strict=True):
        r, c = int(row), int(column)
        # around a cell clockwise, where no neighbour is
        for dr, dc, start, end in (
            (-1, 0, (r, c), (r, c + 1)),
            (0, 1, (r, c + 1), (r + 1, c + 1)),
            (1, 0, (r + 1, c + 1), (r + 1, c)),
            (0, -1, (r + 1, c), (r, c)),
        ):
            if not framed[r + 1 + dr, c + 1 + dc]:
                edges.setdefault(start, []).append(end)
    rings = []
    while edges:
        first = min(edges)
        ring, at, step = [first], first, (0, 0)
        while True:
            # where two cells touch at a corner, the left turn: the ring then never touches itself
            ends = edges[at]
            left = (at[0] - step[1], at[1] + step[0])
            to = left if left in ends else ends[0]
            ends.remove(to)
            if not ends:
                del edges[at]
            turned = (to[0] - at[0], to[1] - at[1])
            if turned == step:
                ring[-1] = to
            else:
                ring.append(to)
            at, step = to, turned
            if at == first:
                break
        rings.append(ring)
    # the upper left corner of all is on the outer ring
    return rings


def write_slide_table(
    folder: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    *,
    scores: Sequence[str] = PROBABILITY.scores,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Write slides.csv and, where slides of both labels have tissue, slides.json and slides_roc.png.

    Args:
        folder: where they go.
        rows: of the slides, with ``label`` ("" where it is not known), ``patient`` and the scores ("" without tissue).
        scores: of the slides.
        bootstrap: draws of the 95 % intervals, over patients.
        seed: of the draws.

    Returns:
        what slides.json holds; None where it is not written.
    """
    folder = Path(folder)
    write_csv(folder / "slides.csv", rows)
    known = [row for row in rows if row["label"] != "" and row[scores[0]] != ""]
    labels = [row["label"] for row in known]
    if len(set(labels)) < 2:
        for name in ("slides.json", "slides_roc.png"):  # of an earlier run with labels
            (folder / name).unlink(missing_ok=True)
        return None
    from shared.metrics import classification_metrics
    from shared.visualize import roc_curve_figure

    groups = [row["patient"] for row in known]
    draws: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "groups": groups}
    left_out = sum(row["label"] != "" for row in rows) - len(known)
    found: dict[str, Any] = {"n": len(known), "positives": sum(labels), "patients": len(set(groups))}
    found |= {"left_out": left_out}
    for score in scores:
        found[score] = {"AUC": classification_metrics(labels, [row[score] for row in known], **draws)["AUC"]}
    write_json(folder / "slides.json", found)
    curves = {score: (labels, [row[score] for row in known]) for score in scores}
    roc_curve_figure(curves, folder / "slides_roc.png", title="Slides: ROC curves of the scores", **draws)
    return found
