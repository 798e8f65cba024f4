"""Training of the population graph: full batch on the training patients' own graph (glioma IDH paper, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.errors import DataError
from shared.losses.glioma import PopulationLoss
from shared.networks.glioma.population_graph import PopulationGraphClassifier

PAPER_TRAINING = {"weight_decay": 0.0}


def fit_population_graph(
    network: PopulationGraphClassifier,
    nodes: Tensor,
    labels: Tensor,
    *,
    edges: Tensor | None = None,
    covariates: Tensor | None = None,
    epochs: int = 200,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    decay: float = 0.9,
    decay_every: int = 50,
    pos_weight: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    log: bool = True,
) -> list[float]:
    """Make a cohort the network's bank and train on it; the network is in eval mode afterwards.

    Nobody but these patients is seen: means, standard deviations and edges are theirs.

    Args:
        network: moved to its device before.
        nodes: node features.
        labels: 0 or 1.
        edges: features that are correlated; None: nodes.
        covariates: NaN where unknown; their weights start at their logistic regression's.
        epochs: of Adam.
        learning_rate: at the start.
        weight_decay: of Adam, in its gradient; the paper has none, see ``PAPER_TRAINING``.
        decay: factor of the learning rate every ``decay_every`` epochs.
        decay_every: epochs.
        pos_weight: weight of the positives' loss.
        batch_size: patients per step, drawn without replacement, on the subgraph of their own edges (node sampling of
            Zeng et al., GraphSAINT, ICLR 2020), where the cohort's ``N x N`` edges do not fit; None: all.
        seed: of dropout and sampling; the starting weights are the caller's.
        progress: show a bar.
        log: write what the graph looks like to the log, with a warning where it joins over 30 % of all pairs.

    Shape:
        - nodes: ``[N, in_dim]``, labels: ``[N]``, edges: ``[N, edge_features]``, covariates: ``[N, C]``
        - returns: mean loss of every epoch

    Raises:
        DataError: labels other than 0 and 1, of one class only, or not one per patient.

    Example:
        >>> _, labels = torch.manual_seed(0), torch.arange(20) % 2
        >>> network = PopulationGraphClassifier(4, hidden=(8,))
        >>> losses = fit_population_graph(network, torch.randn(20, 4) + 2 * labels[:, None], labels, epochs=30)
        >>> len(losses), losses[-1] < losses[0], network.training
        (30, True, False)
    """
    from tqdm import trange

    _check_labels(labels, len(nodes))
    device = network.node_mean.device
    network.set_bank(nodes.to(device), *(None if x is None else x.to(device) for x in (edges, covariates)))
    covariates = None if covariates is None else covariates.to(network.node_mean)
    target = labels.to(network.node_mean)
    if network.num_covariates and covariates is not None:
        network.fit_covariates(covariates, labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, decay_every, decay)
    objective = PopulationLoss(pos_weight)
    graph = network.bank_graph()
    if log and network.graph != "none":
        network.report(labels)
    network.train()
    losses = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in trange(epochs, desc="population graph", unit="epoch", disable=not progress, dynamic_ncols=True):
            total = 0.0
            for rows in _steps(len(nodes), batch_size, device):
                known = covariates if rows is None or covariates is None else covariates[rows]
                truth = target if rows is None else target[rows]
                loss = objective(network.bank_logits(rows, known, graph), truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(truth) / len(nodes)
            losses.append(total)
            schedule.step()
    network.eval()
    return losses


def _steps(count: int, batch_size: int | None, device: torch.device) -> list[Tensor | None]:
    """The patients of every step of an epoch; None: all."""
    if batch_size is None or batch_size >= count:
        return [None]
    return list(torch.randperm(count, device=device).split(batch_size))


def _check_labels(labels: Tensor, count: int) -> None:
    values = sorted(set(labels.tolist()))
    if labels.shape != (count,) or values != [0, 1]:
        raise DataError(
            f"The population graph is trained on one label, 0 or 1, of each of {count} patients, both of them there; "
            f"got {list(labels.shape)} with values {values[:10]}."
        )
