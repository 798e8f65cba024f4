import pytest
import torch
from torch import nn

from shared.data import PointGraph
from shared.networks.glioma.geometric_encoder import DistanceNNConv, GeometricEncoder
from shared.transforms import build_point_graph
from shared.transforms.glioma.tumour_crop import rotation_matrices
from tests.references import glioma_networks as reference
from tests.support.tiny_brains import RADII, cloud, lively


def encoder(**settings):
    torch.manual_seed(0)
    return lively(GeometricEncoder((6, 10), hidden=(12,), embedding_dim=5, radii=RADII, **settings)).eval()


def listed(neighbours, distances):
    """[P] of (j, d), the padding left out."""
    return [
        [(j, d) for j, d in zip(row, apart, strict=True) if j >= 0]
        for row, apart in zip(neighbours.tolist(), distances.tolist(), strict=True)
    ]


# --- the convolution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "add"])
def test_convolution_equals_a_loop_with_a_matrix_for_every_edge(aggregation):
    layer = lively(DistanceNNConv(3, 4, aggregation=aggregation)).double()
    points = cloud(12, dtype=torch.float64)
    graph = build_point_graph(points, radii=(9,), max_neighbours=4)
    assert (graph.neighbours[0] < 0).any() and (graph.neighbours[0] >= 0).any()
    found = layer(points, graph.neighbours[0], graph.distances[0])
    for patient in range(2):
        edges = listed(graph.neighbours[0][patient], graph.distances[0][patient])
        expected = reference.nn_conv(
            points[patient].tolist(),
            edges,
            layer.nn.weight[:, 0].tolist(),
            layer.nn.bias.tolist(),
            layer.lin.weight.tolist(),
            layer.bias.tolist(),
            mean=aggregation == "mean",
        )
        torch.testing.assert_close(found[patient], torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("aggregation", ["mean", "add"])
def test_convolution_equals_torch_geometrics_with_the_same_state_dict(aggregation):
    from torch_geometric.nn.conv import NNConv

    layer = lively(DistanceNNConv(8, 6, aggregation=aggregation))
    theirs = NNConv(8, 6, nn.Linear(1, 48), aggr=aggregation)
    theirs.load_state_dict(layer.state_dict())
    points = cloud(40)
    graph = build_point_graph(points, radii=(9,), max_neighbours=5)
    neighbours, distances = graph.neighbours[0], graph.distances[0]
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    found = layer(x, neighbours, distances)
    patient, target, slot = torch.nonzero(neighbours >= 0, as_tuple=True)
    source = neighbours[patient, target, slot] + patient * 40
    edge_index = torch.stack([source, target + patient * 40])
    expected = theirs(x.flatten(0, 1), edge_index, distances[patient, target, slot, None]).view_as(found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(found)
    ours = torch.autograd.grad(found, [x, *layer.parameters()], gradient)
    others = dict(zip(("x", *dict(theirs.named_parameters())), _gradients(expected, x, theirs, gradient), strict=True))
    for name, value in zip(("x", *dict(layer.named_parameters())), ours, strict=True):
        torch.testing.assert_close(value, others[name], atol=1e-4, rtol=1e-4, msg=name)


def _gradients(output, x, layer, gradient):
    return torch.autograd.grad(output, [x, *layer.parameters()], gradient)


def test_what_is_kept_grows_with_edges_times_width_not_width_squared():
    layer = DistanceNNConv(64, 64)
    x = torch.randn(1, 128, 64, requires_grad=True)
    graph = build_point_graph(cloud(128, 1), radii=(20,))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(x, graph.neighbours[0], graph.distances[0])
    edges = int((graph.neighbours[0] >= 0).sum())
    assert edges > 1000 and max(sizes) <= edges * 64 < edges * 64 * 64


# --- the encoder --------------------------------------------------------------------------------------------------


def test_the_default_encoder_has_the_papers_widths():
    net = GeometricEncoder()
    assert [layer.out_channels for layer in net.convolutions] == [32, 64, 64, 128, 128]
    assert [layer.out_features for layer in net.head if isinstance(layer, nn.Linear)] == [256, 128, 32]
    embedding, attention = net.eval()(cloud(1024, 1))
    assert embedding.shape == (1, 32) and attention.shape == (1, 1024)


def test_the_encoder_equals_its_parts_one_after_the_other():
    net, points = encoder(batch_norm=False), cloud()
    graph = build_point_graph(points, radii=RADII)
    embedding, attention = net(points, graph)
    for patient in range(2):
        x = points[patient] / net.scale
        for level, layer in enumerate(net.convolutions):
            edges = listed(graph.neighbours[level][patient], graph.distances[level][patient] / net.scale)
            rows = reference.nn_conv(
                x.tolist(),
                edges,
                layer.nn.weight[:, 0].tolist(),
                layer.nn.bias.tolist(),
                layer.lin.weight.tolist(),
                layer.bias.tolist(),
                mean=True,
            )
            x = torch.tensor(rows).relu()[graph.survivors[level][patient]]
        share = net.gate(x)[:, 0].softmax(dim=0)
        torch.testing.assert_close(embedding[patient], net.head(share @ x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(attention[patient], 16 * share[graph.nearest[patient]], atol=1e-4, rtol=1e-4)


def test_a_gate_that_prefers_no_point_gives_attention_one():
    net = encoder()
    nn.init.zeros_(net.gate.weight)
    torch.testing.assert_close(net(cloud())[1], torch.ones(2, 64))


def test_the_order_of_points_does_not_matter():
    net, points = encoder(), cloud()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    embedding, attention = net(points)
    again, moved = net(points[:, order])
    torch.testing.assert_close(again, embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved, attention[:, order], atol=1e-5, rtol=1e-4)
    assert attention.std() > 1e-3


def test_patients_do_not_know_of_each_other():
    net, points = encoder(), cloud(batch=4)
    embedding, attention = net(points)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(points[order])[0], embedding[order], atol=1e-5, rtol=1e-4)
    for patient in range(4):
        alone, own = net(points[patient : patient + 1])
        torch.testing.assert_close(alone[0], embedding[patient], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own[0], attention[patient], atol=1e-5, rtol=1e-4)


def test_a_rotated_cloud_with_the_cached_graph_is_encoded_as_with_its_own():
    net, points = encoder(), cloud()
    turn = rotation_matrices(torch.tensor([[1.0, -2, 0.5]]), torch.tensor([1.1]))
    rotated = points @ turn.transpose(1, 2)
    cached, own = net(rotated, build_point_graph(points, radii=RADII)), net(rotated)
    for found, expected in zip(cached, own, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # and the encoder sees that it is turned: coordinates are its input
    assert (cached[0] - net(points)[0]).abs().max() > 1e-3


def test_with_radial_each_point_brings_its_distance_to_the_centroid():
    net, plain, points = encoder(radial=True, batch_norm=False), encoder(batch_norm=False), cloud()
    assert net.convolutions[0].in_channels == 4 and plain.convolutions[0].in_channels == 3
    graph = build_point_graph(points, radii=RADII)
    distance = points.square().sum(dim=2, keepdim=True).sqrt()
    x = torch.cat([points, distance], dim=2) / net.scale
    for level, layer in enumerate(net.convolutions):
        x = layer(x, graph.neighbours[level], graph.distances[level] / net.scale).relu()
        x = x.gather(1, graph.survivors[level][..., None].expand(-1, -1, x.shape[2]))
    share = net.gate(x)[..., 0].softmax(dim=1)
    expected = net.head((share[..., None] * x).sum(dim=1))
    torch.testing.assert_close(net(points, graph)[0], expected, atol=1e-5, rtol=1e-4)
    # without the weights of the coordinates nothing depends on how the head lies
    with torch.no_grad():
        net.convolutions[0].nn.weight.view(4, -1)[:3] = 0
        net.convolutions[0].nn.bias.view(4, -1)[:3] = 0
        net.convolutions[0].lin.weight[:, :3] = 0
    turn = rotation_matrices(torch.tensor([[1.0, -2, 0.5]]), torch.tensor([1.1]))
    torch.testing.assert_close(net(points @ turn.transpose(1, 2))[0], net(points)[0], atol=1e-5, rtol=1e-4)
    assert (plain(points @ turn.transpose(1, 2))[0] - plain(points)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("radial", [False, True])
def test_every_parameter_is_trained(radial):
    net, points = encoder(radial=radial).train(), cloud()
    embedding, attention = net(points)
    (embedding.square().sum() + attention.square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in net.named_parameters() if name != "gate.bias")


def test_refusals():
    with pytest.raises(ValueError, match="got 2 channels and 5 radii"):
        GeometricEncoder((8, 8))
    with pytest.raises(ValueError, match="aggregation must be"):
        DistanceNNConv(3, 3, aggregation="max")
    graph = build_point_graph(cloud(), radii=(8,))
    with pytest.raises(ValueError, match=r"has 2 levels and the points .* the graph has 1 levels"):
        encoder()(cloud(), graph)
    assert isinstance(graph.to("cpu"), PointGraph)
