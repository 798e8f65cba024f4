import csv
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from shared.apps.baselines import patch_probes
from shared.apps.baselines.patch_probes import (
    STRENGTHS,
    cached_features,
    fit_forest,
    fit_probe,
    frozen_features,
    imagenet_encoder,
    measured_features,
    pixel_digests,
    pretrained_encoder,
    random_encoder,
)
from shared.errors import CheckpointError
from shared.networks import ContrastiveNetwork, PatchEncoder

SETTINGS = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stages": (3, 4)}


def _rows(patients=20, each=4, width=6, seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(patients) % 2, each)
    names = np.repeat([f"P{i}" for i in range(patients)], each)
    shift = np.repeat(random.normal(size=(patients, width)), each, axis=0)
    x = shift + 0.3 * random.normal(size=shift.shape)
    x[:, 0] += 1.5 * labels
    return x * [100, 1, 0.01, 1, 1, 1] + 5, labels, names.tolist()


def test_a_probe_is_a_standardised_regression_with_the_penalty_of_grouped_folds():
    from shared.data.splits import grouped_folds

    x, labels, patients = _rows()
    probe = fit_probe(x, labels, patients, seed=2)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    fold_of = grouped_folds(patients, labels.tolist(), 5, 2)
    fold = np.array([fold_of[patient] for patient in patients])
    loss = []
    for strength in STRENGTHS:
        of_folds = []
        for k in range(5):
            inner = x[fold != k]
            scaled = (x - inner.mean(axis=0)) / inner.std(axis=0)
            model = LogisticRegression(C=strength, max_iter=5000)
            p = model.fit(scaled[fold != k], labels[fold != k]).predict_proba(scaled[fold == k])[:, 1]
            of_folds.append(-np.mean(np.log(np.where(labels[fold == k] == 1, p, 1 - p))))
        loss.append(np.mean(of_folds))
    best = STRENGTHS[int(np.argmin(loss))]
    expected = LogisticRegression(C=best, max_iter=5000).fit(z, labels)
    assert np.allclose(probe.predict_proba(x), expected.predict_proba(z), atol=1e-6)
    assert min(STRENGTHS) < best < max(STRENGTHS)


def test_few_patients_are_fitted_without_inner_folds():
    x, labels, patients = _rows(2)
    assert fit_probe(x, labels, patients).predict(x).tolist() == labels.tolist()


def test_a_forest_is_seeded():
    x, labels, _ = _rows()
    one, other = (fit_forest(x, labels, seed=seed, trees=10).predict_proba(x) for seed in (0, 1))
    assert np.array_equal(one, fit_forest(x, labels, trees=10).predict_proba(x)) and not np.array_equal(one, other)


def test_encoders(tmp_path):
    state = torch.random.get_rng_state()
    encoder = random_encoder(SETTINGS, 3)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's numbers are used up
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    h = frozen_features(encoder, images, size=32, batch_size=2)
    assert h.shape == (5, 16) and h.dtype == np.float32 and not encoder.training
    assert np.allclose(h, frozen_features(random_encoder(SETTINGS, 3), images, size=32), atol=1e-5)
    assert not np.allclose(h, frozen_features(random_encoder(SETTINGS, 4), images, size=32), atol=1e-3)

    network = ContrastiveNetwork(SETTINGS, projection=(6,))
    torch.save({"network": network.state_dict()}, tmp_path / "pretrain.pt")
    loaded = pretrained_encoder(tmp_path / "pretrain.pt", SETTINGS)
    with torch.no_grad():
        expected = network.eval().encoder(images / 255)
        assert torch.allclose(loaded(images / 255)[:, 8:], expected, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"channels|does not fit"):
        pretrained_encoder(tmp_path / "pretrain.pt", {**SETTINGS, "channels": (4, 4, 8, 16)})
    with pytest.raises(CheckpointError, match="pretrain_run"):
        pretrained_encoder(tmp_path / "none.pt", SETTINGS)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_an_imagenet_encoder_is_read_off_its_weights(tmp_path, block):
    net = PatchEncoder(block, (1, 2, 1, 1), (4, 6, 8, 10))
    state = net.state_dict() | {"fc.weight": torch.zeros(3, 10), "fc.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "net.pt")
    encoder = imagenet_encoder(tmp_path / "net.pt", stages=(2, 4))
    assert encoder.widths == net.widths and encoder.stages == (2, 4) and len(encoder.layer2) == 2
    # the weights expect standardised images, the encoder takes them in [0, 1]: equal, at the borders too
    x = torch.rand(2, 3, 48, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = net.eval()((x - mean[:, None, None]) / std[:, None, None])
        assert torch.allclose(encoder(x)[:, -net.width :], expected, atol=1e-4)
    if block == "bottleneck":
        (tmp_path / "net.json").write_text(json.dumps({"encoder": {"stride_in_1x1": True}}))
        assert imagenet_encoder(tmp_path / "net.pt").layer3[0].conv1.stride == (2, 2)
        assert encoder.layer3[0].conv1.stride == (1, 1)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="torchvision's ResNet names"):
        imagenet_encoder(tmp_path / "other.pt")


def test_features_are_computed_once_per_image_and_setting(tmp_path):
    seen = []

    def compute(rows):
        seen.append(list(rows))
        return np.array([[row, 1.0] for row in rows])

    path, key = tmp_path / "f.npz", {"size": 96}
    assert cached_features(path, key, ["a", "b"], compute).tolist() == [[0, 1], [1, 1]]
    assert cached_features(path, key, ["b", "c", "a"], compute).tolist() == [[1, 1], [1, 1], [0, 1]]
    assert seen == [[0, 1], [1]]
    cached_features(path, {"size": 64}, ["a", "b"], compute)
    assert seen[-1] == [0, 1]


def test_measured_features_are_kept_in_a_table(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    path = tmp_path / "features.csv"
    table = measured_features(images, ["a.png", "b.png", "c.png"], path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png"] and table.shape == (3, len(rows[0]) - 2)
    assert float(rows[1]["red_mean"]) == pytest.approx(images[1, 0].float().mean().item())
    monkeypatch.setattr("shared.apps.baselines.patch_features.patch_features", None)  # a call would fail
    assert np.array_equal(measured_features(images.flip(0), ["c.png", "b.png", "a.png"], path), table[::-1])
    with pytest.raises(TypeError):
        measured_features(images + 1, ["a.png", "b.png", "c.png"], path)
    assert len(set(pixel_digests(images))) == 3 and patch_probes.pixel_digests(images[:1].clone()) == pixel_digests(
        images[:1]
    )


def test_the_unit_of_a_feature_changes_no_probe():
    random = np.random.default_rng(0)
    labels, patients = np.arange(48) % 2, [f"P{k // 2 // 2}" for k in range(48)]
    features = random.normal(size=(48, 4)) + labels[:, None] * np.array([1.0, 0, 0.5, 0])
    units = np.array([1e4, 1e-4, 1.0, 30.0])
    one, other = (fit_probe(x, labels, patients) for x in (features, features * units))
    found = other.predict_proba(features * units)
    np.testing.assert_allclose(found, one.predict_proba(features), atol=1e-3)
