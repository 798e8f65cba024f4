"""The radiomics features against loops over pixels in float64, and the classifier of many features."""

import math

import numpy as np
import pytest

from shared.apps.baselines.radiomics import LEVELS, radiomics_features
from shared.metrics.classifiers import classifier


@pytest.fixture
def patient():
    """Two modalities of 12 x 12 x 4 voxels of 0.5 x 0.5 x 3 mm; the tumour has a hole and lies in three slices."""
    random = np.random.default_rng(0)
    volumes = random.uniform(1, 5, (2, 12, 12, 4))
    mask = np.zeros((12, 12, 4), bool)
    mask[3:9, 2:10, 0] = mask[3:8, 2:7, 1] = mask[4:6, 4:6, 2] = True
    mask[5, 5, 0] = False
    return volumes, mask, np.diag([0.5, 0.5, 3, 1])


def grey_levels(volume, mask, slices, levels):
    inside = [volume[x, y, z] for z in slices for x in range(12) for y in range(12) if mask[x, y, z]]
    low, high = np.percentile(inside, 1), np.percentile(inside, 99)
    return lambda value: min(max(math.floor((value - low) / (high - low) * levels), 0), levels - 1)


def test_cooccurrences_equal_a_loop_over_pairs_within_the_tumour(patient):
    volumes, mask, affine = patient
    features = radiomics_features(volumes, mask, affine, 2, ["T1", "T2"])
    for name, volume in zip(("T1", "T2"), volumes, strict=True):
        level = grey_levels(volume, mask, (0, 1), LEVELS)
        for distance in (1, 2):
            counts = np.zeros((LEVELS, LEVELS))
            diagonal = round(distance / math.sqrt(2))  # the pixel nearest to that distance, as scikit-image takes it
            for z in (0, 1):
                for x, y in np.argwhere(mask[:, :, z]):
                    for dx, dy in ((0, distance), (distance, 0), (diagonal, diagonal), (diagonal, -diagonal)):
                        u, v = x + dx, y + dy
                        if 0 <= u < 12 and 0 <= v < 12 and mask[u, v, z]:
                            a, b = level(volume[x, y, z]), level(volume[u, v, z])
                            counts[a, b] += 1
                            counts[b, a] += 1
            p = counts / counts.sum()
            expected = {"contrast": 0.0, "dissimilarity": 0.0, "homogeneity": 0.0, "ASM": 0.0, "entropy": 0.0}
            mean = sum(i * p[i].sum() for i in range(LEVELS))
            variance = sum((i - mean) ** 2 * p[i].sum() for i in range(LEVELS))
            covariance = 0.0
            for i in range(LEVELS):
                for j in range(LEVELS):
                    expected["contrast"] += p[i, j] * (i - j) ** 2
                    expected["dissimilarity"] += p[i, j] * abs(i - j)
                    expected["homogeneity"] += p[i, j] / (1 + (i - j) ** 2)
                    expected["ASM"] += p[i, j] ** 2
                    expected["entropy"] -= p[i, j] * math.log(p[i, j]) if p[i, j] else 0.0
                    covariance += p[i, j] * (i - mean) * (j - mean)
            expected["correlation"] = covariance / variance
            for key, value in expected.items():
                assert features[f"radiomics_{name}_glcm{distance}_{key}"] == pytest.approx(value, rel=1e-9), key


def test_first_order_and_patterns_equal_loops(patient):
    volumes, mask, affine = patient
    features = radiomics_features(volumes, mask, affine, 3, ["T1", "T2"])
    volume, slices = volumes[1], (0, 1, 2)
    organ = np.mean([value for value in volume.ravel() if value > 0.1 * np.percentile(volume, 99)])
    inside = [volume[x, y, z] / organ for z in slices for x, y in np.argwhere(mask[:, :, z])]
    mean = sum(inside) / len(inside)
    moments = [sum((v - mean) ** k for v in inside) / len(inside) for k in (2, 3, 4)]
    level = grey_levels(volume, mask, slices, LEVELS)
    shares = np.zeros(LEVELS)
    for value in inside:
        shares[level(value * organ)] += 1 / len(inside)
    expected = {
        "mean": mean,
        "sd": math.sqrt(moments[0]),
        "minimum": min(inside),
        "median": sorted(inside)[len(inside) // 2] if len(inside) % 2 else None,
        "maximum": max(inside),
        "absolute_deviation": sum(abs(v - mean) for v in inside) / len(inside),
        "root_mean_square": math.sqrt(sum(v * v for v in inside) / len(inside)),
        "skewness": moments[1] / moments[0] ** 1.5,
        "kurtosis": moments[2] / moments[0] ** 2 - 3,
        "entropy": -sum(p * math.log2(p) for p in shares if p),
        "uniformity": sum(p * p for p in shares),
    }
    for key, value in expected.items():
        if value is not None:
            assert features[f"radiomics_T2_{key}"] == pytest.approx(value, rel=1e-9), key
    # uniform patterns of a neighbourhood: at most two changes around it; diagonal neighbours are interpolated
    fine, codes = grey_levels(volume, mask, slices, 256), np.zeros(10)
    for z in slices:
        grey = np.array([[fine(volume[x, y, z]) for y in range(12)] for x in range(12)], float)
        for x, y in np.argwhere(mask[:, :, z]):
            bits = []
            for k in range(8):
                r, c = -math.sin(2 * math.pi * k / 8), math.cos(2 * math.pi * k / 8)
                r, c = round(r, 5), round(c, 5)
                x0, y0 = math.floor(x + r), math.floor(y + c)
                a, b = x + r - x0, y + c - y0
                x1, y1 = math.ceil(x + r), math.ceil(y + c)
                top = (1 - b) * grey[x0, y0] + b * grey[x0, y1]
                value = (1 - a) * top + a * ((1 - b) * grey[x1, y0] + b * grey[x1, y1])
                bits.append(int(value - grey[x, y] >= 0))
            changes = sum(bits[k] != bits[k - 1] for k in range(8))
            codes[sum(bits) if changes <= 2 else 9] += 1 / len(inside)
    assert [features[f"radiomics_T2_lbp{code}"] for code in range(10)] == pytest.approx(codes.tolist(), abs=1e-12)


def test_shape_is_in_mm_and_no_matter_of_the_pixels():
    x, y = np.meshgrid(np.arange(96) - 47.5, np.arange(96) - 47.5, indexing="ij")
    ellipse = ((x / 40) ** 2 + (y / 20) ** 2 <= 1)[:, :, None]
    volume = np.random.default_rng(0).random((1, 96, 96, 1)) + 1
    fine = radiomics_features(volume, ellipse, np.diag([0.5, 0.5, 4, 1]), 1)
    assert fine["radiomics_area_mm2"] == pytest.approx(math.pi * 20 * 10, rel=0.01)
    assert fine["radiomics_major_axis_mm"] == pytest.approx(40, rel=0.01)
    assert fine["radiomics_minor_axis_mm"] == pytest.approx(20, rel=0.01)
    assert fine["radiomics_largest_diameter_mm"] == pytest.approx(40, rel=0.03)
    assert fine["radiomics_eccentricity"] == pytest.approx(math.sqrt(0.75), rel=0.01)
    assert fine["radiomics_solidity"] > 0.97 and 0.6 < fine["radiomics_roundness"] < 0.9
    # the same ellipse on pixels twice as high
    coarse = radiomics_features(volume[:, ::2], ellipse[::2], np.diag([1.0, 0.5, 4, 1]), 1)
    tolerance = {"area_mm2": 0.01, "major_axis_mm": 0.01, "minor_axis_mm": 0.01, "solidity": 0.01, "perimeter_mm": 0.06}
    for key, share in tolerance.items():
        assert coarse[f"radiomics_{key}"] == pytest.approx(fine[f"radiomics_{key}"], rel=share), key


def test_a_tumour_of_one_pixel_is_measured():
    mask = np.zeros((6, 6, 2), bool)
    mask[3, 3, 1] = True
    features = radiomics_features(np.ones((1, 6, 6, 2)), mask, np.eye(4), 3, ["T1"])
    missing = {name for name, value in features.items() if math.isnan(value)}
    assert {"radiomics_T1_glcm1_contrast", "radiomics_solidity"} <= missing and features["radiomics_area_mm2"] == 1
    assert features["radiomics_T1_skewness"] == 0 and sum(features[f"radiomics_T1_lbp{k}"] for k in range(10)) == 1


def test_many_features_are_shrunk_by_a_penalty_chosen_in_the_training_patients():
    random = np.random.default_rng(1)
    table, labels = random.normal(size=(60, 80)), np.arange(60) % 2
    table[:, 7] += 3 * labels
    table[3, 5] = np.nan
    model = classifier("logistic_many", folds=3).fit(table, labels)
    search = model[-1]
    assert search.cv == 3 and search.best_params_["l1_ratio"] == 1.0
    kept = np.flatnonzero(search.best_estimator_.coef_[0])
    assert 7 in kept and len(kept) < 30
    told_apart = {}
    for kind in ("logistic", "logistic_many"):  # of features that know nothing
        model = classifier(kind).fit(random.normal(size=(60, 80)), labels)
        told_apart[kind] = model.predict_proba(table)[:, 1].std()
    assert told_apart["logistic_many"] < 0.6 * told_apart["logistic"]
