"""The stage of whole slides with a network that sees colours: what is planted is found where it was planted."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from shared.bundle.record import weights_digest
from shared.bundle.settings import save_settings
from shared.data.slides.grid import tile_grid
from shared.data.slides.reading import open_slide
from shared.engines import DihedralInferer, PreparePatches, SlideStage
from shared.errors import DataError
from tests.support.bundle_runs import rows
from tests.support.tiny_slides import painted, write_png, write_tiff

SIZE = 64
KINDS = [[0, 0, 1, None, None, 0], [1, 0, 0, 1, 1, 0], [None, None, 1, 1, 0, 0]]  # no symmetry, none square


class Greenness(nn.Module):
    """Class 1 is what is greener than it is red."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[30.0, -30, 0], [-30, 30, 0]]))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def planted_slide():
    """Phantom patches on glass, those of class 1 with red a little darker; pixels and their places."""
    pixels, where = painted(KINDS, size=SIZE, height=320, width=576, corner=(128, 64))
    for x, y, kind in where:
        part = pixels[y : y + SIZE, x : x + SIZE].astype(int)
        part[..., 0] -= 40 * kind
        pixels[y : y + SIZE, x : x + SIZE] = np.clip(part, 0, 255)
    return pixels, where


@pytest.fixture
def stage(tmp_path):
    """A stage on a folder, with a model of patches of 64 pixels of 2 micrometres."""
    network, models = Greenness(), tmp_path / "models"
    models.mkdir()
    torch.save(network.state_dict(), models / "model.pt")
    save_settings(models, network={}, mpp=2.0, patch_size=SIZE, weights=weights_digest(network.state_dict()))

    def make(slides, **given):
        given = {"prepare_batch": PreparePatches(), "inferer": DihedralInferer(1), "overview_mpp": 4.0} | given
        given |= {"classes": ["straight", "serrated"], "tissue": {"pen": 60}}
        return SlideStage(slides, tmp_path / "out", network, models, **given)

    return make


def test_what_is_planted_is_found_where_it_was_planted(stage, tmp_path):
    import tifffile

    pixels, where = planted_slide()
    write_png(tmp_path / "slide.png", pixels, 2.0)
    stage(tmp_path / "slide.png").run()
    table = rows(tmp_path / "out/slides/slide/tiles.csv")
    corner = {(x, y): kind for x, y, kind in where}
    found = {(int(row["x"]), int(row["y"])): float(row["probability"]) for row in table}
    assert set(found) == set(corner)  # every tile of tissue, none of glass
    assert roc_auc_score([corner[place] for place in found], list(found.values())) == 1
    heat = tifffile.imread(tmp_path / "out/slides/slide/heatmap.ome.tiff")
    truth = np.full((320, 576), -1)
    for x, y, kind in where:
        truth[y : y + SIZE, x : x + SIZE] = kind
    truth = truth[::2, ::2]
    assert heat.shape == truth.shape and np.array_equal(np.isnan(heat), truth < 0)
    assert roc_auc_score(truth[truth >= 0], heat[truth >= 0]) >= 0.95


def test_overlap_finds_it_too_between_the_tiles(stage, tmp_path):
    import tifffile

    pixels, where = planted_slide()
    write_png(tmp_path / "slide.png", pixels, 2.0)
    stage(tmp_path / "slide.png", overlap=0.75, gallery=0).run()
    heat = tifffile.imread(tmp_path / "out/slides/slide/heatmap.ome.tiff")
    inner = [(kind, heat[(y + 16) // 2 : (y + 48) // 2, (x + 16) // 2 : (x + 48) // 2]) for x, y, kind in where]
    labels = np.concatenate([np.full(part.size, kind) for kind, part in inner])
    assert roc_auc_score(labels, np.concatenate([part.ravel() for _, part in inner])) >= 0.95
    assert not (tmp_path / "out/slides/slide/gallery.png").exists()


def test_blocks_are_read_and_not_the_slide(tmp_path):
    pytest.importorskip("openslide")
    # what is read at once, of a slide whose coarser levels are missing
    path = write_tiff(tmp_path / "a.tif", np.full((4096, 5120, 3), 243, np.uint8), 0.5, levels=())
    with open_slide(path) as reader:
        largest = []
        read = reader._read
        reader._read = lambda level, x, y, w, h: largest.append(w * h) or read(level, x, y, w, h)
        assert reader.overview(16.0).shape == (256, 320, 3)
        assert max(largest) <= 2100**2 and sum(largest) >= 4096 * 5120
        grid = tile_grid(reader, size=SIZE, mpp=2.0, slide_mpp=0.5)
        largest.clear()
        reader.read_scaled(0, grid.lefts[3], grid.tops[3], grid.side, SIZE)
        assert max(largest) < 300**2


def test_tiles_with_a_pens_mark_are_no_tissue(stage, tmp_path):
    pixels, where = planted_slide()
    x, y, _ = where[0]
    pixels[y : y + 20, x : x + SIZE] = (40, 150, 70)
    write_png(tmp_path / "slide.png", pixels, 2.0)
    stage(tmp_path / "slide.png", gallery=0).run()
    found = {(int(row["x"]), int(row["y"])) for row in rows(tmp_path / "out/slides/slide/tiles.csv")}
    assert found == {place[:2] for place in where[1:]}
    stage(tmp_path / "slide.png", gallery=0, max_ink=1.0).run()
    assert len(rows(tmp_path / "out/slides/slide/tiles.csv")) == len(where)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"overlap": 0.95}, "overlap must lie in"),
        ({"min_tissue": 2}, "min_tissue, max_ink and threshold in"),
        ({"top": 0}, "top and batch_size must be at least 1"),
        ({"overview_mpp": 0}, "overview_mpp above 0"),
    ],
)
def test_settings_out_of_range_are_refused(stage, given, words):
    with pytest.raises(DataError, match=words):
        stage("slides", **given)
