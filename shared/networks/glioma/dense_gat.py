"""Graph attention on small graphs as dense matrices, equal to torch_geometric's GATConv with the same weights.

Velickovic et al., Graph Attention Networks, ICLR 2018, Eq. 1-4, with edge attributes in the attention as in
torch_geometric: several times faster than its sparse form where a good share of all pairs are joined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DenseGATConv(nn.Module):
    r"""Graph attention with a self-loop at every node, whose edge attribute is the mean over the node's own edges.

    .. math:: e_{ts} = \mathrm{LeakyReLU}(a_{dst} W x_t + a_{src} W x_s + a_{edge} W_e w_{ts}),\quad
              y_t = \sum_s \mathrm{softmax}_s(e_{ts}) W x_s + b \; (+ W_r x_t)

    The state dict has GATConv's names and shapes: ``load_state_dict(gat_conv.state_dict())`` works in both directions.

    Args:
        in_channels: width of the nodes.
        out_channels: width a head gives out.
        heads: attention heads, concatenated.
        edge_dim: width of the edge attributes; None: there are none.
        residual: add a linear map of the node itself.
        negative_slope: of the leaky ReLU.

    Shape:
        - x: ``[*, T, in_channels]``, the nodes that are updated
        - mask: ``[*, T, S]`` bool, whether target t listens to source s
        - edge_attr: ``[*, T, S, edge_dim]``, or ``[*, T, S]`` where ``edge_dim`` is 1
        - sources: ``[*, S, in_channels]`` or None (x itself, S = T; the mask's diagonal is ignored)
        - returns: ``[*, T, heads * out_channels]``

    Raises:
        ValueError: edge attributes given without ``edge_dim``, or not given with it.

    Example:
        >>> layer, x = DenseGATConv(3, 4, edge_dim=1), torch.randn(5, 3)
        >>> layer(x, torch.ones(5, 5, dtype=torch.bool), torch.rand(5, 5)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 1,
        edge_dim: int | None = None,
        residual: bool = False,
        negative_slope: float = 0.2,
    ):
        super().__init__()
        self.heads, self.edge_dim = heads, edge_dim
        self.negative_slope = float(negative_slope)
        width = heads * out_channels
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_edge = None if edge_dim is None else nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.zeros(width))
        self.lin = nn.Linear(in_channels, width, bias=False)
        self.lin_edge = None if edge_dim is None else nn.Linear(edge_dim, width, bias=False)
        self.res = nn.Linear(in_channels, width, bias=False) if residual else None
        for name, parameter in self.named_parameters():
            if name != "bias":
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, x: Tensor, mask: Tensor, edge_attr: Tensor | None = None, sources: Tensor | None = None
    ) -> Tensor:
        """Every target's weighted sum over its sources and itself."""
        if not torch.jit.is_scripting():
            self._check(edge_attr)
        own = self._heads(x)  # [*, H, T, C]
        value = own if sources is None else self._heads(sources)
        loop = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
        if sources is None:
            mask = mask & ~loop
        listen = own @ self.att_dst.movedim(0, -1)  # [*, H, T, 1]
        heard = value @ self.att_src.movedim(0, -1)
        scores = listen + heard.transpose(-2, -1)
        mean: Tensor | None = None
        if edge_attr is not None:
            edge_attr = edge_attr if edge_attr.dim() > mask.dim() else edge_attr.unsqueeze(-1)
            count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
            mean = (edge_attr * mask.unsqueeze(-1)).sum(dim=-2) / count  # [*, T, D]
            if sources is None:
                edge_attr = torch.where(loop.unsqueeze(-1), mean.unsqueeze(-2), edge_attr)
            scores = scores + self._edge_scores(edge_attr)
        # the self-loop is always there: no row is empty, no softmax NaN
        if sources is None:
            mask = mask | loop
        else:
            at_loop = listen + own @ self.att_src.movedim(0, -1)
            if mean is not None:
                at_loop = at_loop + self._edge_scores(mean.unsqueeze(-2))
            scores = torch.cat([scores, at_loop], dim=-1)
            mask = functional.pad(mask, (0, 1), value=True)
        scores = functional.leaky_relu(scores, self.negative_slope).masked_fill(~mask.unsqueeze(-3), float("-inf"))
        weights = scores.softmax(dim=-1)
        if sources is None:
            mixed = weights @ value
        else:
            mixed = weights[..., :-1] @ value + weights[..., -1:] * own
        out = mixed.movedim(-3, -2).flatten(-2) + self.bias
        return out if self.res is None else out + self.res(x)

    def _check(self, edge_attr: Tensor | None) -> None:
        if (edge_attr is None) != (self.edge_dim is None):
            raise ValueError(f"edge_dim is {self.edge_dim}, edge attributes are {'not ' * (edge_attr is None)}given.")

    def _heads(self, x: Tensor) -> Tensor:
        return self.lin(x).unflatten(-1, (self.heads, -1)).movedim(-2, -3)

    def _edge_scores(self, edge_attr: Tensor) -> Tensor:
        """The edges' part of the attention ``[*, H, T, S]``; per-edge vectors of width C are never made."""
        weight = self.lin_edge.weight.unflatten(0, (self.heads, -1))  # [H, C, D]
        direction = (weight * self.att_edge.movedim(0, -1)).sum(dim=1)  # [H, D]
        return (edge_attr @ direction.t()).movedim(-1, -3)
