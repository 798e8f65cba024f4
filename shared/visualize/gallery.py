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
    title: str = "Biomarkers and their nearest images",
) -> None:
    """Write a picture with one row per biomarker: its statistics and the images nearest to its centre.

    Args:
        images: all images that the table was made from, in the same order.
        table: rows of ``shared.biomarkers.biomarker_table``.
        path: the picture.
        positive_name: name of the positive class.
        labels: label of each image (1 = positive); colours the frames.
        title: over the picture.

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
    figure.suptitle(f"{title}\n", fontsize=12, fontweight="bold")
    key = f"above each image: patient, cosine similarity{frame}"
    figure.text(0.5, 1 - 0.3 / figure.get_figheight(), key, ha="center", va="top", fontsize=8.5)
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
