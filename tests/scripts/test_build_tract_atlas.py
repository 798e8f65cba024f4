"""The atlas command from files to .npz, its figures and its messages."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data import TractAtlas
from shared.data.brain.mni import MNI_SHAPE
from tests.support.script_modules import load_script
from tests.support.tiny_brain import NAMES, PAIRS, centre, tiny_parcellation, tiny_streamlines

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_tract_atlas.py"
ATLAS = Path(__file__).resolve().parents[3] / "shared" / "data" / "atlas"


@pytest.fixture(scope="module")
def script():
    module = load_script("build_tract_atlas")
    return module


@pytest.fixture
def files(tmp_path):
    """A tractogram, a parcellation and its names."""
    labels, affine = tiny_parcellation()
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "labels.nii.gz")
    lines = [line.astype(np.float32) for line in tiny_streamlines()]
    nib.streamlines.save(nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4)), str(tmp_path / "lines.tck"))
    names = zip((2001, 2002, 2101, 2102, 4101), NAMES, strict=True)
    (tmp_path / "labels.nii.txt").write_text("\n".join(f"{label} {name.replace(' ', '_')} x" for label, name in names))
    return tmp_path


def test_from_files_to_an_atlas_with_names_and_manifest(script, files, capsys):
    command = [str(files / "lines.tck"), str(files / "labels.nii.gz"), "--output", str(files / "out" / "atlas.npz")]
    assert script.main(command) == 0
    atlas = TractAtlas.load(files / "out" / "atlas.npz")
    assert [tuple(pair) for pair in atlas.pairs.tolist()] == PAIRS and atlas.shape == MNI_SHAPE
    assert atlas.names == [name.replace(" ", "_") for name in NAMES]
    text = capsys.readouterr().out
    assert "5 tracts of 60 streamlines (60 streamlines read)" in text and "regions: 5, with a tract: 5" in text
    manifest = json.loads((files / "out" / "atlas.npz.json").read_text())
    assert manifest["atlas"]["tracts"] == 5 and set(manifest["sources"]) == {"lines.tck", "labels.nii.gz"}
    before = (files / "out" / "atlas.npz").read_bytes()
    assert script.main(command) == 0 and (files / "out" / "atlas.npz").read_bytes() == before


def test_the_options_reach_the_atlas(script, files, capsys):
    def build(*options):
        command = [str(files / "lines.tck"), str(files / "labels.nii.gz"), "--output", str(files / "a.npz"), *options]
        assert script.main(command) == 0
        return TractAtlas.load(files / "a.npz")

    assert build("--labels", "3").pairs.tolist() == [[0, 1], [0, 2]]
    assert len(build("--min-streamlines", "12").pairs) == 5
    assert "under 20: 5 tracts" in capsys.readouterr().out
    # straight on from region to region, so that passing joins what no line ends in
    line = np.concatenate([np.linspace(centre(a), centre(b), 30) for a, b in ((0, 1), (1, 3))]).astype(np.float32)
    tractogram = nib.streamlines.Tractogram([line] * 3, affine_to_rasmm=np.eye(4))
    nib.streamlines.save(tractogram, str(files / "lines.tck"))
    assert build().pairs.tolist() == [[0, 3]] and build("--passing").pairs.tolist() == [[0, 1], [0, 3], [1, 3]]
    assert "with a tract: 2 (without: front_right, back_left, deep)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tck", "labels.nii.gz"], "none.tck: no such tractogram"),
        (["lines.tck", "none.nii.gz"], "none.nii.gz: no such parcellation"),
        (["lines.tck", "lines.tck"], "lines.tck: cannot be read as NIfTI"),
        (["lines.tck", "labels.nii.gz", "--labels", "6"], "has 5 labels, but 6 are asked for"),
        (["lines.tck", "labels.nii.gz", "--min-streamlines", "13"], "no two regions are joined by 13 streamlines"),
        (["lines.tck", "labels.nii.gz", "--names", "none.txt"], "none.txt: no such file of region names"),
        (["lines.tck", "labels.nii.gz", "--output", "atlas.json"], "an atlas is written as .npz"),
    ],
)
def test_what_is_wrong_is_one_line(script, files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    assert script.main(["--output", "atlas.npz", *arguments]) == 2
    assert message in capsys.readouterr().err and not (files / "atlas.npz").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_names_are_read_in_any_usual_encoding(script, files, encoding):
    text = "2001 Präzentral_L\n2002 Präzentral_R\n"
    content = ("\ufeff" + text if encoding == "utf-16-be" else text).encode(encoding)
    (files / "names.txt").write_bytes(content)
    assert script.read_names(files / "names.txt", files / "labels.nii.gz") == {
        2001: "Präzentral_L",
        2002: "Präzentral_R",
    }


def test_a_parcellation_in_four_dimensions_has_one_label_a_voxel_or_is_refused(script, files, capsys):
    labels, affine = tiny_parcellation()
    command = [str(files / "lines.tck"), str(files / "labels.nii.gz"), "--output"]
    assert script.main([*command, str(files / "flat.npz")]) == 0
    nib.save(nib.Nifti1Image(labels[..., None], affine), files / "labels.nii.gz")
    assert script.main([*command, str(files / "one.npz")]) == 0
    assert (files / "one.npz").read_bytes() == (files / "flat.npz").read_bytes()
    nib.save(nib.Nifti1Image(np.stack([labels] * 3, axis=-1), affine), files / "labels.nii.gz")
    assert script.main([*command, str(files / "many.npz")]) == 2
    said = capsys.readouterr().err
    assert "has the shape 28 x 32 x 24 x 3, a parcellation has one label a voxel (x, y, z)" in said
    nib.save(nib.Nifti1Image(labels[..., 0], affine), files / "labels.nii.gz")
    assert script.main([*command, str(files / "many.npz")]) == 2
    assert "has the shape 28 x 32, a" in capsys.readouterr().err
    values = labels.astype(np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, affine), files / "labels.nii.gz")
    assert script.main([*command, str(files / "many.npz")]) == 2
    assert "a parcellation holds whole numbers, this one has others" in capsys.readouterr().err
    image = nib.Nifti1Image(labels, None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(image, files / "labels.nii.gz")
    assert script.main([*command, str(files / "many.npz")]) == 2
    assert "has no affine (sform and qform codes are 0)" in capsys.readouterr().err
    assert not (files / "many.npz").exists()
    with pytest.raises(SystemExit):
        script.main([*command, str(files / "many.npz"), "--endpoint-tolerance", "nan"])
    assert "must be 0 or more, got nan" in capsys.readouterr().err


@pytest.mark.realdata
@pytest.mark.skipif(not (ATLAS / "ICBM152_adult.tt.gz").is_file(), reason="no tractogram beside the repository")
def test_the_hcp_population_tracts_between_the_regions_of_aal(script, tmp_path):
    command = [ATLAS / "ICBM152_adult.tt.gz", ATLAS / "aal.nii.gz", "--labels", "90", "--output", tmp_path / "a.npz"]
    assert script.main([str(part) for part in command]) == 0
    atlas = TractAtlas.load(tmp_path / "a.npz")
    figures = atlas.summary()
    assert 540 <= figures["tracts"] <= 600 and figures["regions_with_tract"] == 88
    assert 190 <= figures["median_voxels_outside_regions"] <= 220 and atlas.names[0] == "Precentral_L"
    # both hemispheres alike, and left regions left of the midline
    x = np.array([np.argwhere(atlas.regions == r + 1)[:, 0].mean() * 2 - 90 for r in range(90)])
    assert all((x[r] < 0) == name.endswith("_L") for r, name in enumerate(atlas.names))
