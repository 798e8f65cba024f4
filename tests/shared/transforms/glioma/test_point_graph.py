import math

import pytest
import torch

from shared.data import collate_point_graphs
from shared.transforms import build_point_graph, farthest_point_sampling
from shared.transforms.glioma.point_graph import radius_neighbours
from shared.transforms.glioma.tumour_crop import rotation_matrices
from tests.references import glioma_networks as reference
from tests.support.tiny_brains import RADII, cloud

ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("start", [None, 0, 7])
def test_farthest_points_equal_a_loop(start):
    points = cloud(40)
    found = farthest_point_sampling(points, 15, start=start)
    for patient in range(2):
        assert found[patient].tolist() == reference.farthest_points(points[patient].tolist(), 15, start)


def test_farthest_points_on_a_line():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [6, 0, 0], [10, 0, 0]])
    assert farthest_point_sampling(line, 5, start=0).tolist() == [0, 4, 3, 2, 1]


def test_a_shorter_sampling_is_the_beginning_of_a_longer_one():
    points = cloud()
    longer = farthest_point_sampling(points, 32)
    assert torch.equal(farthest_point_sampling(points, 9), longer[:, :9])
    # also when it starts again from what the longer one left
    left = points.gather(1, longer[:, :, None].expand(-1, -1, 3))
    assert torch.equal(farthest_point_sampling(left, 9, start=0), torch.arange(9).expand(2, -1))


def test_neighbours_equal_a_loop_over_all_pairs():
    points = cloud(30)
    index, distance = radius_neighbours(points, 6.0, 5)
    assert (index < 0).any() and (index[..., -1] >= 0).any()
    for patient in range(2):
        expected = reference.neighbours_within(points[patient].tolist(), 6.0, 5)
        for row, apart, wanted in zip(index[patient].tolist(), distance[patient].tolist(), expected, strict=True):
            assert [j for j in row if j >= 0] == [j for j, _ in wanted]
            assert apart == pytest.approx([d for _, d in wanted] + [0.0] * (5 - len(wanted)), abs=1e-4)


def test_levels_are_farthest_points_of_the_level_before():
    points = cloud()
    graph = build_point_graph(points, radii=(8, 12, 20), max_neighbours=4)
    level = points[1]
    for number in range(3):
        survivors = graph.survivors[number][1]
        # the first point of all is the farthest from the mean, the later levels go on from it
        start = None if number == 0 else 0
        assert survivors.tolist() == reference.farthest_points(level.tolist(), math.ceil(len(level) / 2), start)
        level = level[survivors]
    nearest = [min(range(8), key=lambda j: reference.distance(p, level[j].tolist())) for p in points[1].tolist()]
    assert graph.nearest[1].tolist() == nearest


def test_a_rigid_motion_changes_nothing_of_a_graph():
    points = cloud(dtype=torch.float64)
    turn = rotation_matrices(torch.tensor([[1.0, 2, -1]]), torch.tensor([0.7])).double()
    graph, moved = (build_point_graph(p, radii=RADII) for p in (points, points @ turn.transpose(1, 2) + 5))
    for found, expected in zip(
        [*moved.neighbours, *moved.survivors], [*graph.neighbours, *graph.survivors], strict=True
    ):
        assert torch.equal(found, expected)
    assert torch.equal(moved.nearest, graph.nearest)
    torch.testing.assert_close(moved.distances, graph.distances, atol=1e-5, rtol=1e-5)


def test_the_order_of_points_changes_only_their_numbers():
    points = cloud()
    graph, other = build_point_graph(points, radii=RADII), build_point_graph(points[:, ORDER], radii=RADII)
    assert torch.equal(ORDER[other.survivors[0]], graph.survivors[0])
    assert torch.equal(other.nearest, graph.nearest[:, ORDER])
    there = other.neighbours[0] >= 0
    renamed = torch.where(there, ORDER[other.neighbours[0].clamp(min=0)], -1)
    assert torch.equal(renamed, graph.neighbours[0][:, ORDER])


def test_a_batch_is_its_patients():
    points = cloud(batch=3)
    together, alone = build_point_graph(points, radii=RADII), [build_point_graph(one, radii=RADII) for one in points]
    collated = collate_point_graphs(alone)
    for found, other, expected in zip(collated[:3], collated.to("cpu")[:3], together[:3], strict=True):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(found, expected, other, strict=True))
    assert torch.equal(collated.nearest, together.nearest)


def test_refusals():
    with pytest.raises(ValueError, match="Of 8 points 9 were asked for"):
        farthest_point_sampling(torch.rand(8, 3), 9)
    with pytest.raises(ValueError, match=r"4 points give levels of \[4, 2, 1, 1\]"):
        build_point_graph(torch.rand(4, 3), radii=(8, 8, 8))
    with pytest.raises(ValueError, match="ratio in"):
        build_point_graph(torch.rand(4, 3), radii=(8,), ratio=0)
