"""Graph attention layers and a head on a graph that is given: patients, or documents that cite each other.

Velickovic et al., Graph Attention Networks, ICLR 2018. The population graph's classifier is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.networks.glioma.dense_gat import DenseGATConv


class GraphAttentionNetwork(nn.Module):
    r"""Attention layers, each followed by ELU, then a head: logits of every node from its features and the edges.

    All nodes are there while it trains; the loss is of those whose label is known. A citation graph (Cora: 2,708
    documents, 1,433 words, 7 classes, 140 labels) with the settings of Velickovic, section 3.3: rows of the features
    divided by their sum, Adam with learning rate 0.005 and weight decay 5e-4, 200 epochs, and::

        GraphAttentionNetwork(1433, (8,), 7, heads=8, head="attention", dropout=0.6, input_dropout=0.6,
                              attention_dropout=0.6)

    Edges may be a matrix, for dense graphs of up to some thousands of nodes, or a list; the result is the same.

    Args:
        in_channels: width of the features.
        hidden: width of a head of each layer.
        out_channels: classes, or 1 logit.
        heads: of every layer, concatenated.
        head: ``"linear"``; or ``"attention"``, one more attention layer, of one head, that gives the logits.
        edge_dim: width of the edges' attributes; None: there are none.
        residual: a linear map of the node past each layer.
        dropout: of the inputs of the head and of all layers but the first.
        input_dropout: of the first layer's input.
        attention_dropout: of the attention weights, so that a neighbour is missed now and then.
        extra: width of further features that only a linear head sees.

    Shape:
        - x: ``[N, in_channels]``
        - graph: ``[N, N]`` bool, whether the row's node listens to the column's; or edges ``[2, E]`` long, from the
          first row's nodes to the second's, both directions written out
        - edge_attr: ``[N, N, edge_dim]`` (``[N, N]`` for 1); or ``[E, edge_dim]`` (``[E]``) beside ``[2, E]``
        - extra: ``[N, extra]``
        - returns: ``[N, out_channels]``

    Raises:
        ValueError: an unknown ``head``; further features for an attention head; a graph of other nodes.

    Example:
        >>> net = GraphAttentionNetwork(5, (8,), 3, heads=2, head="attention", dropout=0.6)
        >>> x, edges = torch.rand(4, 5), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> labels, known = torch.tensor([0, 1, 2, 0]), torch.tensor([True, True, True, False])
        >>> functional.cross_entropy(net(x, edges)[known], labels[known]).backward()
        >>> net.eval()(x, edges).argmax(dim=1).shape
        torch.Size([4])
    """

    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int] = (64, 64),
        out_channels: int = 1,
        *,
        heads: int = 1,
        head: str = "linear",
        edge_dim: int | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        extra: int = 0,
    ):
        super().__init__()
        if head not in ("linear", "attention"):
            raise ValueError(f"head must be linear or attention, got {head!r}.")
        if head == "attention" and extra:
            raise ValueError(f"Only a linear head sees further features, got extra={extra} for an attention head.")
        widths = [in_channels, *(width * heads for width in hidden)]
        options = {"edge_dim": edge_dim, "residual": residual, "dropout": attention_dropout}
        self.layers = nn.ModuleList(
            DenseGATConv(before, width, heads=heads, **options)
            for before, width in zip(widths[:-1], hidden, strict=True)
        )
        self.dropout, self.input_dropout = nn.Dropout(float(dropout)), nn.Dropout(float(input_dropout))
        self.extra = extra
        linear = head == "linear"
        self.head = (
            nn.Linear(widths[-1] + extra, out_channels) if linear else DenseGATConv(widths[-1], out_channels, **options)
        )

    @torch.jit.unused
    def forward(self, x: Tensor, graph: Tensor, edge_attr: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """Logits of every node."""
        _check_graph(graph, len(x), edge_attr)
        state = self.states(x, graph, edge_attr)[-1]
        if isinstance(self.head, nn.Linear):
            return self.logits(state, extra)
        return _layer(self.head, self.dropout(state), graph, edge_attr)

    def states(
        self, x: Tensor, graph: Tensor, edge_attr: Tensor | None = None, sources: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The input of every layer, then the last one's output.

        Args:
            x: the nodes that are updated.
            graph: whom they listen to: each other, or the sources (a matrix then).
            edge_attr: of these edges.
            sources: the input of every layer of the nodes listened to, as this method gave it; None: x's own.
        """
        found = [x]
        for number, layer in enumerate(self.layers):
            state = self.dropout(found[-1]) if number > 0 else self.input_dropout(found[-1])
            heard = None if sources is None else sources[number]
            if torch.jit.is_scripting():  # which hands on no layers; of a matrix only
                state = layer(state, graph, edge_attr, heard)
            else:
                state = _layer(layer, state, graph, edge_attr, heard)
            found.append(functional.elu(state))
        return found

    def logits(self, state: Tensor, extra: Tensor | None = None) -> Tensor:
        """The linear head on last states and further features."""
        state = self.dropout(state)
        return self.head(state if extra is None else torch.cat([state, extra], dim=1))


def _layer(
    layer: DenseGATConv, x: Tensor, graph: Tensor, edge_attr: Tensor | None, sources: Tensor | None = None
) -> Tensor:
    if graph.dtype == torch.bool:
        return layer(x, graph, edge_attr, sources)
    return layer.along_edges(x, graph, edge_attr)


def _check_graph(graph: Tensor, count: int, edge_attr: Tensor | None) -> None:
    shape = list(graph.shape)
    matrix, edges = graph.dtype == torch.bool and shape == [count, count], len(shape) == 2 and shape[0] == 2
    if not matrix and (not edges or graph.dtype != torch.long):
        raise ValueError(f"A graph of {count} nodes is [N, N] bool or edges [2, E] long, got {graph.dtype} {shape}.")
    if not matrix and shape[1] and not 0 <= int(graph.min()) <= int(graph.max()) < count:
        raise ValueError(f"Nodes are numbered 0 to {count - 1}, got {int(graph.min())} to {int(graph.max())}.")
    if edge_attr is not None and list(edge_attr.shape[: 2 if matrix else 1]) != (shape if matrix else shape[1:]):
        raise ValueError(f"A graph {shape} needs attributes of each edge, got {list(edge_attr.shape)}.")
