"""Are the biomarkers of two models the same: their maps of the same patients, matched, and their effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.biomarkers import match_biomarkers, rank_agreement


@torch.no_grad()
def biomarker_stability(
    networks: Sequence[nn.Module], cases: Sequence[Mapping[str, Any]], device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """Compare the additive predictors of models that were trained with other seeds or on other folds.

    Of every pair of models the biomarkers of a modality are matched by the places they share. ``overlap`` is the mean
    Dice of the pairs, ``overlap_by_area`` weighs them by area, ``chance`` is the same of maps whose places were put in
    random order; ``effects`` is Spearman's correlation of the matched biomarkers' effects on the log odds, None where
    all of a model's are equal.

    Args:
        networks: with ``additive``; the first member of each is compared.
        cases: patients that all of them map.
        device: where they run.

    Returns:
        one row per pair: ``models`` (their places), ``overlap``, ``overlap_by_area``, ``chance``, ``effects``; empty
        where fewer than two have an additive predictor.
    """
    found = []
    for network in networks:
        predictor = getattr(network, "additive", None)
        if predictor is None:
            return []
        predictor = predictor.to(device)
        explained = [predictor.explain(torch.as_tensor(case["image"])[None].to(device)) for case in cases]
        amounts = torch.cat([amount[:, 0].flatten(1) for _, _, amount in explained]).cpu().numpy()
        effects = predictor.log_odds(predictor.weight)[0].flatten().cpu().numpy() * amounts.std(axis=0)
        found.append((torch.cat([maps for _, maps, _ in explained]).cpu().numpy(), effects, predictor))
    generator, rows = np.random.default_rng(0), []
    for i, j in combinations(range(len(found)), 2):
        (first, first_effects, predictor), (second, second_effects, other) = found[i], found[j]
        count, modalities = predictor.num_biomarkers, predictor.num_modalities
        if first.shape != second.shape or (count, modalities) != (other.num_biomarkers, other.num_modalities):
            continue  # other grids or numbers of biomarkers cannot be matched
        images = first.shape[1] // modalities
        parts, pairs = [], []
        for modality in range(modalities):
            of_modality = slice(modality * images, (modality + 1) * images)
            a, b = (np.where(x[:, of_modality] < 0, -1, x[:, of_modality] % count) for x in (first, second))
            partner, overlap = match_biomarkers(a, b, count)
            inside = (a >= 0) & (b >= 0)
            mixed = b.copy()
            mixed[inside] = generator.permutation(b[inside])
            chance = match_biomarkers(a, mixed, count)[1]
            area = np.bincount(a[inside], minlength=count)
            parts.append((overlap, chance, area))
            pairs += [(modality * count + k, modality * count + partner[k]) for k in range(count)]
        overlap, chance, area = (np.concatenate(values) for values in zip(*parts, strict=True))
        known = np.isfinite(overlap)
        agreement = rank_agreement([first_effects[k] for k, _ in pairs], [second_effects[k] for _, k in pairs])
        rows.append(
            {
                "models": [i, j],
                "overlap": float(overlap[known].mean()),
                "overlap_by_area": float(np.average(overlap[known], weights=area[known])),
                "chance": float(np.nanmean(chance)),
                "effects": None if np.isnan(agreement) else agreement,
            }
        )
    return rows
