import json

import nibabel
import numpy as np
import pytest

from shared.apps.baselines.population_table import PopulationTable, joined, of_grades
from shared.apps.baselines.unit_free import PREFIX, first_order, measured, published, unit_free
from shared.errors import DataError


def naive(values):
    """PyRadiomics' first-order formulas, voxel by voxel."""
    x = sorted(float(value) for value in values)
    n = len(x)

    def percentile(q):
        place = q / 100 * (n - 1)
        low = int(place)
        return x[low] + (place - low) * (x[min(low + 1, n - 1)] - x[low])

    mean = sum(x) / n
    moment = {k: sum((v - mean) ** k for v in x) / n for k in (2, 3, 4)}
    middle = [v for v in x if percentile(10) <= v <= percentile(90)]
    robust = sum(middle) / len(middle)
    return {
        "10Percentile": percentile(10),
        "Median": percentile(50),
        "90Percentile": percentile(90),
        "InterquartileRange": percentile(75) - percentile(25),
        "Kurtosis": moment[4] / moment[2] ** 2,  # 3 of a normal distribution
        "MeanAbsoluteDeviation": sum(abs(v - mean) for v in x) / n,
        "Mean": mean,
        "RobustMeanAbsoluteDeviation": sum(abs(v - robust) for v in middle) / len(middle),
        "Skewness": moment[3] / moment[2] ** 1.5,
        "Variance": moment[2],
    }


def test_first_order_is_pyradiomics():
    inside = np.random.default_rng(0).gamma(2, size=137)
    assert first_order(inside) == pytest.approx(naive(inside))


def test_a_gain_and_an_offset_change_nothing_and_a_spread_does():
    inside = np.random.default_rng(1).gamma(2, size=200)
    plain = unit_free(first_order(inside))
    assert unit_free(first_order(7 * inside - 3)) == pytest.approx(plain)
    wider = unit_free(first_order(inside**2))
    assert all(abs(wider[name] - plain[name]) > 0.01 for name in plain)


def table(count=6, seed=0, prefix="U"):
    tumours = np.random.default_rng(seed).gamma(2, size=(count, 50))
    rows = [first_order(tumour) for tumour in tumours]
    features = np.array([[*row.values(), 1.0] for row in rows])
    names = (*(PREFIX + name for name in rows[0]), "original_shape_Sphericity")
    labels, age = np.arange(count) % 2, np.stack([40.0 + np.arange(count), np.ones(count)], axis=1)
    patients = tuple(f"{prefix}{i}" for i in range(count))
    found = PopulationTable(patients, features, names, labels, age, ("age", "sex"), np.arange(count) % 3 + 2.0)
    return found, tumours


def test_a_published_table_and_images_of_the_same_tumours_have_the_same_features(tmp_path):
    """Eight bits, one slice of two with tumour, and the image that is asked for."""
    cohort, tumours = table()
    cases = []
    for name, label, tumour in zip(cohort.patients, cohort.labels, tumours, strict=True):
        volume, mask = np.zeros((2, 12, 12, 4), np.float32), np.zeros((12, 12, 4), np.uint8)
        volume[:] = np.random.default_rng(9).random(volume.shape)
        mask[1:11, 1:6, 2], mask[0, :3, 1] = 1, 1
        volume[1, 1:11, 1:6, 2] = tumour.reshape(10, 5)
        for k in range(2):
            nibabel.save(nibabel.Nifti1Image(volume[k], np.diag([1, 1, 5, 1])), tmp_path / f"{name}_{k}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([1, 1, 5, 1])), tmp_path / f"{name}_m.nii.gz")
        case = {"patient": name, "image": [f"{name}_0.nii.gz", f"{name}_1.nii.gz"], "mask": f"{name}_m.nii.gz"}
        cases.append({**case, "label": int(label), "covariates": {"age": 50.0}})
    testing = [*cases[4:], {**cases[0], "patient": "unlabelled", "label": None}]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": cases[:4], "testing": testing}))
    found, wanted = measured(tmp_path, 1, ["age"], 1), published(cohort)
    assert found.patients == wanted.patients and found.feature_names == wanted.feature_names
    np.testing.assert_allclose(found.features, wanted.features, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, cohort.labels)
    assert (found.covariate("age") == 50).all() and np.isnan(found.grade).all()
    assert not np.allclose(measured(tmp_path, 1, ["age"], 2).features, wanted.features, rtol=1e-3)
    with pytest.raises(DataError, match="U0: image 2"):
        measured(tmp_path, 2, [], 1)


def test_a_table_without_the_columns_is_refused():
    cohort, _ = table()
    with pytest.raises(DataError, match="lacks original_firstorder_10Percentile"):
        published(PopulationTable(cohort.patients, cohort.features[:, -1:], cohort.feature_names[-1:], *[None] * 4))


def test_cohorts_are_joined_by_feature_and_never_share_a_patient():
    cohort, other = table()[0], table(4, seed=1, prefix="T")[0]
    both = joined(cohort, other, ["age"])
    assert both.patients == cohort.patients + other.patients and both.covariate_names == ("age",)
    np.testing.assert_array_equal(both.features[6:], other.features)
    np.testing.assert_array_equal(both.covariates[:, 0], [*cohort.covariates[:, 0], *other.covariates[:, 0]])
    with pytest.raises(DataError, match="in the table, too: U0"):
        joined(cohort, cohort, ["age"])
    with pytest.raises(DataError, match="features differ: 10Percentile"):
        joined(cohort, published(other), ["age"])


def test_only_some_grades():
    cohort = table(12)[0]
    kept = of_grades(cohort, [2, 3])
    assert set(kept.grade) == {2.0, 3.0} and kept.patients == tuple(f"U{i}" for i in range(12) if i % 3 < 2)
    np.testing.assert_array_equal(kept.labels, [i % 2 for i in range(12) if i % 3 < 2])
    with pytest.raises(DataError, match="0 patients are of grade 9"):
        of_grades(cohort, [9])
