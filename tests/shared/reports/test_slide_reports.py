"""Scores, heat map and shapes of slides, beside naive loops."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from scipy.ndimage import label

from shared.data.slides.grid import TileGrid
from shared.reports.slides import (
    CONTRIBUTION,
    heat_map,
    outlines,
    region_features,
    slide_scores,
    tile_features,
    write_features,
    write_heat_map,
    write_slide_table,
)

CLASSES = ["HP", "SSA"]
GRID = TileGrid(16, 40.0, 0, 1.0, (0, 20, 40, 60, 80), (0, 20, 40, 60))


def area(ring):
    """Signed area (shoelace) of a closed ring of (row, column)."""
    return sum(a[1] * b[0] - b[1] * a[0] for a, b in pairwise(ring)) / 2


def test_outlines_enclose_each_piece_and_its_holes():
    random = np.random.default_rng(0)
    for _ in range(60):
        cells = random.random((7, 9)) < random.uniform(0.3, 0.9)
        pieces, count = label(cells)
        for piece in range(1, count + 1):
            inside = pieces == piece
            rings = outlines(inside)
            assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
            areas = [area(ring) for ring in rings]
            assert areas[0] > 0 and all(value < 0 for value in areas[1:])
            assert sum(areas) == inside.sum()
            for ring in rings:  # no corner twice, none on a straight line
                assert len(set(ring[:-1])) == len(ring) - 1
                steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ring)]
                turns = [(a[0] == 0) != (b[0] == 0) for a, b in pairwise(steps)]
                assert all(turns)
            # a hole is what the outside does not reach over cells' sides
            assert len(rings) == label(~np.pad(inside, 1))[1]


def test_a_ring_has_a_hole():
    inside = np.ones((3, 3), bool)
    inside[1, 1] = False
    outer, hole = outlines(inside)
    assert set(outer) == {(0, 0), (0, 3), (3, 3), (3, 0)} and set(hole) == {(1, 1), (1, 2), (2, 2), (2, 1)}
    corner = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)  # the hole touches the outside at a corner
    rings = outlines(corner)
    assert len(rings) == 2 and [area(ring) for ring in rings] == [8, -1]


def test_scores_are_means():
    values = np.random.default_rng(0).random(50)
    found = slide_scores(values, top=5, threshold=0.7)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["top"] == pytest.approx(sorted(values)[-5:] @ np.ones(5) / 5)
    assert found["share"] == pytest.approx(sum(v >= 0.7 for v in values) / 50)
    assert slide_scores([0.25], top=10) == {"mean": 0.25, "top": 0.25, "share": 0.0}


def test_a_heat_map_is_the_mean_of_the_tiles_above_a_pixel():
    random = np.random.default_rng(0)
    numbers = sorted(random.choice(len(GRID), 12, replace=False).tolist())
    values = random.random(12)
    found = heat_map(GRID, numbers, values, (50, 60), 2.0)
    for row in range(50):
        for column in range(60):
            y, x = (row + 0.5) * 2, (column + 0.5) * 2
            over = [
                v
                for n, v in zip(numbers, values, strict=True)
                if 0 <= x - GRID.corner(n)[0] < 40 and 0 <= y - GRID.corner(n)[1] < 40
            ]
            expected = np.mean(over) if over else np.nan
            assert found[row, column] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_pyramid_halves_what_is_known_and_tells_the_size_of_a_pixel(tmp_path):
    values = np.full((700, 1100), np.nan, np.float32)
    values[:300, :401] = np.random.default_rng(0).random((300, 401))
    write_heat_map(tmp_path / "a.ome.tiff", values, 8.0, "slide")
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(700, 1100), (350, 550), (175, 275)]
        assert np.array_equal(levels[0].asarray(), values, equal_nan=True)
        for level in levels:  # pixels of a centimetre
            size = level.keyframe.tags["XResolution"].value
            assert size[0] / size[1] == pytest.approx(1e4 / (8.0 * 1100 / level.shape[1]), rel=1e-6)
        second = levels[1].asarray()
        assert second[10, 20] == pytest.approx(values[20:22, 40:42].mean(), abs=1e-6)
        assert second[0, 200] == pytest.approx(values[0:2, 400].mean(), abs=1e-6) and np.isnan(second[200, 300])
        assert 'PhysicalSizeX="8.0"' in file.ome_metadata and 'Type="float"' in file.ome_metadata


def test_shapes_are_tiles_and_their_pieces(tmp_path):
    numbers, values = [0, 1, 2, 7, 12, 19], [0.9, 0.8, 0.2, 0.3, 0.6, 0.95]
    tiles = tile_features(GRID, numbers, {"probability": values}, CLASSES)
    assert tiles[3]["geometry"]["coordinates"][0][0] == [40, 20]  # row 1, column 2
    assert [each["properties"]["classification"]["name"] for each in tiles] == ["SSA"] * 2 + ["HP"] * 2 + ["SSA"] * 2
    regions = region_features(GRID, numbers, {"probability": values}, CLASSES, slide_mpp=0.5)
    told = [
        (each["properties"]["classification"]["name"], each["properties"]["measurements"]["tiles"]) for each in regions
    ]
    assert sorted(told) == [("HP", 2), ("SSA", 1), ("SSA", 1), ("SSA", 2)]
    first = next(each for each in regions if each["properties"]["measurements"]["tiles"] == 2)
    assert first["properties"]["measurements"]["probability"] == pytest.approx(0.25)
    # the cells of columns 2, rows 0 and 1: half-way to the neighbours, at the border the tile's edge
    assert sorted(map(tuple, first["geometry"]["coordinates"][0][:-1])) == [(50, 0), (50, 50), (70, 0), (70, 50)]
    assert first["properties"]["measurements"]["area_mm2"] == pytest.approx(20 * 50 * 0.25e-6, abs=1e-6)
    moved = {"origin": (30, 7)}  # QuPath counts from where the scanned part begins
    assert tile_features(GRID, numbers, {"probability": values}, CLASSES, **moved)[3]["geometry"]["coordinates"][0][
        0
    ] == [10, 13]
    for each, other in zip(
        regions, region_features(GRID, numbers, {"probability": values}, CLASSES, slide_mpp=0.5, **moved), strict=True
    ):
        ring, away = (np.array(one["geometry"]["coordinates"][0]) for one in (each, other))
        assert np.array_equal(ring - away, np.tile([30, 7], (len(ring), 1)))
        assert each["properties"] == other["properties"]
    write_features(tmp_path / "a.geojson", regions)
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": regions}
    write_features(tmp_path / "b.geojson", [])
    assert json.loads((tmp_path / "b.geojson").read_text())["features"] == []


def test_contributions_of_a_piece_are_added_and_probabilities_averaged():
    values = {"contribution": [0.5, 0.25, -1.0], "attention": [0.2, 0.3, 0.5]}
    regions = region_features(GRID, [0, 1, 7], values, CLASSES, slide_mpp=0.5, threshold=0.0, measure=CONTRIBUTION)
    told = {
        each["properties"]["classification"]["name"]: each["properties"]["measurements"]["contribution"]
        for each in regions
    }
    assert told == {"SSA": pytest.approx(0.75), "HP": pytest.approx(-1.0)}


def test_the_auc_of_slides_is_that_of_the_slides_with_label_and_tissue(tmp_path):
    rows = []
    for number in range(8):
        known = {"label": number % 2 if number < 7 else "", "patient": f"P{number // 2}"}
        scores = {"mean": 0.1 * number + 0.1 * (number % 2), "top": 1 - 0.1 * number, "share": 0.5}
        rows.append({"slide": f"{number}.svs", **known, **scores})
    rows[6] |= dict.fromkeys(("mean", "top", "share"), "")
    found = write_slide_table(tmp_path, rows, bootstrap=50)
    assert (found["n"], found["positives"], found["patients"], found["left_out"]) == (6, 3, 3, 1)
    assert found["mean"]["AUC"]["value"] == pytest.approx(7 / 9) and found["share"]["AUC"]["value"] == 0.5
    assert json.loads((tmp_path / "slides.json").read_text()) == found and (tmp_path / "slides_roc.png").is_file()
    assert write_slide_table(tmp_path / "one", rows[:1]) is None and (tmp_path / "one/slides.csv").is_file()
    # what an earlier run with labels left does not stay
    assert write_slide_table(tmp_path, rows[:1]) is None
    assert not (tmp_path / "slides.json").exists() and not (tmp_path / "slides_roc.png").exists()
