"""Graph attention layers and a head on a graph that is given.

Velickovic et al., Graph Attention Networks, ICLR 2018. The population graph's classifier is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.networks.glioma.dense_gat import DenseGATConv


class GraphAttentionNetwork(nn.Module):
    """Attention layers, each followed by ELU, then a linear head: logits of every node from its features and the edges.

    Args:
        in_channels: width of the features.
        hidden: width of each layer.
        out_channels: classes, or 1 logit.
        edge_dim: width of the edges' attributes; None: there are none.
        residual: a linear map of the node past each layer.
        dropout: of the inputs of the head and of all layers but the first.
        extra: width of further features that only the head sees.

    Shape:
        - x: ``[N, in_channels]``
        - graph: ``[N, N]`` bool, whether the row's node listens to the column's
        - edge_attr: ``[N, N, edge_dim]`` (``[N, N]`` for 1)
        - extra: ``[N, extra]``
        - returns: ``[N, out_channels]``

    Example:
        >>> net, joined = GraphAttentionNetwork(5, (8,), 3, dropout=0.6), torch.rand(4, 4) > 0.5
        >>> net(torch.rand(4, 5), joined).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int] = (64, 64),
        out_channels: int = 1,
        *,
        edge_dim: int | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        extra: int = 0,
    ):
        super().__init__()
        widths = [in_channels, *hidden]
        self.layers = nn.ModuleList(
            DenseGATConv(before, width, edge_dim=edge_dim, residual=residual)
            for before, width in zip(widths[:-1], hidden, strict=True)
        )
        self.dropout = nn.Dropout(float(dropout))
        self.extra = extra
        self.head = nn.Linear(widths[-1] + extra, out_channels)

    @torch.jit.unused
    def forward(self, x: Tensor, graph: Tensor, edge_attr: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """Logits of every node."""
        return self.logits(self.states(x, graph, edge_attr)[-1], extra)

    def states(
        self, x: Tensor, graph: Tensor, edge_attr: Tensor | None = None, sources: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The input of every layer, then the last one's output.

        Args:
            x: the nodes that are updated.
            graph: whom they listen to: each other, or the sources.
            edge_attr: of these edges.
            sources: the input of every layer of the nodes listened to, as this method gave it; None: x's own.
        """
        found = [x]
        for number, layer in enumerate(self.layers):
            state = self.dropout(found[-1]) if number > 0 else found[-1]
            state = layer(state, graph, edge_attr, None if sources is None else sources[number])
            found.append(functional.elu(state))
        return found

    def logits(self, state: Tensor, extra: Tensor | None = None) -> Tensor:
        """The linear head on last states and further features."""
        state = self.dropout(state)
        return self.head(state if extra is None else torch.cat([state, extra], dim=1))
