"""Exact Shapley values of a patient's biomarkers (IRCL section 4.4, Fig. 4).

Lundberg and Lee, A Unified Approach to Interpreting Model Predictions (2017); the players are the K biomarkers, and an
absent one has its prototype masked out of every attention. K is small, so all coalitions are evaluated.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import DataError

MAX_PLAYERS = 16


class BiomarkerShapley(NamedTuple):
    """Shapley values; ``base + values.sum(1) == full``.

    Attributes:
        values: contribution of each biomarker, ``[B, K]`` float64; 0 where the patient does not show it.
        base: output with every biomarker hidden, ``[B]``. It differs between patients: what reaches the head past the
            attention (the residual stream, covariates) is in it.
        full: output with all biomarkers, the network's prediction, ``[B]``.
    """

    values: Tensor
    base: Tensor
    full: Tensor


def exact_shapley(values: np.ndarray) -> np.ndarray:
    r"""Shapley values from the worth of every coalition.

    .. math:: \phi_k = \sum_{S \not\ni k} \frac{|S|!\,(K - |S| - 1)!}{K!}\,\big(v(S \cup k) - v(S)\big)

    Args:
        values: worth of coalition ``i``, whose members are the bits set in ``i`` (bit k = player k).

    Shape:
        - values: ``[2 ** K, ...]``
        - returns: ``[K, ...]`` float64

    Raises:
        ValueError: the first axis is no power of two, or there are more than 16 players.

    Example:
        >>> exact_shapley(np.array([0.0, 1.0, 2.0, 5.0])).tolist()
        [2.0, 3.0]
    """
    values = np.asarray(values, dtype=np.float64)
    count = values.shape[0] if values.ndim else 0
    players = count.bit_length() - 1
    if count < 1 or count != 1 << players or players > MAX_PLAYERS:
        raise ValueError(
            f"Exact Shapley values need 2 ** K coalitions with K at most {MAX_PLAYERS} players, got {count}: "
            "use fewer biomarkers."
        )
    coalition = np.arange(count)
    member = (coalition[None] >> np.arange(players)[:, None]) & 1
    size = member.sum(axis=0)
    # |S|! (K - |S| - 1)! / K! = 1 / (K * C(K - 1, |S|)), |S| counted without the player itself
    weight = np.array([1.0 / (players * comb(players - 1, s)) for s in range(players)] + [0.0])
    signed = np.where(member == 1, weight[size - 1], -weight[size])
    return np.tensordot(signed, values, axes=1)


def no_biomarkers(network: nn.Module) -> str | None:
    """Why a network's prediction cannot be explained by biomarkers; None where it can.

    Example:
        >>> no_biomarkers(nn.Linear(2, 2))
        'the network Linear has no biomarkers: it can be evaluated and asked, not explained by them'
    """
    if not hasattr(network, "biomarkers"):
        kind = type(network).__name__
        return f"the network {kind} has no biomarkers: it can be evaluated and asked, not explained by them"
    if getattr(network.predictor, "attention", "prototype") == "self":
        return 'network_def#attention is "self", which passes the biomarkers by; train with "prototype"'
    return None


def biomarker_shapley(
    classifier: nn.Module,
    h: Tensor,
    assignment: Tensor,
    covariates: Tensor | None = None,
    *,
    output: str = "probability",
    positive: int = 1,
    batch_size: int = 256,
) -> BiomarkerShapley:
    """Exact Shapley values of every patient's biomarkers, all coalitions in batched passes of the predictor.

    Only coalitions of biomarkers that a patient shows are evaluated: the prototype of any other is masked out already,
    so it changes nothing and its value is exactly zero.

    Args:
        classifier: has ``biomarkers [K, E]`` and ``predictor(h, assignment, covariates, present=..., row=...) ->
            logits`` of every row of ``present [R, K]``, ``row [R]`` being its patient.
        h: representations of the patients' images.
        assignment: biomarker of each image.
        covariates: clinical covariates, if the predictor takes any.
        output: what is explained: ``"probability"`` of the positive class, or its ``"logit"`` (log odds).
        positive: the class.
        batch_size: coalitions per pass; more than a few hundred leave a CPU core's cache.

    Shape:
        - h: ``[B, m, D]``, assignment: ``[B, m]`` long, covariates: ``[B, C]`` or None
        - returns: values ``[B, K]``, base ``[B]``, full ``[B]``, all float64 on the CPU

    Raises:
        ValueError: an unknown ``output``, or a patient shows more than 16 biomarkers.
        DataError: the prediction does not depend on biomarkers (``attention="self"``).
    """
    if (reason := no_biomarkers(classifier)) is not None:
        raise DataError(f"There are no Shapley values of biomarkers: {reason}.")
    if output not in ("probability", "logit"):
        raise ValueError(f'output must be "probability" or "logit", got {output!r}.')
    biomarkers = torch.arange(len(classifier.biomarkers), device=assignment.device)
    occurring = (assignment.unsqueeze(-1) == biomarkers).any(dim=1).cpu()
    counts = occurring.sum(dim=1)
    if int(counts.max()) > MAX_PLAYERS:
        raise ValueError(
            f"Exact Shapley values enumerate at most {MAX_PLAYERS} biomarkers per patient, one shows "
            f"{int(counts.max())}: use fewer biomarkers."
        )
    ends = torch.cumsum(2**counts, 0)
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    worth = []
    try:
        with torch.no_grad():
            for start in range(0, int(ends[-1]), batch_size):
                index = torch.arange(start, min(start + batch_size, int(ends[-1])))
                row, present = (x.to(h.device) for x in _coalitions(index, ends, occurring))
                # the patients of this pass, each once: the predictor shares what their coalitions have in common
                part = slice(int(row[0]), int(row[-1]) + 1)
                known = None if covariates is None else covariates[part]
                row = row - part.start
                logits = classifier.predictor(h[part], assignment[part], known, present=present, row=row)
                worth.append(_worth(logits.double(), output, positive).cpu())
    finally:
        for module, mode in modes:
            module.training = mode
    return _gather(torch.cat(worth).numpy(), occurring.numpy())


def additive_shapley(predictor: nn.Module, amounts: Tensor, covariates: Tensor | None = None) -> BiomarkerShapley:
    """Shapley values of an additive predictor's biomarkers and covariates, in log odds: exact, in closed form.

    Of a sum, the value of a player is its term less the term's mean over the training patients (Lundberg and Lee,
    Corollary 1), which an absent one is taken to have.

    Args:
        predictor: the :class:`shared.networks.BiomarkerClassifier`.
        amounts: how much of each biomarker each patient has, of its ``explain`` or ``measured``.
        covariates: clinical covariates, if the predictor takes any.

    Shape:
        - amounts: ``[B, members, M, K]``, covariates: ``[B, C]`` or None (taken as the cohort's mean)
        - returns: values ``[B, members * M * K + C]``, base ``[B]`` (the average patient's log odds), full ``[B]``
    """
    weight = predictor.log_odds(predictor.weight) / len(predictor.encoders)
    values = (weight * (amounts.double() - predictor.mean)).flatten(1)
    base = predictor.log_odds(predictor.bias) + (weight * predictor.mean).sum()
    if predictor.num_covariates:
        effect = predictor.log_odds(predictor.covariate_weight)
        known = predictor.covariate_mean.expand(len(values), -1) if covariates is None else covariates.double()
        values = torch.cat([values, effect * (known - predictor.covariate_mean)], dim=1)
        base = base + (effect * predictor.covariate_mean).sum()
    base = base.expand(len(values))
    return BiomarkerShapley(values.cpu(), base.cpu(), (base + values.sum(dim=1)).cpu())


def _coalitions(index: Tensor, ends: Tensor, occurring: Tensor) -> tuple[Tensor, Tensor]:
    """Patient and visible biomarkers of coalitions ``index``: patients in order, each with its 2 ** p coalitions."""
    row = torch.searchsorted(ends, index, right=True)
    shown = occurring[row]
    code = index - (ends[row] - 2 ** shown.sum(dim=1))
    # bit of a biomarker = how many occurring ones come before it
    bit = (shown.long().cumsum(dim=1) - 1).clamp(min=0)
    return row, ((code.unsqueeze(1) >> bit) & 1).bool() & shown


def _worth(logits: Tensor, output: str, positive: int) -> Tensor:
    log_probability = logits.log_softmax(dim=1)
    if output == "probability":
        return log_probability[:, positive].exp()
    others = [i for i in range(logits.shape[1]) if i != positive]
    return log_probability[:, positive] - log_probability[:, others].logsumexp(dim=1)


def _gather(worth: np.ndarray, occurring: np.ndarray) -> BiomarkerShapley:
    """Shapley values from the coalitions' worth, patients that show equally many biomarkers together."""
    counts = occurring.sum(axis=1)
    last = np.cumsum(2**counts) - 1
    first = last + 1 - 2**counts
    values = np.zeros(occurring.shape)
    for players in np.unique(counts):
        patients = np.flatnonzero(counts == players)
        table = worth[first[patients][:, None] + np.arange(1 << players)]
        block = np.zeros((len(patients), occurring.shape[1]))
        block[occurring[patients]] = exact_shapley(table.T).T.reshape(-1)
        values[patients] = block
    return BiomarkerShapley(torch.from_numpy(values), torch.from_numpy(worth[first]), torch.from_numpy(worth[last]))
