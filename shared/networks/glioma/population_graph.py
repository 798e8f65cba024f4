"""The population graph: patients as nodes, joined where their features correlate, classified by graph attention.

Glioma IDH paper, section 3.4: Eq. 8 (edges) and Table 1 (which embedding gives nodes, which gives edges); section 4.3
(theta, layers). A new patient is joined to the bank (the training cohort) only, so that one prediction does not depend
on who else is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.networks.glioma.graph_attention import GraphAttentionNetwork
from shared.networks.glioma.population_edges import GraphReport, correlation_edges, graph_report

GRAPHS = ("correlation", "none", "random")
PAPER = {"hidden": (64, 128, 128, 128), "residual": False, "dropout": 0.0, "members": 1, "compress": False}
_BANK = ("bank_nodes", "bank_edges")


class PopulationPrediction(NamedTuple):
    """Predictions of new patients: probability ``[B]``, out_of_cohort ``[B]`` bool, neighbours in the bank ``[B]``."""

    probability: Tensor
    out_of_cohort: Tensor
    neighbours: Tensor


class PopulationGraphClassifier(nn.Module):
    """Graph attention on the cohort's correlation graph, for patients of the bank and for new ones.

    The bank's embeddings, their mean and SD are buffers: the state dict is enough to predict. A new patient listens to
    bank patients, whose hidden states do not depend on new ones. A new patient without a neighbour is answered from
    its own features, by the same layers where these are residual, else by an MLP, and is flagged ``out_of_cohort``.

    ``PopulationGraphClassifier(in_dim, **PAPER)`` is the paper's network.

    Args:
        in_dim: width of the node features.
        edge_features: width of the features that are correlated; None: the nodes' are.
        hidden: width of each graph attention layer.
        residual: a linear map of the node past each layer.
        dropout: on the layers' inputs but the first, and before the head.
        num_covariates: clinical covariates joined at the head.
        theta: threshold of Eq. 8.
        graph: ``"correlation"``; or a control: ``"none"`` has no edge, ``"random"`` the same graph with the bank's
            places in it dealt out anew.
        members: networks with starting weights of their own, whose logits are averaged.
        compress: take the inverse hyperbolic sine of each feature's distance from the bank's median in interquartile
            ranges before it is standardised: nearly linear among most patients, logarithmic far from them. A few
            extreme patients then no longer decide a skewed feature's scale, and with it who is joined to whom.
        standardise: bring features to the bank's mean 0 and SD 1; False: as they come (Eq. 8 as printed), which mostly
            joins nearly all patients.
        graph_seed: of the random graph.

    Shape:
        - nodes: ``[B, in_dim]``, edges: ``[B, edge_features]`` or None (nodes), covariates: ``[B, C]`` or None (taken
          as the bank's mean; so is a NaN)
        - returns: logits ``[B, 1]``

    Raises:
        ValueError: an unknown ``graph``, a threshold outside [-1, 1].
        DataError: there is no bank yet, features of another width, or values that are not finite.

    Example:
        >>> net = PopulationGraphClassifier(8)
        >>> net.set_bank(torch.randn(20, 8))
        >>> net.eval()(torch.randn(3, 8)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        in_dim: int,
        *,
        edge_features: int | None = None,
        hidden: Sequence[int] = (64, 64),
        residual: bool = True,
        dropout: float = 0.5,
        num_covariates: int = 0,
        theta: float = 0.5,
        graph: str = "correlation",
        members: int = 1,
        compress: bool = True,
        standardise: bool = True,
        graph_seed: int = 0,
    ):
        super().__init__()
        if graph not in GRAPHS:
            raise ValueError(f"graph must be one of {', '.join(GRAPHS)}, got {graph!r}.")
        if not -1 <= theta <= 1:
            raise ValueError(f"theta is a correlation, from -1 to 1, got {theta}.")
        self.in_dim, self.edge_features = in_dim, edge_features or in_dim
        self.num_covariates, self.theta = num_covariates, float(theta)
        self.graph, self.graph_seed = graph, graph_seed
        self.compress, self.standardise = compress, standardise
        self.members = nn.ModuleList(
            [_Member(in_dim, hidden, num_covariates, residual, dropout) for _ in range(members)]
        )
        for name, width in (("node", in_dim), ("edge", self.edge_features), ("covariate", num_covariates)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))
        for name, width in (("node", in_dim), ("edge", self.edge_features)):
            self.register_buffer(f"{name}_median", torch.zeros(width))
            self.register_buffer(f"{name}_range", torch.ones(width))
        self.register_buffer("bank_nodes", torch.zeros(0, in_dim))
        self.register_buffer("bank_edges", torch.zeros(0, self.edge_features))

    @torch.no_grad()
    def set_bank(self, nodes: Tensor, edges: Tensor | None = None, covariates: Tensor | None = None) -> None:
        """Take a cohort as the bank, and its means and standard deviations as the scale of features and covariates.

        Args:
            nodes: ``[N, in_dim]``.
            edges: ``[N, edge_features]`` or None (nodes).
            covariates: ``[N, C]`` or None; NaN where unknown.
        """
        edges = self._checked(nodes, edges)
        if len(nodes) < 2:
            raise DataError(f"A bank needs at least 2 patients, got {len(nodes)}.")
        for name, x in (("node", nodes), ("edge", edges), ("covariate", covariates)):
            if x is None:
                continue
            x = x.double()  # radiomic features reach 1e10
            if self.compress and name != "covariate":
                low, middle, high = torch.quantile(x, x.new_tensor([0.25, 0.5, 0.75]), dim=0)
                wide = high - low
                getattr(self, f"{name}_median").copy_(middle)
                # of a feature with one value in most patients, the SD
                getattr(self, f"{name}_range").copy_(_positive(wide, _positive(x.std(dim=0), 1.0, middle), middle))
                x = self._compressed(x, name)
            if not (self.standardise or name == "covariate"):
                continue
            known = x.isfinite()
            count = known.sum(dim=0).clamp(min=1)
            mean = x.where(known, 0.0).sum(dim=0) / count
            spread = ((x - mean).where(known, 0.0).square().sum(dim=0) / (count - 1).clamp(min=1)).sqrt()
            getattr(self, f"{name}_mean").copy_(mean)
            # a constant feature says nothing: it becomes 0, not 0 / 0
            getattr(self, f"{name}_std").copy_(_positive(spread, 1.0, mean))
        self.bank_nodes, self.bank_edges = nodes.to(self.node_mean), edges.to(self.edge_mean)

    @torch.no_grad()
    def fit_covariates(self, covariates: Tensor, labels: Tensor) -> None:
        """Start the covariates' weights at their logistic regression's; :meth:`set_bank` has seen them before."""
        from sklearn.linear_model import LogisticRegression

        known = self._covariates(covariates, len(labels)).cpu().numpy()
        fit = LogisticRegression().fit(known, labels.cpu().numpy())
        for member in self.members:
            member.head.weight[:, -self.num_covariates :] = torch.as_tensor(fit.coef_).to(member.head.weight)
            member.head.bias.copy_(torch.as_tensor(fit.intercept_))

    def bank_graph(self) -> tuple[Tensor, Tensor]:
        """Weights and mask ``[N, N]`` of the bank's own graph."""
        weight, mask = correlation_edges(self._bank_edges(), theta=self.theta)
        return (weight, mask) if self.graph != "none" else (weight * 0, torch.zeros_like(mask))

    def report(self, labels: Tensor | None = None, *, log: bool = True) -> GraphReport:
        """Density, isolated share and label homophily of the bank's graph, see :func:`graph_report`."""
        return graph_report(self.bank_graph()[1], labels, log=log)

    def query_graph(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and mask ``[B, N]`` of the edges from the bank to new patients."""
        weight, mask = correlation_edges(self._standard(edges, "edge"), self._bank_edges(), theta=self.theta)
        return (weight, mask) if self.graph != "none" else (weight * 0, torch.zeros_like(mask))

    def bank_logits(
        self, rows: Tensor | None = None, covariates: Tensor | None = None, graph: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the bank's patients on their own graph, as trained on.

        Args:
            rows: the patients of an induced subgraph (node sampling); None: all.
            covariates: ``[R, C]`` of these patients.
            graph: what :meth:`bank_graph` gives, where it has been computed before.

        Returns:
            ``[members, R]`` of the graph; and of the MLP for patients that stand alone, None where residual layers
            answer them.
        """
        weight, mask = graph or self.bank_graph()
        x = self._standard(self.bank_nodes)
        if rows is not None:
            x, weight, mask = x[rows], weight[rows][:, rows], mask[rows][:, rows]
        known = self._covariates(covariates, len(x))
        joined = torch.stack([m(x, mask, weight, known)[:, 0] for m in self.members])
        alone = [m.own(x, known) for m in self.members if m.alone is not None]
        return joined, torch.stack(alone) if alone else None

    def forward(self, nodes: Tensor, edges: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Logits ``[B, 1]`` of new patients."""
        return self._answer(nodes, edges, covariates)[0]

    @torch.no_grad()
    def predict(
        self, nodes: Tensor, edges: Tensor | None = None, covariates: Tensor | None = None
    ) -> PopulationPrediction:
        """Probabilities of new patients, who has no neighbour in the bank, and how many each has."""
        logits, neighbours = self._answer(nodes, edges, covariates)
        return PopulationPrediction(logits[:, 0].sigmoid(), neighbours == 0, neighbours)

    def _answer(self, nodes: Tensor, edges: Tensor | None, covariates: Tensor | None) -> tuple[Tensor, Tensor]:
        edges = self._checked(nodes, edges)
        if len(self.bank_nodes) == 0:
            raise DataError("The population graph has no bank: train it, or load a checkpoint of its stage.")
        own_weight, own_mask = self.bank_graph()
        weight, mask = self.query_graph(edges)
        bank, x = self._standard(self.bank_nodes), self._standard(nodes)
        known = self._covariates(covariates, nodes.shape[0])
        neighbours = mask.sum(dim=1)
        logits = []
        for member in self.members:
            sources = member.states(bank, own_mask, own_weight)
            connected = member.logits(member.states(x, mask, weight, sources)[-1], known)[:, 0]
            logits.append(torch.where(neighbours > 0, connected, member.own(x, known)))
        return torch.stack(logits).mean(dim=0).unsqueeze(1), neighbours

    def _standard(self, x: Tensor, name: str = "node") -> Tensor:
        x = self._compressed(x, name) if self.compress else x
        # attributes by their own names: TorchScript knows no other
        mean, std = (self.node_mean, self.node_std) if name == "node" else (self.edge_mean, self.edge_std)
        return (x - mean) / std

    def _compressed(self, x: Tensor, name: str) -> Tensor:
        node = name == "node"
        middle, wide = (self.node_median, self.node_range) if node else (self.edge_median, self.edge_range)
        return ((x - middle) / wide).asinh()

    def _bank_edges(self) -> Tensor:
        edges = self._standard(self.bank_edges, "edge")
        if self.graph == "random":
            if not torch.jit.is_scripting():
                self._refuse_export()
            generator = torch.Generator(device=torch.device("cpu")).manual_seed(self.graph_seed)
            edges = edges[torch.randperm(len(edges), generator=generator).to(edges.device)]
        return edges

    def _refuse_export(self) -> None:
        if torch.compiler.is_exporting():  # the exported program would draw another graph at every call
            raise DataError("population graph: the random graph is a control, it cannot be exported by torch.export")

    def _covariates(self, covariates: Tensor | None, count: int) -> Tensor:
        if covariates is None:
            return self.covariate_mean.new_zeros(count, self.num_covariates)
        if list(covariates.shape) != [count, self.num_covariates]:
            raise DataError(
                f"{self.num_covariates} covariates of each of {count} patients are needed, got "
                f"{list(covariates.shape)}."
            )
        return ((covariates - self.covariate_mean) / self.covariate_std).nan_to_num(nan=0.0)

    def _checked(self, nodes: Tensor, edges: Tensor | None) -> Tensor:
        edges = nodes if edges is None else edges
        if not torch.jit.is_scripting():
            self._check(nodes, edges)
        return edges

    def _check(self, nodes: Tensor, edges: Tensor) -> None:
        problems = []
        for name, x, width in (("node", nodes, self.in_dim), ("edge", edges, self.edge_features)):
            if x.dim() != 2 or x.shape[1] != width or x.shape[0] != nodes.shape[0]:
                problems.append(f"{name} features must be [{len(nodes)}, {width}], got {list(x.shape)}")
            # an exported graph cannot look at values
            elif not torch.compiler.is_exporting() and not bool(x.isfinite().all()):
                bad = (~x.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
                problems.append(f"{name} features must be finite; those of row {bad[0]} (of {len(bad)} rows) are not")
        if problems:
            raise DataError(problems)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for a bank of the size in the file."""
        for name in _BANK:
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _positive(spread: Tensor, otherwise: Tensor | float, size: Tensor) -> Tensor:
    """The spread where it is more than rounding of values of this size."""
    return spread.where(spread > 1e-6 * size.abs(), otherwise)


class _Member(GraphAttentionNetwork):
    """One network, and how it answers new patients."""

    def __init__(self, in_dim: int, hidden: Sequence[int], num_covariates: int, residual: bool, dropout: float):
        super().__init__(in_dim, hidden, 1, edge_dim=1, residual=residual, dropout=dropout, extra=num_covariates)
        # without a residual the layers never learn to read a patient that stands alone
        own = [nn.Linear(in_dim, hidden[0]), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden[0], hidden[-1])]
        self.alone = None if residual else nn.Sequential(*own)
        self.alone_head = None if residual else nn.Linear(hidden[-1] + num_covariates, 1)

    def own(self, x: Tensor, known: Tensor) -> Tensor:
        """Logits ``[B]`` from patients' own features."""
        if self.alone is not None and self.alone_head is not None:
            return self.alone_head(torch.cat([self.alone(x), known], dim=1))[:, 0]
        nobody = x.new_zeros(x.shape[0], 0)
        none: list[Tensor] = []
        for layer in self.layers:
            none.append(x.new_zeros(0, layer.lin.in_features))
        return self.logits(self.states(x, nobody.to(torch.bool), nobody, none)[-1], known)[:, 0]
