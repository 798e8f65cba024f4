"""The brain network's encoder and the hierarchical attention that the tumour pays to its tracts and regions.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 3.3: Eq. 2 (edges) and
Eq. 3 (nodes); section 4.3 (layers).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import DataError
from shared.networks.blocks import full_precision, mlp
from shared.networks.glioma.dense_gat import DenseGATConv

EDGE_ATTENTION = ("residual", "literal")
NODE_ATTENTION = ("softmax", "literal", "none")


def edge_attention(point_attention: Tensor, incidence: Tensor, num_tracts: int, mode: str = "residual") -> Tensor:
    r"""Factor of each tract's attributes: the mean attention of the tumour's points that it crosses (Eq. 2).

    .. math:: a^E_e = \frac{1}{K_e} \sum_{k\ \mathrm{crossed\ by}\ e} a^P_k

    Args:
        point_attention: a^P, 1 being average.
        incidence: the tracts that cross each point, -1 padded.
        num_tracts: E.
        mode: ``"residual"``: 1 + a^E, so that tracts far from the tumour keep their attributes; ``"literal"``: a^E, 0
            for a tract that crosses no point.

    Shape:
        - point_attention: ``[B, P]``, incidence: ``[B, P, T]`` long
        - returns: ``[B, E]``

    Raises:
        ValueError: an unknown ``mode``.

    Example:
        >>> crossed = torch.tensor([[[0, 2], [2, -1]]])
        >>> edge_attention(torch.tensor([[0.5, 1.5]]), crossed, 3)
        tensor([[1.5000, 1.0000, 2.0000]])
        >>> edge_attention(torch.tensor([[0.5, 1.5]]), crossed, 3, "literal")
        tensor([[0.5000, 0.0000, 1.0000]])
    """
    # conditions apart, or TorchScript compiles what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if mode not in EDGE_ATTENTION:
            raise ValueError(f"mode must be one of {EDGE_ATTENTION}, got '{mode}'.")
    index = incidence.flatten(1)
    crossed = index >= 0
    # padding goes to a column of its own, which is cut off
    index = torch.where(crossed, index, num_tracts)
    share = point_attention.unsqueeze(-1).expand_as(incidence).flatten(1)
    total = share.new_zeros(share.shape[0], num_tracts + 1).scatter_add(1, index, share)
    count = torch.zeros_like(total).scatter_add(1, index, torch.ones_like(share))
    mean = (total / count.clamp(min=1))[:, :num_tracts]
    return 1 + mean if mode == "residual" else mean


class TractGATConv(DenseGATConv):
    """One-headed :class:`DenseGATConv` for a batch of graphs with the same undirected edges, each stored once.

    Equal to ``torch_geometric.nn.GATConv`` on both directions of the edges, with the same state dict.

    Args:
        in_channels: width of the nodes.
        out_channels: width given out.
        edge_dim: width of the edges.
        residual: add a linear map of the node itself.

    Shape:
        - x: ``[B, R, in_channels]``, edges: ``[B, E, edge_dim]``, edge_index: ``[2, E]`` long, no loops, no repetition
        - edge_mask: ``[B, E]`` or ``[E]``, factor on what an edge carries (both ways), or None; explanations need it
        - returns: ``[B, R, out_channels]``

    Example:
        >>> layer, pairs = TractGATConv(3, 4, edge_dim=2), torch.tensor([[0, 1], [1, 2]])
        >>> layer(torch.randn(5, 3, 3), torch.randn(5, 2, 2), pairs).shape
        torch.Size([5, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, *, edge_dim: int = 16, residual: bool = False):
        super().__init__(in_channels, out_channels, edge_dim=edge_dim, residual=residual)

    def forward(self, x: Tensor, edges: Tensor, edge_index: Tensor, edge_mask: Tensor | None = None) -> Tensor:
        """Every region's weighted sum over the regions joined to it and itself."""
        number, value = x.shape[1], self.lin(x)
        # an edge's score is one inner product; its vector of out_channels is never made
        score = edges @ (self.att_edge[0] @ self.lin_edge.weight)[0]
        square = _both_ways(score, edge_index, number)
        joined = _both_ways(torch.ones_like(score[:1]), edge_index, number) > 0
        # the attribute of a self-loop is the mean of the region's edges
        own = square.sum(dim=2) / joined.sum(dim=2).clamp(min=1)
        scores = square + torch.diag_embed(own) + value @ self.att_dst[0, 0, :, None]
        scores = scores + (value @ self.att_src[0, 0, :, None]).transpose(1, 2)
        apart = ~(joined | torch.eye(number, dtype=torch.bool, device=x.device))
        scores = functional.leaky_relu(full_precision(scores), self.negative_slope).masked_fill(apart, float("-inf"))
        weights = scores.softmax(dim=2).to(value.dtype)
        if edge_mask is not None:
            mask = _both_ways(edge_mask.to(value.dtype).expand(x.shape[0], -1), edge_index, number)
            weights = weights * (mask + torch.eye(number, dtype=value.dtype, device=x.device))
        out = weights @ value + self.bias
        return out if self.res is None else out + self.res(x)


class BrainEncoder(nn.Module):
    """Graph attention layers, attention of the tumour to the regions, pooling, and three linear layers.

    Args:
        edge_index: the pair of regions that each tract joins: ``[2, E]``, each pair once. Part of the state dict, so
            that weights are not used with another atlas.
        num_regions: R.
        in_channels: F, width of regions and tracts alike.
        channels: of the graph attention layers.
        hidden: widths between pooling and embedding.
        embedding_dim: width of u^B.
        projection: widths of the head g_a that brings regions to the tumour's latent space.
        node_attention: ``"softmax"``: shares over the regions; ``"literal"``: the cosines themselves (Eq. 3);
            ``"none"``: all regions count alike.
        temperature: of the softmax; 1 lets one region count at most seven times as much as another.
        residual: add a linear map of its input to every layer.
        tract_means: give every region the mean of its tracts' attributes beside its own. In GATConv (the paper's)
            attributes of edges weigh neighbours, and their values never reach the embedding.
        dropout: of the regions' and tracts' attributes, in training: without it few patients are learnt by heart.

    Shape:
        - nodes: ``[B, R, F]``, edges: ``[B, E, F]``
        - tumour: ``[B, projection[-1]]`` or None, g_T(<u^I, u^P>); no gradient goes back through it
        - edge_factor: ``[B, E]`` or None, see :func:`edge_attention`
        - edge_mask: ``[B, E]``, ``[E]`` or None, see :class:`TractGATConv`
        - returns: u^B ``[B, embedding_dim]``, a^N ``[B, R]`` or None (no attention)

    Raises:
        DataError: pairs of regions that are no ``[2, E]``, out of range, loops, or repeated.
        ValueError: an unknown ``node_attention``.

    Example:
        >>> net = BrainEncoder([[0, 1], [1, 2]], num_regions=3, channels=(8, 8), hidden=(8,), projection=(4, 6))
        >>> embedding, attention = net(torch.randn(5, 3, 16), torch.randn(5, 2, 16), torch.randn(5, 6))
        >>> embedding.shape, attention.shape
        (torch.Size([5, 32]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        edge_index: Any,
        *,
        num_regions: int = 90,
        in_channels: int = 16,
        channels: Sequence[int] = (64, 128, 128, 256, 256, 256),
        hidden: Sequence[int] = (512, 256),
        embedding_dim: int = 32,
        projection: Sequence[int] = (32, 64, 128),
        node_attention: str = "softmax",
        temperature: float = 1.0,
        residual: bool = False,
        tract_means: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if node_attention not in NODE_ATTENTION:
            raise ValueError(f"node_attention must be one of {NODE_ATTENTION}, got {node_attention!r}.")
        self.node_attention, self.temperature = node_attention, float(temperature)
        self.num_regions, self.in_channels, self.tract_means = num_regions, in_channels, tract_means
        self.dropout = float(dropout)
        self.register_buffer("edge_index", checked_pairs(edge_index, num_regions))
        self.layers = nn.ModuleList(
            TractGATConv(before, after, edge_dim=in_channels, residual=residual)
            for before, after in itertools.pairwise([in_channels * (1 + tract_means), *channels])
        )
        self.project = None if node_attention == "none" else mlp([channels[-1], *projection])
        self.head = mlp([channels[-1], *hidden, embedding_dim])

    def node_embeddings(
        self, nodes: Tensor, edges: Tensor, edge_factor: Tensor | None = None, edge_mask: Tensor | None = None
    ) -> Tensor:
        """e^N of every region, ``[B, R, channels[-1]]``."""
        wanted = [self.num_regions, self.in_channels], [self.edge_index.shape[1], self.in_channels]
        found = list(nodes.shape[1:]), list(edges.shape[1:])
        if found[0] != wanted[0] or found[1] != wanted[1]:
            raise ValueError(
                f"The brain encoder was made for nodes {wanted[0]} and edges {wanted[1]}, got {found[0]} and "
                f"{found[1]}. Use the atlas it was trained with."
            )
        if edge_factor is not None:
            edges = edges * edge_factor.unsqueeze(-1).to(edges.dtype)
        nodes = functional.dropout(nodes, self.dropout, self.training)
        edges = functional.dropout(edges, self.dropout, self.training)
        x = nodes if not self.tract_means else torch.cat([nodes, self._means(edges, edge_mask)], dim=2)
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else functional.elu(x), edges, self.edge_index, edge_mask)
        return x

    def _means(self, edges: Tensor, edge_mask: Tensor | None) -> Tensor:
        """Mean attributes of every region's tracts ``[B, R, F]``, 0 where it has none."""
        if edge_mask is not None:
            edges = edges * edge_mask.to(edges.dtype).unsqueeze(-1)
        total = edges.new_zeros(edges.shape[0], self.num_regions, edges.shape[2])
        count = edges.new_zeros(self.num_regions)
        for ends in self.edge_index:
            total = total.index_add(1, ends, edges)
            count = count.index_add(0, ends, torch.ones_like(ends, dtype=edges.dtype))
        return total / count.clamp(min=1)[:, None]

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        tumour: Tensor | None = None,
        edge_factor: Tensor | None = None,
        edge_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embedding u^B of each brain and attention a^N of its regions."""
        x = self.node_embeddings(nodes, edges, edge_factor, edge_mask)
        attention: Tensor | None = None
        if self.project is not None and tumour is not None:
            # the brain is brought to the tumour, never the tumour to the brain
            fixed = full_precision(tumour.detach())[:, None]
            cosine = functional.cosine_similarity(full_precision(self.project(x)), fixed, dim=2)
            softmax = self.node_attention == "softmax"
            given = (cosine / self.temperature).softmax(dim=1) if softmax else cosine
            # shares sum to one, cosines are averaged
            pooled = ((given if softmax else given / self.num_regions)[:, None].to(x.dtype) @ x)[:, 0]
            attention = given
        else:
            pooled = x.mean(dim=1)
        return full_precision(self.head(pooled)), attention


def checked_pairs(edge_index: Any, num_regions: int) -> Tensor:
    """The pairs of regions as a long tensor ``[2, E]``.

    Raises:
        DataError: see :class:`BrainEncoder`.

    Example:
        >>> checked_pairs([[0, 1], [2, 0]], 3).tolist()
        [[0, 1], [2, 0]]
    """
    # checked on the CPU, also where a network is made on another device, or on "meta" for its shapes
    pairs = torch.as_tensor(edge_index, device="cpu")
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.is_floating_point() or not pairs.numel():
        raise DataError(f"The pairs of regions must be integers [2, E], got {pairs.dtype} {list(pairs.shape)}.")
    pairs = pairs.long().clone()
    problems = []
    if pairs.min() < 0 or pairs.max() >= num_regions:
        problems.append(f"regions are numbered 0 to {num_regions - 1}, got {int(pairs.min())} to {int(pairs.max())}")
    if (loops := int((pairs[0] == pairs[1]).sum())) > 0:
        problems.append(f"a tract joins two regions; {loops} join a region to itself")
    if (repeated := pairs.shape[1] - len(torch.unique(pairs.sort(dim=0).values, dim=1).t())) > 0:
        problems.append(f"every pair of regions is there once, in one direction; {repeated} are there again")
    if problems:
        raise DataError([f"tract atlas: {problem}. Build the atlas again." for problem in problems])
    return torch.as_tensor(pairs)


def _both_ways(values: Tensor, edge_index: Tensor, number: int) -> Tensor:
    """Values of edges ``[B, E]`` as symmetric matrices ``[B, R, R]``, zero where there is no edge."""
    place = torch.cat([edge_index[0] * number + edge_index[1], edge_index[1] * number + edge_index[0]])
    square = values.new_zeros(values.shape[0], number * number)
    square = square.index_copy(1, place, torch.cat([values, values], dim=1))
    return square.unflatten(1, (number, number))
