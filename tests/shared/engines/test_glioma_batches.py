"""What the stages of glioma are given: each patient's own image, surface and brain network."""

from types import SimpleNamespace

import pytest
import torch

from shared.data import GliomaRows
from shared.engines import PrepareContrast, PrepareGlioma
from shared.losses import PopulationLoss
from shared.networks import FrozenEmbeddings
from shared.networks.glioma.embeddings import brain_networks
from shared.networks.glioma.network import GliomaInputs
from shared.transforms import SequenceDropout, TumourRotation
from shared.transforms.glioma.tumour_crop import rotate_image
from tests.support.tiny_brains import lively
from tests.support.tiny_glioma_rows import VOXELS, glioma_classifier, patients_rows


@pytest.fixture
def rows():
    return patients_rows(5)


@pytest.fixture
def network():
    return lively(glioma_classifier(batch_norm=True))


def test_the_brain_network_of_a_batch_is_that_of_its_patients(rows, network):
    features = network.features
    features.fit_attributes(*brain_networks(rows.items, features, standardised=False))
    image, label, _, inputs = PrepareContrast(rows, features)({"row": torch.tensor([3, 0])})
    for place, row in enumerate((3, 0)):
        item = rows.items[row]
        nodes, edges = features.attributes(item["region_rows"][None], item["tract_rows"][None])
        torch.testing.assert_close(inputs["nodes"][place], nodes[0])
        torch.testing.assert_close(inputs["edges"][place], edges[0])
        assert torch.equal(image[place], item["image"]) and torch.equal(inputs["points"][place], item["points"])
        assert label[place] == item["label"]
    # as they go into the encoder: standardised, region by region and tract by tract
    every = PrepareContrast(rows, features)({"row": torch.arange(5)})[3]
    for x in (every["nodes"], every["edges"]):
        torch.testing.assert_close(x.mean(dim=0), torch.zeros_like(x[0]), atol=1e-4, rtol=0)
        spread = x.std(dim=0)
        assert (((spread - 1).abs() < 1e-3) | (spread < 1e-3)).all() and (spread > 0.5).any()


def test_image_and_surface_turn_together(rows, network):
    prepare = PrepareContrast(rows, network.features, TumourRotation(90, seed=4))
    image, _, _, inputs = prepare({"row": torch.tensor([1, 2])})
    turn = TumourRotation(90, seed=4).draw(2)
    for place, row in enumerate((1, 2)):
        item = rows.items[row]
        expected = rotate_image(item["image"][None], turn[place : place + 1], item["centre"][None])
        torch.testing.assert_close(image[place : place + 1], expected)
        turned = item["points"].double() @ turn[place].T.double()
        torch.testing.assert_close(inputs["points"][place].double(), turned, atol=1e-5, rtol=1e-5)


def test_a_sequence_left_out_is_left_out_of_image_and_brain_network_alike(rows, network):
    """The other sequences stay; one patient's attributes are not another's, nor those of another choice."""
    features = network.features
    features.fit_attributes(*brain_networks(rows.items, features, standardised=False))
    prepare = PrepareContrast(rows, features, dropout=SequenceDropout(0.5, seed=1))
    draw, seen = SequenceDropout(0.5, seed=1), set()
    for batch in ([3, 0], [0, 3], [3, 0], [1, 3]):
        kept = draw(2, 2)
        image, _, _, inputs = prepare({"row": torch.tensor(batch)})
        for place, row in enumerate(batch):
            item = rows.items[row]
            given = [item[key].clone() for key in ("region_rows", "tract_rows")]
            for sequence in (0, 1):
                alone = item["image"][sequence] if kept[place, sequence] else torch.zeros(16, 16, 16)
                assert torch.equal(image[place, sequence], alone)
                for x in given:
                    x[:, VOXELS * sequence : VOXELS * (sequence + 1)] *= kept[place, sequence]
            nodes, edges = features.attributes(given[0][None], given[1][None])
            torch.testing.assert_close(inputs["nodes"][place], nodes[0])
            torch.testing.assert_close(inputs["edges"][place], edges[0])
            seen.add((row, tuple(kept[place].tolist())))
    assert {kept for _, kept in seen} == {(True, True), (True, False), (False, True)}


def test_sequences_are_left_out_as_often_as_asked_for_and_never_all():
    kept = SequenceDropout(0.3, seed=2)(20000, 4)
    assert kept.any(dim=1).all() and 1 - kept.float().mean().item() == pytest.approx(0.3 - 0.3**4 / 4, abs=0.01)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        SequenceDropout(1.0)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_the_banks_patients_are_embedded_as_new_ones_are(rows, network, batch_size):
    network.train()
    before = {name: buffer.clone() for name, buffer in network.features.named_buffers()}
    nodes, edges = FrozenEmbeddings(rows, network, batch_size=batch_size).embeddings()
    assert all(torch.equal(before[name], buffer) for name, buffer in network.features.named_buffers())
    network.eval()
    assert len(nodes) == len(edges) == 5
    for row, item in enumerate(rows.items):
        _, _, _, inputs = PrepareGlioma(SimpleNamespace(items=[item]))({"row": torch.tensor([0])})
        inputs.pop("covariates")
        rows_of = {"nodes": inputs.pop("region_rows"), "edges": inputs.pop("tract_rows")}
        with torch.no_grad():
            own = network.graph_parts(network.embed(GliomaInputs(item["image"][None], **inputs, **rows_of)))
        torch.testing.assert_close(nodes[row], own[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(edges[row], own[1][0], atol=1e-5, rtol=1e-5)


def test_a_batch_is_in_the_order_of_its_rows(rows):
    image, label, _, inputs = PrepareGlioma(rows)({"row": torch.tensor([4, 1])})
    assert torch.equal(image, torch.stack([rows.items[4]["image"], rows.items[1]["image"]]))
    assert label.tolist() == [0, 1]
    assert torch.equal(inputs["covariates"], torch.stack([rows.items[4]["covariates"], rows.items[1]["covariates"]]))


def test_rows_are_in_the_order_of_the_patients_asked_for(rows):
    cases = SimpleNamespace(patients=rows.patients, items=rows.items)
    chosen = GliomaRows(cases, ["P3", "P0", "P4"])
    assert chosen.patients == ["P3", "P0", "P4"] and chosen.labels.tolist() == [1, 0, 0]
    assert torch.equal(chosen.covariate_table[0], rows.items[3]["covariates"])


@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_each_members_step_is_its_own(pos_weight):
    """The sum of the members' and the MLP's mean cross-entropies."""
    generator = torch.Generator().manual_seed(0)
    graph, alone, mlp = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (3, 3, 1))
    label = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    expected = 0.0
    for logits in (*graph, *alone, *mlp):
        terms = -(pos_weight or 1) * label * logits.sigmoid().log() - (1 - label) * (-logits).sigmoid().log()
        expected = expected + terms.sum() / 6
    torch.testing.assert_close(PopulationLoss(pos_weight)((graph, alone, mlp), label), expected)
    torch.testing.assert_close(PopulationLoss()((graph, None), label), PopulationLoss()((graph,), label))
