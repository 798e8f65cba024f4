"""Graph of a point cloud: neighbours, distances and survivors of every level, and how clouds become a batch."""

# annotations are not postponed here: TorchScript must read those of PointGraph

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shared.data.cache_entry import kept


@kept("neighbours", "distances", "survivors", "nearest")
class PointGraph(NamedTuple):
    """What the geometric encoder needs of a cloud besides its coordinates; a rigid motion changes none of it.

    Level 0 is the whole cloud, level l + 1 holds the survivors of level l. A batch has a leading ``B`` everywhere.

    Attributes:
        neighbours: of each level ``[P_l, k]`` long, indices into the same level, the nearest first, -1 where none.
        distances: of each level ``[P_l, k]``, mm, 0 where there is no neighbour.
        survivors: of each level ``[P_(l+1)]`` long, indices into level l.
        nearest: ``[P]`` long, for each original point the nearest of the last survivors.
    """

    # tuples, but for TorchScript, which knows none of any length
    neighbours: list[Tensor]
    distances: list[Tensor]
    survivors: list[Tensor]
    nearest: Tensor

    def to(self, *args, **kwargs) -> "PointGraph":
        """The same graph elsewhere, with the arguments of ``Tensor.to`` that keep the data type."""
        moved = [tuple(part.to(*args, **kwargs) for part in parts) for parts in self[:3]]
        return PointGraph._make([*moved, self.nearest.to(*args, **kwargs)])


def collate_point_graphs(graphs: Sequence[PointGraph]) -> PointGraph:
    """The batch of several patients' graphs, which have the same levels.

    Example:
        >>> one = torch.zeros(4, 2)
        >>> graph = PointGraph((one,), (one,), (one[:, 0],), one[:, 0])
        >>> collate_point_graphs([graph, graph]).nearest.shape
        torch.Size([2, 4])
    """
    *fields, nearest = zip(*graphs, strict=True)
    levels = [tuple(torch.stack(parts) for parts in zip(*field, strict=True)) for field in fields]
    return PointGraph._make([*levels, torch.stack(nearest)])
