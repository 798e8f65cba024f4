"""Where the kept tracts of wild types and of mutants run, and whether that differs by more than chance.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), Fig. 8, which shows the voxels
of tracts with an importance above 0.5 in one patient of each kind; the comparison of all patients is not in the paper.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.brain.atlas import TractAtlas
from shared.explain.glioma.volumes import write_volume
from shared.io import write_csv, write_json

logger = logging.getLogger(__name__)

STEM = "disrupted_tracts"


def covered_voxels(atlas: TractAtlas, kept: np.ndarray) -> np.ndarray:
    """Voxels that kept tracts (``[E]`` bool) run through, ``[X, Y, Z]`` bool."""
    return atlas.volume(kept) > 0


def tract_density(atlas: TractAtlas, covered: np.ndarray) -> float:
    """Share of the voxels of all tracts that kept ones run through."""
    return float(covered.sum() / len(np.unique(atlas.voxels)))


def compare_groups(values: np.ndarray, labels: np.ndarray, *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Mean of class 0 minus that of class 1, two-sided permutation tests of it (Pitman 1937), labels being exchanged.

    Of several quantities, p is also corrected for their number by the largest of the standardised differences
    (Westfall and Young 1993): of all that do not differ, one is below 0.05 in a twentieth of the comparisons.

    Args:
        values: of each patient.
        labels: 0 or 1, at least two patients each.
        draws: permutations; all of them where there are no more.
        seed: of the permutations.

    Shape:
        - values: ``[N, K]``, labels: ``[N]``
        - returns: ``means`` ``[2, K]``, ``difference``, ``p`` and ``p_corrected`` ``[K]``

    Example:
        >>> found = compare_groups(np.array([[5.0], [6], [7], [1], [2], [0]]), np.array([0, 0, 0, 1, 1, 1]))
        >>> found["difference"].tolist(), found["p"].tolist()
        ([5.0], [0.1])
    """
    from scipy.stats import permutation_test

    groups = [np.asarray(values, np.float64)[labels == label] for label in (0, 1)]

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    options = {"n_resamples": draws, "batch": 100, "axis": 0, "vectorized": True}
    found = permutation_test(groups, difference, rng=np.random.default_rng(seed), **options)
    null, observed = np.abs(found.null_distribution), np.abs(found.statistic)
    spread = np.asarray(values, np.float64).std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    # rounding must not tell the observed order of the patients from the same one drawn
    alone = null >= observed * (1 - 1e-9) - 1e-12
    reached = (null / scale).max(axis=1)[:, None] >= observed / scale * (1 - 1e-9) - 1e-12
    counted_too = int(comb(len(labels), len(groups[0])) > draws)  # the observed order, where not all are drawn
    return {
        "means": np.stack([group.mean(axis=0) for group in groups]),
        "difference": found.statistic,
        "p": (alone.sum(axis=0) + counted_too) / (len(null) + counted_too),
        "p_corrected": (reached.sum(axis=0) + counted_too) / (len(null) + counted_too),
    }


class DisruptedTracts:
    """Gathers the kept tracts of patients whose label is known and compares the two classes.

    Writes ``disrupted_tracts.csv`` (a row a tract), ``.json`` (the density, a test of it), ``.png`` and, of each class,
    ``disrupted_tracts_0.nii.gz``, ``_1.nii.gz``: the share of its patients with a kept tract at each voxel.

    Args:
        atlas: regions and tracts.
    """

    def __init__(self, atlas: TractAtlas):
        self.atlas = atlas
        self.labels: list[int] = []
        self.kept: list[np.ndarray] = []
        self.densities: list[float] = []
        self.maps = np.zeros((2, *atlas.shape), np.float32)

    def add(self, kept: np.ndarray, label: int | None) -> float:
        """One more patient, and its density."""
        covered = covered_voxels(self.atlas, kept)
        density = tract_density(self.atlas, covered)
        if label is not None:
            self.labels.append(int(label))
            self.kept.append(kept)
            self.densities.append(density)
            self.maps[int(label)] += covered
        return density

    def write(self, folder: Path, class_names: Sequence[str], *, draws: int = 2000, seed: int = 0) -> None:
        """Write the comparison; a class of fewer than two patients leaves none."""
        from shared.visualize import disrupted_picture

        labels, atlas = np.array(self.labels, int), self.atlas
        for path in folder.glob(f"{STEM}*"):
            path.unlink()  # of other patients
        counts = np.bincount(labels, minlength=2)
        draws = min(draws, comb(len(labels), int(counts[0])))
        if counts.min() < 2:
            logger.info("Disrupted tracts are compared between two patients of each class at least, here %s.", counts)
            return
        kept = np.stack(self.kept)
        density = compare_groups(np.array(self.densities)[:, None], labels, draws=draws, seed=seed)
        tracts = compare_groups(kept, labels, draws=draws, seed=seed)
        order = np.lexsort((-np.abs(tracts["difference"]), tracts["p"]))
        rows = [
            {
                "tract": int(edge),
                "region_a": atlas.names[atlas.pairs[edge, 0]],
                "region_b": atlas.names[atlas.pairs[edge, 1]],
                "kept_0": round(float(tracts["means"][0, edge]), 6),
                "kept_1": round(float(tracts["means"][1, edge]), 6),
                "difference": round(float(tracts["difference"][edge]), 6),
                "p": round(float(tracts["p"][edge]), 6),
                "p_corrected": round(float(tracts["p_corrected"][edge]), 6),
            }
            for edge in order
        ]
        write_csv(folder / f"{STEM}.csv", rows)
        summary = {
            "classes": list(class_names),
            "patients": counts.tolist(),
            "density": density["means"][:, 0].tolist(),
            "difference": float(density["difference"][0]),
            "p": float(density["p"][0]),
            "tracts_below_0.05": int((tracts["p_corrected"] < 0.05).sum()),
            "draws": draws,
        }
        write_json(folder / f"{STEM}.json", summary)
        shares = self.maps / counts[:, None, None, None].astype(np.float32)
        for label, name in enumerate(class_names):
            write_volume(folder / f"{STEM}_{label}.nii.gz", shares[label], atlas.affine, f"disrupted tracts, {name}")
        mean = [
            f"{name}, {count} patients: density {value:.3f}"
            for name, count, value in zip(class_names, counts, summary["density"], strict=True)
        ]
        title = (
            f"Disrupted tracts: difference {summary['difference']:+.3f}, p {summary['p']:.3f} ({draws} permutations)"
        )
        brain = atlas.volume(np.ones(atlas.num_tracts)) + atlas.regions > 0
        disrupted_picture(dict(zip(mean, shares, strict=True)), brain, folder / f"{STEM}.png", title=title)
