"""The penalised regression against scikit-learn's own classes put together anew, and its stability measures."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shared.biomarkers import (
    AdditiveFit,
    bootstrap_weights,
    calibrate_members,
    fit_additive,
    match_biomarkers,
    rank_agreement,
)
from shared.biomarkers import additive as module
from shared.errors import DataError


def cohort(count=40, seed=0, prevalence=0.3, width=5):
    """Shares of biomarkers, of which the first speaks for class 1, and two covariates in years and in cm."""
    random = np.random.default_rng(seed)
    y = (np.arange(count) < prevalence * count).astype(int)
    x = random.dirichlet(np.ones(width), count) * np.array([1, 2, 0.5, 1, 0.1])[:width]
    x[:, 0] += 0.15 * y
    known = np.stack([50 + 15 * random.standard_normal(count) + 6 * y, 170 + 10 * random.standard_normal(count)], 1)
    order = random.permutation(count)
    return x[order], y[order], known[order]


def odds(fit, x, known):
    return fit.bias + x @ fit.weight + known @ fit.covariate_weight


def by_hand(x, y, known, strength, *, folds=5, repeats=4, seed=0):
    """Coefficients, intercept and mean left-out log odds of scikit-learn's pipeline."""
    both = np.hstack([x, known])
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=10000, tol=1e-8)
    )
    # the fit's own scale is that of all training patients; centring is each fit's own and changes no weight
    scale = StandardScaler(with_mean=False)
    total, times, losses = np.zeros(len(y)), np.zeros(len(y)), 0.0
    weight = len(y) / (2 * np.bincount(y))[y]
    for fitted, out in RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed).split(both, y):
        found = model.fit(both[fitted], y[fitted]).decision_function(both[out])
        total[out] += found
        times[out] += 1
        losses += log_loss(y[out], 1 / (1 + np.exp(-found)), sample_weight=weight[out], labels=[0, 1])
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=10000, tol=1e-8)
    scaled = scale.fit_transform(both) - scale.transform(both).mean(axis=0)
    model.fit(scaled, y)
    coefficients = model.coef_[0] / scale.scale_
    return coefficients, model.intercept_[0] - coefficients @ both.mean(axis=0), total / times, losses


def calibrated_by_hand(odds, y):
    """Slope and shift of the most probable calibration, patient by patient: log slope * SD is normal, variance 1/6."""

    def surprise(found):
        slope, shift = found
        if slope <= 0:
            return np.inf
        told = [1 / (1 + np.exp(-(slope * each + shift))) for each in odds]
        losses = [-np.log(p if label == 1 else 1 - p) for p, label in zip(told, y, strict=True)]
        return sum(losses) + 3.0 * np.log(slope * np.std(odds)) ** 2

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    return minimize(
        surprise, [1 / np.std(odds), -np.mean(odds) / np.std(odds)], method="Nelder-Mead", options=options
    ).x


@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_weights_are_scikit_learns_recalibrated_by_the_left_out(strength):
    x, y, known = cohort()
    fit = fit_additive(x, y, known, strength=strength)
    coefficients, intercept, outside, _ = by_hand(x, y, known, strength)
    slope, shift = calibrated_by_hand(outside, y)
    np.testing.assert_allclose(np.append(fit.weight, fit.covariate_weight), slope * coefficients, rtol=2e-3, atol=1e-5)
    expected = slope * (intercept + np.hstack([x, known]) @ coefficients) + shift
    np.testing.assert_allclose(odds(fit, x, known), expected, rtol=2e-3, atol=5e-3)
    assert fit.strength == strength
    np.testing.assert_allclose(fit.mean, x.mean(axis=0))
    np.testing.assert_allclose(fit.covariate_mean, known.mean(axis=0))
    np.testing.assert_allclose(fit.left_out, slope * outside + shift, rtol=2e-3, atol=5e-3)
    # at the cohort's prevalence, though classes count equally in the fit
    assert (1 / (1 + np.exp(-fit.left_out))).mean() == pytest.approx(y.mean(), abs=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.04])
def test_covariates_are_penalised_by_their_share(share):
    x, y, known = cohort(width=4)
    fit = fit_additive(x, y, known, strength=0.05, covariate_penalty=share)
    both = np.hstack([x, known])
    scale = both.std(axis=0)
    z, weight = (both - both.mean(axis=0)) / scale, len(y) / (2 * np.bincount(y))[y]
    penalty = np.array([1.0] * 4 + [share] * 2)

    def objective(found):
        odds = z @ found[:-1] + found[-1]
        return 0.5 * penalty @ found[:-1] ** 2 + 0.05 * weight @ np.logaddexp(0, np.where(y == 1, -odds, odds))

    expected = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-9}).x[:-1]
    weights = np.append(fit.weight, fit.covariate_weight) * scale / fit.slope
    np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=1e-5)
    drawn = bootstrap_weights(x, y, known, strength=0.05, covariate_penalty=share, draws=20)
    alike = bootstrap_weights(x, y, known, strength=0.05, draws=20)
    assert np.array_equal(drawn, alike) == (share == 1.0)


def test_the_strength_is_that_of_least_loss_of_the_left_out():
    x, y, known = cohort(seed=5)
    x[:, 0] -= 0.1 * y  # harder: neither the weakest nor the strongest penalty
    losses = {c: by_hand(x, y, known, c, repeats=1)[3] for c in module.STRENGTHS}
    fit = fit_additive(x, y, known, repeats=1)
    assert fit.strength == min(losses, key=losses.get) and fit.strength not in module.STRENGTHS[::9]
    again = fit_additive(x, y, known, repeats=1, strength=fit.strength)
    np.testing.assert_allclose(again.weight, fit.weight)


@pytest.mark.parametrize("odds", [[-0.05, 0.05], [8.0, -8.0], [1.0, 1.0]])
def test_the_slope_stays_finite_and_above_zero_and_the_prevalence_is_kept(odds):
    y = np.array([0] * 15 + [1] * 5)
    told = np.where(y == 1, odds[1], odds[0]) + 0.001 * np.arange(20)
    slope, shift = module._calibration(told, y)
    assert 0 < slope * told.std() < 10  # told apart without error, or the wrong way round
    np.testing.assert_allclose([slope, shift], calibrated_by_hand(told, y), rtol=1e-3, atol=1e-3)
    assert (1 / (1 + np.exp(-(slope * told + shift)))).mean() == pytest.approx(0.25, abs=1e-9)


def test_many_patients_tell_the_slope_and_few_are_drawn_towards_a_spread_of_one():
    random = np.random.default_rng(0)
    odds = random.standard_normal(20_000)
    y = (random.random(20_000) < 1 / (1 + np.exp(-2.5 * odds))).astype(int)
    platt = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], y).coef_[0, 0]
    assert module._calibration(odds, y)[0] == pytest.approx(platt, rel=0.01)
    few = slice(0, 30)
    platt = LogisticRegression(C=np.inf).fit(odds[few, None], y[few]).coef_[0, 0] * odds[few].std()
    assert 1.1 < module._calibration(odds[few], y[few])[0] * odds[few].std() < platt - 0.1


def test_members_are_brought_to_one_scale_and_calibrated_together():
    x, y, known = cohort()
    first = fit_additive(x, y, known, strength=0.1)
    (alone,) = calibrate_members([first], y)
    np.testing.assert_allclose(odds(alone, x, known), odds(first, x, known), atol=1e-6)
    other = fit_additive(x[:, 1:], y, known, strength=0.1)
    loud = dataclasses.replace(  # the same fit, ten times too sure
        other,
        weight=10 * other.weight,
        covariate_weight=10 * other.covariate_weight,
        bias=10 * other.bias,
        slope=10 * other.slope,
        left_out=10 * other.left_out,
    )
    together = calibrate_members([first, other], y)
    for fit, again in zip(together, calibrate_members([first, loud], y), strict=True):
        for field in dataclasses.fields(fit):
            np.testing.assert_allclose(getattr(again, field.name), getattr(fit, field.name), atol=1e-6)
    a, b = (fit.left_out for fit in (first, other))
    mean = (a / a.std() + b / b.std()) / 2
    slope, shift = calibrated_by_hand(mean, y)
    left_out = np.mean([fit.left_out for fit in together], axis=0)
    np.testing.assert_allclose(left_out, slope * mean + shift, atol=1e-4)
    np.testing.assert_allclose(  # the weights' slope is that of what they say
        together[1].weight / together[1].slope, other.weight / other.slope, rtol=1e-9
    )


def test_groups_stay_together_in_the_inner_folds(monkeypatch):
    x, y, _ = cohort()
    groups, pairs = np.arange(40) // 4, []
    plain = module.StratifiedGroupKFold

    class Watched(plain):
        def split(self, *given):
            for fitted, out in super().split(*given):
                pairs.append((set(groups[fitted]), set(groups[out])))
                yield fitted, out

    monkeypatch.setattr(module, "StratifiedGroupKFold", Watched)
    fit_additive(x, y, strength=0.1, repeats=2, groups=groups)
    assert len(pairs) == 10 and all(not one & other for one, other in pairs)
    assert len({tuple(sorted(out)) for _, out in pairs}) > 5  # the second repeat has other folds


def test_common_scaling_spares_what_hardly_occurs():
    x, y, _ = cohort()
    x[:, 4] = 1e-4 * (y + 0.1 * np.random.default_rng(0).standard_normal(40))  # rare and telling
    own, common = (fit_additive(x, y, strength=0.1, scaling=scaling) for scaling in ("own", "common"))
    spread = x.std(axis=0)
    assert abs(own.weight * spread)[4] == max(abs(own.weight * spread))
    assert abs(common.weight * spread)[4] < 1e-3 * max(abs(common.weight * spread))
    # every biomarker alike: no change of units by a common factor matters
    again = fit_additive(10 * x, y, strength=0.1, scaling="common")
    np.testing.assert_allclose(again.weight * 10, common.weight, rtol=1e-3, atol=1e-6)


def test_l1_keeps_few_biomarkers():
    x, y, known = cohort()
    few, all_of_them = (fit_additive(x, y, known, penalty=penalty, strength=0.1) for penalty in ("l1", "l2"))
    assert 0 < (few.weight != 0).sum() < 4 and few.weight[0] > 0 and (all_of_them.weight != 0).all()


def test_a_biomarker_nobody_has_gets_no_weight():
    x, y, _ = cohort()
    x[:, 2] = 0
    fit = fit_additive(x, y, strength=1.0)
    assert fit.weight[2] == 0 and isinstance(fit, AdditiveFit) and fit.covariate_weight.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"amounts": np.full((40, 5), np.nan)}, DataError, "must be finite"),
        ({"labels": np.zeros(40, dtype=int)}, DataError, r"two classes, 0 and 1; got \[40, 0\]"),
        ({"labels": np.arange(40) % 3}, DataError, "two classes, 0 and 1; got"),
        ({"labels": np.zeros(39, dtype=int)}, DataError, "n labels"),
        ({"amounts": np.zeros(40)}, DataError, r"\[n, F\]"),
        ({"covariates": np.full((40, 1), np.inf)}, DataError, "must be finite"),
        ({"penalty": "l3"}, ValueError, "penalty must be one of"),
        ({"scaling": "none"}, ValueError, "scaling must be one of"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, error, message):
    x, y, known = cohort()
    with pytest.raises(error, match=message):
        fit_additive(**{"amounts": x, "labels": y, "covariates": known, **change})


def test_bootstrapped_weights_are_fits_to_patients_drawn_within_classes():
    x, y, known = cohort()
    found = bootstrap_weights(x, y, known, strength=0.3, draws=3, seed=4)
    generator, both = np.random.default_rng(4), np.hstack([x, known])
    scale = both.std(axis=0)
    for row in found:
        drawn = np.concatenate([generator.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        assert np.bincount(y[drawn]).tolist() == np.bincount(y).tolist()
        model = LogisticRegression(C=0.3, class_weight="balanced", max_iter=10000, tol=1e-8)
        model.fit(both[drawn] / scale - (both[drawn] / scale).mean(axis=0), y[drawn])
        np.testing.assert_allclose(row, (model.coef_[0] / scale)[:5], rtol=5e-3, atol=1e-3)
    assert found.shape == (3, 5) and np.ptp(found, axis=0).min() > 0
    assert np.array_equal(bootstrap_weights(x, y, known, strength=0.3, draws=3, seed=4), found)
    assert bootstrap_weights(x, y, draws=0).shape == (0, 5)


def test_biomarkers_of_another_numbering_are_matched():
    random = np.random.default_rng(0)
    first, order = random.integers(-1, 5, (3, 8, 8)), np.array([3, 0, 4, 1, 2])
    second = np.where(first >= 0, order[first], -1)
    partner, overlap = match_biomarkers(first, second, 5)
    assert partner.tolist() == order.tolist() and overlap.tolist() == [1.0] * 5
    noisy = np.where((random.random(first.shape) < 0.3) & (first >= 0), random.integers(0, 5, first.shape), second)
    partner, overlap = match_biomarkers(first, noisy, 5)
    dice = np.array(
        [
            [2 * ((first == a) & (noisy == b)).sum() / ((first == a).sum() + (noisy == b).sum()) for b in range(5)]
            for a in range(5)
        ]
    )
    best = max(itertools.permutations(range(5)), key=lambda p: sum(dice[a, p[a]] for a in range(5)))
    assert tuple(partner) == best
    np.testing.assert_allclose(overlap, dice[np.arange(5), partner])


def test_biomarkers_that_do_not_occur_have_no_overlap():
    partner, overlap = match_biomarkers([0, 0, -1], [1, 1, 0], 3)
    assert partner[0] == 1 and overlap[0] == 1.0 and np.isnan(overlap[1:]).all()
    with pytest.raises(DataError, match="same places are needed, got 3 and 2"):
        match_biomarkers([0, 0, 1], [0, 1], 2)


def test_effects_agree_by_rank():
    assert rank_agreement([1, 2, 3, 4], [1, 10, 9, 100]) == pytest.approx(0.8)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == -1.0
    assert np.isnan(rank_agreement([1.0], [2.0])) and np.isnan(rank_agreement([1, 1], [1, 2]))
