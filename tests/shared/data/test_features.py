import pytest
import torch

from shared.data import FeatureRows, MixupTable
from shared.networks import IRCLClassifier
from tests.support.tiny import cohort, lively_images, tiny_classifier


@pytest.fixture
def network():
    return tiny_classifier(IRCLClassifier, num_modalities=2, per_modality=True, views=2)


@pytest.fixture
def cases():
    return cohort(lively_images(6), [0, 1, 1, 0, 1, 0], [[30.0 + i] for i in range(6)], names=("age",))


def counted(network):
    """Count the images that go through the encoder."""
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


def test_features_are_what_the_network_gives_each_case_alone(network, cases):
    table = MixupTable(6, ratio=2)
    rows = FeatureRows(cases, network, table, batch_size=5)
    images = cases.stack("image")
    assert len(rows) == 18
    for index in (0, 5, 6, 17):
        item = rows[index]
        (i, j), weight = table.parents[index].tolist(), float(table.weight[index])
        h, z = network.encode((weight * images[i] + (1 - weight) * images[j])[None])
        torch.testing.assert_close(item["image"], h[0], atol=1e-6, rtol=1e-5)
        assert torch.equal(item["assignment"], network.assign(z)[0][0])
        label = [0.0, 0.0]
        label[[0, 1, 1, 0, 1, 0][i]] += weight
        label[[0, 1, 1, 0, 1, 0][j]] += 1 - weight
        assert item["label"].tolist() == pytest.approx(label, abs=1e-6)
        assert item["covariates"].tolist() == pytest.approx([30 + weight * i + (1 - weight) * j], abs=1e-4)


def test_cached_and_direct_predictions_agree(network, cases):
    rows = FeatureRows(cases, network, MixupTable(6, ratio=0))
    h, assignment = (torch.stack([rows[i][key] for i in range(6)]) for key in ("image", "assignment"))
    torch.testing.assert_close(network.predictor(h, assignment), network(cases.stack("image")), atol=1e-5, rtol=1e-5)


def test_the_encoder_runs_once_whatever_the_epochs(network, cases):
    rows, seen = FeatureRows(cases, network, MixupTable(6, ratio=2), batch_size=5), counted(network)
    assert not seen
    for _ in range(3):
        for index in range(len(rows)):
            rows[index]
    # 18 cases of 4 images in parts of 5 cases, both views
    assert seen == [20, 20, 20, 20, 20, 20, 12, 12]


def test_features_come_from_the_network_in_eval_mode_and_without_gradients(network, cases):
    network.train()
    network.encoder.train()  # as somebody might have left it
    rows = FeatureRows(cases, network, MixupTable(6, ratio=0))
    item = rows[2]
    assert not item["image"].requires_grad and not network.encoder.training
    torch.testing.assert_close(item["image"], network.encode(cases.stack("image")[2:3])[0][0], atol=1e-6, rtol=1e-5)


def test_biomarkers_that_come_late_are_still_seen(network, cases):
    rows = FeatureRows(cases, network, MixupTable(6, ratio=0))
    network.biomarkers.copy_(network.biomarkers.flip(0))
    expected = network.assign(network.encode(cases.stack("image"))[1])[0]
    assert torch.equal(torch.stack([rows[i]["assignment"] for i in range(6)]), expected)
