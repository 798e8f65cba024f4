"""Who is joined to whom in the population graph: Eq. 8, the five graphs of Table 1, and what such a graph looks like.

Glioma IDH paper, section 3.4; theta = 0.5 in section 4.3. The edges' correlation is Pearson's over features that were
standardised first: uncentred, one common profile joins nearly all pairs of patients.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Table 1, nodes-edges: u^T (tumour: image and points), u^B (brain network), both = <u^T, u^B>
VARIANTS = {
    "tumour-brain": ("tumour", "brain"),
    "brain-tumour": ("brain", "tumour"),
    "both-brain": ("both", "brain"),
    "both-tumour": ("both", "tumour"),
    "both-both": ("both", "both"),
}
DENSE = 0.3  # from this density on a graph hardly tells patients apart


def graph_inputs(tumour: Tensor, brain: Tensor, variant: str = "both-brain") -> tuple[Tensor, Tensor]:
    """Node features and edge features of one of Table 1's five graphs; the default is the paper's best.

    Args:
        tumour: u^T.
        brain: u^B.
        variant: nodes-edges, a name of ``VARIANTS``.

    Shape:
        - tumour: ``[N, T]``, brain: ``[N, B]``
        - returns: nodes and edges, each ``[N, T]``, ``[N, B]`` or ``[N, T + B]``

    Raises:
        ValueError: an unknown variant.

    Example:
        >>> nodes, edges = graph_inputs(torch.rand(5, 64), torch.rand(5, 32), "both-brain")
        >>> nodes.shape, edges.shape
        (torch.Size([5, 96]), torch.Size([5, 32]))
    """
    # conditions apart, or TorchScript compiles what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if variant not in VARIANTS:
            raise ValueError(f"The graph must be one of Table 1, {', '.join(VARIANTS)} (nodes-edges), got '{variant}'.")
    parts = {"tumour": tumour, "brain": brain, "both": torch.cat([tumour, brain], dim=1)}
    nodes, edges = variant.split("-")
    return parts[nodes], parts[edges]


# no keyword-only arguments: TorchScript has none with defaults
def correlation_edges(features: Tensor, bank: Tensor | None = None, theta: float = 0.5) -> tuple[Tensor, Tensor]:
    """Edge weights of Eq. 8: Pearson's correlation of two patients' features where it reaches ``theta``, else 0.

    Args:
        features: standardised features of the patients that are updated.
        bank: those of the patients listened to; None: the same ones, without self-loops.
        theta: threshold.

    Shape:
        - features: ``[T, D]``, bank: ``[S, D]``
        - returns: weight ``[T, S]``, mask ``[T, S]`` bool (whether there is an edge); a patient whose features are all
          equal correlates with nobody

    Example:
        >>> weight, mask = correlation_edges(torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.5], [2.0, 1.0, 0.0]]))
        >>> mask.int().tolist(), round(weight[0, 1].item(), 3)
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], 0.993)
    """
    mine, mine_varies = _unit_rows(features)
    other, other_varies = (mine, mine_varies) if bank is None else _unit_rows(bank)
    correlation = (mine @ other.t()).clamp(-1.0, 1.0)
    mask = (correlation >= theta) & mine_varies & other_varies.t()
    if bank is None:
        mask = mask & ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    return correlation * mask, mask


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows centred and of unit length, and whether they vary ``[N, 1]`` (more than by rounding)."""
    centred = x - x.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    varies = length > 1e-6 * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return centred / length.where(varies, 1.0), varies


class GraphReport(NamedTuple):
    """What a cohort's graph looks like.

    ``density``: joined share of all pairs; ``isolated``: share of patients without a neighbour; ``homophily``: share of
    edges that join equal labels, None without labels or edges; ``chance``: what it would be in a random graph.
    """

    patients: int
    edges: int
    density: float
    isolated: float
    homophily: float | None
    chance: float | None

    def __str__(self) -> str:
        homophily = "-" if self.homophily is None else f"{self.homophily:.2f} (random: {self.chance:.2f})"
        return (
            f"{self.patients} patients, {self.edges} edges, density {self.density:.1%}, isolated {self.isolated:.1%}, "
            f"label homophily {homophily}"
        )


def graph_report(mask: Tensor, labels: Tensor | None = None, *, log: bool = True) -> GraphReport:
    """Density, isolated share and label homophily of a graph; a warning where it joins most of the cohort.

    Args:
        mask: of a symmetric graph without self-loops.
        labels: one per patient.
        log: write it to the log, with a warning above a density of 30 %.

    Shape:
        - mask: ``[N, N]`` bool, labels: ``[N]``

    Example:
        >>> mask = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
        >>> print(graph_report(mask, torch.tensor([1, 1, 0])))
        3 patients, 1 edges, density 33.3%, isolated 33.3%, label homophily 1.00 (random: 0.33)
    """
    count, joined = len(mask), int(mask.sum())
    pairs = max(count * (count - 1), 1)
    homophily = chance = None
    if labels is not None and joined:
        labels = torch.as_tensor(labels).to(mask.device)
        same = labels[:, None] == labels[None, :]
        homophily = float((same & mask).sum()) / joined
        chance = (float(same.sum()) - count) / pairs
    isolated = float((~mask.any(dim=1)).sum()) / max(count, 1)
    report = GraphReport(count, joined // 2, joined / pairs, isolated, homophily, chance)
    if log:
        logger.info("population graph: %s", report)
        if report.density > DENSE:
            logger.warning(
                "The population graph joins %.0f %% of all pairs, more than %.0f %%: its edges hardly tell patients "
                "apart. Raise theta, or standardise the features first.",
                100 * report.density,
                100 * DENSE,
            )
    return report
