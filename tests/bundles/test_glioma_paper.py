"""The preset `paper` of glioma_idh: numbers that the paper states, and its equations as printed, in float64 loops."""

import copy
from itertools import pairwise

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from shared.networks import GliomaClassifier, GliomaInputs
from shared.networks.glioma.population_graph import PopulationGraphClassifier
from tests.references import glioma_paper as reference
from tests.references.population_graph import attention_layer, dot, edge_weights
from tests.support.bundle_runs import ROOT
from tests.support.tiny_brains import PAIRS, REGIONS, brains, cloud, lively

CONFIGS = ROOT / "bundles/glioma_idh/configs"
STATED = {
    # section 4.3, training
    "nodes#epochs": 1000,
    "nodes#batch_size": 50,
    "nodes#learning_rate": 0.001,
    "nodes#weight_decay": 0.0005,
    "edges#epochs": 1000,
    "edges#batch_size": 50,
    "edges#learning_rate": 0.001,
    "edges#weight_decay": 0.0005,
    "contrast#epochs": 1000,
    "contrast#batch_size": 20,
    "contrast#learning_rate": 0.001,
    "contrast#weight_decay": 0.0005,
    "contrast#temperature": 0.1,
    "contrast#tumour_weight": 0.8,
    "contrast#decoupled": True,
    "edges#decoupled": True,
    "train#epochs": 200,
    "train#batch_size": 20,
    "train#learning_rate": 0.001,
    **{
        f"{stage}#decay{suffix}": value
        for stage in ("nodes", "edges", "contrast", "train")
        for suffix, value in (("", 0.9), ("_every", 50))
    },
    "nodes#optimizer#_target_": "torch.optim.Adam",
    "edges#optimizer#_target_": "torch.optim.SGD",
    "contrast#optimizer#_target_": "torch.optim.SGD",
    "train#optimizer#_target_": "torch.optim.Adam",
    # sections 3.2 and 4.2: the mask's voxels of the MRI, in a cube of 120
    "preparing#size": 120,
    "preparing#outside": "mask",
    "preparing#num_voxels": 1000,
    # section 4.1: 20 patients of their own, 270 in halves
    "shares": {"self_supervised": 20, "contrastive": 135, "population": 135},
    "network_def#population#theta": 0.5,
    "network_def#graph": "both-brain",
    "edges#fa_widths": [1024, 512, 128, 32, 16],
}


@pytest.fixture(scope="module")
def parser():
    found = ConfigParser()
    found.read_config([str(CONFIGS / f"{name}.json") for name in ("train", "paper")])
    return found


def test_the_preset_holds_the_numbers_that_the_paper_states(parser):
    assert {key: parser[key] for key in STATED} == STATED


def test_the_preset_has_the_layers_of_section_4_3(parser):
    settings = {k: v for k, v in copy.deepcopy(parser["network_def"]).items() if not k.startswith("_")}
    settings["points"]["radii"] = parser["preparing#radii"]
    settings |= {"edge_index": PAIRS.tolist(), "num_regions": REGIONS, "in_channels": 4, "size": 120}
    settings |= {"num_voxels": 1000, "num_covariates": 0, "classification_weight": 1.0, "unimodal_weight": 1.0}
    settings |= {"answer": parser["answer"], "bf16": False, "channels_last": False, "checkpointing": False}
    with torch.device("meta"):
        network = GliomaClassifier(**settings)
    features, glioma = network.features, network.features.glioma

    def widths(module):
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        assert all(a.out_features == b.in_features for a, b in pairwise(layers))
        return [layers[0].in_features, *(layer.out_features for layer in layers)]

    encoder = [4000, 2048, 1024, 512, 128, 32, 16]
    assert widths(features.nodes.encoder) == widths(features.edges.encoder) == encoder
    assert widths(features.nodes.decoder) == encoder[::-1]
    image, points, brain = glioma.image_encoder, glioma.geometric_encoder, glioma.brain_encoder
    assert [block.conv.out_channels for block in image.blocks] == [64, 128, 128, 256, 256]
    assert widths(image.head) == [256 * 3**3, 512, 256, 32]
    assert [layer.out_channels for layer in points.convolutions] == [32, 64, 64, 128, 128]
    assert points.convolutions[0].in_channels == 3 and widths(points.head) == [128, 256, 128, 32]
    assert not any(isinstance(module, nn.BatchNorm1d) for module in points.modules())
    assert [layer.lin.out_features for layer in brain.layers] == [64, 128, 128, 256, 256, 256]
    assert brain.layers[0].lin.in_features == 16 and all(layer.res is None for layer in brain.layers)
    assert widths(brain.head) == [256, 512, 256, 32] and widths(brain.project) == [256, 16, 32, 64, 128]
    heads = {name: widths(getattr(glioma, f"project_{name}")) for name in ("image", "points", "tumour", "brain")}
    assert heads.pop("tumour") == [64, 64, 128, 128] and all(w == [32, 64, 128, 128] for w in heads.values())
    member = network.population.members[0]
    assert [layer.lin.out_features for layer in member.layers] == [64, 128, 128, 128]
    assert all(layer.res is None for layer in member.layers) and member.dropout.p == 0
    assert glioma.classifier is None and not glioma.unimodal and network.additive is None


def linear_layers(module):
    return [(x.weight.tolist(), x.bias.tolist()) for x in module.modules() if isinstance(x, nn.Linear)]


def test_the_preset_computes_equations_2_to_7_and_algorithm_1_as_printed(parser):
    """A small network with the preset's switches, in float64, against loops over patients, tracts and regions."""
    given = copy.deepcopy({key: parser[f"network_def#{key}"] for key in ("edge_attention", "objective", "unimodal")})
    brain = copy.deepcopy(parser["network_def#brain"]) | {"channels": [5, 4], "hidden": [6], "projection": [3, 5, 8]}
    points = copy.deepcopy(parser["network_def#points"]) | {"channels": [4, 6], "hidden": [5], "radii": [8.0, 14.0]}
    torch.manual_seed(0)
    network = GliomaClassifier(
        PAIRS.tolist(), num_regions=REGIONS, in_channels=2, size=8, num_voxels=3, embedding_dim=4,
        projection=[6, 7, 8], image={"channels": [3, 4], "hidden": [5], "global_pool": False},
        points=points, brain=brain, attribute_widths=[5, 16], edge_head=[4],
        standardise=parser["network_def#standardise"], **given,
    )  # fmt: skip
    glioma = lively(network.double().features.glioma).eval()
    nodes, edges, incidence = brains(5, dtype=torch.float64)
    cubes = torch.rand(5, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    out = glioma(GliomaInputs(cubes, cloud(batch=5, dtype=torch.float64), None, nodes, edges, incidence))
    encoder = glioma.brain_encoder
    layers = [{key: value.tolist() for key, value in layer.state_dict().items()} for layer in encoder.layers]
    u_brain = []
    for patient in range(5):
        u, attention = reference.brain_features(
            nodes[patient].tolist(), edges[patient].tolist(), PAIRS.t().tolist(),
            out.point_attention[patient].tolist(), incidence[patient].tolist(), out.z_tumour[patient].tolist(),
            layers, linear_layers(encoder.project), linear_layers(encoder.head),
        )  # fmt: skip
        assert out.u_brain[patient].tolist() == pytest.approx(u, rel=1e-10, abs=1e-12)
        assert out.node_attention[patient].tolist() == pytest.approx(attention, rel=1e-9, abs=1e-10)
        u_brain.append(u)
    assert min(map(min, out.node_attention.tolist())) < 0  # a cosine, no share
    heads = {name: linear_layers(getattr(glioma, f"project_{name}")) for name in ("image", "points", "tumour", "brain")}
    expected = reference.multi_modal_loss(out.u_image.tolist(), out.u_points.tolist(), u_brain, heads)
    loss = ConfigParser({"contrast": {"loss": parser["contrast#loss"], **parser["contrast"]}, "in_channels": 2})
    loss = loss.get_parsed_content("contrast#loss")
    assert loss(out).item() == pytest.approx(expected, rel=1e-10)


def test_the_presets_population_graph_is_equation_8_of_the_embeddings_as_they_come(parser):
    settings = {**parser["network_def#population"], "hidden": [4, 3]}
    torch.manual_seed(1)
    network = PopulationGraphClassifier(6, edge_features=5, **settings).double().eval()
    generator = torch.Generator().manual_seed(2)
    nodes, edges = (torch.randn(9, d, generator=generator).double() * 3 + 1 for d in (6, 5))
    new_nodes, new_edges = (torch.randn(4, d, generator=generator).double() * 3 + 1 for d in (6, 5))
    network.set_bank(nodes, edges)
    wanted = edge_weights(edges.tolist(), theta=0.5)
    torch.testing.assert_close(network.bank_graph()[0], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert 0 < sum(w > 0 for row in wanted for w in row) < 72
    states, member = [nodes.tolist()], network.members[0]
    for layer in member.layers:
        parameters = {name: value.tolist() for name, value in layer.state_dict().items()}
        attributes, joined = [[[w] for w in row] for row in wanted], [[w > 0 for w in row] for row in wanted]
        rows = attention_layer(states[-1], states[-1], joined, attributes, parameters, heads=1)
        states.append(nn.functional.elu(torch.tensor(rows, dtype=torch.float64)).tolist())
    logits = [dot(member.head.weight[0].tolist(), row) + member.head.bias.item() for row in states[-1]]
    assert network.bank_logits()[0][0].tolist() == pytest.approx(logits, rel=1e-9, abs=1e-10)
    found = network.query_graph(new_edges)[0].tolist()
    assert found == [pytest.approx(row, abs=1e-12) for row in edge_weights(new_edges.tolist(), edges.tolist(), 0.5)]
    assert torch.isfinite(network(new_nodes, new_edges)).all()
