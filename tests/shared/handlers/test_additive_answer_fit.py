"""How the additive answer is fitted: to which numbers, with which folds, and what is written of it."""

import csv
import json

import numpy as np
import pytest
import torch

from shared.biomarkers import bootstrap_weights, fit_additive
from shared.errors import DataError
from shared.handlers import FitAdditive
from tests.support.tiny_glioma_rows import glioma_classifier, patients_rows


@pytest.fixture
def network():
    return glioma_classifier(unimodal=True, additive=True, num_covariates=1)


def told(count=16, *, seed=0):
    """Rows, and scores of which the image's and the brain's tell the label a little."""
    rows, generator = patients_rows(count), torch.Generator().manual_seed(seed)
    scores = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 3.0, 0.5])
    return rows, scores + rows.labels[:, None] * torch.tensor([1.0, 0.0, 0.6])


def test_weights_are_those_of_the_penalised_regression_on_scores_and_covariates(network, tmp_path):
    rows, scores = told()
    FitAdditive(tmp_path, covariates=["age"])(network, scores, rows)
    x = np.hstack([scores.double().numpy(), rows.covariate_table.double().numpy()])
    expected, answer = fit_additive(x, rows.labels.numpy()), network.additive
    np.testing.assert_allclose(answer.weight.numpy(), expected.weight, rtol=1e-12)
    np.testing.assert_allclose(answer.bias.numpy(), [expected.bias], rtol=1e-12)
    np.testing.assert_allclose(answer.mean.numpy(), x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(answer.spread.numpy(), x.std(axis=0), rtol=1e-12)
    # calibrated: the mean probability is about the prevalence; the image's score and the age tell the label
    probability = answer(scores, rows.covariate_table).sigmoid()
    assert probability.mean().item() == pytest.approx(0.5, abs=0.1)
    assert answer.weight[0] > 0 > answer.weight[3]
    with (tmp_path / "additive_terms.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["term"] for row in table] == ["image", "points", "brain", "age"]
    # the interval is on the scale of the effect, which is calibrated
    draws = expected.slope * bootstrap_weights(x, rows.labels.numpy(), strength=expected.strength)
    assert abs(expected.slope - 1) > 0.05
    for k, row in enumerate(table):
        assert float(row["effect"]) == pytest.approx(expected.weight[k] * x[:, k].std(), rel=1e-12)
        found = [float(row["effect_low"]), float(row["effect_high"])]
        assert found == pytest.approx(np.percentile(draws[:, k], [2.5, 97.5]) * x[:, k].std(), rel=1e-12)
    content = json.loads((tmp_path / "additive_terms.json").read_text())
    assert content["strength"] == expected.strength and content["patients"] == 16


def test_strength_folds_and_seed_reach_the_fit(network):
    rows, scores = told()
    given = {"strength": 1.0, "folds": 3, "repeats": 1, "seed": 7}
    FitAdditive(**given)(network, scores, rows)
    x = np.hstack([scores.double().numpy(), rows.covariate_table.double().numpy()])
    np.testing.assert_allclose(network.additive.weight.numpy(), fit_additive(x, rows.labels.numpy(), **given).weight)
    for other in ({"strength": 0.1}, {"folds": 5}, {"repeats": 2}, {"seed": 0}):
        found = fit_additive(x, rows.labels.numpy(), **given | other).weight
        assert not np.allclose(network.additive.weight.numpy(), found, rtol=1e-6), other


def test_an_unknown_covariate_is_the_mean_of_the_known(network):
    rows, scores = told()
    rows.items[3]["covariates"] = torch.tensor([torch.nan])
    FitAdditive()(network, scores, rows)
    known = [float(item["covariates"]) for k, item in enumerate(rows.items) if k != 3]
    assert network.additive.mean[3].item() == pytest.approx(np.mean(known), rel=1e-6)
    assert network.additive.weight.isfinite().all()


def test_patients_of_a_group_share_an_inner_fold(network):
    rows, scores = told()
    for k, item in enumerate(rows.items):
        item["group"] = f"g{k // 4}{k % 2}"
    FitAdditive()(network, scores, rows)
    x = np.hstack([scores.double().numpy(), rows.covariate_table.double().numpy()])
    groups = [item["group"] for item in rows.items]
    grouped = fit_additive(x, rows.labels.numpy(), groups=groups)
    np.testing.assert_allclose(network.additive.weight.numpy(), grouped.weight, rtol=1e-12)
    assert not np.allclose(grouped.weight, fit_additive(x, rows.labels.numpy()).weight)


def test_a_score_that_is_no_number_is_refused_by_patient_and_encoder(network):
    rows, scores = told()
    scores[5, 2] = torch.inf
    with pytest.raises(DataError, match="P5: the brain encoder's score is inf"):
        FitAdditive()(network, scores, rows)


def test_nothing_is_fitted_where_there_is_no_additive_answer(tmp_path):
    rows, scores = told()
    FitAdditive(tmp_path)(glioma_classifier(), scores, rows)
    assert not list(tmp_path.iterdir())
