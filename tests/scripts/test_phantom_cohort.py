"""The phantom cohort: deterministic, geometrically right, patterns where the map says, a label of known strength."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from shared.apps.phantoms.liver import PATTERNS, bayes_auc, draw_labels, label_probability
from shared.data import Datalist
from shared.errors import DataError
from tests.support.script_modules import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_phantom_cohort.py"
SMALL = ["--patients", "6", "--test-patients", "2", "--folds", "2"]


script = load_script("make_phantom_cohort")


def make(folder, *arguments):
    assert script.main(["--output", str(folder), *arguments]) == 0
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make(tmp_path_factory.mktemp("phantom"), "--patients", "40", "--test-patients", "20")


@pytest.fixture(scope="module")
def cases(cohort):
    """Per patient: row of patterns.csv, and everything loaded in canonical orientation."""
    data = Datalist(cohort)
    with (cohort / "patterns.csv").open() as file:
        rows = {row["patient"]: row for row in csv.DictReader(file)}
    loaded = []
    for case in data.training + data.testing:
        images = [nib.load(path) for path in (*case["image"], case["mask"], case["planted"])]
        canonical = [nib.as_closest_canonical(image) for image in images]
        t1, t1d, t1v, mask, planted = (np.asarray(image.dataobj) for image in canonical)
        loaded.append(
            {
                "case": case,
                "row": rows[case["patient"]],
                "images": images,
                "zooms": canonical[0].header.get_zooms(),
                "volumes": {"T1": t1, "T1D": t1d, "T1V": t1v},
                "mask": mask > 0,
                "planted": planted,
                "slices": np.argsort(-(mask > 0).sum((0, 1)), kind="stable")[:3],
            }
        )
    return loaded


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    first = contents(make(tmp_path / "a", *SMALL))
    second = contents(make(tmp_path / "b", *SMALL))
    other = contents(make(tmp_path / "c", *SMALL, "--seed", "1"))
    for files in (first, second, other):
        del files[Path("manifest.json")]  # it holds the command line, hence the folder
    assert first == second
    assert first[Path("P001/t1.nii.gz")] != other[Path("P001/t1.nii.gz")]


def test_a_second_run_writes_nothing_and_an_interrupted_one_is_made_whole(tmp_path, capsys):
    folder = make(tmp_path / "a", *SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make(folder, *SMALL)
    assert "there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    whole = contents(folder)
    (folder / "P003" / "t1.nii.gz").unlink()
    make(folder, *SMALL)
    assert contents(folder) == whole
    # a file of the right name with another content is none of this cohort's
    (folder / "P003" / "t1.nii.gz").write_bytes(whole[Path("P004/t1.nii.gz")])
    make(folder, *SMALL)
    assert contents(folder) == whole


def test_stopped_half_way_there_is_no_datalist(tmp_path, monkeypatch):
    def stop(folder, patient, orientation):
        if folder.name == "P004":
            raise KeyboardInterrupt
        written.append(folder.name)

    written = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "write_patient", stop)
        script.main(["--output", str(tmp_path), *SMALL])
    assert written == ["P001", "P002", "P003"]
    with pytest.raises(DataError, match="no such datalist"):
        Datalist(tmp_path)
    make(tmp_path, *SMALL)
    assert len(Datalist(tmp_path).training) == 6


def test_a_folder_with_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert script.main(["--output", str(tmp_path), *SMALL]) == 2
    assert "no phantom cohort" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_too_few_patients_for_the_folds_is_refused_before_anything_is_written(tmp_path, capsys):
    assert script.main(["--output", str(tmp_path / "a"), "--patients", "4", "--folds", "5"]) == 2
    assert "4 patients cannot fill 5 folds" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_datalist_keeps_the_contract(cohort):
    data = Datalist(cohort, fold=4, num_modalities=3, covariates=["age"])
    assert data.modalities == ["T1", "T1D", "T1V"] and len(data.testing) == 20
    assert len(data.training) + len(data.validation) == 40
    assert {case["label"] for case in data.validation} == {0, 1}
    manifest = json.loads((cohort / "manifest.json").read_text())
    assert manifest["pattern_codes"] == PATTERNS and manifest["auc_best_reader"] == round(bayes_auc(4.5), 4)


def test_one_modality(tmp_path):
    data = Datalist(make(tmp_path, *SMALL, "--modalities", "1"), num_modalities=1)
    assert data.modalities == ["T1D"] and data.training[0]["image"][0].endswith("/t1d.nii.gz")


def test_geometry_varies_and_is_shared_within_a_patient(cases):
    for item in cases:
        assert len({image.shape for image in item["images"]}) == 1
        assert all(np.array_equal(image.affine, item["images"][0].affine) for image in item["images"])
        assert item["zooms"][2] > 1.15 * item["zooms"][0] and np.isclose(item["zooms"][0], item["zooms"][1])
        # The tumour's volume in mm3 fits the diameter drawn: the affine is in mm.
        volume = item["mask"].sum() * abs(np.linalg.det(item["images"][0].affine[:3, :3]))
        assert 0.45 < volume / (np.pi / 6 * float(item["row"]["diameter_mm"]) ** 3) < 1.5
    codes = {"".join(nib.aff2axcodes(item["images"][0].affine)) for item in cases}
    assert {"RAS", "LPS"} < codes and len(codes) >= 5
    thick = {int(np.argmax(item["images"][0].header.get_zooms())) for item in cases}
    assert thick == {0, 1, 2}  # sagittal and coronal storage among them
    oblique = [nib.affines.obliquity(item["images"][0].affine).max() > 0.05 for item in cases]
    assert 0.2 < np.mean(oblique) < 0.6
    assert len({round(float(item["zooms"][0]), 3) for item in cases}) > 40


def test_images_are_int16_with_zero_background_and_differ_in_scale(cases):
    for item in cases:
        for image in item["images"][:3]:
            assert image.get_data_dtype() == np.int16
        body = item["volumes"]["T1"] > 0
        assert 0.3 < body.mean() < 0.95
        assert all(np.array_equal(volume > 0, body) for volume in item["volumes"].values())
        assert (item["mask"].sum((0, 1)) > 0).sum() >= 7 and item["mask"][body].sum() == item["mask"].sum()
    means = [item["volumes"]["T1"][item["volumes"]["T1"] > 0].mean() for item in cases]
    assert max(means) > 2.5 * min(means)


def test_planted_codes_are_the_patterns_and_lie_off_centre_in_the_slices_that_count(cases):
    for item in cases:
        mask, planted = item["mask"], item["planted"]
        near = distance_transform_edt(~mask, sampling=item["zooms"]) < 14
        for name, code in PATTERNS.items():
            where = planted == code
            assert bool(int(item["row"][name])) == bool(where.any())
            assert not where.any() or where[..., item["slices"]].any((0, 1)).all()
            assert near[where].all()
        assert mask[planted == PATTERNS["mosaic"]].all() and not mask[planted == PATTERNS["halo"]].any()
        for row in item["slices"]:
            x, y = (round(axis.mean()) for axis in np.nonzero(mask[..., row]))
            assert planted[x, y, row] == 0


@pytest.mark.parametrize("name", PATTERNS)
def test_each_pattern_is_visible_where_it_was_painted(cases, name):
    """Contrast of the painted place against the same kind of place elsewhere in the same tumour, in noise units."""
    contrast = []
    for item in cases:
        if not int(item["row"][name]):
            continue
        rows = item["slices"]
        where, mask = (item["planted"] == PATTERNS[name])[..., rows], item["mask"][..., rows]
        modality = {"interrupted_capsule": "T1V", "mosaic": "T1D", "halo": "T1D"}[name]
        volume = item["volumes"][modality][..., rows].astype(float)
        depth = np.stack([distance_transform_edt(m, sampling=item["zooms"][:2]) for m in np.moveaxis(mask, -1, 0)], -1)
        out = np.stack([distance_transform_edt(~m, sampling=item["zooms"][:2]) for m in np.moveaxis(mask, -1, 0)], -1)
        liver = volume[(out > 14) & (volume > 0)].mean()
        if name == "interrupted_capsule":
            value, rest = np.percentile(volume[where], 90), np.median(volume[(depth > 4) & (depth < 8) & ~where])
        elif name == "mosaic":
            value, rest = volume[where].std(), volume[(depth > 6) & (item["planted"][..., rows] == 0)].std()
        else:
            value, rest = volume[where].mean(), volume[(out > 1) & (out < 9) & ~where & (volume > 0)].mean()
        contrast.append((value - rest) / liver)
    assert len(contrast) > 10 and np.mean(np.array(contrast) > 0.1) > 0.95, np.round(contrast, 2)


def features(item):
    """Simple readings of rim, interior and surroundings in the three slices of largest area."""
    values = []
    for volume in item["volumes"].values():
        volume = volume / volume[volume > 0].mean()
        readings = []
        for row in item["slices"]:
            mask, image = item["mask"][..., row], volume[..., row]
            depth = distance_transform_edt(mask, sampling=item["zooms"][:2])
            out = distance_transform_edt(~mask, sampling=item["zooms"][:2])
            core, rim = image[depth > 5], image[(depth > 0) & (depth < 6)]
            ring = image[(out > 1) & (out < 9) & (image > 0)]
            readings.append([core.std(), rim.std(), np.percentile(ring, 90) - np.median(ring)])
        values.extend(np.mean(readings, axis=0))
    return values


def test_the_label_can_be_read_from_the_images_and_not_from_the_size(cases):
    table = np.array([features(item) for item in cases])
    labels = np.array([item["case"]["label"] for item in cases])
    sizes = np.array([item["mask"].sum() * np.prod(item["zooms"]) for item in cases])
    model = RandomForestClassifier(200, random_state=0)
    score = cross_val_predict(model, table, labels, cv=5, method="predict_proba")[:, 1]
    assert roc_auc_score(labels, score) >= 0.9
    assert abs(roc_auc_score(labels, sizes) - 0.5) < 0.12


@pytest.mark.parametrize("effect", [0.0, 1.0, 4.5])
def test_the_stated_auc_is_what_the_patterns_give(effect):
    """Against a large draw whose labels are drawn independently, patient by patient."""
    rng = np.random.default_rng(5)
    rows = draw_labels(8000, effect, rng)
    counts = np.array([sum(row[name] for name in PATTERNS) for row in rows])
    labels = [rng.random() < label_probability(int(count), effect) for count in counts]
    assert abs(roc_auc_score(labels, counts) - bayes_auc(effect)) < 0.02
    assert abs(roc_auc_score([row["label"] for row in rows], counts) - bayes_auc(effect)) < 0.02
    assert abs(np.mean([row["label"] for row in rows]) - 0.5) < 0.02
    sizes = [row["diameter_mm"] for row in rows]
    assert abs(roc_auc_score([row["label"] for row in rows], sizes) - 0.5) < 0.01


def test_help_comes_from_anywhere_without_torch_or_monai(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--test-patients" in done.stdout and "interrupted capsule" in done.stdout
