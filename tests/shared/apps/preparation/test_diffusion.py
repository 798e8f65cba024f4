"""FA of tensors that are known, and diffusion images that do not fit."""

import importlib.util
import sys

import nibabel as nib
import numpy as np
import pytest

from shared.apps.preparation.diffusion import fractional_anisotropy
from shared.errors import DataError

needs_dipy = pytest.mark.skipif(not importlib.util.find_spec("dipy"), reason="needs dipy: pip install dipy")
TENSORS = {4: (1.7e-3, 0.3e-3, 0.3e-3), 8: (0.9e-3, 0.9e-3, 0.9e-3), 12: (1.2e-3, 0.8e-3, 0.2e-3)}  # by first voxel


def write(folder, *, directions=12, low=2, bvals=None, volumes=None):
    """A head of three slabs with a tensor each, stored from right to left; FSL's text files."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(directions, 3))
    g = np.concatenate([np.zeros((low, 3)), g / np.linalg.norm(g, axis=1, keepdims=True)])
    b = np.array([0.0] * low + [1000.0] * directions)
    data = np.zeros((20, 10, 10, len(b)), np.float32)
    for start, eigen in TENSORS.items():
        data[start : start + 4, 2:8, 2:8] = 800 * np.exp(-b * ((g**2) @ eigen))
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = (38, 0, 0)
    paths = [folder / f"P1_dwi{ending}" for ending in (".nii.gz", ".bval", ".bvec")]
    nib.save(nib.Nifti1Image(data[..., :volumes], affine), paths[0])
    np.savetxt(paths[1], (b if bvals is None else np.asarray(bvals))[None], fmt="%g")
    np.savetxt(paths[2], g.T)
    return paths


def expected(eigen):
    """FA in closed form."""
    eigen = np.asarray(eigen)
    return np.sqrt(1.5 * ((eigen - eigen.mean()) ** 2).sum() / (eigen**2).sum())


@needs_dipy
def test_the_fa_of_known_tensors_is_found_and_comes_upright(tmp_path):
    found, base = fractional_anisotropy(*write(tmp_path))
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S") and found.array.shape == base.array.shape == (20, 10, 10)
    for start, eigen in TENSORS.items():
        # the image is stored from right to left: its first slab comes last
        slab = found.array[::-1][start : start + 4, 2:8, 2:8]
        assert np.allclose(slab, expected(eigen), atol=2e-3)
    assert not found.array[:, 0].any() and base.array.max() == pytest.approx(800)


@needs_dipy
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"bvals": [0, 1000]}, r"P1_dwi.bval and .*P1_dwi.bvec cannot be read \(b-values and b-vectors .* as FSL does"),
        ({"volumes": 13}, r"P1_dwi.nii.gz: has 13 volumes, its files 14 b-values and 14 directions"),
        ({"low": 0}, r"0 volumes without diffusion weighting and 12 directions; a tensor needs one and six"),
        ({"directions": 5}, r"2 volumes without diffusion weighting and 5 directions"),
    ],
)
def test_images_that_hold_no_tensor_are_refused(tmp_path, how, message):
    with pytest.raises(DataError, match=message):
        fractional_anisotropy(*write(tmp_path, **how))


def test_without_dipy_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dipy.core.gradients", None)
    with pytest.raises(DataError, match="needs dipy: pip install dipy, or leave the diffusion images out with --no-fa"):
        fractional_anisotropy(*write(tmp_path))
