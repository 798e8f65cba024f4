import math

import pytest
import torch
from torch import nn

from shared.losses import BiLevelContrastiveLoss, GliomaLoss, TractLoss
from shared.networks.glioma.network import GliomaInputs, GliomaOutput
from tests.support.tiny_brains import glioma_batch, glioma_network


def naive_nce(query, key, temperature=0.1):
    """Eq. 4 to 6 by loops in float64, decoupled as printed."""
    query, key = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (query, key))
    losses = []
    for i in range(len(query)):
        score = [math.exp(float(query[i] @ key[j]) / temperature) for j in range(len(key))]
        losses.append(-math.log(score[i] / (sum(score) - score[i])))
    return sum(losses) / len(losses)


def outputs(batch=5):
    generator = torch.Generator().manual_seed(0)
    names = ("z_image", "z_points", "z_tumour", "z_brain")
    return {name: torch.randn(batch, 6, generator=generator) for name in names}, torch.randn(batch, generator=generator)


def test_equals_the_equations_and_cross_entropy_by_hand():
    z, logits = outputs()
    label = torch.tensor([0, 1, 1, 0, 1])
    loss = GliomaLoss(BiLevelContrastiveLoss(), contrastive_weight=0.5, classification_weight=2.0, pos_weight=3.0)
    pairs = naive_nce(z["z_image"], z["z_points"]) + naive_nce(z["z_points"], z["z_image"])
    contrast = 0.8 * pairs / 2 + 0.2 * naive_nce(z["z_brain"], z["z_tumour"])
    terms = [
        -3 * math.log(1 / (1 + math.exp(-x))) if y else -math.log(1 - 1 / (1 + math.exp(-x)))
        for x, y in zip(logits.tolist(), label.tolist(), strict=True)
    ]
    found = loss(GliomaOutput(**z, logits=logits), label)
    assert float(found) == pytest.approx(0.5 * contrast + 2 * sum(terms) / 5, rel=1e-5)
    assert set(loss.terms()) == {"contrast", "BCE"}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_each_encoders_own_cross_entropy_is_added(weight):
    z, logits = outputs()
    alone = torch.stack([logits, -2 * logits, logits + 1], dim=1)
    label = torch.tensor([0, 1, 1, 0, 1])
    only = GliomaLoss(BiLevelContrastiveLoss(), contrastive_weight=0, classification_weight=2.0, unimodal_weight=weight)
    sign = 1.0 - 2 * label
    joint, *each = (float(nn.functional.softplus(sign * x).mean()) for x in (logits, *alone.unbind(1)))
    found = only(GliomaOutput(**z, logits=logits, unimodal_logits=alone), label)
    assert float(found) == pytest.approx(2 * (joint + weight * sum(each)), rel=1e-6)
    assert ("unimodal_BCE" in only.terms()) == (weight > 0)
    # no classification, Algorithm 1: none of either
    contrast = GliomaLoss(BiLevelContrastiveLoss(), classification_weight=0)
    contrast(GliomaOutput(**z, logits=logits, unimodal_logits=alone), label)
    assert set(contrast.terms()) == {"contrast"}


def test_without_a_joint_classifier_the_encoders_own_cross_entropies_are_the_loss():
    logits = outputs()[1]
    alone, label = torch.stack([logits, -2 * logits], dim=1), torch.tensor([0, 1, 1, 0, 1])
    loss = GliomaLoss(BiLevelContrastiveLoss(), contrastive_weight=0)
    each = [float(nn.functional.softplus((1.0 - 2 * label) * x).mean()) for x in alone.unbind(1)]
    assert float(loss(GliomaOutput(unimodal_logits=alone), label)) == pytest.approx(sum(each), rel=1e-6)
    assert set(loss.terms()) == {"unimodal_BCE"}


def test_two_encoders_have_the_level_they_allow():
    z, _ = outputs()
    loss = GliomaLoss(BiLevelContrastiveLoss())
    within = {key: z[key] for key in ("z_image", "z_points")}
    expected = (naive_nce(z["z_image"], z["z_points"]) + naive_nce(z["z_points"], z["z_image"])) / 2
    assert float(loss(GliomaOutput(**within))) == pytest.approx(expected, rel=1e-5)
    across = {key: z[key] for key in ("z_tumour", "z_brain")}
    assert float(loss(GliomaOutput(**across))) == pytest.approx(naive_nce(z["z_brain"], z["z_tumour"]), rel=1e-5)


def test_nothing_to_train_by_is_said():
    z, logits = outputs()
    with pytest.raises(ValueError, match="Nothing to train by"):
        GliomaLoss(BiLevelContrastiveLoss(), contrastive_weight=0)(GliomaOutput(**z), torch.ones(5))
    only = GliomaLoss(BiLevelContrastiveLoss(), contrastive_weight=0)(GliomaOutput(logits=logits), torch.ones(5))
    assert float(only) == pytest.approx(float(nn.functional.softplus(-logits).mean()), rel=1e-6)


def test_tracts_are_contrasted_with_fa_and_reconstructed_without():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    contrast = TractLoss(use_fa=True)((a, b), torch.zeros(4, 4, dtype=torch.bool))
    assert float(contrast) == pytest.approx(naive_nce(a, b), rel=1e-5)
    assert float(TractLoss(use_fa=False)(a, b)) == pytest.approx(float((a - b).square().mean()))


def retrieval(network, batch, nodes, edges):
    """Share of brains whose own tumour is the nearest one."""
    with torch.no_grad():
        out = network(GliomaInputs(**(batch | {"nodes": nodes, "edges": edges})))
    return float(
        (
            nn.functional.cosine_similarity(out.z_brain[:, None], out.z_tumour[None], dim=2).argmax(1)
            == torch.arange(len(nodes))
        )
        .float()
        .mean()
    )


def test_swapping_the_brain_networks_between_patients_drops_retrieval_to_chance():
    count = 12
    network, batch = glioma_network(edge_attention="none", brain={"node_attention": "none"}), glioma_batch(count)
    latent = torch.randn(count, 3, generator=torch.Generator().manual_seed(2))
    grid = torch.linspace(-1, 1, 16)
    batch["image"][:, 0] += 2 * latent[:, 0, None, None, None] + 2 * latent[:, 1, None, None, None] * grid
    batch["image"][:, 1] += 2 * latent[:, 2, None, None, None]
    batch["nodes"][..., :3] += 3 * latent[:, None]
    loss = GliomaLoss(BiLevelContrastiveLoss(weight=0.0))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    network.train()
    for _ in range(40):
        optimiser.zero_grad()
        loss(network(GliomaInputs(**batch))).backward()
        optimiser.step()
    network.eval()
    assert retrieval(network, batch, batch["nodes"], batch["edges"]) >= 0.8
    shifted = torch.arange(count).roll(1)
    assert retrieval(network, batch, batch["nodes"][shifted], batch["edges"][shifted]) <= 2 / count
