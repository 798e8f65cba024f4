"""The picture of several explanations: one row an image, one column a method, what does not fit is refused."""

import numpy as np
import pytest
from matplotlib.image import imread

from shared.errors import DataError
from shared.visualize import explanation_grid


def test_a_column_is_drawn_for_each_method_and_a_row_for_each_image(tmp_path):
    images = np.random.default_rng(0).random((2, 8, 8))
    region = np.zeros((2, 8, 8))
    region[:, 2:6, 2:6] = 1
    maps = {"one": region, "another long name": region}
    given = {"titles": ["A", "B\nslice 3"], "outline": region, "truth": np.zeros((2, 8, 8)), "header": "H"}
    explanation_grid(images, maps, tmp_path / "two.png", **given)
    explanation_grid(images, maps | {"third": 0 * region}, tmp_path / "three.png", **given)
    explanation_grid(images[:1], {"one": region[:1]}, tmp_path / "plain.png", titles=["A"])
    two, three, plain = (imread(tmp_path / f"{name}.png") for name in ("two", "three", "plain"))
    wider = [three.shape[1] - two.shape[1], two.shape[1] - plain.shape[1]]
    assert abs(wider[0] - wider[1]) <= 1 and min(wider) > 100
    assert three.shape[0] == two.shape[0] > plain.shape[0] + 100
    # an empty map leaves the image as it is, another one lays colour over it
    explanation_grid(images[:1], {"one": 0 * region[:1]}, tmp_path / "empty.png", titles=["A"])
    empty = imread(tmp_path / "empty.png")[..., :3]
    assert np.ptp(empty, axis=2).max() < 0.02 < np.ptp(plain[..., :3], axis=2).max()


@pytest.mark.parametrize(
    "wrong",
    [{"maps": {}}, {"maps": {"one": np.zeros((2, 8, 7))}}, {"titles": ["A"]}, {"truth": np.zeros((1, 8, 8))}],
)
def test_what_does_not_fit_is_refused(tmp_path, wrong):
    given = {"images": np.zeros((2, 8, 8)), "maps": {"one": np.zeros((2, 8, 8))}, "titles": ["A", "B"], **wrong}
    with pytest.raises(DataError, match=r"images \[n, H, W\]"):
        explanation_grid(given.pop("images"), given.pop("maps"), tmp_path / "x.png", **given)


def test_colour_images_lie_grey_under_signed_maps(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 16, 16))
    signed = np.zeros((2, 16, 16))
    signed[:, :8], signed[:, 8:] = -1, 1
    given = {"titles": ["P1", "P2"], "signed": ["signed"]}
    explanation_grid(images, {"signed": signed, "plain": np.abs(signed)}, tmp_path / "a.png", **given)
    explanation_grid(images, {"signed": 0 * signed, "plain": 0 * signed}, tmp_path / "b.png", **given)
    one, none = (255 * imread(tmp_path / f"{name}.png")[..., :3] for name in "ab")
    changed = one[np.abs(one - none).max(axis=-1) > 20]
    blue = (changed[:, 2] - changed[:, 0] > 40).mean()
    assert 0.15 < blue < 0.35  # half of one of the two maps
    with pytest.raises(DataError, match=r"got \(2, 3, 16, 16\), plain \(2, 16, 15\)"):
        explanation_grid(images, {"plain": signed[..., :15]}, tmp_path / "c.png", titles=["P1", "P2"])


def test_long_names_of_patients_are_inside_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("shared.visualize.explanations.save", lambda figure, *_, **__: figures.append(figure))
    titles = ["TCGA_DU_A5TS_19970726, p = 0.96\nT1 post-contrast, slice 1", "1.2.840.113619.2.55.3.604688"]
    region = np.zeros((2, 8, 8))
    explanation_grid(region + 0.5, {"one": region}, tmp_path / "long.png", titles=titles)
    (figure,) = figures
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == 2 and all(box.x0 >= 0 for box in boxes)
    assert "".join(figure.texts[1].get_text().split()) == titles[1]
