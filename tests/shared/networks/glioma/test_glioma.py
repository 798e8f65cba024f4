import pytest
import torch
from torch import nn

from shared.networks import GliomaInputs, GliomaNetwork, edge_attention
from shared.networks.glioma.embeddings import joined_output
from shared.transforms import build_point_graph
from tests.support.tiny_brains import PAIRS, RADII, glioma_batch, glioma_network

EMBEDDINGS = {"image": "u_image", "points": "u_points", "brain": "u_brain"}
NEEDED = {"image": ["image"], "points": ["points"], "brain": ["nodes", "edges"]}
PAIRS_OF_ENCODERS = [("image", "points"), ("image", "brain"), ("points", "brain")]


def inputs_for(encoders, batch):
    names = [name for encoder in encoders for name in NEEDED[encoder]]
    names += ["incidence"] if {"points", "brain"} <= set(encoders) else []
    return {name: batch[name] for name in names}


def test_the_whole_is_its_parts_joined_by_attention():
    net, x = glioma_network(objective="multitask", unimodal=True), glioma_batch()
    out = net(GliomaInputs(**x))
    u_points, attention = net.geometric_encoder(x["points"])
    torch.testing.assert_close(out.u_image, net.image_encoder(x["image"]))
    torch.testing.assert_close(out.u_points, u_points)
    torch.testing.assert_close(out.u_tumour, torch.cat([out.u_image, out.u_points], dim=1))
    factor = edge_attention(attention, x["incidence"], PAIRS.shape[1])
    u_brain, nodes = net.brain_encoder(x["nodes"], x["edges"], out.z_tumour, factor)
    torch.testing.assert_close(out.u_brain, u_brain)
    torch.testing.assert_close(out.node_attention, nodes)
    torch.testing.assert_close(out.point_attention, attention)
    for name in ("image", "points", "tumour", "brain"):
        head, z = getattr(net, f"project_{name}"), getattr(out, f"z_{name}")
        torch.testing.assert_close(z, head(getattr(out, f"u_{name}")))
        assert z.shape == (3, 128)
    logits = net.classifier(torch.cat([out.u_tumour, out.u_brain], dim=1))
    torch.testing.assert_close(out.logits, logits[:, 0])
    alone = [net.classify_image(out.u_image), net.classify_points(out.u_points), net.classify_brain(out.u_brain)]
    torch.testing.assert_close(out.unimodal_logits, torch.cat(alone, dim=1))


def test_the_default_network_has_the_papers_heads():
    with torch.device("meta"):
        net = GliomaNetwork(PAIRS, size=120)
    widths = {
        name: [layer.in_features for layer in head if isinstance(layer, nn.Linear)] + [head[-1].out_features]
        for name, head in net.named_children()
        if name.startswith("project")
    }
    assert widths == {
        "project_image": [32, 64, 128, 128],
        "project_points": [32, 64, 128, 128],
        "project_tumour": [64, 64, 128, 128],
        "project_brain": [32, 64, 128, 128],
    }
    project = [layer.in_features for layer in net.brain_encoder.project if isinstance(layer, nn.Linear)]
    assert project == [256, 32, 64] and net.brain_encoder.project[-1].out_features == 128
    assert net.classifier is None


@pytest.mark.parametrize("encoders", [("image",), ("points",), ("brain",), *PAIRS_OF_ENCODERS])
def test_each_encoder_alone_and_every_pair(encoders):
    net = glioma_network(encoders=encoders, objective="multitask", unimodal=True)
    out = net(GliomaInputs(**inputs_for(encoders, glioma_batch())))
    assert [name for name, field in EMBEDDINGS.items() if getattr(out, field) is not None] == list(encoders)
    tumour = [name for name in encoders if name != "brain"]
    assert (out.u_tumour is None) == (not tumour)
    assert tumour == [] or out.u_tumour.shape == (3, 32 * len(tumour))
    # embeddings that were kept are joined as the network joins them
    kept = joined_output(out.u_image, out.u_points, out.u_brain)
    assert (kept.u_tumour is None) if tumour == [] else torch.equal(kept.u_tumour, out.u_tumour)
    assert (out.z_image is not None) == (out.z_points is not None) == (len(tumour) == 2)
    assert (out.z_tumour is not None) == (out.z_brain is not None) == (bool(tumour) and "brain" in encoders)
    assert out.logits.shape == (3,) and (out.node_attention is not None) == (out.z_brain is not None)
    net.train()
    out = net(GliomaInputs(**inputs_for(encoders, glioma_batch())))
    assert (out.unimodal_logits is None) == (len(encoders) == 1)
    alone = 0 if out.unimodal_logits is None else out.unimodal_logits.square().sum()
    (out.logits.square().sum() + alone).backward()
    used = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    # only the projection heads wait for the contrastive loss
    assert all(name.startswith(("project_image", "project_points", "project_tumour", "project_brain")) for name in used)


def test_an_encoders_own_classifier_trains_that_encoder_alone():
    net, x = glioma_network(objective="multitask", unimodal=True), glioma_batch()
    net.train()
    parts = {"image": net.image_encoder, "points": net.geometric_encoder, "brain": net.brain_encoder}
    for number, name in enumerate(parts):
        net.zero_grad()
        net(GliomaInputs(**x)).unimodal_logits[:, number].square().sum().backward()
        moved = {
            key for key, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }
        # the brain's embedding holds the tracts as the surface weighs them (Eq. 2); Eq. 3 stops the gradient
        assert moved == ({"points", "brain"} if name == "brain" else {name})


@pytest.mark.parametrize("settings", [{"unimodal": True}, {"objective": "multitask", "unimodal": False}])
def test_no_classifiers_of_their_own_where_they_are_not_wanted(settings):
    net = glioma_network(**settings)
    assert not any(name.startswith("classify_") for name in net.state_dict())
    assert net(GliomaInputs(**glioma_batch())).unimodal_logits is None


def test_what_is_left_out_is_no_weight():
    names = {name.split(".")[0] for name in glioma_network(encoders=("image", "brain")).state_dict()}
    assert names == {"image_encoder", "brain_encoder", "project_tumour", "project_brain"}


@pytest.mark.parametrize("mode", ["residual", "literal", "none"])
def test_edge_attention_can_be_changed_and_left_out(mode):
    x = glioma_batch()
    out = glioma_network(edge_attention=mode)(GliomaInputs(**x))
    net = glioma_network()
    factor = None if mode == "none" else edge_attention(out.point_attention, x["incidence"], 6, mode)
    torch.testing.assert_close(out.u_brain, net.brain_encoder(x["nodes"], x["edges"], out.z_tumour, factor)[0])
    if mode == "none":
        again = glioma_network(edge_attention=mode)(GliomaInputs(**{**x, "incidence": None}))
        torch.testing.assert_close(again.u_brain, out.u_brain)


def test_without_node_attention_the_tumour_does_not_reach_the_brain():
    settings = {"edge_attention": "none", "brain": {"node_attention": "none"}}
    net, x = glioma_network(**settings), glioma_batch()
    other = {**x, "image": x["image"].flip(0), "points": x["points"].flip(0)}
    torch.testing.assert_close(net(GliomaInputs(**x)).u_brain, net(GliomaInputs(**other)).u_brain)
    assert net(GliomaInputs(**x)).node_attention is None
    attended = glioma_network()
    assert (attended(GliomaInputs(**x)).u_brain - attended(GliomaInputs(**other)).u_brain).abs().max() > 1e-5


def test_the_brain_does_not_train_the_image_encoder():
    """Eq. 3: the tumour side of the node attention is fixed; Eq. 2 does train the points."""
    net, x = glioma_network(), glioma_batch()
    net(GliomaInputs(**x)).u_brain.square().sum().backward()
    assert all(parameter.grad is None for parameter in net.image_encoder.parameters())
    assert all(parameter.grad is None for parameter in net.project_tumour.parameters())
    assert net.geometric_encoder.gate.weight.grad.abs().sum() > 0


def test_patients_do_not_know_of_each_other():
    net, x = glioma_network(objective="multitask", unimodal=True), glioma_batch(4)
    graph = build_point_graph(x["points"], radii=RADII)
    together, order = net(GliomaInputs(**x, graph=graph)), torch.tensor([3, 1, 0, 2])
    mixed = net(GliomaInputs(**{name: value[order] for name, value in x.items()}))
    for name, value in together._asdict().items():
        torch.testing.assert_close(getattr(mixed, name), value[order], atol=1e-4, rtol=1e-3, msg=name)
        alone = torch.cat(
            [getattr(net(GliomaInputs(**{key: v[i : i + 1] for key, v in x.items()})), name) for i in range(4)]
        )
        torch.testing.assert_close(alone, value, atol=1e-4, rtol=1e-3, msg=name)


def test_the_state_dict_is_tensors_and_rebuilds_the_network():
    net, x = glioma_network(objective="multitask"), glioma_batch()
    state = net.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = glioma_network(objective="multitask")
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    other.load_state_dict(state)
    torch.testing.assert_close(other(GliomaInputs(**x)).logits, net(GliomaInputs(**x)).logits, atol=0, rtol=0)


def test_exported_network_equals_eager():
    net, x = glioma_network(objective="multitask"), glioma_batch()
    given = GliomaInputs(**x, graph=build_point_graph(x["points"], radii=RADII))
    with torch.no_grad():
        exported = torch.export.export(net, (given,)).module()
        found, expected = exported(given), net(given)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)


def test_bfloat16_autocast_of_the_whole_keeps_what_losses_need_in_float32():
    net, x = glioma_network(objective="multitask"), glioma_batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(GliomaInputs(**x))
    fields = ("u_image", "u_points", "u_brain", "point_attention", "node_attention")
    assert all(getattr(out, name).dtype == torch.float32 for name in fields)
    torch.testing.assert_close(out.node_attention.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoders": ("image",)}, r"One encoder alone \(image\)"),
        ({"encoders": ("image", "text")}, "encoders must be some of"),
        ({"encoders": ("image", "image")}, "each at most once"),
        ({"objective": "both"}, "objective must be one of .* got 'both'"),
        ({"edge_attention": "mean"}, "got 'contrastive' and 'mean'"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        glioma_network(**settings)


def test_missing_inputs_are_named():
    x = glioma_batch()
    with pytest.raises(ValueError, match="need image, points, nodes, edges, incidence; missing: points, incidence"):
        glioma_network()(GliomaInputs(image=x["image"], nodes=x["nodes"], edges=x["edges"]))
    with pytest.raises(ValueError, match="needs edge_index"):
        GliomaNetwork(size=32)


def test_a_shielded_encoder_is_taught_by_its_own_classifier_alone():
    net, x = glioma_network(objective="multitask", unimodal=True), glioma_batch()
    encoders = {"image": net.image_encoder, "points": net.geometric_encoder, "brain": net.brain_encoder}

    def taught(loss):
        net.zero_grad()
        loss(net(GliomaInputs(**x))).backward()
        return {
            name
            for name, part in encoders.items()
            if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }

    def joint(out):
        return sum(part.square().sum() for part in (out.logits, out.z_image, out.z_points, out.z_tumour, out.z_brain))

    assert taught(joint) == set(encoders)
    assert "points" in taught(lambda out: out.unimodal_logits[:, 2].square().sum())  # by the attention to tracts
    net.shielded = True
    assert taught(joint) == set(encoders)  # in training only
    net.train()
    assert taught(joint) == set() and all(p.grad.any() for p in net.classifier.parameters())
    for number, name in enumerate(net.encoders):
        assert taught(lambda out, number=number: out.unimodal_logits[:, number].square().sum()) == {name}
