"""Data of simulated hospitals: each in its own look, made once, and never of a site that is held out."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shared.apps.fl.sites import STAINS, make_site, site_datalist, write_datalists

SCRIPT = """
import json, pathlib, sys
import numpy as np
from PIL import Image
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(parents=True)
parts = {}
for part in ("training", "testing"):
    Image.fromarray(np.full((8, 8, 3), (200, 120, 160), np.uint8)).save(folder / f"{part}.png")
    parts[part] = [{"image": f"{part}.png", "patient": "S1", "label": 0}]
(folder / "datalist.json").write_text(json.dumps({"classes": ["a", "b"], **parts}))
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    for name in ("north", "south", "unseen"):
        make_site(tmp_path / "script.py", tmp_path / name, name, [])
    return tmp_path


def test_a_site_has_its_own_look_and_is_made_once(root, monkeypatch):
    from skimage.color import rgb_from_hed

    plain = np.array([200, 120, 160]) / 255
    for name in ("north", "south"):
        stains, gain = STAINS[name]
        density = np.log(plain) @ np.linalg.inv(rgb_from_hed) * stains @ rgb_from_hed
        expected = (np.exp(density) * gain).clip(0, 1) * 255
        with Image.open(root / name / "training.png") as picture:
            np.testing.assert_allclose(np.asarray(picture)[3, 3], expected, atol=1)
    monkeypatch.setattr(subprocess, "run", lambda *args, **settings: sys.exit("made again"))
    make_site(root / "script.py", root / "north", "north", [])


def test_who_trains_and_who_is_tested_are_told_by_their_sites(root):
    content = site_datalist(root, ["north", "south"], "unseen")
    assert [case["image"] for case in content["training"]] == ["north/training.png", "south/training.png"]
    assert [case["patient"] for case in content["training"]] == ["north-S1", "south-S1"]
    assert [case["patient"] for case in content["testing"]] == ["unseen-S1"] and content["unlabelled"] == []
    paths = write_datalists(root, ["north", "south"], "unseen")
    alone = json.loads((root / "north.json").read_text())
    assert set(paths) == {"north", "south", "pooled"} and [c["patient"] for c in alone["training"]] == ["north-S1"]
    assert json.loads((root / "pooled.json").read_text()) == content
