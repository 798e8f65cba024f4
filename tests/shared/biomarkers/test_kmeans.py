import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from shared.biomarkers import fit_biomarkers
from shared.errors import DataError


def _embeddings(count=300, dim=16, clusters=6, spread=0.1, seed=0):
    random = np.random.default_rng(seed)
    truth = random.integers(0, clusters, count)
    centres = random.standard_normal((clusters, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    x = centres[truth] + spread * random.standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True), truth


def test_finds_planted_clusters():
    x, truth = _embeddings()
    found = fit_biomarkers(x, 6)
    assert adjusted_rand_score(truth, found.assignment) == 1.0


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_assignment_is_the_argmax_and_centres_are_unit_means(spread):
    x, _ = _embeddings(spread=spread)
    found = fit_biomarkers(x, 6, seed=3)
    assert found.centres.shape == (6, 16) and found.centres.dtype == np.float32
    assert np.linalg.norm(found.centres, axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    similarity = [[float(np.dot(centre.astype(np.float64), row)) for centre in found.centres] for row in x]
    for i, row in enumerate(similarity):
        assert found.assignment[i] == row.index(max(row))
        assert found.similarity[i] == pytest.approx(max(row), abs=1e-6)
    assert np.bincount(found.assignment, minlength=6).min() > 0
    # converged: every centre is the renormalised mean of its own images
    for k in range(6):
        mean = x[found.assignment == k].mean(axis=0)
        assert found.centres[k] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert (found.modality == -1).all()


def test_order_and_result_are_deterministic_and_free_of_the_embeddings_length():
    x, _ = _embeddings(spread=0.5)
    found, again = fit_biomarkers(x, 6), fit_biomarkers(torch.from_numpy(x).requires_grad_(), 6)
    size = np.bincount(found.assignment)
    assert (np.diff(size) <= 0).all()
    assert np.array_equal(found.centres, again.centres)
    scaled = fit_biomarkers(x * np.linspace(0.5, 20, len(x))[:, None], 6)
    assert np.array_equal(found.assignment, scaled.assignment)
    assert found.centres == pytest.approx(scaled.centres, abs=1e-6)


def test_per_modality_clusters_each_modality_by_itself():
    x, _ = _embeddings(spread=0.3)
    modality = np.arange(len(x)) % 3
    found = fit_biomarkers(x, 4, modality=modality, per_modality=True)
    assert found.modality.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (found.modality[found.assignment] == modality).all()
    assert np.bincount(found.assignment, minlength=12).min() > 0
    for one in range(3):
        alone = fit_biomarkers(x[modality == one], 4)
        assert np.array_equal(found.centres[found.modality == one], alone.centres)
        assert np.array_equal(found.assignment[modality == one] - 4 * one, alone.assignment)


def test_assigns_new_images_within_their_modality():
    x, _ = _embeddings(spread=0.3)
    modality = np.arange(len(x)) % 2
    found = fit_biomarkers(x, 3, modality=modality, per_modality=True)
    new, _ = _embeddings(40, seed=9)
    for m in (0, 1):
        nearest, similarity = found.assign(new, np.full(40, m))
        own = new @ found.centres[found.modality == m].T.astype(np.float64)
        assert np.array_equal(nearest, own.argmax(axis=1) + 3 * m)
        assert similarity == pytest.approx(own.max(axis=1), abs=1e-6)
    with pytest.raises(DataError, match="give the modality of every image"):
        found.assign(new)


def test_no_cluster_is_empty_even_where_as_many_images_as_biomarkers_differ():
    x, _ = _embeddings(5, clusters=5)
    found = fit_biomarkers(np.repeat(x, [50, 1, 1, 1, 1], axis=0), 5)
    assert sorted(np.bincount(found.assignment).tolist()) == [1, 1, 1, 1, 50]
    assert found.similarity == pytest.approx(np.ones(54), abs=1e-6)


def test_opposite_images_that_cancel_out_still_have_a_centre():
    x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    found = fit_biomarkers(x, 1)
    assert np.linalg.norm(found.centres) == pytest.approx(1)


def test_errors_give_the_numbers_and_the_remedy():
    x, _ = _embeddings(5)
    with pytest.raises(DataError, match="6 biomarkers need at least 6 distinct images, got 5 of which 5 differ: lower"):
        fit_biomarkers(x, 6)
    with pytest.raises(DataError, match="got 50 of which 5 differ"):
        fit_biomarkers(np.repeat(x, 10, axis=0), 6)
    with pytest.raises(DataError, match="distinct images of modality 1, got 2 of which 2 differ"):
        fit_biomarkers(x, 3, modality=[0, 0, 0, 1, 1], per_modality=True)
    with pytest.raises(DataError, match="per_modality clusters each modality by itself"):
        fit_biomarkers(x, 2, per_modality=True)
    with pytest.raises(DataError, match="5 images, modality of shape"):
        fit_biomarkers(x, 2, modality=[0, 1], per_modality=True)
    with pytest.raises(DataError, match="at least 1, got 0"):
        fit_biomarkers(x, 0)
    with pytest.raises(DataError, match="zero"):
        fit_biomarkers(np.concatenate([x, np.zeros((1, 16))]), 2)
    collapsed = np.ones((40, 16)) + 1e-6 * np.random.default_rng(0).standard_normal((40, 16))
    with pytest.raises(DataError, match="encoder has collapsed"):
        fit_biomarkers(collapsed, 6)
    x[3, 2] = np.nan
    with pytest.raises(DataError, match=r"1 of 5 have NaN or Inf \(first at \[3\]\)"):
        fit_biomarkers(x, 2)


@pytest.mark.parametrize("per_modality", [False, True])
def test_a_weight_counts_like_as_many_equal_images(per_modality):
    x, _ = _embeddings(count=60, clusters=4, spread=0.15)
    weight, modality = np.random.default_rng(1).integers(1, 5, 60), np.arange(60) % 2
    rows = np.repeat(np.arange(60), weight)
    settings = {"per_modality": per_modality, "starts": 30}
    weighted = fit_biomarkers(x, 4, weight=weight, modality=modality, **settings)
    repeated = fit_biomarkers(x[rows], 4, modality=modality[rows], **settings)
    np.testing.assert_allclose(weighted.centres, repeated.centres, atol=1e-6)
    assert np.array_equal(weighted.assignment[rows], repeated.assignment)
    plain = fit_biomarkers(x, 4, modality=modality, **settings)
    assert not np.allclose(plain.centres, weighted.centres, atol=1e-4)
    np.testing.assert_array_equal(
        fit_biomarkers(x, 4, weight=np.full(60, 2.0), modality=modality, **settings).centres, plain.centres
    )
