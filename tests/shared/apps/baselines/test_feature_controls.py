"""Controls without a network on small NIfTI patients whose label is written in one feature."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from shared.apps.baselines import features
from shared.apps.baselines.given import Given
from shared.apps.baselines.roi_features import roi_features
from shared.apps.experiments.comparison import compare
from shared.errors import DataError

PATIENTS = 24
CONTROLS = ("covariates", "size", "size_covariates", "shape", "roi_forest", "roi_forest_covariates", "radiomics")


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Positives have larger tumours; age knows nothing but is missing once; brightness knows a little."""
    folder, random = tmp_path_factory.mktemp("patients"), np.random.default_rng(0)
    cases = []
    for number in range(PATIENTS):
        label, name = number % 2, f"P{number:02}"
        grid = np.stack(np.meshgrid(*[np.arange(s) - s / 2 for s in (24, 24, 6)], indexing="ij"))
        organ = (grid[:2] ** 2).sum(axis=0) < 11**2
        tumour = (grid[:2] ** 2).sum(axis=0) < (3.0 + 2.0 * label + 0.5 * random.random()) ** 2
        tumour &= np.abs(grid[2]) < 3
        (folder / name).mkdir()
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        for modality, bright in (("t1", 0.6), ("flair", 1.5)):
            volume = organ * (100 + 5 * random.normal(size=organ.shape) + 100 * (bright - 1) * tumour)
            nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), folder / name / f"{modality}.nii.gz")
        nib.save(nib.Nifti1Image(tumour.astype(np.uint8), affine), folder / name / "mask.nii.gz")
        case = {"patient": name, "image": [f"{name}/t1.nii.gz", f"{name}/flair.nii.gz"], "mask": f"{name}/mask.nii.gz"}
        case |= {"label": label, "covariates": {"age": float(random.integers(30, 70))} if number else {}}
        cases.append(case)
    (folder / "datalist.json").write_text(json.dumps({"name": "x", "modalities": ["T1", "FLAIR"], "training": cases}))
    return folder


def given(data, output, *, datalist=None, seeds=(0,), bootstrap=20):
    datalist = datalist or data / "datalist.json"
    return Given(data, datalist, output, folds=3, seeds=seeds, config={}, command="study", bootstrap=bootstrap)


@pytest.fixture(scope="module")
def output(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "TREES", 30)
        features.run(CONTROLS, given(data, folder, seeds=(0, 1), bootstrap=50))
    return folder


def test_controls_see_what_they_may_see(output):
    auc = {
        path.parent.name: json.loads(path.read_text())["metrics"]["AUC"]["value"]
        for path in output.glob("*/results.json")
    }
    assert set(auc) == set(CONTROLS)
    assert auc["size"] == 1.0 and auc["roi_forest"] == 1.0 and auc["radiomics"] == 1.0 and auc["shape"] == 1.0
    assert 0.2 < auc["covariates"] < 0.8


def test_features_against_a_loop(output, data):
    row = next(row for row in read(output / "features.csv") if row["patient"] == "P03")
    t1, flair, mask = (
        np.asarray(nib.load(data / "P03" / f"{n}.nii.gz").dataobj, dtype=float) for n in ("t1", "flair", "mask")
    )
    depth = sorted(range(6), key=lambda z: (-mask[:, :, z].sum(), z))[:3]
    organ = [v for v in flair.ravel() if v > 0.1 * np.percentile(flair, 99)]
    inside, ring, foreground = [], [], 0
    for z in depth:
        foreground += (t1[:, :, z] > 0.1 * np.percentile(t1, 99)).sum()
        tumour = np.argwhere(mask[:, :, z] > 0)
        for x in range(24):
            for y in range(24):
                if mask[x, y, z] > 0:
                    inside.append(flair[x, y, z] / np.mean(organ))
                elif np.hypot(*(tumour - [x, y]).T).min() <= 5 and flair[x, y, z] > 0.1 * np.percentile(flair, 99):
                    ring.append(flair[x, y, z] / np.mean(organ))
    assert float(row["FLAIR_mean"]) == pytest.approx(np.mean(inside), rel=1e-4)
    assert float(row["FLAIR_p90"]) == pytest.approx(np.percentile(inside, 90), rel=1e-4)
    assert float(row["FLAIR_contrast"]) == pytest.approx(np.mean(inside) - np.mean(ring), rel=1e-3)
    assert float(row["log_area_mm2"]) == pytest.approx(np.log(len(inside)))
    assert float(row["log_area_share"]) == pytest.approx(np.log(len(inside) / foreground))
    assert 0.7 < float(row["compactness"]) < 1.3 and float(row["pieces"]) == 1


def test_the_outline_of_nearly_square_pixels_is_that_of_square_ones():
    nearly = np.diag([0.7, 0.7 * (1 + 1e-7), 5, 1])  # as float32 leaves an affine, of the project's own phantoms, too
    mask = np.zeros((16, 16, 4), bool)
    mask[3:11, 4:9, 1:3] = True
    volume = np.random.default_rng(0).random((1, 16, 16, 4)) + 1
    found, upright = (roi_features(volume, mask, affine, 2, ["T1"]) for affine in (nearly, np.diag([0.7, 0.7, 5, 1])))
    assert found.keys() == upright.keys() and found["compactness"] > 0.5
    for name, value in upright.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_nothing_is_fitted_outside_the_training_fold(output):
    """The size control again, by hand: mean, deviation and regression of the training patients only."""
    size = {row["patient"]: float(row["log_area_share"]) for row in read(output / "features.csv")}
    rows = [row for row in read(output / "size" / "predictions.csv") if row["seed"] == "1"]
    for fold in "012":
        train = [row for row in rows if row["fold"] != fold]
        x = np.array([size[row["patient"]] for row in train])
        model = LogisticRegression().fit(((x - x.mean()) / x.std())[:, None], [int(row["label"]) for row in train])
        for row in (row for row in rows if row["fold"] == fold):
            scaled = (size[row["patient"]] - x.mean()) / x.std()
            assert float(row["probability"]) == pytest.approx(model.predict_proba([[scaled]])[0, 1], abs=1e-6)


def test_same_folds_as_cross_validation(output, data):
    from shared.data.splits import stratified_folds

    cases = json.loads((data / "datalist.json").read_text())["training"]
    for seed in (0, 1):
        fold_of = stratified_folds([c["patient"] for c in cases], [c["label"] for c in cases], 3, seed)
        for name in ("covariates", "roi_forest"):
            rows = [row for row in read(output / name / "predictions.csv") if int(row["seed"]) == seed]
            assert {row["patient"]: int(row["fold"]) for row in rows} == fold_of


def test_groups_keep_together_and_shape_is_measured_not_read(data, tmp_path):
    content = json.loads((data / "datalist.json").read_text())
    for case in content["training"]:
        case["group"] = f"G{int(case['patient'][1:]) // 4}"
        case["covariates"]["shape_area"] = 1.0
    (tmp_path / "list.json").write_text(json.dumps(content))
    changed = given(data, tmp_path, datalist=tmp_path / "list.json")
    features.run(["shape", "intensity"], changed)
    rows = read(tmp_path / "shape" / "predictions.csv")
    assert rows == [
        {**row, "probability": rows[i]["probability"]}
        for i, row in enumerate(read(tmp_path / "intensity" / "predictions.csv"))
    ]
    assert len({(row["group"], row["fold"]) for row in rows}) == 6
    measured = read(tmp_path / "features.csv")
    assert all(float(row["shape_area"]) > 20 for row in measured) and "age" in measured[0]
    settings = json.loads((tmp_path / "intensity" / "experiment.json").read_text())["settings"]
    assert "FLAIR_contrast" in settings["columns"] and not {"compactness", "log_area_mm2"} & set(settings["columns"])
    for case in content["training"]:
        case["covariates"] = {}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="size_covariates: the datalist has no covariates"):
        features.run(["size", "size_covariates"], changed)


def test_a_comparison_takes_them(output, tmp_path):
    compare([str(output / "covariates"), str(output / "size")], str(tmp_path / "t.md"), bootstrap=50)
    text = (tmp_path / "t.md").read_text()
    assert "| age alone (logistic regression) |" in text and "| tumour size alone (logistic regression) | 1.000" in text


def test_without_covariates_those_controls_are_left_out():
    columns = {"size": ["a"], "shape": ["c"], "intensity": ["b"], "roi": ["a", "b"], "radiomics": ["e"]}
    columns["covariates"] = ["d"]
    found = features.controls(columns | {"covariates": []})
    assert set(found) == {"size", "shape", "intensity", "roi_forest", "radiomics"}
    assert found["shape"][1:] == (["c"], "logistic")
    assert tuple(features.controls(columns)) == features.CONTROLS


def test_all_unreadable_patients_are_named(data, tmp_path):
    datalist = json.loads((data / "datalist.json").read_text())
    datalist["training"][2]["image"] = ["nowhere.nii.gz"]
    datalist["training"][5]["mask"] = datalist["training"][5]["image"][0] + "x"
    (tmp_path / "list.json").write_text(json.dumps(datalist))
    with pytest.raises(DataError, match=r"2 problems:\n- P02: (?s:.)*- P05: "):
        features.run(["size"], given(data, tmp_path, datalist=tmp_path / "list.json"))
