"""What each biomarker looks like: its nearest real images in a row, with its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import DataError
from shared.metrics.classification import to_numpy
from shared.visualize.style import NEGATIVE, POSITIVE, new_figure, picture, save


def biomarker_gallery(
    images: Any,
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    positive_name: str = "positive",
    labels: Any = None,
) -> None:
    """Write a picture with one row per biomarker: its statistics and the images nearest to its centre.

    Args:
        images: all images that the table was made from, in the same order.
        table: rows of ``shared.biomarkers.biomarker_table``.
        path: the picture.
        positive_name: name of the positive class.
        labels: label of each image (1 = positive); colours the frames.

    Shape:
        - images: ``[n, H, W]``, labels: ``[n]``

    Raises:
        DataError: the table is empty, or names an image that is not there.
    """
    images = to_numpy(images)
    columns = max((len(row["nearest"]) for row in table), default=0)
    last = max((i for row in table for i in row["nearest"]), default=-1)
    if columns == 0 or images.ndim != 3 or last >= len(images):
        raise DataError(
            "A gallery needs a table that names images and all of these as [n, H, W]; got "
            f"{len(table)} rows that go up to image {last}, and images {images.shape}."
        )
    figure = new_figure(2.3 + 1.15 * columns, 0.8 + 1.45 * len(table))
    axes = figure.subplots(len(table), columns + 1, squeeze=False, width_ratios=[2.0] + [1.0] * columns)
    for row, line in zip(table, axes, strict=True):
        line[0].set_axis_off()
        line[0].text(0, 0.5, _description(row, positive_name), va="center", fontsize=8.5, linespacing=1.35)
        for cell in line[1:]:
            cell.set_axis_off()
        near = zip(row["nearest"], row["nearest_similarity"], row["nearest_patients"], line[1:], strict=False)
        for index, similarity, patient, cell in near:
            cell.set_axis_on()
            picture(cell, images[index])
            cell.set_title(f"{_short(patient)}\n{similarity:.2f}", fontsize=7, pad=2)
            if labels is not None:
                cell.spines[:].set(color=POSITIVE if to_numpy(labels)[index] == 1 else NEGATIVE, linewidth=2)
    frame = f"; frame: orange = {positive_name}, blue = not" if labels is not None else ""
    figure.suptitle("Biomarkers and their nearest images\n", fontsize=12, fontweight="bold")
    key = f"above each image: patient, cosine similarity{frame}"
    figure.text(0.5, 1 - 0.3 / figure.get_figheight(), key, ha="center", va="top", fontsize=8.5)
    save(figure, path)


def place_gallery(
    images: Any,
    places: Sequence[Sequence[tuple[int, int, int, int, float]]],
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    grid: int,
    field: int,
    patients: Sequence[str],
    labels: Any = None,
    class_names: Sequence[str] = ("negative", "positive"),
) -> None:
    """Write a picture with one row per biomarker: its figures and its most typical places, what each sees outlined.

    Args:
        images: of all cases, hung as radiologists do (:func:`shared.transforms.roi_slices.radiological`).
        places: of each biomarker (case, image, row, column, similarity), row and column on the network's grid.
        table: of each biomarker ``name``, ``patients_share``, ``area_mm2_negative``, ``area_mm2_positive``, ``effect``,
            ``effect_low``, ``effect_high``.
        path: the picture.
        grid: places along a side.
        field: side of what a place sees, in pixels.
        patients: name of each case.
        labels: label of each case (1 = positive); colours the frames.
        class_names: names of the classes.

    Shape:
        - images: ``[n, m, H, W]``, labels: ``[n]``
    """
    from matplotlib.patches import Rectangle

    images, side = to_numpy(images), images.shape[-1]
    columns = max((len(row) for row in places), default=0)
    if columns == 0:
        raise DataError("A gallery of places needs at least one place of one biomarker.")
    figure = new_figure(2.6 + 1.15 * columns, 0.8 + 1.35 * len(table))
    axes = figure.subplots(len(table), columns + 1, squeeze=False, width_ratios=[2.2] + [1.0] * columns)
    for row, found, line in zip(table, places, axes, strict=True):
        for cell in line:
            cell.set_axis_off()
        areas = [row["area_mm2_negative"], row["area_mm2_positive"]]
        shown = " / ".join("-" if area is None else f"{area:.0f}" for area in areas)
        text = (
            f"{row['name']}\n{row['patients_share']:.0%} of patients\narea {shown} mm² a slice\n"
            f"effect {row['effect']:+.2f} [{row['effect_low']:+.2f}, {row['effect_high']:+.2f}]"
        )
        line[0].text(0, 0.5, text, va="center", fontsize=8, linespacing=1.3)
        for (case, image, r, c, similarity), cell in zip(found, line[1:], strict=False):
            cell.set_axis_on()
            picture(cell, images[case, image])
            cell.set_title(f"{_short(patients[case])}\n{similarity:.2f}", fontsize=7, pad=2)
            # the grid's rows run along the stored first axis, from right to left of the picture
            x, y = side - (r + 0.5) * side / grid, side - (c + 0.5) * side / grid
            box = Rectangle((x - field / 2 - 0.5, y - field / 2 - 0.5), field, field, fill=False, color="gold")
            cell.add_patch(box)
            if labels is not None:
                cell.spines[:].set(color=POSITIVE if int(to_numpy(labels)[case]) == 1 else NEGATIVE, linewidth=2)
    figure.suptitle("Biomarkers of places and where they are most typical\n", fontsize=12, fontweight="bold")
    key = (
        f"area: {class_names[0]} / {class_names[1]}; effect: log odds for one standard deviation more; above each "
        f"image: patient, cosine similarity; frame: orange = {class_names[1]}, blue = not; square: what the place sees"
    )
    figure.text(0.5, 1 - 0.3 / figure.get_figheight(), key, ha="center", va="top", fontsize=8)
    save(figure, path)


def _description(row: Mapping[str, Any], positive_name: str) -> str:
    head = f"Biomarker {row['biomarker']}"
    if not row["images"]:
        return f"{head}\nno image"
    return (
        f"{head}\n{row['images']} images, {row['patients']} patients\n"
        f"{row['positive_share_patients']:.0%} of patients {positive_name}\n"
        f"{row['purity']:.0%} {row['modality']}\nmean similarity {row['similarity']:.2f}"
    )


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]
