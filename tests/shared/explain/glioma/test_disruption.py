import csv
import itertools
import json

import nibabel as nib
import numpy as np
import pytest

from shared.explain.glioma.disruption import STEM, DisruptedTracts, compare_groups, covered_voxels, tract_density
from tests.support.tiny_brain import tiny_atlas


def planted(difference, seed, patients=30, tracts=20):
    """Kept tracts: the first five oftener in class 0, by ``difference``; labels alternate."""
    rng, labels = np.random.default_rng(seed), np.arange(patients) % 2
    share = np.full((patients, tracts), 0.2)
    share[labels == 0, :5] += difference
    return rng.random((patients, tracts)) < share, labels


def test_the_density_is_the_share_of_the_tracts_voxels():
    atlas, kept = tiny_atlas(), np.array([True, False, False, True, False])
    wanted = set(atlas.tract(0)[0]) | set(atlas.tract(3)[0])
    covered = covered_voxels(atlas, kept)
    assert set(np.flatnonzero(covered)) == wanted
    every = set().union(*(atlas.tract(edge)[0] for edge in range(5)))
    assert tract_density(atlas, covered) == pytest.approx(len(wanted) / len(every))
    assert tract_density(atlas, covered_voxels(atlas, np.zeros(5, bool))) == 0


def test_p_is_that_of_all_exchanges_of_labels():
    rng = np.random.default_rng(3)
    values, labels = rng.random((7, 3)), np.array([0, 1, 0, 1, 1, 0, 1])
    values[labels == 0, 0] += 0.6
    found = compare_groups(values, labels)
    null = []
    for chosen in itertools.combinations(range(7), 3):
        first = np.isin(np.arange(7), chosen)
        null.append(values[first].mean(axis=0) - values[~first].mean(axis=0))
    null, observed = np.array(null), values[labels == 0].mean(axis=0) - values[labels == 1].mean(axis=0)
    np.testing.assert_allclose(found["difference"], observed)
    np.testing.assert_allclose(found["means"], [values[labels == 0].mean(axis=0), values[labels == 1].mean(axis=0)])
    np.testing.assert_allclose(found["p"], (np.abs(null) >= np.abs(observed) - 1e-12).mean(axis=0))
    assert (found["p"] <= found["p_corrected"] + 1e-12).all()
    largest = np.abs(null / values.std(axis=0)).max(axis=1)
    reached = [(largest >= one - 1e-12).mean() for one in np.abs(observed / values.std(axis=0))]
    np.testing.assert_allclose(found["p_corrected"], reached)


def test_a_planted_difference_is_found_where_it_is():
    kept, labels = planted(0.7, seed=0, patients=60)
    assert compare_groups(kept.mean(axis=1)[:, None], labels)["p"][0] < 0.005
    tracts = compare_groups(kept, labels)
    assert (tracts["p_corrected"][:5] < 0.05).all() and (tracts["p_corrected"][5:] > 0.05).all()
    assert (tracts["difference"][:5] > 0.3).all()


def test_without_a_difference_p_is_even_and_a_twentieth_of_the_comparisons_finds_a_tract():
    single, any_tract = [], []
    for seed in range(150):
        kept, labels = planted(0.0, seed)
        single.append(compare_groups(kept.mean(axis=1)[:, None], labels, draws=200, seed=seed)["p"][0])
        any_tract.append(compare_groups(kept, labels, draws=200, seed=seed)["p_corrected"].min())
    assert 0.4 < np.mean(single) < 0.62 and np.mean(np.array(single) < 0.5) == pytest.approx(0.5, abs=0.12)
    assert np.mean(np.array(single) < 0.05) < 0.11 and np.mean(np.array(any_tract) < 0.05) < 0.11


def test_files_of_both_classes(tmp_path):
    atlas = tiny_atlas()
    gathered = DisruptedTracts(atlas)
    for kept, label in (
        ([1, 0, 0, 0, 0], 0),
        ([1, 1, 0, 0, 0], 0),
        ([0, 0, 0, 0, 1], 1),
        ([0] * 5, 1),
        ([1] * 5, None),
    ):
        assert gathered.add(np.array(kept, bool), label) == tract_density(atlas, covered_voxels(atlas, np.array(kept)))
    gathered.write(tmp_path, ["wild type", "mutant"], draws=50)
    with (tmp_path / f"{STEM}.csv").open(newline="") as file:
        rows = {int(row["tract"]): row for row in csv.DictReader(file)}
    assert [float(rows[edge]["kept_0"]) for edge in range(5)] == [1, 0.5, 0, 0, 0]
    assert [float(rows[edge]["kept_1"]) for edge in range(5)] == [0, 0, 0, 0, 0.5]
    summary = json.loads((tmp_path / f"{STEM}.json").read_text())
    assert summary["patients"] == [2, 2] and summary["difference"] == pytest.approx(np.diff(summary["density"])[0] * -1)
    shares = [nib.load(tmp_path / f"{STEM}_{label}.nii.gz").get_fdata() for label in (0, 1)]
    assert shares[0].flat[atlas.tract(0)[0]].min() == 1 and shares[1].flat[atlas.tract(4)[0]].min() == 0.5
    assert (tmp_path / f"{STEM}.png").stat().st_size > 5000


def test_a_class_of_one_patient_is_not_compared(tmp_path, caplog):
    gathered = DisruptedTracts(tiny_atlas())
    for label in (0, 0, 1):
        gathered.add(np.ones(5, bool), label)
    with caplog.at_level("INFO"):
        gathered.write(tmp_path, ["wild type", "mutant"])
    assert not list(tmp_path.iterdir()) and "two patients of each class" in caplog.text
