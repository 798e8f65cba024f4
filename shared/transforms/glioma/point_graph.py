"""Graphs of a point cloud, made once per patient: farthest points, neighbours within a radius, nearest survivors.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 4.3: the geometric
encoder's graph for each convolution and its farthest point sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.data.brain.point_graph import PointGraph

# mm; a factor of about sqrt(2) from level to level keeps the neighbours of a surface whose points are halved
RADII = (8.0, 11.0, 16.0, 22.0, 32.0)
MAX_NEIGHBOURS = 16


def farthest_point_sampling(points: Tensor, count: int, *, start: int | None = None) -> Tensor:
    """Indices of points each of which is the farthest from all before it; the first n are what asking for n gives.

    Args:
        points: one cloud or a batch of them.
        count: points to take.
        start: index of the first; None: the point farthest from the cloud's mean, so that the order of the points does
            not matter.

    Shape:
        - points: ``[N, 3]`` or ``[B, N, 3]``
        - returns: ``[count]`` or ``[B, count]`` long

    Raises:
        ValueError: more points are asked for than there are.

    Example:
        >>> line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [10, 0, 0]])
        >>> farthest_point_sampling(line, 3).tolist()
        [3, 0, 2]
    """
    if points.ndim == 2:
        return farthest_point_sampling(points[None], count, start=start)[0]
    number = points.shape[1]
    if not 1 <= count <= number:
        raise ValueError(f"Of {number} points {count} were asked for; count must be between 1 and {number}.")
    return _sampled(points, count, -1 if start is None else start)


def _sampled(points: Tensor, count: int, start: int) -> Tensor:
    """Farthest points of a batch of clouds; ``start`` -1: the farthest from the mean."""
    # the axes apart and buffers that are reused: several times faster than sums over a last axis of three
    axes = points.detach().movedim(2, 0).contiguous()
    if start < 0:
        last = (axes - axes.mean(dim=2, keepdim=True)).square().sum(dim=0).argmax(dim=1, keepdim=True)
    else:
        last = torch.full((points.shape[0], 1), start, dtype=torch.long, device=points.device)
    # conditions apart, or TorchScript compiles what follows
    if not torch.jit.is_scripting():  # noqa: SIM102
        if torch.compiler.is_exporting():
            return _exported_sampling(axes, last, count)
    # one more than is wanted: each step writes the next
    chosen = torch.empty(count + 1, points.shape[0], 1, dtype=torch.long, device=points.device)
    chosen[0] = last
    nearest, apart = torch.full_like(axes[0], math.inf), torch.empty_like(axes)
    for step in range(count):
        torch.sub(axes, axes.gather(2, chosen[step].expand(3, -1, -1)), out=apart)
        apart.mul_(apart)
        squared = apart[0].add_(apart[1]).add_(apart[2])
        torch.minimum(nearest, squared, out=nearest)
        torch.argmax(nearest, 1, keepdim=True, out=chosen[step + 1])
    return chosen[:count, :, 0].t().contiguous()


def _exported_sampling(axes: Tensor, last: Tensor, count: int) -> Tensor:
    """The same as a loop of the exported graph: unrolled, thousands of steps would take minutes to export."""
    from torch._higher_order_ops.while_loop import while_loop

    def more(step: Tensor, last: Tensor, nearest: Tensor, chosen: Tensor) -> Tensor:
        return step < count

    def take(step: Tensor, last: Tensor, nearest: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        chosen = torch.where(torch.arange(count, device=axes.device) == step, last, chosen)
        apart = (axes - axes.gather(2, last[None].expand(3, -1, -1))).square().sum(dim=0)
        nearest = torch.minimum(nearest, apart)
        return step + 1, nearest.argmax(dim=1, keepdim=True), nearest, chosen

    step = torch.zeros((), dtype=torch.long, device=axes.device)
    nearest, chosen = torch.full_like(axes[0], math.inf), last.new_zeros(axes.shape[1], count)
    return while_loop(more, take, (step, last, nearest, chosen))[3]


def radius_neighbours(points: Tensor, radius: float, max_neighbours: int) -> tuple[Tensor, Tensor]:
    """The nearest others of each point, at most so many and none farther than the radius.

    Args:
        points: clouds.
        radius: mm.
        max_neighbours: k; a smaller cloud gives as many columns as it has other points.

    Shape:
        - points: ``[B, P, 3]``
        - returns: indices ``[B, P, k]`` long (-1: none), distances ``[B, P, k]`` (0 there)

    Example:
        >>> index, distance = radius_neighbours(torch.tensor([[[0.0, 0, 0], [3, 0, 0], [9, 0, 0]]]), 5, 2)
        >>> index.tolist(), distance.tolist()
        ([[[1, -1], [0, -1], [-1, -1]]], [[[3.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
    """
    apart = _distances(points, points)
    # not filled in place: ONNX could not hold that
    apart = apart.masked_fill(torch.eye(points.shape[1], dtype=torch.bool, device=points.device), math.inf)
    distance, index = apart.topk(min(max_neighbours, points.shape[1] - 1), dim=2, largest=False)
    outside = distance > radius
    return index.masked_fill(outside, -1), distance.masked_fill(outside, 0.0)


def build_point_graph(
    points: Tensor, *, radii: Sequence[float] = RADII, max_neighbours: int = MAX_NEIGHBOURS, ratio: float = 0.5
) -> PointGraph:
    """Graph and survivors of every level of a cloud, one level for each radius.

    Args:
        points: one cloud or a batch of them, mm.
        radii: of each level's graph, mm.
        max_neighbours: nearest neighbours kept within a radius.
        ratio: share of a level's points that survive it.

    Shape:
        - points: ``[P, 3]`` or ``[B, P, 3]``

    Raises:
        ValueError: fewer than two points at some level, or a setting out of range.

    Example:
        >>> graph = build_point_graph(torch.rand(64, 3) * 20, radii=(8, 12))
        >>> [tuple(index.shape) for index in graph.neighbours], [len(index) for index in graph.survivors]
        ([(64, 16), (32, 16)], [32, 16])
    """
    if points.ndim == 2:
        graph = build_point_graph(points[None], radii=radii, max_neighbours=max_neighbours, ratio=ratio)
        return PointGraph._make([*(tuple(part[0] for part in parts) for parts in graph[:3]), graph.nearest[0]])
    if not 0 < ratio <= 1 or max_neighbours < 1 or not radii or min(radii) <= 0:
        raise ValueError(
            "A point graph needs radii above 0, max_neighbours of at least 1 and a ratio in (0, 1], got radii "
            f"{list(radii)}, max_neighbours {max_neighbours}, ratio {ratio}."
        )
    counts = [points.shape[1]]
    for _ in radii:
        counts.append(math.ceil(counts[-1] * ratio))
    if counts[len(radii) - 1] < 2:
        raise ValueError(
            f"Every level needs at least two points; {counts[0]} points give levels of {counts}. Take more points or "
            "fewer radii."
        )
    graph = graph_levels(points.detach(), [float(radius) for radius in radii], max_neighbours, ratio)
    return PointGraph._make([*(tuple(parts) for parts in graph[:3]), graph.nearest])


def graph_levels(points: Tensor, radii: list[float], max_neighbours: int, ratio: float) -> PointGraph:
    """:func:`build_point_graph` of a batch of clouds, unchecked; TorchScript compiles it."""
    # the farthest points of a level are the first of its farthest points: one sampling serves all levels
    count = math.ceil(points.shape[1] * ratio)
    order, level = _sampled(points, count, -1), points
    neighbours: list[Tensor] = []
    distances: list[Tensor] = []
    survivors: list[Tensor] = []
    for number, radius in enumerate(radii):
        index, distance = radius_neighbours(level, radius, max_neighbours)
        neighbours.append(index)
        distances.append(distance)
        if number > 0:
            count = math.ceil(count * ratio)
            order = torch.arange(count, device=points.device).expand(points.shape[0], -1)
        survivors.append(order)
        level = take_points(level, order)
    nearest = _distances(points, level).argmin(dim=2)
    return PointGraph(neighbours, distances, survivors, nearest)


def take_points(values: Tensor, index: Tensor) -> Tensor:
    """The rows of each cloud that the indices name.

    Shape:
        - values: ``[B, P, D]``, index: ``[B, M]`` -> ``[B, M, D]``
    """
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    if not torch.jit.is_scripting():  # noqa: SIM102
        if torch.compiler.is_exporting():  # ONNX has no cdist
            return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=-1).sqrt()
    # the matrix-product form loses the digits that decide who is nearest
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
