"""Brains are found in stripped images; heads, boxes of slices and empty images are refused."""

from pathlib import Path

import numpy as np
import pytest

from shared.apps.preparation.brain_mask import brain_of
from shared.apps.preparation.registration import dice
from shared.data.volumes import Volume
from shared.errors import DataError
from tests.support.tiny_heads import brain, native_affine, stripped, with_skull

REAL = Path(__file__).resolve().parents[5] / "shared" / "data" / "tcga_lgg" / "kaggle_3m"


def test_the_brain_of_a_stripped_image_is_found_holes_and_all():
    array = stripped()
    array[22:24, 27:29, 22:24] = 0
    found = brain_of(Volume(array, native_affine()))
    assert dice(found, brain()) > 0.99 and found[23, 28, 23]


def test_a_background_other_than_zero_and_a_tight_box_are_taken():
    array = np.where(brain(), stripped(), -7.0)
    assert dice(brain_of(Volume(array, native_affine())), brain()) > 0.99
    box = tuple(slice(np.flatnonzero(brain().any(tuple({0, 1, 2} - {a})))[0], None) for a in range(3))
    cut = tuple(slice(s.start, np.flatnonzero(brain().any(tuple({0, 1, 2} - {a})))[-1] + 1) for a, s in enumerate(box))
    assert dice(brain_of(Volume(stripped()[cut], native_affine())), brain()[cut]) > 0.98


def test_a_head_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"P1 t1: is not skull-stripped: its background .* --strip-command"):
        brain_of(Volume(with_skull(), native_affine()), name="P1 t1")
    with pytest.raises(DataError, match=r"is not skull-stripped: what it shows has 2\.\d+ litres"):
        brain_of(Volume(with_skull(noise=False), native_affine()))


def test_what_is_no_whole_brain_is_refused():
    with pytest.raises(DataError, match="all voxels have the same value"):
        brain_of(Volume(np.zeros((46, 56, 46)), native_affine()))
    with pytest.raises(DataError, match="a whole brain is needed"):
        brain_of(Volume(stripped()[:, :, 20:23], native_affine()))
    small = native_affine()
    small[:3, :3] *= 0.55
    with pytest.raises(DataError, match="too little for a brain"):
        brain_of(Volume(stripped(), small))


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="the TCGA-LGG patients are not beside the repository")
def test_the_heads_of_tcga_lgg_are_refused():
    from tifffile import imread

    for folder in sorted(REAL.iterdir()):
        files = [path for path in folder.glob("*.tif") if not path.stem.endswith("_mask")]
        if len(files) < 10:
            continue
        files.sort(key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        stack = np.stack([imread(path) for path in files], -1).transpose(1, 0, 3, 2).astype(np.float32)
        for channel in range(3):
            # a whole head of 150 mm: the slices' true thickness is unknown
            affine = np.diag([1, 1, 150 / len(files), 1.0])
            with pytest.raises(DataError, match="is not skull-stripped"):
                brain_of(Volume(stack[..., channel], affine))
        return
    pytest.fail("no whole stack is there")
