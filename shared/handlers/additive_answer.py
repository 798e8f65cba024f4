"""The additive answer's weights: a penalised regression on the encoders' scores of patients they did not see."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from shared.data.brain.cases import GliomaRows
from shared.data.splits import groups_of
from shared.distributed.processes import is_main
from shared.errors import DataError
from shared.io import write_csv, write_json
from shared.networks.glioma.classifier import GliomaClassifier

logger = logging.getLogger(__name__)


class FitAdditive:
    """Fit ``network.additive``, see :func:`shared.biomarkers.fit_additive`; write its terms with their intervals.

    Scores and covariates are standardised and penalised alike. An unknown covariate is the mean of the known ones.

    Args:
        output_dir: where ``additive_terms.csv`` and ``additive_terms.json`` go; None: nowhere.
        covariates: their names.
        strength: C of the regression; None: by inner cross-validation of these patients.
        folds: of the inner cross-validation.
        repeats: of it.
        bootstrap: draws of the terms' intervals, of the regression alone.
        seed: of folds and draws.

    Raises:
        DataError: scores that are not finite numbers, or patients of one class.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike | None = None,
        *,
        covariates: Sequence[str] = (),
        strength: float | None = None,
        folds: int = 5,
        repeats: int = 4,
        bootstrap: int = 200,
        seed: int | None = 0,
    ):
        self.output_dir, self.covariates = output_dir and Path(output_dir), list(covariates)
        self.strength, self.folds, self.repeats, self.bootstrap = strength, folds, repeats, bootstrap
        self.seed = seed or 0

    def __call__(self, network: GliomaClassifier, scores: Tensor, rows: GliomaRows) -> None:
        """Fit to the scores ``[N, K]`` of these patients.

        Args:
            network: whose additive answer is filled.
            scores: logits of the encoders' own classifiers.
            rows: the patients, with labels, covariates and groups.
        """
        from shared.biomarkers import bootstrap_weights, fit_additive

        answer = network.additive
        if answer is None:
            return
        encoders = network.features.glioma.encoders
        x, labels = scores.double().cpu().numpy(), rows.labels.numpy()
        if not np.isfinite(x).all():
            case, encoder = np.argwhere(~np.isfinite(x))[0]
            raise DataError(
                f"{rows.patients[case]}: the {encoders[encoder]} encoder's score is {x[case, encoder]}, no finite "
                "number; its training went astray: look at the stage contrast's loss, lower contrast#learning_rate"
            )
        known = rows.covariate_table.double().numpy()[:, : answer.num_covariates]
        # all unknown: 0, which says the same of everybody
        mean = np.nan_to_num(np.nanmean(known, axis=0)) if np.isfinite(known).any() else np.zeros(known.shape[1])
        x = np.hstack([x, np.where(np.isnan(known), mean, known)])
        group_of = groups_of(rows.items)
        fit = fit_additive(
            x,
            labels,
            strength=self.strength,
            folds=self.folds,
            repeats=self.repeats,
            seed=self.seed,
            groups=group_of and [group_of[name] for name in rows.patients],
        )
        spread = x.std(axis=0)
        answer.fill(weight=fit.weight, bias=fit.bias, mean=fit.mean, spread=spread)
        if self.output_dir is None or not is_main():
            return
        draws = bootstrap_weights(x, labels, strength=fit.strength, draws=self.bootstrap, seed=self.seed)
        low, high = fit.slope * np.percentile(draws, [2.5, 97.5], axis=0) if len(draws) else (fit.weight, fit.weight)
        table = [
            {
                "term": name,
                "weight": float(fit.weight[k]),
                "mean": float(fit.mean[k]),
                "sd": float(spread[k]),
                **{
                    key: float(values[k] * spread[k])
                    for key, values in (("effect", fit.weight), ("effect_low", low), ("effect_high", high))
                },
            }
            for k, name in enumerate(term_names(network, self.covariates))
        ]
        write_csv(self.output_dir / "additive_terms.csv", table)
        content = {"terms": table, "bias": fit.bias, "strength": fit.strength, "patients": len(labels)}
        write_json(self.output_dir / "additive_terms.json", content)
        told = ", ".join(f"{row['term']} {row['effect']:+.2f}" for row in table)
        logger.info("Additive answer: log odds for one SD more of %s (%d patients).", told, len(labels))


def term_names(network: GliomaClassifier, covariates: Sequence[str] = ()) -> list[str]:
    """Names of the additive answer's terms: the encoders', then the covariates' (``covariate_<i>`` where not given)."""
    count = 0 if network.additive is None else network.additive.num_covariates
    names = [*covariates] if len(covariates) == count else [f"covariate_{i}" for i in range(count)]
    return [*network.features.glioma.encoders, *names]
