"""Pictures of a glioma: planes as tiles of one array, points by their depth, one drawing instead of two."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from shared.visualize import cam_planes, surface_picture
from shared.visualize.glioma import _GAP, _tiled, plane
from shared.visualize.style import new_figure, save


def test_planes_lie_in_their_tile_and_nothing_between_them():
    lines = [[np.full((2, 3), 10.0 * row + column) for column in range(2)] for row in range(2)]
    lines = [[*line, np.full((4, 1), 10.0 * row + 2)] for row, line in enumerate(lines)]
    whole = _tiled(lines)
    assert whole.shape == (2 * 4 + _GAP, 3 + 3 + 1 + 2 * _GAP) and whole.count() == 2 * (6 + 6 + 4)
    assert (whole[1:3, 0:3] == 0).all() and (whole[1:3, 3 + _GAP : 6 + _GAP] == 1).all()  # in the row's middle
    assert whole[[0, 3], 0:3].mask.all() and not whole[1:3, 0:3].mask.any()
    assert (whole[4 + _GAP :, -1] == 12).all() and whole[4 : 4 + _GAP].mask.all()


def test_each_sequence_is_shown_by_its_own_greys_beside_the_map(tmp_path, monkeypatch):
    shown, imshow, rng = [], Axes.imshow, np.random.default_rng(0)
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **given: shown.append(x) or imshow(self, x, **given))
    images = {"T1": rng.random((20, 22, 24)), "T2": 50 * rng.random((20, 22, 24))}
    mask, cam = np.zeros((20, 22, 24), bool), rng.random((20, 22, 24))
    mask[8:12, 9:13, 10:14] = True
    cam_planes(images, cam, mask, tmp_path / "a.png")
    greys, hot = shown[0], shown[1]
    side = 4 + 2 * 6
    box, centre = (slice(2, 18), slice(3, 19), slice(4, 20)), (8, 8, 8)
    for row, image in enumerate(images.values()):
        wanted = plane(image[box], 2, centre) / np.quantile(image, 0.995)
        top = row * (side + _GAP)
        for first in (0, side + _GAP):
            np.testing.assert_allclose(greys[top : top + side, first : first + side], wanted)
        assert hot[top : top + side, :side].mask.all()
        tile = hot[top : top + side, side + _GAP : 2 * side + _GAP]
        np.testing.assert_array_equal(tile, plane(cam[box], 2, centre))


def test_the_nearest_points_of_a_surface_are_drawn_last(tmp_path, monkeypatch):
    drawn, scatter = [], Axes.scatter

    def noted(self, *xy, **given):
        drawn.append((*xy, given["c"]))
        return scatter(self, *xy, **given)

    monkeypatch.setattr(Axes, "scatter", noted)
    points = np.array([[-20.0, 5, 1], [20, -5, 2], [0, 30, 3]])  # R, A, S
    surface_picture(points, {"attention": np.array([0.0, 1, 2])}, tmp_path / "a.png")
    behind, right = drawn
    assert behind[0].tolist() == [0, -20, 20] and behind[2].tolist() == [2, 0, 1]  # the hindmost is the nearest
    assert right[0].tolist() == [5, 30, -5] and right[2].tolist() == [0, 2, 1]  # the rightmost is
    assert behind[1].tolist() == [3, 1, 2]


def test_one_drawing_gives_the_pixels_of_two(tmp_path):
    def figure():
        made = new_figure(5, 3)
        left, right = made.subplots(1, 2)
        drawn = left.imshow(np.arange(12).reshape(3, 4))
        made.colorbar(drawn, ax=left)
        right.plot([0, 1], [0, 1e4], label="line")
        right.set_title("a title\nof two lines")
        made.legend(loc="outside lower center")
        made.suptitle("all")
        return made

    save(figure(), tmp_path / "a.png", dpi=90)
    figure().savefig(tmp_path / "b.png", dpi=90)
    one, two = (imread(tmp_path / name) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("ending", ["pdf", "jpg"])
def test_other_endings_are_other_formats(tmp_path, ending):
    save(new_figure(1, 1), tmp_path / f"a.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes()[:4] in (b"%PDF", b"\xff\xd8\xff\xe0")
