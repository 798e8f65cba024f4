"""The benchmark of the augmentation: it starts fast, runs, and both sides follow the same policy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import get_track_meta, set_track_meta

from tests.support.script_modules import benchmark

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "augmentation.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; threads, tracking and the module path are as they were afterwards."""
    tracked = get_track_meta()
    with benchmark("augmentation", monkeypatch) as module:
        yield module
    set_track_meta(tracked)


def test_help_needs_no_torch(tmp_path):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'monai', 'numpy'))); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--sizes" in ended.stdout and "MONAI" in ended.stdout


def test_it_runs_and_judges_nothing_at_tiny_sizes(script, capsys):
    assert script.main(["--tiny"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"views/s [\d.e+]+", text)) == 3 and "GEMM" in text
    table = text[text.index("quantity ") :]
    assert "16 px" in table and ">= 2.5" in table and "met" not in table.split() and "MISSED" not in table


def test_both_sides_follow_the_same_policy(script):
    from shared.transforms import ViewAugmentation

    set_track_meta(False)
    torch.set_num_threads(1)
    images = script.patches(8, 48).repeat(50, 1, 1, 1)
    policy = script.monai_policy(32, 48)
    theirs = torch.stack([policy({"image": image})["image"] for image in images])
    ours = ViewAugmentation(32, **script.POLICY)(images)
    assert theirs.shape == ours.shape
    # MONAI's blur sees black beyond the border
    theirs, ours = theirs[..., 7:-7, 7:-7], ours[..., 7:-7, 7:-7]
    assert ours.mean() == pytest.approx(float(theirs.mean()), abs=0.02)
    # brightness from view to view, contrast within a view, colourfulness
    for spread in (lambda x: x.mean((1, 2, 3)).std(), lambda x: x.std((2, 3)).mean(), lambda x: x.std(1).mean()):
        assert spread(ours) == pytest.approx(float(spread(theirs)), rel=0.12)


def test_the_jitter_beside_monai_is_ours_one_after_the_other(script, monkeypatch):
    import numpy as np

    from tests.references import views as naive

    class Draws:
        """The generator's draws, in the order in which they are asked for."""

        values = iter([0.9, 0.0])

        def random(self):
            return next(self.values)

        def uniform(self, low, high):
            return high / 2

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Draws())
    x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = x.double().permute(1, 2, 0).numpy()
    expected = naive.hue(naive.saturation(naive.contrast(naive.brightness(image, 1.2), 1.2), 1.2), 0.05)
    np.testing.assert_allclose(script.colour_jitter()(x).permute(1, 2, 0), expected, atol=1e-5)
