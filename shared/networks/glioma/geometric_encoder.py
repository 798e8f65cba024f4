"""The encoder of the tumour's surface: edge-conditioned convolutions on a point cloud that halves from layer to layer.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 4.3, geometric encoder;
NNConv of Gilmer et al., Neural Message Passing for Quantum Chemistry, ICML 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.data.brain.point_graph import PointGraph
from shared.networks.blocks import full_precision, mlp
from shared.transforms.glioma.point_graph import MAX_NEIGHBOURS, RADII, build_point_graph, graph_levels, take_points


class DistanceNNConv(nn.Module):
    r"""NNConv whose edge network is linear in the edge's length d, without a weight matrix for each edge.

    .. math:: y_i = W x_i + \sum_j (d_{ij} A + B)^\top x_j + b
                  = W x_i + A^\top \sum_j d_{ij} x_j + B^\top \sum_j x_j + b

    The state dict is that of ``torch_geometric.nn.NNConv(in_channels, out_channels, nn.Linear(1, in * out))``.

    Args:
        in_channels: width of the points.
        out_channels: width given out.
        aggregation: ``"mean"`` over a point's neighbours, or ``"add"``.

    Shape:
        - x: ``[B, P, in_channels]``
        - neighbours: ``[B, P, k]`` long, -1 where none; distances: ``[B, P, k]``
        - returns: ``[B, P, out_channels]``

    Raises:
        ValueError: an unknown ``aggregation``.

    Example:
        >>> layer = DistanceNNConv(3, 8)
        >>> layer(torch.rand(1, 2, 3), torch.tensor([[[1], [-1]]]), torch.rand(1, 2, 1)).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, *, aggregation: str = "mean"):
        super().__init__()
        if aggregation not in ("mean", "add"):
            raise ValueError(f'aggregation must be "mean" or "add", got {aggregation!r}.')
        self.in_channels, self.out_channels, self.aggregation = in_channels, out_channels, aggregation
        self.nn = nn.Linear(1, in_channels * out_channels)
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self._spread_edge_network()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.nn.reset_parameters()
        self.lin.reset_parameters()
        nn.init.zeros_(self.bias)
        self._spread_edge_network()

    def _spread_edge_network(self) -> None:
        # as one matrix of in_channels rows, not as a layer of one input
        bound = 1 / math.sqrt(self.in_channels)
        for parameter in self.nn.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, neighbours: Tensor, distances: Tensor) -> Tensor:
        """Every point's map of itself and of its neighbours."""
        there = (neighbours >= 0).to(x.dtype)
        weights = torch.stack([distances.to(x.dtype) * there, there], dim=2)
        if self.aggregation == "mean":
            weights = weights / there.sum(dim=2).clamp(min=1)[:, :, None, None]
        first = torch.arange(x.shape[0], device=x.device)[:, None, None] * x.shape[1]
        gathered = x.flatten(0, 1).index_select(0, (neighbours.clamp(min=0) + first).flatten())
        # summed in the narrow width first: two products of every point, whatever its number of neighbours
        sums = weights @ gathered.unflatten(0, neighbours.shape)
        kernel = torch.cat([part.unflatten(0, (self.in_channels, -1)) for part in (self.nn.weight[:, 0], self.nn.bias)])
        return sums.flatten(2) @ kernel + self.lin(x) + self.bias


class GeometricEncoder(nn.Module):
    """Convolutions on the radius graph of each level, pooling by attention, and the attention of every point.

    Args:
        channels: of the convolutions; after each of them the farthest half of the points survives.
        hidden: widths between the pooled features and the embedding, the first of them after ``channels[-1]``.
        embedding_dim: width of u^P.
        radii: of each level's graph in mm, where no graph is given.
        max_neighbours: neighbours kept, where no graph is given.
        ratio: share of the points that survives a level, where no graph is given.
        aggregation: of a point's neighbours, ``"mean"`` or ``"add"``.
        batch_norm: normalise every convolution's output, as the image encoder does.
        scale: mm that count as one, for coordinates and distances.
        radial: each point brings its distance to the centroid along with its coordinates, which turn with the head.
            Not in the paper.

    Shape:
        - points: ``[B, P, 3]``, mm relative to the tumour's centroid
        - graph: the batch's :class:`shared.data.PointGraph`, or None (made here, every time)
        - returns: u^P ``[B, embedding_dim]``, a^P ``[B, P]``, whose mean over the last survivors is 1

    Raises:
        ValueError: as many radii, or levels of the graph, as convolutions are needed.

    Example:
        >>> net = GeometricEncoder((8, 16), hidden=(16,), embedding_dim=4, radii=(10, 20))
        >>> embedding, attention = net(torch.randn(2, 64, 3) * 10)
        >>> embedding.shape, attention.shape
        (torch.Size([2, 4]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64, 128, 128),
        *,
        hidden: Sequence[int] = (256, 128),
        embedding_dim: int = 32,
        radii: Sequence[float] = RADII,
        max_neighbours: int = MAX_NEIGHBOURS,
        ratio: float = 0.5,
        aggregation: str = "mean",
        batch_norm: bool = True,
        scale: float = 25.0,
        radial: bool = False,
    ):
        super().__init__()
        if len(radii) != len(channels):
            raise ValueError(f"Every convolution has a radius: got {len(channels)} channels and {len(radii)} radii.")
        self.radii, self.max_neighbours = [float(radius) for radius in radii], max_neighbours
        self.ratio, self.scale, self.radial = float(ratio), float(scale), bool(radial)
        self.convolutions = nn.ModuleList(
            DistanceNNConv(before, after, aggregation=aggregation)
            for before, after in itertools.pairwise([4 if radial else 3, *channels])
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if batch_norm else nn.Identity() for width in channels)
        self.gate = nn.Linear(channels[-1], 1)
        self.head = mlp([channels[-1], *hidden, embedding_dim])

    def forward(self, points: Tensor, graph: PointGraph | None = None) -> tuple[Tensor, Tensor]:
        """Embedding u^P of each surface and attention a^P of each point."""
        if graph is None:
            graph = self._own_graph(points)
        if len(graph.neighbours) != len(self.convolutions) or graph.nearest.shape != points.shape[:2]:
            raise ValueError(
                f"The encoder has {len(self.convolutions)} levels and the points {list(points.shape)}; the graph has "
                f"{len(graph.neighbours)} levels for points {list(graph.nearest.shape)}. Make it with the same radii."
            )
        x = points / self.scale
        if self.radial:
            x = torch.cat([x, torch.linalg.vector_norm(x, dim=2, keepdim=True)], dim=2)
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):  # noqa: B905
            x = convolution(x, graph.neighbours[level], graph.distances[level] / self.scale)
            x = norm(x.flatten(0, 1)).relu().unflatten(0, x.shape[:2])
            x = take_points(x, graph.survivors[level])
        share = full_precision(self.gate(x)[..., 0]).softmax(dim=1)
        pooled = (share[:, None].to(x.dtype) @ x)[:, 0]
        attention = share.gather(1, graph.nearest) * share.shape[1]
        return full_precision(self.head(pooled)), attention

    def _own_graph(self, points: Tensor) -> PointGraph:
        if torch.jit.is_scripting():
            return graph_levels(points, self.radii, self.max_neighbours, self.ratio)
        return build_point_graph(points, radii=self.radii, max_neighbours=self.max_neighbours, ratio=self.ratio)
