"""Imaging biomarkers as centres of spherical K-means over embeddings (IRCL section 3.2, potential biomarkers).

Rao et al., Learning Latent Imaging Biomarkers for Interpretable Microvascular Invasion Prediction in Hepatocellular
Carcinoma; spherical K-means: Dhillon and Modha, Concept Decompositions for Large Sparse Text Data (2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.cluster import KMeans

from shared.errors import DataError
from shared.metrics.classification import to_numpy


@dataclass(frozen=True)
class Biomarkers:
    """Centres and the images they were found on.

    Attributes:
        centres: unit vectors, ``[K, E]`` float32; modality by modality, within one the largest cluster first.
        modality: the modality each centre belongs to, ``[K]``; -1: any.
        assignment: nearest biomarker of every image, ``[n]``.
        similarity: its cosine similarity, ``[n]`` float32.
    """

    centres: np.ndarray
    modality: np.ndarray
    assignment: np.ndarray
    similarity: np.ndarray

    def assign(self, embeddings: Any, modality: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Nearest biomarker and its cosine similarity for other images (Eq. 6, read as argmax).

        Args:
            embeddings: ``[n, E]``.
            modality: modality of each image, ``[n]``; needed where biomarkers belong to modalities.

        Raises:
            DataError: the modality is needed and missing.
        """
        unit = _unit(embeddings)
        owned = self.modality >= 0
        if owned.any() and modality is None:
            raise DataError("These biomarkers belong to modalities: give the modality of every image.")
        allowed = np.ones((len(unit), len(owned)), dtype=bool)
        if owned.any():
            allowed = ~owned | (self.modality == to_numpy(modality)[:, None])
        similarity = np.where(allowed, unit @ self.centres.astype(np.float64).T, -2.0)
        nearest = similarity.argmax(axis=1)
        return nearest, similarity[np.arange(len(unit)), nearest].astype(np.float32)


def fit_biomarkers(
    embeddings: Any,
    num_biomarkers: int,
    *,
    modality: Any = None,
    per_modality: bool = False,
    weight: Any = None,
    seed: int = 0,
    starts: int = 10,
) -> Biomarkers:
    """Cluster embeddings into biomarkers by spherical K-means.

    scikit-learn's K-means (k-means++, the best of ``starts``) gives the partition; Lloyd steps whose centres are
    renormalised then go on until every image lies at its nearest unit centre. A cluster that loses all its images is
    given the image that lies farthest from its own centre.

    Args:
        embeddings: embeddings of the original training images, from a network in eval mode.
        num_biomarkers: K; with ``per_modality`` of every modality.
        modality: modality of each image, 0, 1, ...
        per_modality: cluster each modality's images by themselves.
        weight: of each image, ``[n]``, positive; None: all count alike.
        seed: seed of k-means++.
        starts: starts of which the best is kept.

    Shape:
        - embeddings: ``[n, E]``, modality: ``[n]`` int or None
        - centres: ``[K, E]``, or ``[K * modalities, E]``

    Raises:
        DataError: fewer distinct images than biomarkers, NaN or Inf, a zero embedding, or no modality given.

    Example:
        >>> angles = np.array([0.0, 0.1, 0.2, 3.0, 3.1])
        >>> fit = fit_biomarkers(np.stack([np.cos(angles), np.sin(angles)], 1), 2)
        >>> fit.assignment.tolist(), fit.centres.shape
        ([0, 0, 0, 1, 1], (2, 2))
    """
    unit = _unit(embeddings)
    weight = np.ones(len(unit)) if weight is None else to_numpy(weight).astype(np.float64)
    if num_biomarkers < 1:
        raise DataError(f"num_biomarkers must be at least 1, got {num_biomarkers}.")
    if not per_modality:
        _enough(unit, num_biomarkers, "")
        centres = _spherical(unit, num_biomarkers, seed, starts, weight)
        owner = np.full(num_biomarkers, -1)
    else:
        if modality is None:
            raise DataError("per_modality clusters each modality by itself: give the modality of every image.")
        modality = to_numpy(modality)
        if modality.shape != (len(unit),):
            raise DataError(
                f"One modality per image is needed: {len(unit)} images, modality of shape {modality.shape}."
            )
        groups = np.unique(modality)
        for group in groups:
            _enough(unit[modality == group], num_biomarkers, f" of modality {group}")
        parts = [modality == group for group in groups]
        centres = np.concatenate([_spherical(unit[p], num_biomarkers, seed, starts, weight[p]) for p in parts])
        owner = np.repeat(groups, num_biomarkers)
    centres = centres.astype(np.float32)
    found = Biomarkers(centres, owner, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    assignment, similarity = found.assign(unit, modality)
    if len(np.unique(assignment)) < len(centres):
        raise DataError(
            f"Every biomarker needs an image of its own, but the embeddings all but coincide (smallest similarity to a "
            f"centre {similarity.min():.7f}): the encoder has collapsed; lower its learning rate or num_biomarkers."
        )
    return Biomarkers(centres, owner, assignment, similarity)


def _spherical(unit: np.ndarray, count: int, seed: int, starts: int, weight: np.ndarray) -> np.ndarray:
    """Unit centres ``[count, E]``, the largest cluster first."""
    kmeans = KMeans(count, init="k-means++", n_init=starts, random_state=seed)
    centres = kmeans.fit(unit, sample_weight=weight).cluster_centers_
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    labels = np.empty(0)
    for _ in range(1000):
        # the stored centres are float32: converge with respect to these
        nearest = _without_empty(unit @ centres.astype(np.float32).astype(np.float64).T, count)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = _centres(unit, labels, count, weight)
    size = np.bincount(labels, weights=weight, minlength=count)
    first = np.array([np.flatnonzero(labels == k)[0] for k in range(count)])
    return centres[np.lexsort((first, -size))]


def _centres(unit: np.ndarray, labels: np.ndarray, count: int, weight: np.ndarray) -> np.ndarray:
    total = csr_array((weight, (labels, np.arange(len(labels)))), shape=(count, len(labels))) @ unit
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # images that cancel out exactly have no mean direction: any of them stands for the cluster
    member = unit[[np.flatnonzero(labels == k)[0] for k in range(count)]]
    return np.where(length > 1e-9, total / np.maximum(length, 1e-9), member)


def _without_empty(similarity: np.ndarray, count: int) -> np.ndarray:
    """Nearest centre of every image; an empty cluster takes the farthest image of a cluster that has others."""
    nearest = similarity.argmax(axis=1)
    own = similarity.max(axis=1)
    for empty in np.flatnonzero(np.bincount(nearest, minlength=count) == 0):
        shared = np.bincount(nearest, minlength=count)[nearest] > 1
        farthest = np.where(shared, own, np.inf).argmin()
        nearest[farthest], own[farthest] = empty, np.inf
    return nearest


def _enough(unit: np.ndarray, count: int, where: str) -> None:
    # float32 is what the biomarkers are stored in: images equal there cannot be told apart
    distinct = len(np.unique(unit.astype(np.float32), axis=0))
    if distinct < count:
        raise DataError(
            f"{count} biomarkers need at least {count} distinct images{where}, got {len(unit)} of which {distinct} "
            "differ: lower num_biomarkers or add patients."
        )


def _unit(embeddings: Any) -> np.ndarray:
    x = to_numpy(embeddings).astype(np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"Embeddings must be [images, dimensions] with at least one image, got {x.shape}.")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(
            f"Embeddings must be finite: {len(bad)} of {len(x)} have NaN or Inf (first at {bad[:5].tolist()}); "
            "the encoder has diverged, lower its learning rate."
        )
    length = np.linalg.norm(x, axis=1, keepdims=True)
    zero = np.flatnonzero(length[:, 0] == 0)
    if len(zero):
        raise DataError(f"Embeddings must have a direction: those at {zero[:5].tolist()} are zero.")
    return x / length
