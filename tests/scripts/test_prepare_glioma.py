"""From folders of heads to a datalist on the MNI152 grid, and everything that a folder can get wrong."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from tifffile import imwrite

from shared.apps.preparation.files import save_nifti
from shared.apps.preparation.label_table import read_label_table
from shared.data import Datalist
from shared.data.brain.mni import MNI_SHAPE, mni_affine
from shared.digests import CACHE, sha256
from shared.handlers import SaveAtlas
from tests.scripts.test_prepare_scripts import contents, load_script
from tests.support.tiny_brain import tiny_atlas
from tests.support.tiny_heads import (
    SHAPE,
    HeaderRegistration,
    brain,
    coordinates,
    native_affine,
    on_mni,
    stripped,
    tumour,
    volume_of,
    with_skull,
    write_patient,
    write_template,
)

ROOT = Path(__file__).resolve().parents[2]
script = load_script("prepare_glioma")
NAMES = ["T1", "T1c", "T2", "FLAIR"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_template(tmp_path_factory.mktemp("template") / "t1.nii.gz")


@pytest.fixture
def tools(monkeypatch):
    """Stands in for antspyx and SimpleITK."""
    registration = HeaderRegistration()
    monkeypatch.setattr("shared.apps.preparation.glioma_patient.choose_registration", lambda *_: registration)
    return registration


@pytest.fixture
def quick(tools, monkeypatch):
    """That, and no pictures."""
    monkeypatch.setattr("shared.apps.preparation.registration_picture.registration_picture", lambda *_, **__: None)
    return tools


def write_labels(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def cohort(tmp_path):
    """Two patients as BraTS names them, and their labels."""
    for number, name in enumerate(("P1", "P2")):
        write_patient(tmp_path / "in", name, names=("t1n", "t1ce", "t2w", "t2f"), seed=10 * number)
    rows = [
        {"patient": "P1", "label": "mutant", "Age": 40, "grade": "2"},
        {"patient": "P2", "label": "Wild type", "Age": 61, "grade": ""},
    ]
    return tmp_path / "in", write_labels(tmp_path / "labels.csv", rows), tmp_path / "out"


def run(cohort, template, *more):
    folder, labels, output = cohort
    given = [str(folder), *([str(labels)] if labels else []), "--output", str(output), "--template", str(template)]
    return script.main([*given, *more])


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != CACHE]


def test_help_comes_from_anywhere_without_numpy_or_torch(tmp_path):
    path = str(ROOT / "scripts" / "prepare_glioma.py")
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{path!r}, '--help']\n"
        f"try: runpy.run_path({path!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'sklearn', 'nibabel', 'numpy', 'ants'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--already-mni" in done.stdout


def test_two_heads_become_a_datalist_on_the_mni_grid_and_are_kept_the_second_time(cohort, template, tools, capsys):
    assert run(cohort, template) == 0
    output = cohort[2]
    said = capsys.readouterr().out
    assert "registration: headers" in said and "P1: headers" in said and "1 IDH wild type, 1 IDH mutant" in said
    assert "no folds: a class has fewer than 5 patients" in said
    cases = Datalist(output).training
    assert [(case["patient"], case["label"]) for case in cases] == [("P1", 1), ("P2", 0)]
    content = json.loads((output / "datalist.json").read_text())
    assert content["modalities"] == NAMES and content["classes"] == ["IDH wild type", "IDH mutant"]
    assert content["training"][0]["image"] == [f"P1/{name}.nii.gz" for name in ("t1", "t1c", "t2", "flair")]
    assert [case["covariates"] for case in content["training"]] == [{"age": 40.0, "grade": 2.0}, {"age": 61.0}]
    images = [volume_of(path) for path in cases[0]["image"]]
    mask = volume_of(cases[0]["mask"])
    assert all(image.shape == MNI_SHAPE for image in images) and set(np.unique(mask)) == {0, 1}
    assert np.allclose(nib.load(cases[0]["mask"]).affine, mni_affine())
    # the tumour lies where it lay, and is brighter than the brain about it
    centre = np.argwhere(mask).mean(0) @ mni_affine()[:3, :3] + mni_affine()[:3, 3]
    assert np.abs(centre - (30, -10, 15)).max() < 1.5 and mask.sum() * 8 == pytest.approx(
        4 / 3 * np.pi * 16**3, rel=0.1
    )
    assert np.median(images[0][mask > 0]) > 1.2 * np.median(images[0][(images[0] > 0) & (mask == 0)])
    rows = list(csv.DictReader((output / "registration.csv").open()))
    assert [row["patient"] for row in rows] == ["P1", "P2"] and float(rows[0]["dice"]) > 0.97
    assert 0.9 < float(rows[0]["tumour_ratio"]) < 1.1 and rows[0]["flags"] == ""
    manifest = json.loads((output / "manifest.json").read_text())
    assert set(manifest["sources"]) > {"labels.csv", "P1/P1_t1n.nii.gz", "P2/P2_seg.nii.gz"}
    assert manifest["without_covariate"] == {"grade": ["P2"]} and manifest["space"].startswith("MNI152, 2 mm")
    assert (output / "qc" / "P1.png").stat().st_size > 10_000 and not hidden(output)

    before, calls = contents(output), len(tools.calls)
    assert run(cohort, template) == 0
    assert capsys.readouterr().out.count(": kept (headers") == 2 and len(tools.calls) == calls
    after = contents(output)
    assert all(after[path] == content for path, content in before.items() if path.name != CACHE)
    assert set(after) == set(before)
    save_nifti(cohort[0] / "P2" / "P2_t2w.nii.gz", stripped(99).astype(np.int16), native_affine())
    assert run(cohort, template) == 0
    assert "P1: kept" in (said := capsys.readouterr().out) and "P2: headers" in said


def exchange(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_prepared_voxels_follow_the_folder_whatever_its_size_and_date(cohort, template, quick, capsys):
    def tumours():
        return [volume_of(output / name / "mask.nii.gz").sum() for name in ("P1", "P2")]

    source, output = cohort[0], cohort[2]
    for number, name in enumerate(("P1", "P2")):
        for k, path in enumerate(sorted((source / name).iterdir())):
            # the same names, sizes and dates; uncompressed, since a smaller tumour takes as many bytes
            own = stripped(number + 10 * k)
            array = tumour(radius=16 - 4 * number).astype(np.uint8) if "seg" in path.name else own
            save_nifti(source / name / path.name.replace(f"{name}_", "").removesuffix(".gz"), array, native_affine())
            path.unlink()
        for path in (source / name).iterdir():
            os.utime(path, ns=(10**18, 10**18))
    sizes = [sorted((p.name, p.stat().st_size) for p in (source / name).iterdir()) for name in ("P1", "P2")]
    assert sizes[0] == sizes[1]
    options = ("--no-n4", "--no-smoothing", "--no-histogram-matching")
    assert run(cohort, template, *options) == 0
    large, small = tumours()
    assert small < 0.6 * large
    exchange(source / "P1", source / "P2")
    capsys.readouterr()
    assert run(cohort, template, *options) == 0
    assert "kept" not in capsys.readouterr().out and tumours() == [small, large]
    # what was prepared is content, too
    exchange(output / "P1", output / "P2")
    assert run(cohort, template, *options) == 0 and tumours() == [small, large]
    shutil.copy(output / "P1" / "t2.nii.gz", output / "P2" / "t2.nii.gz")
    capsys.readouterr()
    assert run(cohort, template, *options) == 0
    assert "P1: kept" in (said := capsys.readouterr().out) and "P2: headers" in said
    assert run(cohort, template, *options) == 0 and capsys.readouterr().out.count(": kept") == 2


def test_the_reference_of_a_cohort_matches_new_patients_without_labels(cohort, template, quick, tmp_path, capsys):
    assert run(cohort, template) == 0
    new = tmp_path / "new"
    # the same head from another scanner: three times as bright
    write_patient(new, "N1", image=3 * stripped(0))
    reference = str(cohort[2] / "histogram_reference.json")
    assert run((new, None, tmp_path / "n"), template, "--inference", "--histogram-reference", reference) == 0
    case = json.loads((tmp_path / "n" / "datalist.json").read_text())["testing"][0]
    assert "label" not in case and "1 without label" in capsys.readouterr().out
    one, other = (volume_of(folder / "t1.nii.gz") for folder in (tmp_path / "n" / "N1", cohort[2] / "P1"))
    inside = other > 0
    assert np.median(np.abs(one[inside] - other[inside])) < 0.02 * np.median(other[inside])


def train(dataset_dir, models):
    """What the end of a training leaves of the preparation."""
    handler = SaveAtlas(tiny_atlas(), models, dataset_dir)
    models.mkdir(exist_ok=True)
    handler(SimpleNamespace(state=SimpleNamespace(epoch=1)))
    return {path.name: path.read_text() for path in models.glob("*.json")}


def test_new_patients_are_prepared_as_the_models_were(cohort, template, quick, tmp_path, capsys):
    assert run(cohort, template, "--no-smoothing", "--registration", "sitk-affine") == 0
    models, folder = tmp_path / "models", tmp_path / "new"
    shipped = train(cohort[2], models)
    assert set(shipped) == {"preparation.json", "histogram_reference.json"}
    assert not any("P1" in text or str(tmp_path) in text for text in shipped.values())  # nor is who the reference was
    record = json.loads(shipped["preparation.json"])
    assert record["sequences"] == NAMES and record["n4"] is True and record["smoothing"] == 0
    assert record["template"] == sha256(template) and record["registration"] == "sitk-affine"
    # another scanner: three times as bright; the model's settings are taken over
    write_patient(folder, "N1", image=3 * stripped(0))
    new = (folder, None, tmp_path / "n")
    assert run(new, template, "--inference", "--model", str(models)) == 0
    one, other = (volume_of(path / "t1.nii.gz") for path in (tmp_path / "n" / "N1", cohort[2] / "P1"))
    inside = other > 0
    assert np.median(np.abs(one[inside] - other[inside])) < 0.02 * np.median(other[inside])
    made = json.loads((tmp_path / "n" / "preparation.json").read_text())
    assert made == record

    def refused(*more, given=("--model", str(models)), where=template):
        capsys.readouterr()
        assert run((folder, None, tmp_path / "m"), where, "--inference", *given, *more) == 2
        return capsys.readouterr().err

    assert "n4 was true, is now false; prepare new patients likewise" in refused("--no-n4")
    assert 'registration was "sitk-affine", is now "syn"' in refused("--registration", "syn")
    assert 'sequences was ["T1", "T1c", "T2", "FLAIR"], is now ["T1c", "T1"' in refused(
        "--modalities", "T1c,T1,T2,FLAIR"
    )
    other_template = tmp_path / "other.nii.gz"
    save_nifti(other_template, np.ones((9, 9, 9), np.float32), np.eye(4))
    assert "template was " in refused(where=other_template)
    # the record beside a reference counts as well: here smoothing is on, the training's was off
    reference = ("--histogram-reference", str(models / "histogram_reference.json"), "--registration", "sitk-affine")
    assert "smoothing was 0.0, is now 1.0" in refused(given=reference)
    assert not (tmp_path / "m" / "datalist.json").exists()


def test_a_model_without_matching_hands_that_on_and_leaves_no_older_reference(cohort, template, quick, tmp_path):
    assert run(cohort, template) == 0
    models = tmp_path / "models"
    assert len(train(cohort[2], models)) == 2
    assert run(cohort, template, "--no-histogram-matching") == 0
    assert list(train(cohort[2], models)) == ["preparation.json"]
    write_patient(tmp_path / "new", "N1")
    assert run((tmp_path / "new", None, tmp_path / "n"), template, "--inference", "--model", str(models)) == 0
    assert not (tmp_path / "n" / "histogram_reference.json").exists()
    # a cohort of another origin says nothing of its preparation
    (cohort[2] / "preparation.json").unlink()
    assert not train(cohort[2], models)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--inference"], "--inference needs --model FOLDER (of model.pt), --histogram-reference FILE"),
        (["--inference", "--reference-patient", "P1"], "the first new patient's brightness would be the standard"),
        (["--inference", "--model", "."], "has no preparation.json: it was trained on images that this script did not"),
        (["--model", "."], "--model goes with --inference"),
        (["--inference", "--model", ".", "--histogram-reference", "a"], "--model goes with --inference, without --"),
    ],
)
def test_new_patients_need_the_models_standard(tmp_path, capsys, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "labels.csv", "--output", "out", *given])
    assert message in capsys.readouterr().err


def test_steps_can_be_left_out_and_images_of_other_grids_are_brought_to_t1cs(cohort, template, quick):
    fine = native_affine()
    fine[:3, 3] += (4, 0, 0)
    moved = coordinates(fine)
    save_nifti(cohort[0] / "P1" / "P1_t2f.nii.gz", stripped(3, fine, moved.shape[:3]).astype(np.int16), fine)
    assert run(cohort, template, "--no-n4", "--no-smoothing", "--no-histogram-matching") == 0
    assert "n4" not in quick.calls and quick.calls.count("rigid") == 1
    assert not (cohort[2] / "histogram_reference.json").exists()
    t1, inside = volume_of(cohort[2] / "P1" / "t1.nii.gz"), on_mni(brain()).array
    inside = binary_erosion(inside > 0.99, iterations=4)
    assert np.allclose(t1[inside], on_mni(stripped(0).astype(np.int16)).array[inside], atol=1e-2)
    assert run(cohort, template, "--no-n4", "--no-smoothing", "--no-histogram-matching", "--coregister", "never") == 0
    assert quick.calls.count("rigid") == 1


def spoil(name):
    """How to spoil patient P1's folder."""

    def without_t2(folder):
        (folder / "P1" / "P1_t2w.nii.gz").unlink()

    def second_t1c(folder):
        shutil.copy(folder / "P1" / "P1_t1ce.nii.gz", folder / "P1" / "P1_t1gd.nii.gz")

    def write_mask(mask, dtype=np.uint8):
        return lambda folder: save_nifti(folder / "P1" / "P1_seg.nii.gz", mask.astype(dtype), native_affine())

    def no_mask(folder):
        (folder / "P1" / "P1_seg.nii.gz").unlink()

    def no_affine(folder):
        image = nib.Nifti1Image(stripped().astype(np.int16), None)
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        nib.save(image, folder / "P1" / "P1_t1n.nii.gz")

    def skull(folder):
        save_nifti(folder / "P1" / "P1_t1n.nii.gz", with_skull().astype(np.int16), native_affine())

    def flat(folder):
        save_nifti(folder / "P1" / "P1_t1n.nii.gz", np.zeros(SHAPE, np.int16), native_affine())

    def two_brains(folder):
        for word in ("brainmask", "bet_brain"):
            shutil.copy(folder / "P1" / "P1_t1n.nii.gz", folder / "P1" / f"P1_{word}.nii.gz")

    def half_dwi(folder):
        shutil.copy(folder / "P1" / "P1_t1n.nii.gz", folder / "P1" / "P1_dwi.nii.gz")
        (folder / "P1" / "P1_dwi.bval").write_text("0 1000")

    soft = np.clip(tumour() * np.random.default_rng(0).random(SHAPE), 0, 1)
    return {
        "without T2": without_t2,
        "second T1c": second_t1c,
        "empty mask": write_mask(np.zeros(SHAPE)),
        "outside": write_mask(np.linalg.norm(coordinates() - (0, -18, 85), axis=-1) < 14),
        "not binary": write_mask(soft, np.float32),
        "no mask": no_mask,
        "no affine": no_affine,
        "skull": skull,
        "flat": flat,
        "two brains": two_brains,
        "half DWI": half_dwi,
    }[name]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("without T2", "P1: no file matches modality T2 by the word 'T2' or 't2w' in the name; its files are"),
        ("second T1c", "P1: 2 files match modality T1c by the word"),
        ("empty mask", "the mask is empty (no voxel in it); segment the tumour or leave the patient out"),
        ("outside", "of the tumour lies within the brain; check that mask and images fit"),
        ("not binary", "is no mask: 0 and a few positive whole numbers are needed, it has"),
        ("no mask", "P1: has no mask, other patients have one"),
        ("no affine", "has no affine (sform and qform codes are 0)"),
        ("skull", "P1: T1: is not skull-stripped: its background is not constant"),
        ("flat", "P1_t1n.nii.gz: every voxel is 0, an image must vary; export the series again"),
        (
            "two brains",
            "P1: 2 files may be the brain mask (P1_bet_brain.nii.gz, P1_brainmask.nii.gz); give --",
        ),
        ("half DWI", "P1: P1_dwi.nii.gz needs both P1_dwi.bval and P1_dwi.bvec beside it"),
    ],
)
def test_what_is_wrong_with_a_patient_is_said_and_nothing_is_listed(cohort, template, quick, capsys, how, message):
    spoil(how)(cohort[0])
    assert run(cohort, template, "--no-histogram-matching") == 2
    assert message in capsys.readouterr().err
    assert not (cohort[2] / "datalist.json").exists() and not hidden(cohort[0].parent)


def test_one_failure_stops_nobody_else_and_can_be_left_out(cohort, template, quick, capsys):
    spoil("empty mask")(cohort[0])
    assert run(cohort, template) == 2
    shown = capsys.readouterr()
    assert "P1: failed: " in shown.out and "P2: headers" in shown.out and "--skip-failed leaves" in shown.err
    assert run(cohort, template, "--skip-failed") == 0
    assert "P2: kept" in (said := capsys.readouterr().out) and "left out: P1: " in said
    content = json.loads((cohort[2] / "datalist.json").read_text())
    assert [case["patient"] for case in content["training"]] == ["P2"]
    assert json.loads((cohort[2] / "manifest.json").read_text())["left_out"][0].startswith("P1: ")


def test_an_image_that_is_no_sequence_is_named_and_left_alone(cohort, template, quick, capsys):
    shutil.copy(cohort[0] / "P1" / "P1_t1n.nii.gz", cohort[0] / "P1" / "P1_adc.nii.gz")
    assert run(cohort, template) == 0
    assert "not read, being none of T1, T1c, T2, FLAIR" in (said := capsys.readouterr().out)
    assert "1 images (P1/P1_adc.nii.gz)" in said
    assert json.loads((cohort[2] / "manifest.json").read_text())["not_read"] == ["P1/P1_adc.nii.gz"]


def anisotropy(affine=None, shape=SHAPE):
    """An FA map in the native space: 0.2 to 0.8 from left to right."""
    places = coordinates() if affine is None else coordinates(affine)
    return np.clip(0.5 + 0.005 * places[..., 0], 0.2, 0.8).astype(np.float32)


def test_a_ready_fa_map_on_the_grid_of_t1c_is_taken(tmp_path, template, quick, capsys):
    folder = tmp_path / "in"
    for number, name in enumerate(("FA1", "FA-2")):  # a name that holds the word is no map
        write_patient(folder, name, names=("t1n", "t1ce", "t2w", "t2f"), seed=10 * number)
    save_nifti(folder / "FA1" / "FA1_DTI_eddy_FA.nii.gz", anisotropy(), native_affine())
    shutil.copy(folder / "FA-2" / "FA-2_t1n.nii.gz", folder / "FA-2" / "FA-2_adc.nii.gz")
    cohort = (folder, None, tmp_path / "out")
    given = ("--inference", "--no-histogram-matching", "--no-n4", "--no-smoothing")
    assert run(cohort, template, *given) == 0
    said = capsys.readouterr().out
    assert "DWI (with .bval and .bvec), FA: 1 images (FA-2/FA-2_adc.nii.gz)" in said
    cases = {case["patient"]: case for case in json.loads((tmp_path / "out/datalist.json").read_text())["testing"]}
    assert cases["FA1"]["fa"] == "FA1/fa.nii.gz" and "fa" not in cases["FA-2"]
    found = volume_of(tmp_path / "out" / "FA1" / "fa.nii.gz")
    inside = binary_erosion(volume_of(tmp_path / "out" / "FA1" / "t1.nii.gz") > 0, iterations=3)
    x = np.moveaxis(np.indices(MNI_SHAPE), 0, -1)[inside] @ mni_affine()[0, :3] + mni_affine()[0, 3]
    between = np.abs(x) < 55
    assert np.abs(found[inside] - (0.5 + 0.005 * x))[between].max() < 1e-3 and found.max() <= 0.8
    assert not found[volume_of(tmp_path / "out" / "FA1" / "t1.nii.gz") == 0].any()

    moved = native_affine()
    moved[0, 3] += 5
    for array, affine, message in (
        (anisotropy(), moved, "FA1_DTI_eddy_FA.nii.gz: lies on another grid than T1c; register and resample it"),
        (1000 * anisotropy(), native_affine(), "FA lies in 0 to 1, its values in 200 to 800"),
    ):
        save_nifti(folder / "FA1" / "FA1_DTI_eddy_FA.nii.gz", array, affine)
        assert run(cohort, template, *given) == 2 and message in capsys.readouterr().err
    assert run(cohort, template, *given, "--no-fa") == 0
    assert "FA1/FA1_DTI_eddy_FA.nii.gz" in capsys.readouterr().out and not (tmp_path / "out/FA1/fa.nii.gz").exists()


def test_labels_are_needed_but_for_inference(cohort, template, quick, capsys):
    rows = [{"patient": "P1", "label": ""}, {"patient": "P2", "label": "perhaps"}]
    write_labels(cohort[1], rows)
    assert run(cohort, template) == 2
    said = capsys.readouterr().err
    assert "P1: column 'label' is empty" in said and "P2: label 'perhaps' is neither among" in said
    with pytest.raises(SystemExit):
        run((cohort[0], None, cohort[2]), template)
    assert "a label table is needed (or --inference, to predict)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (("IDH1 p.R132H", "IDH-wildtype"), ()),
        (("mutiert", "wt"), ("--positive", "mutiert")),
        (("mutant", "Wildtyp"), ("--negative", "Wildtyp")),
        (("1.0", "0"), ("--positive", "1", "--negative", "0")),
    ],
)
def test_words_for_the_status_and_values_that_are_named(tmp_path, labels, more):
    rows = [{"patient": f"P{row}", "label": label} for row, label in enumerate(labels)]
    table = write_labels(tmp_path / "labels.csv", rows)
    options = script.parse(["in", str(table), "--output", "out", "--covariates", "", *more])
    found = read_label_table(options)
    assert [found.patients[name]["label"] for name in ("P0", "P1")] == [1, 0] and not found.problems
    assert found.values == dict(zip(labels, (1, 0), strict=True))


def test_an_unknown_status_is_never_wild_type(cohort, template, quick, capsys):
    write_labels(cohort[1], [{"patient": "P1", "label": "mutiert"}, {"patient": "P2", "label": "pending"}])
    assert run(cohort, template, "--positive", "mutiert") == 2
    assert "'pending' (1 patient: P2) is not named by --positive mutiert and may mean that nothing is known" in (
        capsys.readouterr().err
    )
    write_labels(cohort[1], [{"patient": "P1", "label": "mutant"}, {"patient": "P2", "label": "unknown"}])
    assert run(cohort, template) == 2
    assert "P2: column 'label' is empty (it holds 'unknown'" in capsys.readouterr().err


def test_one_covariate_in_two_columns_is_refused(cohort, template, quick, capsys):
    write_labels(cohort[1], [{"patient": name, "label": "wt", "Age": 4, "age": 5} for name in ("P1", "P2")])
    assert run(cohort, template) == 2
    assert "columns 'Age' and 'age' are one covariate" in capsys.readouterr().err


def test_too_few_patients_for_the_folds_asked_for_are_told_before_anything_is_done(cohort, template, quick, capsys):
    assert run(cohort, template, "--folds", "2") == 2
    assert "folds" in capsys.readouterr().err and not cohort[2].exists()


def test_slices_without_an_affine_are_refused(tmp_path, template, capsys):
    folder = tmp_path / "kaggle" / "TCGA_XX_0001"
    folder.mkdir(parents=True)
    imwrite(folder / "TCGA_XX_0001_1.tif", np.zeros((8, 8, 3), np.uint8))
    (folder.parent / "@eaDir").mkdir()
    (folder.parent / "@eaDir" / "a.nii.gz").write_bytes(b"thumbnail")
    (folder / "._x.nii.gz").write_bytes(b"mac")
    labels = write_labels(tmp_path / "l.csv", [{"patient": "TCGA_XX_0001", "label": 1}])
    assert run((folder.parent, labels, tmp_path / "out"), template) == 2
    said = capsys.readouterr().err
    assert "holds slices as .TIF" in said and "have no affine" in said and "dcm2niix and strip the skull" in said
    assert not (tmp_path / "out").exists()


def test_output_among_the_patients_is_refused(cohort, template, quick, capsys):
    assert run((*cohort[:2], cohort[0] / "out"), template) == 2
    assert "must lie outside the patients' own folder" in capsys.readouterr().err


def write_mni(folder, names, shift=0.0):
    """Patients on the MNI152 2 mm grid, or beside it."""
    affine = mni_affine()
    affine[0, 3] += shift
    volumes = [on_mni(stripped(seed)).array for seed in range(4)]
    mask = on_mni(tumour(), nearest=True).array
    for name in names:
        for sequence, array in zip(("t1", "t1c", "t2", "flair"), volumes, strict=True):
            save_nifti(folder / name / f"{sequence}.nii.gz", array.astype(np.int16), affine, compresslevel=1)
        save_nifti(folder / name / "seg.nii.gz", mask.astype(np.uint8), affine)


def test_where_registration_is_skipped_the_affine_is_checked(tmp_path, template, capsys, monkeypatch):
    monkeypatch.setattr(
        "shared.apps.preparation.glioma_patient.choose_registration", None
    )  # nothing is to ask for a library
    given = ("--inference", "--already-mni", "--no-n4", "--no-smoothing", "--no-histogram-matching")
    write_mni(tmp_path / "in", ["P1"])
    cohort = (tmp_path / "in", None, tmp_path / "out")
    assert run(cohort, template, *given) == 0
    assert "P1: already in MNI152" in capsys.readouterr().out
    made, given_image = volume_of(tmp_path / "out/P1/t2.nii.gz"), volume_of(tmp_path / "in/P1/t2.nii.gz")
    assert np.array_equal(made[made > 0], given_image[made > 0]) and (made > 0).sum() > 0.999 * (given_image > 0).sum()
    mask = tmp_path / "in/P1/seg.nii.gz"
    save_nifti(mask, np.swapaxes(volume_of(mask), 0, 1).astype(np.uint8), mni_affine())
    assert run(cohort, template, *given) == 2
    said = capsys.readouterr().err
    assert "P1/seg.nii.gz: must lie on the MNI152 2 mm grid" in said and "got 109 x 91 x 91 voxels" in said
    assert said.count("must lie on") == 1
    write_mni(tmp_path / "in", ["P1"], shift=3.0)
    assert run(cohort, template, *given) == 2
    said = capsys.readouterr().err
    assert said.count("must lie on the MNI152 2 mm grid of 91 x 109 x 91 voxels") == 5
    assert "from (-87.0, -126.0, -72.0) mm; register it with scripts/prepare_glioma.py, without --already-mni" in said


def test_a_label_that_no_mask_holds_is_refused_before_anything_is_done(cohort, template, quick, capsys):
    assert run(cohort, template, "--mask-labels", "3,4") == 2
    assert "--mask-labels 3,4: no mask holds 3; they hold 0, 4" in capsys.readouterr().err
    assert not cohort[2].exists()


def test_ctrl_c_leaves_nothing_half_written_and_the_next_call_goes_on(cohort, template, quick, capsys, monkeypatch):
    from shared.apps.preparation import glioma_patient

    def interrupted(path, *arguments, **options):
        if path.parent.name == "P2" and path.name == "t2.nii.gz":
            raise KeyboardInterrupt
        save_nifti(path, *arguments, **options)

    monkeypatch.setattr(glioma_patient, "save_nifti", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(cohort, template) == 130
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    assert "The same command goes on" in capsys.readouterr().err and not hidden(cohort[2])
    assert not (cohort[2] / "datalist.json").exists() and not (cohort[2] / "P2" / "done.json").exists()
    monkeypatch.setattr(glioma_patient, "save_nifti", save_nifti)
    assert run(cohort, template) == 0
    assert "P1: kept" in (said := capsys.readouterr().out) and "P2: headers" in said


def test_two_processes_prepare_as_one_does_and_end_when_told(tmp_path, template):
    write_mni(tmp_path / "in", ["P1", "P2", "P3"])
    waiting = tmp_path / "wait.py"
    waiting.write_text(
        "import pathlib, shutil, sys, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'started').touch()\n"
        "time.sleep(60 if sys.argv[3] == 'wait' else 0)\nshutil.copy(*sys.argv[1:3])\n"
    )
    command = [sys.executable, str(ROOT / "scripts" / "prepare_glioma.py"), str(tmp_path / "in"), "--inference"]
    command += ["--already-mni", "--no-n4", "--no-smoothing", "--no-histogram-matching", "--template", str(template)]
    command += ["--output", str(tmp_path / "out"), "--jobs", "2"]
    strip = f"{sys.executable} {waiting} {{input}} {{output}} wait"
    running = subprocess.Popen([*command, "--strip-command", strip], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (tmp_path / "started").exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=50)
    assert running.returncode == 130 and b"Stopped." in error, (out, error)
    assert not (tmp_path / "out" / "datalist.json").exists() and not hidden(tmp_path / "out")

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count(": already in MNI152") == 3
    alone = [*command[:-3], str(tmp_path / "one"), "--jobs", "1"]
    subprocess.run(alone, capture_output=True, check=True)
    for name in ("P1/t1.nii.gz", "P3/mask.nii.gz", "datalist.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
