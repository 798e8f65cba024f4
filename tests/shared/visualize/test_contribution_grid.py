"""The picture of a patient's contributions: long names stay inside it and apart."""

import itertools

import numpy as np

from shared.visualize import contribution_grid


def test_long_names_are_inside_the_picture_and_apart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("shared.visualize.overlay.save", lambda figure, *_, **__: figures.append(figure))
    titles = [f"T1 post-contrast, slice {k}: +0.40" for k in range(3)]
    speaks = [{"name": "T1 post-contrast 12", "log_odds": 0.3 * sign, "area_mm2": 1836.0} for sign in (1, -1)]
    given = {"titles": titles, "speaks": speaks, "positive_name": "microvascular invasion"}
    contribution_grid(np.ones((3, 8, 8)), np.ones((3, 4, 4)), tmp_path / "one.png", **given)
    (figure,) = figures
    figure.canvas.draw()
    axes = [axes for part in figure.subfigs for axes in part.axes]
    texts = [text for one in axes for text in (one.title, one.xaxis.label, *one.get_yticklabels())]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes) and len(boxes) > 5
    over = [one.title.get_window_extent() for one in axes[:3]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(over))
