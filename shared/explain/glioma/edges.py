"""Which tracts a prediction rests on: GNNExplainer on the brain network's edges.

Ying et al., GNNExplainer: Generating Explanations for Graph Neural Networks, NeurIPS 2019, Eq. 5-7, as implemented by
torch_geometric.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Logit = Callable[[Tensor | None], Tensor]


class EdgeExplanation(NamedTuple):
    """Mask of each edge and what it is worth.

    Attributes:
        mask: ``[E]`` in [0, 1].
        kept: ``[E]`` bool, those above the threshold.
        probability: of the predicted class: ``all`` edges, ``kept`` ones only, ``removed``: without the kept; and the
            means over random choices of as many, ``random_kept`` and ``random_removed``.
    """

    mask: Tensor
    kept: Tensor
    probability: dict[str, float]


def explain_edges(
    logit: Logit,
    nodes: Tensor,
    edge_index: Tensor,
    *,
    epochs: int = 200,
    learning_rate: float = 0.05,
    edge_size: float = 0.005,
    edge_entropy: float = 1.0,
    threshold: float = 0.5,
    draws: int = 10,
    seed: int = 0,
) -> EdgeExplanation:
    r"""Optimise a mask over the edges that keeps the predicted class and little else.

    .. math:: \min_M -\log P(\hat y \mid A \odot \sigma(M)) + c_s \sum_e \sigma(M_e) + c_e \overline{H(\sigma(M))}

    torch_geometric's own optimiser drives it: its masks reach ``logit`` as the factor on what each edge carries. An
    edge without any influence (no gradient at the start) has mask 0. A logit beyond 1 is divided by its own size: of an
    answer that is quite sure, no edge alone changes the probability, and the mask would follow its penalties only.

    Args:
        logit: the positive class's logit ``[1]`` given a factor for each edge ``[E]``, or None (all count fully).
        nodes: of the graph.
        edge_index: the edges, each pair once.
        epochs: of Adam.
        learning_rate: of Adam.
        edge_size: c_s.
        edge_entropy: c_e.
        threshold: an edge is kept above it.
        draws: random choices to compare with.
        seed: of the mask's start and of the random choices.

    Shape:
        - nodes: ``[R, F]``, edge_index: ``[2, E]``

    Example:
        >>> matters = torch.tensor([4.0, 0.0, 0.1])
        >>> logit = lambda mask: (matters * (torch.ones(3) if mask is None else mask)).sum()[None] - 1
        >>> found = explain_edges(logit, torch.rand(4, 2), torch.tensor([[0, 1, 2], [1, 2, 3]]), edge_size=0.05)
        >>> found.kept.tolist()
        [True, False, False]
    """
    with warnings.catch_warnings():
        # torch_geometric still scripts parts of itself
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch_geometric.explain import Explainer, GNNExplainer

        with torch.no_grad():
            size = max(1.0, abs(float(logit(None))))
        model = _masked(lambda mask: logit(mask) / size)
    algorithm = GNNExplainer(epochs=epochs, lr=learning_rate, edge_size=edge_size, edge_ent=edge_entropy)
    explainer = Explainer(
        model,
        algorithm,
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "binary_classification", "task_level": "graph", "return_type": "raw"},
    )
    devices = [nodes.device] if nodes.device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        mask = explainer(nodes.detach().clone(), edge_index.clone()).edge_mask.detach()
    kept = mask > threshold
    with torch.no_grad():
        probability = _worth(logit, kept, draws, seed)
    logger.debug("%d of %d edges kept: %s", int(kept.sum()), len(kept), probability)
    return EdgeExplanation(mask, kept, probability)


def _masked(logit: Logit) -> nn.Module:
    """A model as torch_geometric expects it: its explainers leave their masks in a message passing layer."""
    from torch_geometric.nn import MessagePassing

    class Tap(MessagePassing):
        """A class of its own: torch_geometric compiles an instance's methods into its class, for all that inherit."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.tap = Tap()

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            mask = self.tap._edge_mask
            return logit(None if mask is None else mask.sigmoid()).view(1, 1)

    return Masked()


def _worth(logit: Logit, kept: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Probability of the class that all edges predict, with choices of edges."""
    whole = logit(None).reshape(())
    sign = 1 if whole > 0 else -1

    def probability(chosen: Tensor) -> float:
        return float((sign * logit(chosen.to(whole.dtype)).reshape(())).sigmoid())

    generator = torch.Generator().manual_seed(seed)
    choices = []
    for _ in range(draws):
        drawn = torch.zeros(len(kept), dtype=torch.bool)
        drawn[torch.randperm(len(kept), generator=generator)[: int(kept.sum())]] = True
        choices.append(drawn.to(kept.device))
    mean = {
        "random_kept": [probability(choice) for choice in choices],
        "random_removed": [probability(~choice) for choice in choices],
    }
    return {
        "all": float((sign * whole).sigmoid()),
        "kept": probability(kept),
        "removed": probability(~kept),
        **{name: sum(values) / max(len(values), 1) for name, values in mean.items() if values},
    }
