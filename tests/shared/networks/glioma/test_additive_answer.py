"""The additive answer: terms that add up, Shapley values against all coalitions, and who answers."""

import itertools
import math

import pytest
import torch

from shared.checkpoint import load_weights
from shared.errors import DataError
from shared.networks import AdditiveAnswer, GliomaInputs, GliomaNetwork
from shared.networks.glioma.classifier import given_rows
from shared.networks.glioma.embeddings import FrozenEmbeddings
from tests.support.tiny_brains import PAIRS, brains, cloud, lively
from tests.support.tiny_glioma_rows import glioma_classifier, patients_rows

WEIGHT, MEAN, SPREAD, BIAS = [0.8, -0.3, 1.7, -0.05], [0.4, -1.1, 0.2, 55.0], [1.0, 2.0, 0.5, 9.0], -0.6


def answer():
    found = AdditiveAnswer(3, 1)
    found.fill(weight=WEIGHT, mean=MEAN, spread=SPREAD, bias=BIAS)
    return found


def sample(count=5):
    generator = torch.Generator().manual_seed(3)
    scores = 4 * torch.randn(count, 3, generator=generator)
    return scores, 50 + 10 * torch.randn(count, 1, generator=generator)


def additive_classifier(**settings):
    """A small network whose additive answer has weights, with a bank of random patients."""
    net = lively(glioma_classifier(unimodal=True, additive=True, num_covariates=1, **settings))
    net.additive.fill(weight=WEIGHT, mean=MEAN, spread=SPREAD, bias=BIAS)
    generator = torch.Generator().manual_seed(5)
    net.population.set_bank(*(torch.randn(9, d, generator=generator) for d in (net.population.in_dim, net.brain_dim)))
    return net.eval()


def inputs_of(count=4):
    rows = patients_rows(count, seed=20)
    from shared.data import collate_glioma, glioma_inputs

    return glioma_inputs(collate_glioma(rows.items))


def test_the_logit_is_the_sum_as_a_loop_adds_it():
    scores, age = sample()
    found = answer()(scores, age)
    for k in range(5):
        values = [*scores[k].tolist(), age[k].item()]
        expected = math.fsum([BIAS, *(w * x for w, x in zip(WEIGHT, values, strict=True))])
        assert found[k].item() == pytest.approx(expected, abs=1e-12)


def test_terms_and_bias_are_the_logit_and_so_are_shapley_values_and_base():
    scores, age = sample()
    net, logit = answer(), answer()(scores, age)
    assert (net.contributions(scores, age).sum(dim=1) + net.bias - logit).abs().max() < 1e-12
    assert (net.shapley(scores, age).sum(dim=1) + net.base - logit).abs().max() < 1e-12


def test_shapley_values_are_those_of_all_coalitions():
    """Mean gain of a term over all orders in which terms join, absent ones at the training mean."""
    scores, age = sample(1)
    net, known = answer(), torch.cat([*sample(1)], dim=1)[0]

    def value(present):
        x = torch.tensor([known[i].item() if i in present else MEAN[i] for i in range(4)])
        return net(x[None, :3], x[None, 3:]).item()

    orders = list(itertools.permutations(range(4)))
    expected = [
        sum(value({*order[: order.index(i) + 1]}) - value({*order[: order.index(i)]}) for order in orders) / len(orders)
        for i in range(4)
    ]
    # the coalitions' numbers are float32
    assert net.shapley(scores, age)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_an_unknown_covariate_counts_as_the_training_mean():
    scores, age = sample()
    net, mean = answer(), torch.full((5, 1), MEAN[3])
    assert torch.equal(net(scores), net(scores, mean))
    assert torch.equal(net(scores, torch.full((5, 1), torch.nan)), net(scores, mean))
    assert not torch.equal(net(scores, age), net(scores, mean))


@pytest.mark.parametrize("given", ["graph", "additive"])
def test_the_network_gives_the_logit_of_its_answer(given):
    net, batch = additive_classifier(answer=given), inputs_of()
    with torch.no_grad():
        logit = net(**batch)[:, 1]
        output = net.embed(given_rows(batch))
        known = batch["covariates"]
        both = net.answers(output, known)
        assert set(both) == {"graph", "additive"} and (both["graph"] - both["additive"]).abs().max() > 0.1
        torch.testing.assert_close(logit, both[given].float())
        total = net.contributions(output, known).sum(dim=1) + net.additive.bias
        assert (total - both["additive"]).abs().max() < 1e-12
        if given == "additive":
            assert (total - logit).abs().max() < 1e-5  # the network's logit is float32
        scores = net.features.glioma.scores(output)
        torch.testing.assert_close(scores, output.unimodal_logits)
    scripted = torch.jit.script(net)
    names = ("image", "points", "graph", "region_rows", "tract_rows", "incidence", "covariates")
    torch.testing.assert_close(scripted(**{name: batch[name] for name in names})[:, 1], logit, atol=1e-5, rtol=1e-5)


def test_one_encoder_alone_is_scored_by_the_only_classifier_there_is():
    net = lively(glioma_classifier(encoders=["image"], additive=True, answer="additive"))
    batch = inputs_of()
    with torch.no_grad():
        output = net.eval().embed(given_rows(batch))
        torch.testing.assert_close(net.features.glioma.scores(output)[:, 0], output.logits)
    assert net.additive.num_scores == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"unimodal": False},
        {"objective": "contrastive"},
        {"unimodal": True, "unimodal_weight": 0.0},
        {"additive": False},
    ],
)
def test_without_scores_of_the_encoders_there_is_no_sum_to_answer(settings):
    given = {"unimodal": True, "additive": True} | settings
    net = glioma_classifier(**given)
    assert net.additive is None and net.answer == "graph"
    with pytest.raises(DataError, match="no additive answer"):
        net.contributions(None)
    with pytest.raises(ValueError, match=r'answer must be "graph" or, where `additive` is true.* --answer graph'):
        glioma_classifier(**given, answer="additive")


def test_a_model_of_before_there_was_a_sum_loads_and_answers_by_the_graph():
    before, batch = lively(glioma_classifier(unimodal=True)), inputs_of()
    before.population.set_bank(*(torch.randn(9, d) for d in (before.population.in_dim, before.brain_dim)))
    settings = {key: value for key, value in before.settings.items() if key not in ("additive", "answer")}
    net = type(before)(**settings)
    load_weights(net, before.state_dict(), "model.pt")
    with torch.no_grad():
        assert torch.equal(net.eval()(**batch), before.eval()(**batch))
    assert net.answer == "graph" and not any(key.startswith("additive") for key in net.state_dict())


def unimodal_network(**settings):
    given = {"image": {"channels": (4, 4)}, "points": {"channels": (4, 8), "radii": (8.0, 14.0)}}
    given |= {"brain": {"num_regions": 6, "channels": (8,), "node_attention": "none"}}
    torch.manual_seed(0)
    return GliomaNetwork(
        PAIRS, size=8, in_channels=2, objective="unimodal", **({"edge_attention": "none"} | given | settings)
    )


def test_with_the_unimodal_objective_no_encoder_hears_of_another():
    net = lively(unimodal_network())
    nodes, edges, incidence = brains(4)
    given = GliomaInputs(torch.rand(4, 2, 8, 8, 8), cloud(batch=4), None, nodes, edges, incidence)
    parts = {"image": "image", "points": "geometric", "brain": "brain"}
    for column, name in enumerate(parts):
        net.zero_grad()
        net(given).unimodal_logits[:, column].square().sum().backward()
        taught = {key.split(".")[0] for key, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        assert taught == {f"{parts[name]}_encoder", f"classify_{name}"}
    output = net(given)
    assert output.logits is None and all(getattr(output, f"z_{part}") is None for part in ("image", "tumour", "brain"))


@pytest.mark.parametrize("settings", [{"edge_attention": "residual"}, {"brain": {"num_regions": 6, "channels": (8,)}}])
def test_attention_between_encoders_that_train_independently_is_refused(settings):
    with pytest.raises(ValueError, match="independently of the others"):
        unimodal_network(**settings)


def test_frozen_outputs_hold_every_patients_scores():
    net, rows = additive_classifier(), patients_rows(5, seed=20)
    found = FrozenEmbeddings(rows, net, batch_size=2).outputs()
    alone = [FrozenEmbeddings(type(rows)(rows_of(rows), [name]), net).outputs() for name in rows.patients]
    torch.testing.assert_close(found.unimodal_logits, torch.cat([one.unimodal_logits for one in alone]))
    torch.testing.assert_close(found.u_tumour, torch.cat([one.u_tumour for one in alone]))


def rows_of(rows):
    from types import SimpleNamespace

    return SimpleNamespace(patients=rows.patients, items=rows.items)
