"""The population graph beside what it has to beat, in the same folds: which methods, and how one fold is predicted.

Nothing is fitted, not even a mean or an edge, outside the patients that train; who is left out is joined to these only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shared.apps.baselines.population_table import PopulationTable
from shared.errors import DataError
from shared.metrics.classifiers import classifier

_NO_EDGES, _RANDOM = {"graph": "none"}, {"graph": "random"}


@dataclass(frozen=True)
class Method:
    """One way to predict the label: a title, a model, what it sees and the network's settings where it is a graph.

    ``covariates`` are named; ``features``: whether it sees the feature table; ``variant``: of Table 1, where the
    features come as a tumour's and a brain network's; ``training``: options of ``fit_population_graph``.
    """

    title: str
    model: str
    covariates: tuple[str, ...] = ()
    features: bool = True
    network: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What must be the same for all results in one folder."""
        network = {key: list(value) if isinstance(value, tuple) else value for key, value in self.network.items()}
        plain = {"model": self.model, "covariates": list(self.covariates), "features": self.features}
        return {**plain, "network": network, "variant": self.variant, "training": dict(self.training)}


def population_methods(
    covariates: tuple[str, ...] = ("age",), *, grade: bool = True, variant: str | None = None, variants: bool = False
) -> dict[str, Method]:
    """Methods by name, the population graph first.

    Args:
        covariates: that ``*_covariates`` join to the features.
        grade: whether grade is known, which ``*_grade_covariates`` join to both.
        variant: of Table 1, of every graph but the paper's five.
        variants: add these five.

    Example:
        >>> list(population_methods(("age",)))[:4]
        ['gat', 'gat_no_edges', 'gat_random_edges', 'gat_paper']
    """
    from shared.apps.baselines.population_training import PAPER_TRAINING
    from shared.networks.glioma.population_edges import VARIANTS
    from shared.networks.glioma.population_graph import PAPER

    found = {
        "gat": Method("population graph (default)", "gat"),
        "gat_no_edges": Method("default without edges", "gat", network=_NO_EDGES),
        "gat_random_edges": Method("default, random edges of equal density", "gat", network=_RANDOM),
        "gat_paper": Method("the paper's GAT, 64-128-128-128", "gat", network=PAPER, training=PAPER_TRAINING),
        "logistic": Method("logistic regression", "logistic"),
        "logistic_tuned": Method("logistic regression, tuned", "logistic_tuned"),
        "svm": Method("SVM", "svm"),
        "mlp": Method("MLP", "mlp"),
    }
    joined = {"covariates": covariates} if covariates else {}
    joined |= {"grade_covariates": tuple(dict.fromkeys([*covariates, "grade"]))} if grade else {}
    for suffix, seen in joined.items():
        names = " + ".join(seen)
        found[suffix] = Method(f"{names}, no features", "logistic", seen, features=False)
        for model in ("logistic", "logistic_tuned", "svm", "mlp", "gat"):
            found[f"{model}_{suffix}"] = replace(found[model], title=f"{found[model].title} + {names}", covariates=seen)
        for kind, network in (("no_edges", _NO_EDGES), ("random_edges", _RANDOM)):
            title = f"default + {names}, {kind.replace('no_', 'without ').replace('_', ' ')}"
            found[f"gat_{suffix}_{kind}"] = Method(title, "gat", seen, network=network)
    if variants:
        found |= {
            f"gat_{name}": Method(f"default, nodes and edges {name}", "gat", variant=name)
            for name in VARIANTS
            if name != variant
        }
    if variant:
        found = {k: m if m.model != "gat" or m.variant else _with_variant(m, variant) for k, m in found.items()}
    return found


def _with_variant(method: Method, variant: str) -> Method:
    return replace(method, variant=variant)


@dataclass(frozen=True)
class Cohort:
    """A table and, where its features are of two kinds, the prefixes of their names (u^T and u^B)."""

    table: PopulationTable
    tumour_prefix: str | None = None
    brain_prefix: str | None = None

    def inputs(self, method: Method) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Node features ``[N, D]``, edge features (None: the same) and covariates (None: not seen) of a method."""
        covariates = self.table.covariate(*method.covariates) if method.covariates else None
        if method.variant is None:
            return self.table.features, None, covariates
        if not (self.tumour_prefix and self.brain_prefix):
            raise DataError(f"The graph {method.variant} needs the prefixes of the tumour's and the brain's features.")
        import torch

        from shared.networks.glioma.population_edges import graph_inputs

        tumour, brain = (torch.from_numpy(self.table.named(p)) for p in (self.tumour_prefix, self.brain_prefix))
        nodes, edges = graph_inputs(tumour, brain, method.variant)
        return nodes.numpy(), edges.numpy(), covariates


def predict_fold(
    cohort: Cohort,
    method: Method,
    train: np.ndarray,
    test: np.ndarray,
    *,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Fit a method to some patients and return its probabilities ``[len(test)]`` of others.

    Args:
        cohort: all patients.
        method: of :func:`population_methods`.
        train: rows fitted to.
        test: rows predicted.
        seed: of starting weights and dropout.
        training: options of :func:`shared.apps.baselines.population_training.fit_population_graph`.
    """
    nodes, edges, covariates = cohort.inputs(method)
    labels = cohort.table.labels
    if method.model == "gat":
        training = {**method.training, **(training or {})}
        return _graph(nodes, edges, covariates, labels, method, train, test, seed, training)
    parts = [x for x in (nodes if method.features else None, covariates) if x is not None]
    x = np.concatenate(parts, axis=1)
    return classifier(method.model, seed).fit(x[train], labels[train]).predict_proba(x[test])[:, 1]


def _graph(
    nodes: np.ndarray,
    edges: np.ndarray | None,
    covariates: np.ndarray | None,
    labels: np.ndarray,
    method: Method,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    training: Mapping[str, Any],
) -> np.ndarray:
    import torch

    from shared.apps.baselines.population_training import fit_population_graph
    from shared.networks.glioma.population_graph import PopulationGraphClassifier

    def part(x: np.ndarray | None, rows: np.ndarray) -> torch.Tensor | None:
        return None if x is None else torch.tensor(x[rows], dtype=torch.float32)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PopulationGraphClassifier(
            nodes.shape[1],
            edge_features=None if edges is None else edges.shape[1],
            num_covariates=0 if covariates is None else covariates.shape[1],
            graph_seed=seed,
            **method.network,
        )
    fit_population_graph(
        network,
        part(nodes, train),
        torch.from_numpy(labels[train]),
        edges=part(edges, train),
        covariates=part(covariates, train),
        seed=seed,
        log=False,
        **training,
    )
    found = network.predict(part(nodes, test), part(edges, test), part(covariates, test))
    return found.probability.double().numpy()
